"""Cutting by hand, live: what a plane, a box and brush strokes take off a head, in milliseconds and never the brain.

The mask is made anew from a list of cuts at every move of a handle, into memory that the caller shows. Whether a voxel
lies beyond a plane depends on a sum of three numbers, one an axis, so that 256 cubed voxels cost one addition and one
comparison each. The voxels that may go at all are looked up last: no cut, whatever its shape, can cross the margin
around the brain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..volumes import Volume, bounding_box

Box = tuple[slice, slice, slice]


class Cut(Protocol):
    """Voxels (I, J, K) of a box that a shape takes, bool; ``affine`` of the whole grid, RAS mm."""

    def box(self, shape: Sequence[int], affine: np.ndarray) -> Box: ...

    def inside(self, box: Box, affine: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Plane:
    """Everything on the side of a plane that its ``normal`` points to. Both (3,) in RAS mm."""

    origin: tuple[float, float, float]
    normal: tuple[float, float, float]

    def box(self, shape: Sequence[int], affine: np.ndarray) -> Box:
        return tuple(slice(0, n) for n in shape)

    def inside(self, box: Box, affine: np.ndarray) -> np.ndarray:
        return _beyond(np.asarray(self.normal, float), float(np.dot(self.normal, self.origin)), box, affine)


@dataclass(frozen=True, eq=False)
class Cuboid:
    """The inside of a box: ``matrix`` (4, 4) takes its own axes to RAS mm, ``size`` (3,) is its edges in mm."""

    matrix: np.ndarray
    size: tuple[float, float, float]

    def box(self, shape: Sequence[int], affine: np.ndarray) -> Box:
        signs = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3, indexing="ij"), -1).reshape(-1, 3)
        corners = signs * np.asarray(self.size) @ self.matrix[:3, :3].T + self.matrix[:3, 3]
        return _box_around(corners, shape, affine)

    def inside(self, box: Box, affine: np.ndarray) -> np.ndarray:
        found = None
        axes = self.matrix[:3, :3] / np.linalg.norm(self.matrix[:3, :3], axis=0)
        for axis, edge in zip(axes.T, self.size, strict=True):
            middle = float(axis @ self.matrix[:3, 3])
            for sign in (1.0, -1.0):
                part = _beyond(-sign * axis, -sign * middle - edge / 2, box, affine)
                found = part if found is None else np.logical_and(found, part, out=found)
        return found


@dataclass(frozen=True)
class Ball:
    """A stroke of a brush: a ball around ``centre`` (3,) RAS mm."""

    centre: tuple[float, float, float]
    radius_mm: float

    def box(self, shape: Sequence[int], affine: np.ndarray) -> Box:
        signs = np.stack(np.meshgrid(*[(-1.0, 1.0)] * 3, indexing="ij"), -1).reshape(-1, 3)
        return _box_around(np.asarray(self.centre) + self.radius_mm * signs, shape, affine)

    def inside(self, box: Box, affine: np.ndarray) -> np.ndarray:
        index = np.stack(np.meshgrid(*[np.arange(s.start, s.stop) for s in box], indexing="ij"), -1)
        points = index @ affine[:3, :3].T + affine[:3, 3]
        return np.square(points - np.asarray(self.centre)).sum(axis=-1) <= self.radius_mm**2


@dataclass(frozen=True, eq=False)
class Drawn:
    """Voxels that somebody drew, (I, J, K) bool on the head's own grid."""

    mask: np.ndarray

    def box(self, shape: Sequence[int], affine: np.ndarray) -> Box:
        return bounding_box(self.mask) if self.mask.any() else (slice(0, 0),) * 3

    def inside(self, box: Box, affine: np.ndarray) -> np.ndarray:
        return self.mask[box]


