"""Alarms while a policy trains: a dream that leaves what the data has shown.

`watch(env)` wraps a dream for any learner. The limits (`dreamgym.metrics.Limits`) are stored with
the world; they were measured on its data when it was fitted.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from torch import Tensor

from dreamgym._device import own_torch_modes
from dreamgym._settings import check_choice
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import AlarmStop
from dreamgym.metrics.limits import Bank, Limits

RESPONSES = ("warn", "penalise", "truncate", "stop")

EVERY = 64
"""Steps between two looks at the counts, which are a host sync."""

COUNTED = 8
"""Steps between two looks that are compared with the limits, where nothing follows but an alarm."""

MIN_ROWS = 512
"""Fewest rows that are compared between two looks: dreams of few rows are compared more often."""

SAMPLED, SAMPLED_ROWS = 4, 256
"""Of these, steps whose distances are measured, and rows of each: distances cost the most."""

BEYOND = 2.0
"""Multiple of the 99th percentile of the held-out data, above which a step is beyond the data."""

LATE = 3.0
"""Multiple of the longest episode of the data, above which an episode ends late."""

SHARES = {"reward": 0.005, "uncertainty": 0.25, "features": 0.25, "length": 0.1}
"""Share of the compared steps since the last look that raises each alarm; single ones do not."""

LISTED = 8

StepResult = tuple[Any, Any, Any, Any, dict[str, Any]]


class TrainingAlarm(NamedTuple):
    """What went wrong in a dream while a policy trained.

    Attributes:
        name: "reward", "uncertainty", "features", "length" or "exploitation".
        sentence: what was found, with figures, and what to do about it.
        steps: first and last step of the look in which it was found, counted in steps of all rows
            together.
        rows: rows concerned, at most eight of them.
    """

    name: str
    sentence: str
    steps: tuple[int, int]
    rows: tuple[int, ...] = ()


def watch(env: VectorEnv, **options: Any) -> WatchedVectorEnv:
    """Watch a dream while a policy trains in it, with any learner.

    Args:
        env: a dream, or a wrapper around one.
        **options: see `WatchedVectorEnv`.

    Returns:
        The dream, which can be stepped as before; `alarms` has what was found.
    """
    return WatchedVectorEnv(env, **options)


class WatchedVectorEnv(VectorWrapper):
    """A dream whose steps are compared with what the data has shown.

    Rewards above the data's largest one, uncertainties and distances of the features from the data
    beyond twice the 99th percentile of held-out steps, and episodes that last far longer than any
    in the data are counted. Where their share is more than an accident, an alarm is raised, once
    for each kind. The counts stay on the device, and are read every 64 steps. Every eighth step is
    compared, or every one where the response changes steps ("penalise" and "truncate"), or where
    there are few dreams.

    Args:
        env: a dream, or a wrapper around one.
        limits: what the data has shown; None for the limits that are stored with the world. A world
            that was fitted before there were limits has none, and only `dreamgym report` adds them.
        response: what follows: "warn" calls `on_alarm`; "penalise" also gives steps beyond the
            limits the lowest reward of the data; "truncate" also truncates their episodes, in
            SameStep mode only; "stop" raises `AlarmStop` when an alarm is raised, a
            `KeyboardInterrupt` as Ctrl-C is, at which learners keep the policy so far.
        on_alarm: function of a `TrainingAlarm`; by default a `UserWarning` with its sentence.

    Attributes:
        alarms: alarms raised so far.
        steps: steps so far, of all rows together.

    Raises:
        ValueError: an unknown response, or "truncate" in another mode.
        TypeError: `env` does not wrap a dream.
    """

    def __init__(
        self,
        env: VectorEnv,
        *,
        limits: Limits | None = None,
        response: str = "warn",
        on_alarm: Callable[[TrainingAlarm], None] | None = None,
    ) -> None:
        super().__init__(env)
        check_choice("response", response, RESPONSES)
        dream = env.unwrapped
        if not isinstance(dream, DreamVectorEnv):
            raise TypeError(
                f"expected a dream or a wrapper around one, got {type(env).__name__}; make one "
                'with gym.make_vec("dreamgym/World-v0", world=..., num_envs=256)'
            )
        mode = env.metadata.get("autoreset_mode")
        if response == "truncate" and mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                "response='truncate' needs autoreset_mode='SameStep', in which a step that ends an "
                "episode starts the next one"
            )
        self.dream, self.response = dream, response
        self.limits = limits_of(dream) if limits is None else limits
        self.alarms: list[TrainingAlarm] = []
        self.steps = 0
        self._on_alarm = on_alarm or _warn
        self._waits = mode is AutoresetMode.NEXT_STEP
        self._bank: Bank | None = None
        if self.limits.distance is not None:
            self._bank = Bank.of(dream.engine.plain, dream.world.starts.states)
        every_step = response in ("penalise", "truncate")
        self._every = 1 if every_step else EVERY // COUNTED
        while self._every > 1 and self.num_envs * EVERY // self._every < MIN_ROWS:
            self._every //= 2
        self._stride = 1 if every_step else EVERY // SAMPLED
        self._calls = 0
        self._done = torch.zeros(self.num_envs, dtype=torch.bool, device=dream.device)
        self._clear(dream.device)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the dream."""
        if name.startswith("_") or name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """Reset all rows, or those of `options={"reset_mask": ...}`; see `DreamVectorEnv.reset`."""
        mask = (arguments.get("options") or {}).get("reset_mask")
        if mask is None:
            self._done = torch.zeros_like(self._done)
        else:  # the other rows may still wait for their reset in the next step
            self._done = self._done & ~torch.as_tensor(mask, device=self._done.device)
        return self.env.reset(**arguments)

    def step(self, actions: Any) -> StepResult:
        """Step, count what is beyond the limits, and respond to it."""
        result = self.env.step(actions)
        with own_torch_modes(), torch.no_grad():
            if self._is_due(self._every):
                beyond = self._count(result)
                if self.response == "penalise":
                    result = self._penalised(result, beyond)
                elif self.response == "truncate":
                    result = self._truncated(result, beyond)
            elif self._waits and self._is_due(self._every, ahead=1):
                self._done = self._ended(result)  # rows that only restart in the next step
            self._calls += 1
            self.steps += self.num_envs
            if self._calls % EVERY == 0:
                self._look()
        return result

    def check_returns(
        self, dream: Sequence[tuple[float, float]], real: Sequence[tuple[float, float, float]]
    ) -> None:
        """Raise the alarm "exploitation" if dream returns rise while real ones fall.

        Args:
            dream: (steps, mean return) of dreams.
            real: (steps, mean return, standard error) in the real environment.
        """
        compare_returns(dream, real, self.alarms, self.response, self._on_alarm)

    def _count(self, result: StepResult) -> Tensor:
        """Count the steps beyond the limits, and return in which rows, (N,) bool."""
        info = result[4]
        device, limits = self.dream.device, self.limits
        reward = torch.as_tensor(result[1], device=device).detach()
        ended = self._ended(result)
        counted = ~self._done if self._waits else torch.ones_like(ended)
        going = counted & ~ended
        self._done = ended
        beyond = torch.zeros_like(ended)
        if limits.reward_high is not None:
            # Only above: low rewards attract no policy, and a dream that leaves the data, or a
            # pessimistic one, has lower ones than the data by design.
            above = counted & (reward > limits.reward_high + limits.reward_margin)
            beyond |= self._add("reward", above, counted, reward)
        if limits.uncertainty is not None:
            unsure = torch.as_tensor(info["uncertainty"], device=device)
            flags = counted & (unsure > BEYOND * limits.uncertainty)
            beyond |= self._add("uncertainty", flags, counted, unsure)
        dreams = self.dream.dreams
        if self._bank is not None and dreams is not None and self._is_due(self._stride):
            rows = self._sampled_rows()
            state = {key: leaf[rows] for key, leaf in dreams.model.items()}
            distance = torch.zeros(self.num_envs, device=device)
            distance[rows] = self._bank.distance(self.dream.engine.plain.features(state))
            distance /= max(limits.distance or 0.0, 1e-12)
            measured = torch.zeros_like(going)
            measured[rows] = going[rows]
            far = measured & (distance > BEYOND)
            beyond |= self._add("features", far, measured, distance)
        if limits.longest_episode is not None and dreams is not None:
            age = dreams.age
            late = going & (age > LATE * limits.longest_episode)
            self._add("length", late, going, age.float())
        return beyond

    def _is_due(self, every: int, ahead: int = 0) -> bool:
        """Return whether this step, or one some steps ahead, is one of every so many.

        They move by one from look to look, so that dreams of a short horizon that run in step are
        not always compared at the same age.
        """
        call = self._calls + ahead
        return (call + call // EVERY) % every == 0

    def _ended(self, result: StepResult) -> Tensor:
        """Return whose episodes a step ended, (N,) bool."""
        terminated, truncated = (
            torch.as_tensor(each, device=self.dream.device) for each in result[2:4]
        )
        return terminated | truncated

    def _sampled_rows(self) -> slice:
        """Return the rows whose distances are measured: others each time, or all of them."""
        if self._stride == 1:
            return slice(None)
        every = max(1, self.num_envs // SAMPLED_ROWS)
        return slice(self._calls // self._stride % every, None, every)

    def _add(self, name: str, flags: Tensor, counted: Tensor, values: Tensor) -> Tensor:
        """Add the flags of one step to the counts, and return them."""
        rows, largest = self._rows[name], self._largest[name]
        self._counts[name] += torch.stack([flags.sum(), counted.sum()])
        self._rows[name] = rows | flags
        largest = torch.maximum(largest, torch.where(flags, values, -torch.inf).amax())
        self._largest[name] = largest
        return flags

    def _clear(self, device: torch.device) -> None:
        """Set all counts to zero."""
        self._counts = {name: torch.zeros(2, dtype=torch.int64, device=device) for name in SHARES}
        self._rows = {
            name: torch.zeros(self.num_envs, dtype=torch.bool, device=device) for name in SHARES
        }
        self._largest = {name: torch.tensor(-torch.inf, device=device) for name in SHARES}

    def _look(self) -> None:
        """Read the counts and raise alarms; this is a host sync."""
        counts = torch.stack([self._counts[name] for name in SHARES]).tolist()
        found = [
            (name, flagged / steps)
            for name, (flagged, steps) in zip(SHARES, counts, strict=True)
            if steps and flagged > SHARES[name] * steps and flagged > 1
        ]
        for name, share in found:
            rows = tuple(self._rows[name].nonzero().flatten()[:LISTED].tolist())
            self._raise(name, self._sentence(name, share, float(self._largest[name])), rows)
        self._clear(self.dream.device)

    def _sentence(self, name: str, share: float, largest: float) -> str:
        limits = self.limits
        if name == "reward":
            return (
                f"{share:.1%} of the rewards exceed those of the data, "
                f"{limits.reward_low:.4g} to {limits.reward_high:.4g} (up to {largest:.4g}): the "
                "policy is rewarded for what no data has shown; record data with it and fit "
                "again, or give the reward as a function (KnownReward)"
            )
        if name == "uncertainty":
            return (
                f"{share:.0%} of the steps are more than {BEYOND:g} times as uncertain as 99% of "
                f"the held-out steps are ({limits.uncertainty:.3g}; up to {largest:.3g}): use "
                "Pessimistic, or record data with this policy and fit again"
            )
        if name == "features":
            return (
                f"{share:.0%} of the states are more than {BEYOND:g} times as far from the data as "
                f"99% of the held-out states are (up to {largest:.1f} times): the policy goes "
                "where the data never went; record data with it and fit again"
            )
        return (
            f"{share:.0%} of the steps are in episodes of up to {largest:.0f} steps, and the "
            f"longest in the data has {limits.longest_episode}: dreams may miss how episodes end; "
            "record data with this policy and fit again"
        )

    def _raise(self, name: str, sentence: str, rows: tuple[int, ...]) -> None:
        first = max(0, self.steps - EVERY * self.num_envs) + 1
        listed = f"; rows {', '.join(map(str, rows))}" if rows else ""
        text = f"{sentence} (steps {first:,} to {self.steps:,}{listed})"
        alarm = TrainingAlarm(name, text, (first, self.steps), rows)
        _raise_once(alarm, self.alarms, self.response, self._on_alarm)

    def _penalised(self, result: StepResult, beyond: Tensor) -> StepResult:
        """Give the lowest reward of the data to the rows beyond the limits."""
        observation, reward, terminated, truncated, info = result
        lowest = self.limits.reward_low
        if lowest is not None:
            if isinstance(reward, Tensor):
                reward = torch.where(beyond, reward.clamp(max=lowest), reward)
            else:
                reward = np.where(beyond.cpu().numpy(), np.minimum(reward, lowest), reward)
        return observation, reward, terminated, truncated, info

    def _truncated(self, result: StepResult, beyond: Tensor) -> StepResult:
        """Truncate the episodes of the rows beyond the limits, and start new ones."""
        observation, reward, terminated, truncated, info = result
        as_tensor = isinstance(truncated, Tensor)
        rows = beyond if as_tensor else beyond.cpu().numpy()
        cut = rows & ~(terminated | truncated)
        if not as_tensor and not cut.any():
            return result
        observation, _ = self.env.reset(options={"reset_mask": cut})
        truncated = truncated | cut
        info = {**info, "_final_obs": info["_final_obs"] | cut}
        return observation, reward, terminated, truncated, info


def limits_of(dream: DreamVectorEnv) -> Limits:
    """Return the limits that are stored with a dream's world; all None where there are none."""
    return Limits.from_json(dream.world.quality.get("limits"))


def diverging_returns(
    dream: Sequence[tuple[float, float]], real: Sequence[tuple[float, float, float]]
) -> str | None:
    """Return what to say if dream returns rise while real ones fall; None if they do not.

    The real return has fallen if it is below its best by more than twice the standard error of the
    difference, and the dream return has risen since.

    Args:
        dream: (steps, mean return) of dreams, in the order of steps.
        real: (steps, mean return, standard error) in the real environment, in the same order.
    """
    if len(real) < 2 or not dream:
        return None
    best = max(range(len(real)), key=lambda i: real[i][1])
    then, now = real[best], real[-1]
    fallen = then[1] - now[1] > 2 * (then[2] ** 2 + now[2] ** 2) ** 0.5
    dreamt = [_at(dream, steps) for steps in (then[0], now[0])]
    if not fallen or dreamt[1] <= dreamt[0]:
        return None
    return (
        f"the real return fell from {then[1]:.4g} to {now[1]:.4g} while the dream return rose from "
        f"{dreamt[0]:.4g} to {dreamt[1]:.4g}: the policy exploits the dream; take the policy of "
        f"step {then[0]:,.0f}, and record data with this one and fit again"
    )


def compare_returns(
    dream: Sequence[tuple[float, float]],
    real: Sequence[tuple[float, float, float]],
    alarms: list[TrainingAlarm],
    response: str,
    on_alarm: Callable[[TrainingAlarm], None] | None = None,
) -> None:
    """Raise the alarm "exploitation", once, if dream returns rise while real ones fall.

    Args:
        dream: see `diverging_returns`.
        real: see `diverging_returns`.
        alarms: alarms raised so far; this one is added.
        response: see `WatchedVectorEnv`.
        on_alarm: function of the alarm; None for none.

    Raises:
        AlarmStop: the alarm was raised, and the response is "stop".
    """
    sentence = diverging_returns(dream, real)
    if sentence is not None:
        steps = int(real[-1][0])
        alarm = TrainingAlarm("exploitation", sentence, (steps, steps))
        _raise_once(alarm, alarms, response, on_alarm)


def _raise_once(
    alarm: TrainingAlarm,
    alarms: list[TrainingAlarm],
    response: str,
    on_alarm: Callable[[TrainingAlarm], None] | None,
) -> None:
    """Add an alarm to those raised so far and respond to it, unless there is one of its name."""
    if alarm.name in {each.name for each in alarms}:
        return
    alarms.append(alarm)
    if on_alarm is not None:
        on_alarm(alarm)
    if response == "stop":
        raise AlarmStop(f"training was stopped by an alarm: {alarm.sentence}")


def _at(curve: Sequence[tuple[float, float]], steps: float) -> float:
    """Return the value of a curve at the last point up to some steps, or else at its first."""
    before = [value for done, value in curve if done <= steps]
    return before[-1] if before else curve[0][1]


def _warn(alarm: TrainingAlarm) -> None:
    warnings.warn(f"{alarm.name}: {alarm.sentence}", UserWarning, stacklevel=5)
