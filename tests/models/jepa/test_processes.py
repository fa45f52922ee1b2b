"""Under data parallelism, batch statistics, SIGReg and gradients are those of the global batch."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing as mp

from tests.models.jepa.processes import PROCESSES, fresh, outcome, run


@pytest.mark.slow
def test_two_processes_compute_the_same_as_one(tmp_path):
    mp.spawn(run, (str(tmp_path),), nprocs=PROCESSES)
    expected = outcome(*fresh())
    for rank in range(PROCESSES):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, rtol=1e-3, atol=1e-5, msg=name)
