"""The report: how far a world can be trusted, for what, and what data to record next."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dreamgym._device import float32_by_default
from dreamgym._files import atomic_file, json_text, local_path
from dreamgym.data import AnyDataset
from dreamgym.data.bounds import covers
from dreamgym.data.mixture import DatasetSource
from dreamgym.data.policies import PolicyLike
from dreamgym.data.teaching import teaching_findings
from dreamgym.errors import WorldError
from dreamgym.metrics import REPORT_METRICS, Limits
from dreamgym.metrics.registry import metric_context
from dreamgym.transfer.real import EnvSource, env_maker, make_env, world_env_maker
from dreamgym.trust.config import RankingConfig
from dreamgym.trust.examples import examples
from dreamgym.trust.findings import (
    CAUTION,
    DO_NOT_USE,
    GOOD,
    Finding,
    findings_of,
    usable_steps,
    verdict_of,
)
from dreamgym.trust.html_page import page
from dreamgym.trust.names import names_of
from dreamgym.trust.ranking import Ranking, given_entries
from dreamgym.trust.visits import visit
from dreamgym.world.held_out import open_for
from dreamgym.world.world import World, as_world

Progress = Callable[[int, int, dict[str, Any]], None]

PAGE_SUFFIXES = (".html", ".htm")
"""Suffixes of a page; a report with another one is written as JSON."""

TOPICS = {
    "horizon": "the forecasts",
    "channels": "the numbers named below",
    "reward": "the reward",
    "termination": "the ends of episodes",
    "intervals": "the spread of dreams",
    "actions": "the effect of actions",
    "ranking": "the order of policies",
    "exploitation": "dream returns",
    "coverage": "dreams far from the data",
}
"""What the findings of a topic are about."""

WORDS = {
    GOOD: "usable",
    CAUTION: "usable with care",
    DO_NOT_USE: "do not use",
}
"""Verdicts by the level of the worst finding."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report says.

    Attributes:
        world: name of the world.
        figures: every figure by section, JSON-plain.
        findings: what they mean, the worst first.
        seconds: time that it took.
    """

    world: str
    figures: dict[str, Any]
    findings: list[Finding]
    seconds: float

    @property
    def verdict(self) -> str:
        """One of "usable", "usable with care" and "do not use"."""
        return WORDS[verdict_of(self.findings)]

    @property
    def advice(self) -> dict[str, str]:
        """How far dreams reach, what not to trust and what to record next, in words."""
        table = self.figures.get("channels") or self.figures.get("frames")
        steps = self.figures["world"]["horizon"]
        advice: dict[str, str] = {}
        if table is not None:
            reach = usable_steps(table, steps)
            limited = any(f.topic == "horizon" and f.level != GOOD for f in self.findings)
            advice["Usable to"] = f"{reach} of {steps} steps" + (
                "" if limited or reach == steps else ", as far as held-out episodes show"
            )
        doubted = [f for f in self.findings if f.level in (DO_NOT_USE, CAUTION)]
        topics = list(dict.fromkeys(TOPICS.get(each.topic, each.topic) for each in doubted))
        sound = [TOPICS[f.topic] for f in self.findings if f.level == GOOD and f.topic in TOPICS]
        kept = [each for each in dict.fromkeys(sound) if each not in topics]
        if kept:
            advice["Sound"] = ", ".join(kept)
        if topics:
            advice["Do not rely on"] = ", ".join(topics)
        remedies = list(dict.fromkeys(each.remedy for each in doubted if each.remedy))
        advice["Next"] = "; ".join(remedies[:3]) or (
            "train policies; then record episodes with them and report on these"
        )
        return advice

    def __str__(self) -> str:
        lines = [f"{self.world}: {self.verdict}"]
        lines += [f"  {each.level:<10} {each.sentence} ({each.evidence})" for each in self.findings]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-plain values."""
        return {
            "world": self.world,
            "verdict": self.verdict,
            "findings": [each._asdict() for each in self.findings],
            "figures": self.figures,
            "seconds": round(self.seconds, 1),
        }

    def summary(self) -> dict[str, Any]:
        """Return what a world's card says of the report, JSON-plain."""
        ranking = self.figures.get("ranking")
        return {
            "verdict": self.verdict,
            "data": self.figures["data"]["name"],
            "findings": [
                f"{each.level}: {each.sentence} ({each.evidence})" for each in self.findings
            ],
            "ranking": None
            if ranking is None
            else {
                **{k: ranking[k] for k in ranking if k not in ("policies", "sweep")},
                "policies": [
                    [row["name"], row["dream_mean"], row["real_mean"]]
                    for row in ranking["policies"]
                ],
            },
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as JSON, or as one HTML page where the path ends in .html.

        Returns:
            The path.
        """
        path = local_path(path, WorldError)
        text = page([self]) if path.suffix.lower() in PAGE_SUFFIXES else json_text(self.as_dict())
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return path


@float32_by_default()
def report(  # noqa: PLR0913 - a world, what it is compared with, and how are six of them
    world: World | str | Path,
    data: DatasetSource,
    policies: Sequence[PolicyLike | Path] | None = None,
    env: EnvSource | None = None,
    *,
    ranking: RankingConfig | bool = False,
    names: Sequence[str] | None = None,
    work: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Measure how far a world can be trusted.

    Where the data is what the world was fitted to, only the episodes that the fit held out are
    used; of other data, all of them.

    Args:
        world: a world, its folder, or the name of one that ships.
        data: dataset of the world's environment.
        policies: policies to compare in the dream and in the real environment: files, folders of
            `export_policy`, names, `TrainedPolicy`s and whatever else `evaluate` takes. None with
            `ranking` for policies from random to trained, which are then trained in the dream.
        env: the real environment, if it is not the one that the world names.
        ranking: whether to make policies where none are given, and how; it takes minutes.
        names: names of the numbers of vector observations; None for those of known environments.
        work: folder in which the policies of the ranking and their results are kept, so that an
            interrupted report continues; None keeps nothing.
        seed: seed of everything random.
        progress: called with (steps done, steps, {"measuring": what}).

    Returns:
        The report. `report.verdict` is the first thing to read, `report.save("report.html")` writes
        the page.

    Raises:
        WorldError: the data, or the real environment, has other spaces than the world, or the world
            is played in latent actions.
        DatasetError: the data cannot be read.
        PolicyFileError: a policy's file or folder cannot be used.
        TransferError: there is no such environment; or policies are to be compared and the world
            does not name its environment.
    """
    started = time.perf_counter()
    world = as_world(world)
    world.check_takes_data_actions()  # before its spaces are called those of another environment
    if env is not None:
        _check_env(world, env)
    given = None if policies is None else given_entries(policies, world)
    if given is not None or ranking:
        world_env_maker(world, env)  # a missing environment is found before anything is measured
    with ExitStack() as stack:
        opened = stack.enter_context(open_for(world, data))
        dataset, fitted, held_out = opened.dataset, opened.is_fitted_data, opened.held_out
        training = opened.training if fitted else None
        say = _Steps(progress, len(REPORT_METRICS) + 2)
        context = metric_context(
            world.model,
            dataset,
            held_out,
            seed,
            training=training,
            starts=world.starts.states,
            episode_starts=world.starts.num_episode_starts,
            names=list(names if names is not None else names_of(world.env_id)),
            horizon=world.horizon,
        )
        figures: dict[str, Any] = {
            "world": _world_figures(world),
            "data": _data_figures(world, dataset, fitted, held_out),
        }
        with torch.no_grad():
            for name, metric in REPORT_METRICS.items():
                say(name)
                figures |= metric(context)
        say("examples")
        figures["examples"] = examples(world, dataset, held_out, seed)
    limits = Limits.from_json(figures.get("limits"))
    if world.quality.get("limits"):  # those of the data that the world was fitted to count as well
        limits = limits.joined(Limits.from_json(world.quality["limits"]))
        figures["limits"] = limits.to_json()
    say("dreams under a random policy")
    if given is None and not ranking:
        figures["visits"] = [
            {"name": "random", "visit": visit("random", world, limits=limits, seed=seed).as_dict()}
        ]
    else:
        config = ranking if isinstance(ranking, RankingConfig) else RankingConfig()
        folder = None if work is None else local_path(work, WorldError)
        made = Ranking(world, limits, config, env, folder)
        figures["ranking"] = made.run(given, progress)
        figures["visits"] = [
            {"name": row["name"], "visit": row["visit"]} for row in figures["ranking"]["policies"]
        ]
    return Report(
        world=world.name,
        figures=figures,
        findings=findings_of(figures),
        seconds=time.perf_counter() - started,
    )


class _Steps:
    """Counts the parts of a report."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, what: str) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total, {"measuring": what})
        self.done += 1


def _check_env(world: World, env: EnvSource) -> None:
    """Raise `WorldError` if a real environment has other spaces than the world."""
    made = world.adapted(make_env(env_maker(env)))
    name = made.spec.id if made.spec is not None else str(made)
    spaces = made.observation_space, made.action_space
    made.close()
    if not (covers(world.observation_space, spaces[0]) and world.action_space == spaces[1]):
        raise WorldError(
            f"the real environment {name} has the spaces {spaces}, and the world {world.name!r} "
            f"(of {world.env_id}) has {(world.observation_space, world.action_space)}: it is a "
            "world of another environment; give the one that it was fitted to"
        )


def _env_id(dataset: AnyDataset) -> str | None:
    """Return the id of the environment of a dataset, or of a mixture of several."""
    return json.loads(dataset.env_spec).get("id") if dataset.env_spec else None


def _world_figures(world: World) -> dict[str, Any]:
    parameters = sum(each.numel() for each in world.model.parameters())
    return {
        "name": world.name,
        "family": _family(world),
        "env_id": world.env_id,
        "horizon": world.horizon,
        "termination": world.termination,
        "frame_skip": world.frame_skip.to_json() or None,
        "parameters": parameters,
        "has_uncertainty": world.model.has_uncertainty,
        "policy": world.provenance.get("dataset_policy"),
        "dataset": world.provenance.get("dataset"),
        "alarms": world.quality.get("alarms", []),
        "has_limits": bool(world.quality.get("limits")),
    }


def _family(world: World) -> str:
    try:
        return world.family
    except ValueError:  # a user's own model has none
        return type(world.model).__name__


def _data_figures(
    world: World, dataset: AnyDataset, fitted: bool, held_out: NDArray[np.integer]
) -> dict[str, Any]:
    lengths = np.asarray(dataset.lengths)
    return {
        "name": Path(dataset.path).name,
        "env_id": _env_id(dataset),
        "policy": dataset.policy,
        "episodes": int(dataset.num_episodes),
        "steps": int(dataset.num_steps),
        "held_out": len(held_out),
        "fitted": fitted,
        "longest": int(lengths.max()),
        "cannot_teach": teaching_findings(dataset.lessons()),
    }
