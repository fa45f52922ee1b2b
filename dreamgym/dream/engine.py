"""The engine: one step of N dreams, resets included, as a pure function of tensors.

A step takes the noise of the step, runs the world model, counts and ends episodes, and resets the
rows that ended. Autoreset mode, view and termination rule are fixed when the engine is made, so
the step has no data-dependent control flow and never syncs with the host: it can be compiled or
captured as one graph.

On a CPU a sync costs nothing. Without gradients, two things are therefore done differently there,
with equal results: noise is prefetched for several steps, and only the rows that ended are reset
("indexed"), instead of resetting all rows and selecting ("masked").
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from dreamgym.dream.episodes import Episodes
from dreamgym.dream.noise import Noise, draw_noise, env_keys
from dreamgym.dream.options import DTYPES, DreamOptions
from dreamgym.dream.prefetch import NoisePrefetcher
from dreamgym.dream.state import Dreams, Outcome, features_share_memory, merge, unshare
from dreamgym.models import Decodes, Prediction, State, WorldModel
from dreamgym.models.base import Temperature
from dreamgym.models.host_sync import host_sync_allowed
from dreamgym.models.observations import WHOLE, Observation, get_part, map_observation


class Transition(NamedTuple):
    """One step of every row.

    Attributes:
        dreams: state after the step.
        reward: (N,) float32.
        uncertainty: (N,) float32.
        terminated: (N,) bool.
        truncated: (N,) bool.
        termination: (N,) float32, predicted probability of termination.
    """

    dreams: Dreams
    reward: Tensor
    uncertainty: Tensor
    terminated: Tensor
    truncated: Tensor
    termination: Tensor


class Engine:
    """Steps and resets N dreams of one model.

    Args:
        model: world model in eval mode, on its device. Its prepared (fast) form takes the steps;
            under gradients the model itself does.
        episodes: how new episodes are drawn; its tensors on the same device.
        options: options of the dream.
        num_envs: number of rows.
    """

    def __init__(
        self, model: WorldModel, episodes: Episodes, options: DreamOptions, num_envs: int
    ) -> None:
        self.plain, self.episodes, self.options = model, episodes, options
        self.num_envs = num_envs
        self.device = episodes.starts.first.device
        self.model = model.prepare(num_envs, self.device, DTYPES[options.dtype])
        self.prefetcher = NoisePrefetcher(self.model.noise_dim, num_envs)
        self._temperature = _common_temperature(episodes.temperature)
        self._features_share_memory = features_share_memory(self.model)
        self._leaves = tuple(model.initial(1))

    def view(self, state: State) -> Observation:
        """Return what the policy sees of a state, (N, ...), in memory of its own."""
        if self.options.view == "latent" or not isinstance(self.model, Decodes):
            features = self.model.features(state)
            return features.clone() if self._features_share_memory else features
        return self.model.decode(state)

    def begin(self, seed: int, rows: Tensor | None = None) -> tuple[Dreams, Observation]:
        """Start episode 0 in every row.

        Args:
            seed: key of all randomness.
            rows: (N,) int64, what keys the noise of each row beside it; None for its index.

        Returns:
            The dreams, and what the policy sees of them.
        """
        key = torch.tensor(seed, dtype=torch.int64, device=self.device)
        env = torch.arange(self.num_envs, device=self.device) if rows is None else rows
        dreams = self._start_episodes(key, env, torch.zeros_like(env))
        return dreams, self.view(dreams.model)

    def restart(self, dreams: Dreams, mask: Tensor) -> tuple[Dreams, Observation]:
        """Start a new episode in the rows where `mask` (N,) is true."""
        dreams = self._reset_masked(dreams, mask)
        return dreams, self.view(dreams.model)

    def step(self, dreams: Dreams, action: Tensor) -> tuple[Dreams, Outcome]:
        """Take one step in every row, and reset the rows that the autoreset mode resets.

        Args:
            dreams: state before the step; not written.
            action: (N, ...) raw actions.

        Returns:
            The state after the step, and its outcome, which shares no memory with the state.
        """
        # Tensors that autograd has recorded must not be written in place.
        indexed = host_sync_allowed(self.device) and not torch.is_grad_enabled()
        stepped = self.advance(dreams, action, indexed)
        if self.options.mode is AutoresetMode.NEXT_STEP:
            stepped = self._autoreset_next_step(stepped, dreams.done, indexed)
        after = stepped.dreams
        final_observation = observation = self.view(after.model)
        # Cloned before a reset writes into them.
        done, length = after.done.clone(), after.age.clone()
        episode_return = after.episode_return.clone()
        if self.options.mode is AutoresetMode.SAME_STEP:
            autoreset = self._autoreset_indexed if indexed else self._autoreset_masked
            after, observation = autoreset(after, final_observation)
        if indexed:
            self.prefetcher.advance(after)
        return after, Outcome(
            observation=observation,
            reward=stepped.reward,
            terminated=stepped.terminated,
            truncated=stepped.truncated,
            done=done,
            final_observation=final_observation,
            episode_return=episode_return,
            episode_length=length,
            uncertainty=stepped.uncertainty,
        )

    def advance(self, dreams: Dreams, action: Tensor, indexed: bool = False) -> Transition:
        """Step the model, count, and end episodes; nothing is reset yet.

        Args:
            dreams: state before the step; not written.
            action: (N, ...) raw actions.
            indexed: whether noise is prefetched, and the memory of the new state belongs to it
                alone, so that a reset may write into it.
        """
        model = self.plain if torch.is_grad_enabled() else self.model
        noise = self.prefetcher.take(dreams) if indexed else self._draw_noise(dreams)
        temperature: Temperature = self._temperature or dreams.temperature
        state, prediction = model.step(dreams.model, action, noise.model, temperature)
        if indexed:
            state = unshare(state, dreams.model)
        age = dreams.age + 1
        terminated = self._terminates(prediction, noise)
        truncated = (age >= dreams.horizon) > terminated  # and not terminated
        after = dreams._replace(
            model=state,
            age=age,
            episode_return=dreams.episode_return + prediction.reward,
            done=terminated | truncated,
        )
        return Transition(
            dreams=after,
            reward=prediction.reward,
            uncertainty=prediction.uncertainty,
            terminated=terminated,
            truncated=truncated,
            termination=prediction.termination,
        )

    def _draw_noise(self, dreams: Dreams) -> Noise:
        keys = env_keys(dreams.seed, dreams.env)
        return draw_noise(keys, dreams.episode, dreams.age, self.model.noise_dim)

    def _terminates(self, prediction: Prediction, noise: Noise) -> Tensor:
        threshold = self.options.threshold
        if threshold is None:
            return noise.termination < prediction.termination
        return prediction.termination >= threshold

    def _autoreset_next_step(
        self, stepped: Transition, waiting: Tensor, indexed: bool
    ) -> Transition:
        """NextStep: reset the rows that ended in the step before, in place of their step."""
        if indexed:
            rows = waiting.nonzero().squeeze(1)
            if not len(rows):
                return stepped
            after, _ = self._write_resets(stepped.dreams, rows)
        else:
            after = self._reset_masked(stepped.dreams, waiting)
        return Transition(
            dreams=after,
            reward=torch.where(waiting, 0.0, stepped.reward),
            uncertainty=torch.where(waiting, 0.0, stepped.uncertainty),
            terminated=stepped.terminated > waiting,  # and not waiting
            truncated=stepped.truncated > waiting,
            termination=stepped.termination,
        )

    def _autoreset_masked(self, after: Dreams, final: Observation) -> tuple[Dreams, Observation]:
        """SameStep: reset the rows that are done; return the dreams and their observations."""
        dreams = self._reset_masked(after, after.done)
        if dreams is after:
            return after, map_observation(torch.clone, final)
        return dreams, self.view(dreams.model)

    def _autoreset_indexed(self, after: Dreams, final: Observation) -> tuple[Dreams, Observation]:
        """The same by index: only rows that are done are drawn and decoded."""
        observation = map_observation(torch.clone, final)
        rows = after.done.nonzero().squeeze(1)
        if not len(rows):
            return after, observation
        dreams, starts = self._write_resets(after, rows)
        first = self.view(starts)
        for key in first if isinstance(first, dict) else (WHOLE,):
            get_part(observation, key).index_copy_(0, rows, get_part(first, key))
        return dreams, observation

    def _reset_masked(self, dreams: Dreams, mask: Tensor) -> Dreams:
        """Start a new episode in the rows where `mask` (N,) is true."""
        # Start states for nobody cost as much as the step of a small model.
        if host_sync_allowed(self.device) and not mask.any():
            return dreams
        fresh = self._start_episodes(dreams.seed, dreams.env, dreams.episode + mask)
        return merge(mask, fresh, dreams)

    def _write_resets(self, dreams: Dreams, rows: Tensor) -> tuple[Dreams, State]:
        """Write new episodes into some rows, in place.

        Args:
            dreams: dreams whose model state, ages and returns may be overwritten.
            rows: (R,) int64 row numbers.

        Returns:
            The dreams, and the start states of the rows, leaves (R, ...).
        """
        episode = dreams.episode[rows] + 1
        self.prefetcher.on_reset(rows, episode)
        drawn = self.episodes.draw(self.prefetcher.keys(rows), episode)
        starts = self.episodes.start_states(drawn.start)
        for key, leaf in dreams.model.items():
            leaf.index_copy_(0, rows, starts[key])
        dreams.age.index_fill_(0, rows, 0)
        dreams.episode_return.index_fill_(0, rows, 0.0)
        horizon = self.episodes.horizons(drawn.horizon)
        temperature = self.episodes.temperatures(drawn.temperature, rows)
        after = dreams._replace(
            episode=dreams.episode.index_copy(0, rows, episode),
            horizon=dreams.horizon.index_copy(0, rows, horizon),
            temperature=dreams.temperature.index_copy(0, rows, temperature),
            done=dreams.done.index_fill(0, rows, False),
        )
        return after, starts

    def _start_episodes(self, seed: Tensor, env: Tensor, episode: Tensor) -> Dreams:
        """Return every row at the start of its episode."""
        drawn = self.episodes.draw(env_keys(seed, env), episode)
        starts = self.episodes.start_states(drawn.start)
        return Dreams(
            # In the order of the model: a compiler specialises on the order of a dict.
            model={name: starts[name] for name in self._leaves},
            seed=seed,
            env=env,
            episode=episode,
            age=torch.zeros_like(env),
            horizon=self.episodes.horizons(drawn.horizon),
            temperature=self.episodes.temperatures(drawn.temperature, slice(None)),
            episode_return=torch.zeros(env.shape, device=self.device),
            done=torch.zeros(env.shape, dtype=torch.bool, device=self.device),
        )


def _common_temperature(temperature: tuple[float, float] | Tensor) -> float | None:
    """Return the temperature that all rows share, or None.

    A Python number makes a step cheaper than a tensor of equal numbers does.
    """
    if isinstance(temperature, Tensor) or temperature[0] != temperature[1]:
        return None
    return temperature[0]
