"""Registration with the template: known transforms are recovered, orientation and missing faces do not matter."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.registration import (
    Registration,
    bent,
    carry,
    inverse_displacement,
    locally_normalised,
    pull,
    register,
    working_image,
)
from RefaceRiskLib.template import load_template
from RefaceRiskLib.volumes import Volume, load

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from bench_registration import recover, turned


@pytest.fixture(scope="module")
def template():
    return load_template()


@pytest.fixture(scope="module")
def head(shared_data) -> Volume:
    return load(shared_data / "cohort_ixi_2mm" / "sub-IXI213_T1w.nii.gz")


def mean_drift(template, matrix, expected) -> float:
    points = template.points[template.head][::100]
    difference = matrix - expected
    return float(np.linalg.norm(points @ difference[:3, :3].T + difference[:3, 3], axis=1).mean())


def test_a_known_affine_is_recovered_to_four_tenths_of_a_millimetre(template, head):
    found = recover(head, template)
    assert found["start_mm"] > 15
    assert found["mean_mm"] <= 0.4


def test_storage_orientation_and_tilt_change_nothing(template, head):
    base = register(head, template)
    assert base.quality.verdict == "ok"
    rng = np.random.default_rng(1)
    for _ in range(2):
        volume, tilt = turned(head, rng)
        found = register(volume, template)
        assert found.quality.verdict == "ok"
        assert mean_drift(template, found.matrix, tilt @ base.matrix) < 0.5


def test_a_head_and_its_defaced_copy_land_in_the_same_place(template, head):
    base = register(head, template)
    gone = carry(template.region("removable"), template, base, head) > 0.5
    found = register(head.replaced(gone, 0), template)
    assert mean_drift(template, found.matrix, base.matrix) < 0.5


def test_air_is_refused_in_one_line(template):
    with pytest.raises(RefaceRiskError, match="no head") as caught:
        register(Volume(np.zeros((40, 40, 40), np.int16), np.diag([4.0, 4, 4, 1])), template)
    assert "\n" not in str(caught.value)


def test_noise_is_never_ok(template):
    noise = np.random.default_rng(0).integers(0, 1000, (60, 60, 60)).astype(np.int16)
    assert register(Volume(noise, np.diag([4.0, 4, 4, 1])), template).quality.verdict != "ok"


def test_local_normalisation_forgets_gain_and_offset():
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.standard_normal((30, 30, 30)), 1)
    one = locally_normalised(image, 2.0, 8.0)
    other = locally_normalised(300 * image, 2.0, 8.0)
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_the_working_image_keeps_places_in_oblique_grids(template):
    from scipy.spatial.transform import Rotation

    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [20, -10, 15], degrees=True).as_matrix() * [1.5, 2.0, 2.5]
    voxels = np.zeros((60, 50, 40), np.float32)
    voxels[28:33, 18:23, 9:14] = 1.0
    image, grid = working_image(Volume(voxels, affine), 2.0)
    expected = (affine @ [30, 20, 11, 1])[:3]
    found = (grid @ [*ndimage.center_of_mass(image), 1])[:3]
    assert np.linalg.norm(found - expected) < 0.3


def test_an_inverse_displacement_undoes_its_displacement(template):
    rng = np.random.default_rng(0)
    field = np.stack([ndimage.gaussian_filter(rng.standard_normal(template.shape), 10) for _ in range(3)], axis=-1)
    field = (4 * field / np.abs(field).max()).astype(np.float32)
    moved = Registration(np.eye(4), field)
    there = pull(template.skin_distance, template.affine, moved, template.shape, template.affine)
    back = bent(there, template.affine, moved)
    inner = (slice(16, -16),) * 3
    assert np.abs(there - template.skin_distance)[inner].max() > 2
    assert np.abs(back - template.skin_distance)[inner].mean() < 0.1
    inverse = inverse_displacement(field, template.affine)
    again = inverse_displacement(inverse, template.affine)
    assert np.abs(again - field)[inner].max() < 0.2
