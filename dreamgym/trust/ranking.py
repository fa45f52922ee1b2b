"""Ranking: whether the dream orders policies as the real environment does.

The protocol is that of DOPE (Fu et al. 2021, arXiv 2103.16596): policies from random to trained,
the rank correlation of estimated and real returns, and the regret of choosing by the estimate.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamgym._files import atomic_file, sha256
from dreamgym.data.policies import PolicyLike
from dreamgym.errors import PolicyFileError
from dreamgym.metrics import Limits
from dreamgym.metrics.correlation import pearson, spearman
from dreamgym.train.config import TrainConfig
from dreamgym.train.monitoring import Monitoring
from dreamgym.train.policy import TrainedPolicy, load_policy, world_checksum
from dreamgym.train.registry import find_learner
from dreamgym.train.training import train_policy
from dreamgym.transfer.dream_episodes import run_dream_episodes
from dreamgym.transfer.evaluation import EVALUATION_SEED
from dreamgym.transfer.export import ExportedPolicy
from dreamgym.transfer.real import EnvSource
from dreamgym.transfer.transfer import open_policy, transfer_policy
from dreamgym.trust.config import RankingConfig
from dreamgym.trust.visits import Watch
from dreamgym.world.world import World

Progress = Callable[[int, int, dict[str, Any]], None]
Array = NDArray[np.float64]

RESAMPLES = 2000
ENOUGH = 10
"""Policies of a correlation that can be relied on."""

SNAPSHOTS = 32
"""Times that a training keeps its policy and measures it in the dream."""

MEASURED = "return from episode starts"
"""Name of that measurement: the learner's own curve is a mean over what older policies did."""

RESULTS_FILE = "ranking.json"

FORMAT = 3
"""Format of the results; those of another one are measured again."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A policy to be ranked.

    Attributes:
        name: its name in the report.
        make: function that returns the policy.
        checksum: what tells it from another one of the same name; None if nothing does, and then
            its results are not kept.
        temperature: temperature of the dream that it is measured in.
        swept: whether it belongs to the temperature sweep and not to the ranking.
    """

    name: str
    make: Callable[[], PolicyLike]
    checksum: str | None = ""
    temperature: float = 1.0
    swept: bool = False


