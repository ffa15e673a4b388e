"""The average head bent to follow what a defacer left: where the linear model starts from.

Demons forces (Thirion 1998) on locally normalised images, as in :mod:`RefaceRiskLib.registration`, with one difference
that matters beside a hole: the removed voxels have no part in the normalisation of either image, so that the tissue
right at the cut, which says most about the face in front of it, can be matched too. The field is found at 4 mm; the
average's skin is bent by it in all detail that the template has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from ..geometry import Trilinear, distance_to, gaussian
from ..registration import locally_normalised
from ..template import Grid, Template
from .linear import LIMIT_MM
from .space import COARSE_MM, coarse_grid, halved, upsampled

WINDOW_MM = 8.0
# Large enough to carry what is seen at the cut to the skin that was before it.
SMOOTHING_MM = 10.0
ITERATIONS = 80
# Tissue farther from the hole says nothing about the face that the registration beside it has not said already.
REACH_MM = 40.0


@dataclass(frozen=True, eq=False)
class FollowedSkin:
    """The average skin bent to what is left of a head.

    back : (3, X, Y, Z) float32 at 4 mm, in mm: from a point of the head to the same tissue of the average head.
    """

    template: Template
    back: np.ndarray

    @classmethod
    def of(cls, template: Template, image: np.ndarray, missing: np.ndarray, hole: np.ndarray) -> FollowedSkin:
        """Parameters as those of :func:`follow`."""
        return cls(template, inverted(follow(halved(template.image), image, missing, hole)))

    @cached_property
    def coarse(self) -> np.ndarray:
        """Signed distance to it on the 4 mm grid, (X, Y, Z) float32, mm."""
        return _clipped(displaced(halved(self.template.skin_distance), self.back / COARSE_MM))

    def on(self, grid: Grid) -> np.ndarray:
        """Signed distance to it on a finer grid of template space, (X, Y, Z) float32, mm."""
        own = Grid(self.template.shape, self.template.affine)
        still = upsampled(self.template.skin_distance, own, grid, order=1)
        back = [upsampled(one, coarse_grid(self.template), grid, order=1) for one in self.back]
        return _clipped(displaced(still, np.stack(back) / grid.spacing))

    def detailed(self, distance: np.ndarray, grid: Grid) -> np.ndarray:
        """A map at 4 mm (X, Y, Z), mm, on a finer grid: between its voxels it has the average skin's detail."""
        return self.on(grid) + upsampled(distance - self.coarse, coarse_grid(self.template), grid)


def _clipped(distance: np.ndarray) -> np.ndarray:
    return np.clip(distance, -LIMIT_MM, LIMIT_MM).astype(np.float32)


def follow(average: np.ndarray, image: np.ndarray, missing: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Displacement (3, X, Y, Z) float32 in mm that takes points of the average head to the same tissue of a head.

    Parameters
    ----------
    average, image : (X, Y, Z), intensities of the average head and of the head on the 4 mm grid, already aligned.
    missing : (X, Y, Z) bool, voxels of ``image`` that show nothing (removed, or beyond the field of view).
    hole : (X, Y, Z) bool, what the defacer took; the field acts around it and fades to zero away from it.
    """
    field = np.zeros((3, *image.shape), np.float32)
    near = distance_to(hole, COARSE_MM) < REACH_MM
    if not near.any():
        return field
    box = ndimage.find_objects(near.astype(np.uint8))[0]
    seen = ~missing[box]
    goal, source = (locally_normalised(array[box], COARSE_MM, WINDOW_MM, seen) for array in (average, image))
    channels = Trilinear(np.stack([source, *np.gradient(source, COARSE_MM)]))
    weight = (seen & near[box]).astype(np.float32)
    weight *= gaussian(average[box], 1.0) > 0.05
    active = np.nonzero(weight)
    start = np.stack(active).astype(np.float32)
    sigma = SMOOTHING_MM / COARSE_MM
    confidence = gaussian(weight, sigma) + 0.05
    moved = np.zeros((3, *weight.shape), np.float32)
    for _ in range(ITERATIONS):
        got, *gradient = channels.at(start + moved[:, *active] / COARSE_MM)
        error = goal[active] - got
        force = np.zeros_like(moved)
        force[:, *active] = gradient * error / (np.square(gradient).sum(axis=0) + (error / COARSE_MM) ** 2 + 1e-4)
        moved = gaussian(moved + gaussian(force, sigma) / confidence, sigma / 2)
    field[(slice(None), *box)] = moved
    return field


def inverted(field: np.ndarray, iterations: int = 8) -> np.ndarray:
    """The inverse (3, X, Y, Z) of a displacement at 4 mm, in mm, by fixed-point iteration."""
    back = -field
    for _ in range(iterations):
        back = -np.stack([displaced(one, back / COARSE_MM) for one in field])
    return back


def displaced(array: np.ndarray, by: np.ndarray) -> np.ndarray:
    """An array (X, Y, Z) read at its voxels moved ``by`` (3, X, Y, Z), in voxels."""
    index = np.indices(array.shape, dtype=np.float32) + by
    return ndimage.map_coordinates(array, index, order=1, mode="nearest")
