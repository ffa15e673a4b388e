"""Quickshear (Schimke and Hale 2011): a plane below and in front of the brain; everything beyond it goes.

Re-implemented in millimetres: the original counts voxels, so that its plane turns with the slices' thickness, and takes
the length of one axis for that of another. As in the original the plane follows the first edge of the lower convex hull
of the brain's sagittal profile, from the frontal pole down and back. The brain is taken as it is, without the rim that
is kept off it otherwise: a rim rounds the profile and tilts that edge.
"""

from __future__ import annotations

import numpy as np

from ..geometry import axes_of, transform_points
from ..tissue import BRAIN_MARGIN_MM
from .base import Head


def quickshear(head: Head, margin_mm: float = 5.0) -> np.ndarray:
    """Voxels on the face's side of a plane ``margin_mm`` from the brain and its rim, (I, J, K) bool.

    The margin lies between the voxels' boxes, not their centres: no part of a removed voxel is nearer to any of the
    brain.
    """
    volume = head.volume
    margin_mm = margin_mm + BRAIN_MARGIN_MM
    normal, offset = shear_plane(head.brain_itself, volume.affine)
    box = float(np.abs(volume.affine[:3, :3].T @ normal).sum())  # extent of a voxel at right angles to the plane
    i, j, k = (normal @ volume.affine[:3, axis] * np.arange(n) for axis, n in enumerate(volume.shape))
    height = (i[:, None, None] + j[:, None] + k).astype(np.float32) + np.float32(normal @ volume.affine[:3, 3] - offset)
    return (height < -(margin_mm + box)) & ~head.brain


def shear_plane(brain: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, float]:
    """The plane that touches the brain from below and in front: unit ``normal`` (3,) in RAS, pointing to the brain, and
    ``offset`` in mm. A point p lies ``normal @ p - offset`` mm on the brain's side of it.

    brain : (I, J, K) bool with the frontal lobe in view. affine : (4, 4), any orientation and spacing.
    """
    surface = brain & ~_shrunk(brain)
    points = transform_points(affine, np.argwhere(surface))
    profile = points[:, 1:]
    hull = lower_hull(_pixels(profile, affine))
    run, rise = hull[1] - hull[0] if len(hull) > 1 else np.array([1.0, 0.0])
    normal = np.array([0.0, rise, run]) / np.hypot(run, rise)
    return normal, float((points @ normal).min())


def lower_hull(points: np.ndarray) -> np.ndarray:
    """Lower convex hull (M, 2) of points (N, 2) as (posterior, superior), front to back (Andrew's monotone chain)."""
    hull: list[np.ndarray] = []
    for point in np.unique(points, axis=0):
        while len(hull) > 1 and _turn(hull[-2], hull[-1], point) <= 0:
            hull.pop()
        if hull and point[0] == hull[-1][0]:
            continue  # straight above the point before
        hull.append(point)
    return np.array(hull)


def _turn(origin: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    (x1, y1), (x2, y2) = a - origin, b - origin
    return x1 * y2 - y1 * x2


def _pixels(profile: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The profile (N, 2) as (anterior, superior) mm on square pixels, as (posterior, superior) mm.

    A pixel is as large as the coarser of the two in-plane spacings, so that the steps of thick slices do not pass for
    the slope of the brain.
    """
    world, _ = axes_of(affine)
    pixel = max(np.linalg.norm(affine[:3, k]) for k in range(3) if world[k] != 0)
    origin = affine[1:3, 3]
    return np.rint((profile - origin) / pixel) * pixel * [-1, 1]


def _shrunk(mask: np.ndarray) -> np.ndarray:
    """The mask without its outermost voxels along the three axes (6-neighbourhood)."""
    inner = mask.copy()
    for axis in range(3):
        for step in (1, -1):
            inner &= np.roll(mask, step, axis)
    return inner
