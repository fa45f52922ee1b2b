"""Alarms while a policy trains; they live with the dreams that they watch."""

from __future__ import annotations

from dreamgym.dream.watch import TrainingAlarm, WatchedVectorEnv, diverging_returns, watch

__all__ = ["TrainingAlarm", "WatchedVectorEnv", "diverging_returns", "watch"]
