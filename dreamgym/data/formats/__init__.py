"""Other people's formats: one file each, found by what a file holds and never by its name.

A format is a module with `NAME`, `detect(opened)` and `read(opened, options)`. A new one costs one
file and one line in `FORMATS`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from dreamgym.data.formats import (
    d4rl,
    ha_schmidhuber,
    minari,
    npz_folder,
    ogbench,
    robomimic,
    stable_worldmodel,
)
from dreamgym.data.formats.common import Foreign, ForeignOptions, Opened, open_any
from dreamgym.data.hdf5.reader import is_native
from dreamgym.errors import DatasetError

FORMATS: tuple[ModuleType, ...] = (
    minari,
    robomimic,
    stable_worldmodel,
    d4rl,
    ogbench,
    ha_schmidhuber,
    npz_folder,
)

__all__ = ["FORMATS", "Foreign", "ForeignOptions", "Opened", "open_foreign"]


def open_foreign(path: Path, options: ForeignOptions) -> Foreign:
    """Find out what a file is, and open it.

    Args:
        path: A file or a folder.
        options: What the user knows and the file does not say.

    Raises:
        DatasetError: No format fits, or the file leaves open what the options must say.
    """
    opened = open_any(path)
    try:
        for module in FORMATS:
            if module.detect(opened):
                foreign: Foreign = module.read(opened, options)
                return foreign
        if opened.hdf5 is not None and is_native(opened.hdf5, path):
            raise DatasetError(
                "it is a native dataset already", path=path, remedy="`pack` writes it compressed"
            )
        raise DatasetError(
            f"it is of no known format; it holds {opened.summary()}",
            path=path,
            remedy="known are: native, " + ", ".join(module.NAME for module in FORMATS),
        )
    except BaseException:
        opened.close()
        raise
