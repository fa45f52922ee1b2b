"""Options of the verbs: those that several share, and those generated from config dataclasses."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from rich.markup import escape

from dreamgym._files import local_path


def _check_not_a_folder(path: Path | None) -> Path | None:
    """Refuse a file that cannot be written, before the work rather than after it."""
    path = None if path is None else local_path(path)
    if path is not None and path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; give the name of a file")
    return path


JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        callback=_check_not_a_folder,
        help="Write the figures to FILE as JSON.",
    ),
]

CheckedFamily = Annotated[
    str | None,
    typer.Option(
        "--family", metavar="NAME", help="Family of world models that is to take the dataset."
    ),
]

CheckedAlgorithm = Annotated[
    str | None,
    typer.Option(
        "--algo", metavar="NAME", help="Algorithm that is to be trained in a world of the dataset."
    ),
]

HtmlFile = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        callback=_check_not_a_folder,
        help="Write a page with pictures to FILE.",
    ),
]

Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, metavar="N", help="Seed of everything random: same seed, same result."
    ),
]

WorldDevice = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help='Device of the world ("auto", "cpu", "cuda", ...), on which real observations are '
        "filtered, planners search and figures are measured.",
    ),
]

OverwriteDataset = Annotated[
    bool, typer.Option("--overwrite", help="Overwrite an existing dataset.")
]
OverwriteWorld = Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing world.")]
OverwritePolicy = Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing policy.")]

Terminals = Annotated[
    str | None,
    typer.Option(
        "--terminals",
        metavar="WORD",
        help="What an ambiguous end flag in a foreign file means: termination (the task ended) or "
        "boundary (the episode ended for any reason).",
    ),
]

SourceEnv = Annotated[
    str | None,
    typer.Option(
        "--env",
        metavar="ENV",
        help="Environment that a foreign file was recorded from, for its id and spaces.",
    ),
]

Skip = Annotated[
    int,
    typer.Option(
        "--frame-skip",
        min=1,
        metavar="N",
        help="Steps of the environment in one step of the dream.",
    ),
]

SkippedActions = Annotated[
    str,
    typer.Option(
        "--actions",
        metavar="blocks|repeated",
        help="With a frame skip, an action is a block of N actions (blocks), or one action held "
        "for N steps (repeated; record with --policy held:N).",
    ),
]

Keys = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="KEY", help="Observation key to use; may be repeated."),
]


def with_local_paths(verb: Callable[..., None]) -> Callable[..., None]:
    """Decorate a verb: expand `~` in its paths, and refuse URLs.

    A shell expands `~` in `--out ~/x`, but not in `--out=~/x`.
    """

    @functools.wraps(verb)
    def wrapper(**options: Any) -> None:
        paths = {name: local_path(v) for name, v in options.items() if isinstance(v, Path)}
        verb(**{**options, **paths})

    return wrapper


Ignored = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore",
        metavar="KEY",
        help="Key of a foreign file to leave out, although its name suggests rewards, ends or next "
        "observations; may be repeated.",
    ),
]

AllowLoss = Annotated[
    bool,
    typer.Option(
        "--allow-loss",
        help="Accept a foreign file that lacks the last observations of its episodes even if all "
        "terminations, or all rewards that differ, are lost with them.",
    ),
]


RepeatLast = Annotated[
    bool,
    typer.Option(
        "--repeat-last",
        help="Keep the last transition of each episode of a foreign file that lacks the "
        "observation after it, with the last observation repeated in its place.",
    ),
]

Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="ROLE=NAME,...",
        help="What columns of a foreign file hold, where their names do not say it: "
        "'observation=x,y action=u reward=r done=d'. Roles: observation, next_observation, action, "
        "previous_action, reward, previous_reward, terminated, truncated, done, success, episode, "
        "time.",
    ),
]

NumActions = Annotated[
    int | None,
    typer.Option(
        "--num-actions",
        min=1,
        metavar="N",
        help="The actions of a foreign file are numbers from 0 to N - 1 (Discrete), which it does "
        "not say.",
    ),
]

ImageSize = Annotated[
    str | None,
    typer.Option(
        "--image-size",
        metavar="HxW",
        help="Resize the images of a foreign file, e.g. 64x64. Default: their own size.",
    ),
]

Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="Task of a foreign file whose episodes to read; may be repeated. Default: all.",
    ),
]


def given(**options: Any) -> dict[str, Any]:
    """Return the options that the user gave; the library's defaults apply to the others."""
    return {name: value for name, value in options.items() if value is not None}


def foreign_options(
    terminals: str | None,
    env: str | None,
    *,
    keys: list[str] | None = None,
    ignore: list[str] | None = None,
    columns: list[str] | None = None,
    tasks: list[str] | None = None,
    image_size: str | None = None,
    num_actions: int | None = None,
    allow_loss: bool = False,
    repeat_last: bool = False,
) -> Any:
    """Return `ForeignOptions` for what the user said about a foreign file.

    Args:
        terminals: meaning of an ambiguous end flag.
        env: id of the environment, which is made once for its spaces.
        keys: observation keys to use.
        ignore: keys not to read.
        columns: texts such as `observation=x,y action=u`.
        tasks: tasks whose episodes to read.
        image_size: height and width that images are resized to, such as `64x64`.
        num_actions: number of discrete actions.
        allow_loss: whether all terminations or rewards may be lost.
        repeat_last: whether the last observation of an episode is repeated, if one lacks.

    Raises:
        ValueError: `terminals` is another word, or a text names no columns.
        DatasetError: there is no such environment.
    """
    from dreamgym.data import ForeignOptions
    from dreamgym.data.recording import make_env

    known: dict[str, Any] = {}
    if env is not None:
        made = make_env(env)
        known = {
            "env_id": env,
            "observation_space": made.observation_space,
            "action_space": made.action_space,
        }
        made.close()
    if num_actions is not None:
        from gymnasium.spaces import Discrete

        known["action_space"] = Discrete(num_actions)
    return ForeignOptions(
        terminals=terminals,  # type: ignore[arg-type]  # checked there
        keys=tuple(keys) if keys else None,
        ignore=tuple(ignore or ()),
        columns=parse_columns(columns or ()),
        tasks=tuple(tasks or ()),
        image_size=None if image_size is None else _parse_size(image_size),
        allow_loss=allow_loss,
        repeat_last=repeat_last,
        **known,
    )


