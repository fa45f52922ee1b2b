"""Metrics of every family on vectors, images and Dicts: figures are JSON-plain and finite."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import dreamgym
from dreamgym.data import Dataset
from dreamgym.metrics import TrainingMonitor, evaluate_metrics, recommend
from dreamgym.models import (
    DeltaIRISConfig,
    DIAMONDConfig,
    Dreamer4Config,
    Ensemble,
    GenieConfig,
    IRISConfig,
    JEPAConfig,
    MDNRNNConfig,
    ModelSpec,
    Pessimistic,
    PETSConfig,
    RSSMConfig,
    STORMConfig,
    TDMPC2Config,
    TWISTERConfig,
    WorldModel,
)
from dreamgym.models.diamond import DiffusionConfig
from dreamgym.models.iris import QuantiserConfig, TransformerConfig
from dreamgym.models.statistics import measure_statistics
from dreamgym.models.wrappers import EnsembleConfig
from tests.data.samples import dict_cartpole, image_cartpole
from tests.metrics.small_fits import Swing
from tests.small_worlds import OF_IMAGES

SEEN = {"vector": Swing, "image": image_cartpole, "dict": dict_cartpole}
CONFIGS = {
    "mdn-rnn": MDNRNNConfig(hidden=8, trunk=8, head=8, width=0.1, latent=4, image_size=64),
    "rssm": RSSMConfig(deter=8, hidden=8, stoch=4, classes=4, units=8, image_depth=2),
    "jepa": JEPAConfig(embedding=8, width=8, blocks=1, heads=1, mlp=8),
    "pets": PETSConfig(hidden=8, layers=1, members=2, elites=1),
    "storm": STORMConfig(context=4, width=8, heads=2, mlp=8, stoch=4, classes=4, image_depth=2),
    "twister": TWISTERConfig(context=2, width=8, heads=2, mlp=8, stoch=4, classes=4, image_depth=2),
    "dreamer4": Dreamer4Config(
        patch=16,
        latents=1,
        channels=4,
        tokenizer_width=8,
        tokenizer_blocks=1,
        context=1,
        width=8,
        blocks=1,
        time_every=1,
        heads=1,
        registers=0,
        finest=2,
        steps=1,
    ),
    "tdmpc2": TDMPC2Config(latent=8, encoder=8, mlp=8),
    "diamond": DIAMONDConfig(
        image_size=8,
        channels=(8,),
        condition=16,
        reward_channels=(8,),
        reward_condition=8,
        hidden=8,
        diffusion=DiffusionConfig(denoising_steps=1),
    ),
    "delta-iris": DeltaIRISConfig(
        image_size=8,
        channels=(8, 8),
        halved=(True, False),
        latent=2,
        quantiser=QuantiserConfig(levels=(4, 4)),
        transformer=TransformerConfig(context=4, width=16, blocks=1, heads=1),
    ),
    "genie": GenieConfig(
        image_size=8,
        channels=(8, 8, 8),
        latent=4,
        quantiser=QuantiserConfig(levels=(4, 4)),
        context=2,
        width=8,
        blocks=1,
        heads=1,
        action_width=8,
        action_blocks=1,
        steps=2,
    ),
    "iris": IRISConfig(
        image_size=8,
        channels=(8, 8, 8),
        latent=4,
        quantiser=QuantiserConfig(levels=(4, 4)),
        transformer=TransformerConfig(context=4, width=8, blocks=1, heads=1),
    ),
}
ONLY = {"pets": "vector", "tdmpc2": "vector"} | dict.fromkeys(OF_IMAGES, "image")
LATENT = {
    "image": {"mdn-rnn", "rssm", "storm", "twister"},
    "dict": {"mdn-rnn", "rssm", "storm", "twister"},
    "vector": {"rssm", "storm", "twister"},
}


@pytest.fixture(scope="module", params=SEEN)
def seen(request, tmp_path_factory):
    env = SEEN[request.param]()
    path = tmp_path_factory.mktemp("seen") / "data.h5"
    with Dataset(dreamgym.record(env, steps=120, out=path, seed=0)) as dataset:
        yield request.param, dataset


def build(spec: ModelSpec, dataset: Dataset) -> WorldModel:
    torch.manual_seed(0)
    model = spec.build(dataset.observation_space, dataset.action_space)
    episodes = (dataset.episode(k) for k in range(dataset.num_episodes))
    model.set_statistics(measure_statistics((e.observations, e.rewards) for e in episodes))
    return model.eval().requires_grad_(False)


def examine(model: WorldModel, dataset: Dataset) -> dict[str, float]:
    """Return the monitor's figures, after checking that every metric is JSON-plain and finite."""
    every = np.arange(dataset.num_episodes)
    best = recommend(model, dataset, every, cap=20)
    assert 1 <= best.horizon <= 20
    quality = evaluate_metrics(model, dataset, every)
    figures = TrainingMonitor(dataset=dataset, episodes=every).inspect(model).figures
    json.dumps([quality, best.reasons, best.termination, figures], allow_nan=False)
    assert {"termination_ece", "action_sensitivity"} <= {*quality}
    return figures


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_on_every_kind_of_observation(family, seen):
    kind, dataset = seen
    if family in ONLY and kind != ONLY[family]:
        pytest.skip(f"it takes {ONLY[family]}s")
    figures = examine(build(ModelSpec(family=family, config=CONFIGS[family]), dataset), dataset)
    assert any(name.startswith("kl") for name in figures) == (family in LATENT[kind])
    assert any(name.startswith("effective_rank") for name in figures) == (family == "jepa")
    assert any(name.startswith("code_") for name in figures) == (
        family in ("genie", "iris", "delta-iris")
    )


def test_wrappers_show_the_diagnostics_of_the_models_inside(tmp_path):
    path = dreamgym.record(Swing(), steps=200, out=tmp_path / "data.h5", seed=0)
    member = ModelSpec(family="rssm", config=CONFIGS["rssm"])
    spec = ModelSpec(family="ensemble", config=EnsembleConfig(member=member, members=2, elites=2))
    with Dataset(path) as dataset:
        ensemble = build(spec, dataset)
        assert isinstance(ensemble, Ensemble)
        figures = examine(Pessimistic(ensemble, weight=0.5), dataset)
    assert {"kl_0/", "kl_1/"} <= {*figures}
