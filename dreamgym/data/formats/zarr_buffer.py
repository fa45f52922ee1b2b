"""Zarr replay buffers of diffusion policy: `data/<column>`, `meta/episode_ends`.

Every array in `data` has one row per step; `meta/episode_ends` is the number of rows up to the end
of each episode. A row holds the observation and the action that is taken at it; the observation
after the last action is not stored, and there are usually no rewards and no ends. It is a folder,
or a zip file of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dreamgym._extras import import_extra
from dreamgym.data.formats.columnar import Table, open_table
from dreamgym.data.formats.common import plural
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, Probe
from dreamgym.data.hdf5.guard import require_files
from dreamgym.errors import DatasetError

NAME = "Zarr replay buffer"
_ENDS = "meta/episode_ends"
_METADATA = (".zarray", "zarr.json")  # of versions 2 and 3
# An array takes at least a byte of storage for this many bytes, or it declares what is not there.
_MOST_COMPRESSION = 4096
_FREE_BYTES = 1 << 20
# Codecs that turn bytes into numbers. Others, above all pickle, may do anything.
_CODECS = frozenset(
    {
        "blosc",
        "zlib",
        "gzip",
        "zstd",
        "lz4",
        "bz2",
        "lzma",
        "delta",
        "shuffle",
        "bytes",
        "transpose",
    }
    | {"crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3", "sharding_indexed"}
    | {"packbits", "fixedscaleoffset", "quantize", "bitround", "astype", "zfpy", "pcodec"}
    | {"imagecodecs_jpegxl", "imagecodecs_jpeg2k", "imagecodecs_jpeg", "imagecodecs_png"}
    | {"imagecodecs_webp"}
)


def detect(probe: Probe) -> bool:
    """Return whether there is an array `meta/episode_ends`."""
    if probe.is_folder:
        return any((probe.path / _ENDS / name).is_file() for name in _METADATA)
    return probe.npz is not None and any(f"{_ENDS}/{n}" in probe.npz.names for n in _METADATA)


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset; its rows are read episode by episode.

    Raises:
        DatasetError: the ends do not increase, an array is shorter, or its codec is not known.
        ModuleNotFoundError: zarr is not installed.
    """
    path = probe.path
    zarr = import_extra("zarr", "reading Zarr arrays")
    store: Any = str(path)
    if probe.is_folder:
        require_files(path)
    else:
        store = zarr.storage.ZipStore(str(path), mode="r")
        probe.resources.callback(store.close)
    root = zarr.open_group(store, mode="r")
    ends = _ends(root, path)
    starts = np.concatenate([[0], ends[:-1]])
    arrays = {
        str(name): array
        for name, array in root["data"].arrays()
        if array.ndim > 0 and array.shape[0] >= ends[-1] and array.dtype.kind in "biuf"
    }
    for name, array in arrays.items():
        _require_stored(array, path, name)

    def read_column(number: int, name: str, part: slice) -> Array:
        start = int(starts[number])
        values: Array = np.asarray(arrays[name][start + part.start : start + part.stop])
        return values

    table = Table(
        path=path,
        format=NAME,
        text=f"{plural(len(ends), 'episode')}",
        names=sorted(arrays),
        lengths=(ends - starts).tolist(),
        read=read_column,
        observations=sorted(arrays),
        roles={"action": "action"} if "action" in arrays else {},
    )
    return open_table(table, options, probe.close)


def _ends(root: Any, path: Path) -> Array:
    array = root[_ENDS]
    _require_stored(array, path, _ENDS)
    ends = np.asarray(array[:])
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or not len(ends):
        raise DatasetError(
            f"it is {ends.dtype} {ends.shape}; expected integers, one per episode",
            path=path,
            key=_ENDS,
        )
    ends = ends.astype(np.int64)
    bad = np.diff(ends, prepend=0) < 1
    if bad.any():
        raise DatasetError(
            "it must be larger than the end of the episode before",
            path=path,
            key=_ENDS,
            episode=int(np.argmax(bad)),
        )
    return ends


def _require_stored(array: Any, path: Path, name: str) -> None:
    """Raise `DatasetError` for an array of unknown codecs, or one that is mostly not stored."""
    unknown = sorted(set(_codecs(_description(array))) - _CODECS)
    if unknown:
        raise DatasetError(
            f"it is encoded with {unknown}; expected some of {sorted(_CODECS)}", path=path, key=name
        )
    stored = int(array.nbytes_stored())
    if array.nbytes > _MOST_COMPRESSION * stored + _FREE_BYTES:
        raise DatasetError(
            f"it declares {array.nbytes:,} bytes and stores {stored:,}", path=path, key=name
        )


def _description(array: Any) -> Any:
    """Return the codecs of an array, JSON-plain."""
    if hasattr(getattr(array, "metadata", None), "to_dict"):
        description = array.metadata.to_dict()
        return [description.get(name) for name in ("codecs", "compressor", "filters")]
    return [each.get_config() for each in (array.compressor, *(array.filters or ())) if each]


def _codecs(value: Any) -> Iterator[str]:
    """Return the names of the codecs in a description, also of those inside others."""
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _codecs(inner)
    elif isinstance(value, dict):
        name = value.get("id", value.get("name"))
        if isinstance(name, str):
            yield name.removeprefix("numcodecs.").lower()
        for inner in value.values():
            if isinstance(inner, list | tuple | dict):
                yield from _codecs(inner)
