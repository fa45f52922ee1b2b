"""Usage of the codes of discrete bottlenecks, such as tokens and latent actions."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dreamgym.metrics.context import Figures, MetricContext
from dreamgym.metrics.windows import uniform_noise
from dreamgym.models.base import CodeDiagnostic

MAX_WINDOWS = 64
"""Largest number of windows: dreams of images are slow."""


def code_use(context: MetricContext) -> Figures:
    """Return the figures of `code_figures` on held-out windows; none for a model without codes."""
    few = torch.arange(min(MAX_WINDOWS, len(context.windows.mask)))
    segment, noise_dim = context.windows.take(few).segment, context.model.noise_dim
    count, length = segment.mask.shape
    noise = uniform_noise(context.rng, (count, length + 1, noise_dim), segment.mask.device)
    return code_figures(context.model.diagnostics(segment, noise).codes)


def code_figures(codes: Mapping[str, CodeDiagnostic]) -> Figures:
    """Return perplexity and effect of codes, JSON-plain, each with the name of the codes.

    `code_perplexity` is the exponential of the entropy of their usage, the effective number of
    codes in use. `code_effect` is the PSNR of dreamt frames under the codes inferred from the real
    frames, minus that under random codes, in dB (Delta_t PSNR, arXiv 2402.15391, section 3).

    Args:
        codes: diagnostics by the name of the codes.
    """
    figures: Figures = {}
    for name, code in codes.items():
        suffix = f"_{name}" if name else ""
        figures["code_perplexity" + suffix] = float(code.perplexity)
        if code.effect is not None and len(code.effect):
            figures["code_effect" + suffix] = float(code.effect.mean())
    return figures
