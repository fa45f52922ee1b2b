"""The report as one self-contained HTML page: verdict first, then the evidence for it."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dreamgym.metrics.channels import MIN_WINDOWS
from dreamgym.trust.drawings import Drawing, Line
from dreamgym.trust.findings import CAUTION, DO_NOT_USE, GOOD, NOTE, Finding

if TYPE_CHECKING:
    from dreamgym.trust.reporting import Report

_STYLE = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,sans-serif;color:#1b1f24;margin:0 auto;max-width:62em;
padding:0 1em 3em}
h1{font-size:1.5em;margin:1em 0 .2em}h2{font-size:1.2em;margin:2em 0 .4em;border-top:1px solid #ddd;
padding-top:.8em}
.verdict{border-radius:10px;padding:.7em 1em;margin:.6em 0 1em;font-size:1.25em;font-weight:600}
.verdict dl{font-size:.7em;font-weight:400;margin:.5em 0 0;display:grid;
grid-template-columns:max-content 1fr;gap:.15em .8em}.verdict dt{font-weight:600}
.verdict dd{margin:0}
@media(max-width:34em){.verdict dl{grid-template-columns:1fr}}
.good{background:#e4f3e8}.caution{background:#fdf2d8}.bad{background:#fbe0de}.note{background:#eef1f5}
ul.findings{list-style:none;padding:0;margin:0}
ul.findings li{border-left:5px solid #999;padding:.35em .8em;margin:.5em 0;border-radius:4px}
ul.findings li.good{border-color:#2f7d4f}ul.findings li.caution{border-color:#c98a00}
ul.findings li.bad{border-color:#b3261e}ul.findings li.note{border-color:#7a8797}
.small{font-size:.85em;color:#55606b;margin:.2em 0}
.do{margin:.2em 0}.figures{display:flex;flex-wrap:wrap;gap:1em}
figure{margin:0;flex:1 1 300px;max-width:420px}figcaption{font-weight:600;font-size:.92em}
svg{width:100%;height:auto;display:block}svg text{font-size:10.5px;fill:#444}
.grid{stroke:#e3e6ea}.grey{fill:#e9ebee}
.legend{font-size:.8em;display:flex;flex-wrap:wrap;gap:.2em .9em}
.legend i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.3em}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.88em}
td,th{padding:.25em .6em;border-bottom:1px solid #e3e6ea;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left;white-space:normal}
tr.few{color:#9aa3ad}.frames img{image-rendering:pixelated;width:80px}
.frames{display:flex;flex-wrap:wrap;gap:.4em}.frames div{text-align:center;font-size:.75em}
"""

_CLASSES = {GOOD: "good", CAUTION: "caution", DO_NOT_USE: "bad", NOTE: "note"}
_VERDICTS = {"usable": "good", "usable with care": "caution", "do not use": "bad"}


def page(reports: Sequence[Report]) -> str:
    """Return one or several reports as an HTML page that needs no network.

    Args:
        reports: reports; several are laid side by side first.
    """
    title = " and ".join(each.world for each in reports)
    body = _comparison(reports) if len(reports) > 1 else ""
    body += "".join(_report(each) for each in reports)
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{html.escape(title)}: report</title><style>{_STYLE}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def _report(report: Report) -> str:
    figures = report.figures
    world, data = figures["world"], figures["data"]
    head = (
        f"<h1>{html.escape(report.world)}</h1><p class='small'>World of "
        f"{html.escape(str(world['env_id'] or 'an unnamed environment'))}, family "
        f"{html.escape(world['family'])}, {world['parameters']:,} parameters, dreams of "
        f"{world['horizon']} steps. Measured on {data['held_out']:,} of {data['episodes']:,} "
        f"episodes in {html.escape(data['name'])}"
        + (
            ", held out of its fit.</p>"
            if data["fitted"]
            else ", another dataset than its own.</p>"
        )
    )
    verdict = (
        f"<div class='verdict {_VERDICTS[report.verdict]}'>{html.escape(_capital(report.verdict))}"
        f"<dl>{''.join(map(_advice, report.advice.items()))}</dl></div>"
    )
    sections = "".join(
        f"<h2>{html.escape(title)}</h2>{content}"
        for title, draw in _SECTIONS.items()
        if (content := draw(figures))
    )
    return head + verdict + _findings(report.findings) + sections


