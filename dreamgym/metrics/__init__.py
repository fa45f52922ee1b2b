"""Metrics on held-out episodes: figures, alarms and recommendations."""

from __future__ import annotations

from dreamgym.metrics.alarms import Alarm, Inspection, TrainingMonitor
from dreamgym.metrics.open_loop import OpenLoopErrors, open_loop_errors
from dreamgym.metrics.recommendation import Recommendation, recommend
from dreamgym.metrics.registry import METRICS, MetricContext, evaluate_metrics

__all__ = [
    "METRICS",
    "Alarm",
    "Inspection",
    "MetricContext",
    "OpenLoopErrors",
    "Recommendation",
    "TrainingMonitor",
    "evaluate_metrics",
    "open_loop_errors",
    "recommend",
]
