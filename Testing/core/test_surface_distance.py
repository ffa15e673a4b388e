"""Distances between surfaces: exact, weighted by area, over a region, both ways."""

from __future__ import annotations

import numpy as np
import pytest
import vtk
from surface_phantoms import ball, sheet
from vtk.util.numpy_support import vtk_to_numpy

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.surface.distance import distance, distances, point_to_surface, weighted_quantiles
from RefaceRiskLib.surface.extract import Surface, extract_skin


@pytest.fixture(scope="module")
def globes() -> tuple[Surface, Surface]:
    return extract_skin(ball(20.0), 500.0), extract_skin(ball(22.0, centre=(0, 1, 0)), 500.0)


def test_distances_agree_with_vtk_distance_poly_data_filter(tiny_head):
    bent = tiny_head.with_intensities(np.roll(tiny_head.intensities, 2, axis=1))
    original, other = extract_skin(tiny_head), extract_skin(bent)
    reference = vtk.vtkDistancePolyDataFilter()
    reference.SetInputData(0, original.polydata())
    reference.SetInputData(1, other.polydata())
    reference.SignedDistanceOff()
    reference.Update()
    expected = vtk_to_numpy(reference.GetOutput().GetPointData().GetArray("Distance"))
    assert np.abs(distance(original, other).per_vertex - expected).max() < 1e-6


def test_points_between_vertices_are_measured_to_the_triangle():
    wide = sheet([0, 10])
    assert point_to_surface(np.array([[5.0, 5.0, 2.0], [5.0, 12.0, 0.0]]), wide) == pytest.approx([2.0, 2.0])


def test_a_surface_lies_nowhere_off_itself(globes):
    found = distance(globes[0], globes[0])
    assert found.max == found.mean == found.symmetric_mean == 0.0


def test_the_mean_does_not_depend_on_where_vertices_are_dense():
    coarse, uneven = np.linspace(0, 10, 11), np.r_[np.linspace(0, 1, 200), np.linspace(1.5, 10, 18)]
    slope = Surface([(0, -5, 0), (10, -5, 5), (10, 15, 5), (0, 15, 0)], [(0, 1, 2), (0, 2, 3)])
    even = distance(sheet(coarse), slope).mean
    assert distance(sheet(uneven), slope).mean == pytest.approx(even, rel=0.01)
    assert even == pytest.approx(5 / np.sqrt(5), rel=0.01)  # half of 10 mm times the sine of the slope


def test_the_way_back_counts_in_the_symmetric_mean():
    small, large = sheet([0, 5, 10]), sheet([0, 5, 10, 20])
    found = distance(small, large)
    assert found.mean == 0.0
    assert found.symmetric_mean > 0.5
    assert distance(large, small).symmetric_mean == pytest.approx(found.symmetric_mean)


def test_only_the_region_counts_yet_every_vertex_has_its_distance(globes):
    original, other = globes
    front = original.points[:, 1] > 10
    found = distance(original, other, front)
    everywhere = distance(original, other)
    assert found.mean > everywhere.mean + 0.5  # the other one is shifted forwards
    assert np.array_equal(found.per_vertex, everywhere.per_vertex)
    assert np.array_equal(found.region, front)
    assert found.max == found.per_vertex[front].max()


def test_the_region_is_carried_to_the_other_surface_for_the_way_back(globes):
    original, other = globes
    back = original.points[:, 1] < -10
    found = distance(original, other, back)
    assert found.symmetric_mean == pytest.approx(found.mean, abs=0.1)  # 1.1 to 1.5 mm there, 3 mm in front


def test_several_regions_give_what_each_alone_gives(globes):
    original, other = globes
    regions = {"front": original.points[:, 1] > 5, "top": original.points[:, 2] > 15}
    together = distances(original, other, regions)
    for name, region in regions.items():
        alone = distance(original, other, region)
        assert (together[name].mean, together[name].p95, together[name].symmetric_mean) == pytest.approx(
            (alone.mean, alone.p95, alone.symmetric_mean)
        )


def test_quantiles_are_weighted():
    assert weighted_quantiles(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 8.0]), (0.05, 0.5, 0.95)) == [1, 2, 3]


def test_an_empty_region_is_refused(globes):
    with pytest.raises(RefaceRiskError, match="no skin"):
        distance(*globes, np.zeros(len(globes[0].points), bool))


def test_a_region_of_the_other_surface_is_refused(globes):
    with pytest.raises(ValueError, match="vertices"):
        distance(*globes, np.ones(len(globes[1].points), bool))