def _advice(item: tuple[str, str]) -> str:
    name, text = item
    return f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}.</dd>"


def _findings(findings: Sequence[Finding]) -> str:
    return f"<ul class='findings'>{''.join(map(_finding, findings))}</ul>"


def _finding(finding: Finding) -> str:
    remedy = f"<div class='do'>&rarr; {html.escape(_capital(finding.remedy))}.</div>"
    return (
        f"<li class='{_CLASSES[finding.level]}'><strong>{html.escape(finding.sentence)}</strong>"
        f"<div class='small'>{html.escape(_capital(finding.evidence))}.</div>"
        f"{remedy if finding.remedy else ''}</li>"
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _drawings(drawings: Iterator[Drawing]) -> str:
    content = "".join(each.svg() for each in drawings)
    return f"<div class='figures'>{content}</div>" if content else ""


def _table(
    heading: Sequence[str], rows: Sequence[Sequence[Any]], few: Sequence[bool] | None = None
) -> str:
    def cells(values: Sequence[Any], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(_cell(value))}</{tag}>" for value in values)

    body = "".join(
        f"<tr{' class=few' if few is not None and few[i] else ''}>{cells(row, 'td')}</tr>"
        for i, row in enumerate(rows)
    )
    return f"<div class='scroll'><table><tr>{cells(heading, 'th')}</tr>{body}</table></div>"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _grey_from(horizons: Sequence[int], windows: Sequence[int]) -> float | None:
    few = [k for k, count in zip(horizons, windows, strict=True) if count < MIN_WINDOWS]
    return float(min(few)) if few else None


# --------------------------------------------------------------------------------- sections


def _open_loop(figures: dict[str, Any]) -> str:
    tables = [figures[key] for key in ("channels", "frames") if key in figures]
    shown = _examples(figures)
    if not tables:
        return shown
    text = (
        "<p>Root mean square error of forecasts under the actions of held-out episodes, in units "
        "of each number's standard deviation. Grey: fewer than "
        f"{MIN_WINDOWS} distinct windows.</p>"
    )
    first = tables[0]
    windows = _table(["steps ahead", *first["horizons"]], [["windows", *first["windows"]]])
    drawings = (each for table in tables for each in _channel_drawings(table))
    return text + _drawings(drawings) + windows + shown


def _channel_drawings(table: dict[str, Any]) -> Iterator[Drawing]:
    horizons = table["horizons"]
    grey = _grey_from(horizons, table["windows"])
    for i, name in enumerate(table["names"]):
        if not table["varies"][i]:
            continue
        columns = {
            key: [(k, row[i]) for k, row in zip(horizons, table[key], strict=True)]
            for key in ("mean", "sampled", "repeat_last", "linear")
            if key in table
        }
        top = 1.25 * max(y for key in ("mean", "sampled", "repeat_last") for _, y in columns[key])
        yield Drawing(
            title=name,
            x="steps ahead",
            y="error / spread",
            y_range=(0.0, max(top, 0.1)),
            grey_from=grey,
            lines=[
                Line(label="mean of dreams", points=columns["mean"], colour=0, width=2.4),
                Line(label="one dream (dashed)", points=columns["sampled"], colour=0, dashed=True),
                Line(label="repeat the last", points=columns["repeat_last"], colour=7),
                Line(label="linear model", points=columns.get("linear", []), colour=1),
            ],
        )


def _examples(figures: dict[str, Any]) -> str:
    found = figures.get("examples") or {}
    parts = ""
    if "real" in found:
        names = (figures.get("channels") or {}).get("names") or []
        parts += (
            f"<p>Held-out episode {found['episode']} (black) and dreams of the same actions.</p>"
        )
        parts += _drawings(
            Drawing(
                title=names[i] if i < len(names) else f"number {i}",
                x="step",
                y="",
                lines=[
                    *(
                        Line(label="", points=list(enumerate(each[i])), colour=0, width=0.7)
                        for each in found["dreamt"]
                    ),
                    Line(label="", points=list(enumerate(real)), colour="#111", width=1.8),
                ],
            )
            for i, real in enumerate(found["real"])
        )
    if found.get("frames"):
        frames = "".join(
            f"<div><img alt='real' src='data:image/png;base64,{each['real']}'><br>"
            f"<img alt='dreamt' src='data:image/png;base64,{each['dreamt']}'><br>"
            f"{html.escape(each['key'])} +{each['step']}</div>"
            for each in found["frames"]
        )
        parts += f"<p>Real frames above, dreamt ones below.</p><div class='frames'>{frames}</div>"
    return parts


def _rewards_and_ends(figures: dict[str, Any]) -> str:
    reward, termination = figures.get("reward"), figures.get("termination")
    rows = []
    if reward is not None:
        rows += [
            ["reward, error one step ahead", reward["rmse"]],
            ["reward, spread in the data", reward["spread"]],
            ["reward, correlation", reward["correlation"]],
        ]
        if "events" in reward:
            rows += [
                ["rare rewards, precision", reward["events"]["precision"]],
                ["rare rewards, recall", reward["events"]["recall"]],
            ]
    if termination is not None:
        rows += [
            ["terminations a step, real", termination["rate"]],
            ["terminations a step, predicted", termination["predicted"]],
            ["termination, precision", termination["precision"]],
            ["termination, recall", termination["recall"]],
            ["termination, Brier score", termination["brier"]],
            ["termination, ECE", termination["ece"]],
        ]
        if "length_distance" in termination:
            rows.append(["lengths, largest difference of survival", termination["length_distance"]])
    if not rows:
        return ""
    return _drawings(_reward_drawings(reward, termination)) + _table(["", "value"], rows)


def _reward_drawings(reward: Any, termination: Any) -> Iterator[Drawing]:
    if reward is not None:
        points = reward["scatter"]
        low, high = reward["low"], reward["high"]
        yield Drawing(
            title="Reward one step ahead",
            x="real reward",
            y="predicted",
            lines=[
                Line(label="", points=[(low, low), (high, high)], colour=7, dashed=True),
                Line(label="", points=points, marks=True, width=2),
            ],
        )
    if termination is not None and termination["rate"] > 0:
        yield Drawing(
            title="Termination: reliability",
            x="predicted probability",
            y="observed frequency",
            x_range=(0.0, 1.0),
            y_range=(0.0, 1.0),
            lines=[
                Line(label="", points=[(0, 0), (1, 1)], colour=7, dashed=True),
                Line(label="", points=[(p, f) for _, p, f in termination["reliability"]]),
                Line(
                    label="",
                    points=[(p, f) for _, p, f in termination["reliability"]],
                    marks=True,
                    width=3,
                ),
            ],
        )
    if termination is not None and "survival" in termination and termination["rate"] > 0:
        curves = termination["survival"]
        yield Drawing(
            title="Share not terminated",
            x="step",
            y="share",
            y_range=(0.0, 1.0),
            grey_from=_grey_from(range(1, len(curves["windows"]) + 1), curves["windows"]),
            lines=[
                Line(label="real", points=list(enumerate(curves["real"], 1)), colour="#111"),
                Line(label="dreams", points=list(enumerate(curves["dream"], 1)), colour=0),
            ],
        )


def _calibration(figures: dict[str, Any]) -> str:
    found = figures.get("intervals")
    if found is None:
        return ""
    horizons = found["horizons"]
    text = (
        "<p>How often the truth lies inside the central intervals of the sampled dreams, by steps "
        "ahead. Recalibrated intervals are stretched by a factor for each horizon, chosen on one "
        "half of the held-out episodes and measured on the other.</p>"
    )
    heading = ["steps", "windows", *(f"{level:.0%}" for level in found["levels"])]
    again, factors = found.get("recalibrated"), found.get("factors")
    if again is not None:
        heading += [f"{level:.0%} recalibrated" for level in found["levels"]]
        heading += [f"factor {level:.0%}" for level in found["levels"]]
    rows = []
    for i, k in enumerate(horizons):
        row = [k, found["windows"][i], *(f"{c:.0%}" for c in found["coverage"][i])]
        if again is not None and factors is not None and i < len(again):
            row += [*(f"{c:.0%}" for c in again[i]), *factors[i]]
        rows.append(row)
    few = [count < MIN_WINDOWS for count in found["windows"]]
    return text + _drawings(_calibration_drawings(figures)) + _table(heading, rows, few)


def _calibration_drawings(figures: dict[str, Any]) -> Iterator[Drawing]:
    found = figures["intervals"]
    horizons, levels = found["horizons"], found["levels"]
    grey = _grey_from(horizons, found["windows"])
    for key, title in (("coverage", "Coverage, as dreamt"), ("recalibrated", "Recalibrated")):
        if key not in found:
            continue
        reached = horizons[: len(found[key])]
        lines = []
        for i, level in enumerate(levels):
            lines.append(
                Line(label="", points=[(k, level) for k in reached], colour=i, dashed=True, width=1)
            )
            covered = [(k, row[i]) for k, row in zip(reached, found[key], strict=True)]
            lines.append(Line(label=f"{level:.0%}", points=covered, colour=i))
        yield Drawing(
            title=title,
            x="steps ahead",
            y="share inside",
            y_range=(0.0, 1.0),
            grey_from=grey,
            lines=lines,
        )
    shown = [i for i, count in enumerate(found["windows"]) if count >= MIN_WINDOWS] or [0]
    for i in sorted({shown[0], shown[-1]}):
        bins = found["pit"][i]
        yield Drawing(
            title=f"Rank of the truth (PIT), {horizons[i]} steps ahead",
            x="rank among the dreams",
            y="share",
            x_range=(0.0, 1.0),
            bars=[(j / len(bins), (j + 1) / len(bins), share) for j, share in enumerate(bins)],
            lines=[Line(label="", points=[(0, 0.1), (1, 0.1)], colour=7, dashed=True)],
        )
    pairs = figures.get("spread_and_error")
    if pairs is not None:
        lines = [
            Line(
                label="spread of dreams",
                points=list(zip(pairs["horizons"], pairs["spread_error"], strict=True)),
            )
        ]
        if "uncertainty_error" in pairs:
            unsure = list(zip(pairs["horizons"], pairs["uncertainty_error"], strict=True))
            lines.append(Line(label="disagreement", points=unsure, colour=1))
        yield Drawing(
            title="Rank correlation with the error",
            x="steps ahead",
            y="Spearman",
            y_range=(-0.2, 1.0),
            grey_from=grey,
            lines=lines,
        )


def _actions(figures: dict[str, Any]) -> str:
    found = figures.get("actions")
    if found is None:
        return ""
    rows = [["all", found["sensitivity"], found["evidence"], None]]
    for i, effect in enumerate(found["each"]):
        in_data = None if found["in_data"] is None else found["in_data"][i]
        if effect is not None and len(found["each"]) > 1:
            rows.append([f"number {i}", effect["sensitivity"], effect["evidence"], in_data])
    text = (
        "<p>Error of dreams under another window's actions, as a multiple of that under the true "
        "ones. 1: the actions make no difference. Evidence: of the difference, in standard "
        "deviations of what chance gives.</p>"
    )
    heading = ["action", "error, times", "evidence", "effect in the data (chi-square)"]
    return text + _table(heading, rows)


def _ranking(figures: dict[str, Any]) -> str:
    found = figures.get("ranking")
    if found is None:
        return ""
    parts = []
    for name in ("spearman", "pearson"):
        if found.get(name) is not None:
            low, high = found[f"{name}_interval"] or (None, None)
            parts.append(
                f"{name.capitalize()} {found[name]:.2f} (95%: {_cell(low)} to {_cell(high)})"
            )
    parts.append(f"regret@1 {found['regret']:.4g} ({found['regret_share']:.0%} of the range)")
    rows = [
        [
            row["name"],
            f"{row['dream_mean']:.1f}",
            f"{row['real_mean']:.1f}",
            "{:.1f} to {:.1f}".format(*row["real_interval"]),
            f"{row['gap']:.1f}",
        ]
        for row in sorted(found["policies"], key=lambda row: -row["real_mean"])
    ]
    table = _table(["policy", "dream return", "real return", "95%", "gap"], rows)
    return f"<p>{html.escape('; '.join(parts))}.</p>" + _drawings(_ranking_drawings(found)) + table


def _ranking_drawings(found: dict[str, Any]) -> Iterator[Drawing]:
    pairs = [(row["dream_mean"], row["real_mean"]) for row in found["policies"]]
    ends = [min(map(min, pairs)), max(map(max, pairs))]
    yield Drawing(
        title=f"{len(pairs)} policies",
        x="dream return",
        y="real return",
        lines=[
            Line(label="equal", points=[(end, end) for end in ends], colour=7, dashed=True),
            Line(label="", points=pairs, marks=True, width=4),
        ],
    )
    if "sweep" in found:
        rows = found["sweep"]
        yield Drawing(
            title="Trained at a temperature",
            x="temperature of the dream",
            y="return",
            lines=[
                Line(label="dream", points=[(r["temperature"], r["dream_mean"]) for r in rows]),
                Line(
                    label="real",
                    points=[(r["temperature"], r["real_mean"]) for r in rows],
                    colour="#111",
                ),
            ],
        )


def _coverage(figures: dict[str, Any]) -> str:
    visits = figures.get("visits") or []
    rows = [
        [
            row["name"],
            None if row["visit"]["far"] is None else f"{row['visit']['far']:.0%}",
            None if row["visit"]["unsure"] is None else f"{row['visit']['unsure']:.0%}",
            f"{row['visit']['reward_low']:.4g} to {row['visit']['reward_high']:.4g}",
            f"{row['visit']['rewards_outside']:.1%}",
        ]
        for row in visits
    ]
    if not rows:
        return ""
    text = (
        "<p>Distance of dreamt states from the nearest real one, in the model's own features. Far: "
        "beyond 99% of the held-out states, which therefore have 1%.</p>"
    )
    table = _table(
        ["dreams under", "steps far", "steps unsure", "rewards", "rewards outside the data's"], rows
    )
    last = visits[-1]["visit"]
    examples = [
        [f"step {each['step']}", f"{each['distance']:.1f}", _numbers(each["observation"])]
        for each in last["examples"]
        if each["observation"] is not None
    ]
    farthest = (
        f"<p>Farthest states under {html.escape(visits[-1]['name'])}:</p>"
        + _table(["", "distance / limit", "observation"], examples)
        if examples
        else ""
    )
    return text + _drawings(_coverage_drawings(visits)) + table + farthest


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values[:12])


