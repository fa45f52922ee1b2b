"""Make a dataset from its recipe: `python datasets/make.py cartpole-random`.

A recipe is a folder with a `recipe.json`: the environment, the parts that are recorded in it, and
the checksum of the dataset that the shipped worlds were fitted to. README.md in this folder
describes the parts. Values in a recipe are names and numbers; none is executed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym

import dreamgym
from dreamgym._files import replace_path
from dreamgym._settings import nearest
from dreamgym.cli.output import progress_bar
from dreamgym.data import Dataset, DatasetMetadata, DatasetWriter, Episode, Recorder, pack
from dreamgym.envs import PUSH_T
from dreamgym.envs.push_t import Play
from dreamgym.models.spec import ModelSpec, config_from_json, to_json
from dreamgym.online import ImproveConfig
from dreamgym.train import TrainConfig

HERE = Path(__file__).resolve().parent
WORLD = "world"
"""Name of the world that an online loop fitted last, among the parts."""
SAMPLE_BYTES, RAW_BYTES = 1_900_000, 16_000_000
"""Most bytes of a sample, packed, and of its observations before that."""


def recipes() -> dict[str, dict[str, Any]]:
    """Return every recipe by name."""
    return {path.parent.name: json.loads(path.read_text()) for path in HERE.glob("*/recipe.json")}


def path_of(name: str) -> Path:
    """Return where the dataset of a recipe is made: a file, or a folder of shards."""
    return HERE / name / (name if is_sharded(recipes()[name]) else f"{name}.h5")


def world_of(data: Path) -> Path:
    """Return where the world is kept that a dataset's online loop fitted last."""
    return data.with_name(f"{data.name}.world")


def is_sharded(recipe: dict[str, Any]) -> bool:
    """Return whether the dataset of a recipe is a folder of shards."""
    return len(recipe["parts"]) > 1 or recipe["parts"][0]["make"] == "improve"


def make(name: str, out: Path) -> bool:
    """Make a dataset; return whether it has the checksum of its recipe.

    What the parts have made so far is kept beside `out`, so that a call after an interruption goes
    on from there. Of an online loop, the world that it fitted last is kept as `world_of(out)`.
    """
    recipe = recipes()[name]
    if ":" in recipe["env_id"]:  # Gymnasium would import the module before it
        raise ValueError(f"{name}: env_id is {recipe['env_id']!r}; expected an id without a module")
    work = out.with_name(f"{out.name}.parts")
    shards: list[Path] = []
    for number, part in enumerate(recipe["parts"], 1):
        values = dict(part)
        maker = PARTS.get(values.pop("make"))
        if maker is None:
            raise ValueError(f"{name}: a part has {part['make']!r}; {nearest(part['make'], PARTS)}")
        shards += maker(recipe["env_id"], work / f"{number:02d}", **values)
    if (work / WORLD).exists():  # before the data, whose presence says that all is made
        replace_path(work / WORLD, world_of(out))
    if is_sharded(recipe):
        folder = work / "shards"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for number, shard in enumerate(shards, 1):
            shutil.copy(shard, folder / f"{number:03d}.h5")
        replace_path(folder, out)
    else:
        replace_path(shards[0], out)
    shutil.rmtree(work)
    return checksum(out) == recipe["checksum"]


def checksum(path: Path) -> str:
    """Return the checksum of a dataset."""
    with Dataset(path) as dataset:
        return dataset.checksum


