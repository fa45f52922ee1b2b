"""An actor and a learner as two processes: neither waits for the other, either may be killed."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import mmap
import multiprocessing
import os
import signal
import struct
import sys
import time
from dataclasses import replace

import gymnasium as gym
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

import dreamgym
from dreamgym.data import Dataset, DatasetWriter, Recorder
from dreamgym.data.hdf5.journal import Journal
from dreamgym.errors import DatasetError
from dreamgym.online import LatestPolicy, act, learn
from dreamgym.online.parallel import read_weights

ENV = "CartPole-v1"


def wait_until(condition, seconds=240.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, condition
        time.sleep(0.02)


def complete_steps(folder, paths=None):
    total = 0
    for path in (folder / "episodes").glob("*.h5") if paths is None else paths:
        with Dataset(path) as data:
            total += data.num_steps
    return total


def log_of(folder):
    path = folder / "actor.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def slow_cartpole(taken=None):
    """Return an environment that paces itself as a robot does, and counts its steps in `taken`."""

    class Paced(CartPoleEnv):
        def step(self, action):
            time.sleep(0.01)
            result = super().step(action)
            if taken is not None:
                taken[:8] = struct.pack("<q", struct.unpack("<q", taken[:8])[0] + 1)
            return result

    if "dreamgym-tests/PacedCartPole-v0" not in gym.registry:
        gym.register("dreamgym-tests/PacedCartPole-v0", entry_point=Paced, max_episode_steps=200)
    return gym.make("dreamgym-tests/PacedCartPole-v0")


def start(function, *arguments, **keywords):
    process = multiprocessing.get_context("fork").Process(
        target=function, args=arguments, kwargs=keywords
    )
    process.start()
    return process


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.slow
def test_actor_and_learner_may_be_killed_and_started_again(small, tmp_path):
    config = replace(small, first_steps=60, round_steps=40, noise=0.2)
    settings = {"steps": 10**6, "seed": 1, "config": config}
    taken = mmap.mmap(-1, 8)
    actor = start(act, functools.partial(slow_cartpole, taken), tmp_path, **settings)
    learner = start(learn, tmp_path, versions=10**6, config=config)
    try:
        wait_until(lambda: any(each["version"] >= 1 for each in log_of(tmp_path)))
        wait_until(lambda: list(tmp_path.glob("episodes/*.open")))
        time.sleep(0.05)  # for some steps of the open episode
        kill(actor)
        (steps,), episodes = struct.unpack("<q", taken[:8]), len(log_of(tmp_path))
        closed = sorted(tmp_path.glob("episodes/*.h5"))
        assert steps >= 60

        actor = start(act, slow_cartpole, tmp_path, **settings)
        wait_until(lambda: len(log_of(tmp_path)) > episodes + 2)
        # the new actor begins with the newest weights, and every step is there but one in flight
        assert log_of(tmp_path)[episodes]["version"] >= 1
        still_open = steps - complete_steps(tmp_path, closed)
        saved = sorted(tmp_path.glob("episodes/*.h5"))[: len(closed) + (still_open > 1)]
        assert steps - 1 <= complete_steps(tmp_path, saved) <= steps

        version = read_weights(tmp_path)["version"]
        wait_until(lambda: read_weights(tmp_path)["version"] > version)
        kill(learner)
        # the actor goes on without a learner, and the age of its weights grows
        version, steps = read_weights(tmp_path)["version"], complete_steps(tmp_path)
        wait_until(lambda: complete_steps(tmp_path) > steps + 80)
        ages = [each["age_steps"] for each in log_of(tmp_path) if each["version"] == version]
        assert ages == sorted(ages)
        assert ages[-1] > 0

        learner = start(learn, tmp_path, versions=version + 1, config=config)
        learner.join(240)
        assert learner.exitcode == 0
        newest = read_weights(tmp_path)
        assert newest["version"] == version + 1
        assert newest["real_steps"] > steps
        world = dreamgym.load(tmp_path / newest["world"])
        assert "begun_from" in world.provenance["fit"]  # it goes on from the last one's weights
        wait_until(lambda: log_of(tmp_path)[-1]["version"] == version + 1)
    finally:
        for process in (actor, learner):
            if process.is_alive():
                process.kill()


def test_without_a_learner_the_actor_records_with_the_first_policy(small, tmp_path):
    act(ENV, tmp_path, steps=100, config=small)
    act(ENV, tmp_path, steps=50, config=small)
    starts = []
    for path, steps in zip(sorted(tmp_path.glob("episodes/*")), (60, 40, 50), strict=True):
        with Dataset(path) as data:
            assert data.num_steps == steps
            starts.append(tuple(data.episode(0).observations[0]))
    assert len(set(starts)) == 3  # every dataset has its own episodes
    lines = log_of(tmp_path)
    assert {each["version"] for each in lines} == {0}
    assert lines[0]["age_steps"] == 0 < lines[1]["age_steps"]


def test_the_episodes_of_an_actor_that_was_killed_are_saved_at_its_next_start(small, tmp_path):
    act(ENV, tmp_path, steps=60, config=small)
    first = tmp_path / "episodes" / "00000.h5"
    with Dataset(first) as data:
        episodes = data.num_episodes
    first.rename(first.with_name(first.name + ".partial"))
    act(ENV, tmp_path, steps=20, config=small)
    with Dataset(first) as data:
        assert data.num_episodes == episodes
    assert sorted(path.name for path in first.parent.iterdir()) == ["00000.h5", "00001.h5"]


def first_dataset(tmp_path, config):
    """Record one dataset; return its path and its episodes."""
    act(ENV, tmp_path, steps=60, config=config)
    path = tmp_path / "episodes" / "00000.h5"
    with Dataset(path) as data:
        return path, data.num_episodes


def test_a_damaged_open_episode_is_set_aside_and_the_actor_goes_on(small, tmp_path):
    path, episodes = first_dataset(tmp_path, small)
    with Dataset(path) as data:
        metadata = data.metadata
    path.rename(path.with_name(path.name + ".partial"))
    journal = Journal(path, metadata)
    journal.begin(episodes, None, 0, [0.0] * 4)
    journal.append(1, [float("nan")] * 4, 1.0, False, False)
    with pytest.warns(UserWarning, match=r"kept as .*00000\.h5\.open-1, without its steps"):
        act(ENV, tmp_path, steps=20, config=small)
    with Dataset(path) as data:
        assert data.num_episodes == episodes
    assert path.with_name("00000.h5.open-1").stat().st_size > 0


@pytest.mark.parametrize("renamed", [False, True])
def test_a_rescue_that_was_killed_is_done_again(small, tmp_path, renamed):
    path, episodes = first_dataset(tmp_path, small)
    # before the rescued dataset had its name, or before the unfinished file was set aside
    path.rename(path.with_name(path.name + (".killed" if renamed else ".partial")))
    path.with_name(path.name + ".tail").write_bytes(b"rows")
    act(ENV, tmp_path, steps=20, config=small)
    with Dataset(path) as data:
        assert data.num_episodes == episodes
    assert sorted(each.name for each in path.parent.glob("*.h5")) == ["00000.h5", "00001.h5"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("last", [1, 2, 37, 60, 75])
def test_no_step_of_an_actor_that_was_killed_is_lost(small, tmp_path, last, monkeypatch):
    """Datasets have 60 steps; the kill comes in the step after `last`."""
    calls, step = itertools.count(1), CartPoleEnv.step

    def step_or_die(env, action):
        if next(calls) > last:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(env, action)

    with monkeypatch.context() as patched:
        patched.setattr(CartPoleEnv, "step", step_or_die)
        actor = start(act, ENV, tmp_path, steps=200, config=small)
        actor.join(60)
    assert actor.exitcode == -signal.SIGKILL
    act(ENV, tmp_path, steps=10, config=small)
    assert complete_steps(tmp_path) == last + 10
    files = sorted(path.name for path in (tmp_path / "episodes").iterdir())
    assert files == [f"{number:05d}.h5" for number in range(len(files))]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("place", ["first step", "new file"])
def test_an_actor_that_was_killed_before_its_first_episode_starts_again(
    small, tmp_path, place, monkeypatch
):
    first_dataset(tmp_path, small)
    owner, name = {"first step": (CartPoleEnv, "step"), "new file": (DatasetWriter, "_start")}[
        place
    ]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        actor = start(act, ENV, tmp_path, steps=30, config=small)
        actor.join(60)
    assert actor.exitcode == -signal.SIGKILL
    assert (tmp_path / "episodes/00001.h5.partial").exists()
    unreadable = pytest.warns(UserWarning, match="without its steps")
    with unreadable if place == "new file" else contextlib.nullcontext():
        act(ENV, tmp_path, steps=30, config=small)
    assert complete_steps(tmp_path) == 90


def test_a_second_actor_in_a_folder_is_refused(small, tmp_path):
    with gym.make(ENV) as env, Recorder(env, tmp_path / "episodes/00000.h5") as robot:
        robot.reset(seed=0)
        robot.step(0)
        with pytest.raises(DatasetError, match="its writer is alive"):
            act(ENV, tmp_path, steps=10, config=small)


def test_progress_says_who_acted_and_what_was_made(small, tmp_path):
    seen = []
    act(ENV, tmp_path, steps=130, config=small, progress=seen.append)
    learn(tmp_path, versions=1, config=small, progress=seen.append)
    act(ENV, tmp_path, steps=10, config=small, progress=seen.append)
    assert [each["version"] for each in seen] == [0, 0, 0, 1, 1]
    assert [each.get("steps") for each in seen] == [60, 60, 10, None, 10]


def test_the_learner_goes_on_where_it_was(small, tmp_path):
    act(ENV, tmp_path, steps=150, config=small)
    first = learn(tmp_path, versions=1, config=small)
    assert learn(tmp_path, versions=1, config=small) == first
    assert first["real_steps"] == 150
    (tmp_path / "version-002").mkdir()  # of a learner that was killed
    act(ENV, tmp_path, steps=30, config=small)
    second = learn(tmp_path, versions=2, config=small)
    assert second["real_steps"] == 180
    assert second["version"] == 2


def test_a_robot_s_own_loop_is_a_plain_loop_over_the_policy(small, tmp_path):
    act(ENV, tmp_path, steps=130, config=small)
    with gym.make(ENV) as env:
        policy = LatestPolicy(tmp_path, env, small)
        versions = []
        for episode in range(2):
            observation, _ = env.reset(seed=episode)
            policy.reset([0], [episode])
            versions.append(policy.version)
            ended = False
            while not ended:
                action = policy.act([observation], [0])[0]
                observation, _, terminated, truncated, _ = env.step(action)
                ended = terminated or truncated
            learn(tmp_path, versions=1, config=small)  # beside it, in another process
    assert versions == [0, 1]
