"""Skin surfaces as model nodes: one that forms while the worker draws, and those that were measured, in colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray

DISTANCE = "distance (mm)"
FARTHEST_MM = 5.0
SKIN_RGB = (0.87, 0.78, 0.70)
FORMING_RGB = (0.42, 0.70, 0.85)
COLOUR_TABLE = "RefaceRiskDistance"


def skin_node(file: str | Path, name: str, node=None):
    """A model node of the skin in an .npz file of the worker (points, triangles, distance_mm); fills ``node`` if given.

    With distances that are not all zero the model is coloured by them from 0 to 5 mm. Points are in world RAS.
    """
    with np.load(file, allow_pickle=False) as arrays:
        surface = _polydata(arrays["points"], arrays["triangles"], arrays.get("normals"))
        distance = arrays.get("distance_mm")
    if node is None:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", name)
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetColor(*SKIN_RGB)
    if distance is not None and distance.any():
        scalars = numpy_to_vtk(distance, deep=True)
        scalars.SetName(DISTANCE)
        surface.GetPointData().SetScalars(scalars)
    node.SetAndObservePolyData(surface)
    if surface.GetPointData().GetScalars() is not None:
        _colour_by_distance(node.GetDisplayNode())
    return node


def forming_node(file: str | Path, node=None):
    """The skin as it forms: a translucent model, outlined in the slices, that is not saved with the scene."""
    fresh = node is None
    node = skin_node(file, "Face that forms (synthetic)", node)
    if fresh:
        node.SetSaveWithScene(False)
        display = node.GetDisplayNode()
        display.SetSaveWithScene(False)
        display.SetColor(*FORMING_RGB)
        display.SetOpacity(0.85)
        display.SetVisibility2D(True)
        display.SetSliceIntersectionThickness(2)
    return node


def distance_colours():
    """The colour table of distances (viridis, 0 to 5 mm); one a scene."""
    from ..surface.render import viridis

    found = slicer.mrmlScene.GetSingletonNode(COLOUR_TABLE, "vtkMRMLColorTableNode")
    if found is not None:
        return found
    table = slicer.vtkMRMLColorTableNode()
    table.SetName("Distance to the original (mm)")
    table.SetSingletonTag(COLOUR_TABLE)
    table.SetTypeToUser()
    table.SetNumberOfColors(256)
    for number, (red, green, blue) in enumerate(viridis(np.linspace(0, 1, 256))):
        table.SetColor(number, f"{FARTHEST_MM * number / 255:.1f}", float(red), float(green), float(blue), 1.0)
    table.GetLookupTable().SetRange(0, FARTHEST_MM)
    return slicer.mrmlScene.AddNode(table)


def show_legend(node) -> None:
    """A scalar bar beside a model that is coloured by distance; none without the application's Colors module."""
    colors = getattr(getattr(slicer, "modules", None), "colors", None)
    if colors is None:
        return
    legend = colors.logic().AddDefaultColorLegendDisplayNode(node)
    if legend is not None:
        legend.SetTitleText("mm")
        legend.SetNumberOfLabels(6)
        legend.SetLabelFormat("%.0f")
        legend.SetVisibility(True)


def _colour_by_distance(display) -> None:
    display.SetAndObserveColorNodeID(distance_colours().GetID())
    display.SetActiveScalarName(DISTANCE)
    display.SetScalarRangeFlag(slicer.vtkMRMLDisplayNode.UseManualScalarRange)
    display.SetScalarRange(0, FARTHEST_MM)
    display.SetScalarVisibility(True)


def _polydata(points: np.ndarray, triangles: np.ndarray, normals: np.ndarray | None):
    """vtkPolyData with smooth normals: the worker's where it made them, for on a whole skin that takes long."""
    positions, cells, surface = vtk.vtkPoints(), vtk.vtkCellArray(), vtk.vtkPolyData()
    positions.SetData(numpy_to_vtk(np.ascontiguousarray(points, np.float32), deep=True))
    offsets = np.arange(0, 3 * len(triangles) + 1, 3, dtype=np.int64)
    corners = np.ascontiguousarray(triangles, np.int64).ravel()
    cells.SetData(numpy_to_vtkIdTypeArray(offsets, deep=True), numpy_to_vtkIdTypeArray(corners, deep=True))
    surface.SetPoints(positions)
    surface.SetPolys(cells)
    if normals is not None:
        surface.GetPointData().SetNormals(numpy_to_vtk(np.ascontiguousarray(normals, np.float32), deep=True))
        return surface
    smooth = vtk.vtkPolyDataNormals()
    smooth.SetInputData(surface)
    smooth.SplittingOff()
    smooth.ConsistencyOff()
    smooth.Update()
    return smooth.GetOutput()
