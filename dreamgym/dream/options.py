"""The keyword arguments of `make` and `make_vec`, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from dreamgym._settings import check_choice, nearest
from dreamgym.world.start_states import StartStates

VIEWS = ("observation", "latent")
OUTPUTS = ("numpy", "torch")
RENDER_MODES = ("rgb_array",)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AUTORESET_MODES = {
    "NextStep": AutoresetMode.NEXT_STEP,
    "SameStep": AutoresetMode.SAME_STEP,
    "Disabled": AutoresetMode.DISABLED,
}


@dataclass(frozen=True, kw_only=True)
class DreamOptions:
    """Options of a dream. Each can be given as plain JSON; some take more types in Python.

    Attributes:
        device: "auto", "cpu", "cuda", ...
        view: what the policy sees: "observation" (the real environment's space) or "latent" (the
            model's features); None for the world's default, whose policies transfer to the real
            environment without a wrapper.
        output: "numpy" or "torch", the arrays that a vector environment returns; tensors stay on
            the device.
        autoreset_mode: "NextStep", "SameStep" or "Disabled", as in Gymnasium, whose default it is.
        max_episode_steps: horizon, or [least, greatest] to draw one for each episode; None for the
            world's recommendation.
        temperature: sampling temperature > 0; above 1 the dream is more random than the model. Or
            [least, greatest] to draw one for each episode; or a tensor or array (N,), one for each
            environment.
        termination: "sample" the predicted probability, or a threshold in (0, 1] on it; None for
            the world's recommendation.
        starts: start states: "bank" (half of them starts of episodes, half from anywhere),
            "episode_starts", "anywhere" (the other half), the path of a dataset, or a mapping from
            these to weights; in Python also `StartStates` or a state with leaves (S, ...).
        render_mode: None or "rgb_array".
        dtype: dtype of matrix products, "float32", or "bfloat16" where the family supports it.
        compile: "auto" captures the step as a CUDA graph on CUDA and is eager elsewhere; True also
            compiles it with torch.compile; False does neither.
        episode_statistics: whether a vector environment's info holds the return and length of
            episodes that ended, as Gymnasium's `RecordEpisodeStatistics` writes them. That wrapper
            refuses an environment that does so itself.
        debug: on every device, refuse actions outside the space and steps after the end of an
            episode. Without it only a CPU checks, since elsewhere a check is a host sync: there
            actions are clipped to the space.
    """

    device: str = "auto"
    view: str | None = None
    output: str = "numpy"
    autoreset_mode: str = "NextStep"
    max_episode_steps: int | Sequence[int] | None = None
    temperature: float | Sequence[float] | Tensor = 1.0
    termination: str | float | None = None
    starts: str | Mapping[str, Any] | StartStates = "bank"
    render_mode: str | None = None
    dtype: str = "float32"
    compile: str | bool = "auto"
    episode_statistics: bool = False
    debug: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.autoreset_mode, AutoresetMode):
            object.__setattr__(self, "autoreset_mode", self.autoreset_mode.value)
        if self.view is not None:
            check_choice("view", self.view, VIEWS)
        check_choice("output", self.output, OUTPUTS)
        check_choice("autoreset_mode", self.autoreset_mode, AUTORESET_MODES)
        if self.render_mode is not None:
            check_choice("render_mode", self.render_mode, RENDER_MODES)
        check_choice("dtype", self.dtype, DTYPES)
        if self.compile != "auto" and not isinstance(self.compile, bool):
            raise ValueError(f"compile={self.compile!r} is not valid: give 'auto', True or False")
        if not isinstance(self.episode_statistics, bool):
            raise ValueError(
                f"episode_statistics={self.episode_statistics!r} is not valid: give True or False"
            )
        if not isinstance(self.debug, bool):
            raise ValueError(f"debug={self.debug!r} is not valid: give True or False")
        if self.max_episode_steps is not None:
            self.horizon_range(1)
        if not is_array(self.temperature):
            self.temperature_range()
        if self.termination not in ("sample", None) and not _is_probability(self.termination):
            raise ValueError(
                f"termination={self.termination!r}: give 'sample', or the probability in (0, 1] "
                "at which an episode ends"
            )

    @property
    def mode(self) -> AutoresetMode:
        """Autoreset mode as Gymnasium's enum."""
        return AUTORESET_MODES[self.autoreset_mode]

    @property
    def threshold(self) -> float | None:
        """Probability at which an episode ends; None where terminations are sampled."""
        sampled = self.termination is None or self.termination == "sample"
        return None if sampled else float(self.termination)  # type: ignore[arg-type]

    def horizon_range(self, recommended: int) -> tuple[int, int]:
        """Return the least and the greatest horizon.

        Args:
            recommended: the world's horizon, used where none is given.
        """
        limit = self.max_episode_steps
        low, high = _range_ends("max_episode_steps", recommended if limit is None else limit)
        if int(low) != low or int(high) != high or not 1 <= low <= high:
            raise ValueError(
                f"max_episode_steps={limit!r}: give an integer of at least 1, or [least, greatest]"
            )
        return int(low), int(high)

    def temperature_range(self) -> tuple[float, float]:
        """Return the least and the greatest temperature."""
        low, high = _range_ends("temperature", self.temperature)
        if not 0 < low <= high:
            raise ValueError(
                f"temperature={self.temperature!r}: give a number above 0, or [least, greatest]"
            )
        return float(low), float(high)


def parse_options(keywords: dict[str, Any]) -> DreamOptions:
    """Return the options that keyword arguments give.

    Raises:
        TypeError: unknown keyword; the message names the nearest known one.
        ValueError: value that is not allowed.
    """
    known = [field.name for field in fields(DreamOptions)]
    unknown = [name for name in keywords if name not in known]
    if unknown:
        # Python's own words: TorchRL looks for them, and leaves the argument out.
        raise TypeError(
            f"a dream got an unexpected keyword argument {unknown[0]!r}: "
            f"{nearest(unknown[0], [*known, 'world'])}"
        )
    return DreamOptions(**keywords)


def is_array(value: Any) -> bool:
    """Check whether a value is a 1-D tensor or array: one number for each environment."""
    return hasattr(value, "ndim") and value.ndim == 1


def _range_ends(name: str, value: Any) -> tuple[Any, Any]:
    """Return both ends of a range, which is given as one number or two."""
    pair = value if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or not all(_is_number(end) for end in pair):
        raise ValueError(f"{name}={value!r}: give a number, or [least, greatest]")
    if not all(-math.inf < end < math.inf for end in pair):  # NaN fails, too
        raise ValueError(f"{name}={value!r}: give a finite number, or [least, greatest]")
    return pair[0], pair[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_probability(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1
