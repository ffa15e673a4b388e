"""A strict stand-in for the Python side of 3D Slicer's GUI: the modules qt, ctk and slicer on PySide6.

The MRML scene and `slicer.util` are the real ones, from slicer-core. `installed()` puts the modules where
`import` finds them and takes them away again, so that tests of the core are not touched.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

PANELS = ("RefaceRisk", "DefaceCompare", "MuscleFromHead")


class LazyModule(ModuleType):
    """A module whose classes are made when they are asked for."""

    def __init__(self, name: str, find):
        super().__init__(name)
        self._find = find

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        found = self._find(name)
        if found is None:
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        setattr(self, name, found)
        return found


@contextmanager
def installed(scene=None) -> Iterator[SimpleNamespace]:
    """qt, ctk and slicer as in Slicer without a main window, over an empty scene. Needs PySide6 and slicer-core."""
    from PySide6 import QtWidgets

    QtWidgets.QApplication.instance() or QtWidgets.QApplication(["Slicer"])
    import slicer

    from . import proxies
    from .widgets import CTK

    class Signal:
        """The name exists in Slicer; to use it ends Slicer."""

        def __init__(self, *types):
            raise RuntimeError("a signal of one's own crashes in PythonQt: use a Python callback")

    Signal.__module__, Signal.__qualname__ = "QtCore", "Signal"

    def of_qt(name: str):
        if name == "Signal":
            return Signal
        if name == "QUiLoader":
            from .application import QUiLoader

            return proxies.proxy_class(QUiLoader, "qt", name)
        held = next((getattr(module, name) for module in proxies.PYSIDE_MODULES if hasattr(module, name)), None)
        return proxies.proxy_class(held) if isinstance(held, type) else held

    def of_ctk(name: str):
        return proxies.proxy_class(CTK[name], "ctk", name) if name in CTK else None

    before = {name: sys.modules.get(name) for name in ("qt", "ctk")}
    attributes = dict(vars(slicer))
    names = set(sys.modules)
    sys.modules["qt"], sys.modules["ctk"] = LazyModule("qt", of_qt), LazyModule("ctk", of_ctk)
    slicer.mrmlScene = scene or new_scene(slicer)
    try:
        yield _set_up(slicer, proxies)
    finally:
        _tear_down(slicer)
        for name in set(sys.modules) - names:
            if name.startswith(("slicer.", "RefaceRiskLib.bridge")) or name.split(".")[0] in PANELS:
                del sys.modules[name]
        for name in set(vars(slicer)) - set(attributes):
            delattr(slicer, name)
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def new_scene(slicer):
    """A scene with a subject hierarchy, as the application has it."""
    scene = slicer.vtkMRMLScene()
    slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    return scene


def _set_up(slicer, proxies) -> SimpleNamespace:
    from . import mrml_widgets, parameters
    from .application import Application, ScriptedModule, ScriptedModuleWidget, loadable_modules

    for name, widget in mrml_widgets.SLICER.items():
        setattr(slicer, name, proxies.proxy_class(widget, "slicer", name, inherits=False))
    slicer.qSlicerScriptedLoadableModule = proxies.proxy_class(
        ScriptedModule, "slicer", "qSlicerScriptedLoadableModule"
    )
    slicer.qSlicerScriptedLoadableModuleWidget = proxies.proxy_class(
        ScriptedModuleWidget, "slicer", "qSlicerScriptedLoadableModuleWidget", inherits=False
    )
    proxies.proxy_class(Application, "slicer", "qSlicerApplication", inherits=False)
    slicer.app = proxies.wrap(Application())
    slicer.modules = SimpleNamespace(_python_objects={}, **loadable_modules())
    i18n = ModuleType("slicer.i18n")
    i18n.tr, i18n.translate = (lambda text: text), (lambda context, text: text)
    sys.modules["slicer.i18n"] = slicer.i18n = i18n
    sys.modules["slicer.parameterNodeWrapper"] = slicer.parameterNodeWrapper = parameters.as_module()
    from . import modules

    sys.modules["slicer.ScriptedLoadableModule"] = slicer.ScriptedLoadableModule = modules
    proxies.slot_errors.clear()
    mrml_widgets.complaints.clear()
    return SimpleNamespace(slot_errors=proxies.slot_errors, complaints=mrml_widgets.complaints)


def _tear_down(slicer) -> None:
    from PySide6 import QtWidgets

    from .application import LoadableModule, unload_module

    for name in list(slicer.modules._python_objects):
        unload_module(name)
    if slicer.app.layoutManager() is not None:
        slicer.app.layoutManager()._qt.close()
    slicer.mrmlScene.Clear(False)
    for module in vars(slicer.modules).values():
        if isinstance(module, LoadableModule):
            module.close()
    QtWidgets.QApplication.processEvents()
