"""fsl_deface (Alfaro-Almagro et al. 2018): a mask of face and ears, carried to the head by an affine.

Re-implemented on our own template; the original has its own masks in MNI space. It is the one popular mask method that
takes the ears too, down to the neck below the chin.
"""

from __future__ import annotations

import numpy as np

from .base import Head, carried


def fsl_deface(head: Head, margin_mm: float = 5.0) -> np.ndarray:
    """Voxels of face and ears that lie more than ``margin_mm`` from the brain, (I, J, K) bool."""
    template = head.template
    face_and_ears = template.face_mask | template.region("removable") | template.ears
    return carried(head, face_and_ears) & (head.brain_distance > margin_mm)
