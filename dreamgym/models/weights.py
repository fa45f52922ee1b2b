"""Weights in files, compared with the network that a description stands for before it is built."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules import module as registration

from dreamgym.errors import DreamgymError, PretrainedError

Shapes = Mapping[str, tuple[int, ...]]


class NeedsWeightsError(NotImplementedError):
    """Raised on torch's meta device by a constructor that computes with values."""


OPEN_BOUNDS = {"terminal_reward_low": -math.inf, "terminal_reward_high": math.inf}
"""Bounds of an MDN-RNN's terminal rewards, which older worlds lack, where they bound nothing."""

_PARTS_PER_TENSOR, _SPARE_PARTS = 16, 256
_COPIES, _SPARE_ELEMENTS = 4, 1 << 20  # of a tensor that is registered in several places


def read_state_dict(
    path: Path, expected: str, error: type[DreamgymError] = PretrainedError
) -> dict[str, Any]:
    """Return what torch saved in a file, by its restricted loader, which executes nothing.

    Args:
        path: the file.
        expected: what it should hold, for the messages.
        error: error to raise.

    Raises:
        DreamgymError: of the given kind; it cannot be read so, or holds no dict.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as cause:
        # PyTorch's own text for what is no tensor recommends executing the file.
        unsafe = isinstance(cause, pickle.UnpicklingError)
        detail = "it is damaged, or holds more than tensors" if unsafe else str(cause)
        raise error(
            f"{path} cannot be read as tensors ({detail.splitlines()[0]}); expected {expected}"
        ) from cause
    if not isinstance(loaded, dict):
        raise error(f"{path} holds a {type(loaded).__name__}; expected {expected}")
    return loaded


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a safetensors file by name, from its header alone."""
    with safe_open(path, "pt") as file:
        names = file.keys()
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


def in_todays_layout(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a world in the layout of this version; those of today are unchanged.

    Until 0.1.0 the reward and the end bonus of an MDN-RNN were the two outputs of one network. Each
    has a network of its own now; with the same hidden layers in both they are the same function.
    The reward of a termination had no bounds.

    Args:
        weights: tensors by name; on the meta device, if only their shapes are known.
    """
    upgraded = dict(weights)
    for name in weights:
        heads, found, _ = name.partition("heads.reward.4.weight")
        if not found or f"{heads}heads.end_bonus.4.weight" in weights or len(weights[name]) != 2:
            continue
        for layer in ("0", "2", "4"):
            for kind in ("weight", "bias"):
                both = upgraded.get(f"{heads}heads.reward.{layer}.{kind}")
                if both is None:
                    continue
                one, two = (both[:1], both[1:]) if layer == "4" else (both, both.clone())
                upgraded[f"{heads}heads.reward.{layer}.{kind}"] = one
                upgraded[f"{heads}heads.end_bonus.{layer}.{kind}"] = two
    for name in [*upgraded]:
        model, found, _ = name.partition("heads.end_bonus.4.weight")
        if found:
            for key, bound in OPEN_BOUNDS.items():
                like = upgraded[name]
                upgraded.setdefault(f"{model}{key}", torch.full((), bound, device=like.device))
    return upgraded


def without_open_bounds(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without those that `in_todays_layout` adds to an older world's.

    Policies name the world that they were trained in by the checksum of its file.
    """
    kept = {}
    for name, leaf in weights.items():
        bound = OPEN_BOUNDS.get(name.rpartition(".")[2])
        if bound is None or float(leaf) != bound:
            kept[name] = leaf
    return kept


def shape_mismatch(build: Callable[[], nn.Module], shapes: Shapes) -> str:
    """Describe how the tensors of a file differ from those of a network; empty if they do not.

    The network is built on torch's meta device, which knows shapes only: a description in a file
    can stand for a network of any size. Building stops where it outgrows the file. A network that
    cannot be built there, because its constructor computes with values, is not compared further.

    Args:
        build: builds the network; what it raises passes unchanged.
        shapes: shapes of the file's tensors by name.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), _limited_size(shapes):
            state = build().state_dict()
    except _OutgrownError:
        numbers = sum(map(math.prod, shapes.values()))
        return f"the network is larger than its {len(shapes)} tensors of {numbers:,} numbers"
    except NeedsWeightsError:
        return ""
    except (NotImplementedError, RuntimeError) as error:
        if "meta" in str(error):  # torch's own
            return ""
        raise
    expected = {name: tuple(leaf.shape) for name, leaf in state.items() if isinstance(leaf, Tensor)}
    missing, unknown = sorted(expected.keys() - shapes), sorted(shapes.keys() - expected)
    if missing or unknown:
        return (
            f"{len(missing)} of {len(expected)} tensors are missing in it "
            f"({', '.join(missing[:3]) or 'none'}), and {len(unknown)} of its tensors are unknown "
            f"({', '.join(unknown[:3]) or 'none'})"
        )
    for name, shape in expected.items():
        if shapes[name] != shape:
            return f"it has {name} of shape {shapes[name]}, expected {shape}"
    return ""


def not_finite(network: nn.Module) -> str | None:
    """Return the name of a tensor with NaN, or of a parameter with an infinity; None without one.

    Buffers may hold infinities: a range without an end.
    """
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    for name, leaf in network.state_dict().items():
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            continue
        bad = ~torch.isfinite(leaf) if name in parameters else torch.isnan(leaf)
        if bad.any():
            return name
    return None


class _OutgrownError(Exception):
    """Raised where a network outgrows the file that describes it."""


@contextmanager
def _limited_size(shapes: Shapes) -> Iterator[None]:
    """Raise `_OutgrownError` inside the block if this thread builds more than a file can fill."""
    thread, parts, elements = get_ident(), 0, 0
    most_parts = _PARTS_PER_TENSOR * len(shapes) + _SPARE_PARTS
    most_elements = _COPIES * sum(map(math.prod, shapes.values())) + _SPARE_ELEMENTS

    def count(_: nn.Module, __: str, part: Any) -> None:
        nonlocal parts, elements
        if get_ident() != thread:
            return
        parts += 1
        elements += part.numel() if isinstance(part, Tensor) else 0
        if parts > most_parts or elements > most_elements:
            raise _OutgrownError

    with ExitStack() as stack:
        for register in (
            registration.register_module_parameter_registration_hook,
            registration.register_module_buffer_registration_hook,
            registration.register_module_module_registration_hook,
        ):
            stack.callback(register(count).remove)
        yield
