"""MRI_Deface (Bischoff-Grethe et al. 2007): remove the tissue that may be face, keep everything that may be brain.

Re-implemented on our own template: the original labels each voxel from a probabilistic atlas of face and brain; here
the atlas is the template's shell of facial soft tissue, carried by the affine, and the brain mask with a margin.
"""

from __future__ import annotations

import numpy as np

from .base import Head, carried


def mri_deface(head: Head, margin_mm: float = 8.0) -> np.ndarray:
    """Voxels that may be face and lie more than ``margin_mm`` from the brain, (I, J, K) bool."""
    return carried(head, head.template.region("removable")) & (head.brain_distance > margin_mm)
