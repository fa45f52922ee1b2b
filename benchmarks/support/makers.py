"""What makes the datasets and worlds that ship, from outside the package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load_makers() -> ModuleType:
    """Import pretrained/make.py, whose `datasets` is datasets/make.py; neither is in a package."""
    spec = importlib.util.spec_from_file_location("pretrained_make", ROOT / "pretrained/make.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pretrained_make"] = module
    spec.loader.exec_module(module)
    return module
