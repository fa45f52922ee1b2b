"""Operators of torch that models use and exchange formats do not have, in terms of simpler ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dreamgym.models.nn.distributions import SMALLEST_UNIFORM, polynomial_normal


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return functions by operator, as `torch.export.ExportedProgram.run_decompositions` takes."""
    return {torch.ops.aten.special_ndtri.default: _normal_quantile}


def _normal_quantile(uniform: Tensor) -> Tensor:
    """Return the normal quantile (inverse CDF) to float32 accuracy; ONNX has none."""
    return polynomial_normal(uniform.clamp(SMALLEST_UNIFORM, 1.0 - SMALLEST_UNIFORM * 2))