def _parse_size(text: str) -> tuple[int, int]:
    height, by, width = text.partition("x")
    if not by or not height.isdecimal() or not width.isdecimal():
        raise ValueError(f"--image-size is {text!r}; expected HEIGHTxWIDTH, for instance 64x64")
    return int(height), int(width)


def parse_columns(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the columns by role of texts such as `observation=x,y action=u`.

    Raises:
        ValueError: a text names no columns.
    """
    columns: dict[str, tuple[str, ...]] = {}
    for text in texts:
        for part in re.split(r"\s+(?=[a-z_]+=)", text.strip()):
            role, equals, names = part.partition("=")
            if not equals or not names:
                raise ValueError(
                    f"--columns has {part!r}; expected ROLE=NAME or ROLE=NAME,NAME, for instance "
                    "'observation=x,y action=u'"
                )
            columns[role] = columns.get(role, ()) + tuple(n.strip() for n in names.split(","))
    return columns


# ---------------------------------------------------------------- options of a config


def options_from(
    config: type, *, skip: tuple[str, ...] = (), rename: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a verb: add an option for each field of a config dataclass.

    The verb has a parameter `**settings`, which receives the options that the user gave, by field
    name. Fields that are dataclasses are flattened. Types, defaults and help texts come from the
    field's annotation, default and line in the class docstring, so that a new field of the config
    is an option without further work. Fields whose type has no command-line form are left out.

    Args:
        config: the dataclass.
        skip: names of fields to leave out.
        rename: option names by field name, where they differ; the verb receives the new name.
    """
    parameters = list(_parameters(config, skip, rename or {}))
    lists = {each.name for each in parameters if _is_list(each.annotation)}

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(verb)
        hints = get_type_hints(verb, include_extras=True)
        own = [
            parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in signature.parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]

        @functools.wraps(verb)
        def wrapper(**options: Any) -> None:
            for name in lists:
                options[name] = tuple(options[name]) if options[name] else None
            names = {each.name for each in parameters}
            settings = {name: options.pop(name) for name in names}
            verb(**options, **given(**settings))

        together = [*own, *parameters]
        wrapper.__signature__ = signature.replace(parameters=together)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {each.name: each.annotation for each in together}
        return wrapper

    return decorate


def _parameters(
    config: type, skip: tuple[str, ...], rename: Mapping[str, str]
) -> Iterator[inspect.Parameter]:
    hints, descriptions = get_type_hints(config), field_descriptions(config)
    for field in fields(config):
        if field.name in skip:
            continue
        kind = _without_none(hints[field.name])
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _parameters(kind, skip, rename)
            continue
        option_type = _option_type(kind)
        if option_type is None:
            continue
        name = rename.get(field.name, field.name)
        option = typer.Option(
            "--" + name.replace("_", "-"),
            metavar=_metavar(kind),
            help=_help(field, descriptions, rename),
            show_default=False,
            rich_help_panel=f"Settings ({config.__name__})",
        )
        yield inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[option_type | None, option],
        )


def field_descriptions(config: type) -> dict[str, str]:
    """Return the descriptions in the "Attributes" section of a dataclass's docstring, by field."""
    section = inspect.cleandoc(config.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.split(r"^    (?=\w)", section, flags=re.MULTILINE)[1:]
    described = (entry.partition(": ") for entry in entries)
    return {name: " ".join(text.split()) for name, _, text in described}


def _help(field: Field[Any], descriptions: Mapping[str, str], rename: Mapping[str, str]) -> str:
    """Return the first sentence of a field's description, and the default."""
    sentence = re.split(r"(?<=\.) (?=[A-Z])", descriptions.get(field.name, ""))[0]
    text = sentence[:1].upper() + sentence[1:]
    for name in descriptions:
        text = text.replace(f"`{name}`", "--" + rename.get(name, name).replace("_", "-"))
    if field.default is not MISSING and field.default is not None:
        default = field.default
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{text} Default: {shown}."
    return escape(text)


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        parts = [part for part in get_args(kind) if part is not type(None)]
        return parts[0] if len(parts) == 1 else None
    return kind


def _option_type(kind: Any) -> Any:
    """Return the type of a field as typer takes it; None where the field has no option."""
    if kind in (bool, int, float, str):
        return kind
    if get_origin(kind) is Literal:
        return str  # the config checks the word, and its message names the nearest one
    if get_origin(kind) is tuple:
        element, *rest = get_args(kind)
        return list[element] if rest == [Ellipsis] else kind  # type: ignore[valid-type]
    return None


def _metavar(kind: Any) -> str | None:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        element, *rest = get_args(kind)
        return _metavar(element) if rest == [Ellipsis] else None
    return {int: "N", float: "X", str: "TEXT"}.get(kind)


def _is_list(annotation: Any) -> bool:
    return get_origin(_without_none(get_args(annotation)[0])) is list
