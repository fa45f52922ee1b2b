"""The engine: one step of N dreams as a pure function of tensors, resets and all.

Nothing here asks the device anything: no `.item()`, no branch on a tensor, no index by a mask.
Which autoreset mode, view and rule of termination apply is fixed when the engine is made, so the
whole step is one graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from dreamgym.dream.noise import row_keys, uniforms
from dreamgym.dream.options import DreamOptions
from dreamgym.models import Decodes, Observation, State, WorldModel, select
from dreamgym.starts import Starts

START_STEP = -1
"""The step counter under which an episode's start is drawn: before its first action."""


class Dreams(NamedTuple):
    """Where N dreams stand: a value, which can be kept, copied and gone back to.

    Attributes:
        model: the model's state; leaves (N, ...).
        seed: () int64 that keys all randomness.
        episode: (N,) int64, how many episodes each row has begun before this one.
        age: (N,) int64 steps since the episode began.
        episode_return: (N,) float32 sum of rewards since the episode began.
        done: (N,) bool; the episode has ended and the row waits for its reset.
    """

    model: State
    seed: Tensor
    episode: Tensor
    age: Tensor
    episode_return: Tensor
    done: Tensor


class Outcome(NamedTuple):
    """What a step gives; every leaf is (N, ...).

    Attributes:
        observation: what the policy sees next; after a SameStep reset, the new episode's first.
        reward: float32; zero where NextStep reset the row.
        terminated, truncated: bool, never both.
        final_observation: the true last observation of rows that are done.
        episode_return: of the episode that this step belongs to, this step included.
        episode_length: likewise.
        uncertainty: the model's own, >= 0.
    """

    observation: Observation
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_observation: Observation
    episode_return: Tensor
    episode_length: Tensor
    uncertainty: Tensor


class Engine:
    """Steps and resets N dreams of one model.

    Args:
        model: prepared, in eval mode, on its device.
        starts: on the same device.
        options: how to dream.
        horizon: steps after which a dream is truncated.
        num_envs: rows.
    """

    def __init__(
        self,
        model: WorldModel,
        starts: Starts,
        options: DreamOptions,
        *,
        horizon: int,
        num_envs: int,
    ) -> None:
        self.model, self.starts, self.options, self.horizon = model, starts, options, horizon
        self.num_envs = num_envs
        self.device = next(iter(starts.states.values())).device
        self.candidates = starts.beginnings if options.starts == "beginnings" else starts.size
        self.env_index = torch.arange(num_envs, device=self.device)

    def view(self, state: State) -> Observation:
        """What the policy sees of a state, (N, ...); never memory of the state itself."""
        if self.options.view == "latent" or not isinstance(self.model, Decodes):
            return self.model.features(state)
        return self.model.decode(state)

    def begin(self, seed: int) -> tuple[Dreams, Observation]:
        """All rows at the start of episode 0 of a seed, and what the policy sees."""
        zeros = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        key = torch.tensor(seed, dtype=torch.int64, device=self.device)
        dreams = Dreams(
            model=self._start(key, zeros),
            seed=key,
            episode=zeros,
            age=zeros,
            episode_return=torch.zeros(self.num_envs, device=self.device),
            done=torch.zeros(self.num_envs, dtype=torch.bool, device=self.device),
        )
        return dreams, self.view(dreams.model)

    def restart(self, dreams: Dreams, mask: Tensor) -> tuple[Dreams, Observation]:
        """Begin a new episode in the rows where `mask` (N,) is true."""
        dreams = self._reset_rows(dreams, mask)
        return dreams, self.view(dreams.model)

    def step(self, dreams: Dreams, action: Tensor) -> tuple[Dreams, Outcome]:
        """One step of every row.

        Args:
            dreams: where the rows stand.
            action: (N, ...) raw actions.
        """
        lanes = uniforms(self._keys(dreams, dreams.age), 1 + self.model.noise_dim)
        state, prediction = self.model.step(
            dreams.model, action, lanes[:, 1:], self.options.temperature
        )
        age = dreams.age + 1
        terminated = self._ends(prediction.termination, lanes[:, 0])
        truncated = (age >= self.horizon) & ~terminated
        stepped = dreams._replace(
            model=state,
            age=age,
            episode_return=dreams.episode_return + prediction.reward,
            done=terminated | truncated,
        )
        if self.options.mode is AutoresetMode.NEXT_STEP:
            # Rows that ended in the step before begin anew now, and their action is ignored.
            waiting = dreams.done
            stepped = _merge(waiting, self._reset_rows(dreams, waiting), stepped)
            terminated, truncated = terminated & ~waiting, truncated & ~waiting
            prediction = prediction._replace(
                reward=torch.where(waiting, 0.0, prediction.reward),
                uncertainty=torch.where(waiting, 0.0, prediction.uncertainty),
            )
        seen = self.view(stepped.model)
        outcome = Outcome(
            observation=seen,
            reward=prediction.reward,
            terminated=terminated,
            truncated=truncated,
            final_observation=seen,
            # Copies: what a caller is handed is never memory of the dream itself.
            episode_return=stepped.episode_return.clone(),
            episode_length=stepped.age.clone(),
            uncertainty=prediction.uncertainty,
        )
        if self.options.mode is not AutoresetMode.SAME_STEP:
            return stepped, outcome
        dreams = self._reset_rows(stepped, stepped.done)
        return dreams, outcome._replace(observation=self.view(dreams.model))

    def _keys(self, dreams: Dreams, step: Tensor) -> Tensor:
        return row_keys(dreams.seed, self.env_index, dreams.episode, step)

    def _start(self, seed: Tensor, episode: Tensor) -> State:
        """A start for every row, drawn from the bank."""
        step = torch.full_like(episode, START_STEP)
        uniform = uniforms(row_keys(seed, self.env_index, episode, step), 1)[:, 0]
        index = (uniform * self.candidates).long()
        return {key: leaf[index] for key, leaf in self.starts.states.items()}

    def _reset_rows(self, dreams: Dreams, mask: Tensor) -> Dreams:
        episode = dreams.episode + mask
        return Dreams(
            model=select(mask, self._start(dreams.seed, episode), dreams.model),
            seed=dreams.seed,
            episode=episode,
            age=torch.where(mask, 0, dreams.age),
            episode_return=torch.where(mask, 0.0, dreams.episode_return),
            done=dreams.done & ~mask,
        )

    def _ends(self, probability: Tensor, uniform: Tensor) -> Tensor:
        threshold = self.options.threshold
        return uniform < probability if threshold is None else probability >= threshold


def _merge(mask: Tensor, new: Dreams, old: Dreams) -> Dreams:
    """The rows of `new` where `mask` (N,) is true, those of `old` elsewhere."""
    rows = {
        name: torch.where(mask, getattr(new, name), getattr(old, name))
        for name in ("episode", "age", "episode_return", "done")
    }
    return old._replace(model=select(mask, new.model, old.model), **rows)
