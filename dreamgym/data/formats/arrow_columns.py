"""Columns of Arrow tables, from Parquet, Arrow, Lance or CSV files, as NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dreamgym._extras import import_extra
from dreamgym.data.formats.image_files import with_channels
from dreamgym.data.formats.interface import Array
from dreamgym.data.hdf5.guard import open_regular
from dreamgym.data.image_decoding import decode_image
from dreamgym.errors import DatasetError

_USER = "reading Parquet, Arrow and CSV files"


def pyarrow(module: str = "pyarrow") -> Any:
    """Import a module of pyarrow.

    Raises:
        ModuleNotFoundError: it is not installed; the message names the extra.
    """
    return import_extra(module, _USER)


def read_schema(path: Path) -> Any:
    """Return the schema of a Parquet file.

    Raises:
        DatasetError: it is not a Parquet file.
    """
    pa = pyarrow()
    with open_regular(path):
        pass
    try:
        return pyarrow("pyarrow.parquet").read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"it is not a readable Parquet file ({error})", path=path) from error


def read_parquet(path: Path, columns: list[str] | None = None) -> Any:
    """Return a Parquet file as an Arrow table.

    Raises:
        DatasetError: it is damaged, or a column is missing.
    """
    pa = pyarrow()
    with open_regular(path):
        pass
    try:
        return pyarrow("pyarrow.parquet").read_table(path, columns=columns, partitioning=None)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DatasetError(f"it cannot be read ({error})", path=path) from error


def is_image_type(kind: Any) -> bool:
    """Return whether an Arrow column holds encoded images: bytes, or structs with `bytes`."""
    types = pyarrow().types
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def is_number_type(kind: Any) -> bool:
    """Return whether an Arrow column holds numbers, or lists of numbers of any depth."""
    types = pyarrow().types
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def is_text_type(kind: Any) -> bool:
    """Return whether an Arrow column holds text."""
    types = pyarrow().types
    return bool(types.is_string(kind) or types.is_large_string(kind))


def to_numbers(column: Any, path: Path, name: str) -> Array:
    """Return a column of numbers, or of lists of equal length, as `(N, ...)`.

    Args:
        column: an Arrow array or chunked array.
        path: path for error messages.
        name: name of the column, for error messages.

    Raises:
        DatasetError: values are missing, lists differ in length, or it does not hold numbers.
    """
    pa = pyarrow()
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # of no chunks
        return np.empty(0, np.float32)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    shape = [len(array)]
    types = pa.types
    while (
        types.is_list(array.type)
        or types.is_large_list(array.type)
        or (types.is_fixed_size_list(array.type))
    ):
        if array.null_count:
            raise DatasetError("it has missing values", path=path, key=name)
        count = len(array)
        inner = array.flatten()
        if types.is_fixed_size_list(array.type):
            width = array.type.list_size
        else:
            lengths = np.diff(array.offsets.to_numpy())
            width = int(lengths[0]) if count else 0
            if (lengths != width).any():
                raise DatasetError(
                    f"its rows have {int(lengths.min())} to {int(lengths.max())} values; expected "
                    "as many in each",
                    path=path,
                    key=name,
                )
        shape.append(width)
        array = inner
    if not is_number_type(array.type):
        raise DatasetError(f"its type is {array.type}; expected numbers", path=path, key=name)
    if array.null_count and not types.is_floating(array.type):
        array = array.cast(pa.float64())  # in which a missing value is NaN
    values = np.asarray(array.to_numpy(zero_copy_only=False))
    return values.reshape(shape)


def to_images(
    column: Any, path: Path, name: str, open_file: Callable[[str], bytes] | None = None
) -> Array:
    """Decode a column of images, `(N, H, W, C)`; grey ones have one channel.

    Args:
        column: an Arrow array or chunked array of bytes, of structs with `bytes` and `path`, or of
            the names of files.
        path: path for error messages.
        name: name of the column, for error messages.
        open_file: returns the contents of a file that is named instead.

    Raises:
        DatasetError: a row is not an image, or has another size than the first.
    """
    images: list[Array] = []
    for row, value in enumerate(column.to_pylist()):
        data, file = value, None
        if isinstance(value, dict):
            data, file = value.get("bytes"), value.get("path")
        elif isinstance(value, str):
            data, file = None, value
        try:
            if data is None and file is not None and open_file is not None:
                data = open_file(file)
            if not isinstance(data, bytes):
                raise DatasetError("it has no image")
            images.append(with_channels(decode_image(data)))
            if images[-1].shape != images[0].shape:
                raise DatasetError(
                    f"its image has the shape {images[-1].shape}; the first has {images[0].shape}"
                )
        except DatasetError as error:
            raise DatasetError(
                error.problem, path=error.path or path, key=name, row=row, remedy=error.remedy
            ) from error
    return np.stack(images) if images else np.empty((0, 1, 1, 1), np.uint8)
