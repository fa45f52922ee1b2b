"""Episodes that are nearly the same: a forgotten seed, or a file that was added twice."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamgym._files import refuse_unfinished
from dreamgym.data.formats import ForeignOptions
from dreamgym.data.formats.source import open_source
from dreamgym.data.hdf5 import schema
from dreamgym.data.segments import SegmentSampler, SegmentSource
from dreamgym.data.spaces import space_to_json
from dreamgym.data.statistics import (
    action_use,
    channel_statistics,
    distribution,
    episode_returns,
    reward_statistics,
)
from dreamgym.data.storage import Column, EpisodeTable, Source

Array = NDArray[Any]


# Two episodes are near where no value differs by more than this share of its channel's range.
TOLERANCE = 1e-3


_SAMPLED = 64  # channels of an image that are looked at


_MAX_EPISODES = 20_000


_LOOKED_AT = 32  # neighbours in the order; where all begin alike, some twins may be missed


def near_duplicates(column: Column, table: EpisodeTable) -> list[tuple[int, int]]:
    """Pairs of episodes of equal length whose observations nearly agree, row by row.

    Episodes are compared with those of the same length that begin and end alike, so that the time
    is that of a sort. Of an image, 64 values spread over it are looked at.

    Args:
        column: Rows of one observation key.
        table: The episodes; at most the first 20,000 are looked at.

    Returns:
        `(earlier, later)` by index; an episode that has several twins is listed once.
    """
    count = min(len(table), _MAX_EPISODES)
    ends = [_ends(column, table, episode) for episode in range(count)]
    if count < 2:
        return []
    stacked = np.stack(ends)
    span = np.ptp(stacked, axis=0)
    scale = np.where(span > 0, span, 1.0)
    pairs = []
    for length in np.unique(table.length[:count]):
        same = np.flatnonzero(table.length[:count] == length)
        order = same[np.argsort(stacked[same, 0], kind="stable")]
        for place, episode in enumerate(order[1:].tolist(), start=1):
            twin = _twin(stacked / scale, order[:place], episode)
            if twin is not None and _alike(column, table, (twin, episode), scale):
                pairs.append((min(twin, episode), max(twin, episode)))
    return sorted(pairs)


def _ends(column: Column, table: EpisodeTable, episode: int) -> Array:
    start = int(table.start[episode])
    stop = start + int(table.length[episode])
    rows = [_first_rows(column.read(row, row + 1)) for row in (start, stop)]
    return np.concatenate(rows, axis=1)[0]


def _first_rows(rows: Array) -> Array:
    flat = rows.reshape(len(rows), -1)
    step = max(1, flat.shape[1] // _SAMPLED)
    return np.nan_to_num(flat[:, ::step].astype(np.float64))


def _twin(points: Array, earlier: Array, episode: int) -> int | None:
    """The nearest one before it in the order, if it begins and ends alike."""
    for other in earlier[::-1][:_LOOKED_AT].tolist():
        if points[episode, 0] - points[other, 0] > TOLERANCE:
            return None
        if np.abs(points[episode] - points[other]).max() <= TOLERANCE:
            return int(other)
    return None


def _alike(column: Column, table: EpisodeTable, pair: tuple[int, int], scale: Array) -> bool:
    rows = []
    for episode in pair:
        start = int(table.start[episode])
        rows.append(_first_rows(column.read(start, start + int(table.length[episode]) + 1)))
    half = scale.reshape(2, -1).max(axis=0)
    return bool((np.abs(rows[0] - rows[1]) <= 2 * TOLERANCE * half).all())


_HELD_BYTES = 256 << 20


_LISTED_PROBLEMS = 50


_TIMED_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a dataset holds; `str(card)` is the readable form.

    Attributes:
        path: The file.
        size_bytes: Its size on disk.
        schema_version: Of the native format.
        convention: What was found, and how it is read.
        env_id: Id of the environment, if known.
        policy: What chose the actions.
        seed: Of the recording, if it had one.
        created: When it was made.
        checksum: SHA-256 over the checksums of the episodes.
        observation_space: As JSON.
        action_space: As JSON.
        episodes: How many there are.
        steps: Transitions in all of them.
        ended: How many `terminated`, were `truncated`, or were `cut off`.
        lengths: Distribution of episode lengths.
        returns: Distribution of undiscounted returns, over all episodes.
        observations: Statistics by observation key.
        rewards: Statistics of the rewards.
        actions: How the action space was used.
        windows_per_second: Segments of 16 transitions that were read a second, in batches of 16.
        problems: What would make fitting refuse.
        notes: What is worth knowing and stops nothing.
    """

    path: str
    size_bytes: int
    schema_version: int
    convention: str
    env_id: str | None
    policy: str
    seed: int | None
    created: str
    checksum: str
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    episodes: int
    steps: int
    ended: dict[str, int]
    lengths: dict[str, float]
    returns: dict[str, float]
    observations: dict[str, dict[str, Any]]
    rewards: dict[str, Any]
    actions: dict[str, Any]
    windows_per_second: float
    problems: list[str]
    notes: list[str]

    @property
    def ok(self) -> bool:
        """Fitting would take it."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """JSON-plain, with `ok`."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        lines = [f"{self.path}  ({self.size_bytes / 1e6:.2f} MB, {self.convention})"]
        lines += [f"  {name:<13} {text}" for name, text in _rows(self)]
        lines += [f"  note          {note}" for note in self.notes]
        lines += [f"  PROBLEM       {problem}" for problem in self.problems]
        lines.append(f"  verdict       {'ready to fit' if self.ok else 'fitting would refuse it'}")
        return "\n".join(lines)


