"""The frozen pipeline of the diffusers library that predicts frames."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dreamgym.errors import PretrainedError
from dreamgym.models.cosmos3.config import Cosmos3Config
from dreamgym.models.nn.distributions import quick_normal
from dreamgym.models.nn.layers import autocast_disabled
from dreamgym.models.nn.pretrained import Frozen
from dreamgym.models.splitmix import uniforms

COLOURS = 3

LICENCES = dict.fromkeys(("nvidia/Cosmos3-Nano", "nvidia/Cosmos3-Super"), "OpenMDW-1.1")
"""Licences of the published weights, as their model cards name them."""

UNKNOWN_LICENCE = "licence unknown, see the model's card"

_LICENCE = re.compile(r"^(license_name|license):\s*[\"']?([^\s\"']+)", re.MULTILINE)
"""A licence in the metadata of a model's card."""


class Described(NamedTuple):
    """What the files of a pipeline say before its weights are read.

    Attributes:
        resolved: the name with the exact revision, where it is known.
        licence: licence of the weights.
        action_size: numbers in an action of the domain.
        spatial: pixels to a side of a latent.
        temporal: frames in a latent; the first frame has one of its own.
        channels: channels of a latent.
    """

    resolved: str
    licence: str
    action_size: int
    spatial: int
    temporal: int
    channels: int


def describe(config: Cosmos3Config) -> Described:
    """Read the description of a pipeline.

    Raises:
        PretrainedError: diffusers is not installed, there is no such pipeline, or it has no actions
            of this domain.
        ValueError: there is no such domain, tier or view.
    """
    library = _diffusers(config.pipeline)
    # Its constructor knows the domains and their widths, and the tiers.
    condition = library.CosmosActionCondition(
        mode="policy",
        chunk_size=1,
        domain_name=config.domain,
        resolution_tier=config.tier,
        image=torch.zeros(COLOURS, 1, 1, device="cpu"),
    )
    action_size = int(condition.raw_action_dim)
    base, revision = _split(config.pipeline)
    where = {"revision": revision, "return_commit_hash": True}
    with _loading(config.pipeline):
        transformer, commit = library.Cosmos3OmniTransformer.load_config(
            base, subfolder="transformer", **where
        )
        vae, _ = library.AutoencoderKLWan.load_config(base, subfolder="vae", **where)
    if not transformer.get("action_gen"):
        raise PretrainedError(
            f"the pipeline {config.pipeline} was not trained with actions (action_gen is not set); "
            "pass one that was, such as nvidia/Cosmos3-Nano"
        )
    if action_size > transformer["action_dim"]:
        raise PretrainedError(
            f"actions of domain={config.domain!r} have {action_size} numbers, and those of the "
            f"pipeline {config.pipeline} at most {transformer['action_dim']}; pass another domain "
            "or pipeline"
        )
    return Described(
        resolved=f"{base}@{commit}" if commit else base,
        licence=_licence(base),
        action_size=action_size,
        # Where a file leaves them out, diffusers' own defaults hold.
        spatial=int(vae.get("scale_factor_spatial", 8)),
        temporal=int(vae.get("scale_factor_temporal", 4)),
        channels=int(vae.get("z_dim", 16)),
    )


