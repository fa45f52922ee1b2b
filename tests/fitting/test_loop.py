"""The training loop: repeatable and resumable, with clear errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym
from dreamgym import FitConfig
from dreamgym._device import computes_bfloat16
from dreamgym.data import Dataset
from dreamgym.errors import CheckpointError, FitError
from dreamgym.fitting import checkpoint
from dreamgym.fitting.config import OptimizerConfig
from dreamgym.models import MDNRNN, MDNRNNConfig
from dreamgym.models.statistics import measure_statistics
from dreamgym.world.start_states import burn_in
from tests.data.samples import write_random
from tests.small_worlds import small_model

QUICK = FitConfig(
    updates=30,
    batch_size=16,
    segment_length=8,
    evaluate_every=10,
    starts=64,
    model=MDNRNNConfig(hidden=16, trunk=16, head=16),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "cartpole.h5"
    return dreamgym.record("CartPole-v1", steps=1500, out=out, seed=0)


def same_weights(one, other) -> bool:
    a, b = one.model.state_dict(), other.model.state_dict()
    return all(torch.equal(a[key], b[key]) for key in a)


def test_the_same_seed_gives_the_same_world_and_another_does_not(data):
    one, two = (dreamgym.fit(data, seed=3, config=QUICK) for _ in range(2))
    assert same_weights(one, two)
    assert torch.equal(one.starts.states["z"], two.starts.states["z"])
    assert not same_weights(one, dreamgym.fit(data, seed=4, config=QUICK))


def test_no_global_generator_is_touched(data):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    dreamgym.fit(data, config=replace(QUICK, updates=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


def test_the_loss_falls_and_the_world_has_its_provenance(data, tmp_path):
    seen = []
    world = dreamgym.fit(
        data,
        tmp_path / "w",
        config=replace(QUICK, updates=150, evaluate_every=50),
        progress=lambda done, total, figures: seen.append((done, total, figures)),
    )
    assert seen[-1][0] == seen[-1][1] == 150
    assert seen[-1][2]["loss"] < seen[0][2]["loss"]
    assert world.provenance["dataset_checksum"] == Dataset(data).checksum
    assert world.provenance["fit"]["seed"] == 0
    assert world.provenance["versions"]["torch"]
    assert world.quality["open_loop"]["1"]["rmse"] < world.quality["open_loop"]["1"]["repeat_last"]
    assert 15 <= world.horizon <= 200
    assert world.quality["recommendation"]["horizon"]
    assert {"termination_ece", "action_sensitivity"} <= {*world.provenance["history"][-1]}
    assert world.env_id == "CartPole-v1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["w"]


def test_inspected_figures_do_not_replace_loss_terms_in_the_history(data):
    config = replace(QUICK, updates=1, model=small_model("rssm", "discrete").config)
    world = dreamgym.fit(data, family="rssm", config=config)
    last = world.provenance["history"][-1]
    assert last["kl"] != last["held_out_kl"]


def test_alarms_are_reported_and_saved(data):
    """Untrained weights predict termination with probability 0.5, whatever the action."""
    seen = []
    world = dreamgym.fit(
        data,
        config=replace(QUICK, updates=1, evaluate_every=1),
        progress=lambda done, total, figures: seen.append(figures),
    )
    assert "termination" in seen[-1]["alarms"]
    assert world.provenance["history"][-1]["alarms"] == seen[-1]["alarms"]
    sentences = [alarm for alarm in world.quality["alarms"] if "not calibrated" in alarm]
    assert len(sentences) == 1
    assert "too short" in sentences[0]
    assert world.horizon == 15


def test_without_a_time_limit_dreams_are_at_most_three_episodes_long(tmp_path):
    """The data say nothing of what follows its longest episode."""
    path = write_random(tmp_path / "short.h5", [4, 6, 5])
    world = dreamgym.fit(path, config=replace(QUICK, updates=1))
    assert world.horizon == 18
    assert "too few distinct windows" in world.quality["recommendation"]["horizon"]


def test_a_given_horizon_is_kept(data):
    world = dreamgym.fit(data, config=replace(QUICK, updates=1, horizon=3))
    assert world.horizon == 3


def test_normalisers_are_fitted_on_training_episodes_only(data):
    world = dreamgym.fit(data, config=replace(QUICK, updates=1))
    with Dataset(data) as dataset:
        training, held_out = dataset.split(QUICK.held_out, 0)
        assert not set(training) & set(held_out)
        expected = measure_statistics(
            (dataset.episode(i).observations, dataset.episode(i).rewards) for i in training
        )
    assert torch.equal(world.model.vision.mean, expected.vector.mean.float())


def test_start_states_are_episode_starts_then_any_but_last_observations(data):
    world = dreamgym.fit(data, config=replace(QUICK, updates=1))
    seen = world.model.decode(world.starts.states)
    with Dataset(data) as dataset:
        training, _ = dataset.split(QUICK.held_out, 0)
        episodes = [dataset.episode(i).observations for i in training]
    first = torch.from_numpy(np.stack([episode[0] for episode in episodes]))
    before_last = torch.from_numpy(np.concatenate([episode[:-1] for episode in episodes]))
    assert world.starts.num_episode_starts == 32
    assert world.starts.size == 64
    for states, real in ((seen[:32], first), (seen, before_last)):
        nearest = (states[:, None] - real[None]).abs().amax(-1).amin(1)
        assert float(nearest.max()) < 1e-5


def test_a_start_state_remembers_as_much_as_the_model_was_fitted_to(data):
    worlds = [
        dreamgym.fit(data, config=replace(QUICK, updates=1, segment_length=length))
        for length in (3, 8)
    ]
    with Dataset(data) as dataset:
        training, _ = dataset.split(QUICK.held_out, 0)
        for world, length in zip(worlds, (3, 8), strict=True):
            expected = burn_in(world.model, dataset, training, count=64, length=length)
            assert torch.equal(world.starts.states["h"], expected.states["h"])


def interrupt_at(update: int):
    def callback(done, total, figures):
        if done >= update:
            raise KeyboardInterrupt

    return callback


def test_an_interrupted_fit_resumes_to_the_same_world(data, tmp_path):
    whole = dreamgym.fit(data, tmp_path / "whole", config=QUICK)
    with pytest.raises(KeyboardInterrupt):
        dreamgym.fit(data, tmp_path / "cut", config=QUICK, progress=interrupt_at(15))
    assert checkpoint.path_for(tmp_path / "cut").exists()
    assert not (tmp_path / "cut").exists()
    resumed = dreamgym.fit(data, tmp_path / "cut", config=QUICK)
    assert same_weights(whole, resumed)
    assert not checkpoint.path_for(tmp_path / "cut").exists()
    assert resumed.provenance["history"] == whole.provenance["history"]


KILLED = """
import sys, dreamgym
from tests.fitting.test_loop import QUICK
def report(done, total, figures):
    print(done, flush=True)
