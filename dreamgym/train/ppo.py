"""PPO in one file, on tensors: neither its rollouts nor its updates leave the dream's device.

(Schulman et al. 2017, "Proximal Policy Optimization Algorithms", arXiv 1707.06347, eq. 7;
advantages by Schulman et al. 2015, arXiv 1506.02438, eq. 16.)

The functions of `dreamgym.train.registry.LearnerLibrary` are at the end.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import gymnasium as gym
import torch
from torch import Tensor, nn

from dreamgym.dream import capture
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.models.host_sync import forbid_host_sync, host_sync_allowed
from dreamgym.train.dreams import dream_for
from dreamgym.train.network import ActorCritic, actor, load, save
from dreamgym.train.on_device import OnPolicySettings, Training, settings_of, unsupported_space
from dreamgym.train.policy import TrainedPolicy
from dreamgym.train.training import TrainingRun

__all__ = [
    "PPO",
    "PPOSettings",
    "actor",
    "adapter",
    "check",
    "load",
    "save",
    "train",
    "unsupported",
]

_MINUS_ONE = torch.tensor(-1.0, device="cpu")  # whatever the default device is


@dataclass(frozen=True, kw_only=True)
class PPOSettings(OnPolicySettings):
    """Settings of PPO.

    Attributes:
        clip_range: how far the ratio of probabilities may leave 1.
        ent_coef: weight of the entropy.
        vf_coef: weight of the value loss.
        max_grad_norm: norm to which gradients are clipped.
    """

    clip_range: float = 0.2
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5


class Rollout(NamedTuple):
    """T steps of N dreams.

    Attributes:
        observation: (T, N, n) standardised observations.
        next_observation: (T, N, n) standardised observations after the step, the last ones of
            episodes that ended included.
        action: (T, N, ...) what the network chose.
        log_prob: (T, N) of these actions.
        reward: (T, N), scaled.
        terminated: (T, N) bool.
        done: (T, N) bool, terminated or truncated.
    """

    observation: Tensor
    next_observation: Tensor
    action: Tensor
    log_prob: Tensor
    reward: Tensor
    terminated: Tensor
    done: Tensor


class PPO:
    """Proximal policy optimisation in a dream.

    Args:
        env: a dream with output="torch" in SameStep mode, or a wrapper on tensors around one.
        network: network to train, on the dream's device.
        settings: settings of the algorithm.
        reward_scale: factor on the rewards.
        seed: seed of the dream, the actions and the minibatches.

    Attributes:
        num_timesteps: dream steps so far.
    """

    def __init__(
        self,
        env: Any,
        network: ActorCritic,
        settings: PPOSettings,
        *,
        reward_scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.env, self.network, self.settings = env, network, settings
        self.reward_scale, self.num_timesteps = reward_scale, 0
        self.generator = torch.Generator(network.device).manual_seed(seed)
        self._parameters = _flat_parameters(network)
        self.optimizer = torch.optim.Adam(
            [self._parameters],
            lr=settings.learning_rate,
            eps=1e-5,
            fused=network.device.type in ("cpu", "cuda"),
            capturable=network.device.type == "cuda",
        )
        self._act: Callable[..., Any] | None = None
        self._step: Callable[..., Any] | None = None
        self._observation: Tensor = env.reset(seed=seed)[0]

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Step the dream `n_steps` times under the current policy."""
        network, steps = self.network, []
        for _ in range(self.settings.n_steps):
            inputs = self._observation, network.noise(len(self._observation), self.generator)
            if self._act is None:
                self._act = self._captured("policy", self._choose, inputs)
            seen, action, log_prob, chosen = self._act(*inputs)
            self._observation, reward, terminated, truncated, info = self.env.step(chosen)
            steps.append((seen, info["final_obs"], action, log_prob, reward, terminated, truncated))
        leaves = [torch.stack(leaves) for leaves in zip(*steps, strict=True)]
        seen, final, action, log_prob, reward, terminated, truncated = leaves
        self.num_timesteps += reward.numel()
        return Rollout(
            observation=seen,
            next_observation=network.standardise(final.flatten(0, 1)).view_as(seen),
            action=action,
            log_prob=log_prob,
            reward=reward * self.reward_scale,
            terminated=terminated,
            done=terminated | truncated,
        )

    def _choose(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """Return standardised observations, actions, their log probabilities, and env actions."""
        network = self.network
        seen = network.standardise(observation)
        outputs = network.actor(seen)
        action = network.sample(outputs, noise)
        return seen, action, network.log_prob(outputs, action)[0], network.codec(action)

    @torch.no_grad()
    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Return advantages and targets of the values, each (T, N).

        The value after a step is that of the true next observation, and counts unless the step
        terminated the episode: a truncated episode is bootstrapped.
        """
        gamma, decay = self.settings.gamma, self.settings.gamma * self.settings.gae_lambda
        # Step by step, so that activations stay in a CPU's cache.
        steps = [*rollout.observation, rollout.next_observation[-1]]
        values = torch.stack([self.network.critic(step).squeeze(-1) for step in steps])
        value, following = values[:-1], values[1:].clone()
        # The observation after a step is the next one of the rollout, unless the episode ended.
        if host_sync_allowed(following.device):
            ended = rollout.done.nonzero(as_tuple=True)
            following[ended] = self.network.critic(rollout.next_observation[ended]).squeeze(-1)
        else:
            last = self.network.critic(rollout.next_observation.flatten(0, 1)).view_as(following)
            following = torch.where(rollout.done, last, following)
        delta = rollout.reward + gamma * following * ~rollout.terminated - value
        kept = decay * ~rollout.done
        advantage = torch.empty_like(delta)
        last = torch.zeros_like(delta[0])
        for step in reversed(range(len(delta))):
            last = delta[step] + kept[step] * last
            advantage[step] = last
        return advantage, advantage + value

    def update(self, rollout: Rollout) -> None:
        """Take the gradient steps of one rollout."""
        settings = self.settings
        advantage, target = self.advantages(rollout)
        rows, action = advantage.numel(), rollout.action.flatten(0, 1)
        # Side by side, because to gather a row takes as long as to gather a number.
        numbers = torch.stack([rollout.log_prob, advantage, target], -1)
        joined = torch.cat([rollout.observation, numbers], -1).flatten(0, 1)
        for _ in range(settings.n_epochs):
            order = torch.randperm(rows, device=advantage.device, generator=self.generator)
            shuffled = (part[order].split(settings.batch_size) for part in (joined, action))
            for floats, actions in zip(*shuffled, strict=True):
                batch = floats[:, :-3], actions, *floats[:, -3:].unbind(-1)
                if len(actions) < settings.batch_size:  # the last one
                    self._gradient_step(*batch)
                    continue
                if self._step is None:
                    self._step = self._captured_step(batch)
                self._step(*batch)

    def _captured_step(self, batch: tuple[Tensor, ...]) -> Callable[..., Any]:
        """Return the gradient step as one graph; weights and optimizer are as before."""
        before = self._parameters.detach().clone()
        step = self._captured("update", self._gradient_step, batch)
        # Recording takes some steps to warm up. Before the first one, Adam's state is all zeros.
        self._parameters.data.copy_(before)
        for state in self.optimizer.state.values():
            for each in state.values():
                each.zero_()
        return step

    def _captured(
        self, name: str, work: Callable[..., Any], inputs: tuple[Tensor, ...]
    ) -> Callable[..., Any]:
        """Return the same function as one graph, where the device has graphs.

        Both functions are dozens of kernels on tensors this small; launching them one by one takes
        longer than running them.

        Args:
            name: name of the function in a warning.
            work: function of tensors to a tuple of tensors or None, without a host sync.
            inputs: inputs like those of every later call; copied.
        """
        device = self.network.device
        if device.type not in capture.GRAPHS:
            return work
        static = [part.clone() for part in inputs]
        outputs: tuple[Tensor, ...] = ()

        def record() -> None:
            nonlocal outputs
            outputs = work(*static) or ()

        try:
            graph = capture.GRAPHS[device.type](device)
            with forbid_host_sync():
                graph.record(record)
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), "no reason given")
            warnings.warn(
                f"PPO's {name} cannot be captured here ({type(error).__name__}: {reason}); its "
                "steps are taken without it: slower, with equal results",
                RuntimeWarning,
                stacklevel=3,
            )
            return work

        def replay(*new: Tensor) -> tuple[Tensor, ...]:
            for part, value in zip(static, new, strict=True):
                part.copy_(value)
            graph.replay()
            return tuple(each.clone() for each in outputs)  # the next call overwrites them

        return replay

    @torch.no_grad()
    def _gradient_step(
        self,
        observation: Tensor,
        action: Tensor,
        log_prob: Tensor,
        advantage: Tensor,
        target: Tensor,
    ) -> None:
        settings, network, rows = self.settings, self.network, len(advantage)
        if rows > 1:
            advantage = advantage - advantage.mean()
            advantage = advantage / (advantage.norm() / (rows - 1) ** 0.5 + 1e-8)
        outputs, actor_inputs = _forward(network.actor, observation)
        value, critic_inputs = _forward(network.critic, observation)
        # The loss is vf_coef * error - gain - ent_coef * entropy; these are its gradients.
        ratio = (network.log_prob(outputs, action)[0] - log_prob).exp()
        gain = ratio * advantage
        clipped = ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range) * advantage
        by_log_prob = gain.masked_fill_(gain > clipped, 0.0) / -rows
        by_value = (value - target.unsqueeze(-1)) * (2 * settings.vf_coef / rows)
        by_outputs, by_log_std = network.log_prob_gradients(
            outputs, action, by_log_prob, -settings.ent_coef / rows
        )
        _backward(network.actor, actor_inputs, by_outputs)
        _backward(network.critic, critic_inputs, by_value)
        cast(Tensor, network.log_std.grad).copy_(by_log_std)
        gradient = cast(Tensor, self._parameters.grad)
        gradient.mul_((settings.max_grad_norm / (gradient.norm() + 1e-6)).clamp(max=1.0))
        self.optimizer.step()


def _forward(network: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return outputs (B, outputs) of a `tanh_mlp`, and the inputs of each of its layers.

    With layers this narrow, an update is limited by memory and by calls as much as by products.
    Tanh and its gradient therefore overwrite their inputs, and gradients go where the optimiser
    reads them: half of autograd's calls.
    """
    inputs = [x]
    *hidden, last = _linear_layers(network)
    for layer in hidden:
        # tanh(x) as 2 sigmoid(2x) - 1: torch's tanh takes three times as long on an AMD processor.
        twice = torch.addmm(layer.bias, inputs[-1], layer.weight.t(), beta=2, alpha=2)
        inputs.append(torch.add(_MINUS_ONE, twice.sigmoid_(), alpha=2, out=twice))
    return torch.addmm(last.bias, inputs[-1], last.weight.t()), inputs


def _backward(network: nn.Module, inputs: list[Tensor], gradient: Tensor) -> None:
    """Set the gradients of the parameters.

    Args:
        network: the network.
        inputs: those of each layer, from `_forward`.
        gradient: (B, outputs) of the loss by the outputs.
    """
    layers = _linear_layers(network)
    for index, layer in reversed(list(enumerate(layers))):
        torch.sum(gradient, 0, out=layer.bias.grad)
        torch.mm(gradient.t(), inputs[index], out=layer.weight.grad)
        if index:
            gradient = gradient @ layer.weight
            torch.ops.aten.tanh_backward.grad_input(gradient, inputs[index], grad_input=gradient)


def _linear_layers(network: nn.Module) -> list[nn.Linear]:
    return [layer for layer in network.children() if isinstance(layer, nn.Linear)]


def _flat_parameters(network: nn.Module) -> nn.Parameter:
    """Return all parameters and their gradients as one vector, of which they become views.

    An optimizer then takes one step instead of one for each parameter, which is most of the time of
    a small minibatch.
    """
    parameters = list(network.parameters())
    flat = nn.Parameter(torch.cat([each.detach().flatten() for each in parameters]))
    flat.grad = torch.zeros_like(flat)
    sizes = [each.numel() for each in parameters]
    for each, data, grad in zip(
        parameters, flat.detach().split(sizes), flat.grad.split(sizes), strict=True
    ):
        each.data, each.grad = data.view_as(each), grad.view_as(each)
    return flat


def adapter(env: DreamVectorEnv, **options: Any) -> DreamVectorEnv:
    """See `LearnerLibrary.adapter`: a dream on tensors in SameStep mode."""
    return dream_for(env, library="PPO", autoreset_mode="SameStep", output="torch")


def unsupported(algo: str, space: gym.Space[Any]) -> str | None:
    """See `LearnerLibrary.unsupported`."""
    return unsupported_space("ppo", space)


def check(run: TrainingRun) -> None:
    """See `LearnerLibrary.check`."""
    settings_of(run, PPOSettings())


def train(run: TrainingRun) -> tuple[TrainedPolicy, bool]:
    """See `LearnerLibrary.train`."""
    settings = settings_of(run, PPOSettings())
    with Training(run, settings) as training:
        env, network, scale = training.env, training.network, training.reward_scale
        learner = PPO(env, network, settings, reward_scale=scale, seed=run.seed)
        finished = True
        try:
            while learner.num_timesteps < training.steps:
                learner.update(learner.collect())
                training.after_update(learner.num_timesteps, learner)
        except KeyboardInterrupt:
            finished = False
        return training.policy(learner, learner.num_timesteps), finished
