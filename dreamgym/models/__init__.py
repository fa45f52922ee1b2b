"""World models: the contract, and the table of families that keep it."""

from __future__ import annotations

from dreamgym.models.base import (
    Decodes,
    Prediction,
    Segment,
    State,
    Temperature,
    WorldModel,
    filter,
    imagine,
    select,
    zero_action,
)
from dreamgym.models.mdn_rnn import MDNRNN, MDNRNNConfig
from dreamgym.models.statistics import Statistics, measure

FAMILIES: dict[str, type[WorldModel]] = {
    "mdn-rnn": MDNRNN,
}
"""Every family by the name that files and the command line use."""

__all__ = [
    "FAMILIES",
    "MDNRNN",
    "Decodes",
    "MDNRNNConfig",
    "Prediction",
    "Segment",
    "State",
    "Statistics",
    "Temperature",
    "WorldModel",
    "filter",
    "imagine",
    "measure",
    "select",
    "zero_action",
]
