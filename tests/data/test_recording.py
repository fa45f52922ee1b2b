"""Recording one environment: what is written, and what an interruption or an error leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium import spaces

from dreamgym.data import (
    Dataset,
    DatasetError,
    Recorder,
    SkipFrames,
    UnsupportedSpaceError,
    record,
    resume,
)
from tests.data.samples import dict_cartpole, image_cartpole
from tests.data.test_writer import run_python


def same(left: Path, right: Path) -> bool:
    with Dataset(left) as a, Dataset(right) as b:
        return a.checksum == b.checksum


def test_a_recording_holds_what_the_environment_returned(cartpole: Path) -> None:
    """Replaying the seeds and actions in a fresh environment reproduces every row."""
    env = gym.make("CartPole-v1")
    with Dataset(cartpole) as dataset:
        assert dataset.num_steps == 2000
        assert dataset.env_id == "CartPole-v1"
        assert dataset.policy == "random"
        assert json.loads(dataset.env_spec)["max_episode_steps"] == 500
        for index in range(dataset.num_episodes):
            episode = dataset.episode(index)
            observation, _ = env.reset(seed=episode.seed)
            np.testing.assert_array_equal(episode.observations[0], observation)
            for t, action in enumerate(episode.actions):
                observation, reward, terminated, truncated, _ = env.step(action)
                np.testing.assert_array_equal(episode.observations[t + 1], observation)
                assert episode.rewards[t] == reward
            assert (episode.terminated, episode.truncated) == (terminated, truncated)
            assert episode.complete == (terminated or truncated)


def test_truncation_is_not_termination(pendulum: Path) -> None:
    with Dataset(pendulum) as dataset:
        flags = {(e.terminated, e.truncated) for e in map(dataset.episode, range(len(dataset)))}
    assert flags == {(False, True)}


@pytest.mark.parametrize("policy", ["random", "sticky-random", "sticky:0.5"])
def test_the_same_seed_gives_the_same_data(tmp_path: Path, policy: str) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        record("Pendulum-v1", steps=450, out=tmp_path / name, policy=policy, seed=seed)
    assert same(tmp_path / "a", tmp_path / "b")
    assert not same(tmp_path / "a", tmp_path / "c")


def test_recording_does_not_touch_the_global_generators(tmp_path: Path) -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    record("CartPole-v1", steps=100, out=tmp_path / "d.h5")
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_every_episode_has_its_own_reset_seed(cartpole: Path) -> None:
    with h5py.File(cartpole) as file:
        seeds = file["episodes/seed"][:]
    assert len(set(seeds.tolist())) == len(seeds)


def test_the_last_episode_is_kept_as_incomplete(tmp_path: Path) -> None:
    with Dataset(record("Pendulum-v1", steps=250, out=tmp_path / "d.h5")) as dataset:
        assert dataset.lengths.tolist() == [200, 50]
        last = dataset.episode(1)
        assert (last.terminated, last.truncated, last.complete) == (False, False, False)


def test_sticky_actions_repeat(tmp_path: Path) -> None:
    path = record("Pendulum-v1", steps=2000, out=tmp_path / "d.h5", policy="sticky:0.8")
    with Dataset(path) as dataset:
        actions = [dataset.episode(i).actions for i in range(len(dataset))]
        assert dataset.policy == "sticky:0.8"
    repeated = np.concatenate([(a[1:] == a[:-1]).all(axis=1) for a in actions])
    assert 0.75 < repeated.mean() < 0.85


def test_a_function_as_a_policy(tmp_path: Path) -> None:
    def lean(observation: np.ndarray) -> int:
        return int(observation[2] > 0)

    with Dataset(record("CartPole-v1", steps=300, out=tmp_path / "d.h5", policy=lean)) as dataset:
        assert "lean" in dataset.policy
        episode = dataset.episode(0)
        np.testing.assert_array_equal(episode.actions, episode.observations[:-1, 2] > 0)


def test_an_environment_that_is_passed_in_stays_open(tmp_path: Path) -> None:
    closed = []

    class Closing(gym.Wrapper):
        def close(self) -> None:
            closed.append(True)

    env = Closing(gym.make("CartPole-v1"))
    record(env, steps=30, out=tmp_path / "d.h5")
    assert not closed


@pytest.mark.parametrize("make", [image_cartpole, dict_cartpole])
def test_images_and_dicts_are_recorded(tmp_path: Path, make: Any) -> None:
    path = record(make(), steps=200, out=tmp_path / "d.h5")
    env = make()
    with Dataset(path) as dataset:
        assert dataset.observation_space == env.observation_space
        episode = dataset.episode(3)
        observation, _ = env.reset(seed=episode.seed)
        first = episode.observations
        if isinstance(first, dict):
            assert all(np.array_equal(first[key][0], observation[key]) for key in observation)
        else:
            np.testing.assert_array_equal(first[0], observation)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    record("CartPole-v1", steps=700, out=tmp_path / "d.h5", progress=lambda *now: seen.append(now))
    assert seen == [(256, 700), (512, 700), (700, 700)]


def test_ten_thousand_steps_take_about_a_second(tmp_path: Path) -> None:
    start = time.process_time()
    record("CartPole-v1", steps=10_000, out=tmp_path / "d.h5")
    assert time.process_time() - start < 4.0  # half a second on a quiet machine


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"env": "NoSuchEnv-v0"}, DatasetError, "no environment 'NoSuchEnv-v0'"),
        ({"env": "CartPole-v9"}, DatasetError, "nearest registered id is 'CartPole-v1'"),
        ({"env": "nosuchpackage:Env-v0"}, DatasetError, "No module named 'nosuchpackage'"),
        ({"env": "FrozenLake-v1"}, UnsupportedSpaceError, "Discrete"),
        ({"policy": "wise"}, ValueError, "no policy 'wise'"),
        ({"policy": "sticky:often"}, ValueError, "no number"),
        ({"policy": "sticky:1.0"}, ValueError, "below 1"),
        ({"steps": 0}, ValueError, "at least 1"),
        ({"seed": -1}, ValueError, "at least 0"),
        ({"policy": lambda observation: 7}, DatasetError, "action.*row 0.*lie outside"),
        ({"policy": lambda observation: [0, 1]}, DatasetError, "shape"),
        ({"policy": lambda observation: 0.5}, DatasetError, "float64"),
    ],
)
def test_bad_arguments_are_clear_errors_and_leave_no_file(
    tmp_path: Path, arguments: dict, error: type[Exception], message: str
) -> None:
    given: dict[str, Any] = {"env": "CartPole-v1", "steps": 50} | arguments
    with pytest.raises(error, match=message):
        record(given.pop("env"), out=tmp_path / "d.h5", **given)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "d.h5").write_text("mine")
    with pytest.raises(DatasetError, match=r"d\.h5: it exists already"):
        record("CartPole-v1", steps=50, out=tmp_path / "d.h5")
    assert (tmp_path / "d.h5").read_text() == "mine"


class Failing(gym.Wrapper):
    """Fails, or returns something invalid, after a number of steps."""

    def __init__(self, after: int, what: Any) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.left, self.what = after, what

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.left -= 1
        if self.left < 0:
            if isinstance(self.what, BaseException):
                raise self.what
            observation, reward = self.what(observation, reward)
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (ConnectionError("the robot fell over"), ConnectionError, "fell over"),
        (
            lambda o, r: (o * np.nan, r),
            DatasetError,
            "observation: episode 1, row 51: it holds NaN",
        ),
        (lambda o, r: (o[:2], r), DatasetError, "row 51: its shape is"),
        (lambda o, r: (o.astype(complex), r), DatasetError, "row 51: its dtype is complex"),
        (lambda o, r: (o.astype(np.float64) * 1e300, r), DatasetError, "does not fit"),
        (lambda o, r: (o, np.nan), DatasetError, "reward: episode 1, row 50"),
        (lambda o, r: (o, 1e300), DatasetError, "reward: episode 1, row 50"),
    ],
)
def test_an_error_loses_nothing_that_was_recorded(
    tmp_path: Path, what: Any, error: type[BaseException], message: str | None
) -> None:
    path = tmp_path / "d.h5"
    with pytest.raises(error, match=message):
        record(Failing(250, what), steps=1000, out=path)
    assert [p.name for p in tmp_path.iterdir()] == ["d.h5"]
    with Dataset(path) as dataset:
        assert dataset.lengths.tolist() == [200, 50]
        assert dataset.episode(0).complete
        assert not dataset.episode(1).complete


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_ctrl_c_closes_the_file_and_keeps_everything(tmp_path: Path) -> None:
    code = """
        from dreamgym.data import record
        show = lambda done, total: print(done, flush=True)
        record("CartPole-v1", steps=10**9, out="d.h5", progress=show)
    """
    for delay in (0.0, 0.013, 0.031):
        process = subprocess.Popen(
            [sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines())],
            cwd=tmp_path,
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3):
            process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert "KeyboardInterrupt" in errors
        assert [p.name for p in tmp_path.iterdir()] == ["d.h5"]
        with Dataset(tmp_path / "d.h5") as dataset:  # the checksums are verified here
            assert dataset.num_steps >= 3 * 256
            complete = [dataset.episode(i).complete for i in range(len(dataset))]
            assert all(complete[:-1])
        (tmp_path / "d.h5").unlink()


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_full_disk_loses_no_committed_episode(tmp_path: Path) -> None:
    done = run_python(
        """
        import resource
        from dreamgym.data import record, DatasetError
        resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, resource.RLIM_INFINITY))
        try:
            record("CartPole-v1", steps=100_000, out="d.h5")
        except DatasetError as error:
            print(error)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "d.h5: no room to write episode" in done.stdout
    with Dataset(tmp_path / "d.h5") as dataset:
        assert f"{dataset.num_episodes} episodes ({dataset.num_steps:,} steps)" in done.stdout
        assert dataset.num_episodes > 50


