"""The names of LeWM's tensors, and where each has its place in a `JEPA`."""

from __future__ import annotations

import re

BOTH = ("weight", "bias")
NORM = (*BOTH, "running_mean", "running_var", "num_batches_tracked")

# From the names of transformers 4 to those of 5, in this order.
RENAMED = (
    (re.compile(r"^encoder\.encoder\.layer\."), "encoder.layers."),
    (re.compile(r"\.attention\.attention\.(query|key|value)\."), r".attention.\1_proj."),
    (re.compile(r"\.query_proj\."), ".q_proj."),
    (re.compile(r"\.key_proj\."), ".k_proj."),
    (re.compile(r"\.value_proj\."), ".v_proj."),
    (re.compile(r"\.attention\.output\.dense\."), ".attention.o_proj."),
    (re.compile(r"\.intermediate\.dense\."), ".mlp.fc1."),
    (re.compile(r"\.output\.dense\."), ".mlp.fc2."),
)

VIT_BLOCK = {
    "layernorm_before": "norm_attention",
    "attention.q_proj": "query",
    "attention.k_proj": "key",
    "attention.v_proj": "value",
    "attention.o_proj": "out",
    "layernorm_after": "norm_mlp",
    "mlp.fc1": "widen",
    "mlp.fc2": "narrow",
}

PREDICTOR_BLOCK = {
    "attn.norm": "attention.norm",
    "attn.to_out.0": "attention.out",
    "mlp.net.0": "mlp.0",
    "mlp.net.1": "mlp.1",
    "mlp.net.4": "mlp.4",
    "adaLN_modulation.1": "modulation",
}


def modern(name: str) -> str:
    """A tensor's name as transformers 5 has it, of a name of either version."""
    if not str(name).startswith("encoder.encoder."):
        return name
    for pattern, replacement in RENAMED:
        name = pattern.sub(replacement, name)
    return name


def names(encoder_blocks: int, predictor_blocks: int) -> dict[str, str]:
    """LeWM's tensors and their names in a `JEPA`: 303 with 12 and 6 blocks.

    Args:
        encoder_blocks: of the vision transformer.
        predictor_blocks: of the predictor.
    """
    vit = "senses.images.0.network"
    table = {
        "encoder.embeddings.cls_token": f"{vit}.class_token",
        "encoder.embeddings.position_embeddings": f"{vit}.position",
        "predictor.pos_embedding": "predictor.position",
    }
    layers = {
        "encoder.embeddings.patch_embeddings.projection": f"{vit}.patches",
        "encoder.layernorm": f"{vit}.norm",
        "predictor.transformer.norm": "predictor.norm",
        "action_encoder.patch_embed": "embed_action.smooth",
        "action_encoder.embed.0": "embed_action.embed.0",
        "action_encoder.embed.2": "embed_action.embed.2",
    }
    for k in range(encoder_blocks):
        for theirs, ours in VIT_BLOCK.items():
            layers[f"encoder.layers.{k}.{theirs}"] = f"{vit}.blocks.{k}.{ours}"
    for k in range(predictor_blocks):
        block = f"predictor.transformer.layers.{k}"
        table[f"{block}.attn.to_qkv.weight"] = f"predictor.blocks.{k}.attention.joint.weight"
        for theirs, ours in PREDICTOR_BLOCK.items():
            layers[f"{block}.{theirs}"] = f"predictor.blocks.{k}.{ours}"
    for theirs, ours in (("projector", "projector"), ("pred_proj", "project_prediction")):
        layers[f"{theirs}.net.0"] = f"{ours}.inwards"
        layers[f"{theirs}.net.3"] = f"{ours}.outwards"
        table |= {f"{theirs}.net.1.{leaf}": f"{ours}.norm.{leaf}" for leaf in NORM}
    for theirs, ours in layers.items():
        table |= {f"{theirs}.{leaf}": f"{ours}.{leaf}" for leaf in BOTH}
    return table
