"""What comes where the face was: zero, noise as in the head's own air, a blur, or the average face.

Voxels outside the removed region stay bit for bit, whatever the fill.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..errors import RefaceRiskError
from ..hounsfield import AIR_HU, is_hounsfield
from ..registration import Registration, carry
from ..surface.extract import skin_level
from ..volumes import Volume
from .average_face import replace_face
from .base import Head

FILLS = ("zero", "noise", "blur", "average")
# Sigma of the blur in mm: wide enough to take nose, lips and chin together, so that none keeps its shape.
BLUR_MM = 20.0
# Nearer to the average skin than this, air may hold a larger face.
AIR_MM = 25.0


def filled(head: Head, removed: np.ndarray, fill: str = "zero", seed: int = 0, blur_mm: float = BLUR_MM) -> Volume:
    """The head with the voxels of ``removed`` ((I, J, K) bool) filled by one of :data:`FILLS`.

    seed : of the noise. blur_mm : sigma of the blur. Raises :class:`RefaceRiskError` for an unknown fill.
    """
    volume = head.volume
    if fill == "zero":
        return volume.replaced(removed, empty(volume))
    if fill == "noise":
        return volume.replaced(removed, noise(head, removed, seed))
    if fill == "blur":
        return volume.replaced(removed, blurred(volume, removed, blur_mm))
    if fill == "average":
        return replace_face(volume, removed, head.registration, head.template)
    raise RefaceRiskError(f"unknown fill {fill!r}", f"choose one of {', '.join(FILLS)}")


def empty(volume: Volume) -> float:
    """The intensity of nothing: zero, and in CT (Hounsfield units), where zero is water, that of air."""
    return AIR_HU if is_hounsfield(volume.intensities) else 0.0


def noise(head: Head, removed: np.ndarray, seed: int) -> np.ndarray:
    """Intensities (N,), drawn with replacement from the air around the head: its own distribution, whatever that is.

    Where the background was blanked by the scanner the noise is blank too.
    """
    image = head.volume.intensities
    away = carry(head.template.skin_distance, head.template, Registration(head.registration.matrix), head.volume)
    air = image[(away > AIR_MM) & ~removed & (image < skin_level(head.volume))]
    if air.size < 100:  # a tight field of view
        air = image[~removed & (image < skin_level(head.volume))]
    if air.size == 0:
        return np.full(int(removed.sum()), empty(head.volume), np.float32)
    return np.random.default_rng(seed).choice(air, int(removed.sum()))


def blurred(volume: Volume, removed: np.ndarray, sigma_mm: float) -> np.ndarray:
    """Intensities (N,) of the removed region, smoothed by a Gaussian that sees nothing but that region.

    Normalised by the smoothed mask, so that nothing of the brain bleeds in and the edge does not darken; then rounded
    to a hundredth of the brightest, since a Gaussian stored with all its digits can be undone.
    """
    box = ndimage.find_objects(removed.astype(np.uint8))[0]
    inside = removed[box]
    mask = inside.astype(np.float32)
    weight = _gaussian(mask, sigma_mm / volume.spacing)[inside]
    values = _gaussian(volume.intensities[box] * mask, sigma_mm / volume.spacing)[inside] / np.maximum(weight, 1e-3)
    values = np.clip(values, volume.intensities[box][inside].min(), volume.intensities[box][inside].max())
    step = float(np.abs(values).max()) / 100
    return np.rint(values / step) * step if step else values


def _gaussian(array: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Gaussian of ``sigma`` (3,) voxels with zeros around; recursive, as fast for 20 voxels as for one."""
    padded = np.pad(array, 4)  # the filter needs four voxels along each axis
    image = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(padded), sigma[::-1].tolist())
    return sitk.GetArrayFromImage(image)[4:-4, 4:-4, 4:-4]