def test_the_recorder_is_transparent_and_keeps_early_resets(tmp_path: Path) -> None:
    plain = gym.make("Pendulum-v1")
    with Recorder(gym.make("Pendulum-v1"), tmp_path / "d.h5", policy="mine") as env:
        for seed in (5, None):
            a, b = plain.reset(seed=seed), env.reset(seed=seed)
            np.testing.assert_array_equal(a[0], b[0])
            for step in range(20):
                action = np.array([np.sin(step)], dtype=np.float32)
                np.testing.assert_array_equal(plain.step(action)[0], env.step(action)[0])
            assert env.num_steps in (20, 40)
        env.reset()
        env.reset()
    with Dataset(tmp_path / "d.h5") as dataset:
        assert dataset.policy == "mine"
        assert dataset.lengths.tolist() == [20, 20]
        assert [dataset.episode(i).seed for i in range(2)] == [5, None]


def test_observations_are_copied(tmp_path: Path) -> None:
    class Reusing(gym.Wrapper):
        buffer = np.zeros(3, np.float32)

        def step(self, action: Any) -> Any:
            observation, *rest = self.env.step(action)
            self.buffer[:] = observation
            return self.buffer, *rest

    with Recorder(Reusing(gym.make("Pendulum-v1")), tmp_path / "d.h5") as env:
        env.reset(seed=0)
        seen = [env.step(env.action_space.sample())[0].copy() for _ in range(5)]
    with Dataset(tmp_path / "d.h5") as dataset:
        np.testing.assert_array_equal(dataset.episode(0).observations[1:], seen)


