"""Pydeface (Gulban et al.): a face mask drawn on an average head, carried to the head by a 12-parameter affine.

Re-implemented on our own template and registration; unlike the original, the mask is kept off the brain, its edge is
sharp, and the image's orientation does not matter.
"""

from __future__ import annotations

import numpy as np

from ..registration import Registration, carry
from .base import Head


def pydeface(head: Head, margin_mm: float = 5.0) -> np.ndarray:
    """Voxels of the carried face mask that lie more than ``margin_mm`` from the brain, (I, J, K) bool."""
    mask = carry(head.template.face_mask, head.template, Registration(head.registration.matrix), head.volume) > 0.5
    return mask & (head.brain_distance > margin_mm)
