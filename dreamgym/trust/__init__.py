"""Trust: the report on a world, and the alarms while a policy trains in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgym._lazy import lazy_names

if TYPE_CHECKING:
    from dreamgym.dream.watch import TrainingAlarm as TrainingAlarm
    from dreamgym.dream.watch import WatchedVectorEnv as WatchedVectorEnv
    from dreamgym.dream.watch import diverging_returns as diverging_returns
    from dreamgym.dream.watch import watch as watch
    from dreamgym.trust.config import RankingConfig as RankingConfig
    from dreamgym.trust.findings import Finding as Finding
    from dreamgym.trust.html_page import page as page
    from dreamgym.trust.reporting import Report as Report
    from dreamgym.trust.reporting import report as report

__all__ = [
    "Finding",
    "RankingConfig",
    "Report",
    "TrainingAlarm",
    "WatchedVectorEnv",
    "diverging_returns",
    "page",
    "report",
    "watch",
]

__getattr__ = lazy_names(
    __name__,
    {
        ".dream.watch": ["TrainingAlarm", "WatchedVectorEnv", "diverging_returns", "watch"],
        "findings": ["Finding"],
        "html_page": ["page"],
        "config": ["RankingConfig"],
        "reporting": ["Report", "report"],
    },
)
