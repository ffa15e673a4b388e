"""Skins that the worker measured or that form, as model nodes of a real scene."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from RefaceRiskLib.bridge.skins import DISTANCE, distance_colours, forming_node, skin_node  # noqa: E402


@pytest.fixture
def a_tetrahedron():
    points = np.array([[0, 0, 0], [10, 0, 0], [0, 10, 0], [0, 0, 10]], np.float32)
    triangles = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]], np.int32)
    return {"points": points, "triangles": triangles}


@pytest.fixture
def a_measured_skin(a_tetrahedron, tmp_path):
    file = tmp_path / "refaced.npz"
    np.savez(file, **a_tetrahedron, distance_mm=np.array([0, 1, 2.5, 7], np.float32))
    return file


def test_points_and_distances_arrive_as_they_were_measured(scene, a_measured_skin):
    node = skin_node(a_measured_skin, "refaced")
    surface = node.GetPolyData()
    assert [surface.GetPoint(number) for number in range(4)][3] == (0, 0, 10)
    assert surface.GetNumberOfPolys() == 4
    scalars = surface.GetPointData().GetArray(DISTANCE)
    assert [scalars.GetValue(number) for number in range(4)] == [0, 1, 2.5, 7]


def test_a_measured_skin_is_coloured_from_0_to_5_mm(scene, a_measured_skin):
    display = skin_node(a_measured_skin, "refaced").GetDisplayNode()
    assert display.GetScalarVisibility() and display.GetScalarRange() == (0, 5)
    assert display.GetColorNode().GetNumberOfColors() == 256


def test_all_skins_share_one_colour_table(scene, a_measured_skin):
    first, second = (skin_node(a_measured_skin, name) for name in ("defaced", "refaced"))
    assert first.GetDisplayNode().GetColorNode() is second.GetDisplayNode().GetColorNode() is distance_colours()


def test_the_original_itself_is_not_coloured(scene, a_tetrahedron, tmp_path):
    file = tmp_path / "original.npz"
    np.savez(file, **a_tetrahedron, distance_mm=np.zeros(4, np.float32))
    assert not skin_node(file, "original").GetDisplayNode().GetScalarVisibility()


def test_the_skin_that_forms_is_one_node_that_no_scene_file_keeps(scene, a_tetrahedron, tmp_path):
    node = None
    for step in range(3):
        file = tmp_path / f"preview-{step}.npz"
        np.savez(file, points=a_tetrahedron["points"] + step, triangles=a_tetrahedron["triangles"])
        node = forming_node(file, node)
    assert scene.GetNumberOfNodesByClass("vtkMRMLModelNode") == 1
    assert node.GetPolyData().GetPoint(0) == (2, 2, 2)
    assert not node.GetSaveWithScene()
    assert node.GetDisplayNode().GetVisibility2D()


def test_a_saved_scene_brings_skins_and_colours_back(scene, a_measured_skin, tmp_path):
    node = skin_node(a_measured_skin, "refaced")
    storage = scene.AddNewNodeByClass("vtkMRMLModelStorageNode")
    storage.SetFileName(str(tmp_path / "refaced.vtk"))
    node.SetAndObserveStorageNodeID(storage.GetID())
    assert storage.WriteData(node)
    colours = distance_colours()
    kept = scene.AddNewNodeByClass("vtkMRMLColorTableStorageNode")
    kept.SetFileName(str(tmp_path / "distance.ctbl"))
    colours.SetAndObserveStorageNodeID(kept.GetID())
    assert kept.WriteData(colours)
    scene.SetURL(str(tmp_path / "scene.mrml"))
    scene.SetRootDirectory(str(tmp_path))
    assert scene.Commit()
    scene.Clear(True)
    assert scene.Connect()
    back = slicer.util.getNode("refaced")
    assert back.GetPolyData().GetNumberOfPoints() == 4
    assert back.GetDisplayNode().GetScalarRange() == (0, 5)
    assert back.GetDisplayNode().GetColorNode().GetName() == colours.GetName()
