"""The RSSM's config: published sizes, and invalid settings."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import RSSM, RSSMConfig
from dreamgym.models.rssm import RSSMObjective

VECTOR = gym.spaces.Box(-9.0, 9.0, (4,), np.float32)


def test_the_published_sizes_have_the_parameters_of_the_published_code():
    """Counts of the layers from h to prior and posterior, from the published code."""

    def count(name: str) -> int:
        with torch.device("meta"):
            model = RSSM(VECTOR, gym.spaces.Box(-1, 1, (6,), np.float32), RSSM.presets[name])
        parts = (model.prior, model.posterior, model.posterior_out)
        seen = model.senses.dim * model.config.hidden
        return sum(p.numel() for part in parts for p in part.parameters()) - seen

    dense = lambda inputs, outputs: inputs * outputs + outputs  # noqa: E731
    # google-research/planet, models/rssm.py, and danijar/dreamer, models.py.
    gaussian = 2 * (dense(200, 200) + dense(200, 60))
    assert count("planet") == count("dreamer-v1") == gaussian
    # danijar/dreamerv2, common/nets.py, EnsembleRSSM with the Atari settings of configs.yaml.
    assert count("dreamer-v2") == 2 * (dense(600, 600) + dense(600, 1024))
    # danijar/dreamerv3, rssm.py and configs.yaml: two hidden prior layers, one posterior, RMSNorm.
    for name, deter, hidden, classes in (
        ("dreamer-v3-1m", 512, 64, 4),
        ("dreamer-v3-12m", 2048, 256, 16),
        ("dreamer-v3-200m", 8192, 1024, 64),
    ):
        layers = 2 * dense(deter, hidden) + dense(hidden, hidden) + 3 * hidden
        assert count(name) == layers + 2 * dense(hidden, 32 * classes), name


def test_an_rssm_with_layer_norm_and_an_ordinary_gru_is_built():
    config = RSSMConfig(
        deter=512, hidden=512, stoch=32, classes=32, blocks=0, norm="layer", units=512,
        head_layers=2, objective=RSSMObjective(rewards="two-hot"),
    )  # fmt: skip
    model = RSSM(VECTOR, gym.spaces.Discrete(6), config)
    assert model.feature_dim == 512 + 1024
    assert model.noise_dim == 32
    assert model.cell.norm.normalized_shape == (1536,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"deter": 10, "blocks": 4}, "blocks=4"),
        ({"classes": 1}, "classes=1"),
        ({"norm": "batch"}, "norm='batch'"),
        ({"unimix": 1.0}, "unimix"),
        ({"units": 0}, "units=0"),
    ],
)
def test_invalid_sizes_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        RSSMConfig(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bins": 254}, "bins=254"),
        ({"vectors": "log"}, "vectors='log'"),
        ({"rep": -0.1}, "rep=-0.1"),
        ({"free_nats_of": "year"}, "free_nats_of"),
    ],
)
def test_invalid_objectives_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        RSSMObjective(**given)


def test_an_unfitted_v3_predicts_a_reward_of_zero():
    model = RSSM(VECTOR, gym.spaces.Discrete(3), RSSM.presets["dreamer-v3-1m"])
    _, prediction = model.step(
        model.initial(3), torch.zeros(3, dtype=torch.int64), torch.rand(3, model.noise_dim)
    )
    assert (prediction.reward == 0).all()
