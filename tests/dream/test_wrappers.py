"""Tensor wrappers against Gymnasium's NumPy wrappers, and against their definitions."""

from __future__ import annotations

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.dream import wrappers
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.dream.wrappers import RunningMoments
from tests.small_worlds import TENSORS, small_world

ENVS = 8


def make_dream(**options) -> DreamVectorEnv:
    return DreamVectorEnv(small_world(horizon=4), ENVS, **{**TENSORS, **options})


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


def test_masked_rows_do_not_change_the_moments():
    generator = torch.Generator().manual_seed(0)
    some, all_rows = (RunningMoments((2, 3), torch.device("cpu")) for _ in range(2))
    for n in (7, 64, 5):
        rows = torch.randn(n, 2, 3, generator=generator) * 5 + 100
        mask = torch.rand(n, generator=generator) < 0.5
        all_rows.update(rows[mask])
        some.update(torch.where(mask[:, None, None], rows, torch.nan), mask)
        some.update(rows, torch.zeros(n, dtype=torch.bool))  # none: nothing changes
    assert some.count == all_rows.count
    torch.testing.assert_close(some.mean, all_rows.mean)
    torch.testing.assert_close(some.variance, all_rows.variance)


def test_moments_of_no_rows_keep_their_initial_values():
    moments = RunningMoments((3,), torch.device("cpu"))
    moments.update(torch.randn(4, 3), torch.zeros(4, dtype=torch.bool))
    assert torch.equal(moments.mean, torch.zeros(3))
    assert torch.equal(moments.variance, torch.ones(3))


def test_moments_of_masked_rows_need_no_host_sync():
    meta = torch.device("meta")  # has no data: reading a value raises
    moments = RunningMoments((3,), meta)
    moments.update(torch.zeros(4, 3, device=meta), torch.ones(4, dtype=torch.bool, device=meta))
    assert moments.variance.device == meta


def test_a_masked_reset_counts_only_the_rows_of_the_mask():
    env = wrappers.NormalizeObservation(
        DreamVectorEnv(small_world(), 64, output="torch", autoreset_mode="SameStep")
    )
    plain = DreamVectorEnv(small_world(), 64, output="torch", autoreset_mode="SameStep")
    env.reset(seed=0)
    observations = [plain.reset(seed=0)[0]]
    mask = torch.arange(64) == 5
    for _ in range(10):
        env.reset(options={"reset_mask": mask})
        observations.append(plain.reset(options={"reset_mask": mask})[0][mask])
    assert env.moments.count == 74
    rows = torch.cat(observations)
    torch.testing.assert_close(env.moments.mean, rows.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        env.moments.variance, rows.var(0, unbiased=False), rtol=1e-4, atol=1e-5
    )


def test_moments_are_saved_with_the_agent():
    env = wrappers.NormalizeObservation(make_dream())
    env.reset(seed=0)
    other = wrappers.NormalizeObservation(make_dream())
    other.moments.load_state_dict(env.moments.state_dict())
    other.update_running_mean = False
    assert torch.equal(other.moments.mean, env.moments.mean)
    kept = other.moments.mean.clone()
    other.reset(seed=5)
    assert torch.equal(other.moments.mean, kept)
    with pytest.raises(ValueError, match="mean is missing"):
        other.moments.load_state_dict({"count": torch.zeros(())})


def test_observations_are_normalised_as_by_gymnasium():
    # Gymnasium's wrapper does not support SameStep; in dreams that never end the modes are equal.
    endless = {"max_episode_steps": 100, "termination": 1.0}
    ours = wrappers.NormalizeObservation(make_dream(**endless))
    numpy = make_dream(output="numpy", autoreset_mode="NextStep", **endless)
    theirs = gym.wrappers.vector.NormalizeObservation(numpy)
    (actual, _), (expected, _) = ours.reset(seed=0), theirs.reset(seed=0)
    # Gymnasium starts from a row of zeros with a weight of 1e-4.
    np.testing.assert_allclose(actual, expected, rtol=1e-2, atol=1e-2)
    for step in range(6):
        actual, *_ = ours.step(act(step))
        expected, *_ = theirs.step(act(step))
        np.testing.assert_allclose(actual, expected, rtol=1e-2, atol=1e-2)


def test_rewards_are_scaled_by_the_spread_of_discounted_returns():
    env = wrappers.NormalizeReward(make_dream(), gamma=0.9)
    plain = make_dream()
    env.reset(seed=0), plain.reset(seed=0)
    returns, history = torch.zeros(ENVS), []
    for step in range(8):
        _, scaled, *_ = env.step(act(step))
        _, reward, terminated, truncated, _ = plain.step(act(step))
        returns = returns * 0.9 + reward
        history.append(returns)
        spread = torch.cat(history).var(unbiased=False).sqrt()
        torch.testing.assert_close(scaled, reward / spread, rtol=1e-3, atol=1e-4)
        returns = torch.where(terminated | truncated, 0.0, returns)


def test_truncations_are_bootstrapped_and_terminations_are_not():
    env = wrappers.TruncationBootstrap(
        make_dream(), lambda observation: observation.sum(1, keepdim=True), 0.5
    )
    plain = make_dream()
    env.reset(seed=0), plain.reset(seed=0)
    cut_off = 0
    for step in range(8):
        _, bootstrapped, terminated, truncated, _ = env.step(act(step))
        _, reward, ended, cut, info = plain.step(act(step))
        value = 0.5 * info["final_obs"].sum(1)
        torch.testing.assert_close(bootstrapped, torch.where(cut, reward + value, reward))
        assert torch.equal(terminated, ended | cut)
        assert not truncated.any()
        cut_off += int(cut.sum())
    assert cut_off > 0


