"""Optional dependencies: which extra installs them, and one error where one is missing."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType

EXTRA_OF = {
    "Box2D": "box2d",
    "av": "video",
    "accelerate": "cosmos",
    "diffusers": "cosmos",
    "dm_control": "dmc",
    "gym_pusht": "pusht",
    "hdf5plugin": "hdf5plugin",
    "lance": "lance",
    "huggingface_hub": "hub",
    "matplotlib": "plot",
    "mcap": "ros",
    "mcap_protobuf": "ros",
    "moviepy": "video",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "pyarrow": "parquet",
    "pygame": "classic-control",
    "rosbags": "ros",
    "tensorboard": "tensorboard",
    "tensorflow_datasets": "rlds",
    "transformers": "transformers",
    "vizdoom": "doom",
    "websockets": "play",
    "zarr": "zarr",
}
"""Extra of `pip install 'dreamgym[extra]'` by the module that it installs.

Those of learner libraries are in `dreamgym.train.registry.LEARNERS`.
"""


def missing_extra(
    module: str, user: str = "this", extras: Mapping[str, str] = EXTRA_OF
) -> str | None:
    """Return the error message for a module that is not installed; None where no extra has it.

    Args:
        module: full name of the module; only its first part counts.
        user: what needs it.
        extras: extras by module.
    """
    package = module.split(".")[0]
    if package not in extras:
        return None
    return f"{user} needs {package}, an extra: pip install 'dreamgym[{extras[package]}]'"


def import_extra(module: str, user: str, extras: Mapping[str, str] = EXTRA_OF) -> ModuleType:
    """Import a module of an extra.

    Args:
        module: full name of the module.
        user: what needs it, for the message.
        extras: extras by module.

    Raises:
        ModuleNotFoundError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = missing_extra(error.name or module, user, extras)
        if message is None:
            raise
        raise ModuleNotFoundError(message, name=error.name) from None
