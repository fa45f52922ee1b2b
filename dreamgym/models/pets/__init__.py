"""PETS: an ensemble of probabilistic networks on vectors (Chua et al. 2018, arXiv 1805.12114)."""

from __future__ import annotations

from dreamgym.models.pets.model import PETS, PETSConfig

__all__ = ["PETS", "PETSConfig"]
