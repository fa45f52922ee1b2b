"""A tiny random Cosmos 3 in the folder of a diffusers pipeline."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from importlib.util import find_spec
from typing import Any

import pytest
import torch

INSTALLED = all(map(find_spec, ("diffusers", "accelerate", "transformers")))
"""Whether there are the libraries to make it with."""

REASON = "diffusers is not installed: pip install 'dreamgym[cosmos]'"

SIDE = 32
"""Pixels to a side of a latent, twice those of the published pipelines: the smallest canvas of 256
pixels then has 64 latents, and one block takes 50 ms."""

BLOCK, ACTION = 4, 2
"""Actions of the shortest block, and numbers in one of the domain `pusht`."""

SPECIAL_TOKENS = ("<unk>", "<eos>", "<|vision_start|>")


@functools.cache
def folder(seed: int = 0) -> str:
    """Return the folder of a saved pipeline; it is deleted at the end of the process."""
    if not INSTALLED:
        pytest.skip(REASON)
    path = tempfile.mkdtemp(prefix="dreamgym-cosmos3-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    pipeline(seed).save_pretrained(path)
    return path


def pipeline(seed: int = 0) -> Any:
    """Return a random pipeline, to which all texts are one token, so that actions count."""
    import diffusers

    patch, channels = SIDE // 4, 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = diffusers.Cosmos3OmniTransformer(
            head_dim=6,
            hidden_act="relu2",
            hidden_size=6,
            intermediate_size=12,
            latent_channel=channels,
            latent_patch_size=1,
            num_attention_heads=1,
            num_hidden_layers=1,
            num_key_value_heads=1,
            patch_latent_dim=channels,
            qk_norm_for_text=False,
            rope_axes_dim=[1, 1, 1],
            vocab_size=64,
            action_gen=True,
            action_dim=10,
        )
        vae = diffusers.AutoencoderKLWan(
            base_dim=3,
            z_dim=channels,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            patch_size=patch,
            in_channels=3 * patch**2,
            out_channels=3 * patch**2,
            scale_factor_spatial=SIDE,
            latents_mean=[0.0] * channels,
            latents_std=[1.0] * channels,
        )
        # Untrained weights would make all frames alike, whatever the actions.
        for parameter in (*transformer.parameters(), *vae.decoder.parameters()):
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter)
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    return diffusers.Cosmos3OmniPipeline(
        transformer=transformer,
        text_tokenizer=_tokenizer(),
        vae=vae,
        scheduler=scheduler,
        enable_safety_checker=False,
    )


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {word: k for k, word in enumerate(SPECIAL_TOKENS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
    made.add_special_tokens({"additional_special_tokens": ["<|vision_start|>"]})
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return made
