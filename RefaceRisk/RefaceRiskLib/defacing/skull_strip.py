"""Skull stripping: only the brain and a margin around it are kept; what goes is far more than the face."""

from __future__ import annotations

import numpy as np

from .base import Head


def skull_strip(head: Head, margin_mm: float = 8.0) -> np.ndarray:
    """Voxels more than ``margin_mm`` from the brain, (I, J, K) bool."""
    return head.brain_distance > margin_mm
