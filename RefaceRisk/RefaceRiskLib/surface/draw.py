"""Draw a skin surface into an image: the inverse of extracting it.

A completed face comes as a signed distance and as tissue intensities in template space; it is drawn into the removed
voxels of the head's own grid, so that the isosurface of the result lies exactly where the signed distance is zero.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..registration import Registration, to_template
from ..template import Grid, Template
from ..volumes import Volume

Layers = list[tuple[np.ndarray, Grid]]


def draw_face(
    defaced: Volume,
    removed: np.ndarray,
    registration: Registration,
    template: Template,
    distance: Layers,
    tissue: Layers,
    level: float,
    air: float = 0.0,
) -> Volume:
    """Fill the removed voxels; all others stay bit for bit.

    Parameters
    ----------
    removed : (I, J, K) bool. registration : of the head with the template, its displacement included.
    distance : signed distance maps (template mm, negative inside) with their grids, coarsest first; a finer one wins
        inside its own box. tissue : physical intensities, likewise.
    level : physical intensity of the skin isosurface; the drawn edge crosses it where the distance is zero, linearly
        over one voxel to either side, as partial volume does. air : intensity outside.
    """
    points = np.argwhere(removed) @ defaced.affine[:3, :3].T + defaced.affine[:3, 3]
    points = to_template(points, template, registration)
    signed = sample_finest(distance, points, order=3, outside=40.0)
    inner = sample_finest(tissue, points, order=1, outside=level)
    voxel = np.linalg.inv(registration.matrix)[:3, :3] @ defaced.affine[:3, :3]
    width = float(np.linalg.norm(voxel, axis=0).max())
    # Skin and the fat below it are never darker than the isosurface, whatever was predicted.
    inner = np.where(signed > -3 * width, np.maximum(inner, air + 1.3 * (level - air)), inner)
    near = np.clip(1 - np.abs(signed) / (2 * width), 0, 1)
    inner = (1 - near) * inner + near * (2 * level - air)
    edge = np.clip(0.5 - signed / (2 * width), 0, 1)
    return defaced.replaced(removed, (air + edge * (inner - air)).astype(np.float32))


def sample_finest(layers: Layers, points: np.ndarray, order: int, outside: float) -> np.ndarray:
    """Sample stacked maps at template points (N, 3); ``outside`` where none reaches. Returns (N,) float32."""
    out = np.full(len(points), outside, np.float32)
    for array, grid in layers:
        index = ((points - grid.affine[:3, 3]) / grid.spacing).T
        inside = np.all((index >= 0) & (index <= np.array(grid.shape)[:, None] - 1), axis=0)
        out[inside] = ndimage.map_coordinates(array, index[:, inside], order=order, mode="nearest")
    return out
