"""The command line: one verb for each stage of the way of the data.

`dreamgym --help` lists the verbs. Every verb is one function of the public interface with options,
a progress bar and a table; what it measures can be written as JSON with `--json FILE`.
"""

from dreamgym.cli.app import app, main

__all__ = ["app", "main"]
