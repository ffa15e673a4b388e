"""Radiodensity of muscles in a CT: how dense, how large, how much of it is infiltrated by fat.

A CT is taken only if its numbers are Hounsfield units; the muscles come from a label map, or from `segmentation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import RefaceRiskError
from ..volumes import Volume, load, reorient, resample

MUSCLE_HU = (-29.0, 150.0)  # skeletal muscle, without the fat between its bundles
LOW_HU = (-29.0, 29.0)  # low attenuation: muscle infiltrated by fat
SLAB_MM = 10.0


@dataclass(frozen=True)
class Radiodensity:
    """One label. HU figures run over all of its voxels; `low_attenuation_share` is the share of the voxels
    between -29 and 150 HU that lie at or below 29 HU (nan where there are none); `area_mm2` is the mean axial
    area in the middle 10 mm of the label's extent."""

    label: int
    site: str
    mean_hu: float
    median_hu: float
    sd_hu: float
    area_mm2: float
    low_attenuation_share: float
    voxels: int

    def as_dict(self) -> dict:
        return asdict(self)


# --- is it a CT in Hounsfield units ---------------------------------------------------------------------------------


def load_ct(path: str | Path) -> Volume:
    """Read a CT: a folder of DICOM slices (rescaled as they say; missing slices are refused) or a file in HU.

    Raises RefaceRiskError for what `volumes.load` refuses, and for numbers that are not Hounsfield units, with the
    reason: a windowed picture, an intercept that is missing, another scale.
    """
    ct = load(path)
    check_hounsfield(ct)
    return ct


