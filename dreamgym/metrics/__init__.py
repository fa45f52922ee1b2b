"""Metrics on held-out episodes: figures, alarms and recommendations."""

from __future__ import annotations

from dreamgym.metrics.alarms import Alarm, Inspection, TrainingMonitor
from dreamgym.metrics.context import MetricContext
from dreamgym.metrics.limits import Bank, Limits
from dreamgym.metrics.open_loop import OpenLoopErrors, open_loop_errors
from dreamgym.metrics.recommendation import Recommendation, recommend
from dreamgym.metrics.registry import METRICS, REPORT_METRICS, evaluate_metrics
from dreamgym.metrics.rewards import RewardEvents, reward_events

__all__ = [
    "METRICS",
    "REPORT_METRICS",
    "Alarm",
    "Bank",
    "Inspection",
    "Limits",
    "MetricContext",
    "OpenLoopErrors",
    "Recommendation",
    "RewardEvents",
    "TrainingMonitor",
    "evaluate_metrics",
    "open_loop_errors",
    "recommend",
    "reward_events",
]
