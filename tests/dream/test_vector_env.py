"""The vector environment: spaces, shapes, dtypes, modes, seeding, freshness, final observations."""

from __future__ import annotations

import pickle
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from packaging.version import Version

from dreamgym.dream.memory import free_bytes
from dreamgym.dream.vector_env import DreamVectorEnv
from tests.small_worlds import TENSORS, small_world

ENVS = 16
MODES = {
    "SameStep": AutoresetMode.SAME_STEP,
    "NextStep": AutoresetMode.NEXT_STEP,
    "Disabled": AutoresetMode.DISABLED,
}


def make_env(num_envs: int = ENVS, action: str = "discrete", **options) -> DreamVectorEnv:
    return DreamVectorEnv(small_world(action=action), num_envs, **{**TENSORS, **options})


def act(env: DreamVectorEnv, seed: int) -> np.ndarray:
    env.action_space.seed(seed)
    return env.action_space.sample()


def play(env: DreamVectorEnv, steps: int, seed: int = 3) -> list[tuple]:
    results = [env.reset(seed=seed)]
    for step in range(steps):
        results.append(env.step(act(env, step)))
    return results


@pytest.mark.parametrize("action", ["discrete", "box", "multi-discrete"])
@pytest.mark.parametrize("view", ["observation", "latent"])
@pytest.mark.parametrize("mode", MODES)
def test_numpy_output_lies_in_the_spaces(mode, view, action):
    env = make_env(
        action=action, view=view, output="numpy", autoreset_mode=mode, episode_statistics=True
    )
    assert env.metadata["autoreset_mode"] is MODES[mode] is env.autoreset_mode
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    assert info == {}
    for step in range(5):
        observation, reward, terminated, truncated, info = env.step(act(env, step))
        assert observation in env.observation_space
        assert reward.shape == (ENVS,)
        assert reward.dtype == np.float32
        ended = terminated | truncated
        assert ("_episode" in info) == ended.any()
        for flag in (terminated, truncated, info.get("_episode", ended)):
            assert flag.shape == (ENVS,)
            assert flag.dtype == np.bool_
        assert not (terminated & truncated).any()
        if mode == "Disabled" and (terminated | truncated).any():
            env.reset(options={"reset_mask": terminated | truncated})


def test_torch_output_is_float32_and_bool_on_the_device():
    env = make_env()
    observation, _ = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(torch.as_tensor(act(env, 0)))
    assert observation.dtype == reward.dtype == torch.float32
    assert terminated.dtype == truncated.dtype == info["_final_obs"].dtype == torch.bool
    assert observation.device == env.device


def test_equal_seeds_give_equal_runs_bit_for_bit_and_other_seeds_do_not():
    one, two, other = play(make_env(), 20), play(make_env(), 20), play(make_env(), 20, seed=4)
    for (a, *rest_a), (b, *rest_b) in zip(one[1:], two[1:], strict=True):
        assert torch.equal(a, b)
        assert all(torch.equal(x, y) for x, y in zip(rest_a[:3], rest_b[:3], strict=True))
    assert not torch.equal(one[5][0], other[5][0])


def test_a_seed_restarts_the_run_and_a_reset_without_one_continues_it():
    env = make_env()
    first, _ = env.reset(seed=1)
    second, _ = env.reset()
    third, _ = env.reset(seed=1)
    assert torch.equal(first, third)
    assert not torch.equal(first, second)


