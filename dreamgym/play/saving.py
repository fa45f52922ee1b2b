"""What was played as files: a video of it, and its episodes as a dataset."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamgym._extras import import_extra
from dreamgym._files import atomic_file
from dreamgym.data.dataset import Dataset
from dreamgym.data.episodes import EpisodeBuilder
from dreamgym.data.hdf5.writer import DatasetWriter
from dreamgym.data.metadata import DatasetMetadata
from dreamgym.data.spaces import same_spaces
from dreamgym.errors import DatasetError
from dreamgym.play.session import Moment, PlaySession

Frame = NDArray[np.uint8]

GAP = 8
"""Pixels between the dream and the real environment."""

SMALLEST_SIDE = 256
"""Height to which small images are enlarged."""

_SAVING = threading.Lock()
"""Pages have a thread each, and choose names in one folder."""


def save_clip(session: PlaySession, folder: str | Path, *, fps: float = 20.0) -> Path:
    """Write a video of the moments from the start to the present, the real environment beside.

    Args:
        session: what was played.
        folder: folder of the file, which gets a name of its own.
        fps: frames a second.

    Returns:
        The file, an MP4.

    Raises:
        ValueError: nothing can draw the dream, or there is one moment only.
        ModuleNotFoundError: the extra `video` is not installed.
    """
    moments = session.past
    if len(moments) < 2:
        raise ValueError("there is nothing to save yet; take a step first")
    if all(moment.frame is None and _real_frame(moment) is None for moment in moments):
        raise ValueError(
            f"the dreams of world {session.world.name!r} have no pictures, so there is no clip of "
            "them; save the episode instead"
        )
    moviepy: Any = import_extra("moviepy", "a clip")
    frames = list(_side_by_side(moments))
    with _SAVING:
        path = _new_path(Path(folder), session.world.name, ".mp4")
        _write_clip(moviepy, frames, path, fps)
    return path


def _write_clip(moviepy: Any, frames: list[Frame], path: Path, fps: float) -> None:
    with atomic_file(path) as temporary:
        # MoviePy chooses the container by the suffix.
        named = temporary.with_suffix(".mp4")
        try:
            clip = moviepy.ImageSequenceClip(frames, fps=fps)
            clip.write_videofile(str(named), codec="libx264", audio=False, logger=None)
            clip.close()
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)


def save_episodes(session: PlaySession, folder: str | Path) -> list[Path]:
    """Add what was played, from the start or the last edit to the present, to datasets.

    The dream and the real environment are a dataset each, to which every call adds an episode:
    dreamt steps are no real data, and the metadata says which is which. The real one is left out
    where the environment was set to an observation, which no reset of it leads to.

    Args:
        session: what was played.
        folder: folder of the datasets, `<world>-dream.h5` and `<world>-real.h5`.

    Returns:
        The datasets.

    Raises:
        ValueError: there is no step to save, or the world decodes no observations.
        DatasetError: a file cannot be written.
    """
    moments, paths = session.past, []
    edits = [index for index, moment in enumerate(moments) if moment.edited]
    unedited = moments[edits[-1] :] if edits else moments
    if len(unedited) > 1 and unedited[0].observation is not None:
        target = Path(folder) / f"{session.world.name}-dream.h5"
        steps = [(each, each) for each in unedited]
        paths.append(_add(target, _dream_metadata(session), steps))
    real = [(moment.real, moment) for moment in moments if moment.real is not None]
    real = [each for index, each in enumerate(real) if not index or not real[index - 1][0].done]
    if len(real) > 1 and session.reality is not None and _from_a_reset(real[-1][0]):
        target = Path(folder) / f"{session.world.name}-real.h5"
        metadata = DatasetMetadata.of_env(session.reality.env, policy="play")
        whole = real[0][0].trace.before is None  # else the session has dropped the first moments
        paths.append(_add(target, metadata, real, session.now.origin.seed if whole else None))
    if not paths:
        raise ValueError(
            "there is no step to save: nothing was played since the start or the last edit, or "
            f"world {session.world.name!r} decodes no observations"
        )
    return paths


def _from_a_reset(real: Any) -> bool:
    """Return whether the real environment came here by itself, from a reset."""
    trace = real.trace
    while trace.before is not None:
        trace = trace.before
    return trace.placed is None


def _dream_metadata(session: PlaySession) -> DatasetMetadata:
    world = session.world
    return DatasetMetadata(
        observation_space=world.observation_space,
        action_space=world.action_space,
        env_name=f"dream of {world.name}",
        policy="play",
        notes=(f"dreamt in the world {world.name!r}: these are predictions, not real steps",),
    )


def _add(
    path: Path,
    metadata: DatasetMetadata,
    steps: Sequence[tuple[Any, Moment]],
    seed: int | None = None,
) -> Path:
    """Add one episode to a dataset, or to a new one where there is none of this kind.

    Args:
        path: dataset; where one of other spaces has its name, a number is added to the name.
        metadata: where the episode comes from.
        steps: the dream's or the real moment, and the dream's moment with the action.
        seed: seed of its reset; None where it does not begin with one.
    """
    builder = EpisodeBuilder(metadata.observation_space, metadata.action_space)
    builder.begin(steps[0][0].observation, seed)
    for shown, moment in steps[1:]:
        builder.append(builder.check_action(moment.action), shown.observation, shown.reward)
    last = steps[-1][0]
    truncated = last.truncated and not last.terminated
    episode = builder.finish(terminated=last.terminated, truncated=truncated)
    if episode is None:
        raise DatasetError("there is no step to save", path=path, remedy="take a step first")
    with _SAVING:
        if path.exists() and not _same_spaces(path, metadata):
            path = _new_path(path.parent, path.stem, path.suffix)
        extends = path.exists()
        with DatasetWriter.extend(path) if extends else DatasetWriter(path, metadata) as writer:
            writer.add(episode)
    return path


def _same_spaces(path: Path, metadata: DatasetMetadata) -> bool:
    with Dataset(path) as dataset:
        return same_spaces(dataset.metadata, metadata)


def _new_path(folder: Path, name: str, suffix: str) -> Path:
    """Return the first path `<name>-<number><suffix>` that does not exist."""
    number = 1
    while (path := folder / f"{name}-{number}{suffix}").exists():
        number += 1
    return path


def _real_frame(moment: Moment) -> bytes | None:
    return None if moment.real is None else moment.real.frame


def _side_by_side(moments: Sequence[Moment]) -> Iterator[Frame]:
    """Yield the frames of the dream and of the real environment beside it, of one size."""
    for moment in moments:
        parts = [_decode(data) for data in (moment.frame, _real_frame(moment)) if data is not None]
        height = max(part.shape[0] for part in parts)
        padded = [np.pad(p, ((0, height - p.shape[0]), (0, 0), (0, 0))) for p in parts]
        gap = np.full((height, GAP, 3), 128, np.uint8)
        frame = np.concatenate([padded[0], *(x for p in padded[1:] for x in (gap, p))], axis=1)
        # Codecs halve the resolution of colours, so that sides must be even.
        yield np.ascontiguousarray(frame[: height // 2 * 2, : frame.shape[1] // 2 * 2])


def _decode(data: bytes) -> Frame:
    """Return an encoded picture, enlarged by a whole number where it is small."""
    pillow: Any = import_extra("PIL.Image", "dreamgym play", {"PIL": "play"})
    with pillow.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as image:
        frame = np.asarray(image.convert("RGB"))
    times = max(1, -(-SMALLEST_SIDE // frame.shape[0]))
    return frame.repeat(times, 0).repeat(times, 1)
