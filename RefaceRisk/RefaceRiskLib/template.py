"""The average head: image, brain, eyes, skin distance, and the regions that defacers and measurements use.

Built from a cohort by groupwise registration (``python -m RefaceRiskLib.template build --help``) and shipped under
``Resources/Template``. Template space is RAS mm, left-right symmetric, 2 mm isotropic.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from .geometry import distance_to
from .resources import template_file

# Bits of regions.nii.gz.
REGIONS = {
    "brain": 1,
    "eyes": 2,
    "bone": 4,
    "surface": 8,
    "face": 16,
    "ears": 32,
    "core": 64,
    "removable": 128,
}


@dataclass(frozen=True)
class Grid:
    """A regular grid in template space: ``shape`` (X, Y, Z), ``affine`` (4, 4) to RAS mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> float:
        return float(self.affine[0, 0])


@dataclass(frozen=True, eq=False)
class Template:
    """An average head on a grid of shape (X, Y, Z).

    image : float32, bright soft tissue near 1, air 0.
    skin_distance : float32, mm to the average skin, negative inside.
    regions : uint8, bits as in :data:`REGIONS`.
    affine : (4, 4) voxel index to template RAS mm.
    landmarks : name to (3,) template RAS mm (nasion, nose_tip, chin, ear_left, ear_right).
    """

    image: np.ndarray
    skin_distance: np.ndarray
    regions: np.ndarray
    affine: np.ndarray
    landmarks: dict[str, np.ndarray]

    def region(self, name: str) -> np.ndarray:
        """A region as bool (X, Y, Z)."""
        return (self.regions & REGIONS[name]) > 0

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image.shape

    @property
    def spacing(self) -> float:
        return float(self.affine[0, 0])

    @cached_property
    def brain(self) -> np.ndarray:
        return self.region("brain")

    @cached_property
    def head(self) -> np.ndarray:
        return self.skin_distance < 0

    @cached_property
    def core(self) -> np.ndarray:
        """Cranium and skull base, which no defacer removes: where registration looks."""
        return self.region("core")

    @cached_property
    def core_dilated(self) -> np.ndarray:
        return ndimage.binary_dilation(self.core, iterations=3)

    @cached_property
    def head_dilated(self) -> np.ndarray:
        return (self.skin_distance < 6).astype(np.float32)

    @cached_property
    def beside_face(self) -> np.ndarray:
        """float32 weight: 1 in and around the head, fading to 0 where any defacer may cut. What a deformation may see
        if a whole head and all its defaced copies are to be deformed alike."""
        cut = ndimage.binary_dilation(self.region("removable") | self.face_mask | self.ears, iterations=3)
        return ndimage.gaussian_filter(np.where(cut, 0, self.head_dilated), 1.0) * ~cut

    @cached_property
    def tissue(self) -> np.ndarray:
        """float32 intensities continued outwards beyond the skin, for faces that are larger than the average."""
        rind = self.skin_distance > -3
        nearest = ndimage.distance_transform_edt(rind, return_distances=False, return_indices=True)
        return np.where(rind, np.maximum(self.image[tuple(nearest)], 0.3), self.image).astype(np.float32)

    @cached_property
    def brain_distance(self) -> np.ndarray:
        """float32 mm to the brain, negative inside."""
        return distance_map(self.brain, self.spacing)

    @cached_property
    def face_mask(self) -> np.ndarray:
        """What a face-mask defacer removes (eyes' surface, nose, mouth, chin, and the air before them)."""
        return self.region("face")

    @cached_property
    def ears(self) -> np.ndarray:
        return self.region("ears")

    @cached_property
    def surface_region(self) -> np.ndarray:
        """Anterior half-head, crown to chin, in front of the ears: where face surfaces are compared."""
        return self.region("surface")

    @cached_property
    def points(self) -> np.ndarray:
        """Template RAS mm of every voxel, (X, Y, Z, 3) float32, read-only."""
        points = grid_mm(self.shape, self.affine)
        points.flags.writeable = False
        return points


def grid_mm(shape, affine) -> np.ndarray:
    """RAS mm of the voxels of an axis-aligned grid, (X, Y, Z, 3) float32."""
    axes = [affine[k, k] * np.arange(shape[k], dtype=np.float32) + affine[k, 3] for k in range(3)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)


def distance_map(mask: np.ndarray, spacing: float) -> np.ndarray:
    """Signed Euclidean distance in mm to the boundary of a bool mask, negative inside."""
    return distance_to(mask, spacing) - distance_to(~mask, spacing)


@lru_cache(maxsize=2)
def load_template(name: str = "average_head_2mm") -> Template:
    """The shipped template. Raises RefaceRiskError when its files are not installed."""
    image = sitk.ReadImage(str(template_file(f"{name}_T1w.nii.gz")))
    # ITK's LPS to RAS; the template's axes are aligned with RAS, so that this is exact.
    affine = np.diag([*image.GetSpacing(), 1.0])
    affine[:3, 3] = np.array(image.GetOrigin()) * [-1, -1, 1]
    header = json.loads(template_file(f"{name}.json").read_text("utf-8"))

    def read(suffix: str) -> np.ndarray:
        return sitk.GetArrayFromImage(sitk.ReadImage(str(template_file(f"{name}_{suffix}.nii.gz")))).T

    return Template(
        image=read("T1w").astype(np.float32) / header["image_scale"],
        skin_distance=read("skin_distance").astype(np.float32) / header["distance_scale"],
        regions=np.ascontiguousarray(read("regions").astype(np.uint8)),
        affine=affine,
        landmarks={name: np.array(point) for name, point in header["landmarks"].items()},
    )


if __name__ == "__main__":
    from RefaceRiskLib.template_build import main

    raise SystemExit(main())
