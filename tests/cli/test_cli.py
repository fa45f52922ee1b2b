"""The verbs as a user runs them: results, exit codes and error messages."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from dreamgym.cli import main
from dreamgym.data import Dataset
from dreamgym.trust.ranking import given_entries
from dreamgym.world import load

VERBS = (
    "record",
    "check",
    "fit",
    "train",
    "transfer",
    "evaluate",
    "report",
    "export",
    "improve",
    "act",
    "learn",
    "recover",
    "convert",
    "pack",
    "import-checkpoint",
)

pytestmark = pytest.mark.xdist_group("cli")


@dataclass(frozen=True)
class Done:
    """Result of one command line."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""

    def run_line(*arguments: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leave:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        code = leave.value.code
        return Done(code if isinstance(code, int) else int(code is not None), *captured)

    return run_line


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small dataset, world and policy, made by the verbs."""
    folder = tmp_path_factory.mktemp("made")
    lines = [
        f"record CartPole-v1 --steps 1500 --seed 0 --out {folder}/cartpole.h5",
        f"fit {folder}/cartpole.h5 --family mdn-rnn --seed 0 --out {folder}/world --updates 60"
        f" --json {folder}/fit.json",
        f"train {folder}/world --algo PPO --seed 0 --steps 4096 --num-envs 32"
        f" --out {folder}/ppo.zip --json {folder}/train.json",
    ]
    for line in lines:
        with pytest.raises(SystemExit) as leave:
            main(line.split())
        assert not leave.value.code, line
    return folder


def test_record_shows_what_it_recorded(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "cartpole.h5"
    done = run("record", "CartPole-v1", "--steps", 300, "--out", out, "--json", tmp_path / "r.json")
    assert done.code == 0
    assert str(out) in done.out
    assert "record 300/300" in done.err
    figures = json.loads((tmp_path / "r.json").read_text())
    assert figures["steps"] == 300
    assert figures["env_id"] == "CartPole-v1"


def test_a_resumed_recording_has_its_own_speed_and_the_first_seed(run: Run, tmp_path: Path) -> None:
    line = ("record", "CartPole-v1", "--out", tmp_path / "d.h5", "--json", tmp_path / "r.json")
    assert run(*line, "--steps", 300, "--seed", 7).code == 0
    assert run(*line, "--steps", 400, "--resume").code == 0
    figures = json.loads((tmp_path / "r.json").read_text())
    assert figures["seed"] == 7
    assert figures["steps"] == 400
    assert figures["steps_per_second"] == pytest.approx(100 / figures["seconds"])


def test_record_names_its_file_after_the_environment(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("record", "CartPole-v1", "--steps", 50).code == 0
    assert (tmp_path / "CartPole-v1.h5").exists()


def test_several_processes_record_a_folder_that_can_be_fitted(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    assert run("record", "CartPole-v1", "--steps", 600, "--workers", 2, "--out", out).code == 0
    assert len(list(out.iterdir())) == 2
    assert run("fit", out, "--updates", 5, "--out", tmp_path / "world").code == 0


ACTING = """
def lean(observation):
    return int(observation[2] > 0)
"""


def test_policies_of_a_file_and_of_a_module_record(
    run: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "acting_here.py").write_text(ACTING)
    lengths = {}
    for name, words in {
        "zip": ["--policy", made / "ppo.zip"],
        "sampled": ["--policy", made / "ppo.zip", "--sample"],
        "again": ["--policy", made / "ppo.zip", "--sample"],
        "module": ["--policy", "acting_here:lean"],
        "workers": ["--policy", "acting_here:lean", "--workers", 2],
    }.items():
        done = run("record", "CartPole-v1", "--steps", 200, *words, "--out", tmp_path / name)
        assert done.code == 0, done.err
        with Dataset(tmp_path / name) as dataset:
            lengths[name] = dataset.lengths.tolist()
            if name in ("module", "workers"):
                assert dataset.policy == "callable:acting_here:lean"
                episode = dataset.episode(0)
                leant = (episode.observations[:-1, 2] > 0).astype(int)
                assert episode.actions.tolist() == leant.tolist()
            else:
                assert dataset.policy.startswith("sb3:ppo.zip@")
    assert lengths["sampled"] == lengths["again"]
    resumed = run(
        "record", "CartPole-v1", "--steps", 400, "--policy", "acting_here:lean", "--resume",
        "--out", tmp_path / "workers",
    )  # fmt: skip
    assert resumed.code == 0, resumed.err
    with Dataset(tmp_path / "workers") as dataset:
        assert dataset.num_steps == 400
        assert len({dataset.episode(i).seed for i in range(len(dataset))}) == len(dataset)


def test_a_policy_that_sees_latents_records_with_its_world_only(
    run: Run, made: Path, tmp_path: Path
) -> None:
    line = f"train {made}/world --view latent --steps 2048 --num-envs 16 --out {tmp_path}/p.zip"
    assert run(*line.split()).code == 0
    line = f"record CartPole-v1 --steps 60 --policy {tmp_path}/p.zip --out {tmp_path}/d.h5"
    done = run(*line.split())
    assert done.code == 2
    assert "latent" in " ".join(done.err.split())
    assert not (tmp_path / "d.h5").exists()
    assert run(*line.split(), "--world", made / "world").code == 0
    with Dataset(tmp_path / "d.h5") as dataset:
        assert dataset.policy.startswith("sb3:p.zip@")


def test_a_policy_file_records_in_several_processes(run: Run, made: Path, tmp_path: Path) -> None:
    line = f"record CartPole-v1 --steps 60 --policy {made}/ppo.zip --workers 2 --out {tmp_path}/d"
    assert run(*line.split()).code == 0
    with Dataset(tmp_path / "d") as dataset:
        assert dataset.num_steps == 60


def test_check_draws_a_page(run: Run, made: Path, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "card.html"
    assert run("check", made / "cartpole.h5", "--html", page).code == 0
    assert "<svg" in page.read_text()


def test_a_foreign_dataset_is_checked_and_fitted_without_a_conversion(
    run: Run, flat: Path, tmp_path: Path
) -> None:
    words = ("--terminals", "termination", "--env", "CartPole-v1")
    checked = run("check", flat, *words)
    assert checked.code == 0, checked.err
    assert "by option" in checked.out
    done = run("fit", flat, *words, "--updates", 3, "--out", tmp_path / "world")
    assert done.code == 0, done.err


def test_fit_mixes_datasets_and_minds_its_memory(run: Run, made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    assert run("record", "CartPole-v1", "--steps", 200, "--seed", 1, "--out", other).code == 0
    line = f"fit {made}/cartpole.h5 --mix {other}=3 --memory 0 --updates 5 --out {tmp_path}/w"
    assert run(*line.split(), "--json", tmp_path / "f.json").code == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["provenance"]["fit"]["weights"] == [1.0, 3.0]
    assert figures["provenance"]["dataset_steps"] == 1700


def test_fit_skips_frames(run: Run, made: Path, tmp_path: Path) -> None:
    line = f"fit {made}/cartpole.h5 --frame-skip 2 --updates 2 --json {tmp_path}/f.json"
    assert run(*line.split(), "--out", tmp_path / "w").code == 0
    world = json.loads((tmp_path / "w" / "world.json").read_text())
    assert world["frame_skip"] == {"steps": 2, "actions": "blocks"}
    assert json.loads((tmp_path / "f.json").read_text())["frame_skip"] == world["frame_skip"]
    done = run(*line.split(), "--actions", "repeated", "--out", tmp_path / "x")
    assert done.code == 1
    assert "not held for the 2 steps" in done.err
    held = tmp_path / "held.h5"
    assert (
        run("record", "CartPole-v1", "--steps", 300, "--policy", "held:2", "--out", held).code == 0
    )
    line = f"fit {held} --frame-skip 2 --actions repeated --updates 2 --out {tmp_path}/x"
    assert run(*line.split()).code == 0
    assert run(*line.split(), "--actions", "some").code == 1


def test_check_accepts_a_good_dataset(run: Run, made: Path, tmp_path: Path) -> None:
    done = run("check", made / "cartpole.h5", "--json", tmp_path / "card.json")
    assert done.code == 0
    assert "ready to fit" in done.out
    assert json.loads((tmp_path / "card.json").read_text())["ok"] is True


def test_check_refuses_what_fitting_would_refuse(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "one.h5"
    assert run("record", "CartPole-v1", "--steps", 3, "--out", path).code == 0
    checked = run("check", path)
    fitted = run("fit", path, "--out", tmp_path / "world")
    assert (checked.code, fitted.code) == (1, 1)
    assert "not ready" in checked.out
    assert not (tmp_path / "world").exists()


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """A flat npz like those of D4RL: two episodes of CartPole, and no timeouts."""
    path = tmp_path / "flat.npz"
    terminals = np.zeros(20, bool)
    terminals[[9, 19]] = True
    observations = np.random.default_rng(0).uniform(-0.4, 0.4, (21, 4)).astype(np.float32)
    np.savez(
        path,
        observations=observations[:-1],
        next_observations=observations[1:],
        actions=np.zeros(20, np.int64),
        rewards=np.ones(20, np.float32),
        terminals=terminals,
    )
    return path


def test_convert_asks_what_an_ambiguous_flag_means(run: Run, flat: Path, tmp_path: Path) -> None:
    out = tmp_path / "native.h5"
    refused = run("convert", flat, out)
    assert refused.code == 1
    assert "termination" in refused.err
    assert not out.exists()
    done = run("convert", flat, out, "--terminals", "termination", "--env", "CartPole-v1")
    assert done.code == 0, done.err
    assert "by option" in " ".join(done.out.split())
    assert json.loads(info_of(run, out, tmp_path))["env_id"] == "CartPole-v1"


def test_pack_makes_a_smaller_dataset_with_the_same_checksum(
    run: Run, made: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "packed.h5"
    assert run("pack", made / "cartpole.h5", packed, "--json", tmp_path / "p.json").code == 0
    figures = json.loads((tmp_path / "p.json").read_text())
    assert figures["bytes_after"] < figures["bytes_before"]
    checksums = {
        json.loads(info_of(run, each, tmp_path))["checksum"]
        for each in (packed, made / "cartpole.h5")
    }
    assert len(checksums) == 1


def test_fit_writes_a_world_and_its_figures(made: Path) -> None:
    assert (made / "world" / "world.json").exists()
    figures = json.loads((made / "fit.json").read_text())
    assert figures["env_id"] == "CartPole-v1"
    assert figures["quality"]["open_loop"]
    assert figures["provenance"]["dataset_steps"] == 1500


def test_train_writes_a_policy_and_its_figures(made: Path) -> None:
    assert (made / "ppo.zip").exists()
    figures = json.loads((made / "train.json").read_text())
    assert figures["algo"] == "PPO"
    assert figures["steps"] >= 4096


@pytest.mark.slow
def test_train_measures_and_resumes_and_takes_several_seeds(
    run: Run, made: Path, tmp_path: Path
) -> None:
    line = (
        f"train {made}/world --learner ppo --num-envs 4 --n-steps 4 --net-arch 8 --steps 64 "
        f"--seed 5 --seeds 2 --out {tmp_path}/p --evaluate-every 32 --evaluate-episodes 1 "
        f"--tensorboard {tmp_path}/logs --json {tmp_path}/j"
    ).split()
    done = run(*line)
    assert done.code == 0, done.err
    assert "real ones" in done.out
    policies = json.loads((tmp_path / "j").read_text())["policies"]
    assert [each["seed"] for each in policies] == [5, 6]
    for each in policies:
        assert each["policy"] == str(tmp_path / f"p-seed{each['seed']}.safetensors")
        assert [point["steps"] for point in each["evaluations"]] == [32, 64]
        assert all(point["real steps"] > 0 for point in each["evaluations"])
        assert any((tmp_path / "logs" / f"seed{each['seed']}").iterdir())
    assert "--overwrite" in run(*line).err
    (tmp_path / "p-seed6.safetensors").unlink()
    assert run(*line, "--resume").code == 0
    again = json.loads((tmp_path / "j").read_text())["policies"]
    assert again[0]["evaluations"] == policies[0]["evaluations"]
    assert again[1]["curve"] == policies[1]["curve"]
    assert run(*line, "--resume", "--overwrite").code == 2


def test_train_mixes_real_transitions_into_batches(run: Run, made: Path, tmp_path: Path) -> None:
    line = f"train {made}/world --algo DQN --steps 256 --starts anywhere --horizon 1"
    line += f" --real-share 0.1 --out {tmp_path}/dqn.zip --json {tmp_path}/dqn.json"
    assert "--real-data) is None" in run(*line.split()).err
    assert not run(*line.split(), "--real-data", made / "cartpole.h5").code
    assert json.loads((tmp_path / "dqn.json").read_text())["algo"] == "DQN"


def test_train_names_the_file_that_it_wrote(run: Run, made: Path, tmp_path: Path) -> None:
    line = (
        f"train {made}/world --steps 300 --num-envs 8 --n-steps 32 --out {tmp_path}/p "
        f"--json {tmp_path}/j"
    )
    done = run(*line.split())
    assert done.code == 0
    assert f"{tmp_path}/p.zip: PPO, 512 dream steps (300 were asked for" in done.out
    assert "train 512/512" in done.err
    assert json.loads((tmp_path / "j").read_text())["policy"] == f"{tmp_path}/p.zip"
    assert (tmp_path / "p.zip").is_file()
    assert run(*line.split()).code == 1
    (tmp_path / "p.zip").rename(tmp_path / "p.interrupted.zip")
    assert "--resume goes on from it" in run(*line.split()).err
    assert run(*line.split(), "--resume").code == 0
    assert json.loads((tmp_path / "j").read_text())["steps"] == 512 + 256
    again = run(*line.split(), "--resume")
    assert again.code == 0
    assert "it was finished, and nothing was trained" in again.out
    assert json.loads((tmp_path / "j").read_text())["steps"] == 512 + 256
    assert run(*line.split(), "--overwrite").code == 0


def test_transfer_measures_in_reality_and_in_the_dream(run: Run, made: Path) -> None:
    file = made / "deep" / "result.json"
    line = ("transfer", made / "ppo.zip", "--world", made / "world", "--episodes", 5)
    done = run(*line, "--json", file)
    assert done.code == 0
    assert "real return" in done.out
    figures = json.loads(file.read_text())
    low, high = figures["real_return_interval"]
    assert low <= figures["real_return_mean"] <= high
    assert figures["env_id"] == "CartPole-v1"
    assert figures["episodes"] == 5
    assert figures["gap"] == pytest.approx(
        figures["dream_return_mean"] - figures["real_return_mean"]
    )


def test_transfer_shows_random_actions_and_those_of_the_data(run: Run, made: Path) -> None:
    file = made / "baselines.json"
    line = ("transfer", made / "ppo.zip", "--world", made / "world", "--episodes", 3)
    done = run(*line, "--data", made / "cartpole.h5", "--json", file)
    assert done.code == 0
    for shown in ("In the same real episodes", "random", "behaviour cloning", "IQM"):
        assert shown in done.out
    baselines = json.loads(file.read_text())["baselines"]
    assert list(baselines) == ["random", "behaviour cloning"]
    done = run(*line, "--no-baselines", "--json", file)
    assert json.loads(file.read_text())["baselines"] == {}
    assert "behaviour cloning" not in done.out


def test_evaluate_compares_policies_in_the_same_episodes(run: Run, made: Path) -> None:
    file = made / "evaluated.json"
    line = ("evaluate", made / "ppo.zip", "random", "--episodes", 4, "--json", file)
    done = run(*line, "--env", "CartPole-v1")
    assert done.code == 0
    for shown in ("4 episodes", "ppo.zip", "random", "minus"):
        assert shown in done.out
    figures = json.loads(file.read_text())
    assert list(figures["policies"]) == ["ppo.zip", "random"]
    assert figures["differences"]["random"]["to"] == "ppo.zip"
    again = run("evaluate", "random", "--world", made / "world", "--episodes", 4, "--json", file)
    assert again.code == 0
    assert json.loads(file.read_text())["policies"]["random"] == {
        **figures["policies"]["random"],
        "seconds": json.loads(file.read_text())["policies"]["random"]["seconds"],
    }
    refused = run("evaluate", "random")
    assert refused.code == 2
    assert "--env" in refused.err


def test_export_writes_a_controller_that_is_evaluated(run: Run, made: Path) -> None:
    pytest.importorskip("onnxscript")
    folder = made / "robot"
    done = run("export", "--policy", made / "ppo.zip", "--out", folder, "--json", made / "e.json")
    assert done.code == 0
    assert "controller.onnx" in done.out
    assert "no guard" in done.out
    assert json.loads((made / "e.json").read_text())["env_id"] == "CartPole-v1"
    line = ("evaluate", folder, made / "ppo.zip", "--env", "CartPole-v1", "--episodes", 3)
    done = run(*line, "--json", made / "same.json")
    assert done.code == 0
    assert json.loads((made / "same.json").read_text())["differences"]["ppo.zip"]["mean"] == 0.0
    entries = given_entries([folder, str(folder)], load(made / "world"))
    assert [each.name[:5] for each in entries] == ["rando", "onnx:", "onnx:"]
    assert entries[1].checksum == entries[2].checksum != entries[0].checksum
    assert run("export", "--policy", made / "ppo.zip", "--out", folder).code == 1
    assert run("export", "--policy", made / "ppo.zip").code == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("record CartPoll-v1 --out {tmp}/x.h5", "CartPole"),
        ("record CartPole-v1 --policy randm --out {tmp}/x.h5", "random"),
        ("record CartPole-v1 --policy {tmp}/no.zip --out {tmp}/x.h5", "no.zip"),
        ("record Pendulum-v1 --policy {made}/ppo.zip --steps 9 --out {tmp}/x.h5", "observation"),
        ("record CartPole-v1 --workers 2 --resume --out {tmp}/x", "x"),
        ("check {made}/cartpole.h5 --terminals end", "termination"),
        ("check {made}/cartpole.h5 --env CartPoll-v1", "CartPole"),
        ("pack {made}/cartpole.h5 {tmp}/x.h5 --method zip", "zstd"),
        ("fit {made}/cartpole.h5 --mix {tmp}/no.h5=2 --out {tmp}/w", "no.h5"),
        ("fit {made}/cartpole.h5 --key pixels --out {tmp}/w", "pixels"),
        ("check {tmp}/nothing.h5", "nothing.h5"),
        ("convert {tmp}/nothing.npz {tmp}/x.h5", "nothing.npz"),
        ("convert {made}/ppo.zip {tmp}/x.h5 --terminals end", "termination"),
        ("pack {made}/ppo.zip {tmp}/x.h5", "ppo.zip"),
        ("fit {tmp}/nothing.h5 --out {tmp}/w", "nothing.h5"),
        ("fit {made}/cartpole.h5 --family mdn-rnm --out {tmp}/w", "mdn-rnn"),
        ("fit {made}/cartpole.h5 --device cuda:77 --out {tmp}/w", "cuda:77"),
        ("fit {made}/cartpole.h5 --out {made}/world", "exists"),
        ("train {tmp}/nowhere --out {tmp}/p.zip", "nowhere"),
        ("train {made}/world --algo PPPO --out {tmp}/p.zip", "PPO"),
        ("train {made}/world --algo SAC --out {tmp}/p.zip", "SAC"),
        ("train {made}/world --learner sb4 --out {tmp}/p.zip", "sb3"),
        ("fit {made}/cartpole.h5 --batch-size 0 --out {tmp}/w", "batch_size=0"),
        ("train {made}/world --out {made}/ppo.zip", "--overwrite"),
        ("train {made}/world --view latnt --out {tmp}/p.zip", "latent"),
        ("transfer {made}/ppo.zip --world {tmp}/nowhere", "nowhere"),
        ("evaluate {tmp}/no.zip --env CartPole-v1", "no.zip"),
        ("evaluate {made} --env CartPole-v1", "dreamgym export makes one"),
        ("evaluate radom --env CartPole-v1", "did you mean 'random'"),
        ("transfer radom --world {made}/world", "did you mean 'random'"),
        ("report {made}/world --data {made}/cartpole.h5 --policies no.zip", "no.zip"),
        ("evaluate {made}/ppo.zip --env Pendulum-v1", "Pendulum"),
        ("export --out {tmp}/x", "give a policy"),
        ("transfer {tmp}/no.zip --world {made}/world", "no.zip"),
        ("transfer {made}/cartpole.h5 --world {made}/world", "cartpole.h5"),
        ("transfer {made}/ppo.zip --world {made}/world --env Pendulum-v1", "Pendulum"),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing(
    line: str, message: str, run: Run, made: Path, tmp_path: Path
) -> None:
    done = run(*line.format(tmp=tmp_path, made=made).split())
    assert done.code == 1
    errors = [each for each in done.err.splitlines() if each.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "defect" not in errors[0]
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("recrod CartPole-v1", "'record'"),
        ("record CartPole-v1 --stepz 10", "--steps"),
        ("record", "ENV"),
        ("record CartPole-v1 --steps 0", "--steps"),
        ("record CartPole-v1 --steps many", "--steps"),
        ("record CartPole-v1 --policy nosuch.module:act --out {tmp}/x.h5", "nosuch"),
        ("record CartPole-v1 --policy os:nothing --out {tmp}/x.h5", "nothing"),
        ("check x.h5 --json .", "folder"),
        ("report world --data x.h5 --out {tmp}/x.pdf", ".html"),
        ("transfer p.zip", "--world"),
        ("pack a.h5 b.h5 --level 12", "--level"),
    ],
)
def test_a_wrong_command_line_exits_with_2(
    line: str, message: str, run: Run, tmp_path: Path
) -> None:
    done = run(*line.format(tmp=tmp_path).split())
    assert done.code == 2
    assert message in done.err


def test_debug_shows_the_traceback_wherever_it_stands(run: Run, tmp_path: Path) -> None:
    for line in (("--debug", "check"), ("check", "--debug")):
        done = run(*line, tmp_path / "nothing.h5")
        assert done.code == 1
        assert "Traceback" in done.err


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_shows_an_example(verb: str, run: Run) -> None:
    done = run(verb, "--help")
    assert done.code == 0
    assert f"Example: dreamgym {verb} " in done.out
    assert "--json" in done.out


def test_no_verb_lists_all_of_them(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    assert all(f" {verb} " in done.out for verb in VERBS)


def test_defaults_that_help_names_are_the_real_ones(run: Run) -> None:
    from dreamgym.fitting.config import FitConfig

    shown = " ".join(run("fit", "--help").out.replace("│", " ").split())
    config = FitConfig()
    after = shown.split("--held-out")[1].split(" --")[0]
    assert after.endswith(f"Default: {config.held_out}.")


def test_every_setting_of_a_fit_and_of_a_training_is_an_option(run: Run) -> None:
    from dreamgym.fitting.config import FitConfig, OptimizerConfig
    from dreamgym.train import TrainConfig

    names = {each.name for config in (FitConfig, OptimizerConfig) for each in fields(config)}
    shown = run("fit", "--help").out
    for name in names - {"model", "name"}:
        assert f"--{name.replace('_', '-')} " in shown
    shown = run("train", "--help").out
    for name in {each.name for each in fields(TrainConfig)}:
        assert f"--{name.replace('_', '-')} " in shown


def test_settings_reach_the_fit_and_the_training(run: Run, made: Path, tmp_path: Path) -> None:
    line = f"fit {made}/cartpole.h5 --updates 3 --optimizer adam --betas 0.8 0.99 --starts 64"
    assert run(*line.split(), "--out", tmp_path / "w").code == 0
    fitted = json.loads((tmp_path / "w" / "world.json").read_text())["provenance"]["fit"]
    assert (fitted["optimizer"], fitted["betas"]) == ("adam", [0.8, 0.99])
    assert fitted["starts"] == 64
    line = f"train {made}/world --steps 64 --n-steps 8 --num-envs 4 --net-arch 8 --net-arch 16"
    done = run(*line.split(), "--out", tmp_path / "p", "--json", tmp_path / "p.json")
    assert done.code == 0, done.err
    card = json.loads((tmp_path / "p.json").read_text())
    assert card["network"]["net_arch"] == [8, 16]
    assert card["hyperparameters"]["n_steps"] == 8


def test_import_checkpoint_is_still_reached_by_its_former_name(run: Run) -> None:
    assert run("adopt", "--help").code == 0
    assert " adopt " not in run("--help").out


def test_record_replaces_a_dataset_only_on_request(run: Run, tmp_path: Path) -> None:
    line = ("record", "CartPole-v1", "--out", tmp_path / "d.h5")
    assert run(*line, "--steps", 40).code == 0
    assert run(*line, "--steps", 50).code == 1
    assert run(*line, "--steps", 50, "--resume", "--overwrite").code == 2
    assert run(*line, "--steps", 50, "--overwrite").code == 0
    with Dataset(tmp_path / "d.h5") as dataset:
        assert dataset.num_steps == 50
    assert [path.name for path in tmp_path.iterdir()] == ["d.h5"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_writes_data_can_overwrite(verb: str, run: Run) -> None:
    shown = " ".join(run(verb, "--help").out.replace("│", " ").split())
    # These write figures only, keep the original, or continue.
    if verb in ("check", "recover", "transfer", "evaluate", "report", "improve", "act", "learn"):
        assert "--overwrite" not in shown
    else:
        assert re.search(
            r"--overwrite <bool> Overwrite an existing (dataset|world|policy|folder)\.", shown
        )


def test_convert_and_pack_replace_a_dataset_only_on_request(
    run: Run, made: Path, flat: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.h5"
    out.write_text("an older file")
    convert = ("convert", flat, out, "--terminals", "termination", "--env", "CartPole-v1")
    pack = ("pack", made / "cartpole.h5", out)
    for line in (convert, pack):
        before = out.read_bytes()
        assert run(*line).code == 1
        assert out.read_bytes() == before
        assert run(*line, "--overwrite").code == 0
        assert run("check", out).code == 0
    assert run("pack", flat, out, "--overwrite").code == 1
    assert run("check", out).code == 0, "a failure leaves the previous file"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flat.npz", "out.h5"]


def test_transfer_takes_the_policies_that_record_takes(
    run: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "transfer_here.py").write_text(ACTING)
    for policy in ("random", "transfer_here:lean"):
        done = run("transfer", policy, "--world", made / "world", "--episodes", 2)
        assert done.code == 0, done.err


ENDLESS = """
import gymnasium as gym, numpy as np

class Endless(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 1).astype(np.float32), {}
    def step(self, action):
        return self.np_random.uniform(-1, 1, 1).astype(np.float32), 1.0, False, False, {}

gym.register("EndlessHere-v0", entry_point="endless_here:Endless")
"""


def test_a_task_without_an_end_goes_from_record_to_transfer(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "endless_here.py").write_text(ENDLESS)
    line = "record endless_here:EndlessHere-v0 --steps 200 --max-episode-steps 20 --out d.h5"
    assert run(*line.split()).code == 0
    line = "fit d.h5 --updates 2 --segment-length 8 --out w"
    assert run(*line.split()).code == 0
    line = "transfer random --world w --episodes 2 --json t.json"
    assert run(*line.split(), "--max-episode-steps", "10").code == 0
    figures = json.loads((tmp_path / "t.json").read_text())
    assert figures["step_limit"] == 10
    assert figures["step_limit_reason"] == "max_episode_steps was given"
    monkeypatch.delitem(gymnasium.registry, "EndlessHere-v0")
    done = run(*line.split())
    assert done.code == 1
    message = " ".join(done.err.split())
    assert "import the module" in message
    assert "--env MODULE:EndlessHere-v0" in message


def interrupt(
    line: str, once: Callable[[], bool], *, cwd: Path, how: signal.Signals = signal.SIGINT
) -> Done:
    """Run a command line in a process of its own and press Ctrl-C when `once` is true."""
    command = [sys.executable, "-c", "from dreamgym.cli import main; main()", *line.split()]
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    give_up = time.monotonic() + 60
    while not once() and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.05)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    return Done(process.returncode, out, err)


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C works differently there")
def test_ctrl_c_while_recording_keeps_the_finished_episodes(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "long.h5"
    done = interrupt(
        f"record CartPole-v1 --steps 50000000 --out {out}",
        lambda: any(path.stat().st_size > 1_000_000 for path in tmp_path.iterdir()),
        cwd=tmp_path,
    )
    assert done.code == 130, done.err
    assert "interrupted: " in done.err
    assert str(out) in done.err
    assert "Traceback" not in done.err
    assert run("check", out).code == 0
    recorded = json.loads(info_of(run, out, tmp_path))["steps"]
    line = ("record", "CartPole-v1", "--steps", recorded + 500, "--out", out, "--resume")
    assert run(*line).code == 0
    assert json.loads(info_of(run, out, tmp_path))["steps"] == recorded + 500


def info_of(run: Run, dataset: Path, folder: Path) -> str:
    """The card of a dataset as JSON."""
    assert run("check", dataset, "--json", folder / "card.json").code == 0
    return (folder / "card.json").read_text()


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_killed_recording_is_recovered(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "killed.h5"
    done = interrupt(
        f"record CartPole-v1 --steps 50000000 --out {out}",
        lambda: any(path.stat().st_size > 1_000_000 for path in tmp_path.iterdir()),
        cwd=tmp_path,
        how=signal.SIGKILL,
    )
    assert done.code == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    refused = run("check", left)
    assert refused.code == 1
    assert "dreamgym recover" in refused.err
    recovered = run("recover", out, "--json", tmp_path / "recovered.json")
    assert recovered.code == 0
    figures = json.loads((tmp_path / "recovered.json").read_text())
    assert figures["dataset"] == str(out)
    assert figures["damaged_episodes"] == []
    assert json.loads(info_of(run, out, tmp_path))["episodes"] == figures["episodes"] > 0
    assert Path(figures["original"]).exists()


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C works differently there")
def test_ctrl_c_while_fitting_keeps_a_checkpoint(made: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "world.fitting.safetensors"
    done = interrupt(
        f"fit {made}/cartpole.h5 --updates 1000000 --evaluate-every 5 --out {tmp_path}/world",
        checkpoint.exists,
        cwd=tmp_path,
    )
    assert done.code == 130, done.err
    assert str(checkpoint) in done.err
    assert checkpoint.exists()
    assert not (tmp_path / "world").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C works differently there")
def test_ctrl_c_while_training_says_what_was_kept(made: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    done = interrupt(
        f"train {made}/world --steps 100000000 --out {tmp_path}/ppo.zip",
        lambda: time.monotonic() - start > 12,
        cwd=tmp_path,
    )
    assert done.code == 130, done.err
    assert "interrupted: " in done.err
    assert not (tmp_path / "ppo.zip").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C works differently there")
def test_ctrl_c_while_training_several_seeds_keeps_them_and_resume_goes_on(
    run: Run, made: Path, tmp_path: Path
) -> None:
    line = (
        f"train {made}/world --learner ppo --num-envs 16 --n-steps 16 --seeds 2 --out {tmp_path}/p"
    )
    checkpoints = [tmp_path / f"p-seed{seed}.interrupted.safetensors" for seed in (0, 1)]
    done = interrupt(
        f"{line} --steps 100000000 --checkpoint-every 256",
        lambda: all(path.exists() for path in checkpoints),
        cwd=tmp_path,
    )
    assert done.code == 130, done.err
    assert all(str(path) in done.err for path in checkpoints)
    assert "--resume" in done.err
    assert all(path.exists() for path in checkpoints)
    assert run(*f"{line} --steps 256 --resume".split()).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "p-seed0.safetensors",
        "p-seed1.safetensors",
    ]


@pytest.mark.skipif(os.name == "nt", reason="no resource limits there")
def test_a_full_disk_is_reported_in_one_line(made: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands in for a full disk: the same calls fail."""
    line = f"fit {made}/cartpole.h5 --updates 5 --out {tmp_path}/world"
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
        "from dreamgym.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_families_are_listed_in_the_help_of_fit_and_wrappers_are_not(run: Run) -> None:
    from dreamgym.cli.worlds import FAMILY_NAMES
    from dreamgym.fitting.config import default_config
    from dreamgym.models.registry import FAMILIES
    from dreamgym.models.spec import _has_default

    assert sorted(name for name, each in FAMILIES.items() if _has_default(each)) == FAMILY_NAMES
    shown = " ".join(run("fit", "--help").out.replace("│", " ").split())
    assert "Family of world models: " + ", ".join(FAMILY_NAMES) in shown
    with pytest.raises(ValueError, match="did you mean 'rssm'") as unknown:
        default_config("rsm")
    assert "goal-reward" not in str(unknown.value)


def test_a_misspelt_policy_with_a_number_is_recognised(run: Run) -> None:
    done = run("record", "CartPole-v1", "--steps", "20", "--policy", "sticy:0.8", "--out", "a.h5")
    assert done.code == 2
    assert "did you mean sticky:0.8?" in " ".join(done.err.replace("│", " ").split())