def check_hounsfield(ct: Volume) -> None:
    """Raise RefaceRiskError unless air lies near -1000 and soft tissue near 0."""
    values = ct.intensities.ravel()[:: max(1, ct.intensities.size // 500_000)]
    low, high = float(values.min()), float(values.max())
    hint = "load the DICOM series, or convert it again with its rescale slope and intercept"

    def refuse(what: str) -> None:
        raise RefaceRiskError(f"{what}, so it is not in Hounsfield units", hint, ct.meta.path)

    if low >= 0 and high <= 255:
        refuse(f"the values run from {low:g} to {high:g}: a picture of 8 bits")
    if np.mean((values > -1100) & (values < -850)) > 0.005 or low < -1100:
        if np.mean((values > -200) & (values < 200)) < 0.02:
            refuse("there is air at -1000 and no soft tissue near 0: another scale")
        return
    # Air stands far below everything else, wherever an offset has put it.
    air = float(np.percentile(values, 5))
    if np.mean((values > air + 150) & (values < air + 800)) < 0.1 and np.mean(values >= air + 800) > 0.05:
        refuse(f"air lies near {air:.0f} instead of -1000: the intercept is missing or wrong")
    if np.mean(values == low) > 0.05 and low > -850:
        share = np.mean(values == low)
        if low >= 0 or high - low > 1500:
            refuse(f"{share:.0%} of the voxels are {low:g} where air is -1000: the intercept is missing or wrong")
        refuse(f"{share:.0%} of the voxels are cut off at {low:g}: a window")
    fat_and_muscle = np.mean((values > -150) & (values < 100))
    if low > MUSCLE_HU[0] or fat_and_muscle < 0.2:
        refuse("the CT has neither air nor fat where they belong")


def gantry_tilt(ct: Volume) -> float:
    """Degrees between the slices' normal and the direction in which they are stacked; 0 for an upright gantry.

    The slices of a tilted gantry are true images; only their stack is sheared, which the affine tells. An area is that
    in the tilted plane.
    """
    axes = ct.affine[:3, :3] / np.linalg.norm(ct.affine[:3, :3], axis=0)
    stacked = int(np.argmax(np.abs(axes[2])))
    plane = [axis for axis in range(3) if axis != stacked]
    normal = np.cross(axes[:, plane[0]], axes[:, plane[1]])
    cosine = abs(normal @ axes[:, stacked]) / np.linalg.norm(normal)
    return float(np.degrees(np.arccos(min(1.0, cosine))))


# --- the level ------------------------------------------------------------------------------------------------------


def slice_axis(ct: Volume) -> int:
    """The axis along which axial slices are stacked, the one nearest to the body's."""
    return int(np.argmax(np.abs(ct.affine[2, :3] / ct.spacing)))


def choose_level(ct: Volume, slice_number: int | None = None, roi: Volume | None = None) -> int:
    """The axial slice to measure, as an index along `slice_axis`: the one named (counted from 0, as viewers do), the
    middle of what `roi` marks (any grid, non-zero), or the middle of the stack.

    Raises RefaceRiskError for a slice that is not there and a region that lies elsewhere.
    """
    axis = slice_axis(ct)
    if slice_number is not None:
        if not 0 <= slice_number < ct.shape[axis]:
            raise RefaceRiskError(f"there is no slice {slice_number}", f"0 to {ct.shape[axis] - 1}", ct.meta.path)
        return int(slice_number)
    if roi is None:
        return ct.shape[axis] // 2
    marked = np.flatnonzero(_on_grid(roi, ct).any(axis=tuple(n for n in range(3) if n != axis)))
    if not marked.size:
        raise RefaceRiskError("marks nothing within the CT", "draw the region on this CT", roi.meta.path)
    return int(marked[len(marked) // 2])


def slab(ct: Volume, level: int, mm: float) -> tuple[Volume, slice]:
    """The slices within `mm` / 2 of a level (that one at least), and where they lie along `slice_axis`."""
    axis = slice_axis(ct)
    reach = int(mm / 2 / ct.spacing[axis] + 1e-6)
    part = slice(max(0, level - reach), min(ct.shape[axis], level + reach + 1))
    affine = ct.affine.copy()
    affine[:3, 3] += part.start * affine[:3, axis]
    return replace(ct, voxels=ct.voxels[(slice(None),) * axis + (part,)], affine=affine), part


CONTEXT_MM = 40.0  # what is looked at above and below a level to know wall and spine


def measure_site(
    ct: Volume, site: str, slice_number: int | None = None, roi: Volume | None = None, slab_mm: float = 0.0
):
    """Segment the muscle of a site without a network and measure it at one level.

    slab_mm : measured thickness around the level; 0 is one slice, as in the study. Returns the list of Radiodensity
    (the whole, and its left and right half), the Segmentation of the surroundings, the volume that it lies on, and
    the measured slices of it. Raises RefaceRiskError as `check_hounsfield`, `choose_level` and `segment` do.
    """
    from .segmentation import segment

    check_hounsfield(ct)
    level = choose_level(ct, slice_number, roi)
    around, _ = slab(ct, level, max(CONTEXT_MM, slab_mm))
    found = segment(around, site)
    axis = slice_axis(ct)
    offset = slab(ct, level, max(CONTEXT_MM, slab_mm))[1].start
    here = slab(ct, level, slab_mm)[1]
    chosen = np.zeros(around.shape[axis], bool)
    chosen[here.start - offset : here.stop - offset] = True
    chosen = chosen.reshape([-1 if n == axis else 1 for n in range(3)])
    upright = reorient(around, "RAS")
    marked = _on_grid(around.with_intensities(np.broadcast_to(chosen, around.shape), np.uint8), upright) > 0
    hu = upright.intensities[:, :, marked.any(axis=(0, 1))]
    rows = []
    for number, (name, mask) in enumerate(
        ((site, found.muscle), (f"{site} left", found.left), (f"{site} right", found.right)), start=1
    ):
        there = _on_grid(around.with_intensities(mask, np.uint8), upright)[:, :, marked.any(axis=(0, 1))] > 0
        if there.any():
            area = float(there.sum() / there.shape[2] * upright.spacing[0] * upright.spacing[1])
            rows.append(replace(_of_label(number, name, there, hu, upright.spacing), area_mm2=area))
        elif number == 1:
            raise RefaceRiskError(f"no muscle found as in {site} at this level", "check the site, or choose a slice")
    return rows, found, around, chosen


def measure_muscles(
    ct: Volume, labels: Volume, wanted: Iterable[int] | None = None, names: Mapping[int, str] | None = None
) -> list[Radiodensity]:
    """Radiodensity of each wanted label (default: every label present), in ascending order of the label.

    `labels` may lie on another grid than `ct` (nearest neighbour carries them over). `names` gives the sites.

    Raises RefaceRiskError when the CT is not in Hounsfield units, when a wanted label is absent, or when
    nothing is labelled.
    """
    hu = ct.intensities
    if not np.any(hu < MUSCLE_HU[0]):
        raise RefaceRiskError(
            "the CT has neither air nor fat, so it is not in Hounsfield units",
            "load the DICOM series or a file with its rescale intercept",
            ct.meta.path,
        )
    upright_ct = reorient(ct, "RAS")
    found = _on_grid(labels, upright_ct)
    present = set(np.unique(found).tolist()) - {0}
    chosen = sorted(present if wanted is None else set(wanted))
    absent = [label for label in chosen if label not in present]
    if not present:
        raise RefaceRiskError("nothing is labelled", "the labels overlap the CT nowhere", labels.meta.path)
    if absent:
        what = f"label {', '.join(map(str, absent))} does not occur"
        raise RefaceRiskError(what, f"there are {', '.join(map(str, sorted(present)))}", labels.meta.path)
    upright_hu, spacing = upright_ct.intensities, upright_ct.spacing
    return [_of_label(label, (names or {}).get(label, ""), found == label, upright_hu, spacing) for label in chosen]


def _of_label(label: int, site: str, muscle: np.ndarray, hu: np.ndarray, spacing: np.ndarray) -> Radiodensity:
    values = hu[muscle].astype(np.float64)
    lean = values[(values >= MUSCLE_HU[0]) & (values <= MUSCLE_HU[1])]
    return Radiodensity(
        label=int(label),
        site=site,
        mean_hu=float(values.mean()),
        median_hu=float(np.median(values)),
        sd_hu=float(values.std()),
        area_mm2=_middle_area(muscle, spacing),
        low_attenuation_share=float((lean <= LOW_HU[1]).mean()) if lean.size else float("nan"),
        voxels=int(values.size),
    )


def _middle_area(muscle: np.ndarray, spacing: np.ndarray) -> float:
    """Mean area (mm2) of the axial sections in the middle SLAB_MM of the extent; of one section at least."""
    counts = muscle.sum(axis=(0, 1))
    occupied = np.flatnonzero(counts)
    middle = (occupied[0] + occupied[-1]) / 2
    sections = np.flatnonzero(np.abs(np.arange(len(counts)) - middle) <= max(0.5, SLAB_MM / spacing[2] / 2))
    return float(counts[sections].mean() * spacing[0] * spacing[1])


def _on_grid(labels: Volume, ct: Volume) -> np.ndarray:
    whole = np.rint(labels.intensities).astype(np.int32)
    return resample(whole, labels.affine, ct.shape, ct.affine, order=0, dtype=np.int32)
