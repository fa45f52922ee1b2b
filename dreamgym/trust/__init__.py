"""How far a dream can be trusted: reality and dreams side by side."""

from __future__ import annotations

from dreamgym.trust.drawing import draw_demo, draw_overlay, longest_held_out
from dreamgym.trust.replaying import Replay, replay

__all__ = ["Replay", "draw_demo", "draw_overlay", "longest_held_out", "replay"]
