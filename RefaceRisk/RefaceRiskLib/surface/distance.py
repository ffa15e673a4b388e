"""Distance between two skin surfaces: exact point-to-triangle, weighted by area.

Vertices are denser where a surface is rough or oblique to the grid, so a plain mean over vertices would count
such places more; each vertex counts with a third of the area of the triangles round it instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.surface.extract import Surface, signed_distance_map, vertex_tree


@dataclass(frozen=True, eq=False)
class SurfaceDistance:
    """Unsigned distances in mm from the original's surface to another one, over a region.

    `mean`, `median`, `p95` and `max` are one-way (original to other) and area-weighted; `symmetric_mean` is the
    mean of both ways' means. `per_vertex` (N,) holds the distance at *every* vertex of the original, for
    colouring; `region` (N,) bool tells which of them were counted.
    """

    mean: float
    median: float
    p95: float
    max: float
    symmetric_mean: float
    per_vertex: np.ndarray
    region: np.ndarray


def distance(original: Surface, other: Surface, region: np.ndarray | None = None) -> SurfaceDistance:
    """How far `original` lies from `other` (mm) over `region` (N,) bool, vertices of the original; default all.

    For the way back, a vertex of `other` belongs to the region when the original's vertex closest to it does.
    Raises RefaceRiskError when the region is empty.
    """
    region = np.ones(len(original.points), bool) if region is None else region
    return distances(original, other, {"region": region})["region"]


def distances(original: Surface, other: Surface, regions: dict[str, np.ndarray]) -> dict[str, SurfaceDistance]:
    """`distance` over several regions of one pair of surfaces, at the cost of one."""
    regions = {name: np.asarray(region, bool) for name, region in regions.items()}
    for name, region in regions.items():
        if region.shape != (len(original.points),):
            raise ValueError(f"{name} has {region.shape} values, the original {len(original.points)} vertices")
        if not region.any():
            raise RefaceRiskError(f"the region {name!r} holds no skin", "check the registration and the mask")
    forth = point_to_surface(original.points, other)
    _, closest = vertex_tree(original).query(other.points, workers=-1)
    needed = np.logical_or.reduce([region[closest] for region in regions.values()])
    back = np.zeros(len(other.points))
    back[needed] = point_to_surface(other.points[needed], original)
    return {name: _over(region, forth, back, original, other, closest) for name, region in regions.items()}


def point_to_surface(points: np.ndarray, surface: Surface) -> np.ndarray:
    """Unsigned distance (N,) mm from (N, 3) points to the closest point of any triangle (VTK, float64)."""
    # Outside a defacer's hole both surfaces share their vertices; these need no search among the triangles.
    apart = vertex_tree(surface).query(points, workers=-1)[0] > 0
    distance = np.zeros(len(points))
    distance[apart] = np.abs(signed_distance_map(surface, points[apart]))
    return distance


def weighted_quantiles(values: np.ndarray, weights: np.ndarray, shares) -> list[float]:
    """For each share the smallest value that at least this share of the total weight does not exceed."""
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    places = np.searchsorted(below, np.asarray(shares) * below[-1])
    return [float(values[order[min(place, len(order) - 1)]]) for place in places]


def _over(region, forth, back, original: Surface, other: Surface, closest) -> SurfaceDistance:
    weights = original.vertex_areas[region]
    mean = float(np.average(forth[region], weights=weights))
    median, p95 = weighted_quantiles(forth[region], weights, (0.5, 0.95))
    met = region[closest]
    mean_back = float(np.average(back[met], weights=other.vertex_areas[met])) if met.any() else mean
    return SurfaceDistance(mean, median, p95, float(forth[region].max()), 0.5 * (mean + mean_back), forth, region)
