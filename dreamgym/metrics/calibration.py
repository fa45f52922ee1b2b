"""Whether probabilities mean what they say."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BINS = 10


class Calibration(NamedTuple):
    """Of N predicted probabilities.

    Attributes:
        rate: how often it happened.
        predicted: the mean probability.
        brier: mean squared error of the probability (Brier 1950); 0 is perfect.
        skill: 1 - brier / (rate (1 - rate)), which is 1 for a perfect prediction, 0 for the base
            rate said every time, and negative for worse; None where it always or never happened.
        ece: expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3): the mean
            distance between probability and frequency, over bins of a tenth.
    """

    rate: float
    predicted: float
    brier: float
    skill: float | None
    ece: float


def calibration(probability: Tensor, happened: Tensor) -> Calibration:
    """Measure probabilities (N,) against what happened (N,) bool; N at least 1."""
    said, truth = probability.double(), happened.double()
    rate, brier = float(truth.mean()), float((said - truth).square().mean())
    bins = (said * BINS).long().clamp(0, BINS - 1)
    off = torch.zeros(BINS, dtype=said.dtype, device=said.device)
    off.index_add_(0, bins, said - truth)
    variance = rate * (1.0 - rate)
    return Calibration(
        rate=rate,
        predicted=float(said.mean()),
        brier=brier,
        skill=1.0 - brier / variance if variance > 0 else None,
        ece=float(off.abs().sum()) / len(said),
    )
