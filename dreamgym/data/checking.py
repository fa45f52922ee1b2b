"""The check of a dataset: what it holds, what is wrong with it, and what is worth knowing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamgym._files import local_path
from dreamgym.data.bounds import (
    action_bounds_findings,
    bounds_findings,
    outside_observations,
)
from dreamgym.data.dataset import MIN_BLOCK
from dreamgym.data.formats import ForeignOptions
from dreamgym.data.formats.source import open_source
from dreamgym.data.hdf5.schema import SCHEMA_VERSION
from dreamgym.data.images import image_notes
from dreamgym.data.layout import observation_path
from dreamgym.data.numeric_notes import numeric_notes
from dreamgym.data.segments import SegmentSampler, SegmentSource
from dreamgym.data.spaces import space_to_json
from dreamgym.data.statistics import (
    ChannelStatistics,
    action_use,
    distribution,
    episode_returns,
    reward_statistics,
)
from dreamgym.data.storage import Column, EpisodeTable, Source
from dreamgym.data.teaching import Lessons, teaching_findings
from dreamgym.errors import DatasetError

Array = NDArray[Any]

# Near-duplicates differ in no value by more than this share of its channel's range.
DUPLICATE_TOLERANCE = 1e-3

_COMPARED_CHANNELS = 64
_COMPARED_EPISODES = 200_000
_COMPARED_NEIGHBOURS = 32  # of more episodes with the same ends, some may be missed

_BLOCK_BYTES = 32 << 20
_BLOCK_VALUES = 1 << 22

_MEMORY = 256 << 20
_LISTED_PROBLEMS = 50
_FEW_STEPS = 500  # of which a tenth, held out, says little
_SPEED_TEST_SECONDS = 0.05
_SPEED_TEST_SIZE = 16  # segments in a batch, and transitions in a segment


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """What a dataset holds; `str(card)` is the readable form.

    Attributes:
        path: the file or folder.
        size_bytes: size on disk.
        schema_version: version of the native format.
        convention: format that was detected, and the convention it is read by.
        env_id: id of the environment, if known.
        policy: name of the policy that chose the actions.
        seed: seed of the recording, if it had one.
        created: time of the recording, ISO 8601.
        checksum: SHA-256 over the checksums of the episodes.
        observation_space: observation space as JSON.
        action_space: action space as JSON.
        episodes: number of episodes.
        steps: number of transitions in all episodes.
        ended: how many episodes were `terminated`, `truncated` or `cut off`.
        lengths: distribution of episode lengths.
        returns: distribution of undiscounted returns, over all episodes.
        observations: statistics by observation key.
        rewards: statistics of the rewards.
        actions: how the actions cover their space.
        windows_per_second: reading speed: segments of 16 transitions per second, in batches of 16.
        problems: reasons for which fitting, or what else the check was asked for, would refuse it.
        notes: findings that do not prevent fitting.
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
        """Whether fitting, and what else the check was asked for, would accept the dataset."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and `ok` as JSON-plain values."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        lines = [f"{self.path}  ({self.size_bytes / 1e6:.2f} MB, {self.convention})"]
        lines += [f"  {name:<13} {text}" for name, text in _summary(self)]
        lines += [f"  note          {note}" for note in self.notes]
        lines += [f"  PROBLEM       {problem}" for problem in self.problems]
        lines.append(
            f"  verdict       {'ready to fit' if self.ok else 'not ready: it has problems'}"
        )
        return "\n".join(lines)


def check(path: str | os.PathLike[str], *, foreign: ForeignOptions | None = None) -> DatasetCard:
    """Read a whole dataset and report what it holds and what is wrong with it.

    Args:
        path: the dataset: a file or a folder, native or foreign.
        foreign: what a foreign dataset does not say about itself.

    Raises:
        DatasetError: the path cannot be read as a dataset at all. Problems of single episodes are
            listed in the card's `problems` instead.
        UnsupportedSpaceError: the dataset has a space that this version does not support.
    """
    source, skipped = open_source(local_path(path), _MEMORY, foreign, "skip", spill=True)
    try:
        if foreign is not None and foreign.keys is not None and source.convention == "native":
            raise DatasetError(
                "it is a native dataset, of which check reads all observations",
                path=source.path,
                remedy="leave out keys (`--key`); fit has them",
            )
        return _make_card(source, skipped)
    finally:
        source.close()


def _make_card(source: Source, skipped: list[str]) -> DatasetCard:
    table, metadata = source.table, source.metadata
    boxes = metadata.observation_columns()
    statistics = {key: ChannelStatistics(box.shape) for key, box in boxes.items()}
    problems = _problems(source, statistics)
    returns = np.nan_to_num(episode_returns(source.reward, table))
    notes = []
    for key, figures in statistics.items():
        for kind, channels in (("constant", figures.constant), ("saturated", figures.saturated)):
            if channels:
                notes.append(f"{len(channels)} {kind} channels in {key!r}: {_shorten(channels)}")
    notes += numeric_notes(source, statistics) + image_notes(boxes)
    notes += bounds_findings(outside_observations(source))
    notes += teaching_findings([Lessons.of_source(source)])
    notes += [*metadata.notes, *action_bounds_findings(metadata.action_space)]
    duplicates = _duplicates(source)
    if duplicates:
        listed = _shorten([f"{earlier} and {later}" for earlier, later in duplicates])
        notes.append(f"{len(duplicates)} pairs of episodes are nearly the same: {listed}")
    return DatasetCard(
        path=str(source.path),
        size_bytes=_size_on_disk(source.path),
        schema_version=SCHEMA_VERSION,
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
        returns=distribution(returns),
        observations={key: figures.as_dict() for key, figures in statistics.items()},
        rewards=reward_statistics(source.reward, table),
        actions=action_use(source.action, table, metadata.action_space),
        windows_per_second=_windows_per_second(source),
        problems=[*skipped, *metadata.problems, *problems],
        notes=[*notes, *_episode_notes(source)],
    )


def _episode_notes(source: Source) -> list[str]:
    """Return what fitting does with few steps, and with a single episode."""
    episodes, steps = len(source.table), source.table.num_steps
    few = f"it holds {steps} steps in {episodes} episodes: far too few to fit or to judge a world"
    notes = [few] if steps < _FEW_STEPS else []
    if episodes > 1 or steps < 2 * MIN_BLOCK:
        return notes
    return [
        *notes,
        "it holds 1 episode, which a fit cuts into blocks to hold some out; dreams then start in "
        f"the middle of it. To see how episodes start, {_more_episodes(source)}",
    ]


def _more_episodes(source: Source) -> str:
    """Return what the user can do about a dataset of one episode."""
    if source.convention == "native":
        return "record with max_episode_steps=200 (--max-episode-steps 200)"
    return (
        "record several; or if it is a log of several, name the column that tells them apart "
        "(--columns episode=NAME)"
    )


def _problems(source: Source, statistics: dict[str, ChannelStatistics]) -> list[str]:
    """Audit all rows, and count them in the statistics of each observation key on the way."""

    def add_to_statistics(rows: dict[str, Array]) -> None:
        for key, figures in statistics.items():
            values = rows[observation_path(key)]
            step = max(1, _BLOCK_BYTES // max(1, 8 * values[:1].size))
            for first in range(0, len(values), step):
                figures.add(values[first : first + step])

    problems = []
    if len(source.table) < 2 and source.table.num_steps < 2 * MIN_BLOCK:
        problems.append(
            f"it holds 1 episode of {source.table.num_steps} steps; fitting needs at least 2 "
            f"episodes, or one of {2 * MIN_BLOCK} steps: {_more_episodes(source)}"
        )
    count = 0
    for error in source.audit(visit=add_to_statistics):
        count += 1
        if count <= _LISTED_PROBLEMS:
            problems.append(str(error))
    if count > _LISTED_PROBLEMS:
        problems.append(f"and {count - _LISTED_PROBLEMS} more")
    return problems


def _windows_per_second(source: Source) -> float:
    """Measure how many segments per second can be drawn from where the rows are."""
    segments = SegmentSource(
        source.observations,
        action=source.action,
        reward=source.reward,
        starts=source.table.start,
        lengths=source.table.length,
        terminated=source.table.terminated,
    )
    sampler = SegmentSampler(segments, np.arange(len(source.table)), _SPEED_TEST_SIZE)
    rng, drawn, started = np.random.default_rng(0), 0, time.perf_counter()
    while time.perf_counter() - started < _SPEED_TEST_SECONDS:
        sampler.draw(_SPEED_TEST_SIZE, rng)
        drawn += _SPEED_TEST_SIZE
    return drawn / (time.perf_counter() - started)


def _size_on_disk(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _duplicates(source: Source) -> list[tuple[int, int]]:
    """Return the pairs of episodes that are nearly the same in every observation key."""
    found = [set(near_duplicates(column, source.table)) for column in source.observations.values()]
    return sorted(set.intersection(*found))


def near_duplicates(column: Column, table: EpisodeTable) -> list[tuple[int, int]]:
    """Find pairs of episodes of equal length whose observations are nearly equal in every row.

    They come from a seed that was not set, or a file that was added twice. Only episodes that are
    alike in their first, middle and last row are compared in full, so that the cost is that of a
    sort. Of an image, 64 values spread over it are compared.

    Args:
        column: rows of one observation key.
        table: the episodes; at most the first 200,000 are compared.

    Returns:
        Pairs `(earlier, later)` of episode indices; an episode with several duplicates is listed
        once.
    """
    count = min(len(table), _COMPARED_EPISODES)
    if count < 2:
        return []
    points = _three_rows(column, table, count)
    span = np.ptp(points, axis=0)
    scale = np.where(span > 0, span, 1.0)
    points /= scale
    tolerance = 2 * DUPLICATE_TOLERANCE * scale.reshape(3, -1).max(axis=0)

    def nearly_equal(pair: tuple[int, int]) -> bool:
        size = int(table.length[pair[0]]) + 1
        starts = [int(table.start[episode]) for episode in pair]
        one, other = (_sample_channels(column.read(start, start + size)) for start in starts)
        return bool((np.abs(one - other) <= tolerance).all())

    return sorted(_pairs(points, table.length[:count], nearly_equal))


def _three_rows(column: Column, table: EpisodeTable, count: int) -> Array:
    """Return sampled channels of each episode's first, middle and last row, `(count, n)`."""
    start, length = table.start[:count], table.length[:count]
    rows = np.stack([start, start + length // 2, start + length], axis=1).reshape(-1, 1)
    step = max(1, _BLOCK_BYTES // max(1, column.take(rows[:1]).nbytes))
    parts = [
        _sample_channels(column.take(rows[first : first + step])[:, 0])
        for first in range(0, len(rows), step)
    ]
    return np.concatenate(parts).reshape(count, -1)


def _sample_channels(rows: Array) -> Array:
    flat = rows.reshape(len(rows), -1)
    step = max(1, flat.shape[1] // _COMPARED_CHANNELS)
    exact = np.float32 if flat.dtype == np.uint8 else np.float64
    return np.nan_to_num(flat[:, ::step].astype(exact))


def _pairs(
    points: Array, lengths: Array, nearly_equal: Callable[[tuple[int, int]], bool]
) -> Iterator[tuple[int, int]]:
    """Yield pairs of nearly equal episodes, the earlier first; each is the later one once.

    Episodes are sorted by length and then by a weighted mean of their channels, whose weights are
    random: those of two episodes that are alike differ by no more than their channels do, and of
    others hardly ever by so little.

    Args:
        points: `(E, n)` channels of some rows of each episode, in units of their ranges.
        lengths: `(E,)` number of transitions.
        nearly_equal: compares all rows of two episodes, which is done where the points are alike.
    """
    weights = np.random.default_rng(0).uniform(-1, 1, points.shape[1])
    means = points @ (weights / np.abs(weights).sum())
    order = np.lexsort((means, lengths))
    means, lengths = means[order], lengths[order]
    found = np.zeros(len(order), bool)
    for shift in range(1, min(_COMPARED_NEIGHBOURS, len(order) - 1) + 1):
        near = means[shift:] - means[:-shift] <= DUPLICATE_TOLERANCE
        near &= lengths[shift:] == lengths[:-shift]
        if not near.any():
            return
        places = np.flatnonzero(near & ~found[shift:])
        for part in np.array_split(places, 1 + len(places) * points.shape[1] // _BLOCK_VALUES):
            distance = np.abs(points[order[part + shift]] - points[order[part]]).max(1, initial=0)
            for place in part[distance <= DUPLICATE_TOLERANCE].tolist():
                pair = int(order[place]), int(order[place + shift])
                if nearly_equal(pair):
                    found[place + shift] = True
                    yield min(pair), max(pair)


def _summary(card: DatasetCard) -> list[tuple[str, str]]:
    """Return the lines of the readable form, a name and a text each."""
    ended = ", ".join(f"{count} {how}" for how, count in card.ended.items())
    rows = [
        ("environment", f"{card.env_id or 'unknown'}, policy {card.policy}, seed {card.seed}"),
        ("episodes", f"{card.episodes:,} ({ended}), {card.steps:,} steps"),
        ("length", _describe_distribution(card.lengths)),
        ("return", _describe_distribution(card.returns)),
    ]
    rows += [(key, _describe_channels(figures)) for key, figures in card.observations.items()]
    rows.append(("actions", _describe_actions(card.actions)))
    rows.append(("reading", f"{card.windows_per_second:,.0f} windows of 16 steps per second"))
    rows.append(("checksum", card.checksum[:16]))
    return rows


def _describe_channels(figures: dict[str, Any]) -> str:
    if not figures["rows"]:
        return "no row is finite"
    return f"{figures['channels']} channels, {figures['min']:.4g} to {figures['max']:.4g}"


def _describe_actions(use: dict[str, Any]) -> str:
    share = use.get("share")
    if share is not None:
        dimensions = share if isinstance(share[0], list) else [share]
        return "; ".join(
            " ".join(f"{value:.1%}" for value in dimension[:12]) for dimension in dimensions
        )
    if not use["rows"]:
        return "no action is finite"
    ends = ", ".join(
        f"{low:.1%}/{high:.1%}"
        for low, high in zip(use["share_at_low"][:8], use["share_at_high"][:8], strict=True)
    )
    coverage = f"coverage {np.mean(use['coverage']):.0%}"
    return f"{use['min']:.4g} to {use['max']:.4g}, {coverage}, at their bounds {ends}"


def _describe_distribution(figures: dict[str, float]) -> str:
    return (
        f"mean {figures['mean']:.5g}, from {figures['min']:.5g} to {figures['max']:.5g}, "
        f"quartiles {figures['q25']:.5g} {figures['median']:.5g} {figures['q75']:.5g}"
    )


def _shorten(items: Sequence[object]) -> str:
    shown = ", ".join(map(str, items[:8]))
    return shown if len(items) <= 8 else f"{shown}, ..."
