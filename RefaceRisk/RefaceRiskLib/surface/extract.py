"""The outer skin of a head as a triangle surface, cut from the greyscale with sub-voxel precision.

A surface taken from a binary mask is wrong by up to half a voxel everywhere (two spheres 2.5 mm apart measure
2.37 mm); the isosurface of the greyscale measures 2.50 mm. So the voxels keep their own numbers wherever these
define the skin, and only the air that lies *inside* the head is filled before the isosurface is cut.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.ndimage as ndi
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.geometry import distance_to, gaussian
from RefaceRiskLib.hounsfield import SKIN_HU, is_hounsfield

# Partial volume gives an edge as narrow as a voxel, and linear interpolation across it leaves terraces. Smoothed by
# this many voxels, two spheres 2.5 mm apart measure 2.493 instead of 2.481 mm, their roughness halves.
ANTIALIAS_VOXELS = 0.7
SKIN_SHARE = 0.3  # skin is thin and darker than the fat and brain that set the tissue's median
# Passages narrower than twice the radius are closed with a lid this deep below the closed hull, so that creases
# and the rims of the nostrils stay as scanned: (radius, lid) in mm for nostrils, lips and ear canals, for the
# signal voids that dental metal tears into mouth and cheeks, and for a mouth that is torn open from side to side.
CLOSINGS_MM = ((5.0, 3.0), (14.0, 6.0), (24.0, 12.0))
WORKING_MM = 2.0  # grid on which the closing is computed: its lids lie inside the head, where this is enough


@dataclass(frozen=True, eq=False)
class Surface:
    """Closed triangle surface: `points` (N, 3) RAS mm float64, `triangles` (M, 3) int64, outward-oriented."""

    points: np.ndarray
    triangles: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", np.ascontiguousarray(self.points, np.float64).reshape(-1, 3))
        object.__setattr__(self, "triangles", np.ascontiguousarray(self.triangles, np.int64).reshape(-1, 3))

    @cached_property
    def area_normals(self) -> np.ndarray:
        """(M, 3) triangle normals with the triangle's area (mm2) as length."""
        a, b, c = (self.points[self.triangles[:, corner]] for corner in range(3))
        return 0.5 * np.cross(b - a, c - a)

    @cached_property
    def areas(self) -> np.ndarray:
        """(M,) triangle areas, mm2."""
        return np.linalg.norm(self.area_normals, axis=1)

    @cached_property
    def vertex_areas(self) -> np.ndarray:
        """(N,) a third of the area of the triangles round each vertex, mm2; sums to the surface's area."""
        thirds = np.repeat(self.areas / 3.0, 3)
        return np.bincount(self.triangles.ravel(), thirds, minlength=len(self.points))

    @cached_property
    def normals(self) -> np.ndarray:
        """(N, 3) unit outward normals at the vertices, area-weighted mean of the triangles round them."""
        total = np.stack(
            [np.bincount(self.triangles.ravel(), np.repeat(self.area_normals[:, axis], 3), len(self.points))
             for axis in range(3)], axis=1)  # fmt: skip
        return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)

    @property
    def volume(self) -> float:
        """Enclosed volume in mm3; positive because the triangles face outwards."""
        centres = self.points[self.triangles].mean(axis=1)
        return float(np.einsum("ij,ij->", centres - self.points.mean(axis=0), self.area_normals) / 3.0)

    def transformed(self, matrix: np.ndarray) -> Surface:
        """The surface carried by a (4, 4) matrix, still outward-oriented when the matrix mirrors it."""
        points = self.points @ matrix[:3, :3].T + matrix[:3, 3]
        mirrored = np.linalg.det(matrix[:3, :3]) < 0
        return Surface(points, self.triangles[:, ::-1] if mirrored else self.triangles)

    def polydata(self):
        """The surface as vtkPolyData with float64 points."""
        import vtk
        from vtk.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray

        points = vtk.vtkPoints()
        points.SetData(numpy_to_vtk(self.points, deep=True))
        cells = vtk.vtkCellArray()
        offsets = np.arange(0, 3 * len(self.triangles) + 1, 3, dtype=np.int64)
        cells.SetData(numpy_to_vtkIdTypeArray(offsets, deep=True),
                      numpy_to_vtkIdTypeArray(self.triangles.ravel(), deep=True))  # fmt: skip
        polydata = vtk.vtkPolyData()
        polydata.SetPoints(points)
        polydata.SetPolys(cells)
        return polydata


