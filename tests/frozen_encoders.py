"""Tiny random vision models in the hub's format, for families with a frozen encoder."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from importlib.util import find_spec

import pytest
import torch

INSTALLED = find_spec("transformers") is not None
"""Whether there is a library to make them with."""

SIDE, PATCH = 28, 14
"""Pixels of a side of the images that they take, and of a patch: four patches."""

SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": PATCH}


@functools.cache
def folder(kind: str, seed: int = 0) -> str:
    """Return the folder of a saved model; it is deleted at the end of the process.

    Args:
        kind: "dinov2", "vit", whose positions are those of one size of image, or "vjepa2".
        seed: seed of the weights.
    """
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install 'dreamgym[transformers]'"
    )
    path = tempfile.mkdtemp(prefix=f"dreamgym-{kind}-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "dinov2":
            config = transformers.Dinov2Config(image_size=SIDE, mlp_ratio=2, **SIZES)
            model = transformers.Dinov2Model(config)
        elif kind == "vit":
            config = transformers.ViTConfig(image_size=SIDE, intermediate_size=48, **SIZES)
            model = transformers.ViTModel(config, add_pooling_layer=False)
        else:
            config = transformers.VJEPA2Config(
                crop_size=SIDE,
                frames_per_clip=2,
                pred_hidden_size=24,
                pred_num_attention_heads=2,
                pred_num_hidden_layers=1,
                **SIZES,
            )
            model = transformers.VJEPA2Model(config)
        # Untrained weights of 0.02 would make all images alike.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(path)
    return path
