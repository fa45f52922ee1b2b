"""The engine: one step of N dreams as a pure function of tensors, resets and all.

Nothing here asks the device anything: no `.item()`, no branch on a tensor, no index by a mask.
Which autoreset mode, view and rule of termination apply is fixed when the engine is made, so the
whole step is one graph. Only on a CPU, where nothing waits for an answer, rows that begin anew are
looked for and written by index, and noise is drawn ahead; what comes out is the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from dreamgym.dream.episodes import Episodes
from dreamgym.dream.noise import env_keys, step_keys, uniforms
from dreamgym.dream.options import DTYPES, DreamOptions
from dreamgym.dream.prefetch import ENDING, NoisePrefetcher
from dreamgym.dream.state import Dreams, Outcome, features_are_new, merge, writable
from dreamgym.models import Decodes, Prediction, State, WorldModel
from dreamgym.models.base import Temperature
from dreamgym.models.host_sync import host_sync_allowed
from dreamgym.models.observations import WHOLE, Observation, get_part, map_observation


class Stepped(NamedTuple):
    """What the model made of every row, before any of them begins anew.

    Attributes:
        dreams: a step further.
        prediction: the model's.
        terminated: (N,) bool.
        truncated: (N,) bool.
        done: (N,) bool, either of them, in memory of its own.
        length: (N,) int64 of the episode so far, in memory of its own.
    """

    dreams: Dreams
    prediction: Prediction
    terminated: Tensor
    truncated: Tensor
    done: Tensor
    length: Tensor


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
        self._ahead = NoisePrefetcher(self.model, episodes, num_envs)
        self._features_are_new = features_are_new(self.model)
        self._leaves = tuple(model.initial(1))

    def view(self, state: State) -> Observation:
        """What the policy sees of a state, (N, ...); never memory of the state itself."""
        if self.options.view == "latent" or not isinstance(self.model, Decodes):
            features = self.model.features(state)
            # Some features are leaves of the state: what is handed out is always a copy.
            return features if self._features_are_new else features.clone()
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
            dreams: where the rows stand; left as they are.
            action: (N, ...) raw actions.
        """
        # What autograd has traced must not be written over.
        by_index = host_sync_allowed(self.device) and not torch.is_grad_enabled()
        stepped = self._ahead_step(dreams, action) if by_index else self._step(dreams, action)
        if self.options.mode is AutoresetMode.NEXT_STEP:
            stepped = self._begun_late(dreams, stepped, by_index)
        after = stepped.dreams
        first = seen = self.view(after.model)
        # Copies: what a caller is handed is never memory of the dream itself.
        episode_return = after.episode_return.clone()
        if self.options.mode is AutoresetMode.SAME_STEP:
            begun = self._begun_by_index if by_index else self._begun_by_mask
            after, first = begun(after, seen)
        if by_index:
            self._ahead.went_on(after)
        return after, Outcome(
            observation=first,
            reward=stepped.prediction.reward,
            terminated=stepped.terminated,
            truncated=stepped.truncated,
            done=stepped.done,
            final_observation=seen,
            episode_return=episode_return,
            episode_length=stepped.length,
            uncertainty=stepped.prediction.uncertainty,
        )

    def _step(self, dreams: Dreams, action: Tensor) -> Stepped:
        """The model's step, with the noise of this one."""
        keys = step_keys(env_keys(dreams.seed, dreams.env), dreams.episode, dreams.age)
        lanes = uniforms(keys, ENDING + self.model.noise_dim)
        model = self.plain if torch.is_grad_enabled() else self.model
        temperature: Temperature = self.temperature or dreams.temperature
        said = model.step(dreams.model, action, lanes[:, ENDING:], temperature)
        return self._counted(dreams, *said, lanes[:, 0])

    def _ahead_step(self, dreams: Dreams, action: Tensor) -> Stepped:
        """The same, with noise that was drawn ahead, in a state that may be written into."""
        noise = self._ahead.take(dreams)
        temperature: Temperature = self.temperature or dreams.temperature
        state, prediction = self.model.step(dreams.model, action, noise.model, temperature)
        return self._counted(dreams, writable(state, dreams.model), prediction, noise.ending)

    def _counted(
        self, dreams: Dreams, state: State, prediction: Prediction, ending: Tensor
    ) -> Stepped:
        """The rows a step further: ages, returns, and which of them end."""
        age = dreams.age + 1
        terminated = self._ends(prediction.termination, ending)
        truncated = (age >= dreams.horizon) > terminated
        stepped = dreams._replace(
            model=state,
            age=age,
            episode_return=dreams.episode_return + prediction.reward,
            done=terminated | truncated,
        )
        done = stepped.done.clone()
        return Stepped(stepped, prediction, terminated, truncated, done, age.clone())

    def _begun_late(self, dreams: Dreams, stepped: Stepped, by_index: bool) -> Stepped:
        """NextStep: rows that ended in the step before begin anew now; their action is ignored."""
        waiting = dreams.done
        if by_index:
            rows = waiting.nonzero().squeeze(1)
            if not len(rows):
                return stepped
            after, _ = self._written(stepped.dreams, rows)
        else:
            after = merge(waiting, self._reset_rows(dreams, waiting), stepped.dreams)
        prediction = stepped.prediction
        prediction = prediction._replace(
            reward=torch.where(waiting, 0.0, prediction.reward),
            uncertainty=torch.where(waiting, 0.0, prediction.uncertainty),
        )
        terminated, truncated = stepped.terminated > waiting, stepped.truncated > waiting
        done = terminated | truncated
        return Stepped(after, prediction, terminated, truncated, done, after.age.clone())

    def _begun_by_mask(self, stepped: Dreams, seen: Observation) -> tuple[Dreams, Observation]:
        """SameStep: rows that are done begin anew; all rows and their first observations."""
        dreams = self._reset_rows(stepped, stepped.done)
        return dreams, map_observation(torch.clone, seen) if dreams is stepped else self.view(
            dreams.model
        )

    def _begun_by_index(self, stepped: Dreams, seen: Observation) -> tuple[Dreams, Observation]:
        """The same where asking costs nothing: only the rows that are done are drawn and seen."""
        first = map_observation(torch.clone, seen)
        rows = stepped.done.nonzero()
        if not len(rows):
            return stepped, first
        rows = rows.squeeze(1)
        dreams, begun = self._written(stepped, rows)
        fresh = self.view(begun)
        for key in fresh if isinstance(fresh, dict) else (WHOLE,):
            get_part(first, key).index_copy_(0, rows, get_part(fresh, key))
        return dreams, first

    def _written(self, dreams: Dreams, rows: Tensor) -> tuple[Dreams, State]:
        """New episodes written into some rows of dreams whose memory is nobody else's.

        Args:
            dreams: of which the model's leaves, ages and returns are written over.
            rows: (R,) which.

        Returns:
            The dreams, and the starts (R, ...).
        """
        episode = dreams.episode[rows] + 1
        drawn = self._ahead.began(dreams, rows, episode)
        begun = self.episodes.starts(drawn.row)
        for key, leaf in dreams.model.items():
            leaf.index_copy_(0, rows, begun[key])
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
        return after, begun

    def _fresh(self, seed: Tensor, env: Tensor, episode: Tensor) -> Dreams:
        """Every row at the start of its episode."""
        drawn = self.episodes.draw(env_keys(seed, env), episode)
        starts = self.episodes.starts(drawn.row)
        return Dreams(
            # In the order that a step gives: a compiler takes another one for another function.
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

    def _reset_rows(self, dreams: Dreams, mask: Tensor) -> Dreams:
        # On a CPU nothing waits for an answer, and drawing starts for nobody costs as much as a
        # small model's step. Elsewhere, and in a graph, everything is drawn and masked.
        if host_sync_allowed(self.device) and not mask.any():
            return dreams
        fresh = self._fresh(dreams.seed, dreams.env, dreams.episode + mask)
        return merge(mask, fresh, dreams)

    def _ends(self, probability: Tensor, uniform: Tensor) -> Tensor:
        threshold = self.options.threshold
        return uniform < probability if threshold is None else probability >= threshold


def _constant(temperature: tuple[float, float] | Tensor) -> float | None:
    """The one temperature of all rows, or None: a number costs a step less than a tensor."""
    if isinstance(temperature, Tensor) or temperature[0] != temperature[1]:
        return None
    return temperature[0]
