"""World models: the contract, and the table of families that keep it."""

from __future__ import annotations

from dreamgym.models.asking import may_ask, without_asking
from dreamgym.models.base import (
    Decodes,
    Prediction,
    Segment,
    State,
    Temperature,
    WorldModel,
    as_segment,
    filter,
    imagine,
    segment_to,
    select,
    zero_action,
)
from dreamgym.models.compiled_parts import CompilesParts
from dreamgym.models.compositions import (
    KnownReward,
    KnownRewardConfig,
    KnownTermination,
    KnownTerminationConfig,
    Pessimistic,
    PessimisticConfig,
)
from dreamgym.models.ensemble import Ensemble, EnsembleConfig
from dreamgym.models.goal import GoalReward, GoalRewardConfig
from dreamgym.models.jepa import JEPA
from dreamgym.models.jepa_config import JEPAConfig, JEPAObjective
from dreamgym.models.jepa_senses import IMAGENET_MEAN, IMAGENET_STD
from dreamgym.models.known import REWARDS, TERMINATIONS
from dreamgym.models.lewm import LeWMError, LeWMStatistics, load_lewm
from dreamgym.models.masked import shared_batches, whole
from dreamgym.models.mdn_rnn import MDNRNN, MDNRNNConfig
from dreamgym.models.nesting import ModelSpec, plain
from dreamgym.models.numbers import TakesNumbers
from dreamgym.models.observations import (
    WHOLE,
    Observation,
    as_tensors,
    assemble,
    each,
    is_image,
    part,
    parts,
)
from dreamgym.models.pets import PETS, PETSConfig
from dreamgym.models.pretrained_encoder import PretrainedError
from dreamgym.models.rssm import RSSM
from dreamgym.models.rssm_config import RSSMConfig, RSSMObjective
from dreamgym.models.statistics import Moments, Statistics, measure
from dreamgym.models.vitals import Divergence, Spread, Vitals

FAMILIES: dict[str, type[WorldModel]] = {
    "mdn-rnn": MDNRNN,
    "pets": PETS,
    "ensemble": Ensemble,
    "pessimistic": Pessimistic,
    "known-reward": KnownReward,
    "known-termination": KnownTermination,
    "goal-reward": GoalReward,
    "rssm": RSSM,
    "jepa": JEPA,
}
"""Every family by the name that files and the command line use."""

__all__ = [
    "FAMILIES",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "JEPA",
    "MDNRNN",
    "PETS",
    "REWARDS",
    "RSSM",
    "TERMINATIONS",
    "WHOLE",
    "CompilesParts",
    "Decodes",
    "Divergence",
    "Ensemble",
    "EnsembleConfig",
    "GoalReward",
    "GoalRewardConfig",
    "JEPAConfig",
    "JEPAObjective",
    "KnownReward",
    "KnownRewardConfig",
    "KnownTermination",
    "KnownTerminationConfig",
    "LeWMError",
    "LeWMStatistics",
    "MDNRNNConfig",
    "ModelSpec",
    "Moments",
    "Observation",
    "PETSConfig",
    "Pessimistic",
    "PessimisticConfig",
    "Prediction",
    "PretrainedError",
    "RSSMConfig",
    "RSSMObjective",
    "Segment",
    "Spread",
    "State",
    "Statistics",
    "TakesNumbers",
    "Temperature",
    "Vitals",
    "WorldModel",
    "as_segment",
    "as_tensors",
    "assemble",
    "each",
    "filter",
    "imagine",
    "is_image",
    "load_lewm",
    "may_ask",
    "measure",
    "part",
    "parts",
    "plain",
    "segment_to",
    "select",
    "shared_batches",
    "whole",
    "without_asking",
    "zero_action",
]
