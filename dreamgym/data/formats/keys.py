"""What the arrays of a foreign file mean, by the usual spellings of their names.

A file whose rewards, ends or next observations have another name than its format gives them must
not be read as a file without them. `find_fields` finds them under every usual spelling, and
`require_nothing_lost` refuses a file with such a key that cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamgym.data.formats.interface import INFO_GROUPS, Array, ForeignOptions, Terminals
from dreamgym.errors import DatasetError

# The first spelling that is found is read. Case, "/" and "-" do not matter; see `normalise`.
_SPELLINGS: dict[str, tuple[str, ...]] = {
    "observations": ("observations", "obs", "observation"),
    "actions": ("actions", "action", "acts", "act"),
    "rewards": ("rewards", "reward", "rews", "rew", "r", "next_reward"),
    "next_observations": (
        *("next_observations", "next_obs", "next_observation", "observations_next", "obs_next"),
        *("new_observations", "new_obs", "observations2", "obs2", "next_states", "next_state"),
    ),
    "terminated": (
        *("terminated", "terminations", "termination", "is_terminal", "is_terminated"),
        *("terminateds", "is_terminals", "next_terminated"),
    ),
    "truncated": (
        *("truncated", "truncations", "truncation", "timeouts", "timeout", "truncateds"),
        *("is_truncated", "timelimit_truncated", "time_limit_truncated", "next_truncated"),
    ),
    "ends": (
        *("terminals", "terminal", "dones", "done", "is_last", "is_done", "d", "dones_float"),
        *("done_bool", "episode_end", "episode_ends", "is_end", "ends", "end", "next_done"),
    ),
    "success": ("success", "is_success", "next_success", "successes"),
}

# Keys that say something about ends, but that no format here reads.
_OTHER_ENDS = frozenset(
    {"is_first", "is_firsts", "episode_start", "episode_starts", "first", "starts"}
    | {"discount", "discounts", "mask", "masks", "not_done", "not_dones", "nonterminal"}
    | {"nonterminals", "non_terminals", "continue", "continues", "cont", "is_continue"}
)
# Files with these follow RLDS or Dreamer, where a row holds the reward that arrives with it.
_FIRST = frozenset({"is_first", "is_firsts"})

# A name that contains one of these words carries it, under a name that no format here reads.
_WORDS: dict[str, frozenset[str]] = {
    "rewards": frozenset({"reward", "rewards", "rew", "rews"}),
    "ends": frozenset(
        {"done", "dones", "terminal", "terminals", "terminated", "termination", "terminations"}
        | {"truncated", "truncation", "truncations", "timeout", "timeouts"}
    ),
}
_NEXT = ("next_obs", "next_state")

_GROUPS = tuple(f"{name}/" for name in INFO_GROUPS)

# The fields of `Fields` by the role for which `ForeignOptions.columns` names a column.
_FIELD_OF = {
    "action": "actions",
    "reward": "rewards",
    "next_observation": "next_observations",
    "terminated": "terminated",
    "truncated": "truncated",
    "done": "ends",
    "success": "success",
}
NAMED_ROLES = tuple(_FIELD_OF)
"""Roles of `ForeignOptions.columns` that every format reads that finds its keys by their names."""

_ROLES = {
    "rewards": "rewards",
    "next_observations": "next observations",
    "terminated": "ends",
    "truncated": "ends",
    "ends": "ends",
}


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The keys of a file, or of one episode, by what they mean; `None` where there is none.

    Attributes:
        observations: key of the observations.
        actions: key of the actions.
        rewards: key of the rewards.
        next_observations: key of the observations after each action.
        terminated: key of the flags of terminations.
        truncated: key of the flags of truncations.
        ends: key of flags of ends whose kind the name does not say.
        success: key of flags that are set where the task succeeded.
        unread: further keys with such a meaning, which are not read.
        doubles: pairs of a key that is read and another one with the same meaning.
    """

    observations: str | None = None
    actions: str | None = None
    rewards: str | None = None
    next_observations: str | None = None
    terminated: str | None = None
    truncated: str | None = None
    ends: str | None = None
    success: str | None = None
    unread: tuple[str, ...] = ()
    doubles: tuple[tuple[str, str], ...] = ()

    @property
    def outcome_keys(self) -> tuple[str, ...]:
        """Return every key that carries rewards, ends or next observations."""
        found = (getattr(self, role) for role in _ROLES)
        return (*(key for key in found if key is not None), *self.unread)

    def describe(self) -> str:
        """Return the end of a convention: whether there are rewards, and what is not read."""
        text = "" if self.rewards is not None else "; rewards are zero: the file has none"
        return text + (f"; not read: {', '.join(self.unread)}" if self.unread else "")