dreamgym.fit(sys.argv[1], sys.argv[2], config=QUICK, progress=report)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL to send")
def test_a_killed_fit_resumes_from_its_last_checkpoint_to_the_same_world(data, tmp_path):
    whole = dreamgym.fit(data, tmp_path / "whole", config=QUICK)
    command = [sys.executable, "-c", KILLED, str(data), str(tmp_path / "cut")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= 20:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait(timeout=60)
    kept = checkpoint.path_for(tmp_path / "cut")
    if not (tmp_path / "cut").exists():  # the kill can come too late to matter
        assert kept.exists()
    else:
        pytest.fail(f"the fit was done before it was killed at {time.ctime()}")
    assert same_weights(whole, dreamgym.fit(data, tmp_path / "cut", config=QUICK))


def test_a_checkpoint_of_another_fit_is_refused(data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        dreamgym.fit(data, tmp_path / "w", config=QUICK, progress=interrupt_at(10))
    for other in (replace(QUICK, batch_size=8), replace(QUICK, model=MDNRNNConfig(hidden=8))):
        with pytest.raises(CheckpointError, match=r"another (batch_size|model)"):
            dreamgym.fit(data, tmp_path / "w", config=other)
    with pytest.raises(CheckpointError, match="another seed"):
        dreamgym.fit(data, tmp_path / "w", config=QUICK, seed=1)
    kept = checkpoint.path_for(tmp_path / "w")
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        dreamgym.fit(data, tmp_path / "w", config=QUICK)


STEADY = OptimizerConfig(schedule="constant", warm_up=0)


def test_a_finished_fit_goes_on_as_if_it_had_been_longer(data, tmp_path):
    def fit(name, updates, **settings):
        config = replace(QUICK, optimizer=STEADY, updates=updates)
        return dreamgym.fit(data, tmp_path / name, config=config, keep_checkpoint=True, **settings)

    fit("short", 20)
    earlier = checkpoint.path_for(tmp_path / "short")
    further = fit("long", 40, continue_from=earlier)
    assert further.provenance["updates"] == 40
    assert [each["update"] for each in further.provenance["history"]] == [30, 40]
    fit("whole", 40)
    ends = [checkpoint.read(checkpoint.path_for(tmp_path / name)) for name in ("long", "whole")]
    last = [{k: v for k, v in end.tensors.items() if not k.startswith("best/")} for end in ends]
    assert all(torch.equal(last[0][key], last[1][key]) for key in last[1])
    # a fit that goes on resumes, too
    checkpoint.path_for(tmp_path / "long").rename(checkpoint.path_for(tmp_path / "again"))
    assert same_weights(fit("again", 40, continue_from=earlier), further)


def test_a_fit_that_cannot_go_on_says_why(data, tmp_path):
    config = replace(QUICK, updates=2, optimizer=STEADY)
    dreamgym.fit(data, tmp_path / "w", config=config, keep_checkpoint=True)
    earlier = checkpoint.path_for(tmp_path / "w")
    laprop = replace(config, updates=4, optimizer=replace(STEADY, name="laprop"))
    wider = replace(config, updates=4, model=replace(QUICK.model, hidden=32))
    fitted = replace(config, model=small_model("mdn-rnn", "box"))
    for settings, path, error, words in (
        (config, earlier, CheckpointError, "has 2 updates, which count towards updates=2"),
        (laprop, earlier, CheckpointError, "optimizer 'adamw', and this one has 'laprop'"),
        (wider, earlier, CheckpointError, "with model "),
        (config, tmp_path / "nothing", CheckpointError, "not a readable checkpoint"),
        (fitted, earlier, ValueError, "continue_from and a fitted model are both given"),
    ):
        with pytest.raises(error, match=words):
            dreamgym.fit(data, config=settings, continue_from=path)


def test_settings_of_a_preset_are_the_authors_unless_overridden():
    config = dreamgym.default_config("mdn-rnn", "doom", updates=3)
    assert config.model.hidden == 512
    assert config.updates == 3
    assert dreamgym.default_config("mdn-rnn") == FitConfig()
    with pytest.raises(ValueError, match="did you mean 'doom'"):
        dreamgym.default_config("mdn-rnn", "dom")
    with pytest.raises(ValueError, match="did you mean 'mdn-rnn'"):
        dreamgym.default_config("mdnrnn")


BAD_SETTINGS = [
    ("updates", 0),
    ("evaluate_every", 0),
    ("starts", 1),
    ("held_out", 1.0),
]


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS)
def test_a_setting_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}={value}"):
        replace(QUICK, **{name: value})


