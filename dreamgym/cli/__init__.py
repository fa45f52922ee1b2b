"""The command line: one verb for each stage, from recording to transfer.

`dreamgym --help` lists the verbs. Every verb is one function of the public interface with options,
a progress bar and a table; its figures can be written as JSON with `--json FILE`.
"""

from dreamgym.cli.app import app, main

__all__ = ["app", "main"]