def test_global_generators_are_not_touched():
    env = make_env()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    play(env, 5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


@pytest.mark.parametrize("mode", MODES)
def test_outputs_are_never_written_by_later_steps(mode):
    env = make_env(autoreset_mode=mode, episode_statistics=True)
    env.reset(seed=0)
    kept = []
    for step in range(6):
        observation, reward, terminated, truncated, info = env.step(act(env, step))
        tensors = [observation, reward, terminated, truncated, info["uncertainty"]]
        tensors += [*info["episode"].values(), info["_episode"]]
        tensors += [info[key] for key in ("final_obs", "_final_obs") if key in info]
        # They share no memory with each other, nor with the dream's state.
        state = [*env.dreams.model.values(), *env.dreams[2:]]
        pointers = [tensor.data_ptr() for tensor in tensors + state]
        assert len(set(pointers)) == len(pointers)
        kept.append([(tensor, tensor.clone()) for tensor in tensors])
        for tensor in (observation, reward):
            tensor_was = tensor.clone()
            tensor.mul_(0).add_(123)
            kept[-1] = [(t, t.clone()) for t, _ in kept[-1]]
            assert not torch.equal(tensor, tensor_was)
        if mode == "Disabled" and bool((terminated | truncated).any()):
            env.reset(options={"reset_mask": terminated | truncated})
    assert all(torch.equal(now, then) for pairs in kept for now, then in pairs)


def test_writing_into_outputs_does_not_change_the_dream():
    one, two = (make_env(episode_statistics=True) for _ in range(2))
    (observation, _), _ = one.reset(seed=0), two.reset(seed=0)
    for step in range(6):
        observation.fill_(1e9)
        observation, reward, _, _, info = one.step(act(one, step))
        expected, *_ = two.step(act(two, step))
        assert torch.equal(observation, expected)
        reward.fill_(7)
        info["episode"]["r"].fill_(7)
        info["episode"]["l"].fill_(7)
        info["final_obs"].fill_(7)


def test_same_step_returns_the_true_last_observation_and_the_next_first_one():
    same = make_env(autoreset_mode="SameStep", termination=1.0)
    disabled = make_env(autoreset_mode="Disabled", termination=1.0)
    same.reset(seed=0), disabled.reset(seed=0)
    for step in range(7):
        observation, _, _, truncated, info = same.step(act(same, step))
        expected, *_ = disabled.step(act(disabled, step))
        assert torch.equal(info["final_obs"], expected)
    assert truncated.all()
    assert info["_final_obs"].all()
    first, _ = disabled.reset(options={"reset_mask": np.ones(ENVS, bool)})
    assert torch.equal(observation, first)
    assert (same.dreams.age == 0).all()
    assert (same.dreams.episode == 1).all()


def test_next_step_resets_a_step_later_and_ignores_the_action():
    env = make_env(autoreset_mode="NextStep", max_episode_steps=3, termination=1.0)
    env.reset(seed=0)
    for step in range(3):
        last, reward, terminated, truncated, info = env.step(act(env, step))
    assert truncated.all()
    assert "final_obs" not in info
    first, reward, terminated, truncated, _ = env.step(act(env, 9))
    assert not terminated.any()
    assert not truncated.any()
    assert not reward.any()
    assert (env.dreams.age == 0).all()
    assert not torch.equal(first, last)
    again = make_env(autoreset_mode="NextStep", max_episode_steps=3, termination=1.0)
    again.reset(seed=0)
    for step in range(3):
        again.step(act(again, step))
    assert torch.equal(again.step(act(again, 10))[0], first)


def test_disabled_resets_only_the_rows_of_the_mask():
    env = make_env(autoreset_mode="Disabled", termination=1.0)
    env.reset(seed=0)
    before, *_ = env.step(act(env, 0))
    mask = torch.arange(ENVS) % 2 == 0
    after, _ = env.reset(options={"reset_mask": mask})
    assert torch.equal(after[~mask], before[~mask])
    assert not torch.equal(after[mask], before[mask])
    assert torch.equal(env.dreams.age, torch.where(mask, 0, 1))


def test_disabled_refuses_a_step_after_the_end_of_an_episode():
    env = make_env(autoreset_mode="Disabled", max_episode_steps=1)
    env.reset(seed=0)
    env.step(act(env, 0))
    with pytest.raises(RuntimeError, match="reset_mask"):
        env.step(act(env, 1))


def test_episode_statistics_are_sums_over_the_episodes_that_ended_and_zero_elsewhere():
    env = make_env(max_episode_steps=4, termination=1.0, episode_statistics=True)
    env.reset(seed=0)
    env.set_state(env.get_state()._replace(horizon=torch.arange(ENVS) % 2 + 3))
    total = torch.zeros(ENVS)
    for step in range(3):
        _, reward, _, _, info = env.step(act(env, step))
        total += reward
    even = torch.arange(ENVS) % 2 == 0
    assert torch.equal(info["_episode"], even)
    torch.testing.assert_close(info["episode"]["r"], total * even)
    assert torch.equal(info["episode"]["l"], 3 * even.long())


def test_it_can_be_used_in_inference_mode_and_afterwards():
    env, plain = make_env(), make_env()
    env.reset(seed=0), plain.reset(seed=0)
    with torch.inference_mode():
        action = torch.as_tensor(act(env, 0))
        inside, *_ = env.step(action)
    assert not inside.is_inference()
    assert torch.equal(inside, plain.step(act(plain, 0))[0])
    after, *_ = env.step(act(env, 1))
    assert torch.equal(after, plain.step(act(plain, 1))[0])


def test_two_engines_do_not_disturb_each_other():
    alone = play(make_env(), 6)
    one, two = make_env(), make_env(num_envs=5)
    results = [one.reset(seed=3)]
    two.reset(seed=8)
    for step in range(6):
        results.append(one.step(act(one, step)))
        two.step(act(two, step))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(alone, results, strict=True))