INTERRUPTED = """
import os, signal, sys, threading, time
import dreamgym
from tests.fitting.test_loop import QUICK
def strike():
    time.sleep(float(sys.argv[3]))
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=strike, daemon=True).start()
try:
    dreamgym.fit(sys.argv[1], sys.argv[2], config=QUICK)
except KeyboardInterrupt:
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send to oneself")
def test_ctrl_c_at_any_moment_leaves_a_fit_that_resumes_to_the_same_world(data, tmp_path):
    whole = dreamgym.fit(data, config=QUICK)
    for moment in (0.05, 0.1, 0.15, 0.2):
        out = tmp_path / str(moment)
        command = [sys.executable, "-c", INTERRUPTED, str(data), str(out), str(moment)]
        assert subprocess.run(command, timeout=120).returncode in (0, 7)
        again = out if not out.exists() else None
        if again is not None:
            assert same_weights(whole, dreamgym.fit(data, again, config=QUICK))


def test_figures_are_left_out_where_episodes_are_too_short(tmp_path):
    short = dreamgym.record(
        gym.make("CartPole-v1", max_episode_steps=3), steps=60, out=tmp_path / "short.h5", seed=0
    )
    world = dreamgym.fit(short, tmp_path / "w", config=replace(QUICK, updates=2))
    assert "reward_rmse" not in world.quality
    assert "NaN" not in (tmp_path / "w" / "world.json").read_text()


FULL_DISK = """
import resource, signal, sys
import dreamgym
from dreamgym._files import DiskFullError
from tests.fitting.test_loop import QUICK
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def report(done, total, figures):
    if done == 10:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))
