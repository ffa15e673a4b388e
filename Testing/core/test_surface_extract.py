"""Skin surfaces: closed, outward, where the greyscale says, and nothing but the outer skin."""

from __future__ import annotations

import numpy as np
import pytest
from surface_phantoms import ball, is_closed, oblique

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.surface.distance import distance
from RefaceRiskLib.surface.extract import (
    Surface,
    extract_skin,
    head_field,
    isosurface,
    signed_distance_grid,
    signed_distance_map,
    skin_level,
    voxelise,
)
from RefaceRiskLib.volumes import Volume, load


def test_two_spheres_2_5_mm_apart_measure_2_50_mm_on_a_1_mm_grid():
    found = distance(extract_skin(ball(60.0, parts=4)), extract_skin(ball(62.5, parts=4)))
    assert found.mean == pytest.approx(2.5, abs=0.01)
    assert found.symmetric_mean == pytest.approx(2.5, abs=0.01)
    assert found.per_vertex.min() > 2.3 and found.max < 2.8


AFFINES = {
    "right-handed": np.diag([1.0, 1.0, 1.0, 1.0]),
    "left-handed": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "permuted": np.array([[0, 0, 1.5, 0], [-1.0, 0, 0, 0], [0, 1.2, 0, 0], [0, 0, 0, 1.0]]),
    "oblique": oblique((1.0, 0.9, 2.0)),
    "oblique and left-handed": oblique((1.0, 1.3, 0.8), mirrored=True),
}


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_surfaces_lie_in_ras_and_face_outwards_for_every_affine(affine):
    shape = tuple(np.ceil(64 / np.linalg.norm(affine[:3, :3], axis=0)).astype(int))
    affine = affine.copy()
    centre = np.array([10.0, -20.0, 5.0])
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(shape) / 2)
    skin = extract_skin(ball(25.0, affine, shape, centre), 500.0)
    assert is_closed(skin)
    assert skin.volume == pytest.approx(4 / 3 * np.pi * 25**3, rel=0.02)
    assert np.linalg.norm(skin.points - centre, axis=1) == pytest.approx(25.0, abs=0.35)
    outwards = np.einsum("ij,ij->i", skin.normals, (skin.points - centre) / 25.0)
    assert outwards.mean() > 0.99


def test_a_head_cut_by_the_volume_s_border_still_has_a_closed_surface():
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = (-40, -40, 0)  # the lower half lies outside
    skin = extract_skin(ball(30.0, affine, (81, 81, 41)))
    assert is_closed(skin)
    assert 2 / 3 * np.pi * 30**3 < skin.volume < 2 / 3 * np.pi * 31**3 + np.pi * 31**2
    below, above = signed_distance_map(skin, [(0, 0, -3.0), (0, 0, 3.0)])
    assert below > 0 > above


def test_vertex_areas_share_out_the_whole_area():
    skin = extract_skin(ball(30.0), 500.0)
    assert skin.vertex_areas.sum() == pytest.approx(skin.areas.sum())
    assert skin.areas.sum() == pytest.approx(4 * np.pi * 30**2, rel=0.02)


def test_a_mirroring_transform_keeps_a_surface_outward():
    skin = extract_skin(ball(20.0), 500.0)
    assert skin.transformed(np.diag([-1.0, 1.0, 1.0, 1.0])).volume == pytest.approx(skin.volume)


def test_points_are_float64_in_ras_millimetres(tiny_head):
    skin = extract_skin(tiny_head)
    assert skin.points.dtype == np.float64 and skin.triangles.dtype == np.int64
    tip = skin.points[skin.points[:, 1].argmax()]
    assert tip == pytest.approx([0, 109, -25], abs=5)  # the nose


# --- what counts as head --------------------------------------------------------------------------------------


def solid(shape=(60, 60, 60)) -> np.ndarray:
    field = np.zeros(shape, np.float32)
    field[5:-5, 5:-5, 5:-5] = 1.0
    return field


def test_a_cavity_behind_a_narrow_passage_is_filled():
    field = solid()
    field[20:40, 20:40, 20:40] = 0.0
    field[28:32, 28:32, 40:] = 0.0  # 4 mm wide
    filled = head_field(field, 0.5)
    assert (filled[20:40, 20:40, 20:40] > 0.5).all()
    assert (filled[28:32, 28:32, 54:] < 0.5).all()  # the passage's mouth stays as it is


def test_a_cavity_without_a_way_out_is_filled():
    field = solid()
    field[20:40, 20:40, 20:40] = 0.0
    assert (head_field(field, 0.5)[20:40, 20:40, 20:40] > 0.5).all()


def test_a_mouth_that_is_torn_open_from_side_to_side_gets_a_lid():
    field = solid((110, 110, 110))
    field[25:85, 30:, 38:72] = 0.0  # 60 mm wide, 34 mm high, 75 mm deep
    closed = head_field(field, 0.5)
    assert (closed[30:80, 30:85, 42:68] > 0.5).all()
    assert (closed[30:80, 100:, 42:68] < 0.5).all()  # the lid lies below the lips


def test_a_wide_hole_as_a_defacer_cuts_it_stays_open():
    field = solid((90, 90, 90))
    field[20:70, 45:, 5:60] = 0.0
    opened = head_field(field, 0.5)[25:65, 55:, 12:52]
    assert (opened < 0.5).all()


