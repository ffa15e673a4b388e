"""Heads of any contrast painted from label maps, with the true brain: for training and for known-truth checks.

A label map says what lies where; how bright it is depends on the sequence. Every class of tissue gets a mean and a
texture, either those of a usual sequence or random ones, then the scanner's faults follow: bias field, blur, gamma,
noise (Billot et al., SynthSeg, Med Image Anal 2023). All of it is synthetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..synthesis import (
    BONE,
    CORD,
    CSF,
    DEEP_GREY,
    DURA,
    EYES,
    GREY,
    MARROW,
    MUCOSA,
    SKIN,
    SOFT,
    T1W,
    VESSELS,
    WHITE,
    is_brain,
)  # fmt: skip
from ..tissue import largest_component
from ..volumes import Meta, Volume, bounding_box, resample

SULCAL_CSF = 24
LABELS = 1024
CLASSES = (WHITE, DEEP_GREY, GREY, CSF, CORD, SKIN, SOFT, MUCOSA, EYES, BONE, MARROW, DURA, VESSELS)

# Mean intensity of CLASSES, bright tissue near 1; typical of clinical sequences at 1.5 to 3 T.
MEANS = {
    "T1w": tuple(T1W[members] for members in CLASSES),
    "T2w": (0.42, 0.46, 0.58, 1.00, 0.45, 0.55, 0.36, 0.80, 0.95, 0.06, 0.50, 0.25, 0.12),
    "PD": (0.68, 0.75, 0.85, 0.78, 0.70, 0.70, 0.62, 0.75, 0.80, 0.12, 0.65, 0.40, 0.40),
    "FLAIR": (0.60, 0.66, 0.75, 0.12, 0.60, 0.75, 0.45, 0.70, 0.15, 0.06, 0.70, 0.30, 0.20),
}
# The same in Hounsfield units; soft tissue outside the cranium is a mixture of muscle and fat.
HOUNSFIELD = (30, 34, 38, 8, 32, 0, 15, 30, 15, 1000, 450, 60, 50)
AIR_HU = -1000.0
WINDOW_HU = (-150.0, 250.0)
CONTRASTS = (*MEANS, "CT", "random")


def true_brain(labels: np.ndarray) -> np.ndarray:
    """What a brain mask should hold, bool: FreeSurfer's brain labels and ventricles, and the fluid around them.

    That is every label from 1 to 499, the sulcal and cisternal fluid (24) included as in SynthStrip and in the
    template's brain, but not the fluid of the spinal canal: nothing below the lowest voxel of the brain itself. Labels
    are on a grid whose axes need not be RAS; the spinal canal is cut by :func:`brain_of`, which knows the affine.
    """
    mask = (labels > 0) & (labels < 500)
    box = bounding_box(mask)
    mask[box] = largest_component(ndimage.binary_fill_holes(mask[box]))
    return mask


def brain_of(labels: Volume) -> np.ndarray:
    """:func:`true_brain` of a label volume without the fluid below the brain stem, (I, J, K) bool."""
    numbers = label_numbers(labels)
    i, j, k = (np.arange(n) * step for n, step in zip(labels.shape, labels.affine[2, :3], strict=True))
    heights = i[:, None, None] + j[None, :, None] + k  # mm towards the crown
    return true_brain(np.where(heights < heights[is_brain(numbers)].min(), 0, numbers))


def label_numbers(labels: Volume) -> np.ndarray:
    """(I, J, K) int16 label numbers."""
    return np.rint(labels.intensities).astype(np.int16)


@dataclass(frozen=True)
class Contrast:
    """Mean and texture (standard deviation) of each label number, both (LABELS,) float32; 1 is bright tissue."""

    means: np.ndarray
    textures: np.ndarray


def contrast(name: str, rng: np.random.Generator, variation: float = 0.06) -> Contrast:
    """A contrast of :data:`CONTRASTS`; its means vary from draw to draw by ``variation``.

    ``CT`` is given in the window :data:`WINDOW_HU`, mapped to 0..1 and not clipped.
    """
    count = len(CLASSES)
    if name == "random":
        means = rng.uniform(0.02, 1.0, count)
        means[rng.random(count) < 0.1] = 0.0  # a class as dark as air
        textures = rng.uniform(0.0, 0.10, count)
        air = rng.uniform(0.0, 1.0) if rng.random() < 0.1 else rng.uniform(0, 0.05)
    elif name == "CT":
        low, high = WINDOW_HU
        means = (np.array(HOUNSFIELD, float) + rng.normal(0, 4, count) - low) / (high - low)
        textures = np.full(count, 6.0) / (high - low)
        textures[[5, 6]] *= 5
        air = (AIR_HU - low) / (high - low)
    else:
        means = np.array(MEANS[name]) * (1 + variation * rng.standard_normal(count))
        textures = np.array(MEANS[name]) * rng.uniform(0.02, 0.10)
        air = 0.0
    return _per_label(means, textures, air, 0.3 * variation, rng)


def _per_label(means, textures, air, spread, rng) -> Contrast:
    """From classes to labels: the labels of a class differ a little; an unlisted one is white matter or muscle."""
    table = np.empty((2, LABELS), np.float32)
    table[:, :500] = np.array([means[0], textures[0]])[:, None]
    table[:, 500:] = np.array([means[6], textures[6]])[:, None]
    for members, mean, texture in zip(CLASSES, means, textures, strict=True):
        for label in members:
            table[:, label] = mean * (1 + spread * rng.standard_normal()), texture
    table[:, 0] = air, 0.0
    return Contrast(table[0], table[1])


def painted(numbers: np.ndarray, contrast: Contrast, rng: np.random.Generator) -> np.ndarray:
    """Every voxel as bright as its label says, with texture, float32."""
    noise = rng.standard_normal(numbers.shape, dtype=np.float32)
    return contrast.means[numbers] + contrast.textures[numbers] * noise


def smooth_field(knots: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Values (A, B, C) spread over a grid of ``shape`` by cubic splines, one axis after the other, float32."""
    field = np.asarray(knots, np.float32)
    for axis, size in enumerate(shape):
        count = field.shape[axis]
        weights = ndimage.zoom(np.eye(count), (size / count, 1), order=3, mode="nearest", grid_mode=True)
        field = np.moveaxis(np.tensordot(weights.astype(np.float32), field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field)


def bias_field(shape: tuple[int, int, int], strength: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth positive factor; ``strength`` is the standard deviation of its logarithm."""
    field = smooth_field(rng.standard_normal((int(rng.integers(3, 6)),) * 3), shape)
    return np.exp(strength * field / max(float(field.std()), 1e-6))


def noisy(image: np.ndarray, sigma: float, rng: np.random.Generator, rician: bool = True) -> np.ndarray:
    """Rician noise as in a magnitude image, or Gaussian noise as in CT."""
    image = image + np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)
    if not rician:
        return image
    return np.sqrt(image**2 + (np.float32(sigma) * rng.standard_normal(image.shape, dtype=np.float32)) ** 2)


def tilted(rng: np.random.Generator, degrees: float, scale: float, shear: float, shift_mm: float) -> np.ndarray:
    """A random affine (4, 4) about the origin; the arguments are standard deviations, cut at twice that."""

    def normal(sigma: float, size=3) -> np.ndarray:
        return sigma * np.clip(rng.standard_normal(size), -2, 2)

    out = np.eye(4)
    for axis, angle in enumerate(np.radians(normal(degrees))):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(4)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    stretch = np.diag([*(np.exp(normal(scale, 1)) * np.exp(normal(scale / 2))), 1.0])
    stretch[[0, 0, 1], [1, 2, 2]] = normal(shear)
    out = out @ stretch
    out[:3, 3] = normal(shift_mm)
    return out


@dataclass(frozen=True, eq=False)
class SyntheticHead:
    """A painted head with its truth, all on one grid: ``brain`` as :func:`brain_of`, ``tissue`` as ``is_brain``."""

    volume: Volume
    brain: np.ndarray
    tissue: np.ndarray


def head_from_labels(
    labels: Volume,
    name: str = "T1w",
    seed: int = 0,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    tilt_degrees: float = 6.0,
    axcodes: str = "RAS",
) -> SyntheticHead:
    """A synthetic scan of a label head, tilted, of the contrast ``name`` (:data:`CONTRASTS`).

    ``spacing_mm`` are the voxels along right-left, back-front and up-down; ``axcodes`` is how they are stored. CT comes
    in Hounsfield units, the others as int16 with bright tissue near 1000. A voxel of the truth is one of which the
    larger part is brain.
    """
    rng = np.random.default_rng(seed)
    numbers = label_numbers(labels)
    move = tilted(rng, tilt_degrees, 0.04, 0.02, 5.0)
    shape, affine = _grid_around(numbers > 0, labels.affine, move, np.asarray(spacing_mm), axcodes)
    back = np.linalg.inv(move)
    # A voxel's extent along each axis of the labels; as full width at half maximum of the blur.
    extent = np.linalg.norm((np.linalg.inv(labels.affine) @ back @ affine)[:3, :3], axis=1)
    blur = 0.42 * extent

    def brought(array: np.ndarray, cval: float = 0.0) -> np.ndarray:
        smooth = ndimage.gaussian_filter(array.astype(np.float32), blur, mode="nearest")
        return resample(smooth, labels.affine, shape, affine, back, cval=cval)

    drawn = contrast(name, rng)
    image = brought(painted(numbers, drawn, rng), float(drawn.means[0]))
    if name == "CT":
        low, high = WINDOW_HU
        image = noisy(low + (high - low) * image, 10.0, rng, rician=False)
        image = np.clip(image, -1024, 3000)
    else:
        image = np.clip(image, 0, None) ** np.exp(0.15 * rng.standard_normal())
        image = 1000 * noisy(image * bias_field(shape, rng.uniform(0.05, 0.25), rng), rng.uniform(0.01, 0.04), rng)
    volume = Volume(np.rint(image).astype(np.int16), affine, Meta())
    return SyntheticHead(volume, brought(brain_of(labels)) > 0.5, brought(is_brain(numbers)) > 0.5)


def _grid_around(head, affine, move, spacing, axcodes) -> tuple[tuple[int, int, int], np.ndarray]:
    """A grid that holds the moved head and 8 mm of air, its axes stored as ``axcodes`` says."""
    corners = np.argwhere(head)[::97] @ affine[:3, :3].T + affine[:3, 3]
    corners = corners @ move[:3, :3].T + move[:3, 3]
    low, high = corners.min(0) - 8, corners.max(0) + 8
    counts = np.ceil((high - low) / spacing).astype(int)
    out, shape = np.eye(4), []
    out[:3, 3] = low
    for column, code in enumerate(axcodes):
        axis = next(k for k, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        sign = 1 if code in "RAS" else -1
        out[:3, column] = 0
        out[axis, column] = sign * spacing[axis]
        if sign < 0:
            out[axis, 3] = low[axis] + (counts[axis] - 1) * spacing[axis]
        shape.append(int(counts[axis]))
    return tuple(shape), out