def skin_level(volume) -> float:
    """Physical intensity of the boundary between air and skin, found from the image alone.

    The image is split into air and tissue at half way between their interquartile means, repeated until the
    split stands still (Ridler and Calvard's isodata, made robust). The level then lies 30 % of the way from the
    air's mean to the tissue's, but at least six robust standard deviations of the noise above the air. The
    tissue's mean is carried by brain, muscle and fat of the whole head, so it hardly moves when a defacer
    sets the face to zero; exact zeros only join the air. `volume` is a Volume or an array of intensities. In a CT
    the level is -300 HU. It is found once for each Volume.

    Raises RefaceRiskError when the image is constant.
    """
    if not hasattr(volume, "intensities"):
        return _skin_level(np.asarray(volume))
    if volume not in _levels:
        _levels[volume] = _skin_level(volume.intensities)
    return _levels[volume]


_levels: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _skin_level(intensities: np.ndarray) -> float:
    values = intensities.ravel(order="K")  # as it lies in memory: no copy
    values = values[:: max(1, values.size // 2_000_000)]
    if is_hounsfield(values):
        return SKIN_HU
    low, high = np.percentile(values, (0.5, 99.5))
    if not high > low:
        low, high = float(values.min()), float(values.max())
    if not high > low:
        raise RefaceRiskError("the image is constant, so it has no skin", "check that it is a whole-head MRI")
    split = low + 0.25 * (high - low)
    for _ in range(50):
        air, tissue = _middle(values[values <= split]), _middle(values[values > split])
        moved, split = split, 0.5 * (air + tissue)
        if abs(moved - split) < 1e-4 * (high - low):
            break
    background = values[values <= air + SKIN_SHARE * (tissue - air)]
    noise = 1.4826 * float(np.median(np.abs(background - air)))
    return min(max(air + SKIN_SHARE * (tissue - air), air + 6.0 * noise), split)


def head_field(volume, level: float, spacing=None) -> np.ndarray:
    """The greyscale with the head made solid and the air made empty: its isosurface at `level` is the skin.

    (I, J, K) float32: the image, smoothed by 0.7 voxels against aliasing, wherever it defines the outer skin.
    Raised above `level` are dark voxels (airways, sinuses, signal voids) that outside air does not reach, or
    only through passages that a closing bridges: of 5 mm radius where they lie 3 mm below its hull, of 14 mm
    radius where they lie 6 mm below, of 24 mm radius where they lie 12 mm below. Passages cut open where the head
    leaves the volume (windpipe, spinal canal) count as closed there. Lowered below `level` are specks and ghosts
    that are not connected to the head.

    `volume` is a Volume, or a ready float field as an array (head above `level`; not smoothed) with its
    `spacing` in mm. Raises RefaceRiskError when nothing is above `level`.
    """
    if hasattr(volume, "intensities"):
        spacing = np.asarray(volume.spacing, float)
        seen = _seen_box(volume.intensities)
        field = gaussian(volume.intensities, ANTIALIAS_VOXELS, mode="nearest", truncate=3.0)
    else:
        spacing = np.ones(3) * (1.0 if spacing is None else spacing)
        field = np.array(volume, dtype=np.float32)
        seen = _seen_box(field)
    head = field >= level
    if not head.any():
        raise RefaceRiskError("no head is visible above the skin level", "check that it is a whole-head MRI")
    air = float(np.median(field[~head][::7])) if (~head).any() else level - 1.0
    contrast = max(level - air, 1e-6 * max(abs(level), 1.0))
    _move_off_the_level(field, level, contrast)
    head = _largest(field > level)
    np.minimum(field, air, out=field, where=~head & (field > level))
    closed = _closed_at_the_border(head, seen)
    field[closed & ~head] = level + contrast
    head = closed
    lid = _lid_depth(head, spacing)
    raised = np.minimum(level + contrast * lid / spacing.max(), level + contrast)
    np.maximum(field, raised, out=field, where=~head & (lid > 0))
    _fill_enclosed(field, level, contrast)
    _move_off_the_level(field, level, contrast)
    return field


def isosurface(field: np.ndarray, affine: np.ndarray, level: float) -> Surface:
    """Largest closed isosurface of an (I, J, K) field in RAS mm, outward-oriented for any invertible affine.

    Flying Edges (Schroeder et al. 2015) in voxel coordinates on the field padded with air, so that the surface
    is closed where the head leaves the volume; the affine is applied afterwards in float64.
    Raises RefaceRiskError when the field does not cross `level`.
    """
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    inside = field > level
    if not inside.any():
        raise RefaceRiskError("no surface at the skin level", "check that the image shows a whole head")
    outside = float(field[~inside].min()) if not inside.all() else level - 1.0
    padded = np.pad(field.astype(np.float32), 1, constant_values=outside)
    image = vtk.vtkImageData()
    image.SetDimensions(padded.shape)
    image.SetOrigin(-1.0, -1.0, -1.0)
    image.GetPointData().SetScalars(numpy_to_vtk(padded.ravel(order="F"), deep=True))
    edges = vtk.vtkFlyingEdges3D()
    edges.SetInputData(image)
    edges.SetValue(0, float(level))
    edges.ComputeNormalsOff()
    edges.ComputeScalarsOff()
    edges.Update()
    cut = edges.GetOutput()
    points = vtk_to_numpy(cut.GetPoints().GetData()).astype(np.float64)
    triangles = vtk_to_numpy(cut.GetPolys().GetConnectivityArray()).reshape(-1, 3).astype(np.int64)
    surface = largest_part(Surface(points @ affine[:3, :3].T + affine[:3, 3], triangles))
    return surface if surface.volume > 0 else Surface(surface.points, surface.triangles[:, ::-1])


def extract_skin(volume, level: float | None = None) -> Surface:
    """The outer skin of a whole-head Volume; `level` is `skin_level(volume)` unless given.

    Give the level of the original when its defaced or refaced copies are to be compared with it.
    """
    level = skin_level(volume) if level is None else float(level)
    return isosurface(head_field(volume, level), np.asarray(volume.affine, float), level)


def signed_distance_map(surface: Surface, points: np.ndarray, limit: float | None = None) -> np.ndarray:
    """Signed distance (mm, negative inside) of (N, 3) RAS points to the surface, exact point-to-triangle.

    With `limit` (mm) only the points nearer than that are evaluated; the others get +-limit, and their sign
    from a voxelised inside of the surface. About 10 us a point near the skin and 50-100 us far from it, so
    give a limit, or use `signed_distance_grid` for a whole grid.
    """
    points = np.ascontiguousarray(points, np.float64).reshape(-1, 3)
    if limit is None:
        return _implicit_distance(surface, points)
    to_vertex, _ = vertex_tree(surface).query(points, distance_upper_bound=limit + _longest_edge(surface), workers=-1)
    near = np.isfinite(to_vertex)
    distance = np.empty(len(points))
    distance[near] = np.clip(_implicit_distance(surface, points[near]), -limit, limit)
    if not near.all():
        distance[~near] = np.where(_roughly_inside(surface, points[~near], limit), -limit, limit)
    return distance


def signed_distance_grid(surface: Surface, shape, affine: np.ndarray, limit: float = 20.0) -> np.ndarray:
    """Signed distance (mm, negative inside) at every voxel centre of the grid (shape, affine), float32.

    Clipped at +-limit. Exact point-to-triangle up to a voxel from the skin; farther off the distance to the nearest
    vertex, which is too large by at most (vertex spacing)^2 / (2 distance): hundredths of a millimetre.
    """
    affine = np.asarray(affine, float)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    centres = _voxel_centres(np.ones(shape, bool), affine)
    exact = 1.5 * spacing.max()
    distance, _ = vertex_tree(surface).query(centres, distance_upper_bound=max(limit, exact), workers=-1)
    near = distance < exact
    distance[near] = np.abs(_implicit_distance(surface, centres[near]))
    inside = voxelise(surface, shape, affine)
    return np.clip(np.where(inside, -1.0, 1.0) * distance.reshape(shape), -limit, limit).astype(np.float32)


def vertex_tree(surface: Surface) -> cKDTree:
    """Search tree over the vertices; unbalanced, which answers five times faster on surfaces like these."""
    return cKDTree(surface.points, leafsize=32, balanced_tree=False, compact_nodes=False)


def voxelise(surface: Surface, shape, affine: np.ndarray) -> np.ndarray:
    """(I, J, K) bool: voxel centres of the grid (shape, affine) that lie inside the closed surface."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    in_voxels = surface.transformed(np.linalg.inv(affine))
    stencil = vtk.vtkPolyDataToImageStencil()
    stencil.SetInputData(in_voxels.polydata())
    stencil.SetOutputWholeExtent(0, shape[0] - 1, 0, shape[1] - 1, 0, shape[2] - 1)
    image = vtk.vtkImageStencilToImage()
    image.SetInputConnection(stencil.GetOutputPort())
    image.SetOutputScalarTypeToUnsignedChar()
    image.SetInsideValue(1)
    image.SetOutsideValue(0)
    image.Update()
    values = vtk_to_numpy(image.GetOutput().GetPointData().GetScalars())
    return values.reshape(tuple(shape)[::-1]).T.astype(bool)


def largest_part(surface: Surface) -> Surface:
    """The connected part with the largest area, without unused points and triangles of no area."""
    triangles = surface.triangles[surface.areas > 0]
    count = len(surface.points)
    links = coo_matrix(
        (np.ones(2 * len(triangles), np.int8),
         (np.r_[triangles[:, 0], triangles[:, 1]], np.r_[triangles[:, 1], triangles[:, 2]])),
        shape=(count, count))  # fmt: skip
    _, part = connected_components(links, directed=False)
    area = np.bincount(part[triangles[:, 0]], surface.areas[surface.areas > 0])
    triangles = triangles[part[triangles[:, 0]] == area.argmax()]
    used, triangles = np.unique(triangles, return_inverse=True)
    return Surface(surface.points[used], triangles.reshape(-1, 3))


def _implicit_distance(surface: Surface, points: np.ndarray) -> np.ndarray:
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    implicit = vtk.vtkImplicitPolyDataDistance()
    implicit.SetInput(surface.polydata())
    distance = vtk.vtkDoubleArray()
    distance.SetNumberOfTuples(len(points))
    if len(points):
        implicit.FunctionValue(numpy_to_vtk(points, deep=True), distance)
    return vtk_to_numpy(distance).copy()


def _longest_edge(surface: Surface) -> float:
    corners = surface.points[surface.triangles]
    return float(np.sqrt(((corners - np.roll(corners, 1, axis=1)) ** 2).sum(axis=2).max()))


def _roughly_inside(surface: Surface, points: np.ndarray, margin: float) -> np.ndarray:
    """Inside or outside for points at least `margin` mm from the surface: look-up in a grid finer than that."""
    step = margin / 2.0
    low = surface.points.min(axis=0) - step
    shape = np.ceil((surface.points.max(axis=0) - low) / step).astype(int) + 2
    affine = np.diag([step, step, step, 1.0])
    affine[:3, 3] = low
    inside = voxelise(surface, shape, affine)
    index = np.round((points - low) / step).astype(int)
    known = ((index >= 0) & (index < shape)).all(axis=1)
    answer = np.zeros(len(points), bool)
    answer[known] = inside[tuple(index[known].T)]
    return answer


def _voxel_centres(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]


def _middle(values: np.ndarray) -> float:
    """Interquartile mean: as robust as a median, but it does not jump between the modes of two tissues."""
    ordered = np.sort(values)
    return float(ordered[len(ordered) // 4 : max(1, -(-3 * len(ordered) // 4))].mean(dtype=np.float64))


def _move_off_the_level(field: np.ndarray, level: float, contrast: float) -> None:
    """A voxel exactly at the level would give triangles of no area, which have no normal."""
    nudge = max(1e-4 * contrast, 4 * float(np.spacing(np.float32(abs(level) + contrast))))
    field[np.abs(field - level) < nudge] = level + nudge


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = ndi.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def _lid_depth(head: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Depth in mm below the lids under the closed hulls of `head` (CLOSINGS_MM); positive where air is filled."""
    factor = np.maximum(1, np.round(WORKING_MM / spacing)).astype(int)
    step = spacing * factor
    coarse = _block_any(head, factor)
    pad = np.ceil((max(CLOSINGS_MM)[0] + 2 * step) / step).astype(int)
    coarse = np.pad(coarse, [(p, p) for p in pad])
    from_head = distance_to(coarse, step)
    depth = np.full(coarse.shape, -np.inf, np.float32)
    for radius, lid in CLOSINGS_MM:
        to_outside = distance_to(from_head > radius, step)
        np.maximum(depth, to_outside - (radius + lid), out=depth)
    fine = (np.arange(n) for n in head.shape)
    places = [p + (i - 0.5 * (f - 1)) / f for i, f, p in zip(fine, factor, pad, strict=True)]
    return _separable_linear(depth, places)


def _closed_at_the_border(head: np.ndarray, seen) -> np.ndarray:
    """On the faces of the `seen` box a ring of tissue round dark voxels closes them: a windpipe is no way in."""
    head = head.copy()
    inner = head[seen]
    for axis in range(3):
        slices = np.moveaxis(inner, axis, 0)
        for end in (0, -1):
            slices[end] = ndi.binary_fill_holes(slices[end])
    return head


def _seen_box(image: np.ndarray, blank: int = 3) -> tuple[slice, ...]:
    """The volume without its outermost slices, up to three a side, where software has blanked them."""
    box = []
    for axis, count in enumerate(image.shape):
        slices = np.moveaxis(image, axis, 0)
        first, last = 0, count - 1
        while first < min(blank, last) and np.ptp(slices[first]) == 0:
            first += 1
        while count - 1 - last < blank and last > first and np.ptp(slices[last]) == 0:
            last -= 1
        box.append(slice(first, last + 1))
    return tuple(box)


def _block_any(mask: np.ndarray, factor: np.ndarray) -> np.ndarray:
    for axis, f in enumerate(factor):
        if f > 1:
            mask = np.maximum.reduceat(mask, np.arange(0, mask.shape[axis], f), axis=axis)
    return mask


def _separable_linear(array: np.ndarray, places) -> np.ndarray:
    """Linear interpolation at the product grid of the given index positions, one axis after the other."""
    for axis, place in enumerate(places):
        lower = np.clip(np.floor(place).astype(int), 0, array.shape[axis] - 2)
        weight = (place - lower).astype(np.float32)
        shape = [1, 1, 1]
        shape[axis] = -1
        weight = weight.reshape(shape)
        array = array.take(lower, axis) * (1 - weight) + array.take(lower + 1, axis) * weight
    return array


def _fill_enclosed(field: np.ndarray, level: float, contrast: float) -> None:
    """Raise air that has no way out to the outside (in place)."""
    head = np.pad(field > level, 1)
    labels, _ = ndi.label(~head)
    enclosed = ((labels != labels[0, 0, 0]) & ~head)[1:-1, 1:-1, 1:-1]
    field[enclosed] = level + contrast
