"""Findings: what the figures of a report mean, in plain words, each with its evidence.

To add a finding, write a function that takes the figures and yields findings, and enter it at the
end of `RULES`. A rule that says "do not use" must not be wrong about a sound world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from dreamgym.metrics.alarms import EVIDENCE, MAX_MISCALIBRATION, MAX_REWARD_ERROR, ROUNDING
from dreamgym.metrics.channels import MIN_WINDOWS
from dreamgym.metrics.recommendation import BASELINE_MARGIN

DO_NOT_USE, CAUTION, NOTE, GOOD = "do not use", "caution", "note", "good"
LEVELS = (DO_NOT_USE, CAUTION, NOTE, GOOD)
"""Levels of findings, the worst first."""

SHORT = 5
"""Steps ahead within which a forecast must be worth something."""

IGNORED_SHARE, LINEAR_SHARE = 0.95, 0.5
"""A number is not predicted if the forecast's error is at least this share of that of repeating the
last observation at every short horizon, while a linear model's is below the other share at one."""

POOR_LINEAR = 3.0
"""Nor is it if the error exceeds this multiple of the linear model's at every short horizon, and a
tenth of its spread."""

MISCOVERAGE = 0.07
"""Tolerated difference between nominal coverage and that of intervals."""

OVERCONFIDENT = 0.75
"""Coverage of 95% intervals below which a model's own noise is far too small."""

WRONG_SIGN = -0.2
"""Correlation of predicted with real rewards below which their sign is wrong."""

WELL = 0.7
"""Correlation of predicted and real rewards from which they are called predicted well."""

UNLEARNT = 0.3
"""Correlation below which a reward that varies is hardly learnt."""

MATTERS = 50.0
"""Chi-square above which a number of the actions matters in the data beyond doubt."""

MIN_SHIFT = 0.2
"""Smallest distance between distribution functions that counts as other behaviour."""

REWARDS_OUTSIDE = 0.005
"""Share of dream steps with rewards outside the data's range that is no accident."""

FAR = 0.5
"""Share of a policy's dream steps beyond the limit of distance that makes its dreams a guess."""

REGRET = 0.5
"""Share of the range of real returns that is lost by choosing in the dream."""

MIN_CORRELATION = 0.5
"""Rank correlation below which the dream does not order policies."""


class Finding(NamedTuple):
    """One thing that a report says.

    Attributes:
        level: one of `LEVELS`.
        topic: one word: "horizon", "channels", "reward", "termination", "intervals", "actions",
            "shift", "data", "world", "ranking", "exploitation" or "coverage".
        sentence: what was found, in plain words.
        evidence: the figures behind it.
        remedy: what to do, such as what data to record; "" where nothing is needed.
    """

    level: str
    topic: str
    sentence: str
    evidence: str
    remedy: str = ""


Figures = dict[str, Any]
Rule = Callable[[Figures], Iterator[Finding]]


def origin(figures: Figures) -> Iterator[Finding]:
    """Compare the environment and the policy of the data with those of the fit."""
    world, data = figures["world"], figures["data"]
    if world["env_id"] and data["env_id"] and world["env_id"] != data["env_id"]:
        yield Finding(
            DO_NOT_USE,
            "world",
            f"This is a world of {world['env_id']}, and the data is of {data['env_id']}.",
            "the environments' ids differ, though their spaces are the same",
            "give data of the environment that the world was fitted to, or fit a world to this "
            "data",
        )
    if data["fitted"] is False and world["policy"] and world["policy"] != data["policy"]:
        yield Finding(
            NOTE,
            "shift",
            f"The world was fitted to data of the policy {world['policy']!r}, and this data is of "
            f"{data['policy']!r}.",
            "the names of the policies in both",
        )


def usable_steps(table: Figures, longest: int) -> int:
    """Return the steps up to which forecasts beat repeating the last observation.

    Args:
        table: figures of `channel_errors`.
        longest: steps of the world's dreams, the most that is returned.
    """
    mean, last, reached = (np.array(each) for each in _over_channels(table))
    horizons, judged = np.array(table["horizons"]), reached >= MIN_WINDOWS
    worse = horizons[judged & (mean > BASELINE_MARGIN * last)]
    if len(worse):
        return min(longest, int(worse[0]) - 1)
    return min(longest, int(horizons[judged].max(initial=0)))


