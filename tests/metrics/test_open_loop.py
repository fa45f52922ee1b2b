"""Open-loop errors and action effect of a model whose errors are known."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.data import Dataset
from dreamgym.metrics import evaluate_metrics, open_loop, open_loop_errors
from dreamgym.metrics.action_effect import action_effect, evidence_of
from dreamgym.metrics.windows import BURN_IN, MIN_WINDOWS, draw_windows, mean_square, spread_of
from dreamgym.models import Prediction, WorldModel
from dreamgym.models.nn.distributions import normal
from tests.metrics.small_fits import HAZARD, Swing, record_swing

SPREAD = 0.5


class Known(WorldModel):
    """The true dynamics of `Swing`, observed with normal noise that is drawn in each step.

    Args:
        action_scale: factor of the actions; 0 ignores them.
        decodes: whether it has a decoder, or features only.
    """

    feature_dim = noise_dim = 2

    def __init__(self, action_scale: float = 1.0, *, decodes: bool = True) -> None:
        super().__init__(Swing.observation_space, Swing.action_space, None)
        self.action_scale = action_scale
        self.weight = torch.nn.Parameter(torch.zeros(()))
        if decodes:
            self.decode = lambda state: state["state"] + SPREAD * state["error"]

    def initial(self, batch_size):
        return {key: torch.zeros(batch_size, 2) for key in ("state", "error")}

    def observe(self, state, action, observation, noise):
        return {"state": observation, "error": torch.zeros_like(observation)}

    def step(self, state, action, noise, temperature=1.0):
        angle, speed = state["state"].double().unbind(-1)
        push = 0.5 * (2 * action.double() - 1) * self.action_scale
        speed = 0.98 * speed + push - 0.4 * angle
        new = torch.stack([angle + 0.4 * speed, speed], -1).float()
        zeros = torch.zeros(len(new))
        return {"state": new, "error": normal(noise)}, Prediction(
            -angle.square().float(), zeros + HAZARD, zeros
        )

    def features(self, state):
        return state["state"]

    def loss(self, segment, noise):
        raise NotImplementedError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    with Dataset(record_swing(tmp_path_factory.mktemp("swing"))) as dataset:
        yield dataset


@pytest.fixture(scope="module")
def episodes(dataset) -> np.ndarray:
    return dataset.split(0.3, 0)[1]


def test_errors_of_samples_and_of_their_mean_are_those_of_the_noise(dataset, episodes):
    found = open_loop_errors(Known(), dataset, episodes, horizons=range(1, 21), samples=16)
    assert found.horizons.tolist() == list(range(1, 21))
    assert (np.diff(found.windows) <= 0).all()
    rows = np.concatenate([dataset.episode(int(i)).observations for i in episodes])
    unit = float(np.sqrt((1 / rows.var(0)).mean()))
    np.testing.assert_allclose(found.sampled, SPREAD * unit, rtol=0.1)
    np.testing.assert_allclose(found.mean, SPREAD * unit / 4, rtol=0.15)
    assert (found.repeat_last[5:15] > 0.5).all()


def test_the_repeat_last_error_equals_that_of_all_pairs_in_the_data(dataset, episodes):
    found = open_loop_errors(Known(), dataset, episodes, horizons=[3])
    pairs, rows = [], []
    for i in episodes:
        seen = dataset.episode(int(i)).observations
        rows.append(seen)
        pairs += [seen[at + 3] - seen[at] for at in range(BURN_IN, len(seen) - 3)]
    off = np.stack(pairs) / np.concatenate(rows).std(0)
    assert found.repeat_last[0] == pytest.approx(np.sqrt(np.square(off).mean()), rel=0.1)


def test_horizons_that_no_episode_reaches_are_left_out(dataset, episodes):
    longest = int(np.asarray(dataset.lengths)[episodes].max()) - BURN_IN
    found = open_loop_errors(Known(), dataset, episodes, horizons=[1, longest + 1, 1000])
    assert found.horizons.tolist() == [1]
    nothing = open_loop_errors(Known(), dataset, episodes, horizons=[1000])
    assert nothing.sampled.shape == (0,)


def test_the_same_seed_gives_the_same_errors_and_no_global_generator_is_touched(dataset, episodes):
    before = torch.get_rng_state()
    one, two, other = (
        open_loop_errors(Known(), dataset, episodes, horizons=[5], seed=s) for s in (0, 0, 1)
    )
    assert one.sampled == two.sampled
    assert one.sampled != other.sampled
    assert torch.equal(torch.get_rng_state(), before)


def test_windows_are_counted_once(dataset, episodes):
    lengths = np.asarray(dataset.lengths)
    few = episodes[np.argsort(lengths[episodes])[-2:]]
    found = open_loop_errors(Known(), dataset, few, horizons=[1, 5, 9])
    possible = [np.maximum(0, lengths[few] - BURN_IN - k + 1).sum() for k in (1, 5, 9)]
    assert found.windows.tolist() == possible


def test_a_slow_step_gets_fewer_windows(dataset, episodes, monkeypatch):
    usual = open_loop_errors(Known(), dataset, episodes, horizons=[1, 5])
    monkeypatch.setattr(open_loop, "MAX_SECONDS", 0.0)  # every step is too slow
    slow = open_loop_errors(Known(), dataset, episodes, horizons=[1, 5])
    # Of the windows that remain, some end before the first step.
    assert MIN_WINDOWS / 2 < slow.windows[0] < 2 * MIN_WINDOWS < usual.windows[0]
    np.testing.assert_allclose(slow.sampled, usual.sampled, rtol=0.3)


def test_a_model_that_does_not_decode_is_refused(dataset, episodes):
    with pytest.raises(TypeError, match="does not decode"):
        open_loop_errors(Known(decodes=False), dataset, episodes)


def effect_of(model, dataset, episodes):
    rng = np.random.default_rng(0)
    return action_effect(model, draw_windows(model, dataset, episodes, (256, 5), rng), rng)


@pytest.mark.parametrize("decodes", [True, False])
def test_the_effect_of_actions_is_measured_despite_noise_of_the_state(decodes, dataset, episodes):
    action_scale = effect_of(Known(decodes=decodes), dataset, episodes)
    assert action_scale.sensitivity > 1.3
    assert action_scale.evidence > 10
    ignores = effect_of(Known(0.0, decodes=decodes), dataset, episodes)
    assert ignores.sensitivity == 1.0
    assert ignores.evidence == 0.0


class Still(Swing):
    action_space = gym.spaces.Discrete(1)


def test_with_a_single_action_there_is_no_action_effect(tmp_path):
    import dreamgym

    path = dreamgym.record(Still(), steps=300, out=tmp_path / "still.h5", seed=0)
    with Dataset(path) as dataset:
        assert effect_of(Known(), dataset, np.arange(dataset.num_episodes)) is None


def test_metrics_are_those_of_the_known_model(dataset, episodes):
    found = evaluate_metrics(Known(), dataset, episodes)
    assert found["termination_skill"] == pytest.approx(0, abs=0.02)
    assert found["termination_ece"] == pytest.approx(
        abs(found["termination_rate"] - HAZARD), abs=1e-6
    )
    assert found["reward_rmse"] < 1e-4 < 0.1 < found["reward_spread"]
    at_five = found["open_loop"]["5"]
    assert at_five["rmse_of_mean"] < at_five["rmse"]
    assert at_five["rmse_of_mean"] < at_five["repeat_last"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spreads_have_no_absolute_limit_and_constant_numbers_count_no_error(dtype):
    rows = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    rows = torch.stack([1e-9 * rows[:, 0], 1e9 * rows[:, 1], torch.full((100,), 0.1)], 1).to(dtype)
    spread = spread_of(rows)
    torch.testing.assert_close(spread[:2], rows[:, :2].std(0).float())
    assert spread[2] == torch.inf
    difference = torch.tensor([[2e-9, 0.0, 5.0]], dtype=dtype)
    expected = (difference[0, 0] / spread[0]) ** 2 / 2
    torch.testing.assert_close(mean_square(difference, spread), expected.reshape(1))


def test_impacts_do_not_hide_the_effect_of_actions_nor_do_windows_without_one():
    rng = np.random.default_rng(0)
    impacts = rng.standard_cauchy(2000)  # no mean of them means anything
    assert abs(evidence_of(impacts)) < 3
    assert evidence_of(impacts + 0.5) > 5
    assert evidence_of(-np.abs(impacts)) < 0
    rare = rng.normal(size=500)
    rare[:20] += 20.0
    assert evidence_of(rare) > 3
    assert evidence_of(np.zeros(5)) == 0
