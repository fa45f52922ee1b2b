"""Alarms: every failure raises its own alarm, and a healthy model raises none."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dreamgym.data import Dataset
from dreamgym.metrics import TrainingMonitor
from dreamgym.metrics.alarms import (
    code_alarms,
    collapse_alarms,
    latent_alarms,
    reward_alarms,
    termination_alarms,
)
from dreamgym.metrics.calibration import Calibration
from dreamgym.models import JEPA, MDNRNN, RSSM, JEPAConfig, MDNRNNConfig, RSSMConfig, WorldModel
from dreamgym.models.base import CodeDiagnostic, EmbeddingDiagnostic, KLDiagnostic
from dreamgym.models.jepa import JEPAObjective
from dreamgym.models.rssm import RSSMObjective
from tests.metrics.small_fits import Swing, fitted, record_swing

SMALL_MDN = MDNRNNConfig(hidden=24, trunk=24, head=24)
SMALL_RSSM = {"deter": 32, "hidden": 32, "stoch": 8, "classes": 8, "units": 32}
SMALL_JEPA = {"embedding": 8, "width": 32, "blocks": 1, "heads": 2, "mlp": 32}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    with Dataset(record_swing(tmp_path_factory.mktemp("swing"))) as dataset:
        yield dataset


def build(family: type[WorldModel], config: object) -> WorldModel:
    torch.manual_seed(0)
    return family(Swing.observation_space, Swing.action_space, config)


def raised(model: WorldModel, dataset: Dataset) -> list[str]:
    _, held_out = dataset.split(0.2, 0)
    inspection = TrainingMonitor(dataset=dataset, episodes=held_out).inspect(model)
    assert all(np.isfinite(value) for value in inspection.figures.values())
    assert all(alarm.sentence for alarm in inspection.alarms)
    return inspection.alarm_names


HEALTHY = {
    "mdn-rnn": (MDNRNN, SMALL_MDN),
    "rssm": (RSSM, RSSMConfig(**SMALL_RSSM)),
    "gaussian rssm": (RSSM, RSSMConfig(**{**SMALL_RSSM, "classes": 0})),
    "jepa": (JEPA, JEPAConfig(**SMALL_JEPA)),
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.slow) if k == "jepa" else k for k in HEALTHY],
)
def test_a_healthy_model_raises_no_alarm(kind, dataset):
    assert raised(fitted(build(*HEALTHY[kind]), dataset), dataset) == []


class ZeroEncoder(nn.Module):
    """An action encoder whose output is multiplied by zero."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.dim = encoder, encoder.dim

    def forward(self, action: torch.Tensor) -> torch.Tensor:
        return 0.0 * self.encoder(action)


@pytest.mark.parametrize("kind", ["mdn-rnn", "rssm"])
def test_a_model_that_ignores_its_actions_raises_an_alarm(kind, dataset):
    model = build(*HEALTHY[kind])
    model.encode_action = ZeroEncoder(model.encode_action)
    assert raised(fitted(model, dataset), dataset) == ["actions"]


@pytest.mark.parametrize(("classes", "free_nats"), [(0, 0.0), (8, 0.1)])
def test_a_latent_made_inactive_by_its_kl_raises_an_alarm(classes, free_nats, dataset):
    objective = RSSMObjective(dyn=1e6, rep=1e6, free_nats=free_nats)
    config = RSSMConfig(**{**SMALL_RSSM, "classes": classes}, objective=objective)
    assert raised(fitted(build(RSSM, config), dataset), dataset) == ["latent"]


def test_a_collapsed_encoder_raises_an_alarm(dataset):
    config = JEPAConfig(**SMALL_JEPA, objective=JEPAObjective(), predicts="next")
    model = build(JEPA, config)
    for parameter in model.projector.parameters():  # nothing else keeps embeddings apart
        nn.init.zeros_(parameter)
    assert raised(fitted(model, dataset), dataset) == ["collapse"]


def test_a_termination_head_with_class_weights_raises_an_alarm(dataset, monkeypatch):
    weighted = partial(F.binary_cross_entropy_with_logits, pos_weight=torch.tensor(10.0))
    monkeypatch.setattr(F, "binary_cross_entropy_with_logits", weighted)
    assert raised(fitted(build(MDNRNN, SMALL_MDN), dataset), dataset) == ["termination"]


def test_an_inspection_is_repeatable_and_touches_no_global_generator(dataset):
    model = build(MDNRNN, SMALL_MDN).eval()
    _, held_out = dataset.split(0.2, 0)
    monitor = TrainingMonitor(dataset=dataset, episodes=held_out)
    before = torch.get_rng_state()
    assert monitor.inspect(model) == monitor.inspect(model)
    assert torch.equal(torch.get_rng_state(), before)


def nats(*means: float) -> torch.Tensor:
    return torch.tensor([means] * 4)


def test_free_nats_are_counted_for_all_dimensions_or_for_each():
    def names(values, free, granted):
        return [a.name for a in latent_alarms("", KLDiagnostic(values, free, granted, "do this"))]

    assert names(nats(0.001, 0.002), 0.0, "all") == ["latent"]
    assert names(nats(0.5, 0.5), 1.0, "all") == ["latent"]
    assert names(nats(0.5, 3.0), 1.0, "all") == []
    assert names(nats(0.5, 0.5, 0.5), 0.5, "each") == ["latent"]
    assert names(nats(0.0, 2.0, 0.5), 0.5, "each") == []


