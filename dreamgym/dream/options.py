"""The keywords of `make` and `make_vec`: checked once, refused with the nearest right one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from dreamgym._files import nearest
from dreamgym.world.start_states import StartStates

VIEWS = ("observation", "latent")


OUTPUTS = ("torch", "numpy")


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


AUTORESET_MODES = {
    "NextStep": AutoresetMode.NEXT_STEP,
    "SameStep": AutoresetMode.SAME_STEP,
    "Disabled": AutoresetMode.DISABLED,
}


@dataclass(frozen=True, kw_only=True)
class DreamOptions:
    """How a world is dreamt. Every option can be given as plain JSON; some take more in Python.

    Attributes:
        device: "auto", "cpu", "cuda", ...
        view: what the policy sees, "observation" (the real environment's space) or "latent"
            (the features); None for the world's default, which transfers with no wrapper.
        output: "torch" or "numpy"; what a vector environment gives.
        autoreset_mode: "SameStep", "NextStep" or "Disabled", as in Gymnasium.
        max_episode_steps: the horizon, or [least, greatest] to draw one for each episode; None
            for the world's recommendation.
        temperature: > 0, above 1 the dream is more uncertain than the model; or [least, greatest]
            to draw one for each episode; or a tensor or array (N,), one for each environment.
        termination: "sample" the predicted probability, or the probability from which on the
            episode ends; None for the world's recommendation.
        starts: "bank" (half beginnings of episodes, half anywhere in them), "beginnings", the path
            of a dataset; a mapping of such to weights, for a mixture; or, in Python, `StartStates`
            or a state with leaves (S, ...).
        render_mode: None or "rgb_array".
        dtype: of matrix products, "float32" or "bfloat16" where the family has it.
        compile: "auto" captures the step as one graph on CUDA and takes it as it is written
            elsewhere; True has PyTorch's compiler fuse it before; False does neither.
        debug: on every device refuse actions outside the space and steps after an episode's end;
            without, only a CPU looks, for elsewhere looking means waiting.
    """

    device: str = "auto"
    view: str | None = None
    output: str = "torch"
    autoreset_mode: str = "SameStep"
    max_episode_steps: int | Sequence[int] | None = None
    temperature: float | Sequence[float] | Tensor = 1.0
    termination: str | float | None = None
    starts: str | Mapping[str, Any] | StartStates = "bank"
    render_mode: str | None = None
    dtype: str = "float32"
    compile: str | bool = "auto"
    debug: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.autoreset_mode, AutoresetMode):
            object.__setattr__(self, "autoreset_mode", self.autoreset_mode.value)
        _one_of("view", self.view, (*VIEWS, None))
        _one_of("output", self.output, OUTPUTS)
        _one_of("autoreset_mode", self.autoreset_mode, AUTORESET_MODES)
        _one_of("render_mode", self.render_mode, ("rgb_array", None))
        _one_of("dtype", self.dtype, DTYPES)
        if self.compile != "auto" and not isinstance(self.compile, bool):
            raise ValueError(
                f"compile={self.compile!r} is not an option: give 'auto', True or False"
            )
        if not isinstance(self.debug, bool):
            raise ValueError(f"debug={self.debug!r} is not an option: give True or False")
        if self.max_episode_steps is not None:
            self.horizon_range(1)
        if not is_array(self.temperature):
            self.temperature_range()
        if self.termination not in ("sample", None) and not _is_probability(self.termination):
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
        sampled = self.termination is None or self.termination == "sample"
        return None if sampled else float(self.termination)  # type: ignore[arg-type]

    def horizon_range(self, recommended: int) -> tuple[int, int]:
        """The least and the greatest horizon."""
        given = self.max_episode_steps
        low, high = _ends("max_episode_steps", recommended if given is None else given)
        if int(low) != low or int(high) != high or not 1 <= low <= high:
            raise ValueError(
                f"max_episode_steps={given!r}: give a whole number of at least 1, or "
                "[least, greatest]"
            )
        return int(low), int(high)

    def temperature_range(self) -> tuple[float, float]:
        """The least and the greatest temperature."""
        low, high = _ends("temperature", self.temperature)
        if not 0 < low <= high:
            raise ValueError(
                f"temperature={self.temperature!r}: give a number above 0, or [least, greatest]"
            )
        return float(low), float(high)


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


def is_array(value: Any) -> bool:
    """Whether a value is a tensor or an array: one number for each environment."""
    return hasattr(value, "ndim") and value.ndim == 1


def _one_of(name: str, value: Any, allowed: Any) -> None:
    if not isinstance(value, str | None) or value not in allowed:
        words = [word for word in allowed if word is not None]
        raise ValueError(f"{name}={value!r} is not an option: {nearest(str(value), words)}")


def _ends(name: str, value: Any) -> tuple[Any, Any]:
    """Both ends of a range that is given as a number or as two."""
    pair = value if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or not all(_is_number(end) for end in pair):
        raise ValueError(f"{name}={value!r}: give a number, or [least, greatest]")
    if not all(-math.inf < end < math.inf for end in pair):  # not a number is neither
        raise ValueError(f"{name}={value!r}: give a finite number, or [least, greatest]")
    return pair[0], pair[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_probability(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
