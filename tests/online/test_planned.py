"""The online loop in which a planner acts, and nothing but the world is fitted."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import dreamgym
from dreamgym import FitConfig, ImproveConfig, improve
from dreamgym.cli import app
from dreamgym.data import Dataset
from dreamgym.errors import OnlineError
from dreamgym.fitting import OptimizerConfig, checkpoint
from dreamgym.models import TDMPC2Config
from dreamgym.online import act, improve_preset, learn, loop
from dreamgym.train.planners import MPPIConfig, PlannedPolicy

ENV = "Pendulum-v1"
SMALL = ImproveConfig(
    first_steps=80,
    round_steps=40,
    first_policy="random",
    noise=0.0,
    frame_skip=2,
    actions="repeated",
    max_episode_steps=20,
    family="tdmpc2",
    planner=MPPIConfig(horizon=2, candidates=12, iterations=2, elites=4, proposals=2),
    one_fit=True,
    train_ratio=4.0,
    evaluation_episodes=2,
    fit=FitConfig(
        model=TDMPC2Config(latent=8, group=4, encoder=8, mlp=8, bins=11, termination=0.0),
        batch_size=8,
        segment_length=2,
        starts=8,
        optimizer=OptimizerConfig(schedule="constant", warm_up=0),
    ),
)


def plain(result):
    """Return the figures of all rounds without the seconds."""
    return [{k: v for k, v in each.items() if k != "seconds"} for each in result.rounds]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("planned") / "out"
    return improve(ENV, real_steps=160, out=out, seed=3, config=SMALL)


def test_the_planner_records_with_exploration_and_is_measured_without(done):
    names = []
    for each in done.rounds:
        assert each["policy"] is None
        assert each["real_length"] == 10  # decisions
        with Dataset(done.folder / each["data"]) as data:
            names.append(data.policy)
            actions = data.actions(0)
    assert names[0] == "random"
    assert all("MPPIConfig" in name and "explore=True" in name for name in names[1:])
    np.testing.assert_array_equal(actions[::2], actions[1::2])
    policy = done.load_policy()
    assert isinstance(policy, PlannedPolicy)
    assert policy.planner.config == SMALL.planner
    assert policy.planner.value is policy.planner.proposal is policy.planner.model
    assert done.policy_path == done.folder / done.rounds[done.best - 1]["world"]


def test_all_fits_are_one(done):
    assert [each["updates"] for each in done.rounds] == [10, 15, 20]
    model = done.load_world().model
    last = dreamgym.load(done.folder / done.rounds[-1]["world"]).model
    assert int(last.updates) == 20
    assert type(model) is type(last)
    kept = list(done.folder.rglob("*.fitting.safetensors"))
    assert kept == [checkpoint.path_for(done.folder / done.rounds[-1]["world"])]
    optimizer = checkpoint.read(kept[0]).tensors
    assert {float(v) for k, v in optimizer.items() if k.endswith("/step")} == {20.0}


def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_before_a_fit(out):
    fit_world = loop.fit_world
    loop.fit_world = lambda *a, **k: kill() if k["last"] is not None else fit_world(*a, **k)
    improve(ENV, real_steps=160, out=out, seed=3, config=SMALL)


def killed_in_a_fit(out):
    checkpoint.save = kill
    improve(ENV, real_steps=160, out=out, seed=3, config=SMALL)


def killed_while_measuring(out):
    loop.evaluate = kill
    improve(ENV, real_steps=160, out=out, seed=3, config=SMALL)


def killed_after_a_round(out):
    loop.forget_fit = kill
    improve(ENV, real_steps=160, out=out, seed=3, config=SMALL)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_loop_that_was_killed_ends_as_if_it_had_not_been(done, tmp_path):
    out = tmp_path / "out"
    context = multiprocessing.get_context("fork")
    for stage in (
        killed_before_a_fit,
        killed_in_a_fit,
        killed_while_measuring,
        killed_after_a_round,
    ):
        process = context.Process(target=stage, args=(out,))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, stage
    result = improve(ENV, real_steps=160, out=out, seed=3, config=SMALL)
    assert plain(result) == plain(done)
    weights, expected = (
        dreamgym.load(each.folder / each.rounds[-1]["world"]).model.state_dict()
        for each in (result, done)
    )
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("env", "change", "error", "words"),
    [
        ("CartPole-v1", {}, OnlineError, "searches over real numbers.*categorical-cem"),
        (ENV, {"planner": "mpi"}, OnlineError, "did you mean 'mppi'"),
        (ENV, {"planner": "lewm", "family": "mdn-rnn", "fit": None}, OnlineError, "terminal_only"),
    ],
)
def test_a_planner_that_does_not_fit_is_refused_before_any_step(
    tmp_path, env, change, error, words
):
    with pytest.raises(error, match=words):
        improve(env, real_steps=80, out=tmp_path / "o", config=replace(SMALL, **change))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dream_steps": 10}, "dream_steps is 10, and with a planner nothing is trained"),
        ({"family": "pets", "bonus": 1.0}, "bonus is 1.0, and with a planner"),
        ({"fresh_world": True}, "one_fit and fresh_world are both given"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(change, words):
    with pytest.raises(OnlineError, match=words):
        replace(SMALL, **change)


def test_any_family_and_planner_go_without_one_fit(tmp_path):
    fit = FitConfig(updates=4, batch_size=8, segment_length=4, starts=8)
    config = replace(
        SMALL,
        family="mdn-rnn",
        planner="mppi",
        one_fit=False,
        train_ratio=None,
        fit=fit,
        evaluation_episodes=0,
    )
    planner = MPPIConfig(horizon=2, candidates=4, elites=2, iterations=1)
    result = improve(
        ENV, real_steps=120, out=tmp_path / "o", config=replace(config, planner=planner)
    )
    assert [each["updates"] for each in result.rounds] == [4, 4]
    assert not list(tmp_path.rglob("*.fitting.safetensors"))


def test_actor_and_learner_exchange_worlds(tmp_path):
    config = replace(SMALL, first_steps=40)
    learned = []
    for version in (1, 2):
        act(ENV, tmp_path, steps=40, config=config)
        learned.append(learn(tmp_path, versions=version, config=config))
    assert [each["policy"] for each in learned] == [None, None]
    lines = [json.loads(line) for line in (tmp_path / "actor.jsonl").read_text().splitlines()]
    assert {each["version"] for each in lines} == {0, 1}
    assert len(list(tmp_path.rglob("*.fitting.safetensors"))) == 1


def test_the_command_line_takes_a_planner_and_the_published_schedule(tmp_path):
    command = (
        f"improve {ENV} --real-steps 40 --first-steps 40 --preset td-mpc2 --planner mppi "
        f"--train-ratio 100 --max-episode-steps 20 --evaluation-episodes 0 --out {tmp_path}/o"
    )
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 0, done.output
    assert "round-001/world: not measured" in done.output.replace("\n", "")
    preset = improve_preset("td-mpc2")
    assert preset.updates(1000, preset.fit) == 1000