class FrozenPipeline(Frozen):
    """A frozen Cosmos 3 that predicts the frame after a block of actions.

    On torch's meta device no weights are read.

    Args:
        config: which pipeline, and its inputs.
        described: what its files say.

    Raises:
        PretrainedError: the weights or the guardrail cannot be loaded.
    """

    pipeline: Any

    def __init__(self, config: Cosmos3Config, described: Described) -> None:
        pipeline = networks = None
        if torch.get_default_device().type != "meta":
            pipeline = _load(config)
            networks = nn.ModuleDict({"transformer": pipeline.transformer, "vae": pipeline.vae})
        super().__init__(networks, described.resolved)
        self.pipeline, self.config, self.described = pipeline, config, described

    @torch.no_grad()
    def predict(self, frame: Tensor, actions: Tensor, key: Tensor, scale: Tensor) -> Tensor:
        """Return the last frame of a block, (3, height, width) bytes.

        Args:
            frame: (3, height, width) bytes, the frame before the block.
            actions: (k, D) raw actions, one for each frame of the block.
            key: () int64 key of the start noise.
            scale: () standard deviation of the start noise, 1 as trained.

        Raises:
            ValueError: frames do not fit into the canvas, or the guardrail refuses them.
        """
        config, described = self.config, self.described
        block, size = len(actions), frame.shape[-2:]
        height, width = (side // described.spatial for side in size)
        shape = (1, described.channels, block // described.temporal, height, width)
        noise = scale * quick_normal(uniforms(key, math.prod(shape)))
        condition = _diffusers(config.pipeline).CosmosActionCondition(
            mode="forward_dynamics",
            chunk_size=block,
            domain_name=config.domain,
            resolution_tier=config.tier,
            raw_actions=actions.float(),
            image=frame.float() / 255.0,
            view_point=config.view,
        )
        with autocast_disabled(frame):
            frames: Tensor = self.pipeline(
                prompt=config.prompt,
                action=condition,
                latents=noise.view(shape),
                fps=config.fps,
                num_inference_steps=config.steps,
                guidance_scale=config.guidance,
                use_system_prompt=False,  # as published for actions
                output_type="pt",
            ).video
        return (frames[-1] * 255.0).round().clamp(0.0, 255.0).to(torch.uint8)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Turn errors of diffusers and transformers into a `PretrainedError` that says what to do."""
    try:
        yield
    except PretrainedError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise PretrainedError(
            f"the pipeline {name} cannot be loaded: {reason}. Check the name and the revision, and "
            "that the hub can be reached; or download the pipeline's folder and pass its path as "
            "the name"
        ) from error


def _diffusers(name: str) -> Any:
    """Return the diffusers library, if it has Cosmos 3 and what that needs."""
    try:
        import diffusers

        _ = diffusers.CosmosActionCondition, diffusers.Cosmos3OmniPipeline
        import transformers  # noqa: F401 - without it the classes of diffusers are empty ones
    except (ImportError, AttributeError, RuntimeError) as error:
        raise PretrainedError(
            f"the pipeline {name} needs the package diffusers, 0.42.1 or later, and transformers "
            f"({error}): pip install 'dreamgym[cosmos]'"
        ) from error
    return diffusers


def _split(name: str) -> tuple[str, str | None]:
    """Return a name and its revision; the path of a folder may contain an @."""
    if Path(name).is_dir():
        return name, None
    base, _, revision = name.partition("@")
    return base, revision or None


def _load(config: Cosmos3Config) -> Any:
    """Return the pipeline, of classes that are named here and not in its files."""
    library = _diffusers(config.pipeline)
    from transformers import AutoTokenizer

    from dreamgym.models.cosmos3.conditioning import ConditionedPipeline

    base, revision = _split(config.pipeline)
    dtype = getattr(torch, config.precision)
    with _loading(config.pipeline):
        flags = ConditionedPipeline.load_config(base, revision=revision)
        networks = {
            name: _network(kind, base, subfolder=name, revision=revision, torch_dtype=dtype)
            for name, kind in (
                ("transformer", library.Cosmos3OmniTransformer),
                ("vae", library.AutoencoderKLWan),
            )
        }
        scheduler = library.UniPCMultistepScheduler.from_pretrained(
            base, subfolder="scheduler", revision=revision
        )
        if config.flow_shift is not None:
            scheduler = library.UniPCMultistepScheduler.from_config(
                scheduler.config, flow_shift=config.flow_shift, use_karras_sigmas=False
            )
        tokenizer = AutoTokenizer.from_pretrained(
            base, subfolder="text_tokenizer", revision=revision, trust_remote_code=False
        )
    try:
        pipeline = ConditionedPipeline(
            text_tokenizer=tokenizer,
            scheduler=scheduler,
            enable_safety_checker=config.guardrail,
            use_native_flow_schedule=bool(flags.get("use_native_flow_schedule", False)),
            **networks,
        )
    except (ImportError, OSError) as error:
        raise PretrainedError(
            f"the guardrail of the pipeline {config.pipeline} cannot be loaded ({error}): pip "
            "install cosmos_guardrail, or pass guardrail=False where the terms of the weights "
            "permit it"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _network(kind: Any, base: str, **options: Any) -> nn.Module:
    """Return a pretrained network, of which no tensor is missing."""
    network, found = kind.from_pretrained(
        base, use_safetensors=True, output_loading_info=True, **options
    )
    missing = sorted(found["missing_keys"])
    if missing:
        raise PretrainedError(
            f"the {options['subfolder']} of {base} lacks {len(missing)} tensors "
            f"({', '.join(missing[:3])}); download it again"
        )
    checked: nn.Module = network
    return checked


def _licence(base: str) -> str:
    """Return the licence that a pipeline's card names."""
    card = Path(base) / "README.md"
    if card.is_file():
        _, _, rest = card.read_text(encoding="utf-8", errors="replace").partition("---")
        found = dict(_LICENCE.findall(rest.partition("\n---")[0]))
        named = found.get("license_name") or found.get("license")
        return str(named) if named else UNKNOWN_LICENCE
    return LICENCES.get(base, UNKNOWN_LICENCE)
