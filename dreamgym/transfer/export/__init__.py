"""Controllers and worlds as ONNX, for machines without dreamgym and without torch."""

from __future__ import annotations

from dreamgym.transfer.export.controller import ExportedPolicy
from dreamgym.transfer.export.exporting import export_policy

__all__ = ["ExportedPolicy", "export_policy"]
