"""Output of every benchmark: rows of figures, each with its bar.

A benchmark parses its arguments with `parser()` and ends with `report(rows, arguments)`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

PACKAGES = ("dreamgym", "torch", "numpy", "gymnasium", "h5py", "stable-baselines3")
PACKAGES += ("rsl-rl-lib", "skrl", "tensordict", "torchrl", "sb3-contrib", "tianshou", "sbx-rl")
PACKAGES += ("ray", "cma")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure.

    Attributes:
        name: name of the measurement.
        value: measured value.
        unit: unit of the value; "ratio" for two things measured side by side.
        bar: condition on the value, e.g. "< 0.05"; "" if there is none.
        holds: whether the value meets the bar; None if there is none.
    """

    name: str
    value: float
    unit: str
    bar: str = ""
    holds: bool | None = None


def below(name: str, value: float, unit: str, bar: float) -> Row:
    """Return a row whose value should be below its bar."""
    return Row(name=name, value=value, unit=unit, bar=f"< {bar:g}", holds=value < bar)


def at_least(name: str, value: float, unit: str, bar: float | None) -> Row:
    """Return a row whose value should reach its bar, if it has one."""
    if bar is None:
        return Row(name=name, value=value, unit=unit)
    return Row(name=name, value=value, unit=unit, bar=f">= {bar:g}", holds=value >= bar)


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every benchmark: `--json FILE` and `--quick`."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    arguments.add_argument("--quick", action="store_true", help="under 50 seconds")
    return arguments


def report(rows: list[Row], arguments: argparse.Namespace) -> None:
    """Print the rows as a table, write them to `--json`, and exit with 1 if a bar is missed."""
    table = Table(box=box.SIMPLE)
    for heading in ("what", "value", "unit", "bar", "holds"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    for row in rows:
        holds = {None: "", True: "yes", False: "NO"}[row.holds]
        table.add_row(row.name, f"{row.value:.4g}", row.unit, row.bar, holds)
    Console().print(table)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(_result(rows), indent=2) + "\n", encoding="utf-8")
    sys.exit(any(row.holds is False for row in rows))


def _result(rows: list[Row]) -> dict[str, Any]:
    return {
        "benchmark": Path(sys.argv[0]).stem,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": platform.system(),
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "rows": [asdict(row) for row in rows],
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
