"""Make a world that ships from its recipe: `python pretrained/make.py CartPole-MDNRNN-v0`.

A recipe is `recipe.json` in the world's folder; README.md in this folder describes it. The stages
are: the dataset, the fit, the report with its ranking of policies, policies that are trained (or
plan) in the world and measured in the real environment, and the card. What is there already is used
again. Values in a recipe are names and numbers; none is executed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import dreamgym
from dreamgym._files import atomic_file, json_text
from dreamgym.cli.output import progress_bar
from dreamgym.data import Dataset, FrameSkip, with_frame_skip
from dreamgym.models import Decodes, GoalReward
from dreamgym.models.base import as_tensors
from dreamgym.models.observations import get_part, observation_boxes
from dreamgym.models.spec import config_from_json, family_class
from dreamgym.train import find_learner, load_policy, train_policy
from dreamgym.train.cloning import clone_policy
from dreamgym.train.planners import PLANNERS, PlannedPolicy
from dreamgym.train.policy import world_checksum
from dreamgym.transfer import LatentObservation
from dreamgym.transfer.intervals import mean_interval, share_interval
from dreamgym.trust import RankingConfig, report
from dreamgym.trust.picture import card_picture
from dreamgym.world import annotate

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STAGES = ("data", "fit", "report", "train", "card")
FILES = ("world.json", "model.safetensors", "starts.safetensors")
TRAJECTORY_FILE = "trajectory.json"
ROWS, STEPS, NUMBERS = 4, 8, 64
CARD_SEED = 50_000
"""Seed of the real episodes of a card: not those of `evaluate`, in which settings are chosen."""


def _load_datasets() -> Any:
    """Import datasets/make.py, which is not in a package."""
    spec = importlib.util.spec_from_file_location("datasets_make", ROOT / "datasets" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


datasets = _load_datasets()


def recipes() -> dict[str, dict[str, Any]]:
    """Return every recipe by name."""
    return {path.parent.name: json.loads(path.read_text()) for path in HERE.glob("*/recipe.json")}


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes one world.

    Attributes:
        name: name of the world.
        recipe: its recipe.
        out: its folder.
        work: folder in which everything that takes long is kept.
        data: its dataset.
    """

    name: str
    recipe: dict[str, Any]
    out: Path
    work: Path
    data: Path

    @cached_property
    def world(self) -> dreamgym.World:
        """The world."""
        return dreamgym.load(self.out)

    @cached_property
    def kept(self) -> Path:
        """Folder for what is measured of the world with exactly these weights."""
        return self.work / world_checksum(self.world)[:8]

    def make_data(self) -> None:
        """Make the dataset, if it is not there."""
        name = self.recipe["dataset"]
        if not self.data.exists():
            datasets.make(name, self.data)
        with Dataset(self.data) as dataset:
            if dataset.checksum != datasets.recipes()[name]["checksum"]:
                print(f"{self.data}: not the data of the recipe {name}", file=sys.stderr)

    def fit(self, *, overwrite: bool = False) -> None:
        """Fit the world, if it is not there, or take the one that the dataset's loop fitted."""
        if (self.out / FILES[0]).exists() and not overwrite:
            return
        recipe = self.recipe["fit"]
        if "loop" in recipe:
            made = datasets.world_of(self.data)
            if not (made / FILES[0]).exists():
                raise FileNotFoundError(
                    f"{made}: the world of the online loop is not there; delete {self.data} and "
                    "run this again, which makes both"
                )
            self._take(made)
            if self.world.provenance["dataset_checksum"] != recipe["loop"]:
                print(f"{self.out}: fitted to other data than its recipe's", file=sys.stderr)
            return
        skip = FrameSkip(steps=recipe.get("frame_skip", 1), actions=recipe.get("actions", "blocks"))
        family, preset = recipe["family"], recipe.get("preset")
        config = datasets.fit_config(family, preset, recipe.get("settings", {}))
        made = self.work / "world"
        shutil.rmtree(made, ignore_errors=True)
        with Dataset(self.data) as data, progress_bar(f"fit {self.name}") as bar:
            world = dreamgym.fit(
                with_frame_skip(data, skip),
                out=made,
                family=family,
                seed=recipe["seed"],
                config=config,
                progress=bar,
            )
        for wrapper in self.recipe.get("wrap", []):
            settings = dict(wrapper)
            kind = family_class(settings.pop("family"))
            world = world.with_model(kind(world.model, **settings))
            world.save(made, overwrite=True)
        self._take(made)

    def _take(self, made: Path) -> None:
        """Copy a fitted world to its place."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / FILES[0]).unlink(missing_ok=True)
        for file in reversed(FILES):  # a world is there when its world.json is
            shutil.copy(made / file, self.out / file)
        annotate(self.out)

    @property
    def source(self) -> Any:
        """The dataset as `fit` was given it: a path, or the rounds of a loop with their weights."""
        if "loop" not in self.recipe["fit"]:
            return self.data
        weights = self.world.provenance["fit"]["weights"]
        return list(zip(sorted(self.data.glob("*.h5")), weights, strict=True))

    def report(self) -> dict[str, Any]:
        """Return the report as JSON-plain values with its summary, made once."""
        rank = self.recipe.get("rank")
        path = self.kept / f"report-{_digest(rank)}.json"
        if not path.exists():
            ranking = rank is not None and config_from_json(RankingConfig, rank, "ranking")
            with progress_bar(f"report {self.name}") as bar:
                made = report(
                    self.world,
                    self.source,
                    ranking=ranking,
                    work=self.kept / "report",
                    progress=bar,
                )
            _write(path, {**made.as_dict(), "summary": made.summary()})
        return _read(path)

    def policies(self) -> list[str]:
        """Return the names of the policies, one for each seed."""
        plan = self.recipe.get("plan")
        made = plan or self.recipe["train"]
        how = plan["planner"] if plan else made["algo"]
        return [f"{how}, seed {seed}" for seed in made["seeds"]]

    def policy(self, seed: int, steps: int | None = None) -> Any:
        """Return the policy of a seed: trained in the world, or planning in it."""
        plan = self.recipe.get("plan")
        if plan:
            return self._planned(plan)
        train = self.recipe["train"]
        learner = find_learner(train["algo"], train.get("learner"))
        made = {key: value for key, value in train.items() if key != "seeds"}
        made["steps"] = steps or train.get("steps")
        path = learner.policy_path(self.kept / f"policy-{seed}-{_digest(made)}")
        if path.exists():
            return load_policy(path, world=self.world)
        path.parent.mkdir(parents=True, exist_ok=True)
        config = datasets.train_config(train.get("config", {}))
        with progress_bar(f"train {self.name}, seed {seed}") as bar:
            return train_policy(
                self.world,
                algo=train["algo"],
                learner=train.get("learner"),
                seed=seed,
                steps=steps or train.get("steps"),
                out=path,
                config=config,
                real_data=self.source if config.real_share else None,
                progress=bar,
            )

    def transferred(self, number: int) -> dict[str, Any]:
        """Return the figures of the policy of a seed in the real environment, measured once.

        Random actions, and where the recipe says so a policy cloned from the data, are measured in
        the same episodes, once.
        """
        recipe = {"episodes": 100, "max_episode_steps": None, "cloning": True}
        recipe |= self.recipe.get("evaluate", {})
        plan = self.recipe.get("plan")
        seed = (plan or self.recipe["train"])["seeds"][number]
        made = [self.recipe.get("train"), plan, recipe, CARD_SEED]
        path = self.kept / f"transfer-{seed}-{_digest(made)}.json"
        if not path.exists() and plan and plan.get("goals"):
            _write(path, self._goals_reached(seed, recipe, beside=number == 0))
        if not path.exists():
            with progress_bar(f"evaluate {self.name}, seed {seed}") as bar:
                result = dreamgym.transfer_policy(
                    self.policy(seed),
                    self.world,
                    episodes=recipe["episodes"],
                    seed=CARD_SEED + (1000 * seed if plan else 0),  # a plan has no other seed
                    max_episode_steps=recipe["max_episode_steps"],
                    data=self.source if recipe["cloning"] and number == 0 else None,
                    baselines=number == 0,
                    progress=bar,
                )
            _write(path, {**result.as_dict(), "real_returns": result.real.returns.tolist()})
        return _read(path)

    def _planned(self, plan: dict[str, Any]) -> PlannedPolicy:
        world, planner = self.world, plan["planner"]
        if "config" in plan:
            planner = config_from_json(PLANNERS[planner].config_type, plan["config"], planner)
        if plan.get("goals"):
            space = world.observation_space
            blank = np.zeros(space.shape, space.dtype)  # until the episode gives its own goal
            world = world.with_model(GoalReward(world.model, blank))
        return PlannedPolicy(world, planner)

    def _goals_reached(self, seed: int, recipe: dict[str, Any], *, beside: bool) -> dict[str, Any]:
        """Return the share of goals that the plan reaches, in percent, in place of returns.

        An episode's seed draws its start and its goal. Episodes that begin at the goal are left
        out.
        """
        policies = {"plan": self.policy(seed)}
        if beside:
            policies["random"] = "random"
            if recipe["cloning"]:
                policies["behaviour cloning"] = clone_policy(self.world, self.source)
        results = {}
        for name, policy in policies.items():
            with progress_bar(f"evaluate {name} in {self.name}, seed {seed}") as bar:
                results[name] = dreamgym.evaluate(
                    policy,
                    partial(self._real, getattr(policy, "view", None)),
                    episodes=recipe["episodes"],
                    seed=CARD_SEED + 1000 * seed,
                    max_episode_steps=recipe["max_episode_steps"],
                    progress=bar,
                )
        plan = results.pop("plan")
        return {
            "episodes": recipe["episodes"],
            "left_out": int(plan.at_goal.sum()),
            "real_returns": (100.0 * plan.success[~plan.at_goal]).tolist(),
            "real_return_mean": 100.0 * plan.success_rate,
            "real_return_interval": _percent(plan.success_interval),
            "dream_return_mean": None,
            "baselines": {
                name: {
                    "return_mean": 100.0 * each.success_rate,
                    "return_interval": _percent(each.success_interval),
                }
                for name, each in results.items()
            },
        }

    def _real(self, view: str | None) -> gym.Env:
        """Return the real environment as a policy of a view sees it."""
        env = self.world.real_env()
        return LatentObservation(env, self.world) if view == "latent" else env

    def returns(self) -> dict[str, Any]:
        """Return what the card says of the real returns; see `dreamgym.world.annotate`."""
        names = self.policies()
        results = [self.transferred(number) for number in range(len(names))]
        every = np.concatenate([each["real_returns"] for each in results])
        measure = self._measure(results)
        train = self.recipe.get("train", {})
        return {
            "how": self._how(),
            **measure,
            "episodes": results[0]["episodes"],
            "temperature": train.get("config", {}).get("temperature", 1.0),
            "policies": [
                {
                    "name": name,
                    "real": each["real_return_mean"],
                    "interval": each["real_return_interval"],
                    "dream": each["dream_return_mean"],
                }
                for name, each in zip(names, results, strict=True)
            ],
            "baselines": [
                {"name": name, "real": each["return_mean"], "interval": each["return_interval"]}
                for name, each in results[0]["baselines"].items()
            ],
            "mean": float(every.mean()),
            "interval": _percent(share_interval(every > 0)) if measure else [*mean_interval(every)],
            "bar": self.recipe.get("bar"),
        }

    def _measure(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what is measured, where it is no return."""
        left_out = [each["left_out"] for each in results if "left_out" in each]
        return {"measure": "goals reached (%)", "left_out": sum(left_out)} if left_out else {}

    def _how(self) -> str:
        plan = self.recipe.get("plan")
        if plan:
            return f"The planner {plan['planner']} in this world alone"
        seed = self.recipe["train"]["seeds"][0]
        steps = self.policy(seed).card.steps
        train = self.recipe["train"]
        shared = train.get("config", {}).get("real_share")
        where = (
            "this world alone" if not shared else "this world and, as part of each batch, its data"
        )
        return f"{train['algo']} trained for {steps:,} steps in {where}"

    def card(self) -> None:
        """Write the figures into world.json, and the card, its picture and the trajectory."""
        made = self.report()
        limits = made["figures"].get("limits")
        dataset = self.recipe["dataset"]
        extra = datasets.recipes()[dataset].get("extra")
        annotate(
            self.out,
            quality={
                # the rounds of a loop would be named one by one
                "report": {**made["summary"], "data": dataset},
                **({"limits": limits} if limits else {}),
                "transfer": self.returns(),
            },
            card={
                "notes": self.recipe.get("notes", []),
                "commands": [
                    *([] if extra is None else [f"pip install '.[{extra}]'"]),
                    f"python datasets/make.py {dataset}",
                    f"python pretrained/make.py {self.name} --out worlds/{self.name}",
                ],
                "licence": self.recipe.get("licence", "MIT"),
            },
            picture=card_picture(made["figures"]),
        )
        with atomic_file(self.out / TRAJECTORY_FILE) as temporary:
            temporary.write_text(json.dumps(trajectory(self.world)) + "\n", encoding="utf-8")


