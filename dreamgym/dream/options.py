"""The keywords of `make` and `make_vec`: JSON-plain, checked once, refused with the nearest."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from gymnasium.vector import AutoresetMode

from dreamgym.files import nearest

VIEWS = ("observation", "latent")
OUTPUTS = ("torch", "numpy")
STARTS = ("bank", "beginnings")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AUTORESET_MODES = {
    "NextStep": AutoresetMode.NEXT_STEP,
    "SameStep": AutoresetMode.SAME_STEP,
    "Disabled": AutoresetMode.DISABLED,
}


@dataclass(frozen=True, kw_only=True)
class DreamOptions:
    """How a world is dreamt.

    Attributes:
        device: "auto", "cpu", "cuda", ...
        view: what the policy sees, "observation" (the real environment's space) or "latent"
            (the features); None for the world's default, which transfers with no wrapper.
        output: "torch" or "numpy"; what a vector environment gives.
        autoreset_mode: "SameStep", "NextStep" or "Disabled", as in Gymnasium.
        max_episode_steps: the horizon; None for the world's recommendation.
        temperature: > 0; above 1 the dream is more uncertain than the model.
        termination: "sample" the predicted probability, or the probability from which on the
            episode ends.
        starts: "bank" (half beginnings of episodes, half anywhere in them) or "beginnings".
        render_mode: None or "rgb_array".
        dtype: of matrix products, "float32" or "bfloat16" where the family has it.
    """

    device: str = "auto"
    view: str | None = None
    output: str = "torch"
    autoreset_mode: str = "SameStep"
    max_episode_steps: int | None = None
    temperature: float = 1.0
    termination: str | float = "sample"
    starts: str = "bank"
    render_mode: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if isinstance(self.autoreset_mode, AutoresetMode):
            object.__setattr__(self, "autoreset_mode", self.autoreset_mode.value)
        _one_of("view", self.view, (*VIEWS, None))
        _one_of("output", self.output, OUTPUTS)
        _one_of("autoreset_mode", self.autoreset_mode, AUTORESET_MODES)
        _one_of("starts", self.starts, STARTS)
        _one_of("render_mode", self.render_mode, ("rgb_array", None))
        _one_of("dtype", self.dtype, DTYPES)
        steps = self.max_episode_steps
        if steps is not None and (isinstance(steps, bool) or int(steps) != steps or steps < 1):
            raise ValueError(f"max_episode_steps={steps!r}: give a whole number of at least 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature!r}: give a number above 0")
        if self.termination != "sample" and not _is_probability(self.termination):
            raise ValueError(
                f"termination={self.termination!r}: give 'sample', or the probability in (0, 1] "
                "from which on an episode ends"
            )

    @property
    def mode(self) -> AutoresetMode:
        """The autoreset mode as Gymnasium's enum."""
        return AUTORESET_MODES[self.autoreset_mode]

    @property
    def threshold(self) -> float | None:
        """The probability from which on an episode ends; None where it is sampled."""
        return None if self.termination == "sample" else float(self.termination)


def parse_options(given: dict[str, Any]) -> DreamOptions:
    """Options from keywords.

    Raises:
        TypeError: an unknown keyword; the message has the nearest right one.
        ValueError: a value that is not allowed.
    """
    known = [field.name for field in fields(DreamOptions)]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise TypeError(
            f"a dream has no option {unknown[0]!r}: {nearest(unknown[0], [*known, 'world'])}"
        )
    return DreamOptions(**given)


def _one_of(name: str, value: Any, allowed: Any) -> None:
    if value not in allowed:
        words = [word for word in allowed if word is not None]
        raise ValueError(f"{name}={value!r} is not an option: {nearest(str(value), words)}")


def _is_probability(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