def test_frames_are_stacked_oldest_first_and_never_across_episodes():
    env, plain = wrappers.FrameStack(make_dream(), 3), make_dream()
    (stacked, _), (first, _) = env.reset(seed=0), plain.reset(seed=0)
    assert stacked.shape == (ENVS, 3, 4) == env.observation_space.shape
    rows = [[first[i]] * 3 for i in range(ENVS)]
    for step in range(10):
        stacked, _, _, _, info = env.step(act(step))
        observation, _, terminated, truncated, plain_info = plain.step(act(step))
        for i in range(ENVS):
            last = [*rows[i][1:], plain_info["final_obs"][i]]
            assert torch.equal(info["final_obs"][i], torch.stack(last))
            rows[i] = [observation[i]] * 3 if bool(terminated[i] | truncated[i]) else last
            assert torch.equal(stacked[i], torch.stack(rows[i]))


def test_a_masked_reset_leaves_the_frames_of_the_other_rows():
    env = wrappers.FrameStack(make_dream(termination=1.0), 2)
    env.reset(seed=0)
    before, *_ = env.step(act(0))
    mask = torch.arange(ENVS) < 3
    after, _ = env.reset(options={"reset_mask": mask})
    assert torch.equal(after[3:], before[3:])
    assert torch.equal(after[:3, 0], after[:3, 1])


def test_episode_statistics_are_means_over_the_episodes_that_ended():
    env, plain = wrappers.EpisodeStatistics(make_dream()), make_dream(episode_statistics=True)
    env.reset(seed=0), plain.reset(seed=0)
    returns, lengths = [], []
    for step in range(12):
        env.step(act(step))
        *_, info = plain.step(act(step))
        ended = info["_episode"]
        returns += info["episode"]["r"][ended].tolist()
        lengths += info["episode"]["l"][ended].tolist()
    statistics = env.pop()
    assert statistics["episodes"] == len(returns)
    assert float(statistics["return"]) == pytest.approx(np.mean(returns), rel=1e-5)
    assert float(statistics["length"]) == pytest.approx(np.mean(lengths), rel=1e-5)
    assert env.pop()["episodes"] == 0


def test_episode_statistics_hold_no_autograd_graph():
    env = wrappers.EpisodeStatistics(
        DreamVectorEnv(small_world(action="box"), ENVS, output="torch", autoreset_mode="SameStep")
    )
    env.reset(seed=0)
    for _ in range(8):
        _, reward, *_ = env.step(torch.full((ENVS, 2), 0.5, requires_grad=True))
    assert reward.requires_grad
    assert not any(number.requires_grad for number in env.pop().values())


def test_wrappers_can_be_nested():
    env = wrappers.ScaleReward(make_dream(), 0.5)
    env = wrappers.NormalizeReward(wrappers.NormalizeObservation(wrappers.FrameStack(env, 2)))
    env = wrappers.EpisodeStatistics(env)
    observation, _ = env.reset(seed=0)
    for step in range(6):
        observation, reward, *_ = env.step(act(step))
    assert observation.shape == (ENVS, 2, 4)
    assert observation.isfinite().all()
    assert reward.isfinite().all()


def make_box_dream(**options):
    return DreamVectorEnv(small_world(action="box"), ENVS, **{**TENSORS, **options})


def test_environments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="output='torch'"):
        wrappers.ScaleReward(make_dream(output="numpy"), 1.0)
    with pytest.raises(ValueError, match="SameStep"):
        wrappers.NormalizeReward(make_dream(autoreset_mode="NextStep"))
    with pytest.raises(ValueError, match="stack_size"):
        wrappers.FrameStack(make_dream(), 0)
    for wrapper in (wrappers.ClipAction, wrappers.RescaleAction):
        with pytest.raises(ValueError, match="Box"):
            wrapper(make_dream())
    with pytest.raises(ValueError, match="low"):
        wrappers.RescaleAction(make_box_dream(), 1.0, 1.0)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_actions_are_clipped_and_rescaled_to_the_space(mode):
    plain = make_box_dream(autoreset_mode=mode)
    clipped = wrappers.ClipAction(make_box_dream(autoreset_mode=mode))
    rescaled = wrappers.RescaleAction(make_box_dream(autoreset_mode=mode))
    bounds = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])
    for env in (plain, clipped, rescaled):
        env.reset(seed=0)
    assert rescaled.action_space == gym.spaces.Box(-1, 1, (ENVS, 2), np.float32)
    for end in range(2):
        expected = plain.step(bounds[end].expand(ENVS, 2))
        sign = 2.0 * end - 1
        for env, size in ((clipped, 50.0), (rescaled, 1.0)):
            actual = env.step(torch.full((ENVS, 2), sign * size))
            assert all(torch.equal(a, b) for a, b in zip(actual[:4], expected[:4], strict=True))
    assert clipped.autoreset_mode is plain.autoreset_mode
    assert clipped.get_attr("horizon") == plain.get_attr("horizon")
    copy = pickle.loads(pickle.dumps(rescaled))  # noqa: S301
    assert torch.equal(copy.step(torch.zeros(ENVS, 2))[0], rescaled.step(torch.zeros(ENVS, 2))[0])
