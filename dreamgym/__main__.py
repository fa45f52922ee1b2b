"""The command line as `python -m dreamgym`."""

from __future__ import annotations

from dreamgym.cli import main

if __name__ == "__main__":
    main()
