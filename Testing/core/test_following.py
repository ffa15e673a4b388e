"""The average head bent to what a defacer left, on heads whose true bend is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from RefaceRiskLib.diffusion.dataset import MaskDrawer
from RefaceRiskLib.diffusion.following import REACH_MM, follow, followed, followed_skin
from RefaceRiskLib.diffusion.space import COARSE_MM, coarse_grid, halved
from RefaceRiskLib.template import load_template


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
    return tuple(followed(halved(array), field) for array in (template.image, template.skin_distance))


@pytest.fixture(scope="module")
def bent(template, hole, long_face):
    return followed_skin(template, long_face[0] * ~hole, hole, hole)


def test_the_skin_follows_the_tissue_beneath_the_cut(template, hole, long_face, bent):
    truth, average = long_face[1], halved(template.skin_distance)
    skin = hole & (np.abs(truth) < 3)
    assert np.abs(bent - truth)[skin].mean() < 0.6 * np.abs(average - truth)[skin].mean()


def test_what_was_removed_has_no_say(template, hole, long_face, bent):
    garbage = np.where(hole, np.random.default_rng(0).random(hole.shape), long_face[0])
    np.testing.assert_array_equal(followed_skin(template, garbage, hole, hole), bent)


def test_far_from_the_hole_nothing_moves(template, hole, long_face):
    field = follow(halved(template.image), long_face[0] * ~hole, hole, hole)
    far = ndimage.distance_transform_edt(~hole) * COARSE_MM > REACH_MM + 40
    assert np.abs(field).max() > 2
    assert np.abs(field[:, far]).max() < 0.05


def test_without_a_hole_the_average_stays(template, long_face):
    nothing = np.zeros(long_face[0].shape, bool)
    assert not follow(halved(template.image), long_face[0], nothing, nothing).any()
