"""The running application: slicer.app, slicer.modules, the module manager, and (if wanted) a layout manager."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
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


class LayoutManager(QtCore.QObject):
    """Views as nodes and logics of the scene; nothing is drawn. A test may look into `layouts`, `resets`."""

    layoutChanged = Signal(int)

    def __init__(self, scene):
        super().__init__()
        self._scene = scene
        self._widgets: dict[str, QtWidgets.QWidget] = {}
        self._logics = vtk.vtkCollection()
        self._layout = 3
        self.layouts: list[int] = []
        self.resets: list[str] = []
        self._layout_node = scene.AddNewNodeByClass("vtkMRMLLayoutNode")
        self._view_node = scene.AddNewNodeByClass("vtkMRMLViewNode", "View1")
        self._view_node.SetLayoutName("1")
        for name in ("Red", "Yellow", "Green"):
            self._add_slice(name)

    def _add_slice(self, name: str) -> None:
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLScene(self._scene)
        node = logic.AddSliceNode(name)
        node.SetMappedInLayout(True)
        self._logics.AddItem(logic)
        widget = mrml_widgets.SLICER["qMRMLSliceWidget"]()
        widget.kept.update(sliceLogic=logic, mrmlSliceNode=node, mrmlSliceCompositeNode=logic.GetSliceCompositeNode())
        self._widgets[name] = widget

    def sliceViewNames(self):
        return list(self._widgets)

    def sliceWidget(self, name: str):
        return self._widgets.get(name)

    def mrmlSliceLogics(self):
        return self._logics

    def threeDWidget(self, index: int):
        return None

    def activeMRMLThreeDViewNode(self):
        return self._view_node

    def layoutLogic(self):
        return SimpleNamespace(GetLayoutNode=lambda: self._layout_node)

    def setLayout(self, number: int) -> None:
        self._layout = number
        self.layouts.append(number)
        self._layout_node.SetViewArrangement(number)
        self.layoutChanged.emit(number)

    def resetSliceViews(self) -> None:
        self.resets.append("slice")

    def resetThreeDViews(self) -> None:
        self.resets.append("3D")

    def setRenderPaused(self, on: bool) -> None:
        pass

    layout = Property(int, lambda self: self._layout, setLayout)
    threeDViewCount = Property(int, lambda self: 0)
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


class Application(QtCore.QObject, Keeping):
    """slicer.app without a window; `setLayoutManager` gives it views."""

    aboutToQuit = Signal()
    startupCompleted = Signal()
    mrmlSceneChanged = Signal(object)

    def __init__(self):
        super().__init__()
        self._managers = {"module": ModuleManager(), "layout": None}
        self._folder = tempfile.TemporaryDirectory(prefix="slicer-standin-")
        self._settings = QtCore.QSettings(
            str(Path(self._folder.name) / "Slicer.ini"), QtCore.QSettings.Format.IniFormat
        )

    def layoutManager(self):
        return self._managers["layout"]

    def setLayoutManager(self, manager) -> None:
        self._managers["layout"] = manager

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
