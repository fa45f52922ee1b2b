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
from dreamgym.transfer.export import ExportedPolicy, export_policy
from dreamgym.transfer.latent import LatentAgent, LatentObservation, LatentVectorObservation
from dreamgym.transfer.policies import TensorPolicy
from dreamgym.transfer.transfer import Transfer, transfer_policy

__all__ = [
    "Comparison",
    "EpisodePlan",
    "Evaluation",
    "ExportedPolicy",
    "LatentAgent",
    "LatentObservation",
    "LatentVectorObservation",
    "TensorPolicy",
    "Transfer",
    "TransferError",
    "compare_policies",
    "evaluate",
    "export_policy",
    "run_episodes",
    "transfer_policy",
]
