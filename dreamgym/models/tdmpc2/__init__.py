"""TD-MPC2: an implicit world model with values and a policy."""

from __future__ import annotations

from dreamgym.models.tdmpc2.config import TDMPC2Config
from dreamgym.models.tdmpc2.model import TDMPC2

__all__ = ["TDMPC2", "TDMPC2Config"]