def _coverage_drawings(visits: Sequence[dict[str, Any]]) -> Iterator[Drawing]:
    for row in {id(each): each for each in (visits[0], visits[-1])}.values():
        distances = row["visit"]["distances"]
        if not distances:
            continue
        top, bins = max(2.0, min(6.0, max(distances))), 24
        counts = [0] * bins
        for value in distances:
            counts[min(bins - 1, int(value / top * bins))] += 1
        yield Drawing(
            title=f"Distance from the data: {row['name']}",
            x="distance / limit",
            y="share of steps",
            bars=[
                (i * top / bins, (i + 1) * top / bins, count / len(distances))
                for i, count in enumerate(counts)
            ],
            grey_from=1.0,
        )


def _fit_alarms(figures: dict[str, Any]) -> str:
    alarms = figures["world"]["alarms"]
    items = "".join(f"<li>{html.escape(_capital(text))}.</li>" for text in alarms)
    return f"<ul>{items}</ul>" if items else ""


_SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "Open-loop forecasts": _open_loop,
    "Rewards and terminations": _rewards_and_ends,
    "Calibration": _calibration,
    "Actions": _actions,
    "Ranking of policies": _ranking,
    "Where policies go": _coverage,
    "Alarms of the fit": _fit_alarms,
}
"""Sections of the page by their heading."""


