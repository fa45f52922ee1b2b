"""An exported controller as a policy: the same files that a robot runs, in the real environment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym._files import local_path, sha256
from dreamgym.data import FrameSkip
from dreamgym.data.policies import as_rows
from dreamgym.data.spaces import space_from_json
from dreamgym.errors import PolicyFileError
from dreamgym.transfer.export.exporting import CONTROLLER, DESCRIPTION, SCHEMA
from dreamgym.transfer.export.graphs import (
    ACTION,
    NOISE,
    PREVIOUS,
    START,
    observation_name,
)
from dreamgym.transfer.export.onnx_file import open_onnx


class ExportedPolicy:
    """A folder of `export_policy` as a `Policy` of real observations, run by onnxruntime.

    `evaluate`, `record` and `transfer_policy` take it. A row's seed fixes the noise of its filter.

    Attributes:
        name: name of the policy in datasets.
        view: the view of real observations, "observation".
        description: what `controller.json` says.
    """

    view = "observation"

    def __init__(self, folder: str | Path) -> None:
        """Open the folder.

        Args:
            folder: a folder of `export_policy`.

        Raises:
            PolicyFileError: it is not such a folder, a file has changed, or it has no policy.
            ModuleNotFoundError: the extra `onnx` is not installed.
        """
        path = local_path(folder, PolicyFileError)
        try:
            self.description: dict[str, Any] = json.loads((path / DESCRIPTION).read_text())
            graph = self.description["graphs"][CONTROLLER]
            schema, expected = self.description["schema"], graph["sha256"]
            actual = sha256(path / CONTROLLER)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PolicyFileError(
                f"{path} is not an exported controller ({error}); dreamgym export makes one"
            ) from None
        if schema > SCHEMA:
            raise PolicyFileError(
                f"{path} has schema {schema}, this dreamgym reads up to {SCHEMA}; install a newer "
                "dreamgym"
            )
        if actual != expected:
            raise PolicyFileError(
                f"{path / CONTROLLER} has changed since it was written (SHA-256 {actual[:12]}, "
                f"{DESCRIPTION} says {expected[:12]}); export it again"
            )
        if ACTION not in {each["name"] for each in graph["outputs"]}:
            raise PolicyFileError(f"{path} has a filter and no policy; export one with a policy")
        self._inputs = {each["name"]: each for each in graph["inputs"]}
        self._state: dict[str, str] = self.description["state"]
        self._path = path / CONTROLLER
        self._run = open_onnx(self._path)
        self._rows: dict[int, _Episode] = {}
        self.name = f"onnx:{self.description['policy']['name']}@{actual[:12]}"

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Observation space of the real environment."""
        return space_from_json(self.description["observation_space"])

    @property
    def action_space(self) -> gym.Space[Any]:
        """Action space of the real environment, with the frame skip."""
        return space_from_json(self.description["action_space"])

    @property
    def frame_skip(self) -> FrameSkip:
        """Frame skip of the real environment that one action is for."""
        return FrameSkip(**self.description["frame_skip"])

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """See `Policy.reset`."""
        for row, seed in zip(rows, seeds, strict=True):
            memory = {name: self._zeros(name) for name in self._state.values()}
            if PREVIOUS in self._inputs:
                memory[PREVIOUS] = self._zeros(PREVIOUS)
            self._rows[row] = _Episode(memory=memory, rng=np.random.default_rng(seed))

    def act(self, observations: Any, rows: Sequence[int]) -> list[Any]:
        """See `Policy.act`; rows are filtered one by one, so none depends on another."""
        pairs = zip(rows, as_rows(observations), strict=True)
        return [self._act_in(self._rows[row], observation) for row, observation in pairs]

    def _act_in(self, episode: _Episode, observation: Any) -> Any:
        parts = observation if isinstance(observation, dict) else {"": observation}
        inputs = dict(episode.memory)
        for key, part in parts.items():
            name = observation_name(key)
            if name in self._inputs:
                inputs[name] = np.asarray(part, self._inputs[name]["dtype"])[None]
        inputs[START] = np.array([episode.starts])
        if NOISE in self._inputs:
            inputs[NOISE] = episode.rng.random(self._inputs[NOISE]["shape"], dtype=np.float32)
        outputs = self._run(inputs)
        episode.starts = False
        episode.judged = {name: float(outputs[name][0]) for name in self._guarded}
        for name, following in self._state.items():
            episode.memory[following] = outputs[name]
        action = outputs[ACTION]
        if PREVIOUS in self._inputs:
            episode.memory[PREVIOUS] = action.astype(self._inputs[PREVIOUS]["dtype"])
        return action[0]

    def judged(self, row: int) -> dict[str, float]:
        """Return the guard's outputs for the last observation of a row; empty without a guard."""
        return self._rows[row].judged

    @property
    def _guarded(self) -> list[str]:
        guard = self.description["guard"]
        return list(guard["outputs"]) if guard else []

    def _zeros(self, name: str) -> NDArray[Any]:
        return np.zeros(self._inputs[name]["shape"], self._inputs[name]["dtype"])

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self._path.parent}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]  # a session cannot be pickled


@dataclass
class _Episode:
    """The episode of one row.

    Attributes:
        memory: state and previous action, by the names of the inputs.
        rng: source of the filter's noise.
        starts: whether the next observation is the first.
        judged: the guard's last outputs.
    """

    memory: dict[str, NDArray[Any]]
    rng: np.random.Generator
    starts: bool = True
    judged: dict[str, float] = field(default_factory=dict)
