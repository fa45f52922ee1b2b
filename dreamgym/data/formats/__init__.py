"""Foreign formats: one module each, one table, one detector.

A new format costs one module that fulfils `interface.Format` and one line in `registry.FORMATS`.
"""

from __future__ import annotations

from dreamgym.data.formats.interface import ForeignDataset, ForeignOptions, Format, Probe
from dreamgym.data.formats.registry import FORMATS, detect_format, open_foreign

__all__ = [
    "FORMATS",
    "ForeignDataset",
    "ForeignOptions",
    "Format",
    "Probe",
    "detect_format",
    "open_foreign",
]
