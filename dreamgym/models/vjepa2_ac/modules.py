"""The predictor of V-JEPA 2-AC, and the poses of a robot's hand."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.nn.layers import LayerNorm, Linear, autocast_disabled
from dreamgym.models.vjepa2_ac.config import VJEPA2ACConfig

EPSILON = 1e-6
"""Added to variances in the norms of the predictor."""

BASE = 10000.0
"""Base of the frequencies of rotary positions."""

INIT_STD = 0.02

POSE = 7
"""Numbers in the pose of a robot's hand: place, angles and gripper."""


class Rotary(nn.Module):
    """Rotates queries and keys by their places in time, height and width.

    A third of a head each, rounded down to an even width, is for time, height and width; numbers
    that are left over are not rotated. Tokens of action and vectors are rotated by time alone.

    As in the published model, the frequencies of a third are not those of pairs: they are listed
    twice, one list after the other, while pairs are neighbours. So the two numbers of a pair are
    rotated by different angles. Correct frequencies would not fit the published weights.

    Args:
        head: width of a head.
        grid: patches along a side of a frame.
        extra: tokens of a frame before its patches.
        frames: frames in a window.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head: int, grid: int, extra: int, frames: int) -> None:
        super().__init__()
        part = 2 * (head // 3 // 2)
        half = part // 2
        frequencies = BASE ** (-torch.arange(half) / half)
        frequencies = torch.cat([frequencies, frequencies])
        row, column = (places.flatten() for places in _grid_places(grid))
        zeros = torch.zeros(extra, dtype=row.dtype)
        places = torch.stack([torch.cat([zeros, row]), torch.cat([zeros, column])], -1)
        places = places.repeat(frames, 1)
        time = torch.arange(frames).repeat_interleave(extra + grid * grid)
        angles = torch.cat([time.unsqueeze(-1), places], -1).unsqueeze(-1) * frequencies
        angles = F.pad(angles.flatten(1), (0, head - 3 * part))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rotate x (B, heads, N, head), of the first N tokens of a window."""
        pairs = x.unflatten(-1, (-1, 2))
        turned = torch.stack([-pairs[..., 1], pairs[..., 0]], -1).flatten(-2)
        count = x.shape[-2]
        return (x * self.cos[:count] + turned * self.sin[:count]).to(x.dtype)


def _grid_places(grid: int) -> tuple[Tensor, ...]:
    """Return the row and the column of each patch, (grid, grid) each."""
    return torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")


class Attention(nn.Module):
    """Self-attention with rotary positions, within a frame and to the frames before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.joint = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor) -> Tensor:
        """Attend within x (B, N, width) where mask (N, N) is true."""
        joint = self.joint(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = (leaf.transpose(1, 2) for leaf in joint.unbind(2))
        mixed = F.scaled_dot_product_attention(rotary(query), rotary(key), value, mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP, both pre-norm and residual."""

    def __init__(self, config: VJEPA2ACConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.mlp * config.width
        self.norm_attention = LayerNorm(width, eps=EPSILON)
        self.attention = Attention(width, config.heads)
        self.norm_mlp = LayerNorm(width, eps=EPSILON)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor) -> Tensor:
        """Apply the block to x (B, N, width)."""
        x = x + self.attention(self.norm_attention(x), rotary, mask)
        return x + self.mlp(self.norm_mlp(x))


class Predictor(nn.Module):
    """A transformer over the tokens of a window of frames (arXiv 2506.09985, section 3).

    A frame's tokens are the action after it, its vectors, and its patches. Tokens of a frame attend
    to each other and to those of the frames before it. The output at a patch is the same patch of
    the next frame, before its layer norm.

    Args:
        patch: numbers in a patch.
        grid: patches along a side of a frame.
        actions: numbers in an encoded action.
        vectors: numbers in the vectors; 0 for none, which leaves their token out.
        config: sizes.
    """

    def __init__(
        self, patch: int, grid: int, actions: int, vectors: int, config: VJEPA2ACConfig
    ) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Linear(patch, width)
        self.embed_action = nn.Linear(actions, width)
        self.embed_vectors = nn.Linear(vectors, width) if vectors else None
        self.embed_extrinsics = None
        if config.extrinsics:
            self.embed_extrinsics = nn.Linear(POSE - 1, width).requires_grad_(False)
        self.extra, self.tokens = 1 + bool(vectors), 1 + bool(vectors) + grid * grid
        self.rotary = Rotary(width // config.heads, grid, self.extra, config.context)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = LayerNorm(width, eps=EPSILON)
        self.project = Linear(width, patch)
        self.apply(_initialise)
        with torch.no_grad():
            for k, block in enumerate(self.blocks):
                for layer in (block.attention.out, block.mlp[-1]):  # type: ignore[union-attr, index]
                    layer.weight.div_(math.sqrt(2.0 * (k + 1)))  # type: ignore[union-attr, operator]

    def forward(self, patches: Tensor, actions: Tensor, vectors: Tensor | None) -> Tensor:
        """Predict the frame after each frame, from it and those before it.

        Args:
            patches: (B, T, patches, patch), of at most `context` frames.
            actions: (B, T, actions) encoded, the action after each frame.
            vectors: (B, T, vectors); None without them.

        Returns:
            (B, T, patches, patch) in at least float32.
        """
        parts = [self.embed_action(actions).unsqueeze(2)]
        if self.embed_vectors is not None and vectors is not None:
            parts.append(self.embed_vectors(vectors).unsqueeze(2))
        parts.append(self.embed(patches))
        x = torch.cat(parts, 2).flatten(1, 2)
        frame = torch.arange(x.shape[1], device=x.device) // self.tokens
        mask = frame.unsqueeze(-1) >= frame
        for block in self.blocks:
            x = block(x, self.rotary, mask)
        x = x.unflatten(1, (-1, self.tokens))[:, :, self.extra :]
        return self.project(self.norm(x))


def _initialise(module: nn.Module) -> None:
    """Initialise a layer as published."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        nn.init.zeros_(module.bias)


def droid_pose(pose: Tensor, action: Tensor) -> Tensor:
    """Return the pose of a robot's hand after an action, as the authors' planner computes it.

    Both are (..., 7): three numbers of place, in metres; three angles about the fixed axes x, y and
    z, in this order and in radians; and how far the gripper is closed, from 0 to 1. Places and
    grippers are added, and the action's rotation is applied after that of the pose. It is computed
    in full precision, also under autocast.
    """
    place = pose[..., :3] + action[..., :3]
    with autocast_disabled(pose):
        turned = _angles(_rotation(action[..., 3:6]) @ _rotation(pose[..., 3:6]))
    gripper = (pose[..., 6:] + action[..., 6:]).clamp(0.0, 1.0)
    return torch.cat([place, turned, gripper], -1)


def _rotation(angles: Tensor) -> Tensor:
    """Return the rotation (..., 3, 3) about the fixed axes x, y and z by angles (..., 3)."""
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _angles(rotation: Tensor) -> Tensor:
    """Return the angles (..., 3) of a rotation (..., 3, 3); the reverse of `_rotation`."""
    x = torch.atan2(rotation[..., 2, 1], rotation[..., 2, 2])
    y = torch.atan2(-rotation[..., 2, 0], torch.hypot(rotation[..., 0, 0], rotation[..., 1, 0]))
    z = torch.atan2(rotation[..., 1, 0], rotation[..., 0, 0])
    return torch.stack([x, y, z], -1)
