"""Frames of video files, decoded with PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dreamgym._extras import import_extra
from dreamgym._files import ClosingContext
from dreamgym.data.formats.interface import Array
from dreamgym.data.hdf5.guard import open_regular
from dreamgym.data.image_decoding import MAX_PIXELS
from dreamgym.errors import DatasetError

_MAX_SKIPPED = 256  # frames that are decoded and dropped rather than sought


class VideoFile(ClosingContext):
    """A video file, read in runs of frames; runs that follow each other are decoded once.

    Args:
        path: the file.
        rate: frames per second, by which frames are numbered; by default that of the file.

    Raises:
        DatasetError: it is not a video, or its frames are too large.
        ModuleNotFoundError: PyAV is not installed; the message names the extra.
    """

    def __init__(self, path: Path, rate: float | None = None) -> None:
        av = import_extra("av", "reading videos")
        self.path = path
        with open_regular(path):
            pass
        try:
            # MP4 only: other containers of FFmpeg, such as playlists, open further files and URLs.
            options = {"protocol_whitelist": "file"}
            self._container: Any = av.open(str(path.resolve()), format="mp4", options=options)
            self._stream: Any = self._container.streams.video[0]
        except (av.FFmpegError, IndexError, ValueError, OSError) as error:
            raise DatasetError(f"it is not a readable video ({error})", path=path) from error
        self._error: type[Exception] = av.FFmpegError
        pixels = self._stream.width * self._stream.height
        if not 0 < pixels <= MAX_PIXELS:
            self._container.close()
            raise DatasetError(
                f"its frames have {pixels:,} pixels; expected 1 to {MAX_PIXELS:,}", path=path
            )
        self._rate = float(rate or self._stream.average_rate or 1)
        self._frames: Iterator[tuple[int, Any]] = iter(())
        self._next = -1  # number of the next frame of `_frames`; -1: nothing is decoded yet

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def count(self) -> int:
        """Return the number of frames."""
        declared = int(self._stream.frames)
        if declared:
            return declared
        count = sum(1 for _ in self._decode(0))
        self._next = -1
        return count

    def read(self, start: int, stop: int) -> Array:
        """Return some frames, uint8 `(N, H, W, 3)`.

        Args:
            start: number of the first one, from 0.
            stop: number after the last one.

        Raises:
            DatasetError: a frame is missing or cannot be decoded.
        """
        shape = (stop - start, self._stream.height, self._stream.width, 3)
        if stop <= start:
            return np.empty((0, *shape[1:]), np.uint8)
        if not 0 <= self._next <= start or start - self._next > _MAX_SKIPPED:
            self._frames, self._next = self._decode(start), 0
        images: list[Array] = []
        try:
            for number, frame in self._frames:
                if number < start:
                    continue
                if number != start + len(images):
                    break
                image = frame.to_ndarray(format="rgb24")
                if image.shape != shape[1:]:
                    raise DatasetError(
                        f"its frame {number} has the shape {image.shape}; expected {shape[1:]}",
                        path=self.path,
                    )
                images.append(image)
                self._next = number + 1
                if len(images) == len(range(start, stop)):
                    return np.stack(images)
        except self._error as error:
            self._next = -1
            raise DatasetError(
                f"its frame {start + len(images)} cannot be decoded ({error})", path=self.path
            ) from error
        self._next = -1
        raise DatasetError(
            f"it has no frame {start + len(images)}; expected frames {start} to {stop - 1}",
            path=self.path,
        )

    def _decode(self, start: int) -> Iterator[tuple[int, Any]]:
        """Return numbered frames, from the key frame at or before frame `start`."""
        base = self._stream.time_base
        first = self._stream.start_time or 0
        offset = first + round(max(start - 1, 0) / self._rate / base)
        self._container.seek(offset if start else first, stream=self._stream, backward=True)
        for frame in self._container.decode(self._stream):
            if frame.pts is not None:
                yield round(float((frame.pts - first) * base) * self._rate), frame


class VideoFolder:
    """Opens the video files of a dataset as they are needed, and keeps the last few open."""

    def __init__(self, rate: float | None = None, most: int = 8) -> None:
        self._rate = rate
        self._open: dict[Path, VideoFile] = {}
        self._most = most

    def read(self, path: Path, start: int, stop: int) -> Array:
        """Return some frames of a file, see `VideoFile.read`."""
        return self._file(path).read(start, stop)

    def count(self, path: Path) -> int:
        """Return the number of frames of a file."""
        return self._file(path).count()

    def close(self) -> None:
        """Close every file."""
        while self._open:
            self._open.popitem()[1].close()

    def _file(self, path: Path) -> VideoFile:
        file = self._open.pop(path, None) or VideoFile(path, self._rate)
        self._open[path] = file  # the last one is the one used last
        if len(self._open) > self._most:
            self._open.pop(next(iter(self._open))).close()
        return file
