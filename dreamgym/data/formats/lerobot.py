"""LeRobot, versions 2.0 to 3.0: Parquet files, and mp4 videos or images in them.

`meta/info.json` describes the columns ("features"). A row holds the observation and the action that
is taken at it; `next.reward`, `next.done` and `next.success` are the outcome of that action. The
observation after the last action is not stored. In version 2, an episode has files of its own; in
version 3, `meta/episodes` says which rows and frames of larger files belong to it.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamgym.data.formats.arrow_columns import read_parquet, to_images, to_numbers
from dreamgym.data.formats.columnar import Table, open_table
from dreamgym.data.formats.common import plural
from dreamgym.data.formats.image_files import find_file, read_file
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, Probe
from dreamgym.data.formats.video_files import VideoFolder
from dreamgym.data.hdf5.guard import open_regular
from dreamgym.errors import DatasetError

NAME = "LeRobot"
_INFO = "meta/info.json"
_MAX_EPISODES = 1 << 24
_INDEX_COLUMNS = frozenset(
    {"timestamp", "frame_index", "episode_index", "index", "task_index", "subtask_index"}
)
_ROLES = {
    "action": "action",
    "reward": "next.reward",
    "done": "next.done",
    "success": "next.success",
}


def detect(probe: Probe) -> bool:
    """Return whether the folder has a `meta/info.json` and a folder `data`."""
    return probe.is_folder and all((probe.path / name).exists() for name in (_INFO, "data"))


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset; only the columns that are used are read.

    Raises:
        DatasetError: a file is missing or damaged, or the version is not 2.0 to 3.x.
        ModuleNotFoundError: pyarrow, or for videos PyAV, is not installed.
    """
    root = probe.path
    info = _read_json(root / _INFO)
    features, version = info.get("features"), str(info.get("codebase_version", "unknown"))
    if not isinstance(features, dict) or not all(isinstance(f, dict) for f in features.values()):
        raise DatasetError("it describes no features", path=root / _INFO, key="features")
    if not version.lstrip("v").startswith(("2.", "3.")):
        raise DatasetError(
            f"its LeRobot version is {version}; expected 2.0 to 3.x",
            path=root,
            remedy="convert it with LeRobot's own scripts",
        )
    files = _Files(root, info, version.lstrip("v").startswith("3."))
    names = [name for name in features if name not in _INDEX_COLUMNS]
    table = Table(
        path=root,
        format=NAME,
        text=f"version {version}, {plural(len(files.episodes), 'episode')}, "
        "the action of the last row has no outcome",
        names=names,
        lengths=[episode.length for episode in files.episodes],
        read=files.read,
        observations=[name for name in names if name.split(".")[0] == "observation"],
        roles={role: name for role, name in _ROLES.items() if name in features},
        tasks=[episode.tasks for episode in files.episodes],
    )
    probe.resources.callback(files.close)
    return open_table(table, options, probe.close)


@dataclass(frozen=True, kw_only=True)
class _Episode:
    """Where an episode is.

    Attributes:
        index: its number.
        length: its number of rows.
        tasks: its tasks.
        data: the Parquet file.
        videos: the video of each camera, and the time of its first frame in seconds.
    """

    index: int
    length: int
    tasks: frozenset[str]
    data: Path
    videos: dict[str, tuple[Path, float]]


