"""MuscleFromHead: measures the radiodensity of muscles in a CT, which a head MRI is asked to predict."""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Union

import numpy as np
import qt
import slicer
from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLTableNode,
)
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)

from RefaceRiskLib.bridge.nodes import node_from_volume, table_node, volume_from_node
from RefaceRiskLib.bridge.packages import ensure_diffusion_packages
from RefaceRiskLib.bridge.panel import Panel
from RefaceRiskLib.bridge.worker_process import Job, JobRunner, started, waited
from RefaceRiskLib.errors import RefaceRiskError


class MuscleFromHead(ScriptedLoadableModule):
    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("Muscle From Head")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Neuroimaging")]
        parent.dependencies = ["RefaceRisk"]
        parent.contributors = ["The MRIRefaceRisk developers"]
        parent.helpText = _(
            "Measures the radiodensity of segmented muscles in a CT: mean, median and standard deviation in "
            "Hounsfield units, area, and the share of low attenuation that fat in the muscle leaves behind."
        )
        parent.acknowledgementText = _(
            "Makes the experiments of Gao et al., Comput. Biol. Med. 197 (2025) 111112, repeatable."
        )


class Site(enum.Enum):
    """Where in the body; the values are the names that the command line knows."""

    ABDOMEN = "abdomen"
    THIGH = "thigh"
    SHIN = "shin"

    def label(self) -> str:
        return {Site.ABDOMEN: _("Abdomen"), Site.THIGH: _("Thigh"), Site.SHIN: _("Shin")}[self]


class Predictor(enum.Enum):
    """What learns the muscle from the head."""

    LIGHT = "light"
    RESNET = "resnet"

    def label(self) -> str:
        return {Predictor.LIGHT: _("Light (minutes)"), Predictor.RESNET: _("3-D ResNet (needs PyTorch)")}[self]


@parameterNodeWrapper
class MuscleFromHeadParameterNode:
    """
    ctVolume - A CT in Hounsfield units.
    muscles - A segmentation or a label map on it.
    site - Where the muscle is to be found without a label map.
    radiodensity - The table of the latest run.
    participantsFile - Table of people: participant_id, head, age, sex, and CTs or HU values.
    outputFolder - Where the study's tables, figure and report go.
    predictor - What learns the muscle from the head.
    repeats - How often the folds are drawn anew.
    correlations - The table of the latest study.
    """

    ctVolume: vtkMRMLScalarVolumeNode
    # Union and not |: Slicer's selector takes its node types from the annotation and knows no other spelling.
    muscles: Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode, None]  # noqa: UP007
    site: Site = Site.THIGH
    radiodensity: vtkMRMLTableNode
    participantsFile: str
    outputFolder: str
    predictor: Predictor = Predictor.LIGHT
    repeats: Annotated[int, WithinRange(1, 100)] = 10
    correlations: vtkMRMLTableNode


