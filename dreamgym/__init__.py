"""dreamgym: world models learned from logged data, given back as Gymnasium environments.

Importing it registers the ids `dreamgym/...`; torch is imported when something is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dreamgym._lazy import lazy_names
from dreamgym.dream.registration import register_worlds
from dreamgym.envs import register_envs
from dreamgym.train import registry as _registry  # noqa: F401 - tells whose agents it knows

if TYPE_CHECKING:
    from dreamgym.data import Dataset as Dataset
    from dreamgym.data import record as record
    from dreamgym.dream import DreamVectorEnv as DreamVectorEnv
    from dreamgym.errors import CheckpointError as CheckpointError
    from dreamgym.errors import DatasetError as DatasetError
    from dreamgym.errors import DiskFullError as DiskFullError
    from dreamgym.errors import DreamgymError as DreamgymError
    from dreamgym.errors import FitError as FitError
    from dreamgym.errors import LeWMError as LeWMError
    from dreamgym.errors import OnlineError as OnlineError
    from dreamgym.errors import PolicyError as PolicyError
    from dreamgym.errors import PolicyFileError as PolicyFileError
    from dreamgym.errors import PretrainedError as PretrainedError
    from dreamgym.errors import TrainingError as TrainingError
    from dreamgym.errors import TrainingInterrupted as TrainingInterrupted
    from dreamgym.errors import TransferError as TransferError
    from dreamgym.errors import UnsupportedSpaceError as UnsupportedSpaceError
    from dreamgym.errors import WorldError as WorldError
    from dreamgym.fitting import FitConfig as FitConfig
    from dreamgym.fitting import OptimizerConfig as OptimizerConfig
    from dreamgym.fitting import default_config as default_config
    from dreamgym.fitting import fit as fit
    from dreamgym.fitting import from_lewm as from_lewm
    from dreamgym.fitting import from_model as from_model
    from dreamgym.online import ImproveConfig as ImproveConfig
    from dreamgym.online import improve as improve
    from dreamgym.train import check as check
    from dreamgym.train import train_policy as train_policy
    from dreamgym.transfer import compare_policies as compare_policies
    from dreamgym.transfer import evaluate as evaluate
    from dreamgym.transfer import export_policy as export_policy
    from dreamgym.transfer import transfer_policy as transfer_policy
    from dreamgym.world import World as World
    from dreamgym.world import load as load
    from dreamgym.world import push as push
    from dreamgym.world import worlds as worlds

__version__ = "0.1.0"

_NAMES_OF = {
    "data": ("Dataset", "record"),
    "dream": ("DreamVectorEnv",),
    "errors": (
        "CheckpointError",
        "DatasetError",
        "DiskFullError",
        "DreamgymError",
        "FitError",
        "LeWMError",
        "OnlineError",
        "PolicyError",
        "PolicyFileError",
        "PretrainedError",
        "TrainingError",
        "TrainingInterrupted",
        "TransferError",
        "UnsupportedSpaceError",
        "WorldError",
    ),
    "fitting": (
        "FitConfig",
        "OptimizerConfig",
        "default_config",
        "fit",
        "from_lewm",
        "from_model",
        "recommended",
    ),
    "metrics": (),
    "models": (),
    "online": ("ImproveConfig", "improve"),
    "play": (),
    "train": ("check", "train_policy"),
    "transfer": ("compare_policies", "evaluate", "export_policy", "transfer_policy"),
    "trust": (),
    "world": ("World", "load", "push", "worlds"),
}
"""Public names by the package that defines them."""

_OLD_NAMES = {"recommended"}  # still there for scripts; now `default_config`

__all__ = [
    "__version__",
    *sorted(name for names in _NAMES_OF.values() for name in names if name not in _OLD_NAMES),
]
__getattr__ = lazy_names(__name__, _NAMES_OF)

register_envs()
register_worlds()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_NAMES_OF})
