"""The command-line application: its verbs, and its messages on errors.

Exit codes: 0 done, 1 an error (one line on stderr), 2 a wrong command line, 130 Ctrl-C.
"""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer
from rich.console import Console
from rich.traceback import Traceback

from dreamgym.cli.data import check, convert, pack, record, recover
from dreamgym.cli.errors import Interrupted, explain
from dreamgym.cli.online import act, improve, learn
from dreamgym.cli.options import with_local_paths
from dreamgym.cli.play import play
from dreamgym.cli.reality import evaluate, export, transfer
from dreamgym.cli.sharing import push, worlds
from dreamgym.cli.trust import report
from dreamgym.cli.worlds import fit, import_checkpoint, train

EPILOG = (
    "All stages: [bold]record[/] a dataset, [bold]check[/] it, [bold]fit[/] a world, "
    "[bold]train[/] a policy in it, and [bold]transfer[/] the policy to the real environment; "
    "[bold]report[/] says how far to trust a world. "
    "[bold]dreamgym VERB --help[/] has an example of each."
)

app = typer.Typer(
    name="dreamgym",
    help="A world model is an environment: fit one, train in it, measure the policy in reality.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

_VERBS = (
    *(record, check, fit, train, transfer, evaluate, report, play, export),
    *(improve, act, learn),
    *(worlds, push),
    *(recover, convert, pack, import_checkpoint),
)
for _verb in _VERBS:
    app.command()(with_local_paths(_verb))
app.command("adopt", hidden=True)(with_local_paths(import_checkpoint))  # the verb's former name


def _show_version(requested: bool) -> None:
    if not requested:
        return
    from importlib.metadata import version

    Console(highlight=False).print(f"dreamgym {version('dreamgym')}")
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show the traceback of an error; may be given anywhere."),
    ] = False,
) -> None:
    # Both options are handled before the verb runs: --version by its callback, --debug by main().
    del version, debug


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: arguments after `dreamgym`; None for `sys.argv[1:]`.

    Raises:
        SystemExit: always; the exit codes are in the module's docstring.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    # --debug belongs to the application, but people add it to the end of the line that failed
    arguments = [argument for argument in arguments if argument != "--debug"]
    errors = Console(stderr=True, highlight=False)
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.showwarning = _one_line_warning
            app(args=arguments, prog_name="dreamgym")
    except Interrupted as stop:
        errors.print(f"interrupted: {stop}", style="yellow", markup=False, soft_wrap=True)
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            errors.print(Traceback())
        errors.print(f"error: {explain(error)}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(1) from None
    except SystemExit as stop:
        if stop.code == 130:  # Ctrl-C outside the long part of a verb
            errors.print("interrupted: nothing had been written yet", style="yellow", markup=False)
        raise


def _one_line_warning(message: Warning | str, *_: object, **__: object) -> None:
    text = " ".join(str(message).split())
    Console(stderr=True, highlight=False).print(f"warning: {text}", markup=False, soft_wrap=True)
