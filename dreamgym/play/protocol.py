"""The messages between the page and a session, as JSON.

The page sends `{"do": NAME, ...}` and gets one answer for each message: a moment, or
`{"kind": "error", "text": ...}`. It sends its next step when it has shown the last one, so that it
sets the pace.
"""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dreamgym._files import json_text
from dreamgym.play.pictures import media_type
from dreamgym.play.real_side import RealMoment
from dreamgym.play.saving import save_clip, save_episodes
from dreamgym.play.session import MAX_TEMPERATURE, Moment, PlaySession

Answer = dict[str, Any]

DEFAULT_FPS, LEAST_FPS, MOST_FPS = 20, 1, 60

LATENTS_SHOWN = 16
"""Numbers of a leaf that the page shows at once."""

HISTORY_SHOWN = 600
"""Steps whose figures are sent after a jump to another branch."""

logger = logging.getLogger(__name__)


class Conversation:
    """Answers the messages of one page.

    Args:
        session: what is played.
        folder: folder for clips and episodes; the page has no say in their names.
        seed: seed of the first episode.
    """

    def __init__(self, session: PlaySession, folder: Path, seed: int = 0) -> None:
        self.session, self.folder, self.first_seed = session, folder, seed
        self._commands: dict[str, Callable[[Answer], Answer]] = {
            "hello": self._hello,
            "reset": self._reset,
            "step": self._step,
            "go": self._go,
            "branch": self._branch,
            "drop": self._drop,
            "return": self._return,
            "set": self._set,
            "latent": self._latent,
            "edit-latent": self._edit_latent,
            "edit-observation": self._edit_observation,
            "place": self._place,
            "save-clip": self._save_clip,
            "save-episode": self._save_episode,
        }

    def answer(self, text: str | bytes) -> str:
        """Return the answer to one message; whatever is wrong with it is an answer, too."""
        try:
            message = json.loads(text)
            if not isinstance(message, dict) or message.get("do") not in self._commands:
                known = ", ".join(self._commands)
                raise ValueError(f"{text!r:.80} is not a message; 'do' is one of {known}")
            answer = self._commands[message["do"]](message)
        except (ValueError, TypeError, KeyError, OSError, RuntimeError, ImportError) as error:
            if isinstance(error, KeyError):
                error = ValueError(f"the message has no {error.args[0]!r}")
            answer = {"kind": "error", "text": " ".join(str(error).split())}
        except Exception as error:  # the page goes on, and the terminal shows the defect
            logger.exception("dreamgym play")
            answer = {"kind": "error", "text": f"unexpected {type(error).__name__}: {error}"}
        return json_text(answer)

    # ------------------------------------------------------------------ commands

    def _hello(self, message: Answer) -> Answer:
        del message
        session, world = self.session, self.session.world
        reality = session.reality
        return {
            "kind": "hello",
            "world": world.name,
            "env": world.env_id,
            "family": world.family,
            "controls": session.controls.describe(),
            "starts": [
                {"name": name, "rows": 0 if states is None else len(next(iter(states.values())))}
                for name, states in session.starts.items()
            ],
            "players": list(session.players),
            "horizon": session.horizon,
            "most_temperature": MAX_TEMPERATURE,
            "fps": self._fps(),
            "most_fps": MOST_FPS,
            "seed": self.first_seed,
            "observations": self._observations(),
            "leaves": [
                {"name": leaf.name, "size": len(leaf.low)} for leaf in session.leaves.values()
            ],
            "has_uncertainty": world.model.has_uncertainty,
            "has_picture": session.renderer is not None and not session.renderer.draws_bars,
            "has_reality": reality is not None,
            "has_real_picture": reality is not None and reality.has_pictures,
            "without_reality": session.without_reality,
            "can_be_placed": reality is not None and reality.can_be_placed,
        }

    def _reset(self, message: Answer) -> Answer:
        row = message.get("row")
        self.session.reset(
            _integer(message["seed"]), message.get("start"), None if row is None else _integer(row)
        )
        return self._history()

    def _step(self, message: Answer) -> Answer:
        action = message.get("action")
        return self._shown(
            self.session.step(None if action is None else self.session.controls.action(action))
        )

    def _go(self, message: Answer) -> Answer:
        return self._shown(self.session.go_to(_integer(message["step"])))

    def _branch(self, message: Answer) -> Answer:
        del message
        number = self.session.branch()
        now = self.session.now
        return {
            "kind": "branch",
            "branch": number,
            "step": now.step,
            "return": now.episode_return,
            "frame": _data_url(now.frame),
        }

    def _drop(self, message: Answer) -> Answer:
        self.session.drop(_integer(message["branch"]))
        return {"kind": "dropped", "branch": message["branch"]}

    def _return(self, message: Answer) -> Answer:
        same = bool(message.get("same_noise"))
        self.session.return_to(_integer(message["branch"]), same_noise=same)
        return self._history()

    def _set(self, message: Answer) -> Answer:
        session = self.session
        if "temperature" in message:
            session.temperature = float(message["temperature"])
        if "horizon" in message:
            session.horizon = _integer(message["horizon"])
        if "player" in message:
            session.player = str(message["player"])
        return {
            "kind": "settings",
            "temperature": session.temperature,
            "horizon": session.horizon,
            "player": session.player,
        }

    def _latent(self, message: Answer) -> Answer:
        name, first = str(message["leaf"]), _integer(message.get("first", 0))
        values = self.session.latent(name)
        chosen = slice(max(first, 0), max(first, 0) + LATENTS_SHOWN)
        leaf = self.session.leaves[name]
        return {
            "kind": "latent",
            "leaf": name,
            "first": chosen.start,
            "values": values[chosen].tolist(),
            "low": leaf.low[chosen].tolist(),
            "high": leaf.high[chosen].tolist(),
        }

    def _edit_latent(self, message: Answer) -> Answer:
        index, value = _integer(message["index"]), float(message["value"])
        return self._shown(self.session.edit_latent(str(message["leaf"]), index, value))

    def _edit_observation(self, message: Answer) -> Answer:
        index, value = _integer(message["index"]), float(message["value"])
        return self._shown(self.session.edit_observation(index, value))

    def _place(self, message: Answer) -> Answer:
        del message
        return self._shown(self.session.place_reality())

    def _save_clip(self, message: Answer) -> Answer:
        fps = float(message.get("fps", DEFAULT_FPS))
        fps = min(max(fps, LEAST_FPS), MOST_FPS)
        return {"kind": "saved", "paths": [str(save_clip(self.session, self.folder, fps=fps))]}

    def _save_episode(self, message: Answer) -> Answer:
        del message
        return {
            "kind": "saved",
            "paths": [str(p) for p in save_episodes(self.session, self.folder)],
        }

    # ------------------------------------------------------------------ answers

    def _fps(self) -> int:
        """Return the frames a second of the real environment, if it is one for people."""
        reality = self.session.reality
        fps = None if reality is None else (reality.env.metadata or {}).get("render_fps")
        fps = DEFAULT_FPS if not fps else float(fps) / self.session.world.frame_skip.steps
        return int(min(max(round(fps), LEAST_FPS), DEFAULT_FPS))

    def _observations(self) -> list[Answer]:
        """Return the name of each number that is plotted, and its range among the start states."""
        session, renderer = self.session, self.session.renderer
        if not session.plotted or renderer is None:
            return []
        names = session.known.observations
        low, high = renderer.low.tolist(), renderer.high.tolist()
        return [
            {"name": names[k] if k < len(names) else f"[{k}]", "low": low[k], "high": high[k]}
            for k in range(session.plotted)
        ]

    def _shown(self, moment: Moment) -> Answer:
        """Return a moment with its pictures."""
        figures = self._figures(moment)
        figures |= {"kind": "moment", "frame": _data_url(moment.frame)}
        figures |= {"first": self.session.moments[0].step, "last": self.session.moments[-1].step}
        if moment.real is not None:
            figures["real"]["frame"] = _data_url(moment.real.frame)
        return figures

    def _history(self) -> Answer:
        """Return the present with its pictures, and the figures of the moments before it."""
        past = self.session.moments[-HISTORY_SHOWN:-1]
        return {
            **self._shown(self.session.now),
            **self.session.now.origin._asdict(),
            "past": [self._figures(each) for each in past],
        }

    def _figures(self, moment: Moment) -> Answer:
        values = self._values(moment.observation)
        stepped = moment.action is not None  # the start has no predictions
        return {
            "step": moment.step,
            "action": self.session.controls.values(moment.action) if stepped else None,
            "reward": moment.reward if stepped else None,
            "return": moment.episode_return,
            "termination": moment.termination if stepped else None,
            "uncertainty": moment.uncertainty if stepped else None,
            "done": _end(moment),
            "edited": moment.edited,
            "values": values,
            "real": None if moment.real is None else self._real_figures(moment.real),
        }

    def _real_figures(self, real: RealMoment) -> Answer:
        return {
            "reward": None if real.trace.before is None else real.reward,
            "return": real.episode_return,
            "done": _end(real),
            "values": self._values(real.observation),
        }

    def _values(self, observation: Any) -> list[float]:
        """Return the numbers of a vector observation that are plotted."""
        if not self.session.plotted or observation is None:
            return []
        parts = observation.values() if isinstance(observation, dict) else [observation]
        flat = np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in parts])
        values: list[float] = flat[: self.session.plotted].tolist()
        return values


def _end(moment: Moment | RealMoment) -> str:
    if moment.terminated:
        return "terminated"
    return "truncated" if moment.truncated else ""


def _integer(value: Any) -> int:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or int(value) != value:
        raise ValueError(f"{value!r:.40} is not a whole number")
    return int(value)


def _data_url(data: bytes | None) -> str | None:
    if data is None:
        return None
    return f"data:{media_type(data)};base64,{base64.b64encode(data).decode('ascii')}"
