"""Stand-ins for the widgets of Slicer that know the MRML scene."""

from __future__ import annotations

import shiboken6
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Signal

from .reference import known_classes
from .widgets import Keeping, bare, ctkRangeWidget, ctkSliderWidget, with_all_signals

complaints: list[str] = []  # what the real widgets log as critical errors


class _HasScene:
    """The part of qMRMLWidget that the others have as well."""

    def mrmlScene(self):
        return self.__dict__.get("_scene")

    def setMRMLScene(self, scene) -> None:
        if scene is not self.mrmlScene():
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


class qMRMLWidget(QtWidgets.QWidget, _HasScene, Keeping):
    mrmlSceneChanged = Signal(object)


class qSlicerWidget(QtWidgets.QWidget, _HasScene, Keeping):
    mrmlSceneChanged = Signal(object)


class qMRMLNodeComboBox(QtWidgets.QWidget, Keeping):
    """Chooses a node of the scene. Without a "none" item the first node that comes is chosen by itself."""

    _nodeChanged = Signal(object)
    _nodeIsThere = Signal(bool)
    currentNodeIDChanged = Signal(str)
    currentNodeRenamed = Signal(str)
    nodeActivated = Signal(object)
    nodeAdded = Signal(object)
    nodeAddedByUser = Signal(object)
    nodeAddedByUserAction = Signal(object)
    nodeAboutToBeEdited = Signal(object)
    nodeAboutToBeRemoved = Signal(object)
    OVERLOADS = {  # noqa: RUF012
        "currentNodeChanged(vtkMRMLNode*)": "_nodeChanged",
        "currentNodeChanged(bool)": "_nodeIsThere",
    }

    def __init__(self, parent=None):
        super().__init__(parent)
        self._box = QtWidgets.QComboBox(self)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self._scene, self._observers = None, []
        self._types: list[str] = []
        self._none, self._children, self._hidden, self._quiet = False, True, False, False
        self._none_text = "None"
        self._requested = None
        self._box.currentIndexChanged.connect(self._tell)
        self.setEnabled(False)
        self.destroyed.connect(self._observers.clear)

    # --- the scene ---

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene) -> None:
        if scene is self._scene:
            return
        for observed, tag in self._observers:
            observed.RemoveObserver(tag)
        self._observers.clear()
        self._scene = scene
        if scene is not None:
            for event in (
                scene.NodeAddedEvent,
                scene.NodeRemovedEvent,
                scene.EndImportEvent,
                scene.EndCloseEvent,
                scene.EndBatchProcessEvent,
            ):
                self._observers.append((scene, scene.AddObserver(event, self._scene_changed)))
        self._fill(self._requested)
        self._requested = None
        self.setEnabled(scene is not None)

    def _scene_changed(self, caller, event) -> None:
        if shiboken6.isValid(self) and not self._scene.IsBatchProcessing():
            self._fill(self.currentNodeID)

    def nodes(self) -> list:
        if self._scene is None:
            return []
        found = []
        for index in range(self._scene.GetNumberOfNodes()):
            node = self._scene.GetNthNode(index)
            if node.GetHideFromEditors() and not self._hidden:
                continue
            if any(self._fits(node, wanted) for wanted in self._types) or not self._types:
                found.append(node)
        return found

    def _fits(self, node, wanted: str) -> bool:
        return node.IsA(wanted) if self._children else node.GetClassName() == wanted

    def _fill(self, chosen: str | None) -> None:
        before = self.currentNodeID
        self._quiet = True
        self._box.clear()
        if self._none:
            self._box.addItem(self._none_text, "")
        for node in self.nodes():
            self._box.addItem(node.GetName(), node.GetID())
        found = self._box.findData(chosen) if chosen else -1
        if found < 0 and (self._none or not before):
            found = 0  # "None", or the first node that there is
        self._box.setCurrentIndex(found)
        self._quiet = False
        if self.currentNodeID != before:
            self._tell()

    # --- the choice ---

    def currentNode(self):
        if self._scene is None or not self._box.currentData():
            return None
        return self._scene.GetNodeByID(self._box.currentData())

    def setCurrentNode(self, node) -> None:
        self.setCurrentNodeID("" if node is None else node.GetID() or "")

    def setCurrentNodeID(self, identifier: str) -> None:
        if self._scene is None:
            self._requested = identifier
            return
        self._box.setCurrentIndex(self._box.findData(identifier))

    def setCurrentNodeIndex(self, index: int) -> None:
        self._box.setCurrentIndex(index + (1 if self._none else 0))

    def nodeCount(self) -> int:
        return len(self.nodes())

    def nodeFromIndex(self, index: int):
        return self.nodes()[index]

    def addNode(self, class_name: str | None = None):
        node = self._scene.AddNewNodeByClass(class_name or self._types[0])
        self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def _tell(self, *_index) -> None:
        if self._quiet:
            return
        node = self.currentNode()
        self._nodeChanged.emit(node)
        self._nodeIsThere.emit(node is not None)
        self.currentNodeIDChanged.emit(node.GetID() if node else "")

    def _set_types(self, types) -> None:
        self._types = list(types)
        self._fill(self.currentNodeID)

    def _set_none(self, on: bool) -> None:
        self._none = on
        self._fill(self.currentNodeID)

    def _set_children(self, on: bool) -> None:
        self._children = on
        self._fill(self.currentNodeID)

    def _set_hidden(self, on: bool) -> None:
        self._hidden = on
        self._fill(self.currentNodeID)

    def _set_none_text(self, text: str) -> None:
        self._none_text = text
        self._fill(self.currentNodeID)

    nodeTypes = Property("QStringList", lambda self: self._types, _set_types)
    noneEnabled = Property(bool, lambda self: self._none, _set_none)
    noneDisplay = Property(str, lambda self: self._none_text, _set_none_text)
    showChildNodeTypes = Property(bool, lambda self: self._children, _set_children)
    showHidden = Property(bool, lambda self: self._hidden, _set_hidden)
    currentNodeID = Property(str, lambda self: self._box.currentData() or "", setCurrentNodeID)
    currentNodeId = Property(str, lambda self: self._box.currentData() or "", setCurrentNodeID)

    def _kept_flag(name, default):
        return Property(
            type(default),
            lambda self: self.kept.get(name, default),
            lambda self, value: self.kept.__setitem__(name, value),
        )

    addEnabled = _kept_flag("addEnabled", True)
    removeEnabled = _kept_flag("removeEnabled", True)
    editEnabled = _kept_flag("editEnabled", False)
    renameEnabled = _kept_flag("renameEnabled", False)
    selectNodeUponCreation = _kept_flag("selectNodeUponCreation", True)
    baseName = _kept_flag("baseName", "")
    del _kept_flag


class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):
    """A list of nodes with a tick at each; shows which are ticked."""

    checkedNodesChanged = Signal()

    def __init__(self, parent=None):
        super().__init__(parent)
        self._checked: list[str] = []

    def _fill(self, chosen: str | None) -> None:
        super()._fill(chosen)
        there = [node.GetID() for node in self.nodes()]
        before, self._checked = self._checked, [identifier for identifier in self._checked if identifier in there]
        if before != self._checked:
            self.checkedNodesChanged.emit()

    def setCheckState(self, node, state) -> None:
        checked = state == QtCore.Qt.CheckState.Checked
        if node is None or checked == (node.GetID() in self._checked):
            return
        self._checked.append(node.GetID()) if checked else self._checked.remove(node.GetID())
        self.checkedNodesChanged.emit()

    def checkState(self, node):
        states = QtCore.Qt.CheckState
        return states.Checked if node is not None and node.GetID() in self._checked else states.Unchecked

    def check(self, node) -> None:
        self.setCheckState(node, QtCore.Qt.CheckState.Checked)

    def uncheck(self, node) -> None:
        self.setCheckState(node, QtCore.Qt.CheckState.Unchecked)

    def checkedNodes(self) -> list:
        return [node for node in self.nodes() if node.GetID() in self._checked]

    def uncheckedNodes(self) -> list:
        return [node for node in self.nodes() if node.GetID() not in self._checked]

    def allChecked(self) -> bool:
        return not self.uncheckedNodes()

    def noneChecked(self) -> bool:
        return not self.checkedNodes()


class _TableModel(QtGui.QStandardItemModel):
    """The cells of a table node; with the titles as the first row where the node does not make them a header."""

    def show(self, node) -> None:
        self.clear()
        if node is None or node.GetTable() is None:
            return
        table = node.GetTable()
        titles = [table.GetColumnName(column) for column in range(table.GetNumberOfColumns())]
        rows = [[table.GetValue(row, column).ToString() for column in range(len(titles))]
                for row in range(table.GetNumberOfRows())]  # fmt: skip
        if node.GetUseColumnTitleAsColumnHeader():
            self.setHorizontalHeaderLabels(titles)
        else:
            rows.insert(0, titles)
        for row in rows:
            self.appendRow([QtGui.QStandardItem(text) for text in row])


class qMRMLTableView(QtWidgets.QTableView, _HasScene, Keeping):
    """Shows a table node."""

    mrmlSceneChanged = Signal(object)
    selectionChangedSignal = Signal()
    OVERLOADS = {"selectionChanged()": "selectionChangedSignal"}  # noqa: RUF012

    def __init__(self, parent=None):
        super().__init__(parent)
        self._node, self._tag = None, None
        self.setModel(_TableModel(self))

    def mrmlTableNode(self):
        return self._node

    def setMRMLTableNode(self, node) -> None:
        if self._node is not None:
            self._node.RemoveObserver(self._tag)
        self._node = node
        if node is not None:
            self._tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, self._node_changed)
        self.model().show(node)

    def _node_changed(self, caller, event) -> None:
        self.model().show(self._node)

    def _has_node(self, what: str) -> bool:
        if self._node is None:
            complaints.append(f"qMRMLTableView::{what} failed: invalid table node")
        return self._node is not None

    def setFirstRowLocked(self, on: bool) -> None:
        if self._has_node("setFirstRowLocked"):
            self._node.SetUseColumnTitleAsColumnHeader(on)
            self.resizeColumnsToContents()

    def setFirstColumnLocked(self, on: bool) -> None:
        if self._has_node("setFirstColumnLocked"):
            self._node.SetUseFirstColumnAsRowHeader(on)

    def _first_row(self) -> bool:
        return self._has_node("firstRowLocked") and self._node.GetUseColumnTitleAsColumnHeader()

    firstRowLocked = Property(bool, _first_row, setFirstRowLocked)


class qMRMLSliderWidget(ctkSliderWidget, _HasScene):
    mrmlSceneChanged = Signal(object)


class qMRMLRangeWidget(ctkRangeWidget, _HasScene):
    mrmlSceneChanged = Signal(object)


class qMRMLSegmentEditorWidget(QtWidgets.QFrame, _HasScene, Keeping):
    """Holds the nodes that it would edit; draws an empty frame."""

    mrmlSceneChanged = Signal(object)
    currentSegmentIDChanged = Signal(str)
    segmentationNodeChanged = Signal(object)
    sourceVolumeNodeChanged = Signal(object)
    masterVolumeNodeChanged = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setFrameShape(QtWidgets.QFrame.Shape.StyledPanel)
        self._editor = self._segmentation = self._volume = None
        self._effect = ""

    def setMRMLSegmentEditorNode(self, node) -> None:
        self._editor = node

    def mrmlSegmentEditorNode(self):
        return self._editor

    def setSegmentationNode(self, node) -> None:
        if self._editor is None:
            complaints.append("qMRMLSegmentEditorWidget::setSegmentationNode failed: need a segment editor node first")
            return
        self._segmentation = node
        self._editor.SetAndObserveSegmentationNode(node)
        self._hide_label_layer()
        self.segmentationNodeChanged.emit(node)

    def segmentationNode(self):
        return self._segmentation

    def setSourceVolumeNode(self, node) -> None:
        if self._segmentation is None and node is not None:
            complaints.append("qMRMLSegmentEditorWidget::setSourceVolumeNode failed: need a segmentation first")
            return
        self._volume = node
        self._editor.SetAndObserveSourceVolumeNode(node)
        self.sourceVolumeNodeChanged.emit(node)

    def sourceVolumeNode(self):
        return self._volume

    def setCurrentSegmentID(self, identifier: str) -> None:
        self.kept["currentSegmentID"] = identifier
        self.currentSegmentIDChanged.emit(identifier)

    def setActiveEffectByName(self, name: str) -> None:
        self._effect = name

    @staticmethod
    def _hide_label_layer() -> None:
        """As the real one does with every slice view when it is given a segmentation."""
        import slicer

        manager = slicer.app.layoutManager()
        for name in manager.sliceViewNames() if manager is not None else ():
            manager.sliceWidget(name).mrmlSliceCompositeNode().SetLabelVolumeID(None)

    def activeEffect(self):
        return None

    def installKeyboardShortcuts(self) -> None:
        pass

    def uninstallKeyboardShortcuts(self) -> None:
        pass

    def setupViewObservations(self) -> None:
        pass

    def removeViewObservations(self) -> None:
        pass

    def updateWidgetFromMRML(self) -> None:
        pass


def _with_scene(name: str) -> type:
    base = bare("slicer", name)
    return type(name, (base, _HasScene), {}) if hasattr(base, "mrmlSceneChanged") else base


SLICER = {
    name: with_all_signals("slicer", value)
    for name, value in list(globals().items())
    if name.startswith("q") and isinstance(value, type) and issubclass(value, QtWidgets.QWidget)
}
for _name in known_classes():
    _module, _class = _name.split(".")
    if _module == "slicer" and _class not in SLICER:
        SLICER[_class] = _with_scene(_class)
