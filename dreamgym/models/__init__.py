"""World models: the contract, the families that implement it, and wrappers around them."""

from __future__ import annotations

from dreamgym.models.base import (
    Acts,
    Decodes,
    Prediction,
    Segment,
    State,
    Values,
    WorldModel,
    as_segment,
    filter_states,
    imagine,
)
from dreamgym.models.cosmos3 import Cosmos3, Cosmos3Config
from dreamgym.models.diamond import DIAMOND, DIAMONDConfig
from dreamgym.models.dino_wm import DINOWM, DINOWMConfig
from dreamgym.models.dreamer4 import Dreamer4, Dreamer4Config
from dreamgym.models.genie import Genie, GenieConfig
from dreamgym.models.iris import IRIS, DeltaIRIS, DeltaIRISConfig, IRISConfig
from dreamgym.models.jepa import JEPA, JEPAConfig
from dreamgym.models.mdn_rnn import MDNRNN, MDNRNNConfig
from dreamgym.models.pets import PETS, PETSConfig
from dreamgym.models.registry import FAMILIES
from dreamgym.models.rssm import RSSM, RSSMConfig
from dreamgym.models.spec import ModelSpec
from dreamgym.models.storm import STORM, STORMConfig
from dreamgym.models.tdmpc2 import TDMPC2, TDMPC2Config
from dreamgym.models.twister import TWISTER, TWISTERConfig
from dreamgym.models.vjepa2_ac import VJEPA2AC, VJEPA2ACConfig
from dreamgym.models.wrappers import (
    Ensemble,
    GoalReward,
    KnownReward,
    KnownTermination,
    Optimistic,
    Pessimistic,
)

__all__ = [
    "DIAMOND",
    "DINOWM",
    "FAMILIES",
    "IRIS",
    "JEPA",
    "MDNRNN",
    "PETS",
    "RSSM",
    "STORM",
    "TDMPC2",
    "TWISTER",
    "VJEPA2AC",
    "Acts",
    "Cosmos3",
    "Cosmos3Config",
    "DIAMONDConfig",
    "DINOWMConfig",
    "Dreamer4",
    "Dreamer4Config",
    "Decodes",
    "DeltaIRIS",
    "DeltaIRISConfig",
    "Ensemble",
    "Genie",
    "GenieConfig",
    "GoalReward",
    "IRISConfig",
    "JEPAConfig",
    "KnownReward",
    "KnownTermination",
    "MDNRNNConfig",
    "ModelSpec",
    "Optimistic",
    "PETSConfig",
    "Pessimistic",
    "Prediction",
    "RSSMConfig",
    "STORMConfig",
    "TDMPC2Config",
    "TWISTERConfig",
    "VJEPA2ACConfig",
    "Segment",
    "State",
    "Values",
    "WorldModel",
    "as_segment",
    "filter_states",
    "imagine",
]
