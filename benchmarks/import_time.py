"""What `import dreamgym` adds to `import gymnasium`, and how soon `dreamgym --help` answers."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from support.reporting import Row, below, parser, report

IMPORTS = (
    "import time; a = time.perf_counter(); import gymnasium; b = time.perf_counter(); "
    "import dreamgym; c = time.perf_counter(); print(b - a, c - b)"
)
HELP = "from dreamgym.cli import main; main(['--help'])"


def main() -> None:
    """Measure in fresh processes; medians."""
    arguments = parser(__doc__ or "").parse_args()
    runs = 7 if arguments.quick else 31
    gymnasium, dreamgym, answer = [], [], []
    for _ in range(runs):
        first, second = map(float, _fresh(IMPORTS).split())
        gymnasium.append(first)
        dreamgym.append(second)
        begin = time.perf_counter()
        _fresh(HELP)
        answer.append(time.perf_counter() - begin)
    report(
        [
            Row(name="import gymnasium", value=statistics.median(gymnasium), unit="s"),
            below("import dreamgym after it", statistics.median(dreamgym), "s", 0.05),
            Row(name="dreamgym --help", value=statistics.median(answer), unit="s"),
        ],
        arguments,
    )


def _fresh(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
