"""The wrappers on tensors against Gymnasium's own on NumPy, and against their definitions."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.dream import wrappers
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.dream.wrappers import RunningMoments
from tests.small_worlds import small_world

ENVS = 8


def a_dream(**options) -> DreamVectorEnv:
    return DreamVectorEnv(small_world(horizon=4), ENVS, **options)


def act(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, 3, ENVS)


def test_running_moments_are_those_of_all_rows():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 3, generator=generator) * 5 + 100 for n in (7, 1, 64, 200)]
    moments = RunningMoments((3,), torch.device("cpu"))
    for batch in batches:
        moments.update(batch)
    rows = torch.cat(batches).double()
    torch.testing.assert_close(moments.mean.double(), rows.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        moments.variance.double(), rows.var(0, unbiased=False), rtol=1e-4, atol=1e-4
    )


def test_moments_of_some_rows_are_as_if_the_others_were_not_there():
    generator = torch.Generator().manual_seed(0)
    some, all_rows = (RunningMoments((2, 3), torch.device("cpu")) for _ in range(2))
    for n in (7, 64, 5):
        rows = torch.randn(n, 2, 3, generator=generator) * 5 + 100
        weight = torch.rand(n, generator=generator) < 0.5
        all_rows.update(rows[weight])
        some.update(torch.where(weight[:, None, None], rows, torch.nan), weight)
        some.update(rows, torch.zeros(n, dtype=torch.bool))  # nobody: nothing changes
    assert some.count == all_rows.count
    torch.testing.assert_close(some.mean, all_rows.mean)
    torch.testing.assert_close(some.variance, all_rows.variance)


def test_moments_that_have_seen_nobody_stay_as_they_were():
    moments = RunningMoments((3,), torch.device("cpu"))
    moments.update(torch.randn(4, 3), torch.zeros(4, dtype=torch.bool))
    assert torch.equal(moments.mean, torch.zeros(3))
    assert torch.equal(moments.variance, torch.ones(3))


def test_moments_of_some_rows_ask_the_device_nothing():
    meta = torch.device("meta")  # no numbers there: whoever asks for one fails
    moments = RunningMoments((3,), meta)
    moments.update(torch.zeros(4, 3, device=meta), torch.ones(4, dtype=torch.bool, device=meta))
    assert moments.variance.device == meta


def test_resets_of_one_row_count_that_row_only():
    env = wrappers.NormalizeObservation(DreamVectorEnv(small_world(), 64))
    plain = DreamVectorEnv(small_world(), 64)
    env.reset(seed=0)
    seen = [plain.reset(seed=0)[0]]
    mask = torch.arange(64) == 5
    for _ in range(10):
        env.reset(options={"reset_mask": mask})
        seen.append(plain.reset(options={"reset_mask": mask})[0][mask])
    assert env.moments.count == 74
    rows = torch.cat(seen)
    torch.testing.assert_close(env.moments.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        env.moments.variance, rows.var(0, unbiased=False), rtol=1e-4, atol=1e-5
    )


def test_moments_are_saved_with_the_agent():
    env = wrappers.NormalizeObservation(a_dream())
    env.reset(seed=0)
    other = wrappers.NormalizeObservation(a_dream())
    other.moments.load_state_dict(env.moments.state_dict())
    other.update_running_mean = False
    assert torch.equal(other.moments.mean, env.moments.mean)
    kept = other.moments.mean.clone()
    other.reset(seed=5)
    assert torch.equal(other.moments.mean, kept)
    with pytest.raises(ValueError, match="mean is missing"):
        other.moments.load_state_dict({"count": torch.zeros(())})


def test_observations_are_normalised_as_by_gymnasium():
    # Gymnasium's own does not take SameStep: so in dreams that do not end, where modes are one.
    endless = {"max_episode_steps": 100, "termination": 1.0}
    ours = wrappers.NormalizeObservation(a_dream(**endless))
    numpy = a_dream(output="numpy", autoreset_mode="NextStep", **endless)
    theirs = gym.wrappers.vector.NormalizeObservation(numpy)
    (seen, _), (wanted, _) = ours.reset(seed=0), theirs.reset(seed=0)
    # Gymnasium begins from a made-up row of zeros with a weight of 1e-4.
    np.testing.assert_allclose(seen, wanted, rtol=1e-2, atol=1e-2)
    for step in range(6):
        seen, *_ = ours.step(act(step))
        wanted, *_ = theirs.step(act(step))
        np.testing.assert_allclose(seen, wanted, rtol=1e-2, atol=1e-2)


def test_rewards_are_scaled_by_the_spread_of_discounted_returns():
    env = wrappers.NormalizeReward(a_dream(), gamma=0.9)
    plain = a_dream()
    env.reset(seed=0), plain.reset(seed=0)
    returns, seen = torch.zeros(ENVS), []
    for step in range(8):
        _, scaled, *_ = env.step(act(step))
        _, reward, terminated, truncated, _ = plain.step(act(step))
        returns = returns * 0.9 + reward
        seen.append(returns)
        spread = torch.cat(seen).var(unbiased=False).sqrt()
        torch.testing.assert_close(scaled, reward / spread, rtol=1e-3, atol=1e-4)
        returns = torch.where(terminated | truncated, 0.0, returns)


def test_truncation_is_bootstrapped_and_then_an_end_and_termination_is_not():
    env = wrappers.TruncationBootstrap(a_dream(), lambda seen: seen.sum(1, keepdim=True), 0.5)
    plain = a_dream()
    env.reset(seed=0), plain.reset(seed=0)
    cut_off = 0
    for step in range(8):
        _, paid, terminated, truncated, _ = env.step(act(step))
        _, reward, ended, cut, info = plain.step(act(step))
        worth = 0.5 * info["final_obs"].sum(1)
        torch.testing.assert_close(paid, torch.where(cut, reward + worth, reward))
        assert torch.equal(terminated, ended | cut)
        assert not truncated.any()
        cut_off += int(cut.sum())
    assert cut_off > 0


def test_frames_are_stacked_oldest_first_and_never_across_episodes():
    env, plain = wrappers.FrameStack(a_dream(), 3), a_dream()
    (stacked, _), (first, _) = env.reset(seed=0), plain.reset(seed=0)
    assert stacked.shape == (ENVS, 3, 4) == env.observation_space.shape
    rows = [[first[i]] * 3 for i in range(ENVS)]
    for step in range(10):
        stacked, _, _, _, info = env.step(act(step))
        seen, _, terminated, truncated, plain_info = plain.step(act(step))
        for i in range(ENVS):
            last = [*rows[i][1:], plain_info["final_obs"][i]]
            assert torch.equal(info["final_obs"][i], torch.stack(last))
            rows[i] = [seen[i]] * 3 if bool(terminated[i] | truncated[i]) else last
            assert torch.equal(stacked[i], torch.stack(rows[i]))


def test_a_masked_reset_leaves_the_frames_of_the_other_rows():
    env = wrappers.FrameStack(a_dream(termination=1.0), 2)
    env.reset(seed=0)
    before, *_ = env.step(act(0))
    mask = torch.arange(ENVS) < 3
    after, _ = env.reset(options={"reset_mask": mask})
    assert torch.equal(after[3:], before[3:])
    assert torch.equal(after[:3, 0], after[:3, 1])


def test_episode_statistics_are_means_over_the_episodes_that_ended():
    env, plain = wrappers.EpisodeStatistics(a_dream()), a_dream()
    env.reset(seed=0), plain.reset(seed=0)
    returns, lengths = [], []
    for step in range(12):
        env.step(act(step))
        *_, info = plain.step(act(step))
        ended = info["_episode"]
        returns += info["episode"]["r"][ended].tolist()
        lengths += info["episode"]["l"][ended].tolist()
    given = env.pop()
    assert given["episodes"] == len(returns)
    assert float(given["return"]) == pytest.approx(np.mean(returns), rel=1e-5)
    assert float(given["length"]) == pytest.approx(np.mean(lengths), rel=1e-5)
    assert env.pop()["episodes"] == 0


def test_episode_statistics_hold_nothing_for_gradients():
    env = wrappers.EpisodeStatistics(DreamVectorEnv(small_world(action="box"), ENVS))
    env.reset(seed=0)
    for _ in range(8):
        _, reward, *_ = env.step(torch.full((ENVS, 2), 0.5, requires_grad=True))
    assert reward.requires_grad
    assert not any(number.requires_grad for number in env.pop().values())


def test_they_stand_around_each_other():
    env = wrappers.ScaleReward(a_dream(), 0.5)
    env = wrappers.NormalizeReward(wrappers.NormalizeObservation(wrappers.FrameStack(env, 2)))
    env = wrappers.EpisodeStatistics(env)
    observation, _ = env.reset(seed=0)
    for step in range(6):
        observation, reward, *_ = env.step(act(step))
    assert observation.shape == (ENVS, 2, 4)
    assert observation.isfinite().all()
    assert reward.isfinite().all()


def test_what_they_cannot_stand_around_is_refused():
    with pytest.raises(ValueError, match="output='torch'"):
        wrappers.ScaleReward(a_dream(output="numpy"), 1.0)
    with pytest.raises(ValueError, match="SameStep"):
        wrappers.ScaleReward(a_dream(autoreset_mode="NextStep"), 1.0)
    with pytest.raises(ValueError, match="stack_size"):
        wrappers.FrameStack(a_dream(), 0)
