"""What the panels share: life cycle, parameter node, Apply that turns into Cancel, progress, errors."""

from __future__ import annotations

import sys
from collections.abc import Callable

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget
from slicer.util import VTKObservationMixin

from ..errors import RefaceRiskError
from ..progress import Cancelled
from .worker_process import JobRunner, follow

LABEL_OPACITY = 0.5


class Panel(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """A panel whose .ui file has `applyButton`, `progressBar` and `statusLabel`.

    A subclass gives `makeLogic()`, `whyNotApply()` and `apply()`, and may extend `connectPanel()`,
    `parametersChanged()` and `selectDefaults()`.
    """

    def __init__(self, parent=None) -> None:
        self.logic = None
        self.runner: JobRunner | None = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        super().__init__(parent)

    # --- for the subclass ---

    def makeLogic(self):
        raise NotImplementedError

    def connectPanel(self) -> None:
        """Connects what the .ui file has beyond the shared widgets."""

    def selectDefaults(self) -> None:
        """Fills parameters of a new scene that have an obvious first choice."""

    def parametersChanged(self) -> None:
        """Shows parameters that no widget is bound to."""

    def whyNotApply(self) -> str:
        """What is still missing before Apply, in words for its tooltip; empty when nothing is."""
        raise NotImplementedError

    def apply(self) -> JobRunner | None:
        """Does the work, or starts it and returns its runner."""
        raise NotImplementedError

    # --- life cycle ---

    def setup(self) -> None:
        super().setup()
        panel = slicer.util.loadUI(self.resourcePath(f"UI/{self.moduleName}.ui"))
        self.layout.addWidget(panel)
        self.ui = slicer.util.childWidgetVariables(panel)
        panel.setMRMLScene(slicer.mrmlScene)
        self.logic = self.makeLogic()
        self.ui.progressBar.visible = False

        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndClose)
        self.ui.applyButton.connect("clicked(bool)", self.onApplyButton)
        slicer.app.connect("aboutToQuit()", self.stop)
        self.connectPanel()
        self.initializeParameterNode()

    def cleanup(self) -> None:
        self.stop()
        slicer.app.disconnect("aboutToQuit()", self.stop)
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self) -> None:
        self.initializeParameterNode()

    def exit(self) -> None:
        self.setParameterNode(None)

    def onReload(self) -> None:
        """Reloads the shared library too, which Slicer's own reload leaves as it was."""
        self.stop()
        for name in [name for name in sys.modules if name.split(".")[0] == "RefaceRiskLib"]:
            del sys.modules[name]
        super().onReload()

    def onSceneStartClose(self, caller, event) -> None:
        self.ui.statusLabel.text = ""  # it speaks of nodes that go; what was running adds that it was cancelled
        self.stop()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event) -> None:
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneStartImport(self, caller, event) -> None:
        # While nodes come in, selectors choose the first that fits; that must not overwrite what is loaded.
        self.setParameterNode(None)

    def initializeParameterNode(self) -> None:
        self.setParameterNode(self.logic.getParameterNode())
        self.selectDefaults()

    def setParameterNode(self, parameterNode) -> None:
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self._parameterNodeGuiTag = None
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersChanged)
        self._parameterNode = parameterNode
        if parameterNode is not None:
            self._parameterNodeGuiTag = parameterNode.connectGui(self.ui)
            self.addObserver(parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParametersChanged)
        self.onParametersChanged()

    def onParametersChanged(self, caller=None, event=None) -> None:
        if self._parameterNode is not None:
            self.parametersChanged()
        self.updateApplyButton()

    # --- Apply and Cancel ---

    @property
    def running(self) -> bool:
        return self.runner is not None and not self.runner.ended

    def updateApplyButton(self) -> None:
        button = self.ui.applyButton
        if self.running:
            button.text, button.toolTip, button.enabled = _("Cancel"), _("Stop what is running"), True
            return
        missing = self.whyNotApply() if self._parameterNode is not None else _("No scene is open")
        button.text = _("Apply")
        button.toolTip = missing or _("Start")
        button.enabled = not missing

    def onApplyButton(self, *_clicked) -> None:
        if self.running:
            self.ui.statusLabel.text = _("Stopping...")
            self.runner.cancel()
            return
        self.ui.statusLabel.text = ""
        try:
            runner = self.apply()
        except Exception as error:
            self.showEnd(error)
            if not isinstance(error, RefaceRiskError):
                raise
            return
        if runner is not None:
            self.watch(runner)

    def tryTo(self, start: Callable[[], JobRunner | None]) -> bool:
        """Starts a runner and follows it; what it refuses becomes a line in the panel. Whether it was not refused."""
        self.ui.statusLabel.text = ""
        try:
            runner = start()
        except RefaceRiskError as error:
            self.showEnd(error)
            return False
        if runner is not None:
            self.watch(runner)
        return True

    def watch(self, runner: JobRunner) -> None:
        """Follows a runner that was started, with Apply as its Cancel."""
        self.runner = follow(runner)
        self.ui.progressBar.setRange(0, 0)
        self.ui.progressBar.visible = True
        self.updateApplyButton()

    def showProgress(self, job, message: dict) -> None:
        bar = self.ui.progressBar
        bar.setRange(0, max(1, message["of"]))
        bar.value = message["step"]
        # A job that has but one stage calls it by its own name.
        stage = "" if job.name.endswith(message["stage"]) else message["stage"]
        parts = [job.title, stage, message.get("message") or ""]
        if message.get("seconds_left"):
            parts.append(_("{seconds} s left").format(seconds=round(message["seconds_left"])))
        self.ui.statusLabel.text = ", ".join(part for part in parts if part)

    def showEnd(self, error: Exception | None) -> None:
        """Ready again, with one line that says what came of it."""
        self.ui.progressBar.visible = False
        if error is None:
            self.ui.statusLabel.text = _("Done")
        elif isinstance(error, Cancelled):
            self.ui.statusLabel.text = _("Cancelled")
        else:
            self.ui.statusLabel.text = str(error)
        self.updateApplyButton()

    def stop(self) -> None:
        """Ends what is running, at once and without a word."""
        if self.running:
            self.runner.stop()
            self.showEnd(Cancelled())

    def showTable(self, view, node) -> None:
        view.setMRMLTableNode(node)
        view.visible = node is not None
        if node is not None:  # the view complains in the log otherwise
            view.setFirstRowLocked(True)
            view.resizeColumnsToContents()


def show_in_slices(background=None, foreground=None, label=None) -> None:
    """Shows volumes in the slice views; does nothing without views (`--no-main-window`)."""
    if slicer.app.layoutManager() is None:
        return
    layers = {"background": background, "foreground": foreground, "label": label}
    layers = {name: node for name, node in layers.items() if node}
    if label is not None:
        layers["labelOpacity"] = LABEL_OPACITY
    slicer.util.setSliceViewerLayers(**layers, fit=False)


def turn_to_skin() -> None:
    """The 3-D views centred on what is in them; does nothing without views."""
    manager = slicer.app.layoutManager()
    for index in range(manager.threeDViewCount if manager is not None else 0):
        manager.threeDWidget(index).threeDView().resetFocalPoint()
