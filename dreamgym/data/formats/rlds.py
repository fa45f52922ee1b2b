"""RLDS: TensorFlow datasets of episodes, where `tensorflow_datasets` is installed to read them.

An example is an episode with a dataset `steps`. A step holds an observation, the action that is
taken at it and the reward for that action; `is_terminal` marks a terminal observation and `is_last`
any last one. By the specification the action and the reward of the last step are not valid. Where
some of these rewards are not zero, as in many datasets of Open X-Embodiment, the last step is taken
for a transition, whose next observation is not stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dreamgym._extras import import_extra
from dreamgym.data.formats.columnar import Table, open_table
from dreamgym.data.formats.common import plural
from dreamgym.data.formats.image_files import Mode, decode_images, with_channels
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, Probe
from dreamgym.data.formats.keys import find_fields
from dreamgym.data.hdf5.guard import open_regular, require_files
from dreamgym.errors import DatasetError

NAME = "RLDS"
Rows = Array | list[bytes]
"""Rows of a column: numbers, or encoded images."""

_FILES = ("features.json", "dataset_info.json")
# tensorflow_datasets imports the classes that features.json names, under any of these keys: that of
# Protobuf's JSON, its field name, and "type" beside "content", which old versions wrote.
_CLASSES = "tensorflow_datasets.core.features."
_CLASS_KEYS = ("pythonClassName", "python_class_name")
_MODES: dict[int, Mode] = {1: "L", 3: "RGB"}  # by channels
_STEPS = "steps"
_TASKS = ("language_instruction", "natural_language_instruction", "instruction")


def detect(probe: Probe) -> bool:
    """Return whether the folder, or its only version, holds a TensorFlow dataset of steps."""
    root = _root(probe)
    return root is not None and _STEPS in _features(root)


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset; its records are read in their order, again for each pass.

    Raises:
        DatasetError: it names classes outside of tensorflow_datasets, or it is damaged.
        ModuleNotFoundError: tensorflow_datasets is not installed.
    """
    root = _root(probe)
    if root is None:
        raise DatasetError(f"it has none of the files {_FILES}", path=probe.path)
    require_files(root)
    _require_safe_features(root)
    library = import_extra("tensorflow_datasets", "reading RLDS datasets")
    episodes = _Episodes(library, library.builder_from_directory(str(root)), root)
    probe.resources.callback(episodes.close)
    names = episodes.names
    actions = tuple(name for name in names if name == "action" or name.startswith("action/"))
    rewards = find_fields(names, options.ignore).rewards
    rewarded = rewards is not None and any(np.ravel(each[rewards])[-1] for each in episodes.small)
    table = Table(
        path=probe.path,
        format=NAME,
        text=f"{plural(len(episodes.lengths), 'episode')}; the last step is "
        + (
            "a transition: some of its rewards are not zero" if rewarded else "the last observation"
        ),
        names=names,
        lengths=episodes.lengths,
        read=episodes.read,
        observations=[name for name in names if name.split("/")[0] == "observation"],
        roles={"action": actions} if actions else {},
        last_is_observation=not rewarded,
        tasks=episodes.tasks,
    )
    return open_table(table, options, probe.close)


class _Episodes:
    """The episodes of a dataset: small columns in memory, images read in passes over the records.

    Args:
        library: the module `tensorflow_datasets`.
        builder: the dataset.
        root: its folder.
    """

    def __init__(self, library: Any, builder: Any, root: Path) -> None:
        self._library, self._builder = library, builder
        self._images, self._decoders = _encoded_images(library, builder.info.features)
        self.small: list[dict[str, Array]] = []
        self.tasks: list[frozenset[str]] = []
        self.lengths: list[int] = []
        self.names: list[str] = []
        self._current: tuple[int, dict[str, Rows]] = (-1, {})
        self._iterator: Iterator[dict[str, Rows]] = iter(())
        for columns, tasks in self._records():
            if not self.names:
                self.names = sorted(columns)
            self.small.append(
                {n: v for n, v in columns.items() if isinstance(v, np.ndarray) and v.ndim < 3}
            )
            self.tasks.append(tasks)
            self.lengths.append(len(next(iter(columns.values()), ())))

    def read(self, number: int, name: str, part: slice) -> Array:
        """Read rows of a column of an episode, see `Table.read`."""
        if name in self.small[number]:
            return self.small[number][name][part]
        if number < self._current[0] or self._current[0] < 0:
            self._iterator = (columns for columns, _ in self._records())
            self._current = (-1, {})
        while self._current[0] < number:
            self._current = (self._current[0] + 1, next(self._iterator))
        rows = self._current[1][name][part]
        if isinstance(rows, list):
            return decode_images(rows, self._images[name], name, part.start)
        return rows

    def close(self) -> None:
        """End the pass: it refers to this object, and holds threads of TensorFlow."""
        self._iterator = iter(())

    def _records(self) -> Iterator[tuple[dict[str, Rows], frozenset[str]]]:
        """Return columns and tasks of each episode, split by split."""
        for split in sorted(self._builder.info.splits):
            options = self._library.ReadConfig(interleave_cycle_length=1)
            data = self._builder.as_dataset(
                split=split, shuffle_files=False, read_config=options, decoders=self._decoders
            )
            for example in data:
                steps = [_flatten(step) for step in self._library.as_numpy(example[_STEPS])]
                if not steps:
                    continue
                texts = {str(steps[0][n].decode(errors="replace")) for n in _TASKS
                         if isinstance(steps[0].get(n), bytes)}  # fmt: skip
                names = [
                    name
                    for name, value in steps[0].items()
                    if name in self._images or np.asarray(value).dtype.kind in "biuf"
                ]
                yield (
                    {
                        name: values if name in self._images else _stack(values)
                        for name in names
                        for values in [[step[name] for step in steps]]
                    },
                    frozenset(texts),
                )


