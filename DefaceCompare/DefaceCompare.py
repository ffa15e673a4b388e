"""DefaceCompare: takes the face off a head MRI with several methods and says which result can be trusted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import qt
import slicer
from slicer import vtkMRMLScalarVolumeNode, vtkMRMLTableNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)

from RefaceRiskLib.bridge.nodes import node_from_volume, place_beside, table_node, volume_from_node
from RefaceRiskLib.bridge.panel import Panel, show_in_slices
from RefaceRiskLib.bridge.worker_process import Job, JobRunner


class DefaceCompare(ScriptedLoadableModule):
    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("Deface Compare")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Neuroimaging")]
        parent.dependencies = ["RefaceRisk"]
        parent.contributors = ["The MRIRefaceRisk developers"]
        parent.helpText = _(
            "Takes the face off a head MRI with several methods and tells for each whether its result can be "
            "trusted: no voxel of the brain may be touched. The methods are re-implementations on a "
            "template of our own."
        )
        parent.acknowledgementText = _(
            "The methods are named after the programs whose manner they follow; they are not those programs."
        )


@parameterNodeWrapper
class DefaceCompareParameterNode:
    """
    inputVolume - A head with its face.
    methods - Names of the methods to run.
    verdicts - The table of the latest run.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    methods: list[str] = ["mri_deface"]  # noqa: RUF012 - the wrapper reads it as a default and copies it
    verdicts: vtkMRMLTableNode


class DefaceCompareWidget(Panel):
    def makeLogic(self) -> "DefaceCompareLogic":
        return DefaceCompareLogic()

    def connectPanel(self) -> None:
        self.methodBoxes = {}
        for name, description in self.logic.methods().items():
            box = qt.QCheckBox(name)
            box.toolTip = description
            box.connect("toggled(bool)", self.onMethodToggled)
            self.ui.methodsGroupBox.layout().addWidget(box)
            self.methodBoxes[name] = box

    def selectDefaults(self) -> None:
        if not self._parameterNode.inputVolume:
            first = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
            if first:
                self._parameterNode.inputVolume = first

    def onMethodToggled(self, *_checked) -> None:
        if self._parameterNode is not None:
            self._parameterNode.methods = [name for name, box in self.methodBoxes.items() if box.checked]

    def parametersChanged(self) -> None:
        chosen = self._parameterNode.methods
        for name, box in self.methodBoxes.items():
            wasBlocked = box.blockSignals(True)
            box.checked = name in chosen
            box.blockSignals(wasBlocked)
        self.showTable(self.ui.verdictTable, self._parameterNode.verdicts)

    def whyNotApply(self) -> str:
        if not self._parameterNode.inputVolume:
            return _("Choose a head")
        if not self._parameterNode.methods:
            return _("Tick at least one method")
        return ""

    def apply(self) -> JobRunner:
        return self.logic.startDeface(
            self._parameterNode.inputVolume,
            list(self._parameterNode.methods),
            onProgress=self.showProgress,
            onEnd=self.onEnd,
        )

    def onEnd(self, outputs: "Outputs", error: Exception | None) -> None:
        if outputs.verdicts is not None:
            # The panel may have been left meanwhile, and has no parameter node then; the scene has.
            self.logic.getParameterNode().verdicts = outputs.verdicts
        if outputs.defaced:
            show_in_slices(background=next(iter(outputs.defaced.values())))
        self.showEnd(error)


@dataclass
class Outputs:
    """Defaced volume nodes by method, and the table of verdicts."""

    defaced: dict[str, vtkMRMLScalarVolumeNode] = field(default_factory=dict)
    verdicts: vtkMRMLTableNode | None = None


class DefaceCompareLogic(ScriptedLoadableModuleLogic):
    """Defaces volume nodes: `slicer.util.getModuleLogic("DefaceCompare").deface(node, ["pydeface"])`."""

    def getParameterNode(self) -> DefaceCompareParameterNode:
        return DefaceCompareParameterNode(super().getParameterNode())

    def methods(self) -> dict[str, str]:
        """Name -> one line of what the method does."""
        from RefaceRiskLib.jobs import defacing_methods

        return defacing_methods()

    def deface(self, head, methods: list[str]) -> Outputs:
        """Defaces the volume node `head` by each method and waits.

        A method that cannot do it has a row in the table that says why, and no volume.

        :raises RefaceRiskError: when `head` cannot be read at all
        """
        ends = []
        runner = self.startDeface(head, methods, onEnd=lambda outputs, error: ends.append(outputs))
        runner.wait()
        return ends[0]

    def startDeface(
        self,
        head,
        methods: list[str],
        onProgress: Callable[[Job, dict], None] | None = None,
        onEnd: Callable[[Outputs, Exception | None], None] | None = None,
    ) -> JobRunner:
        """The same in child processes: returns at once. `worker_process.follow` polls the runner from Qt."""
        from RefaceRiskLib import volumes

        outputs = Outputs()
        rows = []

        def jobs(folder: Path) -> list[Job]:
            source = volumes.save(volume_from_node(head), folder / "head.nii")
            return [
                Job("deface", {"source": source, "out": folder / f"{method}.nii", "method": method}, method)
                for method in methods
            ]

        def collect(job: Job, message: dict) -> None:
            quality = message["record"]["quality"]
            rows.append((job.title, quality["verdict"], quality["reason"]))
            name = f"{head.GetName()} {job.title}"
            outputs.defaced[job.title] = node_from_volume(volumes.load(message["outputs"]["defaced"]), name)
            place_beside(outputs.defaced[job.title], head)

        def failed(job: Job, error: Exception) -> bool:
            rows.append((job.title, "failed", error.what if hasattr(error, "what") else str(error)))
            return True  # another method may well manage

        def end(error: Exception | None) -> None:
            if rows:
                titles = (_("method"), _("verdict"), _("why"))
                columns = dict(zip(titles, zip(*rows, strict=True), strict=True))
                outputs.verdicts = table_node(_("{name} defacing").format(name=head.GetName()), columns)
            if onEnd:
                onEnd(outputs, error)

        return JobRunner(jobs, on_progress=onProgress, on_result=collect, on_error=failed, on_end=end).start()


class DefaceCompareTest(ScriptedLoadableModuleTest):
    def setUp(self) -> None:
        slicer.mrmlScene.Clear(0)

    def runTest(self) -> None:
        self.setUp()
        self.test_two_methods_change_nothing_but_the_face()

    def test_two_methods_change_nothing_but_the_face(self) -> None:
        import numpy as np
        import SampleData

        self.delayDisplay("Loading MRHead")
        head = SampleData.downloadSample("MRHead")
        methods = ["mri_deface", "pydeface"]
        outputs = DefaceCompareLogic().deface(head, methods)
        self.assertEqual(list(outputs.defaced), methods)
        self.assertEqual(outputs.verdicts.GetNumberOfRows(), 2)
        before = slicer.util.arrayFromVolume(head)
        for node in outputs.defaced.values():
            changed = np.mean(slicer.util.arrayFromVolume(node) != before)
            self.assertGreater(changed, 0.005)
            self.assertLess(changed, 0.3)
        self.delayDisplay("Test passed")
