"""The face as a camera in front of the head sees it: the first tissue along straight lines from front to back.

On the template's 2 mm grid, so that a line means the same on every head, whatever its voxels. The original tells which
features are in view at all; the defaced image tells what of them is left.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..registration import Registration, pull
from ..surface.extract import SKIN_SHARE, skin_level
from ..template import Template
from ..tissue import largest_component
from ..volumes import Volume

# Patches in front view, template RAS mm: (|x| from, to, z from, to).
PATCHES = {"eyes": (17, 45, 16, 38), "nose": (0, 16, -12, 22), "mouth": (0, 24, -36, -12), "chin": (0, 22, -66, -40)}
NEAR_MM = 18.0  # skin of every head of the cohort lies this near to the template's after an affine
# A cut that goes less deep than this leaves the skin, or, of the nose, which stands out by 25 mm, its shape.
SHAVED_MM = {"eyes": 4.0, "nose": 8.0, "mouth": 4.0, "chin": 4.0}
UNCHANGED = 0.02  # share of the contrast of tissue to air within which a voxel counts as kept
FEW = 0.2  # share of a feature's lines below which they say nothing about it
TIP_MM = 9.0  # radius of the tip of the nose: alone it still shows whose nose it is
OUT_OF_VIEW = 0.5  # share of a feature outside the field of view from which it counts as cut
PLATEAU = 0.27  # share of a feature's lines on the head's foremost plane from which it counts as cut: else below 0.21
EMPTY_SLICE_MM2 = 300.0  # a slice with less tissue than this lies outside the head


@dataclass(frozen=True, eq=False)
class FaceView:
    """A head before defacing, seen from the front; lines are indexed (X, Z) as the template's grid.

    affine_only : template to head. tissue : (X, Y, Z) bool. air, contrast : physical intensity of air, and of tissue
        above it.
    skin, expected : (X, Z) template mm where a line first meets this head and the average head; -inf where it meets
        none.
    in_view : (X, Z) bool, the average head's skin lies inside the field of view. patches : likewise, by feature.
    cut : features (and "top of the head") that the field of view cuts.
    disagreement_mm : how far forehead, crown, back and sides lie from the average head's: the worst of their medians.
    """

    template: Template
    affine_only: Registration
    tissue: np.ndarray
    air: float
    contrast: float
    skin: np.ndarray
    expected: np.ndarray
    in_view: np.ndarray
    patches: dict[str, np.ndarray]
    cut: tuple[str, ...]
    disagreement_mm: float

    def shown(self, name: str) -> np.ndarray:
        """(X, Z) bool: the lines of a feature that meet skin about where it should be."""
        lines = self.patches[name] & np.isfinite(self.skin)
        return lines & (np.abs(np.where(lines, self.skin, 0) - np.where(lines, self.expected, 0)) < NEAR_MM)

    def is_missing(self, name: str) -> bool:
        """Whether a feature is not there although some of it is in view: cut away before, or a signal void."""
        seen = self.patches[name] & self.in_view
        return bool(seen.sum() > FEW * self.patches[name].sum() and (self.shown(name) & seen).sum() < 0.5 * seen.sum())

    def left(self, original: Volume, defaced: Volume) -> dict[str, float]:
        """Share (0..1) of each feature's skin that is left in the defaced image; 0 where there was none.

        A line is left where the original's own tissue, unchanged, is met nearer than SHAVED_MM behind its skin. Of the
        nose it is the share of all of it or of its tip, whichever is larger.
        """
        change = np.abs(defaced.intensities - original.intensities)
        kept = (change <= UNCHANGED * self.contrast).astype(np.float32)
        kept = pull(kept, original.affine, self.affine_only, self.template.shape, self.template.affine) > 0.5
        # A drawn face hits the original's grey by chance, in single voxels.
        kept = ndimage.binary_opening(kept & self.tissue, np.ones((2, 2, 2)))
        met = first_tissue(kept, self.template)

        def share(name: str, lines: np.ndarray) -> float:
            return float((self.skin[lines] - met[lines] < SHAVED_MM[name]).mean())

        found = dict.fromkeys(PATCHES, 0.0)
        for name, patch in self.patches.items():
            lines = self.shown(name)
            if lines.sum() > FEW * patch.sum():
                found[name] = share(name, lines)
                if name == "nose":
                    found[name] = max(found[name], share(name, lines & self._round_the_foremost(lines)))
        return found

    def _round_the_foremost(self, lines: np.ndarray) -> np.ndarray:
        """(X, Z) bool: what lies within TIP_MM of that of the lines which meets skin first."""
        x, z = np.indices(lines.shape) * self.template.spacing
        at = np.unravel_index(np.argmax(np.where(lines, self.skin, -np.inf)), lines.shape)
        return np.hypot(x - x[at], z - z[at]) < TIP_MM


_seen: weakref.WeakKeyDictionary[Registration, tuple[Volume, FaceView]] = weakref.WeakKeyDictionary()


def look_at(head: Volume, registration: Registration, template: Template) -> FaceView:
    """The view of a head; kept with its registration, so that many methods on one head look once."""
    known = _seen.get(registration)
    if known is None or known[0] is not head or known[1].template is not template:
        _seen[registration] = known = (head, _look(head, registration, template))
    return known[1]


def first_tissue(tissue: np.ndarray, template: Template) -> np.ndarray:
    """(X, Z) template mm (y) of the foremost voxel of a bool (X, Y, Z) on each line; -inf where there is none."""
    return _first(tissue, template, axis=1, sign=1)


def _look(head: Volume, registration: Registration, template: Template) -> FaceView:
    level = skin_level(head)
    darkest = float(head.intensities.min())
    affine_only = Registration(registration.matrix)
    image = pull(head.intensities, head.affine, affine_only, template.shape, template.affine, cval=darkest)
    scanned = _scanned(head, registration, template)
    tissue = largest_component(image > level)
    outside = image[scanned & ~tissue]
    air = float(np.median(outside)) if outside.size else darkest
    skin, expected = first_tissue(tissue, template), first_tissue(template.head, template)
    x, z = np.abs(template.points[:, 0, :, 0]), template.points[:, 0, :, 2]
    patches = {
        name: (x >= inner) & (x <= outer) & (z >= bottom) & (z <= top) & np.isfinite(expected)
        for name, (inner, outer, bottom, top) in PATCHES.items()
    }
    in_view = _in_view(head, level, scanned, expected, registration, template)
    flat = _on_foremost_plane(head, skin, registration, template)
    cut = [
        name
        for name, patch in patches.items()
        if (~in_view[patch]).mean() > OUT_OF_VIEW or (flat[patch].mean() > PLATEAU and name != "eyes")
    ]
    if _top_is_cut(head, level, scanned, registration, template):
        cut.append("top of the head")
    return FaceView(template, affine_only, tissue, air, (level - air) / SKIN_SHARE, skin, expected, in_view,
                    patches, tuple(cut), _disagreement(tissue, scanned, template))  # fmt: skip


def _scanned(head: Volume, registration: Registration, template: Template) -> np.ndarray:
    """(X, Y, Z) bool: voxels of the template that lie inside the image."""
    inside = np.ones(template.shape, bool)
    for axis, size in enumerate(head.shape):
        place = _voxel_coordinate(head, registration, axis, template.points)
        inside &= (place > -0.5) & (place < size - 0.5)
    return inside


def _first(tissue: np.ndarray, template: Template, axis: int, sign: int) -> np.ndarray:
    places = template.affine[axis, axis] * np.arange(template.shape[axis]) + template.affine[axis, 3]
    lines = np.moveaxis(tissue, axis, 0)[::-sign]
    met = places[::-sign][lines.argmax(axis=0)]
    return np.where(lines.any(axis=0), met, -sign * np.inf)


def _disagreement(tissue: np.ndarray, scanned: np.ndarray, template: Template) -> float:
    """Worst of the median distances (mm) of forehead, crown, back and sides, which no defacer is to touch."""
    x, y, z = (template.points[..., axis] for axis in range(3))
    worst = 0.0
    for axis, sign, where in (
        (1, 1, (np.abs(x) < 35) & (z > 52) & (z < 75)),
        (1, -1, (np.abs(x) < 35) & (z > 0) & (z < 60)),
        (2, 1, (np.abs(x) < 35) & (np.abs(y) < 45)),
        (0, 1, (np.abs(y) < 45) & (z > 25) & (z < 70)),
        (0, -1, (np.abs(y) < 45) & (z > 25) & (z < 70)),
    ):
        lines = where.any(axis=axis)
        here, there = _first(tissue, template, axis, sign), _first(template.head, template, axis, sign)
        lines &= np.isfinite(here) & np.isfinite(there)
        if lines.sum() > 100:
            worst = max(worst, float(np.median(np.abs(here[lines] - there[lines]))))
    return worst


def _slice_areas(head: Volume, level: float, axis: int) -> np.ndarray:
    """Tissue (mm2) in each slice across a voxel axis."""
    others = tuple(other for other in range(3) if other != axis)
    return np.count_nonzero(head.intensities > level, axis=others) * float(np.prod(head.spacing[list(others)]))


def _native_axis(head: Volume, registration: Registration, template_axis: int) -> tuple[int, int]:
    """Voxel axis and direction (+1 or -1) of the head's grid nearest to an axis of the template."""
    to_voxels = np.linalg.inv(head.affine)[:3, :3] @ registration.matrix[:3, :3]
    direction = to_voxels[:, template_axis] * head.spacing
    axis = int(np.abs(direction).argmax())
    return axis, int(np.sign(direction[axis]))


