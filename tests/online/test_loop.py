"""The online loop: its budget, its files, and how it continues."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv

import dreamgym
from dreamgym import ImproveConfig, improve
from dreamgym.data import Dataset
from dreamgym.errors import OnlineError, PolicyError
from dreamgym.fitting import checkpoint
from dreamgym.models import PETSConfig
from dreamgym.online import Branches, improve_preset, loop, stages
from dreamgym.train import TrainConfig

ENV = "CartPole-v1"


def plain(result):
    """Return the figures of all rounds without the seconds."""
    return [{k: v for k, v in each.items() if k != "seconds"} for each in result.rounds]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    from tests.online.conftest import SMALL

    out = tmp_path_factory.mktemp("loop") / "out"
    return improve(ENV, real_steps=200, out=out, seed=3, config=ImproveConfig(**SMALL))


def test_the_recorded_steps_are_the_budget_and_those_of_measuring_stand_beside(done):
    assert [each["steps"] for each in done.rounds] == [120, 60, 20]
    assert done.real_steps == 200
    recorded = 0
    for each in done.rounds:
        with Dataset(done.folder / each["data"]) as data:
            recorded += data.num_steps
    assert recorded == 200
    lengths = np.cumsum([2 * each["real_length"] for each in done.rounds])
    assert [each["evaluation_steps"] for each in done.rounds] == lengths.tolist()


def test_every_round_keeps_its_data_world_policy_and_figures(done):
    names = []
    for number, each in enumerate(done.rounds, 1):
        assert json.loads((done.folder / f"round-{number:03d}/figures.json").read_text()) == each
        world = dreamgym.load(done.folder / each["world"])
        policy = dreamgym.train.load_policy(done.folder / each["policy"], world=world)
        assert policy.card.world_checksum == dreamgym.train.policy.world_checksum(world)
        with Dataset(done.folder / each["data"]) as data:
            names.append(data.policy)
    assert names[0] == "random"
    assert all("noise 0.5" in name for name in names[1:])
    assert not [path for path in done.folder.rglob("*") if ".tmp" in path.name]


def test_later_rounds_record_with_the_policy_before_and_go_on_from_its_weights(done):
    first, second = (
        dreamgym.train.load_policy(done.folder / each["policy"]) for each in done.rounds[:2]
    )
    with Dataset(done.folder / done.rounds[1]["data"]) as data:
        assert data.policy == f"{first.name} sampled, noise 0.5"
    assert second.card.policy == first.card.policy  # mean and std of the standardisation
    world = dreamgym.load(done.folder / done.rounds[1]["world"])
    assert "begun_from" in world.provenance["fit"]
    assert world.provenance["dataset_steps"] == 180


def test_the_normalisers_of_a_refit_are_those_of_all_data(done):
    stds = []
    for each in done.rounds:
        model = dreamgym.load(done.folder / each["world"]).model
        stds.append(next(m.std for m in model.modules() if hasattr(m, "delta_std")))
    assert not torch.equal(stds[0], stds[1])
    assert not torch.equal(stds[1], stds[2])


def test_a_finished_loop_is_only_read_and_a_larger_budget_continues_it(done, small, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in done.folder.rglob("*.*")}
    again = improve(ENV, real_steps=200, out=done.folder, seed=3, config=small)
    assert again.rounds == done.rounds
    assert before == {path: path.stat().st_mtime_ns for path in done.folder.rglob("*.*")}
    rounds = []
    short = improve(ENV, real_steps=120, out=tmp_path / "o", seed=3, config=small)
    longer = improve(
        ENV, real_steps=180, out=tmp_path / "o", seed=3, config=small, progress=rounds.append
    )
    assert rounds == longer.rounds
    assert longer.rounds[0] == short.rounds[0]
    assert plain(longer) == plain(done)[:2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 4}, "seed was 3, here 4"),
        ({"config": {"noise": 0.1}}, "config.noise was 0.5, here 0.1"),
        ({"config": {"train": TrainConfig(gamma=0.5)}}, "config.train.gamma was None, here 0.5"),
        ({"env": "Acrobot-v1"}, "env was 'CartPole-v1', here 'Acrobot-v1'"),
    ],
)
def test_a_folder_of_other_settings_is_not_continued(done, small, change, words):
    config = replace(small, **change.pop("config", {}))
    arguments = {"env": ENV, "seed": 3, **change}
    with pytest.raises(OnlineError, match=words):
        improve(real_steps=200, out=done.folder, config=config, **arguments)


def test_a_folder_from_before_a_setting_existed_is_continued(done, small, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(done.folder, out)
    settings = json.loads((out / "settings.json").read_text())
    for name in ("frame_skip", "actions", "max_episode_steps"):
        del settings["config"][name]
    del settings["config"]["fit"]["refit_normalisers"]
    (out / "settings.json").write_text(json.dumps(settings))
    assert improve(ENV, real_steps=200, out=out, seed=3, config=small).rounds == done.rounds
    with pytest.raises(OnlineError, match="frame_skip was 1, here 2"):
        improve(ENV, real_steps=200, out=out, seed=3, config=replace(small, frame_skip=2))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"bonus": 1.0}, OnlineError, "mdn-rnn has none"),
        ({"algo": "SAC"}, OnlineError, "SAC acts in Box action spaces only"),
        ({"family": "mdn-rn"}, ValueError, "mdn-rnn"),
        ({"family": "pets"}, OnlineError, "takes a PETSConfig"),
        ({"first_policy": "stiky:0.5"}, PolicyError, "sticky"),
        ({"learner": "cma", "algo": "CMA-ES"}, OnlineError, "fresh_policy=True"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_real_step(small, tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        improve(ENV, real_steps=200, out=tmp_path / "o", config=replace(small, **change))
    assert not (tmp_path / "o").exists()


def test_a_task_without_an_end_is_limited(small, tmp_path):
    def endless():
        return gym.make("Pendulum-v1", max_episode_steps=-1)

    config = replace(small, max_episode_steps=40)
    result = improve(endless, real_steps=120, out=tmp_path / "o", config=config)
    assert result.rounds[0]["real_length"] == 40
    with Dataset(tmp_path / "o/round-001/data.h5") as data:
        assert set(data.lengths.tolist()) == {40}


def test_the_progress_of_every_stage_is_reported(small, tmp_path):
    seen = []
    improve(
        ENV,
        real_steps=120,
        out=tmp_path / "o",
        config=small,
        stage_progress=lambda *each: seen.append(each),
    )
    ends = {(number, stage): done / total for number, stage, done, total, *_ in seen}
    assert list(ends) == [(1, stage) for stage in ("record", "fit", "train", "evaluate")]
    assert set(ends.values()) == {1.0}


def test_ctrl_c_in_a_training_leaves_nothing_behind(small, tmp_path):
    def stop(number, stage, *_):
        if stage == "train":
            raise KeyboardInterrupt

    settings = {"real_steps": 120, "out": tmp_path / "o", "config": small}
    with pytest.raises(KeyboardInterrupt) as stopped:
        improve(ENV, **settings, stage_progress=stop)
    assert not str(stopped.value)  # the message of train_policy names a file that is not kept
    assert not list(tmp_path.rglob("*.interrupted*"))
    assert improve(ENV, **settings).real_steps == 120


def test_it_stops_when_the_target_is_met_in_reality(small, tmp_path):
    result = improve(ENV, real_steps=10_000, out=tmp_path / "o", target=1.0, config=small)
    assert result.reached
    assert result.real_steps == 120
    config = replace(small, evaluation_episodes=0)
    with pytest.raises(OnlineError, match="evaluation_episodes of at least 1"):
        improve(ENV, real_steps=200, out=tmp_path / "p", target=1.0, config=config)


def test_the_best_round_is_chosen_by_real_returns_never_by_dreams():
    rounds = [
        {"real_return": 10.0, "dream_return": 500.0},
        {"real_return": 30.0, "dream_return": 1.0},
        {"real_return": 30.0, "dream_return": 0.5},
        {"real_return": 20.0, "dream_return": 900.0},
    ]
    assert loop._best(rounds) == 3
    assert loop._best([{"real_return": None, "dream_return": d} for d in (9.0, 1.0)]) == 2


def test_without_evaluation_the_policies_are_the_same_and_no_step_is_beside_the_budget(
    done, small, tmp_path
):
    config = replace(small, evaluation_episodes=0)
    result = improve(ENV, real_steps=180, out=tmp_path / "o", seed=3, config=config)
    measured = dreamgym.train.load_policy(done.folder / done.rounds[1]["policy"])
    assert result.load_policy().name == measured.name  # with a checksum of its weights
    assert result.evaluation_steps == 0
    assert result.best == 2
    assert result.load_policy().predict(np.zeros(4, np.float32))[0] in (0, 1)


def test_a_latent_policy_acts_through_the_world_of_its_round(small, tmp_path):
    train = replace(small.train, view="latent", horizon=5, starts="anywhere")
    config = replace(small, train=train)
    result = improve(lambda: gym.make(ENV), real_steps=180, out=tmp_path / "o", config=config)
    assert result.load_policy().view == "latent"
    assert result.load_world().env_id == ENV


def test_mbpo_trains_on_growing_branches_with_real_transitions_and_a_falling_bonus(
    small, tmp_path, monkeypatch
):
    train = TrainConfig(
        num_envs=8,
        batch_size=16,
        real_share=0.25,
        starts="anywhere",
        learner={"buffer_size": 500, "learning_starts": 16},
    )
    model = PETSConfig(hidden=8, layers=1, members=2, elites=2, head=8)
    fit = dreamgym.default_config("pets", model=model, updates=2, batch_size=32, starts=16)
    config = replace(
        small,
        family="pets",
        algo="DQN",
        bonus=1.0,
        fit=fit,
        train=train,
        train_ratio=None,
        branches=Branches(first=1, last=5, from_steps=120, to_steps=180),
        dream_steps=None,
        dream_ratio=2.0,
    )
    train_in_dreams, bonuses, models = loop.train_in_dreams, [], []

    def noted(*arguments, bonus, **keywords):
        bonuses.append(bonus)
        return train_in_dreams(*arguments, bonus=bonus, **keywords)

    def train_policy(world, **keywords):
        models.append(type(world.model).__name__)
        return dreamgym.train_policy(world, **keywords)

    monkeypatch.setattr(loop, "train_in_dreams", noted)
    monkeypatch.setattr(stages, "train_policy", train_policy)
    result = improve(ENV, real_steps=180, out=tmp_path / "o", config=config)
    assert bonuses == [pytest.approx(1 / 3), 0.0]
    assert models == ["Optimistic", "PETS"]
    cards = [
        dreamgym.train.load_policy(result.folder / each["policy"]).card for each in result.rounds
    ]
    assert [card.hyperparameters["horizon"] for card in cards] == [1, 5]
    assert [card.steps for card in cards] == [240, 120]


def test_schedules_count_from_real_steps():
    branches = Branches(first=1, last=15, from_steps=20_000, to_steps=100_000)
    assert [branches.length(n) for n in (0, 20_000, 60_000, 100_000, 10**6)] == [1, 1, 8, 15, 15]
    config = improve_preset(train_ratio=512.0, dream_ratio=3.0)
    fit = dreamgym.FitConfig(batch_size=16, segment_length=64)
    assert config.updates(1000, fit) == 500
    assert config.training_steps(1000) == 3000
    assert ImproveConfig().updates(1000, fit) == fit.updates


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: improve_preset("mpbo"), "did you mean 'mbpo'"),
        (lambda: ImproveConfig(noise=2.0), "noise is 2.0"),
        (lambda: ImproveConfig(dream_ratio=1.0, dream_steps=5), "both given"),
        (lambda: ImproveConfig(train_ratio=0.0), "train_ratio is 0.0"),
        (lambda: ImproveConfig(train=TrainConfig(alarms="stop")), "would end the loop"),
        (lambda: Branches(from_steps=5, to_steps=5), "expected more than from_steps, 5"),
        (lambda: improve(ENV, real_steps=0, out="nowhere"), "real_steps is 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, words):
    with pytest.raises(OnlineError, match=words):
        make()


# ------------------------------------------------------------------------------- SIGKILL


def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_step(number):
    step, left = CartPoleEnv.step, iter(range(number - 1, -1, -1))

    def step_or_die(self, action):
        return step(self, action) if next(left) else kill()

    CartPoleEnv.step = step_or_die


def killed_while_recording(out, config):
    kill_at_step(70)  # some of CartPole's random episodes are committed by then, and one is open
    improve(ENV, real_steps=200, out=out, seed=3, config=config)


def killed_in_its_next_step(out, config):
    kill_at_step(1)
    improve(ENV, real_steps=200, out=out, seed=3, config=config)


def killed_while_fitting(out, config):
    save, saved = checkpoint.save, []

    def save_and_kill(*arguments):
        save(*arguments)
        saved.append(arguments)
        if len(saved) == 3:  # two in the first round
            kill()

    checkpoint.save = save_and_kill
    improve(ENV, real_steps=200, out=out, seed=3, config=config)


def killed_while_training(out, config):
    loop.train_in_dreams = kill
    improve(ENV, real_steps=200, out=out, seed=3, config=config)


def killed_while_measuring(out, config):
    loop.evaluate = kill
    improve(ENV, real_steps=200, out=out, seed=3, config=config)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_loop_that_was_killed_at_every_stage_ends_as_if_it_had_not_been(done, small, tmp_path):
    out = tmp_path / "out"
    context = multiprocessing.get_context("fork")
    for stage in (
        killed_while_recording,
        killed_in_its_next_step,
        killed_while_training,
        killed_while_measuring,
        killed_while_fitting,
    ):
        process = context.Process(target=stage, args=(out, small))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, stage
    assert list(out.rglob("*.fitting.safetensors"))
    result = improve(ENV, real_steps=200, out=out, seed=3, config=small)
    assert plain(result) == plain(done)
    for each in done.rounds:
        with Dataset(out / each["data"]) as one, Dataset(done.folder / each["data"]) as other:
            assert one.num_steps == other.num_steps
            for index in range(other.num_episodes):
                np.testing.assert_array_equal(
                    one.episode(index).observations, other.episode(index).observations
                )
