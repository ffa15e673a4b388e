"""Skeletal muscle in a CT without a network: what lies inside the fascia, is neither bone nor fat, and no organ.

Nearly every step is two-dimensional, in axial slices. The limits in HU are those of physics and of the field (skin at
-300, fat -190..-30, muscle -29..150); those in mm are anatomy's (an abdominal wall is at most 3 cm thick). The steps
were worked out on two abdomens, one at 3 mm and one at 1 mm, and on phantoms.
In a limb muscle is all that the fascia holds but bone. In the trunk it is the wall around the cavity, read along rays
from the fascia inwards up to the first fat, air or rib; where an organ lies against the wall the
thickness is taken from the neighbourhood. Behind the spine everything is muscle; psoas and quadratus stand beside it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..errors import RefaceRiskError
from ..hounsfield import SKIN_HU
from ..volumes import Volume, bounding_box, reorient
from .ct import MUSCLE_HU

FAT_HU, PURE_FAT_HU = (-190.0, -30.0), -100.0
AIR_HU = -250.0  # inside the body: lung and bowel gas, and what they share a voxel with
BONE_HU, BONE_RIM_HU = 250.0, 150.0  # cortex; what touches it and is denser than any voxel of muscle
# A mean over 3 mm of muscle, with contrast medium too, is below; cartilage of ribs, marrow and enhanced organs are not.
DENSE_HU, SHARED_WITH_BONE_HU = 85.0, 100.0
WALL_MM, BACK_MM = 30.0, 80.0  # no abdominal wall is thicker, no back: an organ lies against it
SITES = ("abdomen", "thigh", "shin")
TISSUES = {"subcutaneous fat": 1, "intermuscular fat": 2, "bone": 3, "muscle": 4}


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Masks on the CT's own grid, (I, J, K) bool. left, right : the halves of `muscle`, of the person."""

    site: str
    body: np.ndarray
    bone: np.ndarray
    subcutaneous_fat: np.ndarray
    intermuscular_fat: np.ndarray
    muscle: np.ndarray
    left: np.ndarray

    @property
    def right(self) -> np.ndarray:
        return self.muscle & ~self.left

    def tissues(self) -> np.ndarray:
        """One map, (I, J, K) uint8, with the numbers of TISSUES."""
        out = np.zeros(self.body.shape, np.uint8)
        for name, number in TISSUES.items():
            out[getattr(self, name.replace(" ", "_"))] = number
        return out


def segment(ct: Volume, site: str) -> Segmentation:
    """Segment every axial slice of a CT (any orientation; cut out the slab of interest first, see `level.slab`).

    site : ``abdomen``, ``thigh`` or ``shin``; in the latter two every limb in the picture is taken.
    Raises RefaceRiskError for an unknown site, and where no body, no limb or no muscle is found.
    """
    if site not in SITES:
        raise RefaceRiskError(f"unknown site {site!r}", f"choose one of {', '.join(SITES)}")
    upright = reorient(ct, "RAS")
    hu, spacing = upright.intensities, upright.spacing
    body = np.stack([_body(hu[:, :, k], spacing[:2], site) for k in range(hu.shape[2])], axis=2)
    if not body.any():
        raise RefaceRiskError("no body in this CT", "choose the slices that show it", ct.meta.path)
    box = tuple(slice(max(0, part.start - 3), part.stop + 3) for part in bounding_box(body.any(axis=2)))
    hu, body = hu[box], body[box]
    parts = [_slice(hu[:, :, k], body[:, :, k], spacing[:2]) for k in range(hu.shape[2])]
    bone, fascia, soft = (np.stack([part[n] for part in parts], axis=2) for n in range(3))
    muscle = soft & _wall(soft, bone, fascia, hu, spacing) if site == "abdomen" else soft
    allowed = fascia & ~bone
    muscle = np.stack([_smoothed(muscle[:, :, k], allowed[:, :, k], spacing) for k in range(hu.shape[2])], axis=2)
    if not muscle.any():
        raise RefaceRiskError(f"no muscle found as in {site}", "check the site and the slices", ct.meta.path)
    fat = (hu >= FAT_HU[0]) & (hu <= FAT_HU[1]) & body & ~muscle & ~bone
    subcutaneous = fat & ~fascia
    near = ndimage.binary_closing(np.pad(muscle, ((9, 9), (9, 9), (0, 0))), np.ones((3, 3, 1)), iterations=4)[
        9:-9, 9:-9
    ]
    left = muscle & (np.arange(len(hu))[:, None, None] < _middle(body, fascia, bone, site))
    found = (body, bone, subcutaneous, fat & fascia & near, muscle, left)
    return Segmentation(site, *(_back(mask, box, upright, ct) for mask in found))


