"""Volumes and tables between MRML nodes and the core."""

from __future__ import annotations

import numpy as np
import pytest
import vtk

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from RefaceRiskLib.bridge.nodes import node_from_volume, table_node, volume_from_node  # noqa: E402
from RefaceRiskLib.errors import RefaceRiskError  # noqa: E402
from RefaceRiskLib.volumes import Meta, Volume, sample  # noqa: E402


@pytest.fixture
def an_oblique_volume():
    rng = np.random.default_rng(3)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * [0.9, 1.1, 2.5], [12, -30, 55]
    return Volume(rng.integers(-500, 1500, (7, 8, 9)).astype(np.int16), affine)


def test_a_volume_comes_back_as_it_went(scene, an_oblique_volume):
    node = node_from_volume(an_oblique_volume, "head")
    back = volume_from_node(node)
    assert node.GetImageData().GetDimensions() == (7, 8, 9)
    assert back.voxels.dtype == np.int16
    np.testing.assert_array_equal(back.voxels, an_oblique_volume.voxels)
    np.testing.assert_allclose(back.affine, an_oblique_volume.affine, atol=1e-9)


def test_voxels_are_a_view_of_the_nodes_memory_that_cannot_be_written(scene, an_oblique_volume):
    node = node_from_volume(an_oblique_volume, "head")
    volume = volume_from_node(node)
    assert np.shares_memory(volume.voxels, slicer.util.arrayFromVolume(node))
    with pytest.raises(ValueError, match="read-only"):
        volume.voxels[0, 0, 0] = 1
    slicer.util.arrayFromVolume(node)[0, 0, 0] = 7  # the node itself stays writable


def test_scaled_voxels_arrive_as_the_intensities_that_they_mean(scene, an_oblique_volume):
    scaled = Volume(an_oblique_volume.voxels, an_oblique_volume.affine, Meta(slope=0.5, intercept=-3))
    node = node_from_volume(scaled, "head")
    np.testing.assert_allclose(volume_from_node(node).voxels, scaled.intensities)


def test_a_mask_becomes_a_volume_of_zeros_and_ones(scene, an_oblique_volume):
    mask = Volume(an_oblique_volume.voxels > 0, an_oblique_volume.affine)
    node = node_from_volume(mask, "removed", "vtkMRMLLabelMapVolumeNode")
    assert set(np.unique(slicer.util.arrayFromVolume(node))) == {0, 1}


def test_a_parent_transform_moves_the_volume_as_the_scene_shows_it(scene, an_oblique_volume):
    node = node_from_volume(an_oblique_volume, "head")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 10)
    matrix.SetElement(1, 1, 0)
    matrix.SetElement(1, 2, -1)
    matrix.SetElement(2, 1, 1)
    matrix.SetElement(2, 2, 0)
    transform = scene.AddNewNodeByClass("vtkMRMLTransformNode")
    transform.SetMatrixTransformToParent(matrix)
    node.SetAndObserveTransformNodeID(transform.GetID())
    moved = volume_from_node(node)
    inside = an_oblique_volume.affine @ [3, 4, 5, 1]
    in_world = matrix.MultiplyPoint(inside)
    value = sample(moved.intensities, moved.affine, np.array([in_world[:3]]))
    assert value[0] == pytest.approx(an_oblique_volume.voxels[3, 4, 5], abs=1e-3)


def test_a_bending_transform_is_refused(scene, an_oblique_volume):
    node = node_from_volume(an_oblique_volume, "head")
    spline = vtk.vtkThinPlateSplineTransform()
    points = vtk.vtkPoints()
    for point in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        points.InsertNextPoint(point)
    spline.SetSourceLandmarks(points)
    spline.SetTargetLandmarks(points)
    transform = scene.AddNewNodeByClass("vtkMRMLTransformNode")
    transform.SetAndObserveTransformToParent(spline)
    node.SetAndObserveTransformNodeID(transform.GetID())
    with pytest.raises(RefaceRiskError, match="head: the volume lies under a transform that bends it"):
        volume_from_node(node)


def test_a_node_without_an_image_is_refused(scene):
    with pytest.raises(RefaceRiskError, match="empty: the volume holds no image"):
        volume_from_node(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty"))


def test_a_table_keeps_numbers_as_numbers(scene):
    node = table_node("distances", {"image": ["defaced", "dpm"], "mean mm": [2.5, 1]})
    table = node.GetTable()
    assert [table.GetColumnName(column) for column in range(2)] == ["image", "mean mm"]
    assert table.GetColumn(1).GetValue(1) == 1.0
    assert table.GetColumn(0).GetValue(0) == "defaced"
