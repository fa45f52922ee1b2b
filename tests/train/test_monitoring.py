"""Checkpoints, resuming, logs and evaluations while a policy trains, and several seeds at once."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamgym.errors import TrainingInterrupted
from dreamgym.train import (
    LEARNERS,
    Monitoring,
    TrainConfig,
    TrainingError,
    load_policy,
    train_policy,
    train_seeds,
)
from dreamgym.train.seeds import seed_path

CONFIG = TrainConfig(num_envs=4, n_steps=4, batch_size=8, net_arch=(8,))
LEARNERS_OF_PPO = [name for name, each in LEARNERS.items() if "PPO" in each.algorithms]
OF_DISCRETE = ("DQN", "QRDQN")
OFF_POLICY = ("SAC", "TD3", "DDPG", "TQC", "CrossQ", *OF_DISCRETE)
RESUMED = [
    (name, algo)
    for name, each in LEARNERS.items()
    for algo in each.algorithms
    if algo != "CMA-ES"  # see test_resuming_evolution_is_exact
]


def config_of(algo):
    """Return settings that make a training short."""
    few = {"num_envs": 4, "net_arch": (8,)}
    if algo in OFF_POLICY:
        learner = {"learning_starts": 8, "gradient_steps": 1, "buffer_size": 100}
        return TrainConfig(**few, batch_size=8, learner=learner)
    return TrainConfig(**few, n_steps=4) if algo == "A2C" else CONFIG


def stop_at(steps, error=KeyboardInterrupt):
    def progress(done, total, figures):
        if done >= steps:
            raise error

    return progress


def weights(policy):
    return {name: leaf.clone() for name, leaf in policy.network.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("learner", "algo"), RESUMED)
def test_a_training_is_resumed_after_ctrl_c(box_world, discrete_world, tmp_path, learner, algo):
    pytest.importorskip(LEARNERS[learner].requires)
    world = discrete_world if algo in OF_DISCRETE else box_world
    arguments = {"learner": learner, "algo": algo, "steps": 64, "out": tmp_path / "p"}
    arguments["config"] = config_of(algo)
    with pytest.raises(TrainingInterrupted) as stopped:
        train_policy(world, progress=stop_at(32), **arguments)
    checkpoint = stopped.value.path
    assert checkpoint == tmp_path / f"p.interrupted{LEARNERS[learner].suffix}"
    before = load_policy(checkpoint)
    reported = []
    policy = train_policy(
        world,
        resume=True,
        progress=lambda done, total, figures: reported.append((done, total)),
        **arguments,
    )
    assert not checkpoint.exists()
    assert policy.card.steps == 64
    assert policy.card.seed == 0
    assert [steps for steps, _ in policy.curve] == sorted({steps for steps, _ in policy.curve})
    assert policy.card.curve[: len(before.card.curve)] == before.card.curve
    assert reported[-1] == (64, 64)
    assert reported[0][0] > before.card.steps
    assert policy.card.policy == before.card.policy
    again = train_policy(world, resume=True, **arguments)
    assert again.name == policy.name, "a finished training is not repeated"


def test_a_rate_that_falls_to_zero_goes_on_from_where_it_had_fallen_to(discrete_world, tmp_path):
    config = replace(config_of("DQN"), learning_rate=1e-3)
    arguments = {"algo": "DQN", "steps": 64, "out": tmp_path / "p", "config": config}
    with pytest.raises(TrainingInterrupted) as stopped:
        train_policy(discrete_world, progress=stop_at(32), **arguments)
    done = load_policy(stopped.value.path).card.steps
    policy = train_policy(discrete_world, resume=True, **arguments)
    rate = policy.algorithm.lr_schedule
    assert rate(1.0) == pytest.approx(1e-3 * (1 - done / 64))
    assert rate(0.0) == 0.0
    assert policy.card.hyperparameters["learning_rate"] == 1e-3


@pytest.mark.parametrize("learner", LEARNERS_OF_PPO)
def test_a_training_of_no_learning_rate_leaves_the_initial_policy_as_it_was(box_world, learner):
    pytest.importorskip(LEARNERS[learner].requires)
    first = train_policy(box_world, learner=learner, steps=32, config=CONFIG)
    still = TrainConfig(num_envs=4, n_steps=4, batch_size=8, learning_rate=1e-30)
    again = train_policy(box_world, learner=learner, steps=32, config=still, initial=first, seed=5)
    assert same(weights(again), weights(first))
    assert again.card.reward_scale == first.card.reward_scale


def test_a_checkpoint_survives_a_crash(discrete_world, tmp_path):
    arguments = {"learner": "ppo", "steps": 96, "out": tmp_path / "p", "config": CONFIG}
    monitoring = Monitoring(checkpoint_every=32)
    with pytest.raises(RuntimeError, match="power"):
        train_policy(
            discrete_world,
            monitoring=monitoring,
            progress=stop_at(48, RuntimeError("power")),
            **arguments,
        )
    checkpoint = tmp_path / "p.interrupted.safetensors"
    assert load_policy(checkpoint).card.steps == 32
    policy = train_policy(discrete_world, resume=True, monitoring=monitoring, **arguments)
    assert policy.card.steps == 96
    assert sorted(tmp_path.iterdir()) == [tmp_path / "p.safetensors"]


def test_resuming_evolution_is_exact(discrete_world, tmp_path):
    pytest.importorskip("cma")
    config = TrainConfig(learner={"popsize": 4, "rollouts": 2})
    arguments = {"learner": "cma", "steps": 64, "config": config}
    whole = train_policy(discrete_world, **arguments)
    out = tmp_path / "p"
    with pytest.raises(TrainingInterrupted):
        train_policy(discrete_world, out=out, progress=stop_at(32), **arguments)
    rest = train_policy(discrete_world, out=out, resume=True, **arguments)
    assert torch.equal(rest.network.weights, whole.network.weights)
    assert rest.card.curve == whole.card.curve
    assert rest.card.steps == whole.card.steps


def test_a_checkpoint_of_another_training_is_refused(discrete_world, box_world, tmp_path):
    arguments = {"learner": "ppo", "steps": 64, "out": tmp_path / "p", "config": CONFIG}
    with pytest.raises(TrainingInterrupted):
        train_policy(discrete_world, progress=stop_at(32), **arguments)
    with pytest.raises(TrainingError, match=r"its seed is 0, this one's 1"):
        train_policy(discrete_world, seed=1, resume=True, **arguments)
    with pytest.raises(TrainingError, match=r"its world is"):
        train_policy(box_world, resume=True, **arguments)
    with pytest.raises(TrainingError, match="needs out="):
        train_policy(discrete_world, resume=True, learner="ppo")


@pytest.mark.parametrize("learner", ["sb3", "ppo"])
def test_evaluations_are_on_the_card_and_change_nothing(discrete_world, tmp_path, learner):
    def evaluate(policy):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        policy.predict(np.zeros((3, 4), np.float32))
        return {"real return": policy.card.steps}

    arguments = {"learner": learner, "steps": 64, "config": CONFIG}
    plain = train_policy(discrete_world, **arguments)
    monitoring = Monitoring(
        checkpoint_every=16,
        evaluate_every=32,
        evaluate=evaluate,
        tensorboard=str(tmp_path / "logs"),
    )
    policy = train_policy(discrete_world, out=tmp_path / "p", monitoring=monitoring, **arguments)
    assert same(weights(policy), weights(plain))
    assert policy.card.evaluations == [
        {"steps": 32.0, "real return": 32.0},
        {"steps": 64.0, "real return": 64.0},
    ]
    assert load_policy(tmp_path / "p").card == policy.card
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = events.EventAccumulator(str(tmp_path / "logs"))
    log.Reload()
    assert [(each.step, each.value) for each in log.Scalars("real_return")] == [(32, 32), (64, 64)]
    assert [each.step for each in log.Scalars("dream_return")] == [s for s, _ in policy.curve]


def test_monitoring_that_cannot_be_done_is_refused():
    with pytest.raises(TrainingError, match="evaluate_every is 0"):
        Monitoring(evaluate_every=0, evaluate=dict)
    with pytest.raises(TrainingError, match="give both"):
        Monitoring(evaluate_every=10)


@pytest.mark.slow
def test_several_seeds_are_trained_as_one_after_another(tmp_path):
    world = "CartPole-MDNRNN-v0"
    arguments = {"learner": "ppo", "steps": 32, "config": CONFIG}
    paths = train_seeds(world, [3, 4], out=tmp_path / "p", processes=2, **arguments)
    assert paths == [tmp_path / "p-seed3.safetensors", tmp_path / "p-seed4.safetensors"]
    for seed, path in zip([3, 4], paths, strict=True):
        alone = train_policy(world, seed=seed, **arguments)
        assert load_policy(path).name == alone.name
    with pytest.raises(TrainingError, match="each once"):
        train_seeds(world, [1, 1], out=tmp_path / "q")
    assert seed_path("a/b.zip", 7).name == "b-seed7.zip"