# --------------------------------------------------------------------------------- comparison


def _comparison(reports: Sequence[Report]) -> str:
    rows = [[name, *(value(each) for each in reports)] for name, value in _COMPARED.items()]
    kept = [row for row in rows if any(cell is not None for cell in row[1:])]
    table = _table(["", *(each.world for each in reports)], kept)
    return f"<h1>Side by side</h1>{table}{_drawings(_compared_drawings(reports))}"


def _compared_drawings(reports: Sequence[Report]) -> Iterator[Drawing]:
    lines = []
    for number, each in enumerate(reports):
        table = each.figures.get("channels") or each.figures.get("frames")
        if table is None:
            continue
        lines.append(
            Line(
                label=each.world,
                colour=number,
                points=list(zip(table["horizons"], _mean_error(table, "mean"), strict=True)),
            )
        )
    if lines:
        yield Drawing(
            title="Error of the mean forecast over all numbers",
            x="steps ahead",
            y="error / spread",
            lines=lines,
        )
    rankings = [(n, each) for n, each in enumerate(reports) if "ranking" in each.figures]
    if rankings:
        yield Drawing(
            title="Policies",
            x="dream return",
            y="real return",
            lines=[
                Line(
                    label=each.world,
                    colour=number,
                    marks=True,
                    width=3.5,
                    points=[
                        (row["dream_mean"], row["real_mean"])
                        for row in each.figures["ranking"]["policies"]
                    ],
                )
                for number, each in rankings
            ],
        )