try:
    dreamgym.fit(sys.argv[1], sys.argv[2], config=QUICK, progress=report)
except DiskFullError as error:
    assert "no space left" in str(error), error
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on file sizes to set")
def test_a_full_disk_stops_the_fit_which_resumes_when_there_is_space(data, tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(data), str(tmp_path / "cut")]
    assert subprocess.run(command, timeout=120).returncode == 7
    assert [entry.name for entry in tmp_path.iterdir()] == ["cut.fitting.safetensors"]
    whole = dreamgym.fit(data, tmp_path / "whole", config=QUICK)
    assert same_weights(whole, dreamgym.fit(data, tmp_path / "cut", config=QUICK))


RICH = replace(
    QUICK,
    optimizer=OptimizerConfig(
        name="laprop",
        clip_by="agc",
        gradient_clip=0.3,
        schedule="constant",
        warm_up=5,
        ema=0.9,
        accumulate=2,
    ),
)


def test_every_trained_part_resumes_to_the_same_world(data, tmp_path):
    """LaProp's step counts, the moving average of the weights, the schedule, micro-batches."""
    whole = dreamgym.fit(data, config=RICH)
    with pytest.raises(KeyboardInterrupt):
        dreamgym.fit(data, tmp_path / "cut", config=RICH, progress=interrupt_at(11))
    resumed = dreamgym.fit(data, tmp_path / "cut", config=RICH)
    assert same_weights(whole, resumed)
    assert resumed.provenance["history"] == whole.provenance["history"]
    assert resumed.provenance["fit"]["optimizer"] == "laprop"
    assert resumed.provenance["fit"]["ema"] == 0.9


def test_the_moving_average_of_the_weights_is_kept(data):
    slow = OptimizerConfig(learning_rate=0.05, warm_up=0, schedule="constant")
    one, other = (
        dreamgym.fit(data, config=replace(QUICK, updates=10, optimizer=replace(slow, ema=ema)))
        for ema in (0.0, 0.9)
    )
    losses = [[each["loss"] for each in w.provenance["history"]] for w in (one, other)]
    assert losses[0] == losses[1]  # the trained weights are the same
    assert not same_weights(one, other)
    assert one.provenance["best_held_out_loss"] != other.provenance["best_held_out_loss"]


def test_patience_stops_a_fit_that_no_longer_improves(data, tmp_path):
    # The learning rate is far too high: later evaluations are worse.
    wild = OptimizerConfig(learning_rate=0.5, warm_up=0, schedule="constant")
    config = replace(QUICK, updates=400, evaluate_every=5, patience=3, optimizer=wild)
    world = dreamgym.fit(data, tmp_path / "w", config=config)
    info = world.provenance
    held_out = [each["held_out"] for each in info["history"]]
    best = held_out.index(min(held_out))
    assert len(held_out) == best + 1 + 3
    assert info["stopped_early"] is True
    assert info["updates"] == 5 * len(held_out) < 400
    assert info["best_held_out_loss"] == held_out[best]
    patient = dreamgym.fit(data, config=replace(QUICK, updates=10))
    assert patient.provenance["stopped_early"] is False