class Cutter:
    """The mask of a head that is being defaced by hand.

    A voxel goes when it lies in *all* of ``shapes`` (say, beyond a plane and inside a box), or in a stroke that adds,
    unless a later stroke took it back; and never when it is nearer to the brain than ``margin_mm``. ``mask`` (I, J, K)
    uint8 is 1 where it goes; it is always the same array, so that a view onto it stays right.
    """

    def __init__(
        self, head: Volume, brain_distance: np.ndarray, margin_mm: float = 5.0, mask: np.ndarray | None = None
    ) -> None:
        """``brain_distance`` (I, J, K) float32: mm to the brain, negative inside. ``mask``: uint8 memory to fill."""
        if brain_distance.shape != head.shape:
            raise ValueError(f"the brain's map is {brain_distance.shape}, the head {head.shape}")
        self.affine = np.asarray(head.affine, float)
        self._brain_distance = brain_distance
        # Memory order of the head's own voxels: three times as fast where that is Fortran's, as in Slicer.
        self.mask = np.zeros_like(head.voxels, np.uint8) if mask is None else mask
        self.shapes: tuple[Cut, ...] = ()
        self._strokes: list[tuple[Cut, bool]] = []
        self._undone: list[tuple[Cut, bool]] = []
        self.margin_mm = margin_mm

    @property
    def margin_mm(self) -> float:
        """How far from the brain every cut stops, mm."""
        return self._margin_mm

    @margin_mm.setter
    def margin_mm(self, margin_mm: float) -> None:
        if not margin_mm >= 0:
            raise ValueError(f"a margin of {margin_mm} mm would let cuts into the brain")
        self._margin_mm = float(margin_mm)
        self._may_go = np.empty_like(self.mask, bool)
        np.greater(self._brain_distance, self._margin_mm, out=self._may_go)

    def cut(self, *shapes: Cut) -> np.ndarray:
        """Replace the shapes and make the mask anew; returns it."""
        self.shapes = shapes
        return self.update()

    def paint(self, stroke: Cut, add: bool = True) -> np.ndarray:
        """Add a stroke to what goes, or give back what it covers; returns the mask."""
        self._strokes.append((stroke, add))
        self._undone.clear()
        self._draw(stroke, add)
        return self.mask

    def undo(self) -> bool:
        """Take back the latest stroke; False when there is none."""
        return self._move(self._strokes, self._undone)

    def redo(self) -> bool:
        """Do again the stroke that was taken back last; False when there is none."""
        return self._move(self._undone, self._strokes)

    def update(self) -> np.ndarray:
        """Make the mask from shapes and strokes; returns it."""
        if self.shapes:
            box = _common(shape.box(self.mask.shape, self.affine) for shape in self.shapes)
            if any(part != slice(0, n) for part, n in zip(box, self.mask.shape, strict=True)):
                self.mask.fill(0)
            goes = self._may_go[box]
            for shape in self.shapes:
                goes = np.logical_and(goes, shape.inside(box, self.affine))
            self.mask[box] = goes
        else:
            self.mask.fill(0)
        for stroke, add in self._strokes:
            self._draw(stroke, add)
        return self.mask

    def _draw(self, stroke: Cut, add: bool) -> None:
        box = stroke.box(self.mask.shape, self.affine)
        inside = stroke.inside(box, self.affine)
        if add:
            self.mask[box] |= inside & self._may_go[box]
        else:
            self.mask[box] &= ~inside

    def _move(self, source: list, target: list) -> bool:
        if not source:
            return False
        target.append(source.pop())
        self.update()
        return True


def _beyond(normal: np.ndarray, offset: float, box: Box, affine: np.ndarray) -> np.ndarray:
    """Voxels of a box with ``normal`` @ point > ``offset`` (RAS mm), bool, in Fortran order."""
    i, j, k = (
        np.float32(normal @ affine[:3, axis]) * np.arange(part.start, part.stop, dtype=np.float32)
        for axis, part in enumerate(box)
    )
    limit = np.float32(offset - normal @ affine[:3, 3])
    # Transposed, so that the innermost loop runs along i, the first axis in the memory of a NIfTI or MRML volume.
    return ((limit - k[:, None] - j)[:, :, None] < i).T


def _box_around(corners: np.ndarray, shape: Sequence[int], affine: np.ndarray) -> Box:
    inverse = np.linalg.inv(affine)
    index = corners @ inverse[:3, :3].T + inverse[:3, 3]
    low = np.clip(np.floor(index.min(axis=0)).astype(int), 0, shape)
    high = np.clip(np.ceil(index.max(axis=0)).astype(int) + 1, 0, shape)
    return tuple(slice(int(a), int(max(a, b))) for a, b in zip(low, high, strict=True))


def _common(boxes) -> Box:
    """Where all boxes overlap."""
    parts = zip(*boxes, strict=True)
    bounds = [(max(p.start for p in part), min(p.stop for p in part)) for part in parts]
    return tuple(slice(a, max(a, b)) for a, b in bounds)