def horizon(figures: Figures) -> Iterator[Finding]:
    """Say to which horizon dreams are better than repeating the last observation."""
    table = figures.get("channels") or figures.get("frames")
    if table is None:
        return
    steps = figures["world"]["horizon"]
    mean, last, reached = (np.array(each) for each in _over_channels(table))
    horizons, judged = np.array(table["horizons"]), reached >= MIN_WINDOWS
    if not judged.any():
        yield Finding(
            CAUTION,
            "horizon",
            "Too few held-out episodes are long enough to judge how far dreams can be trusted.",
            f"at most {int(reached.max(initial=0))} windows, and {MIN_WINDOWS} are needed",
            "record more episodes",
        )
        return
    worse = judged & (mean > BASELINE_MARGIN * last)
    place = int(np.flatnonzero(worse if worse.any() else judged)[0 if worse.any() else -1])
    k = int(horizons[place])
    evidence = (
        f"error {mean[place]:.2g} of the spread after {k} step{'s' if k > 1 else ''}, and "
        f"repeating the last observation has {last[place]:.2g} ({int(reached[place])} windows)"
    )
    if not worse.any():
        short = figures["data"]["longest"] < steps
        yield Finding(
            GOOD,
            "horizon",
            f"Dreams are better than repeating the last observation up to {k} steps, as far as "
            "held-out episodes show.",
            evidence,
            f"for dreams of {steps} steps, record longer episodes" if short else "",
        )
    elif k == 1:
        yield Finding(
            DO_NOT_USE,
            "horizon",
            "Dreams are worse than repeating the last observation from the first step onwards.",
            evidence,
            "check that the data is of the world's environment; fit for longer or to more data",
        )
    else:
        yield Finding(
            GOOD if k > steps else CAUTION,
            "horizon",
            f"Dreams are worse than repeating the last observation from step {k} onwards.",
            evidence,
            f"dream at most {k - 1} steps at a time (max_episode_steps), fit for longer, or record "
            "more data",
        )


def _over_channels(table: Figures) -> tuple[list[float], list[float], list[int]]:
    """Return root mean squares over the numbers that vary, of the mean and of repeating."""
    varies = np.array(table["varies"], bool)
    root = [
        [
            float(np.sqrt(np.square(np.array(row)[varies]).mean())) if varies.any() else 0.0
            for row in table[key]
        ]
        for key in ("mean", "repeat_last")
    ]
    return root[0], root[1], table["windows"]


def channels(figures: Figures) -> Iterator[Finding]:
    """Name the numbers of the observations that the model does not predict."""
    table = figures.get("channels")
    if table is None:
        return
    horizons, windows = np.array(table["horizons"]), np.array(table["windows"])
    short = (horizons <= SHORT) & (windows >= MIN_WINDOWS)
    if not short.any():
        return
    mean, last, linear = (np.array(table[key])[short] for key in ("mean", "repeat_last", "linear"))
    for i, name in enumerate(table["names"]):
        if not table["varies"][i]:
            continue
        of_last = mean[:, i] / np.maximum(last[:, i], 1e-12)
        linear_of_last = linear[:, i] / np.maximum(last[:, i], 1e-12)
        of_linear = mean[:, i] / np.maximum(linear[:, i], 1e-12)
        ignored = (of_last >= IGNORED_SHARE).all() and (linear_of_last < LINEAR_SHARE).any()
        poor = (of_linear > POOR_LINEAR).all() and (mean[:, i] > 0.1).all()
        if ignored or poor:
            yield Finding(
                CAUTION,
                "channels",
                f"The model does not predict {name}, which a linear model does.",
                f"error {mean[-1, i]:.2g} of its spread after {int(horizons[short][-1])} steps; "
                f"repeating the last value {last[-1, i]:.2g}, linear {linear[-1, i]:.2g}",
                "do not train policies that depend on it; fit for longer, or check the number in "
                "the data",
            )


