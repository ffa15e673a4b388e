"""Fixtures for the tests of the core."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from RefaceRiskLib.volumes import Volume, grid_points

REPOSITORY = Path(__file__).resolve().parents[2]
# The network costs seconds a head: only its own tests let it run. Child processes inherit this.
os.environ.setdefault("REFACERISK_BRAIN", "registration")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real volumes; a test that needs it is skipped where it is absent."""
    named = os.environ.get("REFACERISK_SHARED_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real volumes at {folder} (REFACERISK_SHARED_DATA names another folder)")
    return folder


@pytest.fixture(scope="session")
def tiny_head() -> Volume:
    """A synthetic head of 3 mm voxels (64, 80, 80) int16: skin, dark skull, brain and a nose, in noisy air.

    Nose towards +A, crown towards +S; intensities about 1000 (brain), 150 (skull), 700 (skin), 20 (air).
    """
    shape = (64, 80, 80)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = -1.5 * (np.array(shape) - 1)
    points = grid_points(shape, affine)

    def inside(centre, radii):
        """Share of a voxel inside an ellipsoid, from 0 to 1 across 3 mm: a grey edge, as in a scan."""
        scaled = (points - centre) / radii
        distance = (np.linalg.norm(scaled, axis=-1) - 1) * min(radii)
        return np.clip(0.5 - distance / 3.0, 0, 1)

    rng = np.random.default_rng(0)
    head = np.maximum(inside((0, 0, 0), (72, 92, 105)), inside((0, 92, -25), (14, 18, 22)))
    image = 20.0 + 680 * head
    image += (150 - 700) * inside((0, -4, 20), (63, 80, 78))
    image += (1000 - 150) * inside((0, -4, 20), (57, 74, 72))
    image = np.abs(image + rng.normal(0, 12, shape))
    return Volume(image.astype(np.int16), affine).noted(description="synthetic head")
