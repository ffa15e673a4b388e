"""RefaceRisk: draws a synthetic face into a defaced head MRI and tells how close it comes to the real one."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Union

import slicer
from slicer import vtkMRMLLabelMapVolumeNode, vtkMRMLScalarVolumeNode, vtkMRMLTableNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)

from RefaceRiskLib.bridge.nodes import node_from_volume, place_beside, table_node, volume_from_node
from RefaceRiskLib.bridge.packages import ensure_diffusion_packages
from RefaceRiskLib.bridge.panel import Panel, show_in_slices
from RefaceRiskLib.bridge.worker_process import Job, JobRunner


class RefaceRisk(ScriptedLoadableModule):
    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("Reface Risk")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Neuroimaging")]
        parent.dependencies = []
        parent.contributors = ["The MRIRefaceRisk developers"]
        parent.helpText = _(
            "Draws a synthetic face into a defaced head MRI and, where you have the original, measures how "
            "close the face comes: an audit of what defacing hides. It works on your own data, on your own "
            "computer."
        )
        parent.acknowledgementText = _(
            "Makes the experiments of Gao et al., Comput. Biol. Med. 197 (2025) 111112, repeatable."
        )


class Model(enum.Enum):
    """What draws the face; the values are the names that the command line knows."""

    DIFFUSION = "reference"
    LINEAR = "linear"
    AVERAGE = "average"

    def label(self) -> str:
        return {
            Model.DIFFUSION: _("Diffusion (needs PyTorch)"),
            Model.LINEAR: _("Linear"),
            Model.AVERAGE: _("Average face"),
        }[self]


@parameterNodeWrapper
class RefaceRiskParameterNode:
    """
    defacedVolume - The head whose face was removed.
    removedRegion - 1 where it was removed; estimated where it is not given.
    originalVolume - The head before defacing, to measure against.
    model - What draws the face.
    seed - The same seed draws the same face again.
    distances - The table of the latest run.
    """

    defacedVolume: vtkMRMLScalarVolumeNode
    # Union and not |: Slicer's selector takes its node types from the annotation and knows no other spelling.
    removedRegion: Union[vtkMRMLLabelMapVolumeNode, vtkMRMLScalarVolumeNode, None]  # noqa: UP007
    originalVolume: vtkMRMLScalarVolumeNode
    model: Model = Model.DIFFUSION
    seed: Annotated[int, WithinRange(0, 999999)] = 0
    distances: vtkMRMLTableNode


class RefaceRiskWidget(Panel):
    def makeLogic(self) -> "RefaceRiskLogic":
        return RefaceRiskLogic()

    def selectDefaults(self) -> None:
        if not self._parameterNode.defacedVolume:
            first = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
            if first:
                self._parameterNode.defacedVolume = first

    def parametersChanged(self) -> None:
        self.showTable(self.ui.distanceTable, self._parameterNode.distances)

    def whyNotApply(self) -> str:
        parameters = self._parameterNode
        if not parameters.defacedVolume:
            return _("Choose the defaced head")
        if parameters.originalVolume and parameters.originalVolume.GetID() == parameters.defacedVolume.GetID():
            return _("The original and the defaced head are the same volume")
        return ""

    def apply(self) -> JobRunner:
        parameters = self._parameterNode
        if parameters.model == Model.DIFFUSION:
            ensure_diffusion_packages()
        return self.logic.startReface(
            parameters.defacedVolume,
            parameters.originalVolume,
            parameters.removedRegion,
            model=parameters.model.value,
            seed=parameters.seed,
            onProgress=self.showProgress,
            onEnd=self.onEnd,
        )

    def onEnd(self, outputs: "Outputs", error: Exception | None) -> None:
        if outputs.refaced is not None:
            show_in_slices(background=outputs.refaced)
        if outputs.distances is not None:
            # The panel may have been left meanwhile, and has no parameter node then; the scene has.
            self.logic.getParameterNode().distances = outputs.distances
        self.showEnd(error)


@dataclass
class Outputs:
    """What a run has brought so far."""

    refaced: vtkMRMLScalarVolumeNode | None = None
    distances: vtkMRMLTableNode | None = None


class RefaceRiskLogic(ScriptedLoadableModuleLogic):
    """Refaces volume nodes. From the console: `slicer.util.getModuleLogic("RefaceRisk").reface(node)`."""

    def getParameterNode(self) -> RefaceRiskParameterNode:
        return RefaceRiskParameterNode(super().getParameterNode())

    def reface(self, defaced, original=None, removed=None, model: str = "reference", seed: int = 0) -> Outputs:
        """Draws a face into the volume node `defaced` and waits for it.

        :param original: volume node to measure distances against, if there is one
        :param removed: volume node, 1 where the face was removed; estimated if there is none
        :param model: reference (diffusion, needs PyTorch), linear, average, or a folder of weights
        :return: the refaced volume node, and the table node of distances (None without an original)
        :raises RefaceRiskError: when it cannot be done, with one line that says why
        """
        ends = []
        runner = self.startReface(
            defaced,
            original,
            removed,
            model=model,
            seed=seed,
            onEnd=lambda outputs, error: ends.append(outputs),
        )
        runner.wait()
        return ends[0]

    def startReface(
        self,
        defaced,
        original=None,
        removed=None,
        model: str = "reference",
        seed: int = 0,
        onProgress: Callable[[Job, dict], None] | None = None,
        onEnd: Callable[[Outputs, Exception | None], None] | None = None,
    ) -> JobRunner:
        """The same in child processes: returns at once. `worker_process.follow` polls the runner from Qt."""
        from RefaceRiskLib import volumes

        outputs = Outputs()

        def jobs(folder: Path) -> list[Job]:
            def written(node, name: str) -> Path:
                return volumes.save(volume_from_node(node), folder / name)

            source, refaced = written(defaced, "defaced.nii"), folder / "refaced.nii"
            mask = None if removed is None else written(removed, "removed.nii")
            draw = {"source": source, "out": refaced, "mask": mask, "model": model, "seed": seed}
            chain = [Job("reface", draw, _("Drawing the face"))]
            if original is not None:
                others = {"defaced": source, "refaced": refaced}
                compare = {"original": written(original, "original.nii"), "others": others, "removed": mask}
                chain.append(Job("measure", compare, _("Measuring")))
            return chain

        def collect(job: Job, message: dict) -> None:
            if job.name == "reface":
                volume = volumes.load(message["outputs"]["refaced"])
                name = _("{name} refaced (synthetic)").format(name=defaced.GetName())
                outputs.refaced = node_from_volume(volume, name)
                place_beside(outputs.refaced, defaced)
            else:
                outputs.distances = distanceTable(message["record"]["rows"], defaced.GetName())

        return JobRunner(
            jobs,
            on_progress=onProgress,
            on_result=collect,
            on_end=lambda error: onEnd(outputs, error) if onEnd else None,
        ).start()


def distanceTable(rows: list[dict], name: str) -> vtkMRMLTableNode:
    """A table node of distances in mm, one row an image and region."""
    titles = {
        "image": _("image"),
        "region": _("region"),
        "mean_mm": _("mean mm"),
        "median_mm": _("median mm"),
        "p95_mm": _("95 % mm"),
        "symmetric_mean_mm": _("symmetric mean mm"),
    }
    columns = {
        title: [round(row[key], 3) if key.endswith("_mm") else row[key] for row in rows]
        for key, title in titles.items()
    }
    return table_node(_("{name} distances").format(name=name), columns)


class RefaceRiskTest(ScriptedLoadableModuleTest):
    def setUp(self) -> None:
        slicer.mrmlScene.Clear(0)

    def runTest(self) -> None:
        for test in (self.test_average_face_on_defaced_head, self.test_empty_volume_is_refused):
            self.setUp()
            test()

    def test_average_face_on_defaced_head(self) -> None:
        """Defaces MRHead, puts the average face on it: the distance to the original goes down."""
        import SampleData

        from RefaceRiskLib import defacing

        self.delayDisplay("Loading MRHead")
        original = SampleData.downloadSample("MRHead")
        removed = defacing.deface(volume_from_node(original), "mri_deface")
        defaced = node_from_volume(removed.volume, "MRHead defaced")
        outputs = RefaceRiskLogic().reface(defaced, original, model="average")
        table = outputs.distances.GetTable()
        means = [table.GetColumn(2).GetValue(row) for row in range(2)]
        self.assertEqual(outputs.refaced.GetImageData().GetDimensions(), original.GetImageData().GetDimensions())
        self.assertGreater(means[0], means[1])
        self.delayDisplay("Test passed")

    def test_empty_volume_is_refused(self) -> None:
        from RefaceRiskLib.errors import RefaceRiskError

        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
        with self.assertRaises(RefaceRiskError):
            RefaceRiskLogic().reface(empty)
