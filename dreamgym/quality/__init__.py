"""What a fitted model is worth on held-out episodes: figures, alarms and recommendations."""

from __future__ import annotations

from dreamgym.quality.alarms import Alarm, Checkup, Watch
from dreamgym.quality.measuring import measure_quality
from dreamgym.quality.open_loop import OpenLoopErrors, open_loop_errors
from dreamgym.quality.recommending import Recommendation, recommend

__all__ = [
    "Alarm",
    "Checkup",
    "OpenLoopErrors",
    "Recommendation",
    "Watch",
    "measure_quality",
    "open_loop_errors",
    "recommend",
]
