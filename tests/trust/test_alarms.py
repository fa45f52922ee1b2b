"""Alarms while a policy trains: each kind and each response, on tensors and in NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamgym.dream import DreamVectorEnv
from dreamgym.dream.watch import EVERY
from dreamgym.errors import AlarmStop, TrainingError, TrainingInterrupted
from dreamgym.fitting import FitConfig, fit
from dreamgym.metrics import Limits
from dreamgym.models.wrappers.base import Wrapper
from dreamgym.train import Monitoring, TrainConfig, load_policy, train_policy
from dreamgym.trust import diverging_returns, watch
from tests.small_worlds import small_world, world_of
from tests.trust import planted

GENEROUS = Limits(
    reward_low=-1e9, reward_high=1e9, longest_episode=10**6, uncertainty=1e9, distance=1e9
)
"""Limits that no dream exceeds."""


def dream(world, **options) -> DreamVectorEnv:
    return DreamVectorEnv(world, 8, device="cpu", autoreset_mode="SameStep", **options)


def run(env, steps: int = EVERY) -> list:
    env.reset(seed=0)
    env.action_space.seed(0)
    return [env.step(env.action_space.sample()) for _ in range(steps)]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"reward_low": -1e-3, "reward_high": 1e-3}, "reward"),
        ({"distance": 1e-6}, "features"),
        ({"uncertainty": 1e-9}, "uncertainty"),
        ({"longest_episode": 1}, "length"),
    ],
)
@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_each_alarm_is_raised_once_with_rows_and_steps(changes, name, output):
    world = small_world("pets", horizon=50)
    raised = []
    limits = replace(GENEROUS, **changes)
    env = watch(dream(world, output=output), limits=limits, on_alarm=raised.append)
    run(env, 3 * EVERY)
    assert [alarm.name for alarm in raised] == [name]
    assert raised == env.alarms
    first, last = raised[0].steps
    assert 1 <= first <= last <= env.steps == 3 * EVERY * 8
    assert f"{last:,}" in raised[0].sentence
    assert set(raised[0].rows) <= set(range(8))
    assert raised[0].rows


def test_a_watched_dream_is_the_same_dream():
    world = small_world()
    env = watch(dream(world), limits=GENEROUS, response="penalise")
    for watched, plain in zip(run(env), run(dream(world)), strict=True):
        for a, b in zip(watched[:4], plain[:4], strict=True):
            np.testing.assert_array_equal(a, b)
    assert env.alarms == []
    assert env.horizon == 7  # what the dream has, the watched one has


def test_penalised_steps_get_the_lowest_reward_of_the_data():
    limits = replace(GENEROUS, reward_low=-2.0, reward_high=0.1)
    env = watch(dream(small_world()), limits=limits, response="penalise", on_alarm=lambda _: None)
    rewards = np.stack([step[1] for step in run(env)])
    plain = np.stack([step[1] for step in run(dream(small_world()))])
    above = plain > limits.reward_high + limits.reward_margin
    assert above.any()
    assert (rewards[above] == -2.0).all()


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_truncated_episodes_restart_with_their_true_last_observation(output):
    limits = replace(GENEROUS, distance=1e-6)
    env = dream(small_world("pets", horizon=50), output=output)
    watched = watch(env, limits=limits, response="truncate", on_alarm=lambda _: None)
    watched.reset(seed=0)
    for _ in range(3):
        observation, _, terminated, truncated, info = watched.step(env.action_space.sample())
        ended = np.asarray(terminated) | np.asarray(truncated)
        assert ended.all()  # every step is beyond such a limit
        assert np.asarray(info["_final_obs"]).all()
        assert not (np.asarray(terminated) & np.asarray(truncated)).any()
        assert (env.dreams.age == 0).all()
        assert not np.allclose(np.asarray(observation), np.asarray(info["final_obs"]))


def test_a_reset_of_some_rows_leaves_the_others_waiting_for_theirs():
    limits = replace(GENEROUS, longest_episode=1)
    watched = watch(DreamVectorEnv(small_world(), 8, device="cpu"), limits=limits)
    watched.reset(seed=0)
    for _ in range(watched.horizon):
        watched.step(watched.action_space.sample())
    waiting = watched._done.clone()
    assert waiting[:3].any()
    assert waiting[3:].any()
    watched.reset(options={"reset_mask": np.arange(8) < 3})
    assert watched._done.tolist() == [False] * 3 + waiting[3:].tolist()
    watched.reset(seed=1)
    assert not watched._done.any()


def test_stop_raises_and_other_modes_cannot_truncate():
    limits = replace(GENEROUS, distance=1e-6)
    env = watch(dream(small_world()), limits=limits, response="stop", on_alarm=lambda _: None)
    with pytest.raises(AlarmStop, match="far from the data"):
        run(env)
    with pytest.raises(ValueError, match="SameStep"):
        watch(DreamVectorEnv(small_world(), 2, device="cpu"), response="truncate")
    with pytest.raises(ValueError, match="penalise"):
        watch(dream(small_world()), response="penalize")


def test_without_a_function_an_alarm_is_a_warning():
    env = watch(dream(small_world()), limits=replace(GENEROUS, distance=1e-6))
    with pytest.warns(UserWarning, match="features: "):
        run(env)


def test_a_dream_return_that_rises_while_the_real_one_falls_is_exploitation():
    dreamt = [(100, 1.0), (200, 2.0), (300, 5.0)]
    falls = [(100, 1.0, 0.1), (200, 2.0, 0.1), (300, 0.5, 0.1)]
    assert "step 200" in diverging_returns(dreamt, falls)
    assert diverging_returns(dreamt, [(100, 1.0, 0.1), (200, 2.0, 0.1), (300, 2.1, 0.1)]) is None
    assert diverging_returns(dreamt, [(*p[:2], 2.0) for p in falls]) is None  # within the noise
    assert diverging_returns([(100, 3.0), (200, 2.0), (300, 1.0)], falls) is None
    assert diverging_returns([], falls) is None


class Rich(Wrapper):
    """A dream that pays for nothing."""

    def __init__(self, inner):
        super().__init__(inner, None)

    def predict(self, state, action, following, prediction):
        return prediction._replace(reward=torch.full_like(prediction.reward, 50.0))


def exploited():
    """Return a world whose rewards its data has never shown."""
    world = world_of(Rich(small_world().model), horizon=20)
    world.quality["limits"] = replace(GENEROUS, reward_low=0.0, reward_high=1.0).to_json()
    return world


@pytest.mark.parametrize(("learner", "algo"), [("ppo", "PPO"), ("sb3", "PPO"), ("sb3", "SAC")])
def test_training_puts_its_alarms_on_the_policys_card(learner, algo, tmp_path):
    if algo == "SAC":
        world = world_of(Rich(small_world(action="box").model), horizon=20)
        world.quality["limits"] = exploited().quality["limits"]
    else:
        world = exploited()
    config = TrainConfig(num_envs=4, batch_size=64, **({} if algo == "SAC" else {"n_steps": 64}))
    settings = {"algo": algo, "learner": learner, "steps": 512, "config": config}
    policy = train_policy(world, out=tmp_path / "policy", **settings)
    (alarm,) = policy.card.alarms
    assert alarm.startswith("reward: ")
    saved = next(tmp_path.iterdir())
    assert load_policy(saved).card.alarms == [alarm]
    settings["config"] = replace(config, alarms="off")
    assert train_policy(world, **settings).card.alarms == []


def test_a_training_that_is_measured_in_reality_is_stopped_where_it_exploits_the_dream():
    returns = iter([10.0, 20.0, 1.0])
    seen = []

    def measure(policy):
        seen.append(next(returns))
        return {"real return": seen[-1], "real return error": 0.1}

    monitoring = Monitoring(evaluate_every=128, evaluate=measure)
    world = small_world(horizon=20)
    config = TrainConfig(num_envs=4, n_steps=32, batch_size=64, alarms="stop")
    with pytest.MonkeyPatch.context() as patch:  # what an unfitted world pays, says nothing
        patch.setattr(
            "dreamgym.dream.watch.diverging_returns",
            lambda dream, real: (
                "it fell" if diverging_returns([(0, 0.0), (300, 1.0)], real) else None
            ),
        )
        with pytest.raises(TrainingInterrupted, match="it fell"):
            train_policy(world, steps=10_000, config=config, monitoring=monitoring)
    assert seen == [10.0, 20.0, 1.0]


@pytest.mark.parametrize("learner", ["ppo", "sb3"])
def test_an_alarm_stops_a_training_and_the_policy_is_kept(learner, tmp_path):
    config = TrainConfig(num_envs=4, n_steps=16, batch_size=64, alarms="stop")
    with pytest.raises(TrainingInterrupted, match="stopped by an alarm") as stop:
        train_policy(
            exploited(),
            learner=learner,
            steps=100_000,
            out=tmp_path / "policy",
            config=config,
        )
    assert 0 < stop.value.steps < 2000
    assert load_policy(stop.value.path).card.alarms


def test_the_callback_watches_stops_and_compares_with_the_real_returns():
    from stable_baselines3 import PPO

    from dreamgym.train.sb3 import AlarmCallback, SB3VecEnv

    def agent(world):
        return PPO("MlpPolicy", SB3VecEnv(dream(world)), n_steps=16, batch_size=64, seed=0)

    callback = AlarmCallback(response="stop", on_alarm=lambda alarm: None)
    learner = agent(exploited())
    learner.learn(50_000, callback=callback)
    assert learner.num_timesteps < 2000
    assert [alarm.name for alarm in callback.alarms] == ["reward"]

    measured = []
    compared = AlarmCallback(
        limits=GENEROUS,
        evaluate=lambda model: measured.append(model) or [100.0 / len(measured)] * 2,
        evaluate_every=256,
        on_alarm=lambda alarm: None,
    )
    learner = agent(small_world(horizon=20))
    learner.learn(1024, callback=compared)
    assert measured == [learner] * 4
    compared.watched.check_returns([(1, 1.0), (2, 2.0)], [(1, 5.0, 0.1), (2, 1.0, 0.1)])
    assert compared.alarms[-1].name == "exploitation"
    with pytest.raises(TrainingError, match="SB3VecEnv"):
        PPO("MlpPolicy", "CartPole-v1").learn(10, callback=AlarmCallback())


def test_a_fit_stores_the_limits_of_its_data(tmp_path):
    from tests.metrics.small_fits import Swing

    path = planted.record(Swing(), tmp_path / "swing.h5", steps=1000)
    world = fit(path, config=FitConfig(updates=5))
    found = Limits.from_json(world.quality["limits"])
    assert found.reward_high <= 0
    assert found.longest_episode <= 40
    assert found.distance > 0
    assert found.uncertainty is None  # an MDN-RNN has none