def reward(figures: Figures) -> Iterator[Finding]:
    """Judge the reward: its sign, its error, its rare events."""
    found = figures.get("reward")
    if found is None:
        return
    spread, size = found["spread"], max(abs(found["low"]), abs(found["high"]))
    varies = spread > ROUNDING * size
    unit = spread if varies else size
    correlation = found["correlation"]
    related = "no correlation" if correlation is None else f"correlation {correlation:.2f}"
    evidence = (
        f"error {found['rmse']:.3g} one step ahead, spread {spread:.3g}, {related}, "
        f"{found['count']:,} held-out steps"
    )
    signs = [found["correlation"], found["rank_correlation"]]
    opposite = all(each is not None and each < WRONG_SIGN for each in signs)
    opposite &= found["count"] > (EVIDENCE / WRONG_SIGN) ** 2  # else it may be chance
    if not varies:
        opposite = found["mean"] * (found["mean"] + found["bias"]) < 0
    if opposite:
        yield Finding(
            DO_NOT_USE,
            "reward",
            "The reward has the wrong sign: what is good in reality is bad in the dream.",
            evidence,
            "check the sign of a known reward or of a goal, and fit again",
        )
    elif size > 0 and found["rmse"] > MAX_REWARD_ERROR * unit:
        yield Finding(
            DO_NOT_USE,
            "reward",
            "The reward is not learnt: its error exceeds its variation by far.",
            evidence,
            "fit for longer, change the unit of the rewards so that their standard deviation is "
            "near 1, or give the reward as a function (KnownReward)",
        )
    elif varies and (correlation is None or correlation < UNLEARNT):
        yield Finding(
            CAUTION,
            "reward",
            "The reward is hardly learnt.",
            evidence,
            "record episodes that reach other rewards, fit for longer, or give the reward as a "
            "function (KnownReward)",
        )
    elif varies and correlation < WELL:
        yield Finding(
            NOTE,
            "reward",
            "The reward is predicted only roughly.",
            evidence,
            "compare dream and real returns before you trust either",
        )
    else:
        yield Finding(GOOD, "reward", "The reward is predicted well one step ahead.", evidence)
    events = found.get("events")
    if events is not None and (events["recall"] or 0.0) < 0.5:
        yield Finding(
            CAUTION,
            "reward",
            "Rare rewards are missed.",
            f"{events['happened']} of {found['count']:,} held-out rewards differ from "
            f"{events['usual']:g}; recall {events['recall'] or 0:.2f}, precision "
            f"{'none' if events['precision'] is None else format(events['precision'], '.2f')}",
            "record more episodes that reach them",
        )


def termination(figures: Figures) -> Iterator[Finding]:
    """Judge the terminations: how many, and when."""
    found = figures.get("termination")
    if found is None:
        return
    rate, predicted, count = found["rate"], found["predicted"], found["count"]
    actual, expected = rate * count, predicted * count
    difference = abs(actual - expected)
    significant = difference > EVIDENCE * max(actual, expected) ** 0.5
    evidence = (
        f"{predicted:.2%} predicted a step, {rate:.2%} happened in {count:,} held-out steps; "
        f"Brier {found['brier']:.3g}, ECE {found['ece']:.3g}"
    )
    if actual >= 5 and expected < 0.1 * actual and significant:
        yield Finding(
            DO_NOT_USE,
            "termination",
            "Dreams hardly ever terminate where real episodes do.",
            evidence,
            "record more episodes that terminate, or give the termination as a function "
            "(KnownTermination)",
        )
    elif significant and difference > MAX_MISCALIBRATION * actual:
        how = "often" if expected > actual else "rarely"
        yield Finding(
            CAUTION,
            "termination",
            f"Dreams terminate too {how}.",
            evidence,
            "fit for longer, or on more episodes that terminate",
        )
    elif actual:
        yield Finding(GOOD, "termination", "Terminations are as frequent as in reality.", evidence)
    else:
        yield Finding(NOTE, "termination", "No held-out episode terminates.", evidence)


def teaching(figures: Figures) -> Iterator[Finding]:
    """Repeat what the data cannot teach."""
    ends = figures.get("termination", {}).get("rate", 0.0) > 0
    for sentence in figures["data"]["cannot_teach"]:
        # where episodes end, a constant reward counts the steps until then
        counts = ends and sentence.startswith("the rewards are all")
        yield Finding(
            NOTE if counts else CAUTION,
            "data",
            sentence[0].upper() + sentence[1:] + ".",
            "the whole dataset",
        )


