"""Handles in the scene, a plane and a box, and a mask that follows them while they are dragged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from ..defacing.cutter import Cuboid, Cutter, Drawn, Plane
from ..volumes import Volume
from .nodes import node_from_volume, volume_from_node
from .skins import SKIN_RGB, skin_node

REMOVED_RGB = (0.85, 0.25, 0.20)
REMOVED = "removed"
BOX_MM = (160.0, 120.0, 180.0)


class LiveCut:
    """Everything in front of ``plane`` and inside ``box`` goes, but for the brain and its margin.

    ``mask`` is the label map node of what goes, ``skin`` the head's surface with the part that goes in red. The nodes
    live in world coordinates; `close` takes them out of the scene again (the mask too, unless it is to be kept).
    """

    def __init__(
        self,
        head,
        brain_distance: Volume,
        plane: dict,
        skin_file: str | Path,
        margin_mm: float = 5.0,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        """``plane``: "origin" and "normal", RAS mm; it, the brain's distance on the head's grid and the skin's file are
        what the worker's `prepare` gives."""
        volume = volume_from_node(head)
        self.head = head
        self._on_change = on_change or (lambda: None)
        self.mask = node_from_volume(
            Volume(np.zeros(volume.shape, np.uint8), volume.affine),
            f"{head.GetName()} cut",
            "vtkMRMLLabelMapVolumeNode",
        )
        self.mask.CreateDefaultDisplayNodes()
        self.mask.GetDisplayNode().SetAndObserveColorNodeID(_colours("stays", (0, 0, 0), 0.0).GetID())
        shown = slicer.util.arrayFromVolume(self.mask).transpose(2, 1, 0)  # the node's own memory as (I, J, K)
        distance = np.asfortranarray(brain_distance.voxels, np.float32)
        self.cutter = Cutter(volume, distance, margin_mm, mask=shown)
        self.plane = self._plane_node(plane)
        self.box = self._box_node(plane)
        self._skin(skin_file, volume)
        self._history: list[tuple] = []
        self._state: tuple | None = None
        self._observed = [
            (node, node.AddObserver(event, call))
            for node in (self.plane, self.box)
            for event, call in (
                (slicer.vtkMRMLMarkupsNode.PointModifiedEvent, self._moved),
                (vtk.vtkCommand.ModifiedEvent, self._moved),
                (slicer.vtkMRMLMarkupsNode.PointStartInteractionEvent, self._about_to_move),
            )
        ]
        self.update()

    @property
    def removed_voxels(self) -> int:
        return int(np.count_nonzero(self.cutter.mask))

    def set_margin(self, margin_mm: float) -> None:
        """How far from the brain every cut stops, mm."""
        self.cutter.margin_mm = margin_mm
        self._state = None
        self.update()

    def update(self) -> None:
        """Make the mask follow the handles; nothing happens where they have not moved."""
        state = self._handles()
        if state == self._state:
            return
        self._state = state
        origin, normal, matrix, size = state
        self.cutter.cut(Plane(origin, normal), Cuboid(np.array(matrix).reshape(4, 4), size))
        self._show()

    def draw(self, mask: np.ndarray, add: bool = True) -> None:
        """Add what somebody drew, (I, J, K) bool, to what goes, or give it back."""
        before = self.removed_voxels
        self.cutter.paint(Drawn(mask), add)
        if self.removed_voxels == before:
            self.cutter.undo()  # a stroke that changed nothing is none to take back
        self._show()

    def undo(self) -> bool:
        """Take back the latest stroke, or the latest move of a handle; False when there is none."""
        if self.cutter.undo():
            self._show()
            return True
        if not self._history:
            return False
        origin, normal, matrix, size = self._history.pop()
        self.plane.SetOriginWorld(origin)
        self.plane.SetNormalWorld(normal)
        placed = vtk.vtkMatrix4x4()
        placed.DeepCopy(matrix)
        self.box.SetAndObserveObjectToNodeMatrix(placed)
        self.box.SetSize(size)
        self.update()
        return True

    def close(self, keep_mask: bool = False) -> None:
        for node, tag in self._observed:
            node.RemoveObserver(tag)
        self._observed = []
        for node in (self.plane, self.box, self.skin, *(() if keep_mask else (self.mask,))):
            if node.GetScene() is not None:
                slicer.mrmlScene.RemoveNode(node)

    # --- nodes ---

    def _plane_node(self, plane: dict):
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsPlaneNode", "Cut")
        node.CreateDefaultDisplayNodes()
        node.SetSaveWithScene(False)
        node.SetSizeMode(slicer.vtkMRMLMarkupsPlaneNode.SizeModeAbsolute)
        node.SetSize(180, 180)
        node.SetOriginWorld(plane["origin"])
        node.SetNormalWorld(plane["normal"])
        _with_handles(node)
        return node

    def _box_node(self, plane: dict):
        """Around the face: before the plane, wide enough for every head."""
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Only inside")
        node.CreateDefaultDisplayNodes()
        node.SetSaveWithScene(False)
        centre = np.array(plane["origin"]) + 0.25 * BOX_MM[1] * np.array(plane["normal"])
        node.SetCenterWorld(centre.tolist())
        node.SetSize(BOX_MM)
        node.GetDisplayNode().SetFillOpacity(0.0)
        _with_handles(node)
        return node

    def _skin(self, file: str | Path, volume: Volume) -> None:
        self.skin = skin_node(file, "Skin and cut")
        self.skin.SetSaveWithScene(False)
        points = vtk.util.numpy_support.vtk_to_numpy(self.skin.GetPolyData().GetPoints().GetData())
        inverse = np.linalg.inv(volume.affine)
        index = np.rint(points @ inverse[:3, :3].T + inverse[:3, 3]).astype(np.intp)
        index = np.clip(index, 0, np.array(volume.shape) - 1)
        # Where each point lies in the mask's memory, whose first axis runs fastest.
        self._places = index @ np.array([1, volume.shape[0], volume.shape[0] * volume.shape[1]])
        self._goes = np.zeros(len(points), np.uint8)
        self._scalars = numpy_to_vtk(self._goes)
        self._scalars.SetName(REMOVED)
        self.skin.GetPolyData().GetPointData().SetScalars(self._scalars)
        display = self.skin.GetDisplayNode()
        display.SetAndObserveColorNodeID(_colours("skin", SKIN_RGB, 1.0).GetID())
        display.SetActiveScalarName(REMOVED)
        display.SetScalarRangeFlag(slicer.vtkMRMLDisplayNode.UseManualScalarRange)
        display.SetScalarRange(0, 1)
        display.SetScalarVisibility(True)

    # --- following ---

    def _handles(self) -> tuple:
        origin, normal = [0.0] * 3, [0.0] * 3
        self.plane.GetOriginWorld(origin)
        self.plane.GetNormalWorld(normal)
        matrix = self.box.GetObjectToWorldMatrix()
        cells = tuple(matrix.GetElement(row, column) for row in range(4) for column in range(4))
        return tuple(origin), tuple(normal), cells, tuple(self.box.GetSize())

    def _about_to_move(self, caller, event) -> None:
        self._history.append(self._handles())

    def _moved(self, caller, event) -> None:
        self.update()

    def _show(self) -> None:
        np.take(self.cutter.mask.reshape(-1, order="F"), self._places, out=self._goes)
        self._scalars.Modified()
        self.skin.GetPolyData().Modified()
        slicer.util.arrayFromVolumeModified(self.mask)
        self._on_change()


def _with_handles(node) -> None:
    display = node.GetDisplayNode()
    display.SetHandlesInteractive(True)
    display.SetPropertiesLabelVisibility(False)


def _colours(rest: str, rgb: tuple, opacity: float):
    """Two colours: what goes, and the rest; one table a scene for each name of the rest."""
    tag = f"RefaceRiskCut-{rest}"
    found = slicer.mrmlScene.GetSingletonNode(tag, "vtkMRMLColorTableNode")
    if found is not None:
        return found
    table = slicer.vtkMRMLColorTableNode()
    table.SetName(f"Cut, {rest}")
    table.SetSingletonTag(tag)
    table.SetSaveWithScene(False)
    table.SetTypeToUser()
    table.SetNumberOfColors(2)
    table.SetColor(0, rest, *rgb, opacity)
    table.SetColor(1, "removed", *REMOVED_RGB, 1.0)
    return slicer.mrmlScene.AddNode(table)