def _voxel_coordinate(head: Volume, registration: Registration, axis: int, points: np.ndarray) -> np.ndarray:
    """Voxel index along one axis of the head's grid of template points (..., 3)."""
    matrix = np.linalg.inv(head.affine) @ registration.matrix
    return points @ matrix[axis, :3] + matrix[axis, 3]


def _expected_points(expected: np.ndarray, template: Template) -> np.ndarray:
    points = template.points[:, 0].copy()
    points[..., 1] = np.where(np.isfinite(expected), expected, 0)
    return points


def _in_view(head, level, scanned, expected, registration, template) -> np.ndarray:
    """(X, Z) bool: the average head's skin lies inside the image, and not below the lowest slice with tissue: scans
    that end at the mouth are often padded with air."""
    row = np.clip(np.round((np.nan_to_num(expected, neginf=0) - template.affine[1, 3]) / template.spacing), 0, None)
    row = np.minimum(row.astype(int), template.shape[1] - 1)
    inside = np.take_along_axis(scanned, row[:, None, :], axis=1)[:, 0]
    axis, up = _native_axis(head, registration, 2)
    filled = np.flatnonzero(_slice_areas(head, level, axis) > EMPTY_SLICE_MM2)
    if not len(filled):
        return inside
    place = _voxel_coordinate(head, registration, axis, _expected_points(expected, template))
    return inside & (place >= filled[0] - 1 if up > 0 else place <= filled[-1] + 1)