def intervals(figures: Figures) -> Iterator[Finding]:
    """Judge the calibration of the intervals, and of the recalibrated ones."""
    found = figures.get("intervals")
    if found is None:
        return
    horizons, windows = np.array(found["horizons"]), np.array(found["windows"])
    judged = (windows >= MIN_WINDOWS) & (horizons <= figures["world"]["horizon"])
    if not judged.any():
        return
    coverage = np.array(found["coverage"])[judged]
    narrow = coverage[:, -1]
    evidence = (
        f"95% intervals hold {narrow[0]:.0%} of the truth after {int(horizons[judged][0])} step"
        f"{'' if horizons[judged][0] == 1 else 's'}, {narrow[-1]:.0%} after "
        f"{int(horizons[judged][-1])}"
    )
    off = np.abs(coverage - np.array(found["levels"])).max()
    if narrow[: max(1, int((horizons[judged] <= SHORT).sum()))].min() < OVERCONFIDENT:
        yield Finding(
            CAUTION,
            "intervals",
            "The model is overconfident: what happens lies outside the range of its dreams.",
            evidence,
            "do not rely on its spread; dream at a temperature above 1, use the report's "
            "recalibrated intervals, or fit an ensemble to more data",
        )
    elif off > MISCOVERAGE:
        yield Finding(
            NOTE,
            "intervals",
            "The spread of dreams is not calibrated; the report has recalibrated intervals.",
            f"{evidence}; the largest difference from a nominal coverage is {off:.0%}",
        )
    else:
        yield Finding(GOOD, "intervals", "The spread of dreams is calibrated.", evidence)


def actions(figures: Figures) -> Iterator[Finding]:
    """Judge whether dreams depend on the actions, and on each number of them."""
    found = figures.get("actions")
    if found is None:
        return
    in_data = found["in_data"]
    if found["evidence"] < EVIDENCE:
        matters = in_data is None or max(in_data) > MATTERS
        yield Finding(
            DO_NOT_USE if matters else CAUTION,
            "actions",
            "Dreams do not depend on the actions as the data does: wrong actions are as good as "
            "the right ones.",
            f"error under another window's actions {found['sensitivity']:.3f} times that under the "
            f"true ones, {found['windows']:,} windows",
            "check that actions belong to their observations; record data with more varied "
            "actions, or fit for longer",
        )
        return
    for i, effect in enumerate(found["each"]):
        if len(found["each"]) == 1 or effect is None or effect["evidence"] >= EVIDENCE:
            continue
        matters = in_data is not None and in_data[i] > MATTERS
        yield Finding(
            CAUTION if matters else NOTE,
            "actions",
            f"Dreams do not depend on number {i} of the actions"
            + (", which matters in the data." if matters else "."),
            f"error with only this number wrong {effect['sensitivity']:.3f} times that under the "
            "true actions",
            "record data in which it varies more, or fit for longer" if matters else "",
        )
    yield Finding(
        GOOD,
        "actions",
        "Dreams depend on the actions.",
        f"error under wrong actions {found['sensitivity']:.2f} times that under the true ones",
    )


def shift(figures: Figures) -> Iterator[Finding]:
    """Say whether the data shows the behaviour that the world was fitted to."""
    found = figures.get("shift")
    if found is None:
        return
    distances, limit = np.array(found["distance"]), max(found["limit"], MIN_SHIFT)
    if not (distances > limit).any():
        return
    worst = int(distances.argmax())
    fitted, held = found["mean_fitted"][worst], found["mean_held_out"][worst]
    yield Finding(
        CAUTION,
        "shift",
        "These episodes show another behaviour than those that the world was fitted to.",
        f"{found['names'][worst]}: mean {held:.3g} here and {fitted:.3g} there, with a spread of "
        f"{found['spread_fitted'][worst]:.3g}; distance {distances[worst]:.2f} between the "
        f"distributions, expected below {found['limit']:.2f}",
        "for such behaviour, fit to data of both (--mix), since errors here are those of "
        "extrapolation",
    )


