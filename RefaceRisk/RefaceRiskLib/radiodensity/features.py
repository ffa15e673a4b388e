"""What a head says about its body, in numbers that need no training: shape, soft tissue and fat over the whole skin.

Along the normals of the average skin, an image in template space is read from 24 mm outside to 30 mm inside. That gives
where its own skin lies, how thick the soft tissue above the bone and how thick the fat in it is; means over patches of
about 10 and 25 mm, left and right together, and block means of the intensities at 12 and 24 mm are the features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from ..template import Template, load_template

# In units of the brain's median, of a T1w image: muscle lies near 0.6, fat from 0.9 (3 T, short echo) to 2, bone and
# air near 0.1.
FAT, TISSUE, BONE = 0.8, 0.3, 0.35
OUTSIDE_MM, INSIDE_MM, STEP_MM = 24.0, 30.0, 1.5
PATCH_MM, BLOCK_MM = (10.0, 25.0), (12.0, 24.0)
MAPS = ("skin", "tissue", "fat")


@dataclass(frozen=True, eq=False)
class _Layout:
    """Where features are read. `skin` (3, N, S): voxel indices along N normals; `patches`: for each scale the patch of
    each normal; `cells`: for each scale the block of each voxel of `inside` (indices into the raveled template)."""

    skin: np.ndarray
    normals: np.ndarray
    patches: list[np.ndarray]
    inside: np.ndarray
    cells: list[np.ndarray]


@lru_cache(maxsize=1)
def _layout() -> _Layout:
    template = load_template()
    gradient = np.stack(np.gradient(template.skin_distance), axis=-1)
    shell = np.argwhere((np.abs(template.skin_distance) < template.spacing / 2) & _above_cut(template))
    normals = gradient[tuple(shell.T)]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    depths = np.arange(-INSIDE_MM, OUTSIDE_MM + STEP_MM / 2, STEP_MM) / template.spacing
    along = shell[:, :, None] + normals[:, :, None] * depths
    place = template.points.copy()
    place[..., 0] = np.abs(place[..., 0])  # left and right together
    at_skin = place[tuple(shell.T)]
    inside = np.flatnonzero((template.skin_distance < 6).ravel())
    here = place.reshape(-1, 3)[inside]
    return _Layout(
        np.moveaxis(along, 1, 0),
        normals,
        [_numbered(at_skin, size) for size in PATCH_MM],
        inside,
        [_numbered(here, size) for size in BLOCK_MM],
    )


def _above_cut(template: Template) -> np.ndarray:
    """Without the lowest 2 cm of the average head, where its own field of view ends."""
    low = np.flatnonzero((template.skin_distance < 0).any(axis=(0, 1)))[0]
    return np.arange(template.shape[2])[None, None] > low + round(20 / template.spacing)


def _numbered(points: np.ndarray, size: float) -> np.ndarray:
    """The cell of a cubic lattice that each point lies in, as consecutive numbers."""
    return np.unique(np.floor(points / size).astype(int), axis=0, return_inverse=True)[1].ravel()


def blocks() -> dict[str, slice]:
    """Name -> columns of the features that belong together (one map at one scale)."""
    layout = _layout()
    sizes = {f"{name} {size:g} mm": int(cells.max()) + 1
             for size, cells in zip(PATCH_MM, layout.patches, strict=True) for name in MAPS}  # fmt: skip
    sizes |= {f"intensity {size:g} mm": int(cells.max()) + 1
              for size, cells in zip(BLOCK_MM, layout.cells, strict=True)}  # fmt: skip
    sizes["head size"] = 3
    ends = np.cumsum(list(sizes.values()))
    return {name: slice(int(end) - n, int(end)) for (name, n), end in zip(sizes.items(), ends, strict=True)}


def features(image: np.ndarray, mm_per_template_mm: np.ndarray) -> np.ndarray:
    """Features (P,) float32 of an image in template space (X, Y, Z), brain's median = 1; lengths in mm of the head.

    What a defacer removed, and what the field of view cuts, has no tissue and no fat and its skin lies deepest.
    """
    layout = _layout()
    size = np.asarray(mm_per_template_mm, float)
    stretch = np.linalg.norm(layout.normals * size, axis=1)
    image = np.asarray(image, np.float32)
    maps = _along_normals(image, layout)
    parts = [_means(maps[name] * stretch, cells) for cells in layout.patches for name in MAPS]
    values = image.ravel()[layout.inside]
    parts += [_means(values, cells) for cells in layout.cells]
    return np.concatenate([*parts, np.log(size)]).astype(np.float32)


def _along_normals(image: np.ndarray, layout: _Layout) -> dict[str, np.ndarray]:
    """For each normal, in template mm: the skin (positive outside the average), thickness of soft tissue and of fat."""
    depth_first = layout.skin[:, :, ::-1]  # from outside to inside
    profile = ndimage.map_coordinates(image, depth_first, order=1)
    solid = ndimage.uniform_filter1d(profile, 3, axis=1) > TISSUE
    has_skin = solid.any(axis=1)
    first = np.where(has_skin, solid.argmax(axis=1), profile.shape[1] - 1)
    below = np.arange(profile.shape[1]) >= first[:, None]
    # Soft tissue ends where bone or an air space begins: at the first dark sample 3 mm or more below the skin.
    dark = (profile < BONE) & (np.arange(profile.shape[1]) >= first[:, None] + 2)
    end = np.where(dark.any(axis=1), dark.argmax(axis=1), profile.shape[1])
    soft = below & (np.arange(profile.shape[1]) < end[:, None])
    return {
        "skin": OUTSIDE_MM - STEP_MM * first,
        "tissue": STEP_MM * soft.sum(axis=1) * has_skin,
        "fat": STEP_MM * (soft & (profile > FAT)).sum(axis=1) * has_skin,
    }


def _means(values: np.ndarray, cells: np.ndarray) -> np.ndarray:
    return np.bincount(cells, values) / np.bincount(cells)
