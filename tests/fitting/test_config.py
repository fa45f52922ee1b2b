"""Settings of a fit: their bounds, and the published settings of families."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from dreamgym import FitConfig, OptimizerConfig, default_config
from dreamgym.models import FAMILIES

DREAMER_V3 = {  # danijar/dreamerv3, configs.yaml: opt, batch_size, batch_length; arXiv 2301.04104
    "name": "laprop",
    "learning_rate": 4e-5,
    "betas": (0.9, 0.999),
    "eps": 1e-20,
    "weight_decay": 0.0,
    "gradient_clip": 0.3,
    "clip_by": "agc",
    "schedule": "constant",
    "warm_up": 1000,
}
PUBLISHED = {
    # arXiv 1811.04551, appendix A; google-research/planet, scripts/configs.py
    ("rssm", "planet"): (
        (50, 50),
        {"name": "adam", "learning_rate": 1e-3, "eps": 1e-4, "gradient_clip": 1000.0},
    ),
    # arXiv 1912.01603, appendix A; danijar/dreamer, dreamer.py
    ("rssm", "dreamer-v1"): (
        (50, 50),
        {"name": "adam", "learning_rate": 6e-4, "eps": 1e-7, "gradient_clip": 100.0},
    ),
    # arXiv 2010.02193, table D.1; danijar/dreamerv2, configs.yaml, with Atari's learning rate.
    # Its decay, 1e-6 in every update, is not multiplied by the learning rate.
    ("rssm", "dreamer-v2"): (
        (16, 50),
        {
            "learning_rate": 2e-4,
            "eps": 1e-5,
            "gradient_clip": 100.0,
            "weight_decay": pytest.approx(5e-3),
        },
    ),
    ("rssm", "dreamer-v3-1m"): ((16, 64), DREAMER_V3),
    ("rssm", "dreamer-v3-12m"): ((16, 64), DREAMER_V3),
    ("rssm", "dreamer-v3-200m"): ((16, 64), DREAMER_V3),
    # arXiv 2603.19312: 128 segments of 4 frames
    ("jepa", "lewm"): (
        (128, 3),
        {
            "name": "adamw",
            "learning_rate": 5e-5,
            "weight_decay": 1e-3,
            "gradient_clip": 1.0,
            "clip_by": "norm",
            "schedule": "cosine",
            "warm_up": 0.01,
        },
    ),
    # gaoyuezhou/dino_wm, conf/train.yaml: windows of 3 frames and the one to predict
    ("dino-wm", "dino-wm"): ((32, 3), {"name": "adamw", "learning_rate": 5e-4, "warm_up": 0}),
    # facebookresearch/vjepa2, configs/train/vitg16/droid-256px-8f.yaml: 32 x 8 clips of 8 frames
    ("vjepa2-ac", "vjepa2-ac"): (
        (256, 7),
        {"name": "adamw", "learning_rate": 4.25e-4, "weight_decay": 0.04},
    ),
    # arXiv 1803.10122; hardmaru/WorldModelsExperiments, rnn_train.py
    ("mdn-rnn", "carracing"): (
        (100, 16),
        {"name": "adam", "learning_rate": 1e-3, "gradient_clip": 1.0, "clip_by": "value"},
    ),
    ("mdn-rnn", "doom"): (
        (100, 16),
        {"name": "adam", "learning_rate": 1e-3, "gradient_clip": 1.0, "clip_by": "value"},
    ),
}


@pytest.mark.parametrize(("family", "preset"), PUBLISHED)
def test_a_preset_is_fitted_as_its_authors_did(family, preset):
    sizes, optimizer = PUBLISHED[family, preset]
    config = default_config(family, preset)
    assert config.model == FAMILIES[family].presets[preset]
    assert (config.batch_size, config.segment_length) == sizes
    assert {name: getattr(config.optimizer, name) for name in optimizer} == optimizer
    assert config.precision == ("bf16-mixed" if preset in ("lewm", "vjepa2-ac") else "32-true")


def test_preset_fits_name_existing_presets_and_settings():
    for family, known in FAMILIES.items():
        assert set(known.preset_fits) <= set(known.presets)
        for preset in known.preset_fits:
            default_config(family, preset)
            # its authors', and not what the default happens to be
            assert "clip_by" in known.preset_fits[preset], preset
        default_config(family, model=object())


def test_optimizer_settings_are_given_by_their_own_names():
    config = default_config("rssm", optimizer="laprop", learning_rate=1e-4, updates=3)
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("laprop", 1e-4)
    assert config.updates == 3
    assert config.optimizer.gradient_clip == default_config("rssm").optimizer.gradient_clip
    assert default_config("mdn-rnn") == FitConfig()
    whole = OptimizerConfig(name="adam", learning_rate=3e-4)
    assert default_config("mdn-rnn", "doom", optimizer=whole).optimizer == whole
    with pytest.raises(TypeError, match="learning_rat"):
        default_config("mdn-rnn", learning_rat=1.0)


def test_there_are_at_most_sixteen_fields():
    assert all(len(fields(config)) <= 16 for config in (FitConfig, OptimizerConfig))


BAD = [
    ("learning_rate", 0.0),
    ("gradient_clip", -1.0),
    ("eps", 0.0),
    ("weight_decay", -1e-3),
    ("warm_up", -1),
    ("betas", (0.9, 1.0)),
    ("ema", 1.0),
    ("accumulate", 0),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_an_optimizer_setting_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        OptimizerConfig(**{name: value})


def test_a_norm_given_where_a_share_is_expected_is_refused():
    with pytest.raises(ValueError, match=r"gradient_clip=100 with clip_by='agc': .* at most 1"):
        default_config("pets", gradient_clip=100.0)
    assert default_config("pets", gradient_clip=100.0, clip_by="norm")


def test_unknown_words_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'laprop'"):
        OptimizerConfig(name="lapropp")
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        OptimizerConfig(schedule="cosin")
    with pytest.raises(ValueError, match="bf16-mixed"):
        FitConfig(precision="bf16")


def test_a_batch_is_divided_equally_or_refused():
    thirds = OptimizerConfig(accumulate=3)
    assert FitConfig(batch_size=12, optimizer=thirds).batch_size == 12
    with pytest.raises(ValueError, match=r"batch_size=16 .* accumulate=3"):
        replace(FitConfig(optimizer=thirds, batch_size=12), batch_size=16)


def test_a_misspelt_setting_is_refused_with_the_nearest():
    with pytest.raises(TypeError, match="did you mean 'updates'"):
        default_config("rssm", update=5)
