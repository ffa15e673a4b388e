"""Other contrasts of a label head: a synthetic CT in Hounsfield units and a synthetic T2w, on any grid."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from RefaceRiskLib import synthesis as s
from RefaceRiskLib.volumes import Meta, Volume, resample

HU = {
    s.WHITE: 30, s.DEEP_GREY: 35, s.GREY: 38, s.CSF: 8, s.CORD: 32, s.SKIN: 10, s.SOFT: 20, s.MUCOSA: 40,
    s.EYES: 12, s.BONE: 1000, s.MARROW: 400, s.DURA: 60, s.VESSELS: 50,
}  # fmt: skip
T2W = {
    s.WHITE: 0.40, s.DEEP_GREY: 0.48, s.GREY: 0.58, s.CSF: 1.0, s.CORD: 0.45, s.SKIN: 0.5, s.SOFT: 0.40,
    s.MUCOSA: 0.8, s.EYES: 0.95, s.BONE: 0.06, s.MARROW: 0.5, s.DURA: 0.25, s.VESSELS: 0.12,
}  # fmt: skip


def painted(labels: Volume, table: dict, air: float, other: float, noise: float, shape, affine, matrix=None) -> Volume:
    """``labels`` in another contrast on the grid (``shape``, ``affine``); ``matrix`` maps its RAS mm to the labels'."""
    numbers = np.rint(labels.intensities).astype(np.int32)
    values = np.full(numbers.max() + 1, other, np.float32)
    values[0] = air
    for members, value in table.items():
        for label in members:
            if label < len(values):
                values[label] = value
    image = ndimage.gaussian_filter(values[numbers], 0.6)
    image = resample(image, labels.affine, shape, affine, matrix, cval=air)
    rng = np.random.default_rng(5)
    if air == 0:
        image = np.hypot(image + noise * rng.standard_normal(shape), noise * rng.standard_normal(shape)) * 1000
    else:
        image = np.maximum(image + noise * rng.standard_normal(shape), -1024)
    return Volume(np.rint(image).astype(np.int16), affine, Meta())


def grid(labels: Volume, spacing_mm: tuple[float, float, float]) -> tuple[tuple[int, int, int], np.ndarray]:
    """A grid over the labels' field of view with other voxels: (shape, affine)."""
    factor = np.asarray(spacing_mm) / labels.spacing
    affine = labels.affine @ np.diag([*factor, 1.0])
    affine[:3, 3] += labels.affine[:3, :3] @ ((factor - 1) / 2)
    return tuple(int(n) for n in np.asarray(labels.shape) / factor), affine


def ct(labels: Volume, spacing_mm=(2.0, 2.0, 2.0), matrix=None) -> Volume:
    """A synthetic head CT, int16 in HU with 10 HU of noise; not a real scan."""
    return painted(labels, HU, -1000.0, 20.0, 10.0, *grid(labels, spacing_mm), matrix)


def t2w(labels: Volume, spacing_mm=(2.0, 2.0, 2.0), matrix=None) -> Volume:
    """A synthetic T2w head, int16, brightest tissue near 1000."""
    return painted(labels, T2W, 0.0, 0.4, 0.02, *grid(labels, spacing_mm), matrix)
