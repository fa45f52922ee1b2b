"""The check of a dataset for what follows: a family that is to fit it, and an algorithm.

`fit` refuses what a family's model refuses, and `train_policy` what a learner library refuses. The
same two functions answer here, before any time is spent.
"""

from __future__ import annotations

import os
from dataclasses import replace

from dreamgym.data import DatasetCard, ForeignOptions
from dreamgym.data import check as check_dataset
from dreamgym.data.spaces import space_from_json
from dreamgym.models.spec import unsupported
from dreamgym.train.registry import find_learner


def check(
    path: str | os.PathLike[str],
    *,
    foreign: ForeignOptions | None = None,
    family: str | None = None,
    algo: str | None = None,
    learner: str | None = None,
) -> DatasetCard:
    """Read a whole dataset and report what it holds and what is wrong with it.

    Args:
        path: the dataset: a file or a folder, native or foreign.
        foreign: what a foreign dataset does not say about itself.
        family: name of a family of world models that is to be fitted to it, with its default
            config; None to leave that open.
        algo: name of an algorithm that is to be trained in the world; None for the first of the
            learner, or to leave that open.
        learner: name of the algorithm's learner library; None for the first that has it.

    Returns:
        The card. That the family or the algorithm does not take the spaces is one of its problems.

    Raises:
        DatasetError: the path cannot be read as a dataset at all. Problems of single episodes are
            listed in the card's `problems` instead.
        UnsupportedSpaceError: the dataset has a space that this version does not support.
        ValueError: there is no such family, or it has settings without a default.
        TrainingError: there is no such algorithm or learner.
        ModuleNotFoundError: the learner library is not installed.
    """
    card = check_dataset(path, foreign=foreign)
    return with_consumers(card, family=family, algo=algo, learner=learner)


def with_consumers(
    card: DatasetCard,
    *,
    family: str | None = None,
    algo: str | None = None,
    learner: str | None = None,
) -> DatasetCard:
    """Return a card whose problems include what a family and an algorithm do not take.

    Args and errors are those of `check`.
    """
    action_space = space_from_json(card.action_space)
    reasons = []
    if family is not None:
        observation_space = space_from_json(card.observation_space)
        reasons.append(unsupported(family, observation_space, action_space))
    if algo is not None or learner is not None:
        entry = find_learner(algo, learner)
        reasons.append(entry.library().unsupported(algo or entry.algorithms[0], action_space))
    problems = [reason for reason in reasons if reason is not None]
    return replace(card, problems=[*card.problems, *problems])
