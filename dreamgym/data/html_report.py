"""The check of a dataset as one self-contained HTML page, with histograms, traces and frames."""

from __future__ import annotations

import base64
import html
import os
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamgym._files import atomic_file, local_path
from dreamgym.data.checking import DatasetCard, check
from dreamgym.data.dataset import Dataset
from dreamgym.data.formats import ForeignOptions
from dreamgym.data.images import image_layout
from dreamgym.data.layout import SINGLE_KEY
from dreamgym.errors import DatasetError

Array = NDArray[Any]

_SHOWN_EPISODES, _SHOWN_FRAMES, _SHOWN_CHANNELS = 4, 8, 8
_BINS = 24
_SMALLEST_FRAME = 8  # pixels on a side
_MEMORY = 64 << 20

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "pre{background:#f4f4f4;padding:1em;overflow-x:auto}.bad{color:#a00}"
    "figure{display:inline-block;margin:0 1.5em 1.5em 0}img{image-rendering:pixelated;height:96px}"
)


def write_page(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    foreign: ForeignOptions | None = None,
) -> DatasetCard:
    """Check a dataset and write its card as an HTML page, with distributions, traces and frames.

    Args:
        path: the dataset: a file or a folder, native or foreign.
        out: the HTML file to write; an existing one is replaced.
        foreign: what a foreign dataset does not say about itself.

    Returns:
        The card, as `check` returns it.

    Raises:
        DatasetError: the path cannot be read as a dataset at all.
    """
    path, out = local_path(path), local_path(out)
    card = check(path, foreign=foreign)
    pictures = ""
    try:
        with Dataset(path, on_bad="skip", memory=_MEMORY, foreign=foreign) as dataset:
            pictures = _pictures(dataset)
    except DatasetError:
        pass  # every episode is bad: the card lists them and the reasons
    problems = "".join(f"<li class='bad'>{html.escape(text)}</li>" for text in card.problems)
    notes = "".join(f"<li>{html.escape(text)}</li>" for text in card.notes)
    page = (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<title>{html.escape(path.name)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(path.name)}</h1><pre>{html.escape(str(card))}</pre>"
        f"<ul>{problems}{notes}</ul>{pictures}</html>\n"
    )
    with atomic_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return card


def _pictures(dataset: Dataset) -> str:
    count = len(dataset)
    shown = np.unique(np.linspace(0, count - 1, min(_SHOWN_EPISODES, count)).astype(int)).tolist()
    parts = [
        _histogram("return", dataset.returns),
        _histogram("length", dataset.lengths),
        "<h2>Episodes</h2>",
    ]
    boxes = dataset.metadata.observation_columns()
    layouts = {key: image_layout(box) for key, box in boxes.items()}
    for index in shown:
        episode = dataset.episode(index)
        observations = episode.observations
        if not isinstance(observations, dict):
            observations = {SINGLE_KEY: observations}
        for key, rows in observations.items():
            title = f"episode {index}, {key}"
            layout = layouts[key]
            parts.append(
                _traces(title, rows)
                if layout is None or min(layout.size) < _SMALLEST_FRAME
                else _frames(title, layout.channels_last(rows))
            )
    return "".join(parts)


def _histogram(title: str, values: Array) -> str:
    counts, edges = np.histogram(values, bins=_BINS)
    top = max(int(counts.max()), 1)
    bars = "".join(
        f"<rect x='{12 * i}' y='{100 - 100 * n / top:.1f}' width='11' height='{100 * n / top:.1f}' "
        "fill='#47a'/>"
        for i, n in enumerate(counts.tolist())
    )
    return _figure(
        f"{title}: {edges[0]:.4g} to {edges[-1]:.4g}",
        f"<svg width='{12 * _BINS}' height='100'>{bars}</svg>",
    )


def _traces(title: str, rows: Array) -> str:
    """Draw the first channels over time, each scaled to its range."""
    flat = rows.reshape(len(rows), -1)[:, :_SHOWN_CHANNELS].astype(np.float64)
    low, span = flat.min(axis=0), np.ptp(flat, axis=0)
    scaled = 95 - 90 * (flat - low) / np.where(span > 0, span, 1)
    across = np.linspace(0, 280, len(rows))
    lines = "".join(
        f"<polyline fill='none' stroke='hsl({45 * i} 60% 45%)' points='"
        + " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, scaled[:, i], strict=True))
        + "'/>"
        for i in range(flat.shape[1])
    )
    return _figure(title, f"<svg width='280' height='100'>{lines}</svg>")


def _frames(title: str, rows: Array) -> str:
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(_SHOWN_FRAMES, len(rows))).astype(int))
    images = "".join(
        f"<img alt='' src='data:image/png;base64,{base64.b64encode(png(rows[i])).decode()}'> "
        for i in chosen.tolist()
    )
    return _figure(title, images)


def _figure(title: str, content: str) -> str:
    return f"<figure>{content}<figcaption>{html.escape(title)}</figcaption></figure>"


def png(image: Array) -> bytes:
    """Encode an image as PNG.

    Args:
        image: `(H, W)` or `(H, W, C)` uint8; of 2 channels the first is shown, of more than 3 the
            first three.
    """
    if image.ndim == 3 and image.shape[2] in (1, 2):
        image = image[:, :, 0]
    elif image.ndim == 3:
        image = image[:, :, :3]
    height, width = image.shape[:2]
    lines = np.ascontiguousarray(image).reshape(height, -1)
    data = np.concatenate([np.zeros((height, 1), np.uint8), lines], axis=1).tobytes()
    color_type = 0 if image.ndim == 2 else 2

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )
