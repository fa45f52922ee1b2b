"""Load the published predictor of V-JEPA 2-AC (github.com/facebookresearch/vjepa2).

A file is a checkpoint of the authors, saved by torch, or the predictor's state dict as safetensors.
Nothing in it is executed: torch's restricted loader unpickles it, and only tensors in the table of
names are copied. The encoder in a checkpoint is not read: it is the frozen V-JEPA 2 that the
transformers library has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dreamgym._files import local_path
from dreamgym.errors import PretrainedError
from dreamgym.models.nn.reward_head import silence_heads
from dreamgym.models.vjepa2_ac.config import PRESETS, VJEPA2ACConfig
from dreamgym.models.vjepa2_ac.model import VJEPA2AC
from dreamgym.models.weights import read_state_dict

# Replacements that turn names of a `Predictor` into published ones, in this order.
_NAMES = (
    (r"^embed\.", "predictor_embed."),
    (r"^embed_action\.", "action_encoder."),
    (r"^embed_vectors\.", "state_encoder."),
    (r"^embed_extrinsics\.", "extrinsics_encoder."),
    (r"^norm\.", "predictor_norm."),
    (r"^project\.", "predictor_proj."),
    (r"^blocks\.", "predictor_blocks."),
    (r"\.norm_attention\.", ".norm1."),
    (r"\.norm_mlp\.", ".norm2."),
    (r"\.attention\.joint\.", ".attn.qkv."),
    (r"\.attention\.out\.", ".attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.2\.", ".mlp.fc2."),
)

_WRAPPED = re.compile(r"^(module\.|backbone\.)+")
"""What data parallelism and wrappers put in front of the authors' names."""


def load_vjepa2_ac(
    path: str | Path,
    observation_space: gym.Space,
    action_space: gym.Space,
    config: VJEPA2ACConfig | None = None,
) -> VJEPA2AC:
    """Load a published predictor; `dreamgym.fitting.from_model` makes a world of the model.

    The file has no rewards and terminations: dreams have zeros and do not end, until a fit that
    continues from the model has trained the heads. Plan towards a goal (`GoalReward`), or wrap it
    in known ones.

    Args:
        path: checkpoint such as `vjepa2-ac-vitg.pt`, or a safetensors file with the names of the
            predictor.
        observation_space: Dict of a colour image and a pose of 7 numbers, see `droid_pose`.
        action_space: Box of changes of the pose.
        config: sizes, and the name or folder of the encoder; None for the published ones.

    Returns:
        The model in eval mode.

    Raises:
        PretrainedError: the file cannot be read, or a tensor is missing, unknown or of another
            shape; or the encoder cannot be loaded.
        TypeError: a space cannot be modelled.
    """
    file = local_path(path, PretrainedError)
    loaded = {_WRAPPED.sub("", name): value for name, value in _read(file).items()}
    # Nor does the file have a decoder, or the range of its data.
    config = replace(config or PRESETS["vjepa2-ac"], decoder=False, range_margin=None)
    with torch.random.fork_rng(devices=[]):
        model = VJEPA2AC(observation_space, action_space, config)
    expected = published_names(model.predictor)
    unknown = [name for name in loaded if name not in expected]
    missing = [name for name in expected if name not in loaded]
    if missing or unknown:
        raise PretrainedError(
            f"{file} does not hold the {len(expected)} tensors of this predictor: {len(missing)} "
            f"are missing ({', '.join(missing[:3]) or 'none'}), {len(unknown)} are unknown "
            f"({', '.join(unknown[:3]) or 'none'}); expected a checkpoint of V-JEPA 2-AC"
        )
    for name, destination in expected.items():
        value = loaded[name]
        if not isinstance(value, Tensor) or value.shape != destination.shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise PretrainedError(
                f"{file}: {name} is {found}, expected {tuple(destination.shape)}; check the config "
                "and the spaces"
            )
        destination.copy_(value)
    silence_heads(model.reward, model.termination)
    return model.eval().requires_grad_(False)


def published_names(predictor: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a predictor by their published names."""
    found = {}
    for name, leaf in predictor.state_dict().items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        found[name] = leaf
    return found


def _read(file: Path) -> Mapping[str, Any]:
    """Return the predictor's tensors in a file by their names there."""
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise PretrainedError(f"{file} is not a safetensors file ({error})") from error
    loaded = read_state_dict(file, "a checkpoint with the state dict of a predictor")
    predictor = loaded.get("predictor", loaded)
    if not isinstance(predictor, dict):
        raise PretrainedError(
            f"{file} holds a {type(predictor).__name__} as predictor; expected its state dict"
        )
    return {str(name): value for name, value in predictor.items()}