def _encoded_images(library: Any, features: Any) -> tuple[dict[str, Mode], dict[str, Any]]:
    """Return the images of bytes, which TensorFlow would decode to any size that they claim.

    Args:
        library: the module `tensorflow_datasets`.
        features: description of an example.

    Returns:
        The mode to decode each column of images to, and the decoders that leave them encoded.
    """
    images: dict[str, Mode] = {}

    def visit(feature: Any, prefix: str) -> Any:
        if isinstance(feature, library.features.Image) and feature.np_dtype == np.uint8:
            images[prefix] = _MODES.get(feature.shape[-1])
            return library.decode.SkipDecoding()
        if not isinstance(feature, library.features.FeaturesDict):
            return None
        place = f"{prefix}/" if prefix else ""
        inner = {name: visit(each, f"{place}{name}") for name, each in feature.items()}
        return {name: each for name, each in inner.items() if each is not None} or None

    steps = features[_STEPS] if isinstance(features, library.features.FeaturesDict) else None
    if not isinstance(steps, library.features.Dataset):
        return {}, {}
    decoders = visit(steps.feature, "")
    return images, {} if decoders is None else {_STEPS: decoders}


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            flat |= _flatten(inner, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat


def _stack(values: list[Any]) -> Array:
    rows = np.stack([np.asarray(value) for value in values])
    if rows.dtype == np.uint8 and rows.ndim == 3:
        return np.stack([with_channels(row) for row in rows])
    return rows


def _root(probe: Probe) -> Path | None:
    """Return the folder of the version: the folder itself, or the only one in it."""
    if not probe.is_folder:
        return None
    found = [probe.path, *(path.parent for path in probe.files(f"*/{_FILES[0]}"))]
    roots = [path for path in found if all((path / name).is_file() for name in _FILES)]
    return roots[0] if len(roots) == 1 else None


def _features(root: Path) -> Any:
    """Return the names of the features of an example."""
    description = _read_json(root / _FILES[0])
    inner = description.get("featuresDict", {})
    return inner.get("features", {}) if isinstance(inner, dict) else {}


def _require_safe_features(root: Path) -> None:
    """Raise `DatasetError` if the description names a class outside of tensorflow_datasets.

    Or if it names a sequence longer than the dataset has bytes: TensorFlow allocates it first.
    """
    path = root / _FILES[0]
    size = sum(each.stat().st_size for each in root.iterdir())
    stack: list[Any] = [_read_json(path)]
    while stack:
        value = stack.pop()
        if isinstance(value, list):
            stack += value
        elif isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            with suppress(ValueError, RecursionError):
                stack.append(json.loads(value))  # a description inside a text
        elif isinstance(value, dict):
            names = [value[key] for key in _CLASS_KEYS if key in value]
            if "content" in value and isinstance(value.get("type"), str):
                names.append(value["type"])
            for name in names:
                if not isinstance(name, str) or not name.startswith(_CLASSES):
                    raise DatasetError(
                        f"it names the class {name!r}, which reading would import; expected "
                        f"classes of {_CLASSES.rstrip('.')}",
                        path=path,
                    )
            length = value.get("length", 0)
            if _number(length) > size:
                raise DatasetError(
                    f"it describes a sequence of {length} elements, but the dataset has "
                    f"{size:,} bytes",
                    path=path,
                )
            stack += value.values()


def _number(value: Any) -> float:
    """Return a number as Protobuf reads it, also out of text; what is none is zero."""
    try:
        return float(value)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _read_json(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        text = file.read()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"it is not valid JSON ({error})", path=path) from error
    return value if isinstance(value, dict) else {}