class _Files:
    """The files of a LeRobot dataset.

    Args:
        root: its folder.
        info: contents of `meta/info.json`.
        joined: whether several episodes share a file (version 3).
    """

    def __init__(self, root: Path, info: dict[str, Any], joined: bool) -> None:
        self._root, self._features = root, info["features"]
        rate = info.get("fps")
        if not isinstance(rate, int | float) or not 0 < rate < 1e6:
            raise DatasetError(f"it is {rate!r}", path=root / _INFO, key="fps")
        self._rate = float(rate)
        self._kinds = {name: str(f.get("dtype")) for name, f in self._features.items()}
        self._cameras = [name for name, kind in self._kinds.items() if kind == "video"]
        self.episodes = self._episodes_3() if joined else self._episodes_2(info)
        if not self.episodes:
            raise DatasetError("it has no episodes", path=root)
        self._videos = VideoFolder(self._rate)
        self._images = functools.lru_cache(maxsize=4)(self._read_column)
        self._numbers = functools.lru_cache(maxsize=8)(self._read_numbers)
        self._rows = functools.lru_cache(maxsize=4)(self._read_rows)

    def close(self) -> None:
        """Close every video."""
        self._videos.close()

    def read(self, number: int, name: str, part: slice) -> Array:
        """Read rows of a column of an episode, see `Table.read`."""
        episode, kind = self.episodes[number], self._kinds[name]
        if kind == "video":
            path, start = episode.videos[name]
            first = round(start * self._rate)
            return self._videos.read(path, first + part.start, first + part.stop)
        first, count = self._rows(episode.data).get(episode.index, (0, 0))
        if count != episode.length:
            raise DatasetError(
                f"it has {count} rows of episode {episode.index}; expected {episode.length}",
                path=episode.data,
            )
        rows = self._column(episode.data, name).slice(first + part.start, part.stop - part.start)
        if kind == "image":
            return to_images(rows, episode.data, name, self._read_image)
        values = to_numbers(rows, episode.data, name)
        shape = self._features[name].get("shape")
        if isinstance(shape, list) and shape and np.prod(shape) * len(rows) == values.size:
            return values.reshape(len(rows), *shape) if shape != [1] else values.reshape(-1)
        return values

    def _column(self, path: Path, name: str) -> Any:
        if self._kinds.get(name) == "image":
            return self._images(path, name)
        table = self._numbers(path)
        if name not in table.schema.names:
            raise DatasetError("it is missing", path=path, key=name)
        return table.column(name)

    def _read_column(self, path: Path, name: str) -> Any:
        table = read_parquet(path, [name])
        if not table.num_columns:
            raise DatasetError("it is missing", path=path, key=name)
        return table.column(0)

    def _read_numbers(self, path: Path) -> Any:
        """Read all columns of a file but its images at once: they are small, and all are needed."""
        kinds = self._kinds.items()
        names = [name for name, kind in kinds if kind not in ("image", "video", "string")]
        return read_parquet(path, list({*names, "episode_index"}))

    def _read_rows(self, path: Path) -> dict[int, tuple[int, int]]:
        """Return the first row and the number of rows of each episode in a file."""
        indices = to_numbers(self._column(path, "episode_index"), path, "episode_index")
        firsts = np.flatnonzero(np.diff(indices, prepend=indices[:1] - 1))
        counts = np.diff(np.append(firsts, len(indices)))
        return {
            int(indices[first]): (int(first), int(count))
            for first, count in zip(firsts, counts, strict=True)
        }

    def _read_image(self, name: str) -> bytes:
        return read_file(find_file(self._root, name))

    def _episodes_2(self, info: dict[str, Any]) -> list[_Episode]:
        """Return the episodes of version 2, which `meta/episodes.jsonl` lists."""
        size = info.get("chunks_size", 1000)
        if not isinstance(size, int) or size < 1:
            raise DatasetError(f"it is {size!r}", path=self._root / _INFO, key="chunks_size")
        path, episodes = self._root / "meta/episodes.jsonl", []
        with open_regular(path) as file:
            for line in file:
                if not line.strip():
                    continue
                entry = _parse_json(line, path)
                index, length = (
                    _integer(entry, "episode_index", path),
                    _integer(entry, "length", path),
                )
                chunk, name = f"chunk-{index // size:03d}", f"episode_{index:06d}"
                videos = {
                    camera: (self._root / "videos" / chunk / camera / f"{name}.mp4", 0.0)
                    for camera in self._cameras
                }
                episodes.append(
                    _Episode(
                        index=index,
                        length=length,
                        tasks=_tasks(entry.get("tasks")),
                        data=self._root / "data" / chunk / f"{name}.parquet",
                        videos=videos,
                    )
                )
        return episodes

    def _episodes_3(self) -> list[_Episode]:
        """Return the episodes of version 3, which the Parquet files in `meta/episodes` list."""
        episodes = []
        for path in sorted((self._root / "meta/episodes").glob("*/*.parquet")):
            columns = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
            for camera in self._cameras:
                place = f"videos/{camera}"
                columns += [f"{place}/{n}" for n in ("chunk_index", "file_index", "from_timestamp")]
            for entry in read_parquet(path, columns).to_pylist():
                missing = [name for name in columns if name not in entry]
                if missing:
                    raise DatasetError(f"it has no columns {missing}", path=path)
                episodes.append(self._episode_3(entry, path))
        return episodes

    def _episode_3(self, entry: dict[str, Any], path: Path) -> _Episode:
        def place(prefix: str, suffix: str) -> str:
            chunk, file = (_integer(entry, f"{prefix}/{n}_index", path) for n in ("chunk", "file"))
            return f"{prefix}/chunk-{chunk:03d}/file-{file:03d}.{suffix}"

        videos = {}
        for camera in self._cameras:
            start = entry[f"videos/{camera}/from_timestamp"]
            if not isinstance(start, float) or not 0 <= start < 1e9:
                raise DatasetError(f"a video begins at {start!r} seconds", path=path, key=camera)
            videos[camera] = (self._root / place(f"videos/{camera}", "mp4"), start)
        return _Episode(
            index=_integer(entry, "episode_index", path),
            length=_integer(entry, "length", path),
            tasks=_tasks(entry["tasks"]),
            data=self._root / place("data", "parquet"),
            videos=videos,
        )


def _tasks(value: Any) -> frozenset[str]:
    return frozenset(map(str, value)) if isinstance(value, list) else frozenset()


def _integer(entry: dict[str, Any], name: str, path: Path) -> int:
    value = entry.get(name)
    if not isinstance(value, int) or not 0 <= value < _MAX_EPISODES:
        raise DatasetError(f"{name} is {value!r}; expected a number from 0", path=path)
    return value


def _read_json(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        return _parse_json(file.read(), path)


def _parse_json(text: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"it is not valid JSON ({error})", path=path) from error
    if not isinstance(value, dict):
        raise DatasetError("it is not a JSON object", path=path)
    return value
