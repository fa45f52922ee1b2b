"""The verb on trust: report."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from dreamgym._files import atomic_file, json_text
from dreamgym.cli.errors import keeping
from dreamgym.cli.options import JsonFile, Seed, WorldDevice, options_from
from dreamgym.cli.output import number, progress_bar, say
from dreamgym.cli.policies import POLICY_HELP, planned_policy, policy_named
from dreamgym.trust.config import RankingConfig


@options_from(RankingConfig)
def report(
    worlds: Annotated[
        list[str],
        typer.Argument(
            metavar="WORLD",
            help="A folder, a world that ships or hf://owner/name; several are laid side by side.",
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="DATASET",
            help="Data of the world's environment. Of the data that the world was fitted to, only "
            "the held-out episodes are used.",
        ),
    ],
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policies",
            metavar="POLICY",
            help=f"A policy to compare in dream and reality; may be repeated. {POLICY_HELP}",
        ),
    ] = None,
    env: Annotated[
        str | None,
        typer.Option(
            "--env",
            metavar="ENV",
            help="The real environment, if the world does not name it: ID or MODULE:ID. Policies "
            "are compared in it.",
        ),
    ] = None,
    rank: Annotated[
        bool,
        typer.Option(
            "--rank",
            help="Train policies in the dream, from random to trained, and compare their returns "
            "in dream and reality; takes minutes, and real steps.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="The page. Default: WORLD-report.html in this folder."
        ),
    ] = None,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="Write verdict, ranking and limits into the world's folder and card; with "
            "matplotlib also a picture.",
        ),
    ] = False,
    device: WorldDevice = "cpu",
    seed: Seed = 0,
    json_file: JsonFile = None,
    **settings: Any,
) -> None:
    """Say how far WORLD can be trusted, for what, and what data to record next.

    Writes one self-contained HTML page. A ranking that was interrupted continues when the same
    command is run again: what is done is kept in a folder beside the page.

    Example: [bold]dreamgym report worlds/cartpole --data cartpole.h5 --rank --out report.html[/]
    """
    from dreamgym.trust import report as make_report
    from dreamgym.trust.html_page import page
    from dreamgym.trust.reporting import PAGE_SUFFIXES
    from dreamgym.world import load
    from dreamgym.world.hub import is_hub_name
    from dreamgym.world.world import annotate

    if card and any(map(is_hub_name, worlds)):
        raise typer.BadParameter("--card writes into the world's folder; give one, not hf://...")
    if out is not None and out.suffix.lower() not in PAGE_SUFFIXES:
        raise typer.BadParameter(
            f"--out {out}: the page is HTML; give a name that ends in .html, and --json FILE for "
            "the figures"
        )
    loaded = [load(each).to(device) for each in worlds]
    target = out or Path(f"{'-'.join(each.name for each in loaded)}-report.html")
    work = target.with_name(f"{target.stem}.work")
    config = RankingConfig(**settings)
    ranked = rank or env is not None or bool(settings)
    reports = []

    def kept() -> str:
        return (
            f"what is ranked so far is in {work}; the same command continues from there"
            if work.is_dir()
            else "nothing was written"
        )

    for name, world in zip(worlds, loaded, strict=True):
        compared = None
        if policies:
            compared = [
                planned_policy(each, world) if each.startswith("plan:") else policy_named(each)
                for each in policies
            ]
        with keeping(kept, own=False), progress_bar(f"report {world.name}") as progress:
            made = make_report(
                world,
                data,
                compared,
                env,
                ranking=config if ranked or policies else False,
                work=work / world.name,
                seed=seed,
                progress=progress,
            )
        reports.append(made)
        say(str(made))
        if card:
            quality = {"report": made.summary(), "limits": made.figures.get("limits")}
            written = annotate(
                name,
                quality={key: value for key, value in quality.items() if value is not None},
                picture=_picture(made.figures),
            )
            say(f"{written}: card written")
    with atomic_file(target) as temporary:
        temporary.write_text(page(reports), encoding="utf-8")
    if json_file is not None:
        plain = [each.as_dict() for each in reports]
        with atomic_file(json_file) as temporary:
            temporary.write_text(json_text(plain[0] if len(plain) == 1 else plain), "utf-8")
    say(f"{target}: {number(sum(each.seconds for each in reports))} s")


def _picture(figures: dict[str, Any]) -> bytes | None:
    """Return the picture for a card; None where matplotlib, an extra, is not installed."""
    from dreamgym.trust.picture import card_picture

    return card_picture(figures) if find_spec("matplotlib") else None
