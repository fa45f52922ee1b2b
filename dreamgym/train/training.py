"""Training a policy in the dream of a world, with any learner library of the table."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from dreamgym._device import float32_by_default, private_generators, threads
from dreamgym._files import atomic_file
from dreamgym.data import AnyDataset, DatasetSource
from dreamgym.data.spaces import space_to_json
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.dream.watch import TrainingAlarm, compare_returns, limits_of, watch
from dreamgym.errors import PolicyFileError, TrainingError, TrainingInterrupted
from dreamgym.fitting.loop import tensorboard_log
from dreamgym.metrics.limits import Limits
from dreamgym.train.config import TrainConfig
from dreamgym.train.monitoring import Monitor, Monitoring, Progress
from dreamgym.train.policy import (
    PolicyCard,
    TrainedPolicy,
    load_policy,
    policy_view,
    world_checksum,
)
from dreamgym.train.registry import LEARNERS, Learner, find_learner
from dreamgym.world.held_out import open_for
from dreamgym.world.world import World, as_world


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """Everything that a learner library needs for one training.

    Attributes:
        world: the world to dream in.
        learner: name of the learner library.
        algo: name of one of its algorithms.
        seed: seed of everything random.
        steps: dream steps in all; None for the algorithm's default.
        config: further settings.
        initial: policy of the same algorithm to go on from; None for fresh weights.
        real_data: real transitions for the batches of an off-policy algorithm; None for none.
        earlier: card of the checkpoint that the run goes on from; None for a run from the start.
            `initial` is the checkpoint then, `steps` are those of all runs together.
        monitor: what `report` reports to.
        alarms: alarms raised so far, see `dreamgym.dream.watch`.
        dreamt: pairs (steps, dream return) of the reports so far.
    """

    world: World
    learner: str
    algo: str
    seed: int
    steps: int | None
    config: TrainConfig
    initial: TrainedPolicy | None = None
    real_data: AnyDataset | None = None
    earlier: PolicyCard | None = None
    monitor: Monitor = field(default_factory=Monitor)
    alarms: list[TrainingAlarm] = field(default_factory=list)
    dreamt: list[tuple[float, float]] = field(default_factory=list)

    @property
    def view(self) -> str:
        """View that the policy sees."""
        return self.config.view or policy_view(self.world)

    @property
    def _done(self) -> int:
        return 0 if self.earlier is None else self.earlier.steps

    def steps_left(self, default: int, rollout: int = 1) -> int:
        """Return the dream steps to train for, at least one rollout.

        Args:
            default: the algorithm's own number of dream steps.
            rollout: steps that all copies take together between two updates; the number is rounded
                up to whole ones.
        """
        return -(-max(1, (self.steps or default) - self._done) // rollout) * rollout

    def report(
        self,
        steps: int,
        total: int,
        figures: dict[str, float],
        policy: Callable[[], TrainedPolicy],
    ) -> None:
        """Report progress; every learner calls it after an update, or a few times a minute.

        It shows and logs the figures, and saves and evaluates the policy where that is due.

        Args:
            steps: dream steps of this run so far.
            total: dream steps of this run, `steps_left`.
            figures: "dream return" and "dream length", means over the dreams that ended since the
                last report; empty where none ended.
            policy: returns the policy so far, with its card.
        """
        self.monitor.report(self._done + steps, self._done + total, figures, policy)
        if "dream return" in figures:
            self.dreamt.append((float(self._done + steps), figures["dream return"]))
        if self.config.alarms != "off":
            self._compare_returns()

    def _compare_returns(self) -> None:
        """Raise an alarm where the dream return rose while the measured real one fell."""
        real = [
            (each["steps"], each["real return"], each["real return error"])
            for each in self.monitor.evaluations
            if {"real return", "real return error"} <= each.keys()
        ]
        compare_returns(self.dreamt, real, self.alarms, self.config.alarms)

    @property
    def dream_options(self) -> dict[str, Any]:
        """Options of `DreamVectorEnv`."""
        return {
            "view": self.view,
            "device": self.config.device,
            "temperature": self.config.temperature,
            "max_episode_steps": self.config.horizon,
            "starts": self.config.starts,
        }

    def make_dream(
        self, num_envs: int, *, output: str = "numpy", autoreset_mode: str = "SameStep"
    ) -> Any:
        """Make the dream that is trained in, watched for alarms unless these are off."""
        response = self.config.alarms
        if response == "truncate" and autoreset_mode != "SameStep":
            raise TrainingError(
                f"alarms='truncate' does not work with {LEARNERS[self.learner].title}, which "
                "resets rows by itself; use 'warn', 'penalise' or 'stop', or another learner"
            )
        dream = DreamVectorEnv(
            self.world,
            num_envs,
            output=output,
            autoreset_mode=autoreset_mode,
            **self.dream_options,
        )
        if response == "off" or limits_of(dream) == Limits():
            return dream
        return watch(dream, response=response, on_alarm=self.alarms.append)

    def card(self, env: DreamVectorEnv, *, settings: dict[str, Any], **values: Any) -> PolicyCard:
        """Make the card of a policy that this run trained.

        Args:
            env: the dream.
            settings: keyword arguments of the algorithm's class.
            **values: fields of `PolicyCard` that only the library knows: `policy`, `reward_scale`,
                and `steps` and `curve` of this run alone.
        """
        seed, evaluations = self.seed, list(self.monitor.evaluations)
        alarms = [f"{alarm.name}: {alarm.sentence}" for alarm in self.alarms]
        if self.earlier is not None:
            seed, evaluations = self.earlier.seed, [*self.earlier.evaluations, *evaluations]
            alarms = [*self.earlier.alarms, *alarms]
            values["steps"] += self._done
            curve = [[steps + self._done, value] for steps, value in values.get("curve", [])]
            values["curve"] = [*self.earlier.curve, *curve]
        chosen = {key: value for key, value in asdict(self.config).items() if value is not None}
        chosen.pop("learner")
        chosen["net_arch"] = list(self.config.net_arch)
        return PolicyCard(
            algo=self.algo,
            learner=self.learner,
            view=self.view,
            env_id=self.world.env_id,
            world=self.world.name,
            world_checksum=world_checksum(self.world),
            seed=seed,
            observation_space=space_to_json(env.single_observation_space),
            action_space=space_to_json(env.single_action_space),
            hyperparameters={**chosen, **settings, "num_envs": env.num_envs},
            versions=_versions(LEARNERS[self.learner]),
            frame_skip=self.world.frame_skip.to_json(),
            evaluations=evaluations,
            alarms=alarms,
            **values,
        )


@float32_by_default()
def train_policy(  # noqa: PLR0913 - what to train is five of them
    world: World | str | Path,
    *,
    algo: str | None = None,
    learner: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    out: str | Path | None = None,
    config: TrainConfig | None = None,
    progress: Progress | None = None,
    initial: TrainedPolicy | None = None,
    real_data: DatasetSource | None = None,
    monitoring: Monitoring | None = None,
    resume: bool = False,
) -> TrainedPolicy:
    """Train a policy in the dream of a world; the real environment is not used.

    The policy standardises its input by fixed numbers measured in the dream, so it takes raw real
    observations (of its view). Rewards are scaled for the learner by a fixed factor; the learning
    curve and all figures stay in the real environment's units.

    Args:
        world: a world, its folder, or the name of one that ships with dreamgym.
        algo: name of an algorithm of `dreamgym.train.LEARNERS`; None for the learner's first.
        learner: name of the learner library; None for the first that has the algorithm, which is
            PPO of Stable-Baselines3 where there is none.
        seed: seed of everything random in the training. The global generators of Python, NumPy and
            torch are left unchanged.
        steps: dream steps, rounded up to whole rollouts of all copies; None for the algorithm's
            default.
        out: file to save the policy in, atomically; None saves nothing.
        config: further settings.
        progress: called with (steps done, steps, {"dream return": ..., "dream length": ...}).
        initial: policy of the same algorithm and spaces to go on from: its network, with its
            standardisation and its reward scale, is where the training starts.
        real_data: dataset, or several with weights, whose transitions make up `config.real_share`
            of every batch of an off-policy algorithm; read with the world's frame skip.
        monitoring: checkpoints, logs and evaluations while it trains; by default a checkpoint every
            100,000 dream steps, if `out` is given.
        resume: go on from the checkpoint beside `out`, if there is one, up to `steps` dream steps
            in all; return the policy in `out`, if that is there. The network, its standardisation
            and the learning curve are kept; optimizer and replay buffer start empty.

    Returns:
        The trained policy with its learner and its card.

    Raises:
        TrainingError: there is no such learner or algorithm, the algorithm cannot act in the
            world's action space or does not have a setting, a number is out of range, `initial`
            or `real_data` is of another kind, or the checkpoint is of another training.
        DatasetError: `real_data` cannot be opened.
        WorldError: its spaces are not the world's.
        PolicyFileError: nothing can be written to `out`; raised before the training if possible.
        TrainingInterrupted: Ctrl-C; the policy so far is in `<out>.interrupted.<suffix>`.
        ModuleNotFoundError: the learner library is not installed.
    """
    entry = find_learner(algo, learner)
    if seed < 0:
        raise TrainingError(f"seed is {seed}; expected 0 or more")
    if steps is not None and steps < 1:
        raise TrainingError(f"steps is {steps}; expected at least 1")
    run = TrainingRun(
        world=as_world(world),
        learner=entry.name,
        algo=algo or entry.algorithms[0],
        seed=seed,
        steps=steps,
        config=config or TrainConfig(),
        initial=initial,
    )
    path = None if out is None else entry.policy_path(out)
    if resume:
        if path is None:
            raise TrainingError("resume=True needs out=, the file beside which the checkpoint is")
        if path.exists():
            return load_policy(path, world=run.world)
        run = _resumed(entry, run, checkpoint_path(path))
    _check_real_share(entry, run, real_data)
    if run.initial is not None:
        _check_initial(entry, run, run.initial)
    library = entry.library()
    reason = library.unsupported(run.algo, run.world.action_space)
    if reason is not None:
        raise TrainingError(reason)
    library.check(run)
    if path is not None:
        _check_writable(path)
    monitoring = monitoring or Monitoring()
    with ExitStack() as stack:
        if real_data is not None:
            run = replace(
                run, real_data=stack.enter_context(open_for(run.world, real_data)).dataset
            )
        stack.enter_context(private_generators())
        stack.enter_context(threads(run.config.threads))
        monitor = Monitor(
            monitoring,
            checkpoint=None if path is None else checkpoint_path(path),
            progress=progress,
            log=stack.enter_context(tensorboard_log(monitoring.tensorboard)),
            done=0 if run.earlier is None else run.earlier.steps,
        )
        policy, finished = library.train(replace(run, monitor=monitor))
    if not finished:
        raise _interruption(policy, path, run)
    if path is not None:
        policy.save(path)
        checkpoint_path(path).unlink(missing_ok=True)
    return policy


def checkpoint_path(path: Path) -> Path:
    """Return the file of the unfinished policy of a training that saves in `path`."""
    return path.with_name(f"{path.stem}.interrupted{path.suffix}")


def _resumed(learner: Learner, run: TrainingRun, checkpoint: Path) -> TrainingRun:
    """Return a run that goes on from a checkpoint; the same run where there is none."""
    if run.initial is not None:
        raise TrainingError("resume=True and initial= exclude each other; give one of them")
    if not checkpoint.is_file():
        return run
    if not (learner.goes_on or learner.resumes):
        raise TrainingError(
            f"a training with {learner.title} cannot be resumed; delete {checkpoint} to start again"
        )
    policy = load_policy(checkpoint)
    card = policy.card
    for what, before, now in (
        ("learner", card.learner, run.learner),
        ("algorithm", card.algo, run.algo),
        ("view", card.view, run.view),
        ("seed", card.seed, run.seed),
        ("world", card.world_checksum, world_checksum(run.world)),
    ):
        if before != now:
            raise TrainingError(
                f"the checkpoint {checkpoint} is of another training: its {what} is {before!r}, "
                f"this one's {now!r}; resume with the same, or delete the file"
            )
    # A seed of its own: the resumed dreams must not repeat the first ones.
    seed = int(np.random.SeedSequence([run.seed, card.steps]).generate_state(1)[0])
    return replace(run, seed=seed, initial=policy, earlier=card)


def _check_real_share(learner: Learner, run: TrainingRun, real_data: DatasetSource | None) -> None:
    if bool(run.config.real_share) != (real_data is not None):
        raise TrainingError(
            f"the share of real transitions in a batch (real_share, --real-share) is "
            f"{run.config.real_share}, and their dataset (real_data, --real-data) is {real_data}; "
            "give both or neither"
        )
    if real_data is not None and not learner.takes_real_data:
        able = ", ".join(each.name for each in LEARNERS.values() if each.takes_real_data)
        raise TrainingError(
            f"batches of {learner.title} hold no real transitions; leave real_data and real_share "
            f"out, or use one of {able}"
        )
    if real_data is not None:
        run.world.check_takes_data_actions(TrainingError)


def _check_initial(learner: Learner, run: TrainingRun, initial: TrainedPolicy) -> None:
    """Check that a training can go on from a policy."""
    card = initial.card
    if not learner.goes_on and run.earlier is None:
        able = ", ".join(each.name for each in LEARNERS.values() if each.goes_on)
        raise TrainingError(
            f"a training with {learner.title} starts from fresh weights; leave initial out, or use "
            f"one of {able}"
        )
    for what, own, expected in (
        ("learner", card.learner, run.learner),
        ("algorithm", card.algo, run.algo),
        ("view", card.view, run.view),
    ):
        if own != expected:
            raise TrainingError(
                f"the {what} of the policy to go on from is {own!r}, that of the training "
                f"{expected!r}; give the same, or no initial policy"
            )


def _check_writable(path: Path) -> None:
    """Raise `PolicyFileError` where no policy can be saved, before time is spent on training."""
    if path.is_dir():
        raise PolicyFileError(f"{path} is a folder; expected the file to save the policy in")
    probe = path.with_name(f".{path.name}.writable")
    try:
        with atomic_file(probe) as temporary:
            temporary.write_bytes(b"\0")
        probe.unlink()
    except OSError as error:
        raise PolicyFileError(f"no policy can be written to {path}: {error}") from error


def _interruption(
    policy: TrainedPolicy, path: Path | None, run: TrainingRun
) -> TrainingInterrupted:
    """Save an unfinished policy beside `path`, and return the exception that says so."""
    steps = policy.card.steps
    done = f"training was interrupted after {steps:,} dream steps"
    if run.config.alarms == "stop" and run.alarms:
        alarm = run.alarms[-1]
        done = f"training was stopped by an alarm after {steps:,} dream steps: {alarm.sentence}"
    if path is None:
        message = f"{done}; no out was given, so nothing was saved"
        return TrainingInterrupted(message, path=None, steps=steps)
    saved = checkpoint_path(path)
    try:
        policy.save(saved)
    except PolicyFileError as error:
        return TrainingInterrupted(f"{done}, and {error}", path=None, steps=steps)
    entry = LEARNERS[run.learner]
    further = ""
    if entry.goes_on or entry.resumes:
        further = "; resume=True (--resume on the command line) goes on from there"
    message = f"{done}; the policy so far is in {saved}, and {path} was not changed{further}"
    return TrainingInterrupted(message, path=saved, steps=steps)


def _versions(learner: Learner) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("dreamgym", learner.requires, "torch", "gymnasium", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions
