"""Brush and eraser for a live cut: the Segment Editor on two segments, what goes and what stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import slicer
from slicer.i18n import tr as _

if TYPE_CHECKING:
    from .live_cut import LiveCut

REMOVE, KEEP = "remove", "keep"
EDITOR = "RefaceRiskDrawing"


class Drawing:
    """`begin` shows the editor in a layout of the panel; `end` puts what was drawn into the cut and takes it away."""

    def __init__(self) -> None:
        self._cut: LiveCut | None = None
        self._editor = None
        self._segmentation = None

    @property
    def active(self) -> bool:
        return self._cut is not None

    def begin(self, cut: LiveCut, layout) -> None:
        self._cut = cut
        self._segmentation = self._segments(cut.head)
        if self._editor is None:
            self._editor = slicer.qMRMLSegmentEditorWidget()
            self._editor.setMRMLScene(slicer.mrmlScene)
            self._editor.setEffectNameOrder(["Paint", "Erase", "Scissors"])
            self._editor.unorderedEffectsVisible = False
            for part in ("segmentationNodeSelector", "sourceVolumeNodeSelector", "switchToSegmentationsButton"):
                setattr(self._editor, f"{part}Visible", False)
            layout.addWidget(self._editor)
        self._editor.setMRMLSegmentEditorNode(self._editor_node())
        self._editor.setSegmentationNode(self._segmentation)
        self._editor.setSourceVolumeNode(cut.head)
        self._editor.setCurrentSegmentID(REMOVE)
        self._editor.setActiveEffectByName("Paint")
        self._editor.show()

    def end(self, use: bool = True) -> None:
        """``use`` False forgets what was drawn."""
        cut, self._cut = self._cut, None
        if self._editor is not None:
            self._editor.setActiveEffect(None)
            self._editor.hide()
        if cut is None or self._segmentation is None or self._segmentation.GetScene() is None:
            self._segmentation = None
            return
        if use and cut.head.GetScene() is not None:
            for segment, add in ((REMOVE, True), (KEEP, False)):
                if self._is_empty(segment):
                    continue  # an array of it cannot be asked for
                drawn = slicer.util.arrayFromSegmentBinaryLabelmap(self._segmentation, segment, cut.head)
                if drawn is not None and drawn.any():
                    cut.draw(drawn.transpose(2, 1, 0) > 0, add)
        slicer.mrmlScene.RemoveNode(self._segmentation)
        self._segmentation = None

    def _is_empty(self, segment: str) -> bool:
        name = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
        found = self._segmentation.GetSegmentation().GetSegment(segment)
        painted = found.GetRepresentation(name) if found is not None else None
        return painted is None or painted.IsEmpty()

    def _segments(self, head):
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Cut by hand")
        node.SetSaveWithScene(False)
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(head)
        segmentation = node.GetSegmentation()
        segmentation.AddEmptySegment(REMOVE, _("goes"), (0.85, 0.25, 0.20))
        segmentation.AddEmptySegment(KEEP, _("stays"), (0.25, 0.65, 0.35))
        return node

    def _editor_node(self):
        node = slicer.mrmlScene.GetSingletonNode(EDITOR, "vtkMRMLSegmentEditorNode")
        if node is None:
            node = slicer.vtkMRMLSegmentEditorNode()
            node.SetSingletonTag(EDITOR)
            node = slicer.mrmlScene.AddNode(node)
        return node