def test_a_windpipe_cut_by_the_border_is_no_way_in():
    field = solid()
    field[5:-5, 5:-5, :5] = 1.0  # the neck reaches the border
    field[22:38, 22:38, :40] = 0.0  # 16 mm wide
    assert (head_field(field, 0.5)[22:38, 22:38, :40] > 0.5).all()


def test_specks_in_the_air_are_no_head():
    field = solid()
    field[1:3, 1:3, 1:3] = 5.0
    assert (head_field(field, 0.5)[:4, :4, :4] < 0.5).all()


def test_the_greyscale_of_the_skin_is_not_touched():
    field = np.clip(np.linspace(-1.0, 2.0, 60), 0, 1).astype(np.float32)[:, None, None] * solid()
    near = (field > 0.2) & (field < 0.8)
    assert np.array_equal(head_field(field, 0.5)[near], field[near])


def test_an_image_without_anything_above_the_level_is_refused():
    with pytest.raises(RefaceRiskError, match="no head"):
        head_field(np.zeros((10, 10, 10), np.float32), 0.5)


def test_a_voxel_exactly_at_the_level_gives_no_degenerate_triangles():
    skin = isosurface(head_field(solid() * 2.0, 2.0), np.eye(4), 2.0)
    assert is_closed(skin) and skin.areas.min() > 0


# --- the level ------------------------------------------------------------------------------------------------


def test_the_level_lies_between_noise_and_skin(tiny_head):
    assert 100 < skin_level(tiny_head) < 500


def test_the_level_hardly_moves_when_the_face_is_set_to_zero(tiny_head):
    front = np.zeros(tiny_head.shape, bool)
    front[:, 50:, :45] = True
    assert skin_level(tiny_head.replaced(front, 0)) == pytest.approx(skin_level(tiny_head), rel=0.03)


def test_the_level_is_the_same_with_an_exactly_empty_background(tiny_head):
    empty = tiny_head.replaced(tiny_head.intensities < 70, 0)
    assert skin_level(empty) == pytest.approx(skin_level(tiny_head), abs=20)  # the air's own brightness


def test_the_level_scales_with_the_image(tiny_head):
    bright = Volume(tiny_head.voxels * np.float32(3.7) + 50, tiny_head.affine)
    assert skin_level(bright) == pytest.approx(3.7 * skin_level(tiny_head) + 50, rel=1e-3)


def test_a_constant_image_has_no_level():
    with pytest.raises(RefaceRiskError, match="constant"):
        skin_level(np.ones((8, 8, 8), np.float32))


# --- signed distances -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def globe() -> Surface:
    return extract_skin(ball(30.0), 500.0)


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return np.random.default_rng(3).uniform(-42, 42, (4000, 3))


def test_signed_distance_is_negative_inside_and_exact(globe, points):
    expected = np.linalg.norm(points, axis=1) - 30.0
    assert signed_distance_map(globe, points) == pytest.approx(expected, abs=0.15)


def test_a_limit_clips_and_changes_nothing_else(globe, points):
    expected = np.clip(signed_distance_map(globe, points), -4, 4)
    assert signed_distance_map(globe, points, limit=4.0) == pytest.approx(expected, abs=1e-9)


def test_the_grid_agrees_with_the_points(globe):
    affine = oblique((2.0, 1.5, 2.5), mirrored=True)
    affine[:3, 3] = (20, -45, -15)
    shape = (38, 50, 30)
    chosen = np.random.default_rng(0).integers(0, shape, (8000, 3))
    centres = chosen @ affine[:3, :3].T + affine[:3, 3]
    expected = np.clip(signed_distance_map(globe, centres), -12, 12)
    grid = signed_distance_grid(globe, shape, affine, limit=12.0)[tuple(chosen.T)]
    assert grid == pytest.approx(expected, abs=0.1)
    near = np.abs(expected) < 1.0
    assert near.any() and grid[near] == pytest.approx(expected[near], abs=1e-5)


def test_a_grid_that_holds_no_skin_knows_its_side(globe):
    affine = np.eye(4)
    affine[:3, 3] = -2
    assert (signed_distance_grid(globe, (4, 4, 4), affine, limit=5.0) == -5).all()
    affine[:3, 3] = 60
    assert (signed_distance_grid(globe, (4, 4, 4), affine, limit=5.0) == 5).all()


def test_voxelising_gives_the_field_s_own_inside(tiny_head):
    level = skin_level(tiny_head)
    field = head_field(tiny_head, level)
    assert np.array_equal(voxelise(extract_skin(tiny_head, level), tiny_head.shape, tiny_head.affine), field > level)


# --- real heads -----------------------------------------------------------------------------------------------


def test_a_real_head_gives_one_clean_closed_surface(shared_data):
    head = load(shared_data / "head_1mm" / "sub-MyConnectome_T1w.nii.gz")
    skin = extract_skin(head)
    assert is_closed(skin)
    assert 4.0e6 < skin.volume < 5.0e6
    assert skin.areas.sum() < 260_000  # sinuses, airways or noise would add to it


def test_heads_with_signal_voids_at_the_mouth_have_a_closed_skin_without_caves(shared_data):
    for name in ("sub-IXI211", "sub-IXI260", "sub-IXI443"):
        head = load(shared_data / "cohort_ixi_2mm" / f"{name}_T1w.nii.gz")
        skin = extract_skin(head)
        assert is_closed(skin)
        assert skin.areas.sum() < 0.06 * skin.volume
