"""Lance tables of stable-worldmodel, its default form: `NAME.lance`, or a folder with one of them.

Images are JPEG in columns of bytes, other columns are lists of float32. An episode is a run of rows
with the same `episode_idx` (or another column that the user names).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dreamgym._extras import import_extra
from dreamgym.data.formats.arrow_columns import is_image_type, is_number_type, to_images, to_numbers
from dreamgym.data.formats.columnar import Table, runs
from dreamgym.data.formats.common import plural
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, Probe
from dreamgym.data.formats.lance_process import open_table, read_rows
from dreamgym.data.formats.stable_worldmodel import open_worldmodel
from dreamgym.data.hdf5.guard import require_files
from dreamgym.errors import DatasetError

NAME = "Lance"
_INDEX = ("episode_idx", "step_idx")


def detect(probe: Probe) -> bool:
    """Return whether the folder is a Lance table, or holds one."""
    return bool(_tables(probe))


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the table; its rows are read episode by episode.

    Raises:
        DatasetError: the table is damaged, there are several, or it has no column of episodes.
        ModuleNotFoundError: Lance is not installed.
    """
    tables = _tables(probe)
    if len(tables) > 1:
        raise DatasetError(
            f"it holds the tables {[path.name for path in tables]}",
            path=probe.path,
            remedy="give one of them",
        )
    path = tables[0]
    import_extra("lance", "reading Lance tables")
    require_files(path)
    try:
        schema, count = open_table(path)
    except OSError as error:
        raise DatasetError(f"it is not a readable Lance table ({error})", path=path) from error
    column = (*options.columns_for("episode"), _INDEX[0])[0]
    if column not in schema.names:
        raise DatasetError(
            f"it has no column {column!r} of episodes; it has {schema.names}",
            path=path,
            remedy="name it: ForeignOptions(columns={'episode': ...}) or --columns episode=NAME",
        )
    kinds = {field.name: field.type for field in schema}
    starts, lengths = runs(to_numbers(read_rows(path, column, 0, count), path, column))

    def read_column(number: int, name: str, part: slice) -> Array:
        first = int(starts[number]) + part.start
        rows = read_rows(path, name, first, part.stop - part.start)
        if is_image_type(kinds[name]):
            return to_images(rows, path, name)
        return to_numbers(rows, path, name)

    names = [name for name in schema.names if name not in (*_INDEX, column)]
    table = Table(
        handles=("episode",),
        path=path,
        format=NAME,
        text=f"{plural(len(lengths), 'episode')} of a Lance table",
        names=[n for n in names if is_image_type(kinds[n]) or is_number_type(kinds[n])],
        lengths=lengths.tolist(),
        read=read_column,
        observations=[n for n in names if is_image_type(kinds[n]) or is_number_type(kinds[n])],
    )
    return replace(open_worldmodel(table, options, probe.close), format=NAME)


def _tables(probe: Probe) -> list[Path]:
    if not probe.is_folder:
        return []
    found = [probe.path, *probe.files("*.lance")]
    return [path for path in found if (path / "_versions").is_dir()]
