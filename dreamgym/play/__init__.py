"""Play: a page in the browser in which one acts inside a dream, beside the real environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgym._lazy import lazy_names

if TYPE_CHECKING:
    from dreamgym.play.controls import KNOWN as KNOWN
    from dreamgym.play.controls import Known as Known
    from dreamgym.play.saving import save_clip as save_clip
    from dreamgym.play.saving import save_episodes as save_episodes
    from dreamgym.play.server import PlayServer as PlayServer
    from dreamgym.play.session import Moment as Moment
    from dreamgym.play.session import PlaySession as PlaySession

__all__ = [
    "KNOWN",
    "Known",
    "Moment",
    "PlayServer",
    "PlaySession",
    "save_clip",
    "save_episodes",
]

__getattr__ = lazy_names(
    __name__,
    {
        "controls": ["KNOWN", "Known"],
        "saving": ["save_clip", "save_episodes"],
        "server": ["PlayServer"],
        "session": ["Moment", "PlaySession"],
    },
)