def test_a_step_without_a_reset_is_refused(tmp_path: Path) -> None:
    with Recorder(gym.make("Pendulum-v1"), tmp_path / "d.h5") as env:
        with pytest.raises(DatasetError, match="reset"):
            env.step(np.zeros(1, np.float32))
        env.reset(seed=0)
        for _ in range(200):
            env.step(np.zeros(1, np.float32))
        with pytest.raises(DatasetError, match="reset"):
            env.step(np.zeros(1, np.float32))


def test_a_discrete_action_may_be_any_integer_type(tmp_path: Path) -> None:
    env = Recorder(gym.make("CartPole-v1"), tmp_path / "d.h5")
    env.reset(seed=0)
    for action in (0, np.int32(1), np.array(0), np.int64(1)):
        env.step(action)
    env.close()
    with Dataset(tmp_path / "d.h5") as dataset:
        assert dataset.episode(0).actions.tolist() == [0, 1, 0, 1]
        assert dataset.episode(0).actions.dtype == np.int64


def test_multi_discrete_actions_are_recorded(tmp_path: Path) -> None:
    class TwoButtons(gym.ActionWrapper):
        action_space = spaces.MultiDiscrete([2, 3])

        def action(self, action: np.ndarray) -> int:
            return int(action[0])

    path = record(TwoButtons(gym.make("CartPole-v1")), steps=50, out=tmp_path / "d.h5")
    with Dataset(path) as dataset:
        assert dataset.action_space == spaces.MultiDiscrete([2, 3])
        assert dataset.episode(0).actions.shape[1:] == (2,)


class NeverEnds(gym.Env[Any, Any]):
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), 0.0, False, False, {}


def test_episodes_are_truncated_after_max_episode_steps(tmp_path: Path) -> None:
    path = record(NeverEnds(), steps=20, out=tmp_path / "d.h5", max_episode_steps=8)
    resume(NeverEnds(), steps=30, out=path, max_episode_steps=8)
    with Dataset(path) as dataset:
        assert dataset.lengths.tolist() == [8, 8, 4, 8, 2]
        assert dataset.time_limit == 8
        assert dataset.episode(0).truncated
    with pytest.raises(ValueError, match="max_episode_steps is 0"):
        record(NeverEnds(), steps=20, out=tmp_path / "e.h5", max_episode_steps=0)


