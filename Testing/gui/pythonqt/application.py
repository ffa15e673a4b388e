"""The running application: slicer.app, slicer.modules, the module manager, and (if wanted) a layout manager."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import slicer
import vtk
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets
from PySide6.QtCore import Property, Signal

from . import mrml_widgets, proxies
from .widgets import CTK, Keeping

# --- .ui files --------------------------------------------------------------------------------------------


class QUiLoader(QtCore.QObject):
    """Loads a .ui file with the stand-ins for the classes that Qt does not know, and makes its connections."""

    def load(self, device, parent=None):
        device.close()
        path = Path(device.fileName())
        loader = QtUiTools.QUiLoader()
        for made in (*CTK.values(), *mrml_widgets.SLICER.values()):
            loader.registerCustomWidget(made)
        form = ElementTree.parse(path).getroot()
        connections = list(form.iter("connection"))
        for made_here in form.findall("connections"):  # Qt does not know their signatures
            form.remove(made_here)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(form))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        widget = loader.load(buffer, parent)
        if widget is None:
            raise RuntimeError(f"{path.name}: {loader.errorString()}")
        for connection in connections:
            ends = {}
            for role in ("sender", "receiver"):
                name = connection.findtext(role)
                found = widget if widget.objectName() == name else widget.findChild(QtCore.QObject, name)
                ends[role] = proxies.wrap(found)
            slot = getattr(ends["receiver"], connection.findtext("slot").split("(")[0])
            if not ends["sender"].connect(connection.findtext("signal"), slot):
                raise RuntimeError(f"{path.name}: no signal {connection.findtext('signal')}")
        return widget


# --- views ------------------------------------------------------------------------------------------------


class ThreeDView(QtCore.QObject, Keeping):
    """qMRMLThreeDView: notes which calls it got."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple] = []

    def rotateToViewAxis(self, axis: int) -> None:
        self.calls.append(("rotateToViewAxis", axis))

    def resetFocalPoint(self) -> None:
        self.calls.append(("resetFocalPoint",))

    def resetCamera(self) -> None:
        self.calls.append(("resetCamera",))

    def forceRender(self) -> None:
        self.calls.append(("forceRender",))


class LayoutManager(QtCore.QObject):
    """Views as nodes and logics of the scene, made by Slicer's own layout logic; nothing is drawn.

    A test may look into `layouts` (those that were set) and `resets`.
    """

    layoutChanged = Signal(int)

    def __init__(self, scene):
        super().__init__()
        self._scene = scene
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
        self._layout_logic = slicer.vtkMRMLLayoutLogic()
        self._layout_logic.SetMRMLScene(scene)
        self._slice_widgets: dict[str, QtWidgets.QWidget] = {}
        self._view_widgets: dict[str, QtWidgets.QWidget] = {}
        self._slice_logics = vtk.vtkCollection()
        self.layouts: list[int] = []
        self.resets: list[str] = []
        self.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)

    def _shown(self, class_name: str) -> list:
        nodes = self._layout_logic.GetViewNodes()
        views = [nodes.GetItemAsObject(index) for index in range(nodes.GetNumberOfItems())]
        return [node for node in views if node.GetClassName() == class_name]

    def _map_views(self) -> None:
        for node in self._shown("vtkMRMLSliceNode"):
            if node.GetLayoutName() not in self._slice_widgets:
                logic = slicer.vtkMRMLSliceLogic()
                logic.SetMRMLScene(self._scene)
                logic.SetSliceNode(node)
                self._slice_logics.AddItem(logic)
                widget = mrml_widgets.SLICER["qMRMLSliceWidget"]()
                composite = logic.GetSliceCompositeNode()
                widget.kept.update(sliceLogic=logic, mrmlSliceNode=node, mrmlSliceCompositeNode=composite)
                self._slice_widgets[node.GetLayoutName()] = widget
        for node in self._shown("vtkMRMLViewNode"):
            if node.GetID() not in self._view_widgets:
                widget = mrml_widgets.SLICER["qMRMLThreeDWidget"]()
                widget.kept.update(mrmlViewNode=node, threeDView=ThreeDView())
                self._view_widgets[node.GetID()] = widget

    def close(self) -> None:
        """Lets go of the scene, before that goes away."""
        for index in range(self._slice_logics.GetNumberOfItems()):
            self._slice_logics.GetItemAsObject(index).SetMRMLScene(None)
        self._layout_logic.SetMRMLScene(None)

    def sliceViewNames(self):
        return list(self._slice_widgets)

    def sliceWidget(self, name: str):
        return self._slice_widgets.get(name)

    def mrmlSliceLogics(self):
        return self._slice_logics

    def threeDWidget(self, index: int):
        shown = self._shown("vtkMRMLViewNode")
        return self._view_widgets[shown[index].GetID()] if index < len(shown) else None

    def activeMRMLThreeDViewNode(self):
        shown = self._shown("vtkMRMLViewNode")
        return shown[0] if shown else None

    def layoutLogic(self):
        return self._layout_logic

    def setLayout(self, number: int) -> None:
        self.layouts.append(number)
        self._layout_logic.GetLayoutNode().SetViewArrangement(number)
        self._map_views()
        self.layoutChanged.emit(number)

    def resetSliceViews(self) -> None:
        self.resets.append("slice")

    def resetThreeDViews(self) -> None:
        self.resets.append("3D")

    def setRenderPaused(self, on: bool) -> None:
        pass

    layout = Property(int, lambda self: self._layout_logic.GetLayoutNode().GetViewArrangement(), setLayout)
    threeDViewCount = Property(int, lambda self: len(self._shown("vtkMRMLViewNode")))
    tableViewCount = Property(int, lambda self: 0)
    plotViewCount = Property(int, lambda self: 0)


