"""Canonical space: a head brought to the template's grids, and a completed face brought back to the head's own voxels.

Models see heads only here: affinely aligned, at 4 mm (whole head), 2 mm and 1 mm (face box), intensities relative to
the brain, skin as signed distance. Only what a defacer left is read; the registration ignores the face.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..geometry import gaussian
from ..registration import Registration, pull, resampled_field, to_head
from ..surface.extract import Surface, extract_skin, signed_distance_grid, signed_distance_map, skin_level
from ..template import Grid, Template
from ..volumes import Volume, resample
from .linear import LIMIT_MM, reliable_when_defaced

COARSE_MM, MIDDLE_MM, FINE_MM = 4.0, 2.0, 1.0
FACE_BOX_MM = (160, 128, 192)
# Distances on the 1 mm grid are computed this near to the skin; farther off those of the 2 mm grid are as good.
NEAR_MM = 1.5
# Heads of larger voxels (mm, geometric mean) can neither teach nor show anything at 1 mm.
FINE_BELOW_MM = 1.5


def is_fine(head: Volume) -> bool:
    """Whether a head's voxels are small enough for the 1 mm stage."""
    return float(np.prod(head.spacing)) ** (1 / 3) < FINE_BELOW_MM


def coarse_grid(template: Template) -> Grid:
    """Whole head, 4 mm: each voxel covers 2 x 2 x 2 voxels of the template."""
    ratio = round(COARSE_MM / template.spacing)
    affine = np.diag([COARSE_MM] * 3 + [1.0])
    affine[:3, 3] = template.affine[:3, 3] + (COARSE_MM - template.spacing) / 2
    return Grid(tuple(n // ratio for n in template.shape), affine)


def face_grid(template: Template, spacing: float = MIDDLE_MM) -> Grid:
    """Face box of 160 x 128 x 192 mm: its voxels are the template's, or divide them if ``spacing`` is finer."""
    box = np.array(FACE_BOX_MM) / template.spacing
    tip, chin = template.landmarks["nose_tip"], template.landmarks["chin"]
    corner = np.array([0, tip[1] + 26 - FACE_BOX_MM[1], chin[2] - 34])
    first = np.rint((corner - template.affine[:3, 3]) / template.spacing).astype(int)
    first[0] = (template.shape[0] - box[0]) // 2
    first = np.clip(first, 0, (np.array(template.shape) - box).astype(int))
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = template.affine[:3, 3] + template.spacing * first - (template.spacing - spacing) / 2
    return Grid(tuple(round(mm / spacing) for mm in FACE_BOX_MM), affine)


def halved(array: np.ndarray) -> np.ndarray:
    """Mean over blocks of 2 x 2 x 2 voxels: (X, Y, Z) to (X/2, Y/2, Z/2)."""
    x, y, z = array.shape
    return array.reshape(x // 2, 2, y // 2, 2, z // 2, 2).mean(axis=(1, 3, 5), dtype=np.float32)


def cropped(array: np.ndarray, grid: Grid, box: Grid) -> np.ndarray:
    """The part of an array (X, Y, Z, ...) on ``grid`` that lies on ``box``, a grid of some of the same voxels."""
    return array[tuple(slice(f, f + n) for f, n in zip(first_voxel(grid, box), box.shape, strict=True))]


def first_voxel(grid: Grid, box: Grid) -> np.ndarray:
    """Where on ``grid`` the first voxel of ``box`` lies, (3,) int."""
    return np.rint((box.affine[:3, 3] - grid.affine[:3, 3]) / grid.spacing).astype(int)


def bend_of(registration: Registration) -> np.ndarray | None:
    """Displacement of the average head's tissue to the head's, after the affine, (3, X, Y, Z) float32 mm at 4 mm."""
    if registration.displacement is None:
        return None
    return np.stack([halved(component) for component in np.moveaxis(registration.displacement, -1, 0)])


@dataclass(frozen=True, eq=False)
class View:
    """A head in template space, (X, Y, Z) arrays on ``grid``.

    image : float32, median of the brain = 1, 0 where removed or outside the field of view.
    distance : float32, mm to the skin of the image as it is (of the *defaced* head if it is defaced), clipped.
    removed : bool. inside : bool, inside the field of view.
    """

    grid: Grid
    image: np.ndarray
    distance: np.ndarray
    removed: np.ndarray
    inside: np.ndarray

    @property
    def missing(self) -> np.ndarray:
        return self.removed | ~self.inside

    @cached_property
    def known(self) -> np.ndarray:
        """Where ``distance`` is that of the whole head, (X, Y, Z) bool."""
        return reliable_when_defaced(self.distance, self.missing, self.grid.spacing)

    def halved(self) -> View:
        """At twice the spacing; a voxel of which any part is missing is missing."""
        shape = tuple(n // 2 for n in self.grid.shape)
        affine = np.diag([2 * self.grid.spacing] * 3 + [1.0])
        affine[:3, 3] = self.grid.affine[:3, 3] + self.grid.spacing / 2
        removed, inside = halved(self.removed) > 0, halved(self.inside) == 1
        return View(Grid(shape, affine), halved(self.image) * ~removed, halved(self.distance), removed, inside)

    def boxed(self, grid: Grid) -> View:
        """The part on ``grid``, whose voxels are among those of this view; ``known`` still looks beyond it."""
        arrays = (self.image, self.distance, self.removed, self.inside, self.known)
        *parts, known = (cropped(array, self.grid, grid) for array in arrays)
        out = View(grid, *parts)
        out.__dict__["known"] = known
        return out


@dataclass(frozen=True, eq=False)
class CanonicalHead:
    """A head on the template's own grid, and what is needed to look at it more closely.

    view : at 2 mm. skin : of the image, template RAS mm by the affine alone. scale, level : physical intensity of the
    brain's median and of the skin isosurface.
    """

    view: View
    volume: Volume
    mask: np.ndarray | None
    skin: Surface
    scale: float
    level: float
    registration: Registration

    def closer(self, grid: Grid) -> View:
        """The same head on a finer grid of template space."""
        registration, coarser = self.registration, self.view.grid
        distance = upsampled(self.view.distance, coarser, grid, order=1)
        # Near the skin exactly: the points of the grid go where the displacement takes them.
        near = np.abs(distance) < NEAR_MM
        points = np.argwhere(near) * grid.spacing + grid.affine[:3, 3]
        points = to_head(points, coarser, Registration(np.eye(4), registration.displacement))
        distance[near] = signed_distance_map(self.skin, points)
        if registration.displacement is not None:
            field = resampled_field(registration.displacement, coarser.affine, grid.shape, grid.affine)
            registration = Registration(registration.matrix, field)
        image, gone, inside = _pulled(self.volume, self.mask, registration, grid)
        return View(grid, _relative(image, self.scale) * (inside & ~gone), distance, gone, inside)


def canonical(
    head: Volume,
    removed: np.ndarray | None,
    registration: Registration,
    template: Template,
    level: float | None = None,
) -> CanonicalHead:
    """Bring a head, whole (``removed`` None) or defaced, into template space."""
    level = skin_level(head) if level is None else level
    grid = Grid(template.shape, template.affine)
    image, gone, inside = _pulled(head, removed, registration, grid)
    skin = extract_skin(head, level).transformed(np.linalg.inv(registration.matrix))
    distance = signed_distance_grid(skin, grid.shape, grid.affine, LIMIT_MM)
    if registration.displacement is not None:
        bend = Registration(np.eye(4), registration.displacement)
        distance = pull(distance, grid.affine, bend, grid.shape, grid.affine, cval=LIMIT_MM)
    brain = image[template.brain & inside & ~gone]
    scale = float(np.median(brain)) if brain.size else float(np.percentile(image, 90))
    view = View(grid, _relative(image, scale) * (inside & ~gone), distance, gone, inside)
    return CanonicalHead(view, head, removed, skin, scale, level, registration)


def _pulled(head: Volume, removed: np.ndarray | None, registration: Registration, grid: Grid):
    """Physical intensity, removed and inside, (X, Y, Z) each, of a head on a grid of template space."""
    to = (registration, grid.shape, grid.affine)
    image = gaussian(head.intensities, np.maximum(grid.spacing / np.asarray(head.spacing) - 1, 0) * 0.5)
    image = pull(image, head.affine, *to)
    inside = pull(np.ones(head.shape, np.float32), head.affine, *to) > 0.5
    gone = np.zeros(grid.shape, bool)
    if removed is not None:
        gone = pull(removed.astype(np.float32), head.affine, *to) > 0.01
    return image, gone, inside


def _relative(image: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(image / max(scale, 1e-6), 0, 3).astype(np.float32)


def upsampled(array: np.ndarray, grid: Grid, to: Grid, order: int = 3) -> np.ndarray:
    """A map on one template-space grid brought to another."""
    return resample(array, grid.affine, to.shape, to.affine, order=order)
