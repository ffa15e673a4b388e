"""Where the network looks: a box around the brain along the axes of RAS, 2 mm voxels, intensities from 0 to 1."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..hounsfield import is_hounsfield
from ..template import Grid
from ..volumes import Volume, resample
from .contrasts import WINDOW_HU

SHAPE = (96, 112, 96)
"""Voxels of the frame: the largest brains, tilted, with the skull around them. Multiples of 16."""
SPACING_MM = 2.0
LIMIT_MM = 10.0
"""Distances are learnt up to here on both sides of the brain's surface."""
MULTIPLE = 16
"""Sizes that the network takes: two voxels a block, then three strides of two."""


def frame_at(centre: np.ndarray) -> Grid:
    """The frame around a point in RAS mm."""
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = np.asarray(centre) - SPACING_MM * (np.array(SHAPE) - 1) / 2
    return Grid(SHAPE, affine)


def whole(head: Volume) -> Grid:
    """A grid at the frame's spacing that holds the whole volume."""
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in head.shape], indexing="ij"), -1).reshape(-1, 3)
    corners = corners @ head.affine[:3, :3].T + head.affine[:3, 3]
    low, high = corners.min(0), corners.max(0)
    shape = np.ceil((high - low) / SPACING_MM / MULTIPLE).astype(int) * MULTIPLE
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = (low + high) / 2 - SPACING_MM * (shape - 1) / 2
    return Grid(tuple(int(n) for n in shape), affine)


def brought(head: Volume, grid: Grid) -> np.ndarray:
    """The head's intensities on the grid, float32; finer voxels are averaged first, outside is the darkest value."""
    image = windowed(np.nan_to_num(head.intensities))
    extent = np.linalg.norm((np.linalg.inv(head.affine) @ grid.affine)[:3, :3], axis=1)
    sigma = 0.5 * np.maximum(extent - 1, 0)
    if sigma.max() > 0.1:
        image = ndimage.gaussian_filter(image, sigma, truncate=3.0)
    return resample(image, head.affine, grid.shape, grid.affine, cval=float(image.min()))


def windowed(image: np.ndarray) -> np.ndarray:
    """A CT in Hounsfield units cut to :data:`WINDOW_HU`, in which brain and fluid differ; anything else as it is."""
    return np.clip(image, *WINDOW_HU) if is_hounsfield(image) else image


def normalised(image: np.ndarray) -> np.ndarray:
    """Intensities as float32, the 1st percentile of the frame at 0 and the 99th at 1, cut a little beyond."""
    low, high = np.percentile(image[::2, ::2, ::2], (1, 99))
    return np.clip((image - low) / max(float(high - low), 1e-6), -0.1, 1.3).astype(np.float32)
