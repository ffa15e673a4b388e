"""Arrays on grids: a grid is a shape (I, J, K) and an affine (4, 4) from voxel index to RAS millimetres."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy import ndimage


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """Voxel size (3,) in mm along i, j, k."""
    return np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)


def axes_of(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World axis (0 R-L, 1 A-P, 2 S-I) nearest to each voxel axis (3,), and sign (3,), by nibabel's rule.

    The rotation nearest to the affine is taken apart from its clearest axis to its least clear one.
    """
    u, _, vt = np.linalg.svd(np.asarray(affine, float)[:3, :3] / spacing_of(affine))
    rotation = u @ vt
    world, signs = np.zeros(3, int), np.zeros(3, int)
    free = np.ones(3, bool)
    for axis in np.argsort(-np.abs(rotation).max(axis=0), kind="stable"):
        world[axis] = np.argmax(np.abs(rotation[:, axis]) * free)
        signs[axis] = 1 if rotation[world[axis], axis] > 0 else -1
        free[world[axis]] = False
    return world, signs


def axcodes_of(affine: np.ndarray) -> str:
    """Where the voxel axes point to, as "RAS" or "LPS"."""
    world, signs = axes_of(affine)
    return "".join(("LR", "PA", "IS")[w][int(s > 0)] for w, s in zip(world, signs, strict=True))


def transform_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (..., 3) through a matrix (4, 4)."""
    return np.asarray(points) @ matrix[:3, :3].T + matrix[:3, 3]


def grid_points(shape: tuple[int, int, int], affine: np.ndarray, dtype=np.float64) -> np.ndarray:
    """RAS position (I, J, K, 3) in mm of every voxel centre."""
    affine = np.asarray(affine, float)
    i, j, k = (np.arange(n)[:, None] * affine[:3, axis] for axis, n in enumerate(shape))
    return (i[:, None, None] + j[None, :, None] + k[None, None] + affine[:3, 3]).astype(dtype, copy=False)


def sample(
    array: np.ndarray, affine: np.ndarray, points_ras: np.ndarray, order: int = 1, cval: float = 0.0
) -> np.ndarray:
    """Values (N,) of ``array`` (I, J, K) at points (N, 3) in RAS mm by splines; ``cval`` outside.

    Order 0 and 1 fade to ``cval`` within one voxel outside the grid, so that rounding cannot blank a border
    plane.
    """
    index = transform_points(np.linalg.inv(np.asarray(affine, float)), points_ras)
    return ndimage.map_coordinates(
        _as_float(array), index.T, order=order, mode="grid-constant", cval=cval, output=np.float32
    )


def resample(
    array: np.ndarray,
    affine: np.ndarray,
    shape: tuple[int, int, int],
    out_affine: np.ndarray,
    matrix: np.ndarray | None = None,
    order: int = 1,
    cval: float = 0.0,
    dtype=np.float32,
) -> np.ndarray:
    """``array`` (I, J, K) on ``affine`` drawn on the grid (``shape``, ``out_affine``).

    ``matrix`` (4, 4) maps RAS mm of the new grid to RAS mm of ``array`` (default: the same space). Outside is
    ``cval``. Integer types are rounded and clipped, bool is true where the interpolated share reaches one
    half.
    """
    matrix = np.eye(4) if matrix is None else np.asarray(matrix, float)
    index = np.linalg.inv(np.asarray(affine, float)) @ matrix @ np.asarray(out_affine, float)
    # Away with the rounding of the inverse, so that equal grids give equal arrays (1e-10 voxels are nothing).
    index = np.round(index, 10)
    linear, offset, shape = index[:3, :3], index[:3, 3], tuple(int(n) for n in shape)
    array = _as_float(array)
    if shape == array.shape and np.array_equal(index, np.eye(4)):
        return _as_dtype(array.copy(order="K"), dtype)
    # The last axis runs fastest here, but the first one in a volume that was read from a file.
    turned = array.flags.f_contiguous and not array.flags.c_contiguous
    if turned:
        array, linear, offset, shape = array.T, linear[::-1, ::-1], offset[::-1], shape[::-1]
    if order == 1:
        out = _resample_linear(array, linear, offset, shape, cval)
    else:
        out = ndimage.affine_transform(
            array, linear, offset, shape, np.float32, order=order, mode="grid-constant", cval=cval
        )
    return _as_dtype(out.T if turned else out, dtype)


def _resample_linear(
    array: np.ndarray, linear: np.ndarray, offset: np.ndarray, shape: tuple[int, int, int], cval: float
) -> np.ndarray:
    """``ndimage.affine_transform`` with grid-constant borders, six times faster: SimpleITK in index space."""
    rim = 1  # of cval: ITK repeats the border where ndimage fades to cval
    image = sitk.GetImageFromArray(np.pad(array, rim, constant_values=cval))  # its axes are (k, j, i)
    transform = sitk.AffineTransform(linear[::-1, ::-1].ravel().tolist(), (offset[::-1] + rim).tolist())
    out = sitk.Resample(
        image,
        shape[::-1],
        transform,
        sitk.sitkLinear,
        (0.0,) * 3,
        (1.0,) * 3,
        np.eye(3).ravel().tolist(),
        float(cval),
    )
    return sitk.GetArrayFromImage(out)


def _as_float(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)


def _as_dtype(array: np.ndarray, dtype) -> np.ndarray:
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return array >= 0.5
    if np.issubdtype(dtype, np.integer):
        return to_integers(array, dtype)
    return array.astype(dtype, copy=False)


def to_integers(values: np.ndarray, dtype) -> np.ndarray:
    """Finite numbers rounded to the nearest (ties to even) and clipped into an integer type."""
    info, dtype = np.iinfo(dtype), np.dtype(dtype)
    rounded = np.rint(np.asarray(values, np.float64))
    # float64 cannot hold the ends of 64-bit integers: 2**63 - 1 becomes 2**63, which would wrap round.
    above = rounded >= float(info.max)
    inside = np.clip(np.where(above, 0, rounded), info.min, info.max).astype(dtype)
    return np.where(above, dtype.type(info.max), inside)