# --- the application --------------------------------------------------------------------------------------


class ModuleManager(QtCore.QObject):
    moduleAboutToBeUnloaded = Signal(str)
    moduleLoaded = Signal(str)

    def __init__(self):
        super().__init__()
        self._modules: dict[str, object] = {}

    def module(self, name: str):
        return self._modules.get(name)

    def modulesNames(self):
        return list(self._modules)


class IOManager(QtCore.QObject):
    """Says what was saved after it was: nothing in Slicer 5.12 tells of a scene that is about to be saved."""

    OVERLOADS: ClassVar[dict] = {"fileSaved(qSlicerIO::IOProperties)": "fileSaved"}
    fileSaved = Signal(dict)

    def emitFileSaved(self, told: dict) -> None:
        self.fileSaved.emit(told)


class Application(QtCore.QObject, Keeping):
    """slicer.app without a window; `setLayoutManager` gives it views."""

    aboutToQuit = Signal()
    startupCompleted = Signal()
    mrmlSceneChanged = Signal(object)

    def __init__(self):
        super().__init__()
        self._managers = {"module": ModuleManager(), "layout": None, "io": IOManager()}
        self._folder = tempfile.TemporaryDirectory(prefix="slicer-standin-")
        self._settings = QtCore.QSettings(
            str(Path(self._folder.name) / "Slicer.ini"), QtCore.QSettings.Format.IniFormat
        )

    def layoutManager(self):
        return self._managers["layout"]

    def setLayoutManager(self, manager) -> None:
        self._managers["layout"] = manager

    def ioManager(self):
        return self._managers["io"]

    def moduleManager(self):
        return self._managers["module"]

    def mrmlScene(self):
        return slicer.mrmlScene

    def testingEnabled(self) -> bool:
        return True

    def translate(self, context: str, text: str) -> str:
        return text

    def settings(self):
        return self._settings

    userSettings = settings

    def processEvents(self) -> None:
        QtWidgets.QApplication.processEvents()

    def topLevelWidgets(self):
        return QtWidgets.QApplication.topLevelWidgets()

    def setOverrideCursor(self, cursor) -> None:
        QtWidgets.QApplication.setOverrideCursor(cursor)

    def restoreOverrideCursor(self) -> None:
        QtWidgets.QApplication.restoreOverrideCursor()

    def pauseRender(self) -> None:
        pass

    def resumeRender(self) -> None:
        pass

    temporaryPath = Property(str, lambda self: self._folder.name)
    slicerHome = Property(str, lambda self: self._folder.name)
    applicationName = Property(str, lambda self: "Slicer")
    majorVersion = Property(int, lambda self: 5)
    minorVersion = Property(int, lambda self: 12)
    documentationBaseUrl = Property(str, lambda self: "https://slicer.readthedocs.io/en/latest/")


