"""Cuts by hand: right where they should be, never in the brain, fast enough to follow a mouse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from RefaceRiskLib.defacing.cutter import Ball, Cuboid, Cutter, Drawn, Plane
from RefaceRiskLib.volumes import Volume

AFFINES = {
    "RAS 2 mm": np.diag([2.0, 2.0, 2.0, 1.0]),
    "oblique, anisotropic, left-handed": np.array(
        [[-1.9, 0.1, 0.5, 30], [0.2, 1.0, -0.9, -20], [0.3, 0.4, 2.4, 5], [0, 0, 0, 1.0]]
    ),
}
SHAPE = (24, 30, 20)


def points_of(affine: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


@pytest.fixture(params=AFFINES.values(), ids=AFFINES.keys(), name="affine")
def an_affine(request):
    return request.param


@pytest.fixture(name="cutter")
def a_cutter(affine):
    """A head whose brain is a ball of 9 mm in the middle of the grid."""
    points = points_of(affine)
    middle = points.reshape(-1, 3).mean(axis=0)
    distance = (np.linalg.norm(points - middle, axis=-1) - 9).astype(np.float32)
    return Cutter(Volume(np.zeros(SHAPE, np.int16, order="F"), affine), distance, margin_mm=3)


def test_a_plane_takes_what_lies_beyond_it_and_leaves_the_brain(cutter, affine):
    points = points_of(affine)
    origin, normal = points.reshape(-1, 3).mean(axis=0), np.array([0.3, -0.8, 0.52])
    beyond = (points - origin) @ normal > 0
    mask = cutter.cut(Plane(tuple(origin), tuple(normal)))
    np.testing.assert_array_equal(mask > 0, beyond & (cutter._brain_distance > 3))


def test_a_turned_box_limits_the_plane(cutter, affine):
    points = points_of(affine)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, points[4, 5, 6]
    box = Cuboid(matrix, (14, 22, 30))
    own = (points - matrix[:3, 3]) @ turn
    inside = np.all(np.abs(own) < np.array([7, 11, 15]) - 1e-4, axis=-1)
    plane = Plane((0, 0, 0), (0, 0, 1))
    mask = cutter.cut(plane, box)
    np.testing.assert_array_equal(mask > 0, inside & (points[..., 2] > 0) & (cutter._brain_distance > 3))


def test_the_mask_stays_in_the_memory_that_is_shown(cutter):
    shown = cutter.mask
    cutter.cut(Plane((0, 0, 0), (0, 1, 0)))
    cutter.paint(Ball((0, 0, 0), 8))
    cutter.cut()
    assert cutter.mask is shown


def test_what_is_drawn_is_added_and_given_back_but_not_in_the_brain(cutter):
    drawn = np.random.default_rng(0).random(SHAPE) > 0.7
    np.testing.assert_array_equal(cutter.paint(Drawn(drawn)) > 0, drawn & (cutter._brain_distance > 3))
    assert not cutter.paint(Drawn(np.ones(SHAPE, bool)), add=False).any()
    assert not cutter.paint(Drawn(np.zeros(SHAPE, bool))).any()


def test_strokes_are_taken_back_one_by_one_and_done_again(cutter, affine):
    corner = tuple(points_of(affine)[1, 1, 1])
    cutter.cut(Plane(corner, (0, 0, 1)))
    states = [cutter.mask.copy()]
    for stroke, add in ((Ball(corner, 9), True), (Ball(corner, 5), False)):
        states.append(cutter.paint(stroke, add).copy())
    assert len({state.tobytes() for state in states}) == 3
    for state in states[-2::-1]:
        assert cutter.undo()
        np.testing.assert_array_equal(cutter.mask, state)
    assert not cutter.undo()
    for state in states[1:]:
        assert cutter.redo()
        np.testing.assert_array_equal(cutter.mask, state)
    assert not cutter.redo()


def test_a_wider_margin_gives_voxels_back(cutter):
    cutter.cut(Plane((0, 0, 0), (0, 1, 0)))
    before = cutter.mask.copy()
    cutter.margin_mm = 8
    after = cutter.update()
    assert after.sum() < before.sum() and not (after > before).any()
    with pytest.raises(ValueError, match="into the brain"):
        cutter.margin_mm = -1


coordinate = st.floats(-80, 80)
vector = st.tuples(coordinate, coordinate, coordinate)
cuts = st.one_of(
    st.builds(Plane, vector, vector.filter(any)),
    st.builds(Ball, vector, st.floats(0.1, 90)),
    st.builds(
        lambda centre, size, seed: Cuboid(
            np.block(
                [
                    [np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0], np.array(centre)[:, None]],
                    [np.zeros((1, 3)), np.ones((1, 1))],
                ]
            ),
            size,
        ),
        vector,
        st.tuples(*[st.floats(0.1, 200)] * 3),
        st.integers(0, 99),
    ),
)


@settings(max_examples=40, deadline=None)
@given(shapes=st.lists(cuts, max_size=3), strokes=st.lists(st.tuples(cuts, st.booleans()), max_size=4))
def test_no_cut_ever_takes_a_voxel_of_the_brain_or_of_its_margin(shapes, strokes):
    affine = AFFINES["oblique, anisotropic, left-handed"]
    points = points_of(affine)
    distance = (np.linalg.norm(points - points.reshape(-1, 3).mean(axis=0), axis=-1) - 9).astype(np.float32)
    cutter = Cutter(Volume(np.zeros(SHAPE, np.int16), affine), distance, margin_mm=2)
    cutter.cut(*shapes)
    for stroke, add in strokes:
        cutter.paint(stroke, add)
    assert not cutter.mask[distance <= 2].any()
    made = cutter.mask.copy()
    np.testing.assert_array_equal(cutter.update(), made)