def test_out_of_memory_names_the_settings_to_lower(data, tmp_path, monkeypatch):
    real = MDNRNN.loss

    def loss(self, segment, noise):
        if self.updates >= 12 and len(segment.mask) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(self, segment, noise)

    monkeypatch.setattr(MDNRNN, "loss", loss)
    expected = r"out of memory at update 12 with batch_size=16, segment_length=8 and accumulate=1; "
    with pytest.raises(FitError, match=expected + "the last good checkpoint is .*accumulate=2"):
        dreamgym.fit(data, tmp_path / "w", config=QUICK)
    kept = checkpoint.read(checkpoint.path_for(tmp_path / "w")).info
    assert kept["update"] == 10
    assert "held_out" in kept["history"][-1]
    halved = replace(QUICK, optimizer=OptimizerConfig(accumulate=2))
    assert dreamgym.fit(data, config=halved).provenance["updates"] == 30


def test_other_errors_are_not_changed(data, monkeypatch):
    def loss(self, segment, noise):
        raise RuntimeError("the dimensions do not match")

    monkeypatch.setattr(MDNRNN, "loss", loss)
    with pytest.raises(RuntimeError, match=r"^the dimensions do not match"):
        dreamgym.fit(data, config=QUICK)


def test_bfloat16_products_fit_nearly_the_same(data):
    one, other = (
        dreamgym.fit(data, config=replace(QUICK, precision=precision)).provenance["history"]
        for precision in ("32-true", "bf16-mixed")
    )
    differ = [each["held_out"] for each in one] != [each["held_out"] for each in other]
    assert differ == computes_bfloat16("cpu")
    for here, there in zip(one, other, strict=True):
        assert there["held_out"] == pytest.approx(here["held_out"], rel=0.02)


def test_a_loss_that_is_not_finite_stops_the_fit_and_is_named(data, tmp_path):
    wild = OptimizerConfig(learning_rate=1e30, gradient_clip=1e30, clip_by="norm")
    wild = replace(QUICK, optimizer=wild, updates=400)
    with pytest.raises(FitError, match=r"(loss|nll|reward|termination) is (nan|inf).*update"):
        dreamgym.fit(data, tmp_path / "w", config=wild)
    assert not (tmp_path / "w").exists()


def test_what_cannot_be_fitted_is_refused_early(data, tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError, match="taken"):
        dreamgym.fit(data, tmp_path / "taken", config=QUICK)
    with pytest.raises(ValueError, match="did you mean 'mdn-rnn'"):
        dreamgym.fit(data, family="mdnrnn")
    with pytest.raises(ValueError, match="auto"):
        dreamgym.fit(data, config=replace(QUICK, device="gpu9"))
    with pytest.raises((OSError, ValueError), match="nowhere"):
        dreamgym.fit(tmp_path / "nowhere.h5", config=QUICK)
    one = dreamgym.record("CartPole-v1", steps=5, out=tmp_path / "one.h5", seed=0)
    with pytest.raises(ValueError, match="episode"):
        dreamgym.fit(one, config=QUICK)


def test_it_logs_to_tensorboard(data, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra is not installed")
    dreamgym.fit(data, config=replace(QUICK, tensorboard=str(tmp_path / "log")))
    assert list((tmp_path / "log").glob("events.*"))


@pytest.mark.gpu
def test_it_fits_on_cuda(data):
    world = dreamgym.fit(data, config=replace(QUICK, device="cuda"))
    assert next(world.model.parameters()).device.type == "cpu"


def test_a_single_episode_is_fitted_with_a_warning(tmp_path):
    env = gym.wrappers.TimeLimit(gym.make("Pendulum-v1").unwrapped, 100_000)
    path = dreamgym.record(env, steps=320, out=tmp_path / "d.h5")
    config = dreamgym.FitConfig(updates=2, batch_size=4, segment_length=8)
    with pytest.warns(UserWarning, match="single episode; it is cut into 10 blocks"):
        world = dreamgym.fit(path, config=config)
    assert world.provenance["dataset_episodes"] == 10
    several = dreamgym.record("Pendulum-v1", steps=600, out=tmp_path / "several.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # whole episodes beside it show how episodes start
        world = dreamgym.fit([(path, 1.0), (several, 1.0)], config=config)
    assert world.provenance["dataset_episodes"] == 13
