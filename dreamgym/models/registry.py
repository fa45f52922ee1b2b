"""The table of model families. A new family is a package, an import and an entry here."""

from __future__ import annotations

from dreamgym.models.cosmos3 import Cosmos3
from dreamgym.models.diamond import DIAMOND
from dreamgym.models.dino_wm import DINOWM
from dreamgym.models.dreamer4 import Dreamer4
from dreamgym.models.genie import Genie
from dreamgym.models.iris import IRIS, DeltaIRIS
from dreamgym.models.jepa import JEPA
from dreamgym.models.mdn_rnn import MDNRNN
from dreamgym.models.pets import PETS
from dreamgym.models.rssm import RSSM
from dreamgym.models.spec import FAMILIES
from dreamgym.models.storm import STORM
from dreamgym.models.tdmpc2 import TDMPC2
from dreamgym.models.twister import TWISTER
from dreamgym.models.vjepa2_ac import VJEPA2AC
from dreamgym.models.wrappers import (
    Ensemble,
    GoalReward,
    KnownReward,
    KnownTermination,
    Optimistic,
    Pessimistic,
)

FAMILIES.update(
    {
        "mdn-rnn": MDNRNN,
        "rssm": RSSM,
        "jepa": JEPA,
        "pets": PETS,
        "storm": STORM,
        "tdmpc2": TDMPC2,
        "diamond": DIAMOND,
        "iris": IRIS,
        "delta-iris": DeltaIRIS,
        "genie": Genie,
        "twister": TWISTER,
        "dreamer4": Dreamer4,
        "dino-wm": DINOWM,
        "vjepa2-ac": VJEPA2AC,
        "cosmos3": Cosmos3,
        "ensemble": Ensemble,
        "pessimistic": Pessimistic,
        "optimistic": Optimistic,
        "known-reward": KnownReward,
        "known-termination": KnownTermination,
        "goal-reward": GoalReward,
    }
)
