"""The average head bent to follow what a defacer left: where the linear model starts from.

Demons forces (Thirion 1998) on locally normalised images, as in :mod:`RefaceRiskLib.registration`, with one difference
that matters beside a hole: the removed voxels have no part in the normalisation of either image, so that the tissue
right at the cut, which says most about the face in front of it, can be matched too.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..geometry import Trilinear, distance_to, gaussian
from ..registration import locally_normalised
from ..template import Template
from .linear import LIMIT_MM
from .space import COARSE_MM, halved

WINDOW_MM = 8.0
# Large enough to carry what is seen at the cut to the skin that was before it.
SMOOTHING_MM = 10.0
ITERATIONS = 80
# Tissue farther from the hole says nothing about the face that the registration beside it has not said already.
REACH_MM = 40.0


def followed_skin(template: Template, image: np.ndarray, missing: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Signed distance (X, Y, Z) float32, mm, to the average skin bent to what is left of a head; see :func:`follow`."""
    field = follow(halved(template.image), image, missing, hole)
    return np.clip(followed(halved(template.skin_distance), field), -LIMIT_MM, LIMIT_MM).astype(np.float32)


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


def followed(array: np.ndarray, field: np.ndarray, iterations: int = 8) -> np.ndarray:
    """An array of the average head (X, Y, Z) carried along by :func:`follow`'s field."""
    grid = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in array.shape], indexing="ij"))
    back = -field
    for _ in range(iterations):  # the inverse by fixed-point iteration
        back = -np.stack([ndimage.map_coordinates(c, grid + back / COARSE_MM, order=1, mode="nearest") for c in field])
    return ndimage.map_coordinates(array, grid + back / COARSE_MM, order=1, mode="nearest")
