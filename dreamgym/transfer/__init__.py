"""Policies in the real environment: evaluation, the latent view, and transfer from the dream."""

from __future__ import annotations

from dreamgym.errors import TransferError
from dreamgym.transfer.evaluation import EpisodePlan, Evaluation, evaluate, run_episodes
from dreamgym.transfer.latent import LatentAgent, LatentObservation
from dreamgym.transfer.transfer import Transfer, transfer_policy

__all__ = [
    "EpisodePlan",
    "Evaluation",
    "LatentAgent",
    "LatentObservation",
    "Transfer",
    "TransferError",
    "evaluate",
    "run_episodes",
    "transfer_policy",
]