def field_of(role: str) -> str:
    """Return the field of `Fields` for a role of `ForeignOptions.columns`."""
    return _FIELD_OF[role]


def meaning(name: str) -> str | None:
    """Return what a key carries: "rewards", "ends", "next observations", or `None` for neither."""
    known = normalise(name)
    if known in _OTHER_ENDS:
        return "ends"
    usual = next((_ROLES[role] for role in _ROLES if known in _SPELLINGS[role]), None)
    if usual is not None or known.startswith(_NEXT):
        return usual or "next observations"
    words = set(known.replace("/", "_").split("_"))
    return next((carried for carried, those in _WORDS.items() if words & those), None)


def find_named_fields(
    names: Iterable[str], options: ForeignOptions, path: Path, name: str
) -> Fields:
    """Find the keys by their names and by what the user says about them.

    Args:
        names: the keys; those inside a group as `group/key`.
        options: what the user knows.
        path: path for error messages.
        name: name of the format, for error messages.

    Raises:
        DatasetError: the user names a key that does not exist, or several for one role, or a role
            that the format does not read.
    """
    names = list(names)
    options.require_roles((*NAMED_ROLES, "observation"), path, name)
    given = {role: options.columns_for(role) for role in NAMED_ROLES if role in options.columns}
    for role, keys in given.items():
        if len(keys) != 1 or keys[0] not in names:
            raise DatasetError(
                f"the {role} column is to be {list(keys)}; expected one of {sorted(names)}",
                path=path,
            )
    fields = {_FIELD_OF[role]: keys[0] for role, keys in given.items()}
    return find_fields(names, options.ignore, fields)


def find_fields(
    names: Iterable[str], ignore: Iterable[str] = (), given: Mapping[str, str] | None = None
) -> Fields:
    """Find out which key of a file means what, without judging whether that can be read.

    Args:
        names: the keys; those inside a group as `group/key`.
        ignore: keys that the user does not want to be read.
        given: keys by field of `Fields`, whatever their names.
    """
    given = given or {}
    left = {name: normalise(name) for name in names if name not in set(ignore)}
    found: dict[str, str] = dict(given)
    left = {name: known for name, known in left.items() if name not in given.values()}
    doubles: list[tuple[str, str]] = []
    for role, spellings in _SPELLINGS.items():
        if role in given:
            continue
        matches = [name for spelling in spellings for name, n in left.items() if n == spelling]
        matches.sort(key=lambda name: name.startswith(_GROUPS))  # those in the root come first
        if role in ("observations", "actions"):
            matches = [name for name in matches if not name.startswith(_GROUPS)]
        if matches:
            found[role] = matches[0]
            others = (name for name in matches[1:] if not name.startswith(_GROUPS))
            doubles += [(matches[0], name) for name in others]
    read = set(found.values())
    unread = tuple(name for name in left if name not in read and meaning(name) is not None)
    return Fields(**found, unread=unread, doubles=tuple(doubles))


def require_nothing_lost(
    found: Fields, path: Path, *, reads: Iterable[str] = tuple(_ROLES)
) -> None:
    """Raise `DatasetError` if a key carries what is otherwise not read.

    Args:
        found: the keys of the file.
        path: path for the error message.
        reads: the fields that the format reads.
    """
    read = {_ROLES[role] for role in reads if role in _ROLES and getattr(found, role) is not None}
    skipped = [
        getattr(found, role) for role in _ROLES if role not in reads and getattr(found, role)
    ]
    lost = [name for name in (*skipped, *found.unread) if meaning(name) not in read]
    if lost:
        carried = sorted({str(meaning(name)) for name in lost})
        raise DatasetError(
            f"its keys {lost} seem to carry {' and '.join(carried)}, and dreamgym does not know "
            "how to read them",
            path=path,
            remedy="rename them to rewards, next_observations, terminated and truncated (one row "
            "per action), or leave them out with ForeignOptions(ignore=...) or --ignore KEY",
        )


def require_agreement(found: Fields, read: Callable[[str], Any], path: Path) -> None:
    """Raise `DatasetError` if two keys with the same meaning differ: only the user can choose.

    Args:
        found: The keys of the file.
        read: Returns the rows of a key.
        path: Path for the error message.
    """
    ends = [key for key in (found.terminated, found.truncated, found.ends) if key is not None]
    for key, other in found.doubles:
        first, second = read(key), read(other)
        if isinstance(first, dict) or isinstance(second, dict):
            same = False
        elif key == found.ends:  # a flag of all ends beside one of terminations and one of limits
            flags = [np.asarray(read(each)).reshape(-1) != 0 for each in ends]
            same = not ((np.asarray(second).reshape(-1) != 0) & ~np.any(flags, axis=0)).any()
        else:
            first, second = np.asarray(first), np.asarray(second)
            same = first.size == second.size and np.allclose(
                first.reshape(-1), second.reshape(-1), equal_nan=True
            )
        if not same:
            raise DatasetError(
                f"its keys {key!r} and {other!r} have the same meaning and differ, so it is not "
                "known which is right",
                path=path,
                remedy=f"leave one out: ForeignOptions(ignore=({other!r},)) or --ignore {other}",
            )


