"""Under data parallelism batch statistics, SIGReg and gradients are those of the whole batch."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp

from tests.models.jepa.processes import PROCESSES, fresh, outcome, run


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    mp.spawn(run, (str(tmp_path),), nprocs=PROCESSES)
    wanted = outcome(*fresh())
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)
