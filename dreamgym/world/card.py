"""The card of a world: a README.md for people, made from world.json.

A picture comes first where there is one (`dreamgym report --card` draws it), then the verdict, the
real returns of policies that were trained in the world, how far to trust it, and how to make it
again. All settings and figures are in world.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dreamgym.data.images import describe_observations
from dreamgym.data.spaces import space_from_json

CARD_FILE = "README.md"
PICTURE_FILE = "card.png"

LARGE_GAP = 0.2
"""Share of the range from a random policy to the best above which a gap is a failure."""

Description = dict[str, Any]

USE = """## Use it

```python
import gymnasium as gym

envs = gym.make_vec("dreamgym:dreamgym/World-v0", world="{name}", num_envs=256)
```"""


def write_card(folder: Path, name: str, description: Description) -> None:
    """Write the card of a world into its folder.

    Args:
        folder: folder of the world.
        name: name of the world.
        description: content of world.json.
    """
    picture = (folder / PICTURE_FILE).is_file()
    text = card_text(name, description, picture=picture)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def card_text(
    name: str, description: Description, *, picture: bool = False, source: str | None = None
) -> str:
    """Return the card of a world as Markdown.

    Args:
        name: name of the world.
        description: content of world.json.
        picture: whether there is a picture beside the card.
        source: what to load it by; None for its name.
    """
    parts = [f"# {name}"]
    if picture:
        parts.append(f"![The real environment and dreams of the same actions]({PICTURE_FILE})")
    parts += [_safely(_summary, description), _safely(_returns, description)]
    parts.append(USE.format(name=source or name))
    sections = (_trust, _limits, _figures, _again)
    parts += [_safely(section, description) for section in sections]
    return "\n\n".join(part for part in parts if part) + "\n"


def _safely(section: Callable[[Description], str], description: Description) -> str:
    """Return a section, or nothing where a file has figures of another form: saving goes on."""
    try:
        return section(description)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError):
        return ""


def _summary(description: Description) -> str:
    """Return the verdict, and what the world is."""
    report = description["quality"].get("report")
    provenance = description["provenance"]
    spec = description["env_spec"]
    env = "an unnamed environment" if spec is None else f"`{spec['id']}`"
    lines = []
    if report is not None:
        lines.append(f"**{report['verdict'].capitalize()}**, measured on {report['data']}.")
    observations = describe_observations(space_from_json(description["observation_space"]))
    data = ""
    if provenance.get("dataset_steps"):
        policy = provenance.get("dataset_policy")
        data = f", fitted to {provenance['dataset_steps']:,} real steps" + (
            f" of {_policies(policy)}" if policy else ""
        )
    lines.append(
        f"A world model of {env}, made by dreamgym: family `{description['family']}`, "
        f"observations: {observations}{data}."
    )
    return " ".join(lines)


def _returns(description: Description) -> str:
    """Return the table of real returns (`dreamgym.world.annotate`, "transfer")."""
    transfer = description["quality"].get("transfer")
    if transfer is None:
        return ""
    measure = transfer.get("measure")
    rows = [
        f"| {row['name']} | {row['real']:.1f} | {_interval(row['interval'])} |"
        + (f" {_number(row.get('dream'))} |" if measure is None else "")
        for row in [*transfer["policies"], *transfer["baselines"]]
    ]
    bar, left_out = transfer.get("bar"), transfer.get("left_out")
    lines = [
        "## Real returns" if measure is None else "## Goals",
        "",
        f"{transfer['how']}, measured over {transfer['episodes']} episodes of the real environment"
        + ("." if bar is None else f"; the bar of each is {bar:g}.")
        + (f" Left out: {left_out} episodes that began at their goal." if left_out else ""),
        "",
        "| policy | real return | 95% interval | dream return |"
        if measure is None
        else f"| policy | {measure} | 95% interval |",
        "|---|---|---|---|" if measure is None else "|---|---|---|",
        *rows,
    ]
    return "\n".join(lines)


def _trust(description: Description) -> str:
    """Return horizon, temperature, termination, and what the ranking of policies says."""
    skip = _frame_skip(description.get("frame_skip"))
    lines = [
        "## How far to trust it",
        "",
        f"- Horizon {description['horizon']} steps{skip}; temperature {_temperature(description)}. "
        + _termination(description.get("termination", "sample")),
    ]
    report = description["quality"].get("report") or {}
    ranking = report.get("ranking")
    if ranking is not None:
        lines += _ranking_lines(ranking)
    good = [text for level, text in map(_split, report.get("findings", [])) if level == "good"]
    lines += [f"- {text}" for text in good]
    if ranking is not None:
        lines += [
            "",
            f"<details><summary>Dream and real return of {ranking['count']} policies</summary>",
            "",
            "| policy | dream return | real return |",
            "|---|---|---|",
            *(f"| {row} | {dream:.1f} | {real:.1f} |" for row, dream, real in ranking["policies"]),
            "",
            "</details>",
        ]
    return "\n".join(lines)


def _ranking_lines(ranking: dict[str, Any]) -> Iterator[str]:
    yield (
        f"- Choosing the best of {ranking['count']} policies by their dream returns costs "
        f"{ranking['regret']:.4g} of real return."
    )
    if 0 <= ranking.get("gap_max", -1.0) <= LARGE_GAP:
        yield f"- {_gap(ranking)}"


def _policies(names: str) -> str:
    several = names.split(" + ")
    return f"the policy {names}" if len(several) == 1 else f"the policies {', '.join(several)}"


def _gap(ranking: dict[str, Any]) -> str:
    return (
        "Gap: the dream return of a policy that is not the best differs from its real one by "
        f"{ranking['gap_mean']:.0%} of the range from random to best on average, and by "
        f"{ranking['gap_max']:.0%} at most."
    )


def _limits(description: Description) -> str:
    """Return what does not hold: findings that are not good, and the maker's own notes."""
    report = description["quality"].get("report") or {}
    notes = list((description["provenance"].get("card") or {}).get("notes", []))
    ranking = report.get("ranking") or {}
    notes += [_gap(ranking)] if ranking.get("gap_max", 0.0) > LARGE_GAP else []
    notes += [text for level, text in map(_split, report.get("findings", [])) if level != "good"]
    found = "\n".join(notes).casefold()  # most alarms of the fit are findings of the report, too
    alarms = map(str, description["quality"].get("alarms", []))
    notes += [each for each in alarms if each.casefold() not in found]
    if not notes:
        return ""
    return "\n".join(["## Known failures", "", *(f"- {note}" for note in notes)])


