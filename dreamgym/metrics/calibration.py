"""Calibration of predicted probabilities against outcomes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dreamgym.models.reduction import float64_on_host

BINS = 10


class Calibration(NamedTuple):
    """Calibration of N predicted probabilities.

    Attributes:
        rate: frequency of the event.
        predicted: mean predicted probability.
        brier: mean squared error of the probabilities (Brier 1950); 0 is perfect.
        skill: Brier skill score 1 - brier / (rate (1 - rate)): 1 for perfect predictions, 0 for
            always predicting the base rate, negative for worse; None if the event always or never
            happened.
        ece: expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3): mean
            distance between probability and frequency, over bins of width 0.1.
    """

    rate: float
    predicted: float
    brier: float
    skill: float | None
    ece: float


def calibration(probability: Tensor, outcome: Tensor) -> Calibration:
    """Compare predicted probabilities (N,) with outcomes (N,) bool; N is at least 1."""
    predicted, truth = float64_on_host(probability), float64_on_host(outcome)
    rate, brier = float(truth.mean()), float((predicted - truth).square().mean())
    bins = (predicted * BINS).long().clamp(0, BINS - 1)
    difference = torch.zeros(BINS, dtype=predicted.dtype)
    difference.index_add_(0, bins, predicted - truth)
    variance = rate * (1.0 - rate)
    return Calibration(
        rate=rate,
        predicted=float(predicted.mean()),
        brier=brier,
        skill=1.0 - brier / variance if variance > 0 else None,
        ece=float(difference.abs().sum()) / len(predicted),
    )
