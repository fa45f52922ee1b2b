"""Policies in the real environment: evaluation, the latent view, transfer, and export."""

from __future__ import annotations

from dreamgym.errors import TransferError
from dreamgym.transfer.evaluation import (
    Comparison,
    EpisodePlan,
    Evaluation,
    compare_policies,
    evaluate,
    run_episodes,
)
from dreamgym.transfer.latent import LatentAgent, LatentObservation
from dreamgym.transfer.transfer import Transfer, transfer_policy

__all__ = [
    "Comparison",
    "EpisodePlan",
    "Evaluation",
    "LatentAgent",
    "LatentObservation",
    "Transfer",
    "TransferError",
    "compare_policies",
    "evaluate",
    "run_episodes",
    "transfer_policy",
]
