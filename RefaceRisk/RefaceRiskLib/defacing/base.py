"""What every defacer takes and returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ..geometry import corners, resample, transform_points
from ..registration import Registration
from ..template import Template
from ..tissue import BRAIN_MARGIN_MM
from ..volumes import Volume


@dataclass(frozen=True)
class Quality:
    """What a user needs to trust a defaced head.

    verdict : ``ok``, ``check`` or ``failed``; reason : one sentence when not ``ok``.
    brain_voxels_touched : removed voxels inside the brain mask (the promise is 0).
    face_surface_removed : share (0..1) of the template's face skin that was cut away.
    overlap, correlation : of the registration, see :class:`RegistrationQuality`.
    left : share (0..1) of the skin of eyes, nose, mouth and chin that the defaced image still shows.
    disagreement_mm : how far the head's own forehead, crown, back and sides lie from the registered template's.
    """

    verdict: str
    reason: str
    brain_voxels_touched: int
    face_surface_removed: float
    overlap: float
    correlation: float
    left: dict[str, float] = field(default_factory=dict)
    disagreement_mm: float = 0.0


@dataclass(frozen=True, eq=False)
class Defaced:
    """A defaced head: ``volume`` equals the input bit for bit outside ``removed`` ((I, J, K) bool); ``brain`` is the
    brain mask that was kept off, on the same grid; ``registration`` maps template to head."""

    volume: Volume
    removed: np.ndarray
    brain: np.ndarray
    registration: Registration
    quality: Quality
    method: str
    options: dict


@dataclass(frozen=True, eq=False)
class Head:
    """A registered head, as defacers see it.

    brain_distance : (I, J, K) float32, mm to the brain with the rim of :data:`BRAIN_MARGIN_MM` that makes it safe,
    negative inside.
    """

    volume: Volume
    template: Template
    registration: Registration
    brain_distance: np.ndarray

    @property
    def brain(self) -> np.ndarray:
        return self.brain_distance <= 0

    @property
    def brain_itself(self) -> np.ndarray:
        """The brain without its rim."""
        return self.brain_distance <= -BRAIN_MARGIN_MM


class Defacer(Protocol):
    """A method: the voxels to remove, as (I, J, K) bool; how they are filled is not its concern."""

    def __call__(self, head: Head, **options: object) -> np.ndarray: ...


def carried(head: Head, inside: np.ndarray) -> np.ndarray:
    """A region of the template on the head's grid, (I, J, K) bool, by the affine alone: faces must not bend masks.

    ``inside`` (X, Y, Z): bool, or a float map that is positive inside.
    """
    level, outside = (0.5, 0.0) if inside.dtype == bool else (0.0, -1.0)
    # Only the part of the head that the region can reach is looked at.
    matrix, volume = head.registration.matrix, head.volume
    box = _reached(np.argwhere(inside > level), np.linalg.inv(volume.affine) @ matrix @ head.template.affine, volume)
    affine = volume.affine.copy()
    affine[:3, 3] += volume.affine[:3, :3] @ [part.start for part in box]
    shape = tuple(part.stop - part.start for part in box)
    out = np.zeros(volume.shape, bool, order="F" if volume.voxels.flags.f_contiguous else "C")
    if min(shape) > 0:
        part = resample(inside, head.template.affine, shape, affine, np.linalg.inv(matrix), cval=outside)
        out[box] = part > level
    return out


def _reached(index: np.ndarray, to_head: np.ndarray, head: Volume) -> tuple[slice, slice, slice]:
    """Voxels of the head that trilinear weights of template voxels ``index`` (N, 3) can reach: a box."""
    if not len(index):
        return (slice(0, 0),) * 3
    reached = transform_points(to_head, corners(index.min(axis=0) - 1, index.max(axis=0) + 1))
    first = np.clip(np.floor(reached.min(axis=0)).astype(int), 0, head.shape)
    last = np.clip(np.ceil(reached.max(axis=0)).astype(int) + 1, first, head.shape)
    return tuple(map(slice, first, last))