def _split(finding: str) -> tuple[str, str]:
    """Return the level of a finding, and its sentence with the evidence."""
    level, _, text = finding.partition(": ")
    return level, text


def _figures(description: Description) -> str:
    """Return the figures of the fit, where no report stands on the card."""
    quality = description["quality"]
    if "report" in quality or "open_loop" not in quality:
        return ""
    rows = [
        f"| {steps} | {each['rmse_of_mean']:.3g} | {each['rmse']:.3g} | {each['repeat_last']:.3g} |"
        for steps, each in quality["open_loop"].items()
    ]
    lines = [
        "## Forecasts of held-out episodes",
        "",
        "| steps ahead | error of the mean of dreams | of one dream | of repeating the last |",
        "|---|---|---|---|",
        *rows,
        "",
        "Root mean square errors in units of the observations' spread.",
    ]
    if quality.get("reward_rmse") is not None:
        lines[-1] += f" Error of the reward, one step ahead: {quality['reward_rmse']:.4g}."
    return "\n".join(lines)


def _again(description: Description) -> str:
    """Return how to make the world again, the weights that it needs, and its licence."""
    card = description["provenance"].get("card") or {}
    lines = ["## Make it again", ""]
    if card.get("commands"):
        lines += ["```console", *(f"$ {command}" for command in card["commands"]), "```", ""]
    lines.append(
        "Dataset, checksums, seeds, settings and versions of the fit, and all figures, are in "
        "`world.json`."
    )
    weights = description["provenance"].get("pretrained_weights")
    if weights:
        lines += ["", f"Published weights that it needs, which are not in this folder: {weights}"]
    if card.get("licence"):
        lines += ["", f"Licence: {card['licence']}"]
    return "\n".join(lines)


def _termination(termination: str | float) -> str:
    if termination == "sample":
        return "Terminations are sampled."
    return f"A dream ends where the probability of termination is at least {termination}."


def _temperature(description: Description) -> str:
    """Return the temperature of the dreams that policies were trained in."""
    return f"{(description['quality'].get('transfer') or {}).get('temperature', 1.0):g}"


def _frame_skip(frame_skip: dict[str, Any] | None) -> str:
    if frame_skip is None:
        return ""
    actions = "a block of actions" if frame_skip["actions"] == "blocks" else "one action, repeated"
    return f", each of {frame_skip['steps']} steps of the environment ({actions})"


def _interval(bounds: Any) -> str:
    low, high = bounds
    return f"{low:.1f} to {high:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