def _back(mask: np.ndarray, box: tuple[slice, slice], upright: Volume, ct: Volume) -> np.ndarray:
    """A mask of the upright grid's box brought to the axes of the CT, bit for bit."""
    whole = np.zeros(upright.shape, np.uint8)
    whole[box] = mask
    return reorient(upright.with_intensities(whole, np.uint8), ct.axcodes).voxels > 0


# --- one slice --------------------------------------------------------------------------------------------------------


def _grown(mask: np.ndarray, mm: float, spacing: np.ndarray) -> np.ndarray:
    """Dilation by a disc."""
    return ndimage.distance_transform_edt(~mask, sampling=spacing[:2]) <= mm + 1e-6 if mask.any() else mask


def _shrunk(mask: np.ndarray, mm: float, spacing: np.ndarray) -> np.ndarray:
    """Erosion by a disc; the border of the picture does not erode."""
    return ndimage.distance_transform_edt(mask, sampling=spacing[:2]) > mm + 1e-6 if not mask.all() else mask


def _opened(mask: np.ndarray, mm: float, spacing: np.ndarray) -> np.ndarray:
    return _grown(_shrunk(mask, mm, spacing), mm, spacing)


def _closed(mask: np.ndarray, mm: float, spacing: np.ndarray) -> np.ndarray:
    margin = int(np.ceil(mm / spacing[:2].min())) + 1
    return _shrunk(_grown(np.pad(mask, margin), mm, spacing), mm, spacing)[margin:-margin, margin:-margin]


def _body(hu: np.ndarray, spacing: np.ndarray, site: str) -> np.ndarray:
    """The person: solid pieces after table, sheets and clothes (thin, or apart from the body) are opened away; the
    largest in the trunk, in limbs up to two of like size."""
    solid = ndimage.binary_fill_holes(_opened(hu > SKIN_HU, 4.0, spacing))
    labels, count = ndimage.label(solid)
    if not count:
        return solid
    sizes = np.bincount(labels.ravel())[1:]
    if site == "abdomen":
        return labels == 1 + sizes.argmax()
    kept = [n for n in np.argsort(sizes)[::-1][:2] if sizes[n] > 0.4 * sizes.max()]
    return np.isin(labels, np.array(kept) + 1)


