"""Kill a writer at an exact write call: SIGKILL at the entry of its n-th `pwrite`.

The writer runs in a forked child under `ptrace`, which takes milliseconds per kill and needs no
compiler. A killed process leaves what the kernel has: all calls before the n-th, nothing of it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gymnasium import spaces

from dreamgym.data import Dataset, DatasetError, DatasetMetadata, DatasetWriter, Episode, recover
from tests.data.samples import random_episode

_PWRITE = {"x86_64": 18, "aarch64": 67}.get(platform.machine())
_TRACEME, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
_SYSGOOD, _EXITKILL = 1, 0x100000


@functools.cache
def sample(seed: int = 0) -> tuple[DatasetMetadata, list[Episode]]:
    """Return metadata with an image and a vector, and episodes of very different lengths."""
    metadata = DatasetMetadata(
        observation_space=spaces.Dict(
            image=spaces.Box(0, 255, (16, 16, 3), np.uint8), vector=spaces.Box(-1, 1, (5,))
        ),
        action_space=spaces.Box(-1, 1, (2,)),
    )
    rng = np.random.default_rng(seed)
    lengths = rng.permutation([1, 7, 60, 200, 3, 30, 90, 2, 16, 15]).tolist()
    return metadata, [
        random_episode(metadata.observation_space, metadata.action_space, n, rng) for n in lengths
    ]


def write_counting(path: Path, counter: mmap.mmap, seed: int = 0) -> None:
    """Write the sample episodes; `counter` holds the number of `add`s that have returned."""
    metadata, episodes = sample(seed)
    with DatasetWriter(path, metadata) as writer:
        for count, episode in enumerate(episodes):
            writer.add(episode)
            counter[:8] = struct.pack("<q", count + 1)


def kill_at(call: int, run: Callable[[mmap.mmap], None]) -> tuple[int, int]:
    """Run `run` in a child, and kill it at the entry of its `call`-th write, counted from 1.

    Returns:
        The number of episodes it had committed, and the number of its write calls: fewer than
        `call` if it ended before.
    """
    counter = mmap.mmap(-1, 8)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    child = os.fork()
    if child == 0:
        try:
            libc.ptrace(_TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
            run(counter)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    if libc.ptrace(_SETOPTIONS, child, None, ctypes.c_void_p(_SYSGOOD | _EXITKILL)) != 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise PermissionError("ptrace is not allowed here")
    calls, info, forward = 0, ctypes.create_string_buffer(88), 0
    while True:
        libc.ptrace(_SYSCALL, child, None, ctypes.c_void_p(forward))
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            break
        stop = os.WSTOPSIG(status)
        forward = 0 if stop & 0x80 else stop
        if not stop & 0x80:
            continue
        libc.ptrace(_GET_SYSCALL_INFO, child, ctypes.c_void_p(88), info)
        operation, number = info.raw[0], struct.unpack_from("<Q", info.raw, 24)[0]
        if operation == 1 and number == _PWRITE:
            calls += 1
            if calls == call:
                os.kill(child, signal.SIGKILL)
    return struct.unpack("<q", counter[:8])[0], calls


def can_kill() -> bool:
    """Return whether this system lets one process trace another."""
    if not sys.platform.startswith("linux") or _PWRITE is None:
        return False
    try:
        kill_at(1, lambda counter: None)
    except OSError:
        return False
    return True


def survive(path: Path, call: int, *, append: bool, seed: int = 0) -> tuple[int, int]:
    """Kill a writer at one call, recover, append, and compare every row with what was written.

    Args:
        path: the dataset to write.
        call: number of the write call, counted from 1.
        append: whether to append an episode after the recovery.
        seed: seed of the sample episodes.

    Returns:
        The number of episodes committed before the kill, and of those found after it.

    Raises:
        DatasetError: something could not be read.
        AssertionError: what was read differs from what was written.
    """
    _, episodes = sample(seed)
    committed, _ = kill_at(call, lambda counter: write_counting(path, counter, seed))
    if not committed and not _has_episodes(path):
        return 0, 0
    if not path.exists():
        recover(path)
    if append:
        with DatasetWriter.extend(path) as writer:
            writer.add(episodes[0])
    with Dataset(path) as dataset:  # verifies the checksums
        found = dataset.num_episodes - append
        for index in range(found):
            a, b = dataset.episode(index), episodes[index]
            if not np.array_equal(a.actions, b.actions) or not all(
                np.array_equal(a.observations[key], b.observations[key]) for key in a.observations
            ):
                raise AssertionError(f"episode {index} differs from what was written")
    return committed, found


def _has_episodes(path: Path) -> bool:
    """Return whether a killed writer left an episode; one killed early may leave no file."""
    if path.exists():
        return True
    try:
        with Dataset.snapshot(path):
            return True
    except DatasetError:
        return False