def ranking(figures: Figures) -> Iterator[Finding]:
    """Judge the order of policies, and what is lost by choosing in the dream."""
    found = figures.get("ranking")
    if found is None:
        return
    rho = found.get("spearman")
    if rho is not None:
        low, high = found["spearman_interval"] or (float("nan"), float("nan"))
        evidence = (
            f"Spearman {rho:.2f} (95%: {low:.2f} to {high:.2f}) over {found['count']} policies"
        )
        enough = found["count"] >= 10
        if rho < MIN_CORRELATION and (high < MIN_CORRELATION or not enough):
            level = DO_NOT_USE if enough else CAUTION
            text = "Dream returns do not order policies as real returns do."
        elif rho < MIN_CORRELATION + 0.3:
            level, text = CAUTION, "Dream returns order policies only roughly."
        else:
            level, text = GOOD, "Dream returns order policies as real returns do."
        more = "" if enough else "; fewer than 10 policies say little"
        yield Finding(level, "ranking", text, evidence + more)
    rows = {row["name"]: row for row in found["policies"]}
    chosen, best = rows[found["best_in_dream"]], rows[found["best_in_reality"]]
    if found["regret_share"] > REGRET:
        yield Finding(
            DO_NOT_USE,
            "exploitation",
            f"The policy that is best in the dream, {chosen['name']}, is poor in reality.",
            f"dream return {chosen['dream_mean']:.4g}, real return {chosen['real_mean']:.4g}; "
            f"{best['name']} has {best['real_mean']:.4g} in reality",
            "a policy exploits the dream: record data with it and fit again, use an ensemble with "
            "Pessimistic, or stop its training earlier",
        )
    span = float(np.ptp([row["real_mean"] for row in found["policies"]]))
    if chosen["gap"] > 0.5 * span and chosen["dream_mean"] > max(
        row["real_interval"][1] for row in found["policies"]
    ):
        yield Finding(
            CAUTION,
            "exploitation",
            "The dream promises more than any policy reaches in reality.",
            f"{chosen['name']}: dream return {chosen['dream_mean']:.4g}, real return "
            f"{chosen['real_mean']:.4g}",
            "do not take dream returns for real ones; record data with the trained policy and fit "
            "again",
        )


def coverage(figures: Figures) -> Iterator[Finding]:
    """Say where policies go in dreams and the data never went, and which rewards they get there."""
    known = figures["data"]["fitted"] or figures["world"]["has_limits"]
    for row in figures.get("visits", []):
        seen = row["visit"]
        limits = figures.get("limits", {})
        if seen["rewards_outside"] > REWARDS_OUTSIDE:
            yield Finding(
                DO_NOT_USE if known else CAUTION,
                "reward",
                f"Under {row['name']}, dreams give rewards that no data has shown.",
                f"{seen['rewards_outside']:.1%} of the steps, from {seen['reward_low']:.4g} to "
                f"{seen['reward_high']:.4g}; the data has {limits['reward_low']:.4g} to "
                f"{limits['reward_high']:.4g}",
                "record data where the policy goes, or give the reward as a function (KnownReward)",
            )
        if seen["far"] is not None and seen["far"] > FAR:
            yield Finding(
                CAUTION,
                "coverage",
                f"{row['name'][0].upper()}{row['name'][1:]} goes where the data never went.",
                f"{seen['far']:.0%} of its dream steps are farther from the data than 99% of the "
                "held-out steps are",
                "record episodes with this policy and fit to both datasets (--mix, or dreamgym "
                "improve)",
            )


RULES: dict[str, Rule] = {
    "origin": origin,
    "horizon": horizon,
    "channels": channels,
    "reward": reward,
    "termination": termination,
    "teaching": teaching,
    "intervals": intervals,
    "actions": actions,
    "shift": shift,
    "ranking": ranking,
    "coverage": coverage,
}
"""Every rule by its name."""


def findings_of(figures: Figures) -> list[Finding]:
    """Return the findings of all rules, the worst first."""
    found = [finding for rule in RULES.values() for finding in rule(figures)]
    if all(finding.level == NOTE for finding in found):
        found.append(
            Finding(
                CAUTION,
                "data",
                "Nothing could be measured.",
                "no held-out episode was long enough, or the model does not decode observations",
                "record more and longer episodes, or rank policies (--rank)",
            )
        )
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def verdict_of(findings: list[Finding]) -> str:
    """Return the level of the worst finding that is not a note; "good" where there is none."""
    levels = [finding.level for finding in findings if finding.level != NOTE]
    return min(levels, key=LEVELS.index, default=GOOD)
