"""Trust: the report on a world, for those who are to rely on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgym._lazy import lazy_names

if TYPE_CHECKING:
    from dreamgym.trust.findings import Finding as Finding
    from dreamgym.trust.page import page as page
    from dreamgym.trust.ranking import RankingConfig as RankingConfig
    from dreamgym.trust.report import Report as Report
    from dreamgym.trust.report import report as report

__all__ = ["Finding", "RankingConfig", "Report", "page", "report"]

__getattr__ = lazy_names(
    __name__,
    {
        "findings": ["Finding"],
        "page": ["page"],
        "ranking": ["RankingConfig"],
        "report": ["Report", "report"],
    },
)
