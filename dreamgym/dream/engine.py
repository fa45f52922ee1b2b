"""The engine: one step of N dreams as a pure function of tensors, resets and all.

Nothing here asks the device anything: no `.item()`, no branch on a tensor, no index by a mask.
Which autoreset mode, view and rule of termination apply is fixed when the engine is made, so the
whole step is one graph.
"""

from __future__ import annotations

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from dreamgym.dream.drawing import Episodes
from dreamgym.dream.noise import row_keys, uniforms
from dreamgym.dream.options import DTYPES, DreamOptions
from dreamgym.dream.state import Dreams, Outcome, merge
from dreamgym.models import Decodes, Observation, State, Temperature, WorldModel, each
from dreamgym.models.asking import may_ask

ENDING = 1
"""Lanes of a step's noise that the engine itself uses, before the model's."""


class Engine:
    """Steps and resets N dreams of one model.

    Args:
        model: in eval mode, on its device; it is arranged for speed, and the plain one kept for
            steps under gradients.
        episodes: how new episodes are drawn; its tensors on the same device.
        options: how to dream.
        num_envs: rows.
    """

    def __init__(
        self, model: WorldModel, episodes: Episodes, options: DreamOptions, num_envs: int
    ) -> None:
        self.plain, self.episodes, self.options = model, episodes, options
        self.num_envs = num_envs
        self.device = episodes.sources.first.device
        self.model = model.prepare(num_envs, self.device, DTYPES[options.dtype])
        self.temperature = _constant(episodes.temperature)

    def view(self, state: State) -> Observation:
        """What the policy sees of a state, (N, ...); never memory of the state itself."""
        if self.options.view == "latent" or not isinstance(self.model, Decodes):
            # Some features are leaves of the state: what is handed out is always a copy.
            return self.model.features(state).clone()
        return self.model.decode(state)

    def begin(self, seed: int) -> tuple[Dreams, Observation]:
        """All rows at the start of episode 0 of a seed, and what the policy sees."""
        key = torch.tensor(seed, dtype=torch.int64, device=self.device)
        env = torch.arange(self.num_envs, device=self.device)
        dreams = self._fresh(key, env, torch.zeros_like(env))
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
        keys = row_keys(dreams.seed, dreams.env, dreams.episode, dreams.age)
        lanes = uniforms(keys, ENDING + self.model.noise_dim)
        temperature: Temperature = self.temperature or dreams.temperature
        model = self.plain if torch.is_grad_enabled() else self.model
        state, prediction = model.step(dreams.model, action, lanes[:, ENDING:], temperature)
        age = dreams.age + 1
        terminated = self._ends(prediction.termination, lanes[:, 0])
        truncated = (age >= dreams.horizon) & ~terminated
        stepped = dreams._replace(
            model=state,
            age=age,
            episode_return=dreams.episode_return + prediction.reward,
            done=terminated | truncated,
        )
        if self.options.mode is AutoresetMode.NEXT_STEP:
            # Rows that ended in the step before begin anew now, and their action is ignored.
            waiting = dreams.done
            stepped = merge(waiting, self._reset_rows(dreams, waiting), stepped)
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
        first = _copy(seen) if dreams is stepped else self.view(dreams.model)
        return dreams, outcome._replace(observation=first)

    def _fresh(self, seed: Tensor, env: Tensor, episode: Tensor) -> Dreams:
        """Every row at the start of its episode."""
        state, horizon, temperature = self.episodes.draw(seed, env, episode)
        return Dreams(
            model=state,
            seed=seed,
            env=env,
            episode=episode,
            age=torch.zeros_like(env),
            horizon=horizon,
            temperature=temperature,
            episode_return=torch.zeros(env.shape, device=self.device),
            done=torch.zeros(env.shape, dtype=torch.bool, device=self.device),
        )

    def _reset_rows(self, dreams: Dreams, mask: Tensor) -> Dreams:
        # On a CPU nothing waits for an answer, and drawing starts for nobody costs as much as a
        # small model's step. Elsewhere, and in a graph, everything is drawn and masked.
        if may_ask(self.device) and not mask.any():
            return dreams
        fresh = self._fresh(dreams.seed, dreams.env, dreams.episode + mask)
        return merge(mask, fresh, dreams)

    def _ends(self, probability: Tensor, uniform: Tensor) -> Tensor:
        threshold = self.options.threshold
        return uniform < probability if threshold is None else probability >= threshold


def _copy(observation: Observation) -> Observation:
    return each(torch.clone, observation)


def _constant(temperature: tuple[float, float] | Tensor) -> float | None:
    """The one temperature of all rows, or None: a number costs a step less than a tensor."""
    if isinstance(temperature, Tensor) or temperature[0] != temperature[1]:
        return None
    return temperature[0]
