"""Interactive: any mask that the user drew, kept off the brain."""

from __future__ import annotations

import numpy as np

from ..errors import RefaceRiskError
from .base import Head


def interactive(head: Head, mask: np.ndarray | None = None, margin_mm: float = 5.0) -> np.ndarray:
    """Voxels of ``mask`` that lie more than ``margin_mm`` from the brain, (I, J, K) bool.

    ``mask`` (I, J, K): non-zero is to go. Raises :class:`RefaceRiskError` when it is missing, empty or of another grid.
    """
    if mask is None:
        raise RefaceRiskError("interactive needs a mask of what is to go", "give mask=(I, J, K) array, or --mask FILE")
    mask = np.asarray(mask) != 0
    if mask.shape != head.volume.shape:
        raise RefaceRiskError(f"the mask is {mask.shape}, the head {head.volume.shape}", "draw it on the head's grid")
    if not mask.any():
        raise RefaceRiskError("the mask is empty", "non-zero voxels are to go")
    return mask & (head.brain_distance > margin_mm)
