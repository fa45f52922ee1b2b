"""Lance in a process of its own: a damaged file makes Lance abort, which no `except` catches.

Lengths inside of Lance's pages are allocated before they are compared with the file. One child
serves every table of this process; where it dies, the read fails and the next one starts another.
The child is this file, run as a script: it imports nothing of dreamgym.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any


def open_table(path: Path) -> tuple[Any, int]:
    """Return the schema of a Lance table, and its number of rows.

    Raises:
        OSError: Lance cannot open it.
    """
    count, table = _child(os.getpid()).ask({"path": str(path)})
    return table.schema, count


def read_rows(path: Path, column: str, start: int, count: int) -> Any:
    """Return `count` rows of one column as an Arrow array, from `start` on.

    Raises:
        OSError: Lance cannot read them.
    """
    request = {"path": str(path), "column": column, "start": start, "count": count}
    return _child(os.getpid()).ask(request)[1].column(0)


class _Child:
    """A process that reads Lance tables, and what is asked of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        # What Lance prints when it aborts.
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)

    def ask(self, request: dict[str, Any]) -> tuple[int, Any]:
        """Return the number of rows and the Arrow table that the child answers.

        Raises:
            OSError: with Lance's own words, or its last ones.
        """
        import pyarrow

        with self._lock:
            try:
                answer, content = self._exchange(json.dumps(request).encode() + b"\n")
            except BaseException:  # it died, or Ctrl-C left an answer half read
                self._end()
                raise
        if "error" in answer:
            raise OSError(answer["error"])
        with pyarrow.ipc.open_stream(content) as stream:
            return answer["count"], stream.read_all()

    def _exchange(self, request: bytes) -> tuple[dict[str, Any], bytes]:
        process = self._running()
        with contextlib.suppress(BrokenPipeError):  # it has died, which the answer shows
            process.stdin.write(request)  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        line = process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise OSError(f"Lance ended its process: {self._last_words()}")
        answer = json.loads(line)
        return answer, process.stdout.read(answer.get("size", 0))  # type: ignore[union-attr]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._messages.seek(0)
            self._messages.truncate()
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._messages,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _last_words(self) -> str:
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").splitlines()
        return next((line for line in lines if line.startswith(("memory", "thread"))), "no reason")


@functools.lru_cache(maxsize=1)
def _child(process: int) -> _Child:
    """Return the child of a process: after a fork, a pipe must not have two users."""
    return _Child()


def _serve() -> None:
    """Answer each line of stdin with a line of JSON and an Arrow stream, until stdin ends."""
    import lance
    import pyarrow

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    tables: dict[str, Any] = {}
    for line in sys.stdin.buffer:
        request = json.loads(line)
        path, column = request["path"], request.get("column")
        content = b""
        try:
            if column is None or path not in tables:
                tables[path] = lance.dataset(path)
            table = tables[path]
            if column is None:
                found = table.schema.empty_table()
            else:
                # A panic inside `to_table`, which streams, would end the process.
                rows = range(request["start"], request["start"] + request["count"])
                found = table.take(list(rows), columns=[column])
            sink = pyarrow.BufferOutputStream()
            with pyarrow.ipc.new_stream(sink, found.schema) as stream:
                stream.write_table(found)
            content = sink.getvalue().to_pybytes()
            answer = {"count": table.count_rows(), "size": len(content)}
        except BaseException as error:  # a panic of Rust is no `Exception`
            answer = {"error": str(error)}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + content)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
