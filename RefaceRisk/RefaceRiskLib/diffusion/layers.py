"""A completed face as the models give it: one layer a grid of template space, the finer ones inside the coarser."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..template import Grid


@dataclass(frozen=True, eq=False)
class Layer:
    """Signed distance (mm) and tissue (brain units), (X, Y, Z) float32 each, on ``grid``."""

    grid: Grid
    distance: np.ndarray
    tissue: np.ndarray


Face = list[Layer]
"""Coarsest layer first; where grids overlap the finest one counts."""


def mean_face(faces: list[Face]) -> Face:
    """Layer by layer the mean of several faces of one head."""
    return [
        Layer(same[0].grid, *(np.mean([getattr(one, name) for one in same], axis=0) for name in ("distance", "tissue")))
        for same in zip(*faces, strict=True)
    ]
