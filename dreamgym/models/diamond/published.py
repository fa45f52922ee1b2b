"""Load the published weights of DIAMOND (github.com/eloialonso/diamond) as a `DIAMOND`.

A file is the state dict of an agent, saved by torch or as safetensors. Nothing in it is executed:
torch's restricted loader unpickles it, and only tensors in the table of names are copied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dreamgym._files import local_path
from dreamgym.errors import PretrainedError
from dreamgym.models.diamond.config import PRESETS, DIAMONDConfig
from dreamgym.models.diamond.model import DIAMOND
from dreamgym.models.weights import read_state_dict

ACTOR = "actor_critic."
"""Names of the agent's policy and value, which are left out."""

_BLOCK = (
    (r"\.project\.", ".proj."),
    (r"\.attention\.norm\.", ".attn.norm.norm."),
    (r"\.attention\.joint\.", ".attn.qkv_proj."),
    (r"\.attention\.out\.", ".attn.out_proj."),
)

# Replacements that turn names of a `DIAMOND` into published ones, in this order.
_DENOISER = (
    *_BLOCK,
    (r"^denoiser\.", "denoiser.inner_model."),
    (r"\.noise\.weight$", ".noise_emb.weight"),
    (r"\.action\.weight$", ".act_emb.0.weight"),
    (r"\.condition\.", ".cond_proj."),
    (r"\.inwards\.", ".conv_in."),
    (r"\.outwards\.", ".conv_out."),
    (r"inner_model\.norm\.", "inner_model.norm_out.norm."),
    (r"\.down\.(\d+)\.", r".d_blocks.\1.resblocks."),
    (r"\.up\.(\d+)\.", r".u_blocks.\1.resblocks."),
    (r"\.middle\.", ".mid_blocks.resblocks."),
    (r"\.shrink\.(\d+)\.", r".downsamples.\1.conv."),
    (r"\.grow\.(\d+)\.", r".upsamples.\1."),
)
_OUTCOMES = (
    *_BLOCK,
    (r"^outcomes\.", "rew_end_model."),
    (r"\.action\.weight$", ".act_emb.weight"),
    (r"\.inwards\.", ".encoder.conv_in."),
    (r"\.levels\.(\d+)\.", r".encoder.blocks.\1.resblocks."),
    (r"\.shrink\.(\d+)\.", r".encoder.downsamples.\1.conv."),
    (r"\.trunk\.", ".head."),
)


def load_diamond(
    path: str | Path,
    observation_space: gym.Space,
    action_space: gym.Space,
    config: DIAMONDConfig | None = None,
) -> DIAMOND:
    """Load published weights; `dreamgym.fitting.from_model` makes a world of the model.

    The policy in the file is left out. Rewards of dreams are those of the authors, signs.

    Args:
        path: file of an agent's state dict, such as `Breakout.pt`, or a safetensors file with the
            same names.
        observation_space: space of uint8 images (height, width, 3).
        action_space: the Discrete space of the game's actions.
        config: sizes of the networks; None for the published ones.

    Returns:
        The model in eval mode.

    Raises:
        PretrainedError: the file cannot be read, or a tensor is missing, unknown or of another
            shape, as with another number of actions.
        TypeError: a space cannot be modelled, or the actions are not Discrete.
    """
    if not isinstance(action_space, gym.spaces.Discrete):
        raise TypeError(f"published weights have Discrete actions, got {action_space}")
    file = local_path(path, PretrainedError)
    loaded = _read(file)
    config = config or PRESETS["diamond"]
    with torch.random.fork_rng(devices=[]):
        model = DIAMOND(observation_space, action_space, config)
    expected = _as_published(model, len(config.reward_channels))
    unknown = [name for name in loaded if name not in expected and not name.startswith(ACTOR)]
    missing = [name for name in expected if name not in loaded]
    if missing or unknown:
        raise PretrainedError(
            f"{file} does not hold the {len(expected)} tensors of this DIAMOND: {len(missing)} are "
            f"missing ({', '.join(missing[:3]) or 'none'}), {len(unknown)} are unknown "
            f"({', '.join(unknown[:3]) or 'none'}); expected an agent's state dict"
        )
    for name, destinations in expected.items():
        _copy(file, name, loaded[name], destinations)
    return model.eval().requires_grad_(False)


def _read(file: Path) -> Mapping[str, Any]:
    if file.suffix != ".safetensors":
        loaded = read_state_dict(file, "an agent's state dict")
        return {str(name): value for name, value in loaded.items()}
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise PretrainedError(f"{file} is not a safetensors file ({error})") from error


def _as_published(model: DIAMOND, levels: int) -> dict[str, list[Tensor]]:
    """Return views of the model's tensors, in the published shapes, by their published names.

    The head of the other network has one matrix for rewards and terminations; its LSTM has two
    biases, of which the second is added to the first.

    Args:
        model: the model.
        levels: levels of the network for rewards and terminations; its middle counts as one more.
    """
    views: dict[str, list[Tensor]] = {}
    for name, part, table in (
        ("denoiser", model.denoiser, _DENOISER),
        ("outcomes", model.outcomes, _OUTCOMES),
    ):
        for key, leaf in part.state_dict(prefix=f"{name}.").items():
            if re.match(r"outcomes\.(lstm|reward|termination)\.", key):
                continue
            theirs = re.sub(r"^outcomes\.middle\.", f"outcomes.levels.{levels}.", key)
            for pattern, replacement in table:
                theirs = re.sub(pattern, replacement, theirs)
            # An embedding is the transpose of a linear layer; their frequencies are a row.
            if ".act_emb." in theirs:
                leaf = leaf.T
            views[theirs] = [leaf[None] if ".noise_emb." in theirs else leaf]
    lstm, head = model.outcomes.lstm, model.outcomes
    last = head.reward.net[-1]
    views |= {
        "rew_end_model.lstm.weight_ih_l0": [lstm.weight_ih.data],
        "rew_end_model.lstm.weight_hh_l0": [lstm.weight_hh.data],
        "rew_end_model.lstm.bias_ih_l0": [lstm.bias.data],
        "rew_end_model.lstm.bias_hh_l0": [lstm.bias.data],
        "rew_end_model.head.2.weight": [last.weight.data, head.termination.weight.data],  # type: ignore[list-item]
    }
    return views


def _copy(file: Path, name: str, value: Any, destinations: list[Tensor]) -> None:
    """Copy one published tensor into the views of the model that it belongs to.

    Raises:
        PretrainedError: it is not a tensor of the shape of the views, one above the other.
    """
    rows = [len(view) for view in destinations]
    shape = (sum(rows), *destinations[0].shape[1:])
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise PretrainedError(
            f"{file}: {name} is {found}, expected {shape}; check the config and the number of "
            "actions"
        )
    for view, part in zip(destinations, value.split(rows), strict=True):
        if name.endswith("bias_hh_l0"):  # after bias_ih_l0, in the order of the table
            view.add_(part)
        else:
            view.copy_(part)
