"""Bodies of known shape for the tests of surfaces."""

from __future__ import annotations

import numpy as np

from RefaceRiskLib.surface.extract import Surface
from RefaceRiskLib.volumes import Volume


def ball(radius: float = 30.0, affine=None, shape=None, centre=(0.0, 0.0, 0.0), parts: int = 6) -> Volume:
    """A ball of intensity 1000 in air; a voxel holds the share of itself that lies inside (parts^3 samples)."""
    if affine is None:
        count = 2 * round(radius + 8) + 1
        affine, shape = np.eye(4), (count,) * 3
        affine[:3, 3] = -(count // 2)
    index = np.indices(shape).reshape(3, -1).T
    to_centre = index @ affine[:3, :3].T + affine[:3, 3] - centre
    far = np.linalg.norm(to_centre, axis=1)
    share = (far < radius).astype(float)
    reach = 0.5 * np.linalg.norm(affine[:3, :3], axis=0).sum()
    edge = np.abs(far - radius) < reach
    offsets = (np.indices((parts,) * 3).reshape(3, -1).T + 0.5) / parts - 0.5
    share[edge] = 0
    for offset in offsets @ affine[:3, :3].T:
        share[edge] += (((to_centre[edge] + offset) ** 2).sum(axis=1) <= radius**2) / len(offsets)
    return Volume((1000 * share.reshape(shape)).astype(np.float32), affine)


def sheet(x, z: float = 0.0) -> Surface:
    """A square of 10 x 10 mm at height z, cut into strips at the given x from 0 to 10."""
    x = np.asarray(x, float)
    points = np.concatenate([np.stack([x, np.full_like(x, y), np.full_like(x, z)], axis=1) for y in (0.0, 10.0)])
    n = len(x)
    near = np.arange(n - 1)
    lower = np.stack([near, near + 1, near + n + 1], axis=1)
    upper = np.stack([near, near + n + 1, near + n], axis=1)
    return Surface(points, np.concatenate([lower, upper]))


def oblique(spacing=(1.0, 1.0, 1.0), mirrored: bool = False) -> np.ndarray:
    """A rotation by 20, -35 and 50 degrees, scaled to voxels of the given size."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad((20, -35, 50))):
        turn = np.eye(3)
        u, v = (k for k in range(3) if k != axis)
        turn[u, u] = turn[v, v] = np.cos(angle)
        turn[u, v], turn[v, u] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    affine = np.eye(4)
    affine[:3, :3] = matrix * spacing * ((-1, 1, 1) if mirrored else (1, 1, 1))
    return affine


def is_closed(surface: Surface) -> bool:
    """Every edge is walked exactly once in each direction."""
    a, b, c = surface.triangles.T
    start, end, count = np.r_[a, b, c], np.r_[b, c, a], len(surface.points)
    forward = np.sort(start * count + end)
    return bool((np.diff(forward) > 0).all()) and np.array_equal(forward, np.sort(end * count + start))
