"""Two images of one head brought together, whatever their contrasts: six degrees of freedom, mutual information.

The matrix maps RAS mm of the *fixed* image to RAS mm of the *moving* one, the direction in which the moving image is
pulled onto the fixed grid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from .geometry import resample, sample, transform_points
from .registration import COARSE_MM, MIDDLE_MM, WORKING_MM, working_image
from .tissue import body_level, head_mask
from .volumes import Volume, to_sitk

BINS = 32
MIN_SHARED = 0.35  # of the compared region must lie in both fields of view
# On heads of the test data the right place loses more than a fifth of its information when it is moved by 6 mm or 6
# degrees in any direction; a wrong one loses nothing in one direction or another.
OK_SHARPNESS, FAILED_SHARPNESS = 0.12, 0.05
OK_OVERLAP, FAILED_OVERLAP = 0.92, 0.80
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class RigidQuality:
    """How far a rigid registration can be trusted.

    overlap : Dice of the two head masks in the compared region (0..1).
    sharpness : share of the mutual information that is lost by moving 6 mm or 6 degrees in the direction in which
        least is lost; near zero or negative where the images are not aligned.
    shared : share of the compared region that lies in both fields of view.
    verdict : ``ok``, ``check`` or ``failed``; reason : one sentence when not ``ok``.
    """

    overlap: float
    sharpness: float
    shared: float
    verdict: str
    reason: str = ""


def register_rigid(fixed: Volume, moving: Volume, where: np.ndarray) -> tuple[np.ndarray, RigidQuality]:
    """Rigid transform (4, 4) between two images of one head, and what it is worth.

    Parameters
    ----------
    where : (I, J, K) bool on the grid of ``fixed``: what is compared; leave out what is not the same in both, such as a
        face that was removed from one of them.

    Mattes mutual information (SimpleITK) at 4 mm, then at 2 mm, from the scanner's own coordinates, which the series of
    a session share; where that does not lead to an ``ok``, from the likeliest of many turns about the head's middle.
    Returns the best that was found, with the verdict ``failed`` if even that is not aligned.
    """
    comparison = _Comparison(fixed, moving, where)
    best = comparison.tried(np.eye(4))
    if best[1].verdict != "ok":
        starts = [comparison.refined(start, COARSE_MM) for start in comparison.likely_starts()]
        if starts:
            other = comparison.tried(max(starts, key=comparison.information))
            best = max(best, other, key=lambda found: _rank(found[1]))
    return best


def _rank(quality: RigidQuality) -> tuple[int, float]:
    return ("failed", "check", "ok").index(quality.verdict), quality.sharpness + quality.overlap


class _Comparison:
    """Both images at 4 mm and 2 mm, and points of the compared region."""

    def __init__(self, fixed: Volume, moving: Volume, where: np.ndarray):
        self.images = {}
        for spacing in (WORKING_MM, MIDDLE_MM, COARSE_MM):
            image, affine = working_image(fixed, spacing)
            region = resample(where.astype(np.float32), fixed.affine, image.shape, affine) > 0.5
            self.images[spacing] = (image, affine, region, *working_image(moving, spacing))
            if spacing == WORKING_MM:  # the coarser ones are made of this one
                fixed, where = Volume(image, affine), region
                moving = Volume(*self.images[spacing][3:])
        image, affine, region, other, self.other_affine = self.images[MIDDLE_MM]
        self.heads = [head_mask(array, MIDDLE_MM, body_level(array)) for array in (image, other)]
        self.points = np.argwhere(region) @ affine[:3, :3].T + affine[:3, 3]
        self.centre = self.points.mean(0)
        self.values = image[region]
        self.seen = np.ones(other.shape, np.float32)

    def tried(self, matrix: np.ndarray) -> tuple[np.ndarray, RigidQuality]:
        for spacing in (MIDDLE_MM, WORKING_MM):
            matrix = self.refined(matrix, spacing)
        return matrix, self.quality(matrix)

    def likely_starts(self, count: int = 8) -> list[np.ndarray]:
        """Turns by up to 50 degrees about the middle of the heads, shifted along the body, by mutual information."""
        if not self.heads[0].any() or not self.heads[1].any():
            return []
        _, affine, *_ = self.images[MIDDLE_MM]
        middles = [
            np.argwhere(head).mean(0) @ where[:3, :3].T + where[:3, 3]
            for head, where in zip(self.heads, (affine, self.other_affine), strict=True)
        ]
        starts = []
        for angles in product((-50, -25, 0, 25, 50), (-25, 0, 25), (-25, 0, 25)):
            for up in (-40.0, -20.0, 0.0, 20.0, 40.0):
                matrix = np.eye(4)
                matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
                matrix[:3, 3] = middles[1] + (0, 0, up) - matrix[:3, :3] @ middles[0]
                starts.append(matrix)
        image, affine, region, other, other_affine = self.images[COARSE_MM]
        points = np.argwhere(region) @ affine[:3, :3].T + affine[:3, 3]
        at = (points, image[region], other, other_affine)
        return sorted(starts, key=lambda matrix: -_information(matrix, *at))[:count]

    def refined(self, matrix: np.ndarray, spacing: float) -> np.ndarray:
        image, affine, region, other, other_affine = self.images[spacing]
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(BINS)
        method.SetMetricFixedMask(to_sitk((region.astype(np.uint8), affine), np.uint8))
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage({COARSE_MM: 1.0, MIDDLE_MM: 0.5, WORKING_MM: 0.15}[spacing], 1)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(spacing / 2, 0.01, 60, relaxationFactor=0.6)
        method.SetOptimizerScalesFromPhysicalShift()
        start = _LPS @ matrix @ _LPS
        transform = sitk.Euler3DTransform()
        centre = _LPS[:3, :3] @ self.centre
        transform.SetCenter(centre.tolist())
        transform.SetMatrix(start[:3, :3].ravel().tolist(), 1e-6)
        transform.SetTranslation((start[:3, :3] @ centre + start[:3, 3] - centre).tolist())
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(to_sitk((image, affine)), to_sitk((other, other_affine)))
        except RuntimeError:  # nothing of the region lies in the other image: the quality will tell
            return matrix
        out = np.eye(4)
        out[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
        out[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
        return _LPS @ out @ _LPS

    def quality(self, matrix: np.ndarray) -> RigidQuality:
        region, other_affine = self.images[MIDDLE_MM][2], self.other_affine
        moved = transform_points(matrix, self.points)
        inside = sample(self.seen, other_affine, moved) > 0.99
        shared = float(inside.mean())
        if shared < MIN_SHARED:
            return RigidQuality(0.0, 0.0, shared, "failed", "the two images show different parts of the head")
        first = self.heads[0][region][inside]
        second = sample(self.heads[1].astype(np.float32), other_affine, moved[inside]) > 0.5
        overlap = float(2 * (first & second).sum() / max(first.sum() + second.sum(), 1))
        here = self.information(matrix)
        elsewhere = max(self.information(moved) for moved in self._moved_by_6(matrix))
        sharpness = 1 - elsewhere / max(here, 1e-6)
        if sharpness < FAILED_SHARPNESS or overlap < FAILED_OVERLAP:
            return RigidQuality(overlap, sharpness, shared, "failed", "the two images cannot be aligned")
        if sharpness < OK_SHARPNESS or overlap < OK_OVERLAP:
            return RigidQuality(overlap, sharpness, shared, "check", "the match of the two images is weak")
        return RigidQuality(overlap, sharpness, shared, "ok")

    def information(self, matrix: np.ndarray) -> float:
        """Mutual information in nats over the compared points that lie in both images, at 4 mm."""
        return _information(matrix, self.points, self.values, self.images[MIDDLE_MM][3], self.other_affine)

    def _moved_by_6(self, matrix: np.ndarray) -> Iterable[np.ndarray]:
        for axis, sign in product(range(3), (-6.0, 6.0)):
            shift, turn = np.eye(4), np.eye(4)
            shift[axis, 3] = sign
            a, b, angle = (axis + 1) % 3, (axis + 2) % 3, np.radians(sign)
            turn[a, a] = turn[b, b] = np.cos(angle)
            turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
            turn[:3, 3] = self.centre - turn[:3, :3] @ self.centre
            yield matrix @ shift
            yield matrix @ turn


def _information(matrix: np.ndarray, points: np.ndarray, values: np.ndarray, other, other_affine) -> float:
    """Mutual information in nats of ``values`` at ``points`` (N, 3) with another image at the moved points."""
    moved = transform_points(matrix, points)
    index = transform_points(np.linalg.inv(other_affine), moved)
    inside = np.all((index >= 0) & (index <= np.array(other.shape) - 1), axis=1)
    if inside.mean() < MIN_SHARED:
        return 0.0
    joint, _, _ = np.histogram2d(values[inside], sample(other, other_affine, moved[inside]), BINS)
    joint = ndimage.gaussian_filter(joint, 0.7)
    joint /= joint.sum()
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / apart[seen])).sum())