class MuscleFromHeadWidget(Panel):
    def makeLogic(self) -> "MuscleFromHeadLogic":
        return MuscleFromHeadLogic()

    def connectPanel(self) -> None:
        self.ui.segmentButton.connect("clicked(bool)", self.onSegmentButton)
        self.ui.checkButton.connect("clicked(bool)", self.onCheckButton)
        self.ui.fitButton.connect("clicked(bool)", self.onFitButton)
        self.ui.figureButton.connect("clicked(bool)", self.onFigureButton)
        self.figure: Path | None = None
        # Bound here and not by name: an empty pathlib.Path would show as ".".
        self.paths = {"participantsFile": self.ui.participantsPath, "outputFolder": self.ui.outputPath}
        for path in self.paths.values():
            path.connect("currentPathChanged(QString)", self.onPathChanged)

    def onPathChanged(self, *_path) -> None:
        if self._parameterNode is not None:
            for name, path in self.paths.items():
                setattr(self._parameterNode, name, path.currentPath)

    def parametersChanged(self) -> None:
        for name, path in self.paths.items():
            wasBlocked = path.blockSignals(True)
            path.currentPath = getattr(self._parameterNode, name)
            path.blockSignals(wasBlocked)
        self.showTable(self.ui.radiodensityTable, self._parameterNode.radiodensity)
        self.showTable(self.ui.correlationTable, self._parameterNode.correlations)

    def whyNotApply(self) -> str:
        if not self._parameterNode.ctVolume:
            return _("Choose a CT")
        if not self._parameterNode.muscles:
            return _("Choose a segmentation or a label map of muscles")
        return ""

    def whyNotFit(self) -> str:
        parameters = self._parameterNode
        if parameters is None or not parameters.participantsFile:
            return _("Choose a table of participants")
        if not parameters.outputFolder:
            return _("Choose a folder for the results")
        return ""

    def updateApplyButton(self) -> None:
        super().updateApplyButton()
        ui, parameters, idle = self.ui, self._parameterNode, not self.running
        ui.segmentButton.enabled = idle and parameters is not None and parameters.ctVolume is not None
        missing = self.whyNotFit()
        ui.fitButton.enabled = idle and not missing
        ui.fitButton.toolTip = missing or _("Predict muscle from each kind of head image, out of fold")
        ui.checkButton.enabled = parameters is not None and bool(parameters.participantsFile)
        ui.figureButton.enabled = self.figure is not None and self.figure.is_file()

    def apply(self) -> None:
        # Counting voxels takes a second or two: a wait cursor is enough.
        with slicer.util.WaitCursor():
            table = self.logic.measure(self._parameterNode.ctVolume, self._parameterNode.muscles)
        self._parameterNode.radiodensity = table
        self.showEnd(None)

    def onSegmentButton(self, *_clicked) -> None:
        parameters = self._parameterNode
        self.tryTo(
            lambda: self.logic.startSegment(
                parameters.ctVolume, parameters.site.value, onProgress=self.showProgress, onEnd=self.onSegmented
            )
        )

    def onSegmented(self, segmentation, error: Exception | None) -> None:
        if segmentation is not None:
            parameters = self.logic.getParameterNode()
            parameters.muscles = segmentation
            parameters.radiodensity = self.logic.measure(parameters.ctVolume, segmentation)
        self.showEnd(error)
        if segmentation is not None:
            self.ui.statusLabel.text = _("Look at the muscle; correct it in Segment Editor and press Apply again.")

    def onCheckButton(self, *_clicked) -> None:
        """Lists what is wrong with the participants table, row by row."""
        self.ui.statusLabel.text = ""
        try:
            found = self.logic.check(self._parameterNode.participantsFile)
        except RefaceRiskError as error:
            self.showEnd(error)
            return
        self.ui.problemsText.plainText = found

    def onFitButton(self, *_clicked) -> None:
        parameters = self._parameterNode
        if parameters.predictor == Predictor.RESNET and not self.tryTo(ensure_diffusion_packages):
            return
        self.tryTo(
            lambda: self.logic.startFit(
                parameters.participantsFile,
                parameters.outputFolder,
                predictor=parameters.predictor.value,
                repeats=parameters.repeats,
                onProgress=self.showProgress,
                onEnd=self.onFitted,
            )
        )

    def onFitted(self, study: "Study", error: Exception | None) -> None:
        if study.correlations is not None:
            self.logic.getParameterNode().correlations = study.correlations
            self.figure = study.figure
            self.ui.problemsText.plainText = study.words
            showPlot(study.chart)
        self.showEnd(error)

    def onFigureButton(self, *_clicked) -> None:
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(self.figure)))


def showPlot(chart) -> None:
    """Shows a chart in a plot view; nothing without a window."""
    if chart is not None and slicer.app.layoutManager() is not None:
        slicer.modules.plots.logic().ShowChartInLayout(chart)


@dataclass
class Study:
    """What a fit has brought: table node, chart node, the figure's file, and what it says in words."""

    correlations: vtkMRMLTableNode | None = None
    chart: object = None
    figure: Path | None = None
    words: str = ""