def _on_foremost_plane(head, skin, registration, template) -> np.ndarray:
    """(X, Z) bool: lines that end on the foremost slice with tissue. On a whole head that is the tip of the nose alone;
    where the field of view cuts the face it is a plateau."""
    axis, forward = _native_axis(head, registration, 1)
    spacing = float(head.spacing[axis])
    place = forward * spacing * _voxel_coordinate(head, registration, axis, _expected_points(skin, template))
    place[~np.isfinite(skin)] = -np.inf
    return np.isfinite(place) & (place > place.max() - max(2.0, 0.6 * spacing))


def _top_is_cut(head, level, scanned, registration, template) -> bool:
    """Whether the head ends in a slice too large for a crown, or its top lies outside the image."""
    crown = template.head & (template.points[..., 2] > template.points[..., 2][template.head].max() - 8)
    if (~scanned[crown]).mean() > OUT_OF_VIEW:
        return True
    axis, up = _native_axis(head, registration, 2)
    areas = _slice_areas(head, level, axis)
    filled = np.flatnonzero(areas > EMPTY_SLICE_MM2)
    if not len(filled):
        return False
    # A sphere of 100 mm radius, half as large again, cut one slice and half a millimetre below its top.
    largest = EMPTY_SLICE_MM2 + 1.5 * 2 * np.pi * 100 * (float(head.spacing[axis]) + 0.5)
    return bool(areas[filled[-1 if up > 0 else 0]] > largest)
