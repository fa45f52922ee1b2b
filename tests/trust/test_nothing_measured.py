"""A report in which nothing could be measured does not say that the world is usable."""

from __future__ import annotations

from dreamgym.trust.findings import CAUTION, findings_of, verdict_of


def test_a_report_without_figures_asks_for_care() -> None:
    world = {"env_id": "X-v0", "policy": "random", "horizon": 50, "has_limits": False}
    data = {"env_id": "X-v0", "policy": "random", "fitted": True, "longest": 3, "cannot_teach": []}
    findings = findings_of({"world": world, "data": data})
    assert verdict_of(findings) == CAUTION
    assert "Nothing could be measured" in findings[0].sentence