class Ranking:
    """Measures policies in the real environment and in the dream, and remembers the results.

    Args:
        world: the world.
        limits: what the data has shown.
        config: how policies are made and measured.
        env: the real environment, if it is not the one that the world names.
        work: folder in which policies and results are kept, from which an interrupted ranking
            continues; None to keep nothing.
    """

    def __init__(
        self,
        world: World,
        limits: Limits,
        config: RankingConfig,
        env: EnvSource | None = None,
        work: Path | None = None,
    ) -> None:
        self.world, self.limits, self.config, self.env = world, limits, config, env
        self.checksum = world_checksum(world)
        if work is None:
            self._temporary = tempfile.TemporaryDirectory()  # removed with this object
            work = Path(self._temporary.name)
        work.mkdir(parents=True, exist_ok=True)
        self.work = work
        self.results: dict[str, dict[str, Any]] = self._read()

    def run(
        self,
        given: Sequence[Entry] | None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Measure all policies, and return the figures of the ranking.

        Args:
            given: the policies, see `given_entries`; None for those that the config describes.
            progress: called with (policies done, policies, {"policy": its name}).
        """
        config = self.config
        entries: list[Entry] = []
        if given is None:
            expected = 1 + config.seeds * (1 + config.stages) + len(config.temperatures)
        else:
            expected = len(given)
        for entry in self._made() if given is None else given:
            if progress is not None:
                progress(len(entries), expected, {"policy": entry.name})
            entries.append(entry)
            known = self.results.get(entry.name)
            if known is None or entry.checksum is None or known["checksum"] != entry.checksum:
                self.results[entry.name] = self._measure(entry)
                self._write()
        if progress is not None:
            progress(expected, expected, {})
        measured = [self.results[entry.name] for entry in entries]
        ranked = [row for row in measured if not row["swept"]]
        figures = {"policies": ranked, **agreement(ranked)}
        swept = [row for row in measured if row["swept"]]
        if swept:
            middle = self.results[self._name(0, config.steps)]
            figures["sweep"] = sorted([*swept, middle], key=lambda row: row["temperature"])
        return figures

    def _label(self) -> str:
        learner = find_learner(self.config.algo, self.config.learner)
        return self.config.algo or learner.algorithms[0]

    def _made(self) -> Iterator[Entry]:
        """Yield a random policy, those of all stages and seeds, and those of the sweep."""
        yield Entry(name="random", make=partial(_same, "random"))
        config = self.config
        for seed in range(config.seeds):
            for steps in [*self._train_stages(seed), config.steps]:
                yield Entry(name=self._name(seed, steps), make=partial(self._load, seed, steps))
        for temperature in config.temperatures:
            yield Entry(
                name=f"{self._label()}, temperature {temperature:g}",
                make=partial(self._train, 0, temperature),
                temperature=temperature,
                swept=True,
            )

    def _name(self, seed: int, steps: int) -> str:
        return f"{self._label()}, seed {seed}, {steps:,} steps"

    def _path(self, seed: int, steps: int, temperature: float = 1.0) -> Path:
        """Return the file of a policy."""
        learner = find_learner(self.config.algo, self.config.learner)
        name = f"{self._label()}-seed{seed}-{steps}-tau{temperature:g}-{self.checksum[:8]}"
        return learner.policy_path(self.work / name.replace(".", "_"))  # a point begins a suffix

    def _load(self, seed: int, steps: int) -> TrainedPolicy:
        return load_policy(self._path(seed, steps), world=self.world)

    def _train_stages(self, seed: int) -> list[int]:
        """Train a policy in the dream, and keep it as it is at several stages.

        Returns:
            Dream steps of the stages, ascending, the whole training not among them.
        """
        config = self.config
        limits = np.full(config.episodes, self.results["random"]["step_limit"])

        def measure(policy: TrainedPolicy) -> dict[str, float]:
            policy.save(self._path(seed, policy.card.steps))
            dreams = run_dream_episodes(policy, self.world, limits=limits, seed=EVALUATION_SEED)
            return {MEASURED: dreams.mean}

        monitoring = Monitoring(
            checkpoint_every=None,
            evaluate_every=max(1, config.steps // SNAPSHOTS),
            evaluate=measure,
        )
        whole = self._train(seed, 1.0, monitoring if config.stages else None)
        curve = [(int(each["steps"]), each[MEASURED]) for each in whole.card.evaluations]
        return spread_steps([each for each in curve if each[0] < whole.card.steps], config.stages)

    def _train(
        self, seed: int, temperature: float, monitoring: Monitoring | None = None
    ) -> TrainedPolicy:
        """Train a policy in the dream, or read it from the folder where that was done before."""
        learner = find_learner(self.config.algo, self.config.learner)
        path = self._path(seed, self.config.steps, temperature)
        if path.is_file():
            try:
                kept = load_policy(path, world=self.world)
            except PolicyFileError:
                kept = None  # written by another version: train it again
            if kept is not None and (monitoring is None or kept.card.evaluations):
                return kept
        return train_policy(
            self.world,
            learner=self.config.learner,
            algo=self.config.algo,
            seed=seed,
            steps=self.config.steps,
            out=path,
            config=TrainConfig(temperature=temperature, num_envs=self.config.num_envs),
            monitoring=monitoring,
            resume=not path.is_file() and (learner.goes_on or learner.resumes),
        )

    def _measure(self, entry: Entry) -> dict[str, Any]:
        """Return the figures of one policy."""
        watch = Watch(self.limits, self.world)
        result = transfer_policy(
            entry.make(),
            self.world,
            episodes=self.config.episodes,
            env=self.env,
            baselines=False,
            temperature=entry.temperature,
            on_dream_step=watch.add,
        )
        return {
            "name": entry.name,
            "checksum": entry.checksum,
            "swept": entry.swept,
            "temperature": entry.temperature,
            "real": [float(value) for value in result.real.returns],
            "dream": [float(value) for value in result.dream.returns],
            "real_mean": result.real.mean,
            "real_interval": list(result.real.interval),
            "dream_mean": result.dream.mean,
            "gap": result.gap,
            "step_limit": result.step_limit,
            "real_length": float(result.real.lengths.mean()),
            "dream_length": float(result.dream.lengths.mean()),
            "visit": watch.visit(result.dream).as_dict(),
        }

    def _key(self) -> dict[str, Any]:
        """Return what must be the same for results to be used again."""
        described = self.env if self.env is None or isinstance(self.env, str) else repr(self.env)
        own = {"format": FORMAT, "world": self.checksum, "env": described}
        return {**own, **asdict(self.config)}

    def _read(self) -> dict[str, dict[str, Any]]:
        """Return the results in the folder, where they are of the same ranking."""
        path = self.work / RESULTS_FILE
        if not path.is_file():
            return {}
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return {}
        same = isinstance(saved, dict) and saved.get("key") == json.loads(json.dumps(self._key()))
        results: dict[str, dict[str, Any]] = saved["results"] if same else {}
        return results

    def _write(self) -> None:
        text = json.dumps({"key": self._key(), "results": self.results}, indent=1)
        with atomic_file(self.work / RESULTS_FILE) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def spread_steps(curve: Sequence[tuple[int, float]], count: int) -> list[int]:
    """Return steps of a training at which its returns are spread evenly, ascending.

    Args:
        curve: (steps, dream return) of each policy that was kept.
        count: number of steps to return; fewer where the curve has fewer points.
    """
    if not curve:
        return []
    left, chosen = dict(curve), []
    low, high = min(left.values()), max(left.values())
    for target in np.linspace(low, high, count + 1)[:-1]:  # the whole training stands for the best
        if left:
            chosen.append(min(left, key=lambda steps: abs(left[steps] - target)))
            del left[chosen[-1]]
    return sorted(chosen)


def given_entries(policies: Sequence[PolicyLike | Path], world: World) -> list[Entry]:
    """Return entries of a random policy and of those that the user gave.

    Args:
        policies: whatever `transfer_policy` takes.
        world: the world that they were trained in.

    Raises:
        PolicyFileError: a file, or an exported controller's folder, cannot be used.
    """
    entries = [Entry(name="random", make=partial(_same, "random"))]
    seen = {"random"}
    for number, policy in enumerate(policies):
        if isinstance(policy, str) and policy == "random":
            continue
        opened = open_policy(policy, world)
        name, checksum = _name(opened, number), None
        if isinstance(policy, Path) and policy.is_file():
            name, checksum = policy.name, sha256(policy)
        elif isinstance(opened, str | TrainedPolicy | ExportedPolicy):
            checksum = name
        name = name if name not in seen else f"{name} ({number})"
        seen.add(name)
        entries.append(Entry(name=name, make=partial(_same, opened), checksum=checksum))
    return entries


def _same(policy: PolicyLike) -> PolicyLike:
    return policy


def _name(policy: Any, number: int) -> str:
    if isinstance(policy, str):
        return policy
    return str(getattr(policy, "name", None) or getattr(policy, "__name__", f"policy {number}"))


def agreement(rows: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Return how well dream returns order policies by their real returns.

    `spearman` and `pearson` with 95% bootstrap intervals over policies, and over episodes within
    each; `regret`: the real return of the best policy minus that of the one which is best in the
    dream (DOPE's regret@1, arXiv 2103.16596, section 3.3), also as a share of the range of real
    returns; `gap_mean` and `gap_max`: dream minus real return, absolute, of all policies but the
    best, as shares of the range from the random policy to the best.

    Args:
        rows: policies with "real" and "dream" returns.
        seed: seed of the resampling.
    """
    real, dream = (np.array([np.mean(row[key]) for row in rows]) for key in ("real", "dream"))
    best, chosen = int(real.argmax()), int(dream.argmax())
    span = float(np.ptp(real))
    regret = float(real[best] - real[chosen])
    figures: dict[str, Any] = {
        "count": len(rows),
        "regret": regret,
        "regret_share": regret / span if span > 0 else 0.0,
        "best_in_dream": rows[chosen]["name"],
        "best_in_reality": rows[best]["name"],
        **_gaps(rows, real, dream),
    }
    if len(rows) < 3:
        return figures
    resampled = _resampled(rows, np.random.default_rng(seed))
    for name, correlation in (("spearman", spearman), ("pearson", pearson)):
        values = [correlation(*pair) for pair in resampled]
        known = [value for value in values if value is not None]
        figures[name] = correlation(real, dream)
        figures[f"{name}_interval"] = (
            [float(value) for value in np.percentile(known, [2.5, 97.5])] if known else None
        )
    return figures


def _gaps(rows: Sequence[dict[str, Any]], real: Array, dream: Array) -> dict[str, float]:
    """Return the gaps of all policies but the best, in units of the range from random to best.

    Args:
        rows: policies by name.
        real: (policies,) mean real returns.
        dream: (policies,) mean dream returns.
    """
    best = int(real.argmax())
    random = next((i for i, row in enumerate(rows) if row.get("name") == "random"), real.argmin())
    span = float(real[best] - real[random])
    gaps = np.abs(np.delete(dream - real, best))
    if not span > 0 or not len(gaps):
        return {}
    return {"gap_mean": float(gaps.mean() / span), "gap_max": float(gaps.max() / span)}


def _resampled(
    rows: Sequence[dict[str, Any]], rng: np.random.Generator
) -> list[tuple[Array, Array]]:
    """Return real and dream returns of policies drawn with replacement, episodes too."""
    returns = {key: [np.asarray(row[key], float) for row in rows] for key in ("real", "dream")}

    def resample(values: Array) -> Array:
        return values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)

    means = {key: np.stack([*map(resample, values)], 1) for key, values in returns.items()}
    drawn = rng.integers(len(rows), size=(RESAMPLES, len(rows)))
    return [(means["real"][i, chosen], means["dream"][i, chosen]) for i, chosen in enumerate(drawn)]