@torch.no_grad()
def trajectory(world: dreamgym.World) -> dict[str, Any]:
    """Return a few short dreams under fixed actions and noise, which a test compares.

    Returns:
        `observation` (STEPS, ROWS, at most NUMBERS), the decoded observations, or the features of
        a model that does not decode, thinned out evenly; `reward` and `termination` (STEPS, ROWS).
    """
    model, rng = world.model, np.random.default_rng(0)
    space = model.action_space
    space.seed(0)
    state = {key: leaf[:ROWS] for key, leaf in world.starts.states.items()}
    rows: dict[str, list[Any]] = {"observation": [], "reward": [], "termination": []}
    for _ in range(STEPS):
        action = as_tensors(np.stack([space.sample() for _ in range(ROWS)]), "cpu")
        noise = torch.from_numpy(rng.random((ROWS, model.noise_dim))).float()
        state, prediction = model.step(state, action, noise)
        seen = model.decode(state) if isinstance(model, Decodes) else model.features(state)
        boxes = observation_boxes(model.observation_space)
        parts = [get_part(seen, key) for key in boxes] if isinstance(model, Decodes) else [seen]
        flat = torch.cat([part.flatten(1).float() for part in parts], 1)
        thinned = flat[:, :: max(1, flat.shape[1] // NUMBERS)][:, :NUMBERS]
        for name, value in (
            ("observation", thinned),
            ("reward", prediction.reward),
            ("termination", prediction.termination),
        ):
            rows[name].append([_short(each) for each in value.tolist()])
    return rows


def _percent(shares: tuple[float, float]) -> list[float]:
    return [100.0 * share for share in shares]


def _short(value: Any) -> Any:
    return [_short(each) for each in value] if isinstance(value, list) else float(f"{value:.6g}")


def _digest(settings: Any) -> str:
    """Return a short name of settings, so that other ones do not meet what these made."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _write(path: Path, figures: dict[str, Any]) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json_text(figures), encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures


def maker(name: str, out: Path | None = None, work: Path | None = None) -> Maker:
    """Return what makes a world.

    Args:
        name: name of the recipe.
        out: folder of the world; None for its place among those that ship.
        work: folder for what takes long; None for `runs/NAME`, or `OUT.work`.
    """
    recipe = recipes()[name]
    if work is None:
        work = ROOT / "runs" / name if out is None else out.with_name(f"{out.name}.work")
    data = datasets.path_of(recipe["dataset"])
    return Maker(name=name, recipe=recipe, out=out or HERE / name, work=work, data=data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(recipes()))
    parser.add_argument("--out", type=Path, help="default: the world's place in pretrained/")
    parser.add_argument("--work", type=Path, help="keep what takes long here; default: runs/NAME")
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="last stage to do")
    parser.add_argument("--overwrite", action="store_true", help="fit again where a world is")
    chosen = parser.parse_args()
    made = maker(chosen.name, chosen.out, chosen.work)
    last = STAGES.index(chosen.until)
    made.make_data()
    if last >= STAGES.index("fit"):
        made.fit(overwrite=chosen.overwrite)
    if last >= STAGES.index("report"):
        print("\n".join(made.report()["summary"]["findings"]))
    if last >= STAGES.index("train"):
        for each in made.returns()["policies"]:
            print(f"{each['name']}: real {each['real']:.1f}, dream {each['dream']}")
    if last >= STAGES.index("card"):
        made.card()
        print(made.out / "README.md")


if __name__ == "__main__":
    main()