def check(path: str | os.PathLike[str], *, foreign: ForeignOptions | None = None) -> Card:
    """Read a dataset from end to end, and say what is in it and what is wrong with it.

    Args:
        path: The dataset: a file or a folder, native or foreign.
        foreign: What a foreign dataset does not say by itself.

    Raises:
        DatasetError: It cannot be read as a dataset at all; what is wrong with single episodes is
            in the card's `problems`.
        UnsupportedSpaceError: It has a space that this dreamgym does not know.
    """
    path = Path(path)
    refuse_unfinished(path)
    source, skipped = open_source(path, _HELD_BYTES, foreign or ForeignOptions(), "skip")
    try:
        return _card(source, skipped)
    finally:
        source.close()


def _card(source: Source, skipped: list[str]) -> Card:
    table, metadata = source.table, source.metadata
    boxes = metadata.observation_boxes()
    statistics = {
        key: channel_statistics(column, boxes[key].shape, table.num_rows)
        for key, column in source.observations.items()
    }
    finite = np.nan_to_num(episode_returns(source.reward, table))
    notes = []
    for key, of_key in statistics.items():
        for what, channels in (("constant", of_key.constant), ("saturated", of_key.saturated)):
            if channels:
                notes.append(f"{len(channels)} {what} channels in {key!r}: {_some(channels)}")
    duplicates = _duplicates(source)
    if duplicates:
        listed = _some([f"{earlier} and {later}" for earlier, later in duplicates])
        notes.append(f"{len(duplicates)} pairs of episodes are nearly the same: {listed}")
    return Card(
        path=str(source.path),
        size_bytes=_size(source.path),
        schema_version=schema.SCHEMA_VERSION,
        convention=source.convention,
        env_id=metadata.env_id,
        policy=metadata.policy,
        seed=metadata.seed,
        created=metadata.created,
        checksum=table.checksum,
        observation_space=space_to_json(metadata.observation_space),
        action_space=space_to_json(metadata.action_space),
        episodes=len(table),
        steps=table.num_steps,
        ended={
            "terminated": int(table.terminated.sum()),
            "truncated": int((table.truncated & ~table.terminated).sum()),
            "cut off": int((~table.complete).sum()),
        },
        lengths=distribution(table.length),
        returns=distribution(finite),
        observations={key: of_key.as_dict() for key, of_key in statistics.items()},
        rewards=reward_statistics(source.reward, table),
        actions=action_use(source.action, table, metadata.action_space),
        windows_per_second=_windows_per_second(source),
        problems=skipped + _problems(source),
        notes=notes,
    )


def _duplicates(source: Source) -> list[tuple[int, int]]:
    """Pairs that are nearly the same in every observation key."""
    found = [set(near_duplicates(column, source.table)) for column in source.observations.values()]
    return sorted(set.intersection(*found))


def _windows_per_second(source: Source) -> float:
    """Windows of 16 transitions a second, drawn for a moment from where the data lie."""
    segments = SegmentSource(
        source.observations,
        action=source.action,
        reward=source.reward,
        starts=source.table.start,
        lengths=source.table.length,
        terminated=source.table.terminated,
    )
    sampler = SegmentSampler(segments, np.arange(len(source.table)), 16)
    rng, drawn, begin = np.random.default_rng(0), 0, time.perf_counter()
    while time.perf_counter() - begin < _TIMED_SECONDS:
        sampler.draw(16, rng)
        drawn += 16
    return drawn / (time.perf_counter() - begin)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _problems(source: Source) -> list[str]:
    problems = []
    if len(source.table) < 2:
        problems.append("it holds 1 episode; fitting needs at least 2, to hold one out")
    count = 0
    for error in source.audit():
        count += 1
        if count <= _LISTED_PROBLEMS:
            problems.append(str(error))
    if count > _LISTED_PROBLEMS:
        problems.append(f"and {count - _LISTED_PROBLEMS} more")
    return problems


def _some(channels: Sequence[object]) -> str:
    shown = ", ".join(map(str, channels[:8]))
    return shown if len(channels) <= 8 else f"{shown}, ..."


def _rows(card: Card) -> list[tuple[str, str]]:
    """The lines of the readable form: a name and a text each."""
    ended = ", ".join(f"{count} {how}" for how, count in card.ended.items())
    rows = [
        ("environment", f"{card.env_id or 'unknown'}, policy {card.policy}, seed {card.seed}"),
        ("episodes", f"{card.episodes:,} ({ended}), {card.steps:,} steps"),
        ("length", _spread(card.lengths)),
        ("return", _spread(card.returns)),
    ]
    for key, figures in card.observations.items():
        text = (
            f"{figures.get('channels', 0)} channels, {figures['min']:.4g} to {figures['max']:.4g}"
        )
        rows.append((key, text))
    share = card.actions.get("share")
    if share is not None:
        per = [share] if not isinstance(share[0], list) else share
        rows.append(("actions", "; ".join(" ".join(f"{s:.1%}" for s in one[:12]) for one in per)))
    else:
        low, high = card.actions.get("share_at_low", []), card.actions.get("share_at_high", [])
        ends = ", ".join(f"{a:.1%}/{b:.1%}" for a, b in zip(low[:8], high[:8], strict=True))
        coverage = np.mean(card.actions["coverage"])
        text = f"{card.actions['min']:.4g} to {card.actions['max']:.4g}, coverage {coverage:.0%}"
        rows.append(("actions", f"{text}, at their ends {ends}"))
    rows.append(("reading", f"{card.windows_per_second:,.0f} windows of 16 a second"))
    rows.append(("checksum", card.checksum[:16]))
    return rows


def _spread(figures: dict[str, float]) -> str:
    return (
        f"mean {figures['mean']:.5g}, from {figures['min']:.5g} to {figures['max']:.5g}, "
        f"quartiles {figures['q25']:.5g} {figures['median']:.5g} {figures['q75']:.5g}"
    )
