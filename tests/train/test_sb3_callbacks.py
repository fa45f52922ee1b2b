from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.policies import ActorCriticPolicy

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.train import TrainingError
from dreamgym.train.sb3 import BatchedTruncationValues, LearningCurve, SB3VecEnv

ROWS, STEPS = 64, 24


class Counting(ActorCriticPolicy):
    """Counts its value forward passes."""

    calls = 0

    def predict_values(self, obs):
        Counting.calls += 1
        return super().predict_values(obs)


def one_rollout(world, learner, callback, settings):
    env = SB3VecEnv(DreamVectorEnv(world, ROWS, output="numpy", autoreset_mode="SameStep"))
    model = learner(Counting, env, n_steps=STEPS, seed=0, device="cpu", **settings)
    Counting.calls = 0
    model.learn(ROWS * STEPS, callback=callback)
    return model, Counting.calls


@pytest.mark.parametrize("name", ["discrete_world", "box_world"])
@pytest.mark.parametrize(
    ("learner", "settings"), [(PPO, {"batch_size": 512, "n_epochs": 1}), (A2C, {})]
)
def test_one_pass_for_all_truncated_rows_gives_what_stock_sb3_gives(
    request, name, learner, settings
):
    world = request.getfixturevalue(name)
    stock, stock_calls = one_rollout(world, learner, None, settings)
    batched, calls = one_rollout(world, learner, BatchedTruncationValues(), settings)
    for key in ("rewards", "returns", "advantages", "values", "episode_starts"):
        ours, theirs = getattr(batched.rollout_buffer, key), getattr(stock.rollout_buffer, key)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=key)
    for ours, theirs in zip(batched.policy.parameters(), stock.policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert stock_calls > ROWS
    assert calls <= STEPS + 1


def test_batched_truncation_values_refuse_off_policy_algorithms(discrete_world):
    model = DQN(
        "MlpPolicy",
        SB3VecEnv(DreamVectorEnv(discrete_world, 4, output="numpy", autoreset_mode="SameStep")),
    )
    with pytest.raises(TrainingError, match="on-policy"):
        model.learn(8, callback=BatchedTruncationValues())


def test_the_curve_is_in_real_units_and_ends_at_the_end(box_world):
    env = SB3VecEnv(
        DreamVectorEnv(box_world, ROWS, output="numpy", autoreset_mode="SameStep"),
        reward_scale=1e-3,
    )
    model = PPO("MlpPolicy", env, n_steps=STEPS, batch_size=512, seed=0, device="cpu")
    reported = []
    curve = LearningCurve(
        3 * ROWS * STEPS, ROWS * STEPS, lambda done, total, figures: reported.append((done, total))
    )
    model.learn(3 * ROWS * STEPS, callback=curve)
    assert [steps for steps, _ in curve.points] == [ROWS * STEPS * k for k in (1, 2, 3)]
    assert all(abs(mean) > 0.1 for _, mean in curve.points)
    assert reported[-1] == (3 * ROWS * STEPS, 3 * ROWS * STEPS)