class LoadableModule:
    """A C++ module of Slicer: only its logic, the real one, over the scene."""

    def __init__(self, logic_class: type):
        self._class, self._logic = logic_class, None

    def logic(self):
        if self._logic is None:
            self._logic = self._class()
            self._logic.SetMRMLScene(slicer.mrmlScene)
        return self._logic

    def close(self) -> None:
        if self._logic is not None:
            self._logic.SetMRMLScene(None)


def loadable_modules() -> dict[str, LoadableModule]:
    """By the names under which slicer.modules has them: those that the panels use."""
    named = {
        "segmentations": "vtkSlicerSegmentationsModuleLogic",
        "terminologies": "vtkSlicerTerminologiesModuleLogic",
        "colors": "vtkSlicerColorLogic",
        "plots": "vtkSlicerPlotsLogic",
        "tables": "vtkSlicerTablesLogic",
    }
    classes = {module: getattr(slicer, name, None) for module, name in named.items()}
    found = {module: LoadableModule(made) for module, made in classes.items() if isinstance(made, type)}
    return found


# --- scripted modules -------------------------------------------------------------------------------------


class ScriptedModule(QtCore.QObject, Keeping):
    """qSlicerScriptedLoadableModule: made by the factory from MODULE/MODULE.py."""

    _WRITABLE = {  # noqa: RUF012
        "title": "",
        "categories": [],
        "dependencies": [],
        "contributors": [],
        "associatedNodeTypes": [],
        "helpText": "",
        "acknowledgementText": "",
        "hidden": False,
        "index": -1,
    }

    def __init__(self, path: Path):
        super().__init__()
        self.setObjectName(path.stem)
        self._path = path
        self._widget = None
        self._icon = QtGui.QIcon()

    def widgetRepresentation(self):
        if self._widget is None:
            self._widget = ScriptedModuleWidget(self._path)
            self._widget.make()
            self._widget.setMRMLScene(slicer.mrmlScene)
        return self._widget

    def _kept_property(name, default):
        kind = "QStringList" if isinstance(default, list) else type(default)
        return Property(
            kind,
            lambda self: self.kept.get(name, default),
            lambda self, value: self.kept.__setitem__(name, value),
        )

    for _name, _default in _WRITABLE.items():
        locals()[_name] = _kept_property(_name, _default)
    del _kept_property, _name, _default
    path = Property(str, lambda self: str(self._path))
    icon = Property(QtGui.QIcon, lambda self: self._icon, lambda self, icon: setattr(self, "_icon", icon))


class ScriptedModuleWidget(QtWidgets.QWidget, mrml_widgets._HasScene, Keeping):
    """qSlicerScriptedLoadableModuleWidget: owns the Python object of the panel, enters and leaves it."""

    mrmlSceneChanged = Signal(object)

    def __init__(self, path: Path):
        super().__init__()
        self._path, self._python, self._entered = path, None, False
        QtWidgets.QVBoxLayout(self)

    def make(self) -> None:
        name = f"{self._path.stem}Widget"
        widget_class = getattr(sys.modules[self._path.stem], name)
        self._python = widget_class(proxies.wrap(self))
        setattr(slicer.modules, name, self._python)
        self._python.setup()

    reload = make

    def self(self):
        return self._python

    def enter(self) -> None:
        self._entered = True
        self._python.enter()

    def exit(self) -> None:
        self._entered = False
        self._python.exit()

    isEntered = Property(bool, lambda self: self._entered)


def load_module(path: Path):
    """What Slicer does with a module file at its start: import it and make an object of its main class."""
    name = path.stem
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    module = proxies.wrap(ScriptedModule(path))
    python = getattr(sys.modules[name], name)(module)
    manager = slicer.app.moduleManager()._qt
    manager._modules[name] = module._qt
    setattr(slicer.modules, name.lower(), module)
    slicer.modules._python_objects[name] = python
    return module


def unload_module(name: str) -> None:
    slicer.app.moduleManager().moduleAboutToBeUnloaded.emit(name)
    module = slicer.app.moduleManager()._qt._modules.pop(name, None)
    for attribute in (name.lower(), f"{name}Widget"):
        if hasattr(slicer.modules, attribute):
            delattr(slicer.modules, attribute)
    slicer.modules._python_objects.pop(name, None)
    sys.modules.pop(name, None)
    if module is not None and module._widget is not None:
        module._widget.deleteLater()
        module._widget = None