def test_sentences_give_the_figure_and_the_remedy():
    (alarm,) = latent_alarms("camera", KLDiagnostic(nats(0.001, 0.002), 0.5, "each", "lower it"))
    assert "'camera'" in alarm.sentence
    assert "0.002" in alarm.sentence
    assert alarm.sentence.endswith("lower it")
    flat = EmbeddingDiagnostic(torch.tensor(1.0), torch.tensor(1.02), 8, "raise it")
    assert "1.02 of 8" in collapse_alarms("", flat)[0].sentence
    assert collapse_alarms("", flat._replace(effective_rank=torch.tensor(2.0))) == []
    thin = flat._replace(effective_rank=torch.tensor(6.0), std=torch.tensor(0.01))
    assert [alarm.name for alarm in collapse_alarms("", thin)] == ["collapse"]
    lone = EmbeddingDiagnostic(torch.tensor(1.0), torch.tensor(1.0), 1, "raise it")
    assert collapse_alarms("", lone) == []  # one dimension cannot have more


def test_too_little_held_out_is_an_alarm(dataset):
    model = build(MDNRNN, SMALL_MDN)
    shortest = np.argsort(dataset.lengths)[:1]
    [alarm] = [
        each
        for each in TrainingMonitor(dataset=dataset, episodes=shortest).inspect(model).alarms
        if each.name == "data"
    ]
    assert f"{int(min(dataset.lengths))} step" in alarm.sentence
    every = TrainingMonitor(dataset=dataset, episodes=np.arange(dataset.num_episodes))
    assert "data" not in every.inspect(model).alarm_names


def test_chance_alone_raises_no_calibration_alarm():
    result = Calibration(rate=0.05, predicted=0.07, brier=0.05, skill=0.0, ece=0.02)
    assert termination_alarms(result, 200) == []  # 10 ended, 14 predicted
    assert [alarm.name for alarm in termination_alarms(result, 20_000)] == ["termination"]
    near = result._replace(predicted=0.055)
    assert termination_alarms(near, 10_000_000) == []
    never = Calibration(rate=0.0, predicted=0.05, brier=0.003, skill=None, ece=0.05)
    assert "too short" in termination_alarms(never, 1000)[0].sentence
    certain = Calibration(rate=0.0, predicted=1.0, brier=1.0, skill=None, ece=1.0)
    assert termination_alarms(certain, 7)  # not chance: each would terminate
    unsure = Calibration(rate=0.0, predicted=0.3, brier=0.1, skill=None, ece=0.3)
    assert termination_alarms(unsure, 7) == []
    assert "too short" in termination_alarms(unsure, 7, terminates=False)[0].sentence
    assert termination_alarms(unsure._replace(predicted=0.05), 7, terminates=False) == []
    rare = result._replace(predicted=0.001)
    assert "too long" in termination_alarms(rare, 1000)[0].sentence


@pytest.mark.parametrize("unit", [1e-30, 1e-9, 1.0, 1e9, 1e30])
@pytest.mark.parametrize("varied", [True, False])
def test_a_reward_error_far_beyond_its_spread_raises_an_alarm_in_any_unit(unit, varied):
    rng = torch.Generator().manual_seed(0)
    real = torch.randn(500, generator=rng) if varied else torch.full((500,), 3.0)
    guess = real.mean() + 1.2 * torch.randn(500, generator=rng)
    assert reward_alarms(unit * guess, unit * real) == []
    [alarm] = reward_alarms(unit * (guess + 20.0), unit * real)
    assert alarm.name == "reward"
    assert ("standard deviation is" if varied else "only value is") in alarm.sentence


def test_a_model_of_rewards_in_another_unit_raises_the_reward_alarm(dataset):
    model = fitted(build(MDNRNN, MDNRNNConfig()), dataset, updates=50)
    assert "reward" not in raised(model, dataset)
    model.reward_std *= 100.0
    assert "reward" in raised(model, dataset)


def test_codes_that_fell_out_of_use_or_control_nothing_raise_an_alarm():
    even, one = torch.full((8,), 1 / 8), torch.tensor([0.99, 0.01, 0, 0, 0, 0, 0, 0])
    matters = 1 + torch.rand(40, generator=torch.Generator().manual_seed(0))
    assert float(CodeDiagnostic(even, 1.2, "").perplexity) == pytest.approx(8)
    assert code_alarms("", CodeDiagnostic(even, 1.2, "fit longer", matters)) == []
    assert code_alarms("", CodeDiagnostic(even, 1.2, "fit longer")) == []
    assert code_alarms("", CodeDiagnostic(even, 1.2, "fit longer", matters[:1] - 9)) == []
    (collapsed,) = code_alarms("moves", CodeDiagnostic(one, 1.2, "fit longer", matters))
    assert collapsed.name == "codes"
    assert "their perplexity is 1.06 of 8 (expected at least 1.2)" in collapsed.sentence
    (deaf,) = code_alarms("moves", CodeDiagnostic(even, 1.2, "fit longer", torch.zeros(40)))
    assert "'moves' do not control dreams: over 40 windows" in deaf.sentence
