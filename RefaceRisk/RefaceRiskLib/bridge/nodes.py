"""Volume and table nodes of a MRML scene, to and from what the core works with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import slicer
import vtk

from ..errors import RefaceRiskError

if TYPE_CHECKING:
    from ..volumes import Volume


def in_scene(node) -> bool:
    """Whether there is such a node and nobody has deleted it."""
    return node is not None and node.GetScene() is not None


def volume_from_node(node) -> Volume:
    """The node's voxels (I, J, K) and its voxel-to-world-RAS affine, with linear parent transforms applied.

    The voxels are a view of the node's own memory: they are valid while the node keeps its image.

    Raises RefaceRiskError when the node holds no image or lies under a transform that is not linear.
    """
    from ..volumes import Volume

    if node is None or node.GetImageData() is None or node.GetImageData().GetNumberOfPoints() == 0:
        raise RefaceRiskError("the volume holds no image", "load or choose another volume", _name(node))
    voxels = slicer.util.arrayFromVolume(node).transpose(2, 1, 0)  # VTK stores k, j, i
    return Volume(voxels, _to_world(node) @ _ijk_to_ras(node))


def node_from_volume(volume: Volume, name: str, class_name: str = "vtkMRMLScalarVolumeNode"):
    """A new node with the volume's intensities, under no transform: its affine leads to world RAS."""
    # MRML knows no scale factor: what the numbers mean is what it gets.
    plain = volume.meta.slope == 1.0 and volume.meta.intercept == 0.0
    voxels = volume.voxels if plain else volume.intensities
    if voxels.dtype == bool:
        voxels = voxels.astype(np.uint8)
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(volume.affine, dtype=float).ravel())
    return slicer.util.addVolumeFromArray(voxels.transpose(2, 1, 0), matrix, name, class_name)


def table_node(name: str, columns: Mapping[str, Sequence], node=None):
    """A table node with these columns (title -> cells, numbers or texts); fills `node` where one is given."""
    if node is None:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", name)
    table = vtk.vtkTable()
    for title, cells in columns.items():
        numeric = all(isinstance(cell, (int, float, np.number)) for cell in cells)
        column = vtk.vtkDoubleArray() if numeric else vtk.vtkStringArray()
        column.SetName(title)
        for cell in cells:
            column.InsertNextValue(float(cell) if numeric else str(cell))
        table.AddColumn(column)
    node.SetAndObserveTable(table)
    return node


def place_beside(node, source) -> None:
    """Puts the node into the subject-hierarchy folder (patient, study) of the node that it came from."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return
    item = hierarchy.GetItemByDataNode(source)
    parent = hierarchy.GetItemParent(item) if item else 0
    if parent:
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), parent)


def _ijk_to_ras(node) -> np.ndarray:
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return _array(matrix)


def _to_world(node) -> np.ndarray:
    transform = node.GetParentTransformNode()
    if transform is None:
        return np.eye(4)
    if not transform.IsTransformToWorldLinear():
        raise RefaceRiskError(
            "the volume lies under a transform that bends it", "harden the transform first", _name(node)
        )
    matrix = vtk.vtkMatrix4x4()
    transform.GetMatrixTransformToWorld(matrix)
    return _array(matrix)


def _array(matrix) -> np.ndarray:
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def _name(node) -> str | None:
    return None if node is None else node.GetName()