def require_no_arrivals(found: Fields, path: Path) -> None:
    """Raise `DatasetError` for a file whose rewards may belong to the action before their row."""
    first = [name for name in found.unread if normalise(name) in _FIRST]
    if first:
        raise DatasetError(
            f"it has the key {first[0]!r}, as RLDS and Dreamer write: there, the reward of a row "
            "may belong to the action of the row before, which the file does not say",
            path=path,
            remedy="write it as a native dataset with DatasetWriter and Episode; or, if rewards[t] "
            f"is the reward of actions[t], pass ForeignOptions(ignore=({first[0]!r},)) or "
            f"--ignore {first[0]}",
        )


def resolve_ends(
    found: Fields,
    columns: Mapping[str, Array],
    options: ForeignOptions,
    path: Path,
    ambiguity: str | None = None,
) -> tuple[Array, Array, str]:
    """Return which rows are terminations and which are truncations.

    Args:
        found: the keys of the flags.
        columns: the flags by key, `(N,)` each, all of the same length.
        options: what the user knows.
        path: path for error messages.
        ambiguity: what makes the flags ambiguous, for the error message; by default their name.

    Returns:
        `(N,)` bool terminations, `(N,)` bool truncations (where both are set, it terminated), and
        how the flags were read, for the convention.

    Raises:
        DatasetError: there are only flags whose name does not say what an end is, one of them is
            set, and `options.terminals` does not say it either.
    """
    flags = {
        role: np.asarray(columns[key]).reshape(-1) != 0
        for role in ("terminated", "truncated", "ends")
        if (key := getattr(found, role)) is not None
    }
    reached = None
    if found.success in columns:
        reached = np.asarray(columns[str(found.success)]).reshape(-1) != 0
    if not flags and reached is not None:
        return reached, np.zeros(len(reached), bool), f"{found.success} are terminations"
    if not flags:
        return np.zeros(0, bool), np.zeros(0, bool), "no end flags"
    none = np.zeros(len(next(iter(flags.values()))), bool)
    terminated, truncated = flags.get("terminated", none), flags.get("truncated", none)
    ends = flags.get("ends", none)
    name = found.ends
    if "ends" not in flags:
        keys = [key for key in (found.terminated, found.truncated) if key is not None]
        text = f"ends are {' and '.join(keys)}"
    elif "terminated" in flags:
        truncated = truncated | (ends & ~terminated)
        text = f"{found.terminated} are terminations, other {name} truncations"
    elif "truncated" in flags and name is not None and "done" in normalise(name):
        terminated = ends & ~truncated  # Gym's old `done` is set for time limits, too
        text = f"{name} are terminations where {found.truncated} is not set"
    elif "truncated" in flags:
        terminated = ends
        text = f"{name} are terminations, {found.truncated} are truncations"
    elif reached is not None and options.terminals is None:
        terminated, truncated = ends & reached, ends & ~reached
        text = f"{name} with {found.success} are terminations, others truncations"
    elif not ends.any() and options.terminals is None:
        text = f"no {name} is set"
    elif require_terminals(options, path, ambiguity or f"there is only {name!r}") == "termination":
        terminated = ends
        text = f"{name} are terminations (by option)"
    else:
        truncated = ends
        text = f"{name} are boundaries (by option), read as truncations"
    return terminated, truncated & ~terminated, text


def require_terminals(options: ForeignOptions, path: Path, ambiguity: str) -> Terminals:
    """Return the meaning of ambiguous end flags that the user gave.

    Args:
        options: what the user knows.
        path: path for the error message.
        ambiguity: what makes the flags ambiguous, for the error message.

    Raises:
        DatasetError: the user gave none; the message asks for it.
    """
    if options.terminals is None:
        raise DatasetError(
            f"{ambiguity}: the file does not say whether an end is a termination or only a "
            "boundary",
            path=path,
            remedy="pass terminals='termination' or terminals='boundary' (`--terminals`)",
        )
    return options.terminals


def normalise(name: str) -> str:
    """Return a name without its group of infos, in lower case, with `_` between its words."""
    for group in _GROUPS:
        name = name.removeprefix(group)
    return name.lower().replace("-", "_").replace(".", "_").replace(" ", "_")