def test_a_shorter_time_limit_of_the_environment_stays(tmp_path: Path) -> None:
    path = record("Pendulum-v1", steps=400, out=tmp_path / "d.h5", max_episode_steps=300)
    with Dataset(path) as dataset:
        assert dataset.lengths.tolist() == [200, 200]
        assert json.loads(dataset.env_spec or "")["max_episode_steps"] == 200
    path = record("Pendulum-v1", steps=100, out=tmp_path / "e.h5", max_episode_steps=50)
    with Dataset(path) as dataset:
        assert json.loads(dataset.env_spec or "")["max_episode_steps"] == 50


class Rewards(gym.Env):
    """Five steps with the reward that `make` makes of a half."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, make: Any) -> None:
        self.make, self.steps = make, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        self.steps += 1
        return np.zeros(2, np.float32), self.make(0.5), self.steps == 5, False, {}


def tensor(value: float) -> Any:
    return pytest.importorskip("torch").tensor([value], requires_grad=True)


@pytest.mark.parametrize(
    "make", [np.float16, np.array, lambda r: np.array([r], np.float32), tensor], ids=range(4)
)
def test_a_reward_may_be_an_array_of_one_number(tmp_path: Path, make: Any) -> None:
    with Dataset(record(Rewards(make), steps=10, out=tmp_path / "a.h5")) as dataset:
        assert dataset.returns.tolist() == [2.5, 2.5]
    skipped = SkipFrames(Rewards(make), steps=5, actions="repeated")
    skipped.reset()
    assert skipped.step(0)[1] == 2.5


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda r: np.array([r, r]), r"its shape is \(2,\)"),
        (lambda r: np.array([[r]]), r"its shape is \(1, 1\)"),
        (lambda r: None, "it is None of type NoneType"),
        (lambda r: "0.5", "it is '0.5' of type str"),
    ],
)
def test_another_reward_is_refused_with_its_row(tmp_path: Path, make: Any, found: str) -> None:
    message = rf"reward: episode 0, row 0: {found}; expected one number; .*TransformReward"
    with pytest.raises(DatasetError, match=message):
        record(Rewards(make), steps=10, out=tmp_path / "a.h5")


def test_resume_refuses_another_class_or_wrapper_where_there_is_no_spec(tmp_path: Path) -> None:
    class Other(NeverEnds):
        pass

    out = record(NeverEnds(), steps=16, out=tmp_path / "a.h5", max_episode_steps=8)
    for env, limit in (
        (Other(), 8),
        (NeverEnds(), 9),
        (NeverEnds(), None),
        (gym.wrappers.TransformReward(NeverEnds(), lambda reward: -reward), 8),
    ):
        with pytest.raises(DatasetError, match=r"the recorded one a TimeLimit\(8\) of NeverEnds"):
            resume(env, steps=32, out=out, max_episode_steps=limit)
    resume(NeverEnds(), steps=32, out=out, max_episode_steps=8)


def test_a_vector_environment_is_refused_with_advice(tmp_path: Path) -> None:
    envs = gym.make_vec("CartPole-v1", num_envs=2)
    with pytest.raises(DatasetError, match="VectorRecorder"):
        record(envs, steps=10, out=tmp_path / "a.h5")


def test_resume_refuses_another_environment_of_the_same_spaces(tmp_path: Path) -> None:
    out = record("CartPole-v1", steps=50, out=tmp_path / "a.h5")
    before = out.read_bytes()
    others = {
        "its id is 'CartPole-v0', the recorded one is 'CartPole-v1'": gym.make("CartPole-v0"),
        "its time limit: 30, the recorded: 500": gym.make("CartPole-v1", max_episode_steps=30),
        "its keyword arguments: .*sutton.*, the recorded: {}": gym.make(
            "CartPole-v1", sutton_barto_reward=True
        ),
        "its wrappers: .*ClipReward": gym.wrappers.ClipReward(gym.make("CartPole-v1"), 0.0, 0.5),
        "its spec cannot be written as JSON": gym.wrappers.TransformReward(
            gym.make("CartPole-v1"), lambda reward: reward / 2
        ),
        "it has no id": gym.make("CartPole-v1").unwrapped,
    }
    others["it has no id"].spec = None
    for message, env in others.items():
        with pytest.raises(DatasetError, match=message):
            resume(env, steps=100, out=out)
        assert out.read_bytes() == before
    resume(gym.make("CartPole-v1", render_mode="rgb_array"), steps=100, out=out)
    with Dataset(out) as dataset:
        assert dataset.num_steps == 100
