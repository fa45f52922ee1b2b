"""What every test needs: quiet machines, one thread a process, no screen."""

from __future__ import annotations

import os
import signal

# Before torch is imported anywhere: two test processes on two cores go fastest one thread each, and
# results do not depend on how many cores a machine has. Subprocesses inherit all of it.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# Started in the background by a shell, tests inherit that Ctrl-C is ignored, and so would the
# processes that some of them interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no defect: no deadlines. What CI tries is the same each time; at home it varies.
hypothesis.settings.register_profile(
    "dreamgym", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True
)
hypothesis.settings.load_profile("dreamgym")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests, and skip what needs a CUDA device where there is none."""
    # Two processes that end together are done sooner than one that is left with the longest test.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
