"""The average head bent to what a defacer left, on heads whose true bend is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from RefaceRiskLib.diffusion.dataset import MaskDrawer
from RefaceRiskLib.diffusion.following import REACH_MM, FollowedSkin, displaced, follow, inverted
from RefaceRiskLib.diffusion.linear import LIMIT_MM
from RefaceRiskLib.diffusion.space import COARSE_MM, coarse_grid, cropped, face_grid, halved, upsampled
from RefaceRiskLib.template import Grid, load_template


@pytest.fixture(scope="module")
def template():
    return load_template()


@pytest.fixture(scope="module")
def hole(template):
    drawer = MaskDrawer(template)
    return (drawer.shapes["mri_deface"] > 0.5) & (drawer.brain_distance > 8)


@pytest.fixture(scope="module")
def long_face(template):
    """(image, distance) of the average head with its face, tissue and skin alike, 6 mm farther forward."""
    grid = coarse_grid(template)
    y = np.broadcast_to(grid.affine[1, 3] + COARSE_MM * np.arange(grid.shape[1])[:, None], grid.shape)
    field = np.zeros((3, *grid.shape), np.float32)
    field[1] = 6 * np.clip((y - 20) / 60, 0, 1)
    back = inverted(field) / COARSE_MM
    return tuple(displaced(halved(array), back) for array in (template.image, template.skin_distance))


@pytest.fixture(scope="module")
def bent(template, hole, long_face):
    return FollowedSkin.of(template, long_face[0] * ~hole, hole, hole).coarse


def test_the_skin_follows_the_tissue_beneath_the_cut(template, hole, long_face, bent):
    truth, average = long_face[1], halved(template.skin_distance)
    skin = hole & (np.abs(truth) < 3)
    assert np.abs(bent - truth)[skin].mean() < 0.6 * np.abs(average - truth)[skin].mean()


def test_what_was_removed_has_no_say(template, hole, long_face, bent):
    garbage = np.where(hole, np.random.default_rng(0).random(hole.shape), long_face[0])
    np.testing.assert_array_equal(FollowedSkin.of(template, garbage, hole, hole).coarse, bent)


def test_far_from_the_hole_nothing_moves(template, hole, long_face):
    field = follow(halved(template.image), long_face[0] * ~hole, hole, hole)
    far = ndimage.distance_transform_edt(~hole) * COARSE_MM > REACH_MM + 40
    assert np.abs(field).max() > 2
    assert np.abs(field[:, far]).max() < 0.05


def test_without_a_hole_the_average_stays(template, long_face):
    nothing = np.zeros(long_face[0].shape, bool)
    assert not follow(halved(template.image), long_face[0], nothing, nothing).any()


def test_on_a_finer_grid_the_skin_has_the_detail_of_the_template(template):
    nothing = FollowedSkin(template, np.zeros((3, *coarse_grid(template).shape), np.float32))
    box = face_grid(template)
    truth = cropped(template.skin_distance, Grid(template.shape, template.affine), box)
    np.testing.assert_allclose(nothing.on(box), np.clip(truth, -LIMIT_MM, LIMIT_MM), atol=1e-4)
    # A map at 4 mm keeps what it says, and where it is the average's own, the average's detail comes back.
    near = np.abs(truth) < 3
    np.testing.assert_allclose(nothing.detailed(nothing.coarse, box)[near], truth[near], atol=1e-4)
    np.testing.assert_allclose(nothing.detailed(nothing.coarse + 2, box)[near], truth[near] + 2, atol=0.01)
    plain = upsampled(nothing.coarse, coarse_grid(template), box)
    assert np.abs(plain - truth)[near].mean() > 0.05
