"""MRI_Deface (Bischoff-Grethe et al. 2007): remove the tissue that may be face, keep everything that may be brain.

Re-implemented on our own template: the original labels each voxel from a probabilistic atlas of face and brain; here
the atlas is the template's shell of facial soft tissue, carried by the affine, and the brain mask with a margin. Where
a face lies farther back than the average's, it is taken off to a depth below the head's own skin.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import ndimage

from ..geometry import distance_to
from ..registration import Registration, pull
from ..surface.extract import skin_level
from ..template import Template
from ..tissue import head_mask
from .base import Head, carried

# Depth below its own skin to which a face goes in any case, and how far behind the average's it is looked for.
OWN_DEPTH_MM, BEHIND_MM = 8.0, 30.0


def mri_deface(head: Head, margin_mm: float = 8.0) -> np.ndarray:
    """Voxels that may be face and lie more than ``margin_mm`` from the brain, (I, J, K) bool."""
    may_be_face = head.template.region("removable") | _own_skin(head)
    return carried(head, may_be_face) & (head.brain_distance > margin_mm)


def _own_skin(head: Head) -> np.ndarray:
    """The head's own skin behind the average's face, to OWN_DEPTH_MM, on the template's grid, (X, Y, Z) bool."""
    template, volume = head.template, head.volume
    affine = Registration(head.registration.matrix)
    seen = pull(volume.intensities, volume.affine, affine, template.shape, template.affine)
    own = head_mask(seen, template.spacing, skin_level(volume))
    return _behind_face(template) & own & (distance_to(~own, template.spacing) < OWN_DEPTH_MM)


@lru_cache(maxsize=2)
def _behind_face(template: Template) -> np.ndarray:
    """Voxels of the average head whose nearest skin is that of the face, (X, Y, Z) bool."""
    skin = np.abs(template.skin_distance) < template.spacing
    nearest = ndimage.distance_transform_edt(~skin, return_distances=False, return_indices=True)
    facial = (skin & template.region("removable"))[tuple(nearest)]
    return facial & (template.skin_distance < 0) & (template.skin_distance > -BEHIND_MM)