def _slice(hu: np.ndarray, body: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bone with its marrow, what the fascia encloses, and soft tissue of muscle's density in it, of one slice."""
    # Noise is averaged over 3 mm before it is compared with the limits of muscle, among what can be muscle alone.
    shared = body & (hu <= BONE_RIM_HU)
    weight = ndimage.gaussian_filter(shared.astype(np.float32), 1.5 / spacing)
    smooth = ndimage.gaussian_filter(np.where(shared, hu, 0), 1.5 / spacing) / np.maximum(weight, 1e-3)
    seeds = body & (hu > BONE_HU)
    dense = body & ((hu > BONE_RIM_HU) | (smooth > DENSE_HU))
    labels, _ = ndimage.label(dense, np.ones((3, 3)))
    touching = np.unique(labels[seeds])
    bone = ndimage.binary_fill_holes(_closed(np.isin(labels, touching[touching > 0]), 3.0, spacing)) & body
    bone |= _grown(bone, 1.5 * spacing.max(), spacing) & (hu > SHARED_WITH_BONE_HU)
    lean = body & ~bone & (smooth >= MUSCLE_HU[0]) & (smooth <= DENSE_HU)
    # The edge of muscle and fat lies half-way between the two, and muscle is not equally dense everywhere.
    around = [
        ndimage.gaussian_filter(np.where(lean, values, 0).astype(np.float32), 6.0 / spacing) for values in (1, hu)
    ]
    half_way = (around[1] / np.maximum(around[0], 1e-3) + PURE_FAT_HU) / 2
    lean |= body & ~bone & _grown(lean, min(2.0, spacing.max()), spacing) & (smooth >= half_way) & (smooth <= DENSE_HU)
    # Fat that reaches the skin through gaps of 6 mm or more is subcutaneous; the skin itself is 2 to 3 mm thick.
    depth = ndimage.distance_transform_edt(np.pad(body, 1), sampling=spacing)[1:-1, 1:-1]
    skin = body & (depth <= max(3.0, spacing.max()))
    fat = body & (~lean & (smooth < MUSCLE_HU[0]) & (smooth > AIR_HU) | skin)
    outer = _opened(fat, 3.0, spacing) | skin
    labels, _ = ndimage.label(outer)
    outer = np.isin(labels, np.unique(labels[skin])[1:] if skin.any() and labels[skin].min() == 0
                    else np.unique(labels[skin])) & outer  # fmt: skip
    fascia = _opened(ndimage.binary_fill_holes(_closed(body & ~outer, 6.0, spacing) & body), 4.0, spacing)
    return bone, fascia, lean & fascia


def _smoothed(muscle: np.ndarray, allowed: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Holes up to 3 mm closed (noise, strands of fat between bundles), specks and threads below 2 mm taken off."""
    closed = _closed(muscle, max(1.5, spacing[:2].max()), spacing) & allowed
    opened = _opened(closed, 1.0, spacing) if spacing[:2].max() < 1 else closed
    labels, count = ndimage.label(opened)
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * spacing[0] * spacing[1]
    return opened & (sizes[labels] >= 30.0)


def _middle(body: np.ndarray, fascia: np.ndarray, bone: np.ndarray, site: str) -> np.ndarray:
    """The first index at which the halves part, (1, 1, K): the middle of the trunk, or between the limbs."""
    shape = body if site != "abdomen" else fascia
    columns = [np.flatnonzero(shape[:, :, k].any(axis=1)) for k in range(body.shape[2])]
    middles = [(c[0] + c[-1] + 1) / 2 if c.size else body.shape[0] / 2 for c in columns]
    return np.array(middles)[None, None]


# --- the wall of the trunk --------------------------------------------------------------------------------------------

_ANGLES = 180
_STEP_MM = 1.0


def _wall(soft: np.ndarray, bone: np.ndarray, fascia: np.ndarray, hu: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """What of the trunk belongs to its wall, the back and the muscles beside the spine, (I, J, K) bool."""
    spine = _spine(bone, fascia, spacing)
    wall = np.zeros_like(soft)
    slices = [k for k in range(hu.shape[2]) if fascia[:, :, k].any()]
    places = [_Polar(fascia[:, :, k], spacing, _arch(spine[:, :, k])) for k in slices]
    seen = [
        _seen_thickness(place, (bone | spine)[:, :, k], hu[:, :, k]) for place, k in zip(places, slices, strict=True)
    ]
    at_rib, anywhere = (np.array([found[n] for found in seen]) for n in range(2))
    thickness = _regular(anywhere, at_rib, np.array([place.behind for place in places]), spacing[2])
    for place, k, thick in zip(places, slices, thickness, strict=True):
        wall[:, :, k] = place.depth <= thick[place.angle]
        wall[:, :, k] |= _beside_spine(soft[:, :, k], spine[:, :, k], spacing)
    return wall & ~spine


class _Polar:
    """A slice seen from the middle of what the fascia encloses: for each voxel its angle (number) and depth in mm
    below the fascia. behind : (angles,) bool, rays that leave the trunk behind the arch of the vertebra."""

    def __init__(self, fascia: np.ndarray, spacing: np.ndarray, arch: float | None):
        self.spacing = spacing[:2]
        self._centre = np.array(ndimage.center_of_mass(fascia))
        index = np.indices(fascia.shape, float)
        away = [(index[n] - self._centre[n]) * spacing[n] for n in range(2)]
        radius = np.hypot(*away)
        self.angle = np.rint(np.arctan2(away[1], away[0]) / (2 * np.pi) * _ANGLES).astype(int) % _ANGLES
        turn = 2 * np.pi * np.arange(_ANGLES) / _ANGLES
        self._unit = np.cos(turn), np.sin(turn)
        steps = np.arange(0, radius.max(), _STEP_MM)
        inside = self._at(fascia, np.broadcast_to(steps, (_ANGLES, len(steps)))) > 0.5
        outer = np.where(inside.any(axis=1), steps[inside.shape[1] - 1 - inside[:, ::-1].argmax(axis=1)], 0)
        self._outer = ndimage.median_filter(outer, 3, mode="wrap")
        self.depth = self._outer[self.angle] - radius
        height = self._centre[1] + self._unit[1] * self._outer / spacing[1]
        self.behind = np.zeros(_ANGLES, bool) if arch is None else height < arch

    def _at(self, image: np.ndarray, radius: np.ndarray) -> np.ndarray:
        index = [self._centre[n] + self._unit[n][:, None] * radius / self.spacing[n] for n in range(2)]
        return ndimage.map_coordinates(image.astype(np.float32), index, order=1, mode="nearest")

    def inwards(self, image: np.ndarray) -> np.ndarray:
        """An image along the rays, (angles, depths): from the fascia towards the middle."""
        depths = np.arange(0, BACK_MM + 10, _STEP_MM)
        return self._at(image, np.maximum(self._outer[:, None] - depths, 0))


def _seen_thickness(place: _Polar, bone: np.ndarray, hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth (angles,) in mm at which the wall ends in a rib, and at which it ends there, at the spine or before 4 mm of
    fat or air; nan where nothing ends it within what a wall, or the back, measures."""
    is_bone = place.inwards(bone) > 0.5
    smooth = place.inwards(ndimage.gaussian_filter(hu, 1.0 / place.spacing))
    not_muscle = ~is_bone & (smooth < MUSCLE_HU[0])
    at_rib, anywhere = np.full(_ANGLES, np.nan), np.full(_ANGLES, np.nan)
    run = round(4.0 / _STEP_MM)
    for angle, limit in enumerate(np.where(place.behind, BACK_MM, WALL_MM)):
        lean = np.convolve(~not_muscle[angle], np.ones(run))[run - 1 :]
        started = np.flatnonzero(lean == run)  # what is thinner is skin
        if not started.size:
            anywhere[angle] = 0.0
            continue
        solid = lean == 0
        ends = np.flatnonzero(solid & (np.arange(solid.size) > started[0]))
        end = ends[0] if ends.size else solid.size
        bones = np.flatnonzero(is_bone[angle, :end])
        if bones.size and bones[0] * _STEP_MM <= limit:
            first = bones[0]
            through = first + np.flatnonzero(np.append(~is_bone[angle, first:], True))[0]
            if (through - first) * _STEP_MM < 18:  # a rib: half of it, for what lies between ribs is thinner than they
                end = min(end, (first + through) // 2)
                at_rib[angle] = end * _STEP_MM
            else:
                end = min(end, first)
        if end * _STEP_MM <= limit:
            anywhere[angle] = end * _STEP_MM
    return at_rib, anywhere


def _regular(thickness: np.ndarray, at_rib: np.ndarray, behind: np.ndarray, spacing_mm: float) -> np.ndarray:
    """A wall that changes smoothly, ends where the ribs end and is alike left and right, (slices, angles) mm.

    A ray may exceed what is usual around it by a quarter, no more: where an organ lies against the wall, the ribs above
    and below and the other side tell. What no ray saw is what is usual.
    """
    usual = _median_around(thickness, spacing_mm, degrees=24)
    mirror = (_ANGLES // 2 - np.arange(_ANGLES)) % _ANGLES
    usual = np.where(behind, np.fmax(usual, usual[:, mirror]), np.fmin(usual, usual[:, mirror]))
    ribs = _median_around(at_rib, spacing_mm, degrees=8)
    usual = np.fmin(np.where(np.isfinite(usual), usual, WALL_MM / 2), ribs)
    # The back's own outline is steep: there the ribs alone say how far is too far.
    bound = 1.25 * np.where(behind, ribs, usual) + 2
    out = np.where(np.isfinite(thickness), np.fmin(thickness, bound), usual)
    # Beside the spine a ray that meets a process ends early and its neighbours do not, and others run along the front
    # of the muscle; what a ray too long holds besides is fat.
    back = ndimage.maximum_filter(ndimage.grey_closing(out, (1, 11), mode="wrap"), (1, 3), mode="wrap")
    return np.where(behind, back, out)


def _median_around(thickness: np.ndarray, spacing_mm: float, degrees: float) -> np.ndarray:
    """Median of what is known 24 mm up and down and some degrees around, (slices, angles); nan of less than 5 rays."""
    reach = max(1, round(24 / spacing_mm)), round(degrees * _ANGLES / 360)
    wrapped = np.pad(thickness, ((reach[0],) * 2, (0, 0)), constant_values=np.nan)
    wrapped = np.concatenate([wrapped[:, -reach[1] :], wrapped, wrapped[:, : reach[1]]], axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(wrapped, (2 * reach[0] + 1, 2 * reach[1] + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # windows that saw nothing
        median = np.nanmedian(windows, axis=(2, 3))
    return np.where(np.isfinite(windows).sum(axis=(2, 3)) >= 5, median, np.nan)


def _arch(spine: np.ndarray) -> float | None:
    """The second index of the canal, behind which a vertebra is arch and processes; None without one."""
    columns = np.flatnonzero(spine.any(axis=0))
    return None if not columns.size else float(columns[0] + 0.55 * (columns[-1] - columns[0]))


def _beside_spine(soft: np.ndarray, spine: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Between and behind the processes of a vertebra nothing but muscle; psoas and quadratus beside it: soft tissue
    that touches it, not in front of it, within 50 mm."""
    arch = _arch(spine)
    if arch is None:
        return np.zeros_like(soft)
    rows, columns = np.nonzero(spine)
    index = np.indices(soft.shape)
    sideways = np.abs(index[0] - rows.mean()) * spacing[0]
    behind = soft & (index[1] < arch) & (sideways < 40)
    beside = soft & (index[1] >= arch) & (index[1] < columns.max()) & (sideways < 50)
    labels, _ = ndimage.label(_opened(beside, max(3.0, spacing[:2].max()), spacing))
    touching = np.unique(labels[_grown(spine, 5.0, spacing)])
    return behind | np.isin(labels, touching[touching > 0])


def _spine(bone: np.ndarray, fascia: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Vertebrae, discs and the canal, (I, J, K) bool; empty where there is no bone near the middle of the back.

    The spongy core of a vertebra can be as soft as muscle, but its end plates are dense: the bone of 2 cm up and down,
    seen together, is the whole cross-section of the column. The processes are taken from the slice itself.
    """
    seen = np.zeros_like(bone)
    reach = max(1, round(20 / spacing[2]))
    for k in range(bone.shape[2]):
        together = bone[:, :, max(0, k - reach) : k + reach + 1].any(axis=2)
        column = ndimage.binary_fill_holes(_closed(together, 4.0, spacing))
        core = _largest_near_the_middle(_opened(column, 13.0, spacing), fascia[:, :, k], spacing)
        if core is not None:
            # What is dense in front of a vertebra is the aorta.
            behind = np.arange(core.shape[1]) <= np.flatnonzero(core.any(axis=0))[-1]
            here = bone[:, :, k] & behind
            labels, _ = ndimage.label(_closed(here | core, 3.0, spacing), np.ones((3, 3)))
            touching = np.unique(labels[core])
            seen[:, :, k] = (np.isin(labels, touching[touching > 0]) & here) | core
    return seen


def _largest_near_the_middle(pieces: np.ndarray, fascia: np.ndarray, spacing: np.ndarray) -> np.ndarray | None:
    """The largest piece within 4 cm of the middle, in the hinder two thirds of the trunk."""
    labels, count = ndimage.label(pieces)
    if not count or not fascia.any():
        return None
    rows, columns = np.nonzero(fascia)
    middle, low, high = (rows.min() + rows.max()) / 2, columns.min(), columns.max()
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:] * spacing[0] * spacing[1]
    centres = np.array(ndimage.center_of_mass(pieces, labels, np.arange(1, count + 1)))
    fits = (np.abs(centres[:, 0] - middle) * spacing[0] < 40) & (centres[:, 1] < low + 0.67 * (high - low))
    return labels == 1 + np.argmax(np.where(fits, sizes, 0)) if np.any(fits & (sizes > 300)) else None
