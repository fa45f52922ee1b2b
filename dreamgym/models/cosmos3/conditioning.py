"""diffusers' pipeline with start noise from outside; imported only once a pipeline is loaded.

It is a module of its own, so that models can be pickled without importing diffusers with dreamgym.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Cosmos3OmniPipeline
from torch import Tensor


class ConditionedPipeline(Cosmos3OmniPipeline):
    """Cosmos 3 whose `latents` are the start noise of the frames after the first.

    In diffusers' own pipeline they replace the encoded first frame, too.
    """

    def prepare_latents(
        self, *, latents: Tensor, generator: torch.Generator | None = None, **others: Any
    ) -> tuple[Any, ...]:
        """Encode the first frame, and put the noise behind it.

        Args:
            latents: (1, channels, T, height, width) standard normal numbers.
            generator: unused; all randomness is in `latents`.
            **others: see `Cosmos3OmniPipeline.prepare_latents`.

        Raises:
            ValueError: the pipeline has shrunk the frames, so the noise does not fit them.
        """
        # The noise that this draws is overwritten; it must not come from the global generator.
        unused = torch.Generator().manual_seed(0)
        prepared = super().prepare_latents(latents=None, generator=unused, **others)
        start: Tensor = prepared[0]
        if start[:, :, 1:].shape != latents.shape:
            raise ValueError(
                f"frames do not fit into the canvas of tier={others['action'].resolution_tier}: "
                f"the pipeline shrinks them to {start.shape[-2]} by {start.shape[-1]} latents, "
                f"expected {latents.shape[-2]} by {latents.shape[-1]}; pass a larger tier, or a "
                "smaller image_size"
            )
        start[:, :, 1:] = latents
        return (start, *prepared[1:])
