"""Smoothing, sampling and distances on grids, each against the plain SciPy call that it replaces."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from RefaceRiskLib.geometry import Trilinear, distance_to, gaussian


@pytest.mark.parametrize("sigma", [0.6, 1.5, 4.0])
@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_the_gaussian_is_that_of_scipy(sigma, mode):
    image = np.random.default_rng(0).normal(size=(2, 11, 17, 23)).astype(np.float32)
    expected = [ndimage.gaussian_filter(one, sigma, mode=mode, truncate=3.0) for one in image]
    np.testing.assert_allclose(gaussian(image, sigma, mode, truncate=3.0), expected, atol=1e-6)
    np.testing.assert_array_equal(gaussian(image[0], sigma, mode, 3.0), gaussian(image, sigma, mode, 3.0)[0])


@pytest.mark.parametrize("sigma", [(0.5, 0.5, 0.5), (0.0, 0.8, 2.0)])
def test_the_gaussian_takes_a_sigma_an_axis_and_either_order_in_memory(sigma):
    image = np.random.default_rng(0).normal(size=(11, 17, 23)).astype(np.float32)
    expected = ndimage.gaussian_filter(image, sigma)
    for order in "CF":
        np.testing.assert_allclose(gaussian(np.array(image, order=order), sigma), expected, atol=1e-6)


def test_arrays_read_together_are_what_scipy_reads_one_by_one():
    rng = np.random.default_rng(1)
    channels = rng.normal(size=(4, 9, 2, 12)).astype(np.float32)
    index = rng.uniform(-3, 14, (3, 5000))
    index[:, :200] = np.round(index[:, :200])  # on voxels and on the border, where the upper corner has no weight
    expected = [ndimage.map_coordinates(channel, index, order=1, mode="nearest") for channel in channels]
    np.testing.assert_allclose(Trilinear(channels).at(index), expected, atol=2e-6)


def test_a_grid_of_one_slice_has_no_cells():
    with pytest.raises(ValueError, match="no cells"):
        Trilinear(np.zeros((1, 4, 1, 4)))


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_distance_to_a_mask_is_that_of_scipy(order):
    mask = np.asarray(np.random.default_rng(2).random((14, 19, 11)) > 0.98, order=order)
    spacing = np.array([0.7, 1.0, 2.5])
    expected = ndimage.distance_transform_edt(~mask, spacing)
    np.testing.assert_allclose(distance_to(mask, spacing), expected, rtol=1e-5)


def test_nothing_is_infinitely_far():
    assert np.isinf(distance_to(np.zeros((3, 4, 5), bool))).all()
    assert (distance_to(np.ones((3, 4, 5), bool)) == 0).all()
