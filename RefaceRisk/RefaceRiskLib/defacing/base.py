"""What every defacer takes and returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..registration import Registration
from ..template import Template
from ..volumes import Volume


@dataclass(frozen=True)
class Quality:
    """What a user needs to trust a defaced head.

    verdict : ``ok``, ``check`` or ``failed``; reason : one sentence when not ``ok``.
    brain_voxels_touched : removed voxels inside the brain mask (the promise is 0).
    face_surface_removed : share (0..1) of the template's face skin that was cut away.
    overlap, correlation : of the registration, see :class:`RegistrationQuality`.
    """

    verdict: str
    reason: str
    brain_voxels_touched: int
    face_surface_removed: float
    overlap: float
    correlation: float


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
    """A registered head, as defacers see it. brain_distance : (I, J, K) float32, mm to the brain, negative inside."""

    volume: Volume
    template: Template
    registration: Registration
    brain_distance: np.ndarray

    @property
    def brain(self) -> np.ndarray:
        return self.brain_distance <= 0


class Defacer(Protocol):
    """A method: the voxels to remove, as (I, J, K) bool; how they are filled is not its concern."""

    def __call__(self, head: Head, **options: float) -> np.ndarray: ...


Fill = Callable[[Head, np.ndarray], Volume]
