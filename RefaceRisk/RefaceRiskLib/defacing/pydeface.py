"""Pydeface (Gulban et al.): a wedge drawn before an average head, carried to the head by a 12-parameter affine.

Re-implemented on our own template and registration; unlike the original, the mask is kept off the brain, its edge is
sharp, and the image's orientation does not matter. As with the original, ears and the underside of the jaw stay.
"""

from __future__ import annotations

import numpy as np

from ..template import Template
from .base import Head, carried


def pydeface(head: Head, margin_mm: float = 5.0) -> np.ndarray:
    """Voxels of the carried wedge that lie more than ``margin_mm`` from the brain, (I, J, K) bool."""
    return carried(head, wedge(head.template)) & (head.brain_distance > margin_mm)


def wedge(template: Template) -> np.ndarray:
    """Depth in mm inside the mask, (X, Y, Z) float32, negative outside.

    The original's mask is a wedge between planes that reach across the whole head; these are drawn from the landmarks:
    behind the nose, from above the brow backwards, and below the chin. In front it ends in the air before the nose.
    """
    nasion, nose, chin = (template.landmarks[name] for name in ("nasion", "nose_tip", "chin"))
    x, y, z = np.moveaxis(template.points, -1, 0)
    planes = (
        y - (nose[1] - 62 - 0.20 * (z - nose[2])),
        nasion[2] + 10 + 0.75 * (y - nasion[1]) - z,
        z - (chin[2] - 6 + 0.24 * (y - chin[1])),
        nose[1] + 14 - 0.24 * (z - nose[2]) - y,
        90 - np.abs(x),
    )
    return np.minimum.reduce(planes).astype(np.float32)
