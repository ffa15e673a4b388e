"""How far the faces of other images of a head lie from the original's: the number that tells the risk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage as ndi

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.progress import report
from RefaceRiskLib.surface.distance import SurfaceDistance, distances
from RefaceRiskLib.surface.extract import Surface, extract_skin, skin_level

COLUMNS = ("image", "region", "mean_mm", "median_mm", "p95_mm", "max_mm", "symmetric_mean_mm")


@dataclass(frozen=True, eq=False)
class Measurement(Mapping):
    """Distances by image and region: `measurement["refaced"]["face"]` is a SurfaceDistance.

    `original` and `surfaces` (by image) are the skins that were compared, `level` the physical intensity at
    which all of them were cut, `regions` the bool masks over the original's vertices by region.
    """

    distances: dict[str, dict[str, SurfaceDistance | None]]
    original: Surface
    surfaces: dict[str, Surface]
    level: float
    regions: dict[str, np.ndarray]

    def __getitem__(self, image: str) -> dict[str, SurfaceDistance | None]:
        return self.distances[image]

    def __iter__(self) -> Iterator[str]:
        return iter(self.distances)

    def __len__(self) -> int:
        return len(self.distances)

    def rows(self) -> list[dict]:
        """One dict an image and region, with the keys COLUMNS, distances in mm."""
        return [
            {
                "image": image,
                "region": region,
                "mean_mm": found.mean,
                "median_mm": found.median,
                "p95_mm": found.p95,
                "max_mm": found.max,
                "symmetric_mean_mm": found.symmetric_mean,
            }
            for image, by_region in self.distances.items()
            for region, found in by_region.items()
            if found is not None
        ]

    def save_tsv(self, path: str | os.PathLike) -> Path:
        """The rows as a tab-separated table, written whole or not at all."""
        path = Path(path)
        lines = ["\t".join(COLUMNS)]
        for row in self.rows():
            lines.append("\t".join(v if isinstance(v, str) else f"{v:.4f}" for v in row.values()))
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write("\n".join(lines) + "\n")
        os.replace(temporary, path)
        return path


def measure(original, others, template=None, registration=None, removed=None, on_progress=None) -> Measurement:
    """Exact distances (mm) from the skin of the Volume `original` to the skins of `others` (name to Volume).

    The level of the skin is found on the original and used for all. Region `face` is the anterior half-head of
    the template, carried by the registration (template to original; searched for when not given). Region
    `removed`, where the bool array `removed` on the original's grid is given, are the vertices within one voxel
    of it (None where the mask holds no skin). The other images may lie on other grids, as long as they share
    the original's RAS space.

    Raises RefaceRiskError when an image shows no head or a region holds no skin, Cancelled when asked to stop.
    """
    report(on_progress, "distances", 0, len(others), "skin of the original")
    level = skin_level(original)
    skin = extract_skin(original, level)
    regions = {"face": face_region(skin, *_placed(original, template, registration))}
    if removed is not None:
        near_hole = removed_region(skin, original, removed)
        if near_hole.any():
            regions["removed"] = near_hole
    surfaces, found = {}, {}
    for done, (name, other) in enumerate(others.items()):
        report(on_progress, "distances", done, len(others), name)
        surfaces[name] = extract_skin(other, level)
        found[name] = dict.fromkeys(("face", "removed")) | distances(skin, surfaces[name], regions)
    report(on_progress, "distances", len(others), len(others))
    return Measurement(found, skin, surfaces, level, regions)


def face_region(surface: Surface, template, registration) -> np.ndarray:
    """(N,) bool: vertices that the registration carries into the template's anterior half-head."""
    to_voxels = np.linalg.inv(template.affine) @ np.linalg.inv(registration.matrix)
    index = np.round(surface.points @ to_voxels[:3, :3].T + to_voxels[:3, 3]).astype(int)
    return _looked_up(np.asarray(template.surface_region, bool), index)


def removed_region(surface: Surface, head, removed: np.ndarray) -> np.ndarray:
    """(N,) bool: vertices at most one voxel from the removed mask on the head's grid."""
    removed = np.asarray(removed, bool)
    if removed.shape != tuple(head.shape):
        raise RefaceRiskError(f"the removed mask is {removed.shape}, the head {tuple(head.shape)}",
                              "give the mask on the original's grid")  # fmt: skip
    to_voxels = np.linalg.inv(head.affine)
    index = np.round(surface.points @ to_voxels[:3, :3].T + to_voxels[:3, 3]).astype(int)
    reach = ndi.binary_dilation(np.pad(removed, 1), np.ones((3, 3, 3), bool))
    return _looked_up(reach, index + 1)


def _placed(original, template, registration):
    if template is None:
        from RefaceRiskLib.template import load_template

        template = load_template()
    if registration is None:
        from RefaceRiskLib.registration import register

        registration = register(original, template)
    return template, registration


def _looked_up(mask: np.ndarray, index: np.ndarray) -> np.ndarray:
    inside = ((index >= 0) & (index < mask.shape)).all(axis=1)
    answer = np.zeros(len(index), bool)
    answer[inside] = mask[tuple(index[inside].T)]
    return answer