@pytest.mark.parametrize(
    "starts", ["episode_starts", "beginnings"]
)  # the latter is the former name
def test_starts_can_be_episode_starts_only(starts):
    env = make_env(num_envs=512, starts=starts, view="latent")
    observation, _ = env.reset(seed=0)
    expected = env.world.model.features(env.world.starts.states)[
        : env.world.starts.num_episode_starts
    ]
    assert (observation[:, None] == expected[None]).all(-1).any(1).all()


BAD_OPTIONS = [
    ("temprature", 1.0, TypeError, "did you mean 'temperature'"),
    ("view", "obs", ValueError, "observation"),
    ("output", "jax", ValueError, "numpy"),
    ("autoreset_mode", "samestep", ValueError, "SameStep"),
    ("temperature", 0.0, ValueError, "above 0"),
    ("temperature", [1.0], ValueError, "least, greatest"),
    ("temperature", [2.0, 1.0], ValueError, "least, greatest"),
    ("temperature", "hot", ValueError, "give a number"),
    ("temperature", np.ones(3), ValueError, "one for each environment"),
    ("temperature", np.zeros(ENVS), ValueError, "above 0"),
    ("termination", "always", ValueError, "sample"),
    ("termination", 0.0, ValueError, "sample"),
    ("starts", "episode", ValueError, "did you mean 'episode_starts'"),
    ("starts", {"bank": -1}, ValueError, "above 0"),
    ("starts", {}, ValueError, "at least one"),
    ("starts", {"z": torch.zeros(2, 3)}, ValueError, "leaves of shapes"),
    ("max_episode_steps", 0, ValueError, "at least 1"),
    ("max_episode_steps", [5, 2], ValueError, "least, greatest"),
    ("max_episode_steps", 2.5, ValueError, "give an integer"),
    ("dtype", "float16", ValueError, "bfloat16"),
    ("device", "tpu9", ValueError, "auto"),
    ("render_mode", "human", ValueError, "rgb_array"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD_OPTIONS)
def test_a_wrong_option_is_refused_with_the_nearest_known_one(name, value, error, message):
    with pytest.raises(error, match=message):
        make_env(**{name: value})


@pytest.mark.skipif(
    free_bytes(torch.device("cpu")) is None, reason="this system does not report its memory"
)
def test_more_environments_than_fit_into_memory_are_refused():
    with pytest.raises(ValueError, match="environments fit"):
        make_env(num_envs=2**40)


def test_misuse_is_refused():
    env = make_env()
    with pytest.raises(RuntimeError, match="reset"):
        env.step(act(env, 0))
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(options={"reset_mask": np.ones(ENVS, bool)})
    env.reset(seed=0)
    with pytest.raises(ValueError, match="reset has no option 'mask'"):
        env.reset(options={"mask": 1})
    with pytest.raises(ValueError, match="shape"):
        env.reset(options={"reset_mask": np.ones(3, bool)})
    with pytest.raises(ValueError, match="not both"):
        env.reset(seed=0, options={"reset_mask": np.ones(ENVS, bool)})
    env.close()
    with pytest.raises(RuntimeError, match="closed"):
        env.step(act(env, 0))
    with pytest.raises(ValueError, match="num_envs"):
        make_env(num_envs=0)


BAD_ACTIONS = {
    "shape": ("discrete", np.zeros(3, int), "shape"),
    "kind": ("discrete", np.zeros(ENVS), "give integers"),
    "too large": ("discrete", np.full(ENVS, 3), "outside"),
    "negative": ("discrete", np.full(ENVS, -1), "outside"),
    "integers": ("box", np.zeros((ENVS, 2), int), "floating"),
    "not a number": ("box", np.full((ENVS, 2), np.nan), "outside"),
    "beyond": ("box", np.full((ENVS, 2), 2.5), "outside"),
    "choice": ("multi-discrete", np.full((ENVS, 2), 2), "outside"),
}


@pytest.mark.parametrize("name", sorted(BAD_ACTIONS))
def test_wrong_actions_are_refused_and_change_nothing(name):
    action, value, message = BAD_ACTIONS[name]
    env = make_env(action=action)
    env.reset(seed=0)
    before = env.dreams
    with pytest.raises(ValueError, match=message):
        env.step(value)
    assert env.dreams is before


def test_frames_are_drawn_when_they_are_read():
    env = make_env(render_mode="rgb_array")
    env.reset(seed=0)
    frames = env.render()
    assert len(frames) == ENVS
    assert frames[0].dtype == np.uint8
    assert frames[0].ndim == 3
    assert np.array_equal(frames[-1], frames[ENVS - 1])
    with pytest.raises(IndexError):
        frames[ENVS]


def test_record_video_works_on_the_vector_env(tmp_path):
    env = make_env(num_envs=4, render_mode="rgb_array", output="numpy")
    pytest.importorskip("moviepy", reason="RecordVideo writes with moviepy")
    wrapped = gym.wrappers.vector.RecordVideo(env, str(tmp_path), video_length=3)
    wrapped.reset(seed=0)
    for step in range(4):
        wrapped.step(act(env, step))
    wrapped.close()
    assert list(tmp_path.glob("*.mp4"))


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_gymnasiums_own_wrapper_records_the_episodes_of_numpy_dreams(mode):
    if mode == "SameStep" and Version(gym.__version__) < Version("1.3"):
        pytest.skip("gymnasium 1.2 leaves the first step of an episode out of its return")
    options = {"output": "numpy", "autoreset_mode": mode, "max_episode_steps": 3}
    env = RecordEpisodeStatistics(make_env(termination=1.0, **options))
    own = make_env(termination=1.0, episode_statistics=True, **options)
    env.reset(seed=0)
    own.reset(seed=0)
    ended = 0
    for step in range(9):
        info, expected = (each.step(act(own, step))[4] for each in (env, own))
        assert ("episode" in info) == ("episode" in expected)
        if "episode" in info:
            ended += 1
            np.testing.assert_array_equal(info["_episode"], expected["_episode"])
            for key in ("r", "l"):
                np.testing.assert_allclose(
                    info["episode"][key], expected["episode"][key], rtol=1e-5
                )
    assert ended > 1


def test_the_defaults_are_gymnasiums_own():
    made = gym.make_vec("dreamgym/CartPole-MDNRNN-v0", num_envs=2, device="cpu")
    for env in (made, DreamVectorEnv("CartPole-MDNRNN-v0", 2, device="cpu")):
        assert env.metadata["autoreset_mode"] is env.autoreset_mode is AutoresetMode.NEXT_STEP
        observation, _ = env.reset(seed=0)
        assert isinstance(observation, np.ndarray)
        assert set(env.step(np.zeros(2, np.int64))[4]) == {"uncertainty"}


def test_a_list_of_seeds_has_one_for_each_row():
    one, two = make_env(num_envs=3), make_env(num_envs=3)
    first, _ = one.reset(seed=[5, 6, 7])
    second, _ = two.reset(seed=np.array([7, 5, 5]))
    order = torch.tensor([2, 0, 0])
    for _ in range(12):
        assert torch.equal(second, first[order])
        (first, *_), (second, *_) = (env.step(torch.ones(3).long()) for env in (one, two))
    assert not torch.equal(first[0], first[1])
    two.reset(seed=0)
    drawn = two.reset(seed=[1, None, None])[0]
    assert not torch.equal(drawn[1], drawn[2])
    two.reset(seed=0)
    assert torch.equal(drawn, two.reset(seed=[1, None, None])[0])
    with pytest.raises(ValueError, match="2 seeds for 3 rows"):
        one.reset(seed=[1, 2])
    for wrong in (1.5, "1", [1, 2, 0.5]):
        with pytest.raises(TypeError, match="integer"):
            one.reset(seed=wrong)


def test_attributes_are_those_of_every_row():
    env = make_env(num_envs=2)
    assert env.get_attr("horizon") == (env.horizon,) * 2 == env.call("horizon")
    assert env.call("get_attr", "view") == (("observation",) * 2,) * 2
    env.set_attr("note", [3, 3])
    assert env.note == 3
    env.set_attr("note", 4)
    assert env.get_attr("note") == (4, 4)
    with pytest.raises(ValueError, match="one environment"):
        env.set_attr("note", [1, 2])


def test_options_can_be_changed_for_a_new_environment():
    made = gym.make_vec("dreamgym/CartPole-MDNRNN-v0", num_envs=2, device="cpu")
    made.reset(seed=0)
    env = made.with_options(output="torch", autoreset_mode="SameStep")
    assert env.world is made.world
    assert (env.num_envs, env.horizon) == (made.num_envs, made.horizon)
    assert torch.equal(env.reset(seed=0)[0], torch.as_tensor(made.reset(seed=0)[0]))
    assert gym.make_vec(env.spec).autoreset_mode is AutoresetMode.SAME_STEP
    with pytest.raises(TypeError, match="output"):
        made.with_options(outputs="torch")


def test_its_spec_tells_the_horizon():
    for options, horizon in (({}, 200), ({"max_episode_steps": [3, 9]}, 9)):
        name, common = "dreamgym/CartPole-MDNRNN-v0", {"device": "cpu", **options}
        env = gym.make_vec(name, num_envs=2, **common)
        assert env.spec.max_episode_steps == horizon
        assert pickle.loads(pickle.dumps(env)).spec == env.spec  # noqa: S301
        assert gym.make_vec(env.spec).spec.max_episode_steps == horizon
    assert gym.make(name, device="cpu").spec.max_episode_steps == 200
    assert gym.spec(name).max_episode_steps is None


@pytest.mark.parametrize("copied", [deepcopy, lambda env: pickle.loads(pickle.dumps(env))])  # noqa: S301
@pytest.mark.parametrize("mode", MODES)
def test_a_copy_or_a_pickle_continues_bit_for_bit(mode, copied):
    env = make_env(
        autoreset_mode=mode, temperature=[0.5, 1.5], termination=1.0, max_episode_steps=[4, 9]
    )
    env.reset(seed=3)
    env.step(act(env, 0))
    other = copied(env)
    assert other.options == env.options
    for step in range(1, 4):
        for first, second in zip(
            env.step(act(env, step))[:4], other.step(act(env, step))[:4], strict=True
        ):
            assert torch.equal(first, second)
    assert torch.equal(env.reset()[0], other.reset()[0])


def test_a_pickle_before_the_first_reset_or_after_close_is_like_the_original():
    fresh = pickle.loads(pickle.dumps(make_env()))  # noqa: S301
    with pytest.raises(RuntimeError, match="has not been reset"):
        fresh.step(act(fresh, 0))
    env = make_env()
    env.close()
    with pytest.raises(RuntimeError, match="closed"):
        deepcopy(env).reset()


def test_a_dream_does_not_depend_on_torchs_default_dtype():
    world = small_world()

    def run():
        env = DreamVectorEnv(
            world, ENVS, max_episode_steps=3, output="torch", autoreset_mode="SameStep"
        )
        env.reset(seed=0)
        *_, (observation, reward, *_) = [env.step(act(env, step)) for step in range(6)]
        return observation, reward

    expected = run()
    torch.set_default_dtype(torch.float64)
    try:
        outputs = run()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    for actual, reference in zip(outputs, expected, strict=True):
        assert actual.dtype == torch.float32
        assert torch.equal(actual, reference)
