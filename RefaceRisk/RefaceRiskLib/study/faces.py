"""The face surfaces of one subject: measured against the original, and put down for the linkage.

For the linkage every face is brought to one place, the template's, by the rigid part of its own registration: sizes
stay true. A gallery face is a field of signed distances, a probe a few thousand points spread evenly over its skin.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..surface.distance import distances
from ..surface.extract import Surface, extract_skin, signed_distance_grid, skin_level
from ..surface.measure import face_region, removed_region
from ..volumes import Volume, resample, written_beside

FIELD_MM, LIMIT_MM = 3.0, 20.0
POINTS = 1000
REGIONS = ("face", "removed")


class Faces:
    """The true face of a prepared head, to which others are held."""

    def __init__(self, prepared):
        self.head, self.template, self.registration = prepared.volume, prepared.template, prepared.registration
        self.level = skin_level(self.head)
        self.skin = extract_skin(self.head, self.level)
        self.region = face_region(self.skin, self.template, self.registration)

    def measured(self, images: Mapping[str, Volume], removed: np.ndarray) -> tuple[list[dict], dict[str, Surface]]:
        """Rows (image, region, distances in mm) and the skins, by image; as `surface.measure.measure` has them."""
        regions = {"face": self.region, "removed": removed_region(self.skin, self.head, removed)}
        regions = {name: region for name, region in regions.items() if name == "face" or region.any()}
        rows, skins = [], {}
        for image, volume in images.items():
            skins[image] = extract_skin(volume, self.level)
            for region, found in distances(self.skin, skins[image], regions).items():
                rows.append(
                    {
                        "image": image,
                        "region": region,
                        "mean_mm": found.mean,
                        "median_mm": found.median,
                        "p95_mm": found.p95,
                        "symmetric_mean_mm": found.symmetric_mean,
                    }
                )
        return rows, skins

    def save_original(self, folder: Path) -> list[Path]:
        """The gallery's field of distances, and the probe `original`: the same face, meshed anew on another grid."""
        pose = rigid_pose(self.registration.matrix, self.template)
        shape, affine = field_grid(self.template)
        field = signed_distance_grid(self.skin.transformed(pose), shape, affine, LIMIT_MM).astype(np.float16)
        remeshed = extract_skin(on_another_grid(self.head), self.level)
        return [
            _saved(folder / "gallery.npy", field),
            self.save_probe(folder / "original.npy", remeshed, None, self.registration),
        ]

    def save_probe(self, path: Path, skin: Surface, removed: np.ndarray | None, registration) -> Path:
        """(2, POINTS, 3) float32: points of a processed face in each of REGIONS, in the template's place as its own
        registration sees it; NaN for a region that holds no skin, and for `removed` where nothing was."""
        pose = rigid_pose(registration.matrix, self.template)
        region = face_region(skin, self.template, registration)
        regions = {"face": region}
        if removed is not None:
            regions["removed"] = region & within(skin, self.head, removed)
        points = np.full((len(REGIONS), POINTS, 3), np.nan)
        for number, name in enumerate(REGIONS):
            if name in regions and len(found := spread(skin, regions[name])):
                points[number] = found @ pose[:3, :3].T + pose[:3, 3]
        return _saved(path, points.astype(np.float32))


def rigid_pose(matrix: np.ndarray, template) -> np.ndarray:
    """(4, 4) rigid transform from head RAS mm to the template's place; `matrix` (4, 4): template to head.

    The rotation nearest to the affine (polar decomposition), about the middle of the face, which it leaves in place.
    """
    left, _, right = np.linalg.svd(matrix[:3, :3])
    turn = left @ np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))]) @ right
    middle = np.mean([template.landmarks[name] for name in ("nasion", "chin", "ear_left", "ear_right")], axis=0)
    there = matrix[:3, :3] @ middle + matrix[:3, 3]
    pose = np.eye(4)
    pose[:3, :3] = turn.T
    pose[:3, 3] = middle - turn.T @ there
    return pose


def field_grid(template) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of the gallery's field: the face region of the template and 24 mm round it."""
    index = np.argwhere(template.surface_region)
    low = template.affine[:3, :3] @ index.min(0) + template.affine[:3, 3] - 24
    high = template.affine[:3, :3] @ index.max(0) + template.affine[:3, 3] + 24
    affine = np.diag([FIELD_MM] * 3 + [1.0])
    affine[:3, 3] = low
    return tuple(int(n) for n in np.ceil((high - low) / FIELD_MM) + 1), affine


def on_another_grid(head: Volume, share: float = 0.37) -> Volume:
    """The same head on a grid moved by a share of a voxel along each axis: none of its vertices stays."""
    affine = np.array(head.affine)
    affine[:3, 3] += affine[:3, :3] @ np.full(3, share)
    moved = resample(head.intensities, head.affine, head.shape, affine, order=3)
    return Volume(moved.astype(np.float32), affine)


def within(skin: Surface, head: Volume, mask: np.ndarray) -> np.ndarray:
    """(N,) bool: vertices whose nearest voxel of the head's grid lies in the mask."""
    to_voxels = np.linalg.inv(head.affine)
    index = np.round(skin.points @ to_voxels[:3, :3].T + to_voxels[:3, 3]).astype(int)
    inside = ((index >= 0) & (index < mask.shape)).all(axis=1)
    answer = np.zeros(len(index), bool)
    answer[inside] = mask[tuple(index[inside].T)]
    return answer


def spread(skin: Surface, region: np.ndarray, count: int = POINTS) -> np.ndarray:
    """(count, 3) points of the triangles that lie in the region (N,) bool, evenly by area; fewer only if it is empty.

    Systematic sampling along the list of triangles: the same surface gives the same points.
    """
    triangles = skin.triangles[region[skin.triangles].all(axis=1)]
    corners = skin.points[triangles]
    area = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    if not area.sum() > 0:
        return np.zeros((0, 3))
    rng = np.random.default_rng(0)
    up_to = np.cumsum(area)
    chosen = corners[np.minimum(np.searchsorted(up_to, (np.arange(count) + 0.5) / count * up_to[-1]), len(area) - 1)]
    a, b = rng.random((2, count))
    a, b = np.where(a + b > 1, 1 - a, a), np.where(a + b > 1, 1 - b, b)
    return chosen[:, 0] + a[:, None] * (chosen[:, 1] - chosen[:, 0]) + b[:, None] * (chosen[:, 2] - chosen[:, 0])


def _saved(path: Path, array: np.ndarray) -> Path:
    with written_beside(path, ".npy", make_folder=True) as temporary:
        np.save(temporary, array)
    return path