def _mean_error(table: dict[str, Any], key: str) -> list[float]:
    kept = [i for i, varies in enumerate(table["varies"]) if varies]
    return [(sum(row[i] ** 2 for i in kept) / max(1, len(kept))) ** 0.5 for row in table[key]]


def _error_at(steps: int) -> Callable[[Report], Any]:
    def value(report: Report) -> Any:
        table = report.figures.get("channels") or report.figures.get("frames")
        if table is None or steps not in table["horizons"]:
            return None
        return _mean_error(table, "mean")[table["horizons"].index(steps)]

    return value


def _figure(section: str, key: str) -> Callable[[Report], Any]:
    return lambda report: (report.figures.get(section) or {}).get(key)


_COMPARED: dict[str, Callable[[Report], Any]] = {
    "verdict": lambda report: report.verdict,
    "family": lambda report: report.figures["world"]["family"],
    "parameters": lambda report: report.figures["world"]["parameters"],
    "error after 1 step": _error_at(1),
    "error after 5 steps": _error_at(5),
    "error after 15 steps": _error_at(15),
    "error after 50 steps": _error_at(50),
    "reward, error one step ahead": _figure("reward", "rmse"),
    "reward, correlation": _figure("reward", "correlation"),
    "termination, Brier score": _figure("termination", "brier"),
    "termination, ECE": _figure("termination", "ece"),
    "lengths, largest difference of survival": _figure("termination", "length_distance"),
    "error under wrong actions, times": _figure("actions", "sensitivity"),
    "ranking, Spearman": _figure("ranking", "spearman"),
    "ranking, Pearson": _figure("ranking", "pearson"),
    "ranking, regret@1": _figure("ranking", "regret"),
}
"""Rows of the comparison by name."""