def write_sample(name: str, path: Path) -> Path:
    """Write the first episodes of a dataset, packed, and return the file.

    Where two episodes would be too large, the first halves of a smaller sample are written.
    """
    out = HERE / name / "sample.h5"
    plain = out.with_name("sample-plain.h5")
    with Dataset(path) as dataset:
        steps = min(dataset.num_steps, RAW_BYTES // _bytes_of(dataset.episode(0).observations, 1))
        while True:
            plain.unlink(missing_ok=True)
            _write_steps(dataset, steps, plain)
            pack(plain, out, level=9, overwrite=True)
            plain.unlink()
            size = out.stat().st_size
            if size < SAMPLE_BYTES:
                return out
            steps = int(0.9 * steps * SAMPLE_BYTES / size)


def _bytes_of(observations: Any, rows: int) -> int:
    """Return the bytes of rows of observations."""
    parts = observations.values() if isinstance(observations, dict) else [observations]
    return rows * sum(part[0].nbytes for part in parts)


def _write_steps(dataset: Dataset, steps: int, out: Path) -> None:
    """Write the first episodes, at most `steps` in all and at most half of it in one episode."""
    metadata = DatasetMetadata(
        observation_space=dataset.observation_space,
        action_space=dataset.action_space,
        env_spec=dataset.env_spec,
        policy=dataset.policy,
    )
    written, most = 0, max(1, steps // 2)
    with DatasetWriter(out, metadata, commit_every=100) as writer:
        for index in range(dataset.num_episodes):
            episode = _head(dataset.episode(index), most)
            written += episode.length
            if written > steps:
                break
            writer.add(episode)


def _head(episode: Episode, steps: int) -> Episode:
    """Return the first steps of an episode; the rest is cut off."""
    if episode.length <= steps:
        return episode
    observations = episode.observations
    return replace(
        episode,
        observations={key: rows[: steps + 1] for key, rows in observations.items()}
        if isinstance(observations, dict)
        else observations[: steps + 1],
        actions=episode.actions[:steps],
        rewards=episode.rewards[:steps],
        terminated=False,
        truncated=False,
        complete=False,
    )


# ------------------------------------------------------------------------------- parts


def record_part(
    env_id: str,
    out: Path,
    *,
    policy: str,
    steps: int,
    seed: int,
    max_episode_steps: int | None = None,
) -> list[Path]:
    """Record with a random policy, with a controller that is disturbed ("mixed"), or "play"."""
    path = out.with_suffix(".h5")
    if path.exists():
        return [path]
    path.with_name(f"{path.name}.partial").unlink(missing_ok=True)
    if policy == "mixed":
        sys.path.append(str(HERE.parent / "benchmarks"))
        from support.mixed_data import record_mixed

        return [record_mixed(env_id, steps, path, seed)]
    if policy == Play.name and env_id != PUSH_T:
        raise ValueError(f"the policy {policy!r} plays {PUSH_T}, and not {env_id}")
    with gym.make(env_id) as env, progress_bar("record") as bar:
        dreamgym.record(
            env,
            steps=steps,
            policy=Play(env.unwrapped) if policy == Play.name else policy,
            seed=seed,
            out=path,
            max_episode_steps=max_episode_steps,
            progress=bar,
        )
    return [path]


def improve_part(
    env_id: str,
    out: Path,
    *,
    real_steps: int,
    seed: int,
    target: float | None = None,
    config: dict[str, Any] | None = None,
) -> list[Path]:
    """Run the online loop; its data is what all of its rounds recorded."""
    result = dreamgym.improve(
        env_id,
        real_steps=real_steps,
        out=out,
        target=target,
        seed=seed,
        config=improve_config(config or {}),
        progress=lambda each: print(each["round"], each["real_steps"], each["real_return"]),
    )
    world = out.with_name(WORLD)
    shutil.rmtree(world, ignore_errors=True)
    shutil.copytree(out / result.rounds[-1]["world"], world)
    return [out / each["data"] for each in result.rounds]


def replay_part(
    env_id: str, out: Path, *, algo: str, steps: int, seed: int, settings: dict[str, Any]
) -> list[Path]:
    """Train an agent of Stable-Baselines3 in the real environment; keep all that it saw."""
    import stable_baselines3
    import torch

    if algo not in ("A2C", "DDPG", "DQN", "PPO", "SAC", "TD3"):
        raise ValueError(f"algo is {algo!r}; expected A2C, DDPG, DQN, PPO, SAC or TD3")
    path = out.with_suffix(".h5")
    if path.exists():
        return [path]
    path.with_name(f"{path.name}.partial").unlink(missing_ok=True)
    torch.set_num_threads(1)
    policy = f"{algo} while it learns, seed {seed}"
    with Recorder(gym.make(env_id), path, policy=policy, seed=seed) as env:
        algorithm = getattr(stable_baselines3, algo)
        algorithm("MlpPolicy", env, seed=seed, device="cpu", **settings).learn(steps)
    return [path]


PARTS: dict[str, Callable[..., list[Path]]] = {
    "record": record_part,
    "improve": improve_part,
    "replay": replay_part,
}
"""Ways to make a part of a dataset, by their name in recipes."""


# --------------------------------------------------------------------- settings from JSON


def fit_config(family: str, preset: str | None, settings: dict[str, Any]) -> dreamgym.FitConfig:
    """Return `default_config(family, preset, **settings)` with its "model" given as JSON.

    Settings of the model that are not given are those of the preset, or the family's defaults.
    """
    values = dict(settings)
    if "model" in values:
        base = dreamgym.default_config(family, preset).model or ModelSpec(family=family).config
        spec = {"family": family, "config": {**to_json(base), **values["model"]}}
        values["model"] = ModelSpec.from_json(spec).config
    if "betas" in values:
        values["betas"] = tuple(values["betas"])
    return dreamgym.default_config(family, preset, **values)


def train_config(settings: dict[str, Any]) -> TrainConfig:
    """Return a `TrainConfig` of JSON-plain values."""
    config: TrainConfig = config_from_json(TrainConfig, settings, "train")
    return config


def improve_config(settings: dict[str, Any]) -> ImproveConfig:
    """Return an `ImproveConfig` of JSON-plain values."""
    values = dict(settings)
    family = values.get("family", ImproveConfig().family)
    fit, train = values.pop("fit", None), values.pop("train", {})
    config: ImproveConfig = config_from_json(ImproveConfig, values, family)
    changes: dict[str, Any] = {"train": train_config(train)}
    if fit is not None:
        changes["fit"] = fit_config(family, None, fit)
    return replace(config, **changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(recipes()))
    parser.add_argument("--out", type=Path, help="default: in its folder, where it is used again")
    parser.add_argument("--sample", action="store_true", help="write sample.h5 of it, too")
    arguments = parser.parse_args()
    out = arguments.out or path_of(arguments.name)
    if arguments.out is None and out.exists():
        same = checksum(out) == recipes()[arguments.name]["checksum"]
    else:
        same = make(arguments.name, out)
    if not same:
        print(
            f"{out}: its checksum is {checksum(out)} and not that of the recipe, because of other "
            "versions of Gymnasium or NumPy or, where policies were trained for it, another "
            "processor. Worlds fitted to it will be as good, but not equal.",
            file=sys.stderr,
        )
    if arguments.sample:
        print(write_sample(arguments.name, out))
    print(out)


if __name__ == "__main__":
    main()
