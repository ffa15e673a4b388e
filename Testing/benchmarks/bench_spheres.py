"""Two concentric spheres, r = 60 and 62.5 mm, on a 1 mm grid: what the whole chain measures (true: 2.500 mm).

Prints the distance from greyscale images with partial volume through `extract_skin` and `distance`, the same from
binary images for comparison, the agreement with vtkDistancePolyDataFilter, and CPU seconds.

    PYTHONPATH=RefaceRisk python Testing/benchmarks/bench_spheres.py
"""

from __future__ import annotations

import time

import numpy as np
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from RefaceRiskLib.surface.distance import distance
from RefaceRiskLib.surface.extract import extract_skin
from RefaceRiskLib.volumes import Volume


def ball(radius: float, spacing: float = 1.0, half: float = 70.0, binary: bool = False) -> Volume:
    """A ball of intensity 1000 in air; each voxel holds the share of itself that lies in the ball (8 x 8 x 8)."""
    count = round(2 * half / spacing) + 1
    centres = (np.arange(count) - count // 2) * spacing
    offsets = (np.arange(8) - 3.5) / 8 * spacing if not binary else np.zeros(1)
    share = np.zeros((count,) * 3, np.float32)
    for dx in offsets:
        for dy in offsets:
            for dz in offsets:
                x, y, z = ((c + d) ** 2 for c, d in zip((centres,) * 3, (dx, dy, dz), strict=True))
                share += x[:, None, None] + y[:, None] + z <= radius**2
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = centres[0]
    return Volume((1000 * share / len(offsets) ** 3).astype(np.float32), affine)


def vtk_distance(original, other) -> np.ndarray:
    """Unsigned distance at every vertex of `original` by vtkDistancePolyDataFilter, mm."""
    compare = vtk.vtkDistancePolyDataFilter()
    compare.SetInputData(0, original.polydata())
    compare.SetInputData(1, other.polydata())
    compare.SignedDistanceOff()
    compare.ComputeSecondDistanceOff()
    compare.Update()
    return vtk_to_numpy(compare.GetOutput().GetPointData().GetArray("Distance"))


def main() -> None:
    for kind, binary in (("greyscale", False), ("binary", True)):
        inner, outer = (ball(radius, binary=binary) for radius in (60.0, 62.5))
        start = time.process_time()
        skins = [extract_skin(image) for image in (inner, outer)]
        cut = time.process_time()
        found = distance(*skins)
        end = time.process_time()
        print(f"{kind:9}  mean {found.mean:.4f}  symmetric {found.symmetric_mean:.4f}  median {found.median:.4f}"
              f"  p95 {found.p95:.4f} mm   {len(skins[0].points)} vertices,"
              f" cpu {cut - start:.2f} s extract, {end - cut:.2f} s distance")  # fmt: skip
    reference = vtk_distance(*skins)
    print(f"largest difference from vtkDistancePolyDataFilter {np.abs(reference - found.per_vertex).max():.1e} mm")


if __name__ == "__main__":
    main()
