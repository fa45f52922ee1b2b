"""What can go wrong between a policy and the real environment."""

from __future__ import annotations


class TransferError(ValueError):
    """A policy, an environment and a world that do not fit each other.

    The message names what was given, what was wanted and what to do.
    """
