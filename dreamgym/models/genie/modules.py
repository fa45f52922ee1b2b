"""Modules of Genie: transformers over the tokens of frames, latent actions, and the dynamics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.genie.config import GenieConfig
from dreamgym.models.nn.batch_norm import BatchNorm
from dreamgym.models.nn.block_causal import EPSILON, TOKEN_STD, Block, Keys, newest, token
from dreamgym.models.nn.conditional_conv import Blocks
from dreamgym.models.nn.dense import linear
from dreamgym.models.nn.image_tokens import Residual, TokeniserObjective, conv, last, pixel_error
from dreamgym.models.nn.layers import RMSNorm, at_least_float32
from dreamgym.models.nn.quantisers import Quantised, quantisation_terms, quantise, quantiser
from dreamgym.models.reduction import masked_mean

MLP = 2
"""Width of the blocks' hidden layers, which are gated, as a multiple of the tokens'."""


class FrameTransformer(nn.Module):
    """Attention among the tokens of a frame, and of each to its like in the frames before.

    It is the ST-transformer of arXiv 2402.15391 (section 2), with attention over time to the last
    `context` frames, by distance.

    A frame has one more token, the last, which sees all others and is seen by none in its frame.

    Args:
        config: sizes.
    """

    seen: Tensor

    def __init__(self, config: GenieConfig) -> None:
        super().__init__()
        self.context, width = config.context, config.width
        places = config.tokens + 1
        self.place = token(places, width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, MLP * width, time=True) for _ in range(config.blocks)
        )
        self.norm = RMSNorm(width, eps=EPSILON)
        self.register_buffer("seen", torch.arange(places) < config.tokens, persistent=False)

    def forward(
        self, x: Tensor, known: Tensor, before: list[Keys] | None = None
    ) -> tuple[Tensor, list[Keys]]:
        """Apply the transformer to T frames.

        Args:
            x: (B, T, N + 1, width) embedded tokens, without positions.
            known: (B, M) bool, false for frames that are not there.
            before: keys and values of M - T frames before, for each block; None for none.

        Returns:
            The outputs, and keys and values of all M frames.
        """
        x, kept = x + self.place, []
        # Not a buffer: with many tokens it would be larger than all weights of a small model.
        allowed = self.seen | ~self.seen.unsqueeze(1)
        given: list[Keys | None] = [None] * len(self.blocks) if before is None else [*before]
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        for block, keys in zip(blocks, given, strict=True):
            x = block.space(x, allowed)
            if block.time is not None:
                x, keys = block.time(x, self.context, keys, known)
                kept.append(keys)
            x = block.finish(x)
        return self.norm(x), kept


class LatentActions(nn.Module):
    """The latent action model: what changed between frames, as one of a few codes.

    The encoder sees the next frame and those before it, and the decoder predicts the next frame
    from those before and the code. So the code is what helps most in the knowledge of the past.
    Neither sees a real action. Vectors are batch-normalised before they become codes, so that no
    code begins unused.

    The authors' is a transformer (arXiv 2402.15391, section 2.1). This is a network of
    convolutions, whose features are the same wherever something happens; the code's vector follows
    from their mean and their maximum, so that a code hardly says where things happen.

    Args:
        channels: channels of the images.
        config: sizes.

    Attributes:
        count: number of latent actions.
    """

    def __init__(self, channels: int, config: GenieConfig) -> None:
        super().__init__()
        width, blocks, patch = config.action_width, config.action_blocks, config.action_patch
        frame, before = channels * patch**2, config.action_frames
        self.quantiser = quantiser(config.latent_actions)
        self.count = self.quantiser.count
        self.cut = nn.PixelUnshuffle(patch)
        self.encoder = nn.Sequential(
            conv((before + 1) * frame, width),
            *(Residual(width, width) for _ in range(blocks)),
            *last(width, width),
        )
        self.narrow = nn.Linear(2 * width, self.quantiser.width)
        self.balance = BatchNorm(self.quantiser.width)
        self.enter = conv(before * frame, width)
        self.decoder = Blocks([width] * blocks, [width] * blocks, self.quantiser.width)
        self.leave = nn.Sequential(*last(width, frame), nn.PixelShuffle(patch))

    def vectors(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the vectors (M, n), before quantisation, of the last changes.

        Args:
            images: (M, frames + 1, channels, side, side) in [0, 1], oldest first.
            mask: (M,) bool, which rows the batch norm counts; None takes its running statistics.
        """
        grid = self.encoder(self._enter(images)).flatten(2)
        pooled = torch.cat([grid.mean(2), grid.amax(2)], 1)
        return self.balance(at_least_float32(self.narrow(pooled)), mask)

    @torch.no_grad()
    def infer(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the latent actions (M,) int64 of the last changes; see `vectors`."""
        quantised: Quantised = self.quantiser(self.vectors(images, mask))
        return quantised.tokens

    def predict(self, images: Tensor, codes: Tensor) -> Tensor:
        """Return the next frames (M, channels, side, side), around [0, 1].

        Args:
            images: (M, frames, channels, side, side) in [0, 1], oldest first.
            codes: (M, n) vectors of the codes.
        """
        grid = self.decoder(self.enter(self._enter(images)), codes)
        return images[:, -1] + at_least_float32(self.leave(grid)) / 2

    def terms(self, images: Tensor, weights: TokeniserObjective) -> dict[str, Tensor]:
        """Return the terms of the loss.

        Args:
            images: (M, frames + 1, channels, side, side) in [0, 1], oldest first.
            weights: weights of the pixels' errors.
        """
        everywhere = torch.ones(len(images), dtype=torch.bool, device=images.device)
        z = self.vectors(images, everywhere)
        quantised = quantise(self.quantiser, z, follow=self.training)
        predicted = self.predict(images[:, :-1], quantised.vectors)
        parts = {"latent_actions": pixel_error(predicted, images[:, -1], weights)}
        for name, values in quantisation_terms(self.quantiser, quantised).items():
            parts[f"action_{name}"] = values
        return {name: masked_mean(values, everywhere) for name, values in parts.items()}

    def _enter(self, images: Tensor) -> Tensor:
        """Return the patches of frames side by side, (M, numbers, rows, columns), in [-1, 1]."""
        patches: Tensor = self.cut((2 * images - 1).flatten(1, 2))
        return patches


class Dynamics(nn.Module):
    """Predicts masked tokens of a frame, given the others, the frames before and latent actions.

    Embeddings of latent actions are added to those of the tokens, as in arXiv 2402.15391 (section
    2.1). A summary token sees the real actions, too, where they are known; no other does.

    Args:
        codes: number of different tokens; the next number is the mask token.
        latent_actions: number of latent actions; the next number is none, at an episode's first.
        action: numbers of an encoded real action.
        config: sizes.
    """

    def __init__(self, codes: int, latent_actions: int, action: int, config: GenieConfig) -> None:
        super().__init__()
        self.context, width = config.context, config.width
        self.mask_token = codes
        self.embed = nn.Embedding(codes + 1, width)
        self.embed_latent = nn.Embedding(latent_actions + 1, width)
        self.embed_action = nn.Linear(action, width, bias=False)
        self.transformer = FrameTransformer(config)
        # All tokens are about equally likely at first.
        self.leave = linear(width, codes)
        nn.init.normal_(self.leave.weight, std=TOKEN_STD)

    def forward(
        self,
        tokens: Tensor,
        latents: Tensor,
        actions: Tensor,
        known: Tensor,
        before: list[Keys] | None = None,
    ) -> tuple[Tensor, list[Keys]]:
        """Apply the transformer to T frames.

        Args:
            tokens: (B, T, N), some of them masked.
            latents: (B, T), the latent action that led to each frame.
            actions: (B, T, action), the encoded real one.
            known: (B, M) bool, false for frames that are not there.
            before: keys and values of M - T frames before.

        Returns:
            The outputs (B, T, N + 1, width), and keys and values of all M frames.
        """
        embedded = self.embed(tokens.long())
        summary = self.embed_action(actions).to(embedded.dtype).unsqueeze(2)
        latent = self.embed_latent(latents.long()).unsqueeze(2)
        outputs: tuple[Tensor, list[Keys]] = self.transformer(
            torch.cat([embedded, summary], 2) + latent, known, before
        )
        return outputs

    def logits(self, outputs: Tensor) -> Tensor:
        """Return the logits (..., N, codes) of the tokens, for outputs (..., N + 1, width)."""
        return at_least_float32(self.leave(outputs[..., :-1, :]))

    def of_each(self, keys: list[Keys]) -> list[Keys]:
        """Return for each frame but the first the keys and values of those before it, as rows.

        Args:
            keys: keys and values of T frames, (B, S, heads, T, n).

        Returns:
            (B x (T - 1), S, heads, context, n); zeros before the first frame.
        """
        return [(self._windows(key), self._windows(value)) for key, value in keys]

    def _windows(self, leaf: Tensor) -> Tensor:
        padded = F.pad(leaf, (0, 0, self.context, 0))
        windows = padded.unfold(3, self.context, 1)[:, :, :, 1:-1]
        return windows.permute(0, 3, 1, 2, 5, 4).flatten(0, 1)

    def known_to_each(self, known: Tensor) -> Tensor:
        """Return (B x (T - 1), context + 1) whether the frames before are there, and its own.

        Args:
            known: (B, T) bool, whether T frames are there.
        """
        windows = F.pad(known, (self.context, 0), value=False).unfold(1, self.context, 1)[:, 1:-1]
        return F.pad(windows.flatten(0, 1), (0, 1), value=True)

    def kept(self, keys: list[Keys]) -> list[Keys]:
        """Return the keys and values of the last `context` frames."""
        return [newest(each, self.context) for each in keys]


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the cross-entropy (...) of classes (...) under logits (..., K)."""
    log_probabilities = at_least_float32(logits).log_softmax(-1)
    return -log_probabilities.gather(-1, classes.unsqueeze(-1)).squeeze(-1)
