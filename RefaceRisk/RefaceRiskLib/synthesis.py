"""T1-weighted images made from label heads: the anatomy is known, so what a defacer touched is known too.

The labels are FreeSurfer's for the brain and the extra-cerebral classes of the SynthSeg training maps. The
results are synthetic and are for known-truth checks and for training.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .volumes import Meta, Volume, resample

WHITE, GREY, CSF, CORD = (
    (2, 7, 28, 41, 46, 60, 16, 85, 530),
    (3, 8, 17, 18, 42, 47, 53, 54),
    (24, 4, 5, 14, 15, 43, 44),
    (512,),
)
DEEP_GREY = (10, 11, 12, 13, 26, 49, 50, 51, 52, 58)
SKIN, SOFT, MUCOSA, EYES, BONE, MARROW, DURA, VESSELS = (
    (511,),
    (507,),
    (509,),
    (506,),
    (515,),
    (516,),
    (514,),
    (502, 508),
)

# Relative to white matter; typical of a 3 T MPRAGE.
T1W = {
    WHITE: 1.0, DEEP_GREY: 0.85, GREY: 0.72, CSF: 0.22, CORD: 0.95, SKIN: 0.85, SOFT: 0.60, MUCOSA: 0.55,
    EYES: 0.25, BONE: 0.10, MARROW: 0.75, DURA: 0.35, VESSELS: 0.45,
}  # fmt: skip
UNLISTED = 0.5


def is_brain(labels: np.ndarray) -> np.ndarray:
    """Brain tissue and ventricles, bool; sulcal CSF (24) and everything outside the cranium are not brain."""
    return (labels > 0) & (labels < 500) & (labels != 24)


def t1w_from_labels(
    labels: Volume,
    seed: int = 0,
    spacing_mm: float | None = None,
    noise: float = 0.02,
    bias: float = 0.15,
    variation: float = 0.05,
) -> Volume:
    """Synthetic T1w head from a label volume.

    Parameters
    ----------
    spacing_mm : isotropic spacing of the result; None keeps the labels' grid.
    noise : Rician noise, as a share of white matter. bias : standard deviation of the smooth log-bias field.
    variation : standard deviation of the tissue intensities over seeds.

    Returns an int16 Volume with white matter near 1000.
    """
    rng = np.random.default_rng(seed)
    numbers = np.rint(labels.intensities).astype(np.int32)
    table = np.full(max(int(numbers.max()), 1) + 1, UNLISTED, np.float32)
    table[0] = 0
    for members, value in T1W.items():
        for label in members:
            if label < len(table):
                table[label] = value * (1 + variation * rng.standard_normal())
    image = ndimage.gaussian_filter(table[numbers], 0.6)
    affine, shape = labels.affine, labels.shape
    if spacing_mm is not None:
        factor = spacing_mm / np.asarray(labels.spacing)
        image = ndimage.gaussian_filter(image, np.maximum(factor - 1, 0) * 0.5)
        shape = tuple(int(n) for n in np.ceil(np.asarray(labels.shape) / factor))
        affine = labels.affine @ np.diag([*factor, 1.0])
        affine[:3, 3] = labels.affine[:3, 3] + labels.affine[:3, :3] @ ((factor - 1) / 2)
        image = resample(image, labels.affine, shape, affine)
    field = ndimage.zoom(rng.standard_normal((4, 4, 4)), np.array(shape) / 4, order=3)[
        : shape[0], : shape[1], : shape[2]
    ]
    image = image * np.exp(bias * field / max(float(field.std()), 1e-6))
    real, imaginary = rng.standard_normal((2, *shape), dtype=np.float32) * noise
    image = np.hypot(image + real, imaginary)
    return Volume(np.rint(1000 * image).astype(np.int16), affine, Meta())