class MuscleFromHeadLogic(ScriptedLoadableModuleLogic):
    """Measures muscles: `slicer.util.getModuleLogic("MuscleFromHead").measure(ct, segmentation)`."""

    def getParameterNode(self) -> MuscleFromHeadParameterNode:
        return MuscleFromHeadParameterNode(super().getParameterNode())

    def segment(self, ct, site: str) -> vtkMRMLSegmentationNode:
        """Finds the muscle of a `site` (abdomen, thigh, shin) in the CT volume node, without a network, and waits.

        :raises RefaceRiskError: when the CT is not in Hounsfield units or no muscle is found
        """
        return waited(lambda onEnd: self.startSegment(ct, site, onEnd=onEnd))

    def startSegment(
        self,
        ct,
        site: str,
        onProgress: Callable[[Job, dict], None] | None = None,
        onEnd: Callable[[object, Exception | None], None] | None = None,
    ) -> JobRunner:
        """The same in a child process: returns at once."""
        from RefaceRiskLib import volumes

        made = []

        def jobs(folder: Path) -> list[Job]:
            source = volumes.save(volume_from_node(ct), folder / "ct.nii")
            return [Job("muscle_segment", {"source": source, "out": folder / "labels.nii", "site": site}, _("Muscle"))]

        def collect(job: Job, message: dict) -> None:
            labels = volumes.load(message["outputs"]["labels"])
            made.append(muscleSegmentation(labels, message["record"]["tissues"], f"{ct.GetName()} {site}", ct))

        return JobRunner(
            jobs,
            on_progress=onProgress,
            on_result=collect,
            on_end=lambda error: onEnd(made[0] if made else None, error) if onEnd else None,
        ).start()

    def check(self, participants: str | Path) -> str:
        """What is wrong with a participants table, a line each, and how many people are left.

        :raises RefaceRiskError: when the table cannot be used at all
        """
        from RefaceRiskLib.radiodensity.cohort import read_cohort

        cohort = read_cohort(participants)
        lines = [_("People that can be used: {count}").format(count=len(cohort.participants))]
        return "\n".join(lines + [str(problem) for problem in cohort.problems])

    def fit(self, participants: str | Path, out: str | Path, predictor: str = "light", repeats: int = 10) -> Study:
        """Predicts the muscle of the people in a table from images of their heads, and waits. Interrupted, it resumes.

        :raises RefaceRiskError: when the table cannot be used, or too few people are left
        """
        return waited(lambda onEnd: self.startFit(participants, out, predictor, repeats, onEnd=onEnd))

    def startFit(
        self,
        participants: str | Path,
        out: str | Path,
        predictor: str = "light",
        repeats: int = 10,
        onProgress: Callable[[Job, dict], None] | None = None,
        onEnd: Callable[[Study, Exception | None], None] | None = None,
    ) -> JobRunner:
        """The same in a child process: returns at once. Its files stay in the folder `out`."""
        study = Study()
        todo = {"source": str(participants), "out": str(out), "predictor": predictor, "repeats": repeats}

        def collect(job: Job, message: dict) -> None:
            rows = message["record"]["correlations"]
            study.correlations = correlationTable(rows)
            study.chart = correlationChart(study.correlations)
            study.figure = Path(message["outputs"]["figure"])
            study.words = "\n".join(message["record"].get("in_words", []) + message["record"]["left_out"])

        job = Job("muscle_fit", todo, _("Muscle from the head"))
        return started(lambda folder: [job], collect, study, onProgress, onEnd)

    def measure(self, ct, muscles) -> vtkMRMLTableNode:
        """A table node with one row a muscle.

        :param ct: volume node in Hounsfield units
        :param muscles: segmentation node or label map node
        :raises RefaceRiskError: when the CT is not in Hounsfield units or nothing is labelled
        """
        from RefaceRiskLib.radiodensity.ct import measure_muscles

        image = volume_from_node(ct)
        if muscles.IsA("vtkMRMLSegmentationNode"):
            found = [
                measurement
                for number, (name, voxels) in enumerate(segmentArrays(muscles, ct).items(), start=1)
                for measurement in measure_muscles(
                    image, image.with_intensities(voxels * number, dtype=np.int16), names={number: name}
                )
            ]
        else:
            found = measure_muscles(image, volume_from_node(muscles), names=colorNames(muscles))
        columns = {
            _("muscle"): [row.site for row in found],
            _("mean HU"): [round(row.mean_hu, 2) for row in found],
            _("median HU"): [round(row.median_hu, 2) for row in found],
            _("SD HU"): [round(row.sd_hu, 2) for row in found],
            _("area mm²"): [round(row.area_mm2, 1) for row in found],
            _("low-attenuation share"): [round(row.low_attenuation_share, 4) for row in found],
            _("label"): [row.label for row in found],
        }
        return table_node(_("{name} radiodensity").format(name=ct.GetName()), columns)


def muscleSegmentation(labels, tissues: dict[str, int], name: str, ct) -> vtkMRMLSegmentationNode:
    """A segmentation of one segment, the muscle, on the CT; other tissues were found on the way and are left out."""
    muscle = labels.with_intensities(labels.voxels == tissues["muscle"], dtype=np.uint8)
    map_node = node_from_volume(muscle, _("muscle"), "vtkMRMLLabelMapVolumeNode")
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(ct)
    slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(map_node, segmentation)
    slicer.mrmlScene.RemoveNode(map_node)
    if segmentation.GetSegmentation().GetNumberOfSegments():
        segmentation.GetSegmentation().GetNthSegment(0).SetName(_("muscle"))
    return segmentation


