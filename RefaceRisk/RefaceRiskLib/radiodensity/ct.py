"""Radiodensity of labelled muscles in a CT: how dense, how large, how much of it is infiltrated by fat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from ..errors import RefaceRiskError
from ..volumes import Volume, reorient, resample

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
