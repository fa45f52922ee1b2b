"""Noise of coming steps, drawn in blocks where that is cheaper than step by step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dreamgym.dream.episodes import Drawn, Episodes
from dreamgym.dream.noise import env_keys, step_keys, uniforms
from dreamgym.dream.state import Dreams
from dreamgym.models import WorldModel

ENDING = 1

"""Lanes of a step's noise that the engine itself uses, before the model's."""


NUMBERS = 2**16

"""To draw at once, about: below this many, a draw costs as much as it has calls."""


FEWEST_STEPS, MOST_STEPS = 8, 256

"""The first draw is small, for who keeps going back to states draws often; each after it twice."""


MOST_ROWS = 128

"""With more rows than that, some begin anew in most steps, and have to be drawn again."""


EPISODES = 8

"""Of each row, drawn at once, unless so many rows begin anew in a step that a call is nothing."""


MOST_ROWS_OF_EPISODES = 2**13


class Noise(NamedTuple):
    """What a step of N rows draws.

    Attributes:
        ending: (N,) uniforms that decide whether an episode terminates.
        model: (N, noise_dim) uniforms of the model.
    """

    ending: Tensor
    model: Tensor


class NoisePrefetcher:
    """Noise of the steps to come, as long as rows go on or are said to begin anew.

    What it gives is a function of the rows' counters, whatever was drawn before: it only remembers.

    Args:
        model: prepared.
        episodes: how new episodes are drawn.
        rows: of every step.
    """

    def __init__(self, model: WorldModel, episodes: Episodes, rows: int) -> None:
        self.lanes = ENDING + model.noise_dim
        at_once = NUMBERS // (rows * self.lanes) if rows <= MOST_ROWS else 1
        self.steps = max(1, min(MOST_STEPS, at_once))
        self._next = min(FEWEST_STEPS, self.steps)
        self._episodes = _EpisodesAhead(episodes)
        self._coming = torch.arange(self.steps).unsqueeze(1)
        self._keys = _Remembered()
        self._last: Dreams | None = None
        self._versions: tuple[int, ...] | None = None
        self._env_keys = torch.empty(0)
        self._at = 0
        self._block: list[Noise] = []
        self._memory = torch.empty(0)

    def take(self, dreams: Dreams) -> Noise:
        """The noise of the step that these dreams take next; see `went_on`."""
        going_on = dreams is self._last and _versions(dreams) == self._versions
        if self._at >= len(self._block) or not going_on:
            doubled = 2 * self._next if going_on else FEWEST_STEPS
            self._next = min(doubled, self.steps)
            self._draw(dreams)
        noise = self._block[self._at]
        self._at += 1
        return noise

    def went_on(self, dreams: Dreams) -> None:
        """These dreams come of the step whose noise was taken last."""
        if self.steps > 1:
            self._versions = _versions(dreams)
            self._last = dreams if self._versions else None

    def keys(self, dreams: Dreams) -> Tensor:
        """See `env_keys`."""
        of = (dreams.seed, dreams.env)
        if not self._keys.are(of):
            self._env_keys = env_keys(*of)
            self._keys.set(of)
        return self._env_keys

    def began(self, dreams: Dreams, rows: Tensor, episode: Tensor) -> Drawn:
        """Some rows begin an episode after the step whose noise was taken last.

        Args:
            dreams: before they do.
            rows: (R,) which.
            episode: (R,) their new episodes.
        """
        keys, left = self.keys(dreams), len(self._block) - self._at
        if left:
            coming = self._coming[:left].expand(-1, len(rows))
            drawn = self._noise(keys[rows], episode, coming)
            self._memory[self._at :].index_copy_(1, rows, drawn)
        return self._episodes.take(keys, dreams.episode, rows, episode)

    def _draw(self, dreams: Dreams) -> None:
        coming = self._coming[: self._next]
        self._memory = self._noise(self.keys(dreams), dreams.episode, dreams.age + coming)
        self._block = [Noise(lanes[:, 0], lanes[:, ENDING:]) for lanes in self._memory.unbind()]
        self._at = 0

    def _noise(self, keys: Tensor, episode: Tensor, step: Tensor) -> Tensor:
        """Uniforms of steps (T, N): (T, N, lanes)."""
        return uniforms(step_keys(keys, episode, step), self.lanes)


class _EpisodesAhead:
    """What is drawn for the next episodes of every row."""

    def __init__(self, episodes: Episodes) -> None:
        self._episodes = episodes
        self._keys: Tensor | None = None
        self._first = torch.empty(0)
        self._drawn = Drawn(*(torch.empty(0),) * 3)

    def take(self, keys: Tensor, now: Tensor, rows: Tensor, episode: Tensor) -> Drawn:
        """Of some rows' episodes.

        Args:
            keys: (N,) of `env_keys`, the same tensor as long as they are the same.
            now: (N,) episodes that the rows are in.
            rows: (R,) which.
            episode: (R,).
        """
        if len(now) > MOST_ROWS_OF_EPISODES:
            return self._episodes.draw(keys[rows], episode)
        if keys is not self._keys or not self._reaches(rows, episode):
            self._keys, self._first = keys, now.clone()
            coming = now + torch.arange(EPISODES).unsqueeze(1)
            self._drawn = self._episodes.draw(keys, coming)
        place = (episode - self._first[rows], rows)
        return Drawn(*(leaf[place] for leaf in self._drawn))

    def _reaches(self, rows: Tensor, episode: Tensor) -> bool:
        least, most = (episode - self._first[rows]).aminmax()
        return int(least) >= 0 and int(most) < EPISODES


class _Remembered:
    """Tensors that can be known again: by what they are, and whether anybody wrote into them."""

    def __init__(self) -> None:
        self._tensors: tuple[Tensor, ...] = ()
        self._versions: tuple[int, ...] = ()

    def set(self, tensors: tuple[Tensor, ...]) -> None:
        # Inference tensors do not tell whether anybody wrote into them.
        known = () if any(tensor.is_inference() for tensor in tensors) else tensors
        self._tensors, self._versions = known, tuple(tensor._version for tensor in known)

    def are(self, tensors: tuple[Tensor, ...]) -> bool:
        return bool(self._tensors) and all(
            own is given and own._version == version
            for own, given, version in zip(self._tensors, tensors, self._versions, strict=True)
        )


def _versions(dreams: Dreams) -> tuple[int, ...] | None:
    """How often anybody has written into the counters, or None where they do not tell."""
    try:
        return (
            dreams.seed._version,
            dreams.env._version,
            dreams.episode._version,
            dreams.age._version,
            dreams.horizon._version,
        )
    except RuntimeError:  # tensors of inference mode
        return None