def correlationTable(rows: list[dict]) -> vtkMRMLTableNode:
    """A table node, a row a target and image type: Spearman's rho with its interval and permutation p."""
    chances = [row["p_permutation_holm"] for row in rows]
    columns = {
        _("target"): [row["target"] for row in rows],
        _("image"): [row["image"] for row in rows],
        _("n"): [row["n"] for row in rows],
        _("rho"): [round(row["rho"], 3) for row in rows],
        _("CI low"): [round(row["ci_low"], 3) for row in rows],
        _("CI high"): [round(row["ci_high"], 3) for row in rows],
        _("p (Holm)"): ["" if p is None else round(p, 4) for p in chances],
    }
    return table_node(_("Muscle from head"), columns)


def correlationChart(table):
    """A chart node: one bar an image type, as high as rho."""
    series = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", _("rho"))
    series.SetAndObserveTableNodeID(table.GetID())
    series.SetYColumnName(_("rho"))
    series.SetLabelColumnName(_("image"))
    series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeBar)
    series.SetUniqueColor()
    chart = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotChartNode", _("Muscle from head"))
    chart.AddAndObservePlotSeriesNodeID(series.GetID())
    chart.SetTitle(_("What the head tells of the muscle"))
    chart.SetYAxisTitle(_("Spearman's rho, out of fold"))
    chart.LegendVisibilityOff()
    return chart


def segmentArrays(segmentation, ct) -> dict[str, np.ndarray]:
    """Name -> (I, J, K) mask on the CT's grid; segments may overlap, empty ones are left out."""
    arrays = {}
    for identifier in segmentation.GetSegmentation().GetSegmentIDs():
        voxels = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, identifier, ct).transpose(2, 1, 0)
        if voxels.any():
            arrays[segmentation.GetSegmentation().GetSegment(identifier).GetName()] = voxels > 0
    if not arrays:
        raise RefaceRiskError("the segmentation is empty on this CT", "segment a muscle first", segmentation.GetName())
    return arrays


def colorNames(labelmap) -> dict[int, str]:
    """Label -> name, from the colour table of a label map; empty where it has none."""
    display = labelmap.GetDisplayNode()
    colors = display.GetColorNode() if display else None
    if colors is None:
        return {}
    return {number: colors.GetColorName(number) for number in range(colors.GetNumberOfColors())}


class MuscleFromHeadTest(ScriptedLoadableModuleTest):
    def setUp(self) -> None:
        slicer.mrmlScene.Clear(0)

    def runTest(self) -> None:
        for test in (self.test_label_map_and_segmentation_agree, self.test_ct_without_intercept_is_refused):
            self.setUp()
            test()

    def test_label_map_and_segmentation_agree(self) -> None:
        ct, labels = self.ctWithOneMuscle()
        table = MuscleFromHeadLogic().measure(ct, labels)
        self.assertEqual(table.GetNumberOfRows(), 1)
        self.assertEqual(table.GetTable().GetValue(0, 1).ToDouble(), 45.0)

        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, segmentation)
        again = MuscleFromHeadLogic().measure(ct, segmentation)
        for column in (1, 2, 3, 4, 5):
            self.assertEqual(
                again.GetTable().GetValue(0, column).ToDouble(),
                table.GetTable().GetValue(0, column).ToDouble(),
            )

    def test_ct_without_intercept_is_refused(self) -> None:
        ct, labels = self.ctWithOneMuscle()
        slicer.util.updateVolumeFromArray(ct, slicer.util.arrayFromVolume(ct) + 1024)
        with self.assertRaises(RefaceRiskError):
            MuscleFromHeadLogic().measure(ct, labels)

    def ctWithOneMuscle(self):
        hu = np.full((12, 30, 30), -1000, np.int16)
        hu[:, 5:25, 5:25] = -90
        hu[:, 10:20, 10:20] = 45
        labels = slicer.util.addVolumeFromArray(
            (hu == 45).astype(np.int16), name="muscle", nodeClassName="vtkMRMLLabelMapVolumeNode"
        )
        return slicer.util.addVolumeFromArray(hu, name="CT"), labels
