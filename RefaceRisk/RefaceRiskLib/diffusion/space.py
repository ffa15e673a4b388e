"""Canonical space: a head brought to the template's grids, and a completed face brought back to the head's own voxels.

Models see heads only here: affinely aligned, at 4 mm (whole head) and 2 mm (face box), intensities relative to the
brain, skin as signed distance. Only what a defacer left is read; the registration ignores the face.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from ..registration import Registration, pull
from ..surface.extract import extract_skin, signed_distance_grid, skin_level
from ..template import Grid, Template
from ..volumes import Volume, resample
from .linear import LIMIT_MM, reliable_when_defaced

COARSE_MM, FACE_MM = 4.0, 2.0
FACE_SHAPE = (80, 64, 96)


def coarse_grid(template: Template) -> Grid:
    """Whole head, 4 mm: each voxel covers 2 x 2 x 2 voxels of the template."""
    return _coarser(Grid(template.shape, template.affine), COARSE_MM)


def face_grid(template: Template) -> Grid:
    """Face box, 2 mm: 160 x 128 x 192 mm, aligned with the template's voxels."""
    tip, chin = template.landmarks["nose_tip"], template.landmarks["chin"]
    corner = np.array([0, tip[1] + 26 - FACE_SHAPE[1] * FACE_MM, chin[2] - 34])
    first = np.rint((corner - template.affine[:3, 3]) / FACE_MM).astype(int)
    first[0] = (template.shape[0] - FACE_SHAPE[0]) // 2
    first = np.clip(first, 0, np.array(template.shape) - FACE_SHAPE)
    affine = template.affine.copy()
    affine[:3, 3] += FACE_MM * first
    return Grid(FACE_SHAPE, affine)


def _coarser(grid: Grid, spacing: float) -> Grid:
    ratio = round(spacing / grid.spacing)
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = grid.affine[:3, 3] + (ratio - 1) / 2 * grid.spacing
    return Grid(tuple(n // ratio for n in grid.shape), affine)


def halved(array: np.ndarray) -> np.ndarray:
    """Mean over blocks of 2 x 2 x 2 voxels: (X, Y, Z) to (X/2, Y/2, Z/2)."""
    x, y, z = array.shape
    return array.reshape(x // 2, 2, y // 2, 2, z // 2, 2).mean(axis=(1, 3, 5), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class CanonicalHead:
    """A head in template space at 2 mm, (X, Y, Z) arrays on the template's grid.

    image : float32, median of the brain = 1, 0 where removed or outside the field of view.
    distance : float32, mm to the skin of the image as it is (of the *defaced* head if it is defaced), clipped.
    removed : bool. inside : bool, inside the field of view. scale, level : physical intensity of the brain's median
    and of the skin isosurface.
    """

    image: np.ndarray
    distance: np.ndarray
    removed: np.ndarray
    inside: np.ndarray
    scale: float
    level: float
    registration: Registration

    @cached_property
    def known(self) -> np.ndarray:
        """Where ``distance`` is that of the whole head, on the 4 mm grid."""
        missing = (halved((self.removed | ~self.inside).astype(np.float32))) > 0
        return reliable_when_defaced(self.coarse_distance, missing, COARSE_MM)

    @cached_property
    def coarse_distance(self) -> np.ndarray:
        return halved(self.distance)


def canonical(
    head: Volume,
    removed: np.ndarray | None,
    registration: Registration,
    template: Template,
    level: float | None = None,
) -> CanonicalHead:
    """Bring a head, whole (``removed`` None) or defaced, into template space."""
    level = skin_level(head) if level is None else level
    grid = (registration, template.shape, template.affine)
    spacing = np.asarray(head.spacing)
    image = ndimage.gaussian_filter(head.intensities, np.maximum(template.spacing / spacing - 1, 0) * 0.5)
    image = pull(image, head.affine, *grid)
    inside = pull(np.ones(head.shape, np.float32), head.affine, *grid) > 0.5
    gone = np.zeros(template.shape, bool)
    if removed is not None:
        gone = pull(removed.astype(np.float32), head.affine, *grid) > 0.01
    surface = extract_skin(head, level).transformed(np.linalg.inv(registration.matrix))
    distance = signed_distance_grid(surface, template.shape, template.affine, LIMIT_MM)
    if registration.displacement is not None:
        bend = Registration(np.eye(4), registration.displacement)
        distance = pull(distance, template.affine, bend, template.shape, template.affine, cval=LIMIT_MM)
    brain = image[template.brain & inside & ~gone]
    scale = float(np.median(brain)) if brain.size else float(np.percentile(image, 90))
    image = np.clip(image / max(scale, 1e-6), 0, 3) * inside * ~gone
    return CanonicalHead(image.astype(np.float32), distance, gone, inside, scale, level, registration)


def upsampled(array: np.ndarray, grid: Grid, to: Grid, order: int = 3) -> np.ndarray:
    """A map on one template-space grid brought to another."""
    return resample(array, grid.affine, to.shape, to.affine, order=order)
