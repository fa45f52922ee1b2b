"""Carrying a policy from the dream to the real environment, and measuring it there."""

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
