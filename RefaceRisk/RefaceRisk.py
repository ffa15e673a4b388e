"""RefaceRisk: draws a synthetic face into a defaced head MRI and tells how close it comes to the real one."""

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Union

import qt
import slicer
from slicer import vtkMRMLLabelMapVolumeNode, vtkMRMLScalarVolumeNode, vtkMRMLTableNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)

from RefaceRiskLib.bridge.comparison import Comparison
from RefaceRiskLib.bridge.nodes import in_scene, node_from_volume, place_beside, table_node, volume_from_node
from RefaceRiskLib.bridge.packages import ensure_diffusion_packages
from RefaceRiskLib.bridge.panel import Panel, show_in_slices, turn_to_skin
from RefaceRiskLib.bridge.skins import forming_node, show_legend, skin_node
from RefaceRiskLib.bridge.worker_process import Job, JobRunner, started, waited
from RefaceRiskLib.errors import RefaceRiskError


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
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData() -> None:
    """A whole head with its face, shared by its subject, in the Sample Data module."""
    import SampleData

    logic, category = SampleData.SampleDataLogic, "MRIRefaceRisk"
    if hasattr(logic, "registerCustomSampleDataCategory"):
        logic.registerCustomSampleDataCategory(category, title=_("Defacing"))
    logic.registerCustomSampleDataSource(
        category=category,
        sampleName="MyConnectome",
        uris=[],  # Slicer takes the length of these, though a downloader of our own needs none
        fileNames=[],
        thumbnailFileName=str(Path(__file__).parent / "Resources" / "Icons" / "MyConnectome.png"),
        customDownloader=downloadExampleHead,
    )


def downloadExampleHead(source=None) -> list:
    """Fetches the example head (20 MB, once; SHA-256 checked) and loads it. Returns the volume nodes."""
    from RefaceRiskLib import volumes
    from RefaceRiskLib.demo import example_head

    with slicer.util.tryWithErrorDisplay(_("The example head could not be fetched"), waitCursor=True):
        return [node_from_volume(volumes.load(example_head()), "MyConnectome")]
    return []


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
    samples - How many faces to draw; of several the mean is shown.
    steps - Network calls in each stage of the diffusion.
    seed - The same seed draws the same face again.
    device - Where the diffusion runs.
    withAverage - Whether the average face is put on too, to compare with.
    distances - The table of the latest run.
    """

    defacedVolume: vtkMRMLScalarVolumeNode
    # Union and not |: Slicer's selector takes its node types from the annotation and knows no other spelling.
    removedRegion: Union[vtkMRMLLabelMapVolumeNode, vtkMRMLScalarVolumeNode, None]  # noqa: UP007
    originalVolume: vtkMRMLScalarVolumeNode
    model: Model = Model.DIFFUSION
    samples: Annotated[int, WithinRange(1, 16)] = 1
    steps: Annotated[int, WithinRange(1, 100)] = 8
    seed: Annotated[int, WithinRange(0, 999999)] = 0
    device: Annotated[str, Choice(["auto", "cpu", "cuda", "mps"])] = "auto"
    withAverage: bool = True
    distances: vtkMRMLTableNode


class RefaceRiskWidget(Panel):
    def makeLogic(self) -> "RefaceRiskLogic":
        return RefaceRiskLogic()

    def connectPanel(self) -> None:
        self.comparison = Comparison()
        self.outputs = None
        self.forming = None
        self.ui.compareButton.connect("toggled(bool)", self.onCompareToggled)
        self.ui.pictureButton.connect("clicked(bool)", self.onPictureButton)

    def selectDefaults(self) -> None:
        if not self._parameterNode.defacedVolume:
            first = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
            if first:
                self._parameterNode.defacedVolume = first

    def parametersChanged(self) -> None:
        parameters = self._parameterNode
        for widget in (self.ui.samplesSpinBox, self.ui.stepsSpinBox, self.ui.seedSpinBox, self.ui.deviceComboBox):
            widget.enabled = parameters.model == Model.DIFFUSION
        self.showTable(self.ui.distanceTable, parameters.distances)

    def updateApplyButton(self) -> None:
        super().updateApplyButton()
        skins = self.outputs.skins if self.outputs else {}
        self.ui.compareButton.enabled = len([node for node in skins.values() if in_scene(node)]) > 1
        measured = self.outputs is not None and self.outputs.distances is not None
        self.ui.pictureButton.enabled = measured and not self.running

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
        self.ui.compareButton.checked = False
        self.ui.summaryLabel.text = ""
        return self.logic.startReface(
            parameters.defacedVolume,
            parameters.originalVolume,
            parameters.removedRegion,
            model=parameters.model.value,
            samples=parameters.samples,
            steps=parameters.steps,
            seed=parameters.seed,
            device=parameters.device,
            withAverage=parameters.withAverage,
            onProgress=self.showProgress,
            onPreview=self.onPreview,
            onEnd=self.onEnd,
        )

    def onPreview(self, job: Job, message: dict) -> None:
        """The skin as it forms, in the 3-D views and as an outline in the slices."""
        first = not in_scene(self.forming)
        self.forming = forming_node(message["path"], None if first else self.forming)
        if first:
            turn_to_skin()

    def onEnd(self, outputs: "Outputs", error: Exception | None) -> None:
        self.removeForming()
        if outputs.refaced is not None:
            self.outputs = outputs
            show_in_slices(background=outputs.refaced)
        if outputs.distances is not None:
            # The panel may have been left meanwhile, and has no parameter node then; the scene has.
            self.logic.getParameterNode().distances = outputs.distances
            self.ui.summaryLabel.text = outputs.summary
        self.showEnd(error)
        if error is None and len(outputs.skins) > 1:
            self.ui.compareButton.checked = True

    def onCompareToggled(self, checked: bool) -> None:
        if checked and self.outputs:
            self.comparison.show_models({title: node for title, node in self.outputs.skins.items() if in_scene(node)})
        else:
            self.comparison.restore()

    def onPictureButton(self, *_clicked) -> None:
        """The faces and their distances as one picture, like the figure of the paper."""
        path = qt.QFileDialog.getSaveFileName(None, _("Save the picture"), "faces.png", _("Picture (*.png)"))
        if not path or self.running:
            return
        path = path if path.lower().endswith(".png") else f"{path}.png"
        self.tryTo(lambda: self.logic.startPicture(self.outputs, path, self.showProgress, self.showEnd))

    def stop(self) -> None:
        super().stop()
        self.removeForming()

    def onSceneStartClose(self, caller, event) -> None:
        super().onSceneStartClose(caller, event)
        self.ui.compareButton.checked = False
        self.ui.summaryLabel.text = ""
        self.outputs = None

    def cleanup(self) -> None:
        self.comparison.restore()
        super().cleanup()

    def removeForming(self) -> None:
        if in_scene(self.forming):
            slicer.mrmlScene.RemoveNode(self.forming)
        self.forming = None


@dataclass
class Outputs:
    """What a run has brought so far.

    refaced, average : volume nodes. distances : table node. skins : title -> model node, coloured by the distance to
    the original. summary : the risk in plain words. inputs : the volume nodes that were compared, by name.
    """

    refaced: vtkMRMLScalarVolumeNode | None = None
    average: vtkMRMLScalarVolumeNode | None = None
    distances: vtkMRMLTableNode | None = None
    skins: dict = field(default_factory=dict)
    summary: str = ""
    inputs: dict = field(default_factory=dict)


class RefaceRiskLogic(ScriptedLoadableModuleLogic):
    """Refaces volume nodes. From the console: `slicer.util.getModuleLogic("RefaceRisk").reface(node)`."""

    def getParameterNode(self) -> RefaceRiskParameterNode:
        return RefaceRiskParameterNode(super().getParameterNode())

    def reface(
        self,
        defaced,
        original=None,
        removed=None,
        model: str = "reference",
        samples: int = 1,
        steps: int = 8,
        seed: int = 0,
        device: str = "auto",
        withAverage: bool = False,
    ) -> Outputs:
        """Draws a face into the volume node `defaced` and waits for it.

        :param original: volume node to measure distances against, if there is one
        :param removed: volume node, 1 where the face was removed; estimated if there is none
        :param model: reference (diffusion, needs PyTorch), linear, average, or a folder of weights
        :param samples: how many faces to draw; of several the mean comes back
        :param steps: network calls in each stage of the diffusion
        :param device: auto, cpu, cuda or mps
        :param withAverage: put the average face on too, to compare with
        :return: the refaced volume node, the table node of distances and the skins (none without an original)
        :raises RefaceRiskError: when it cannot be done, with one line that says why
        """
        return waited(
            lambda onEnd: self.startReface(
                defaced,
                original,
                removed,
                model=model,
                samples=samples,
                steps=steps,
                seed=seed,
                device=device,
                withAverage=withAverage,
                onEnd=onEnd,
            )
        )

    def startReface(
        self,
        defaced,
        original=None,
        removed=None,
        model: str = "reference",
        samples: int = 1,
        steps: int = 8,
        seed: int = 0,
        device: str = "auto",
        withAverage: bool = False,
        onProgress: Callable[[Job, dict], None] | None = None,
        onPreview: Callable[[Job, dict], None] | None = None,
        onEnd: Callable[[Outputs, Exception | None], None] | None = None,
    ) -> JobRunner:
        """The same in child processes: returns at once. `worker_process.follow` polls the runner from Qt."""
        from RefaceRiskLib import volumes

        outputs = Outputs(inputs={"defaced": defaced, "original": original, "removed": removed})

        def jobs(folder: Path) -> list[Job]:
            def written(node, name: str) -> Path:
                return volumes.save(volume_from_node(node), folder / name)

            source = written(defaced, "defaced.nii")
            mask = None if removed is None else written(removed, "removed.nii")
            shared = {"source": source, "mask": mask, "device": device}
            others = {"defaced": source, "refaced": folder / "refaced.nii"}
            draw = {"out": others["refaced"], "model": model, "samples": samples, "steps": steps, "seed": seed}
            chain = [Job("reface", {**shared, **draw}, _("Drawing the face"))]
            if withAverage and model != "average":
                others["average"] = folder / "average.nii"
                put = {**shared, "out": others["average"], "model": "average"}
                chain.append(Job("reface", put, _("Putting the average face on")))
            if original is not None:
                head = written(original, "original.nii")
                compare = {"original": head, "others": others, "removed": mask, "skins": folder / "skins"}
                chain.append(Job("measure", compare, _("Measuring")))
            return chain

        def collect(job: Job, message: dict) -> Iterator[None]:
            if job.name == "measure":
                rows = message["record"]["rows"]
                outputs.distances = distanceTable(rows, defaced.GetName())
                outputs.summary = inPlainWords(rows, model)
                for title, node in skinNodes(message["outputs"], defaced.GetName()):
                    outputs.skins[title] = node
                    yield
                return
            average = job.arguments["model"] == "average" and model != "average"
            name = _("{name} average face (synthetic)") if average else _("{name} refaced (synthetic)")
            volume = volumes.load(message["outputs"]["refaced"])
            yield
            node = node_from_volume(volume, name.format(name=defaced.GetName()))
            place_beside(node, defaced)
            setattr(outputs, "average" if average else "refaced", node)

        return started(jobs, collect, outputs, onProgress, onEnd, onPreview)

    def savePicture(self, outputs: Outputs, path: str) -> None:
        """Writes the picture of a run with an original (PNG) and waits: rows of faces with their distances."""
        self.startPicture(outputs, path).wait()

    def startPicture(
        self,
        outputs: Outputs,
        path: str,
        onProgress: Callable[[Job, dict], None] | None = None,
        onEnd: Callable[[Exception | None], None] | None = None,
    ) -> JobRunner:
        """The same in a child process: returns at once."""
        from RefaceRiskLib import volumes

        nodes = {**outputs.inputs, "refaced": outputs.refaced, "average": outputs.average}
        for name in ("original", "defaced", "refaced"):
            if not in_scene(nodes[name]):
                raise RefaceRiskError(f"the {name} head is not in the scene any more", "run it again")

        def jobs(folder: Path) -> list[Job]:
            files = {
                name: volumes.save(volume_from_node(node), folder / f"{name}.nii")
                for name, node in nodes.items()
                if in_scene(node)
            }
            original, removed = files.pop("original"), files.pop("removed", None)
            draw = {"original": original, "others": files, "removed": removed, "picture": str(path)}
            return [Job("measure", draw, _("Drawing the picture"))]

        return JobRunner(jobs, on_progress=onProgress, on_end=onEnd).start()


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


def skinNodes(files: dict[str, str], name: str) -> Iterator[tuple[str, object]]:
    """Title and model node of each skin that the worker measured, coloured by its distance to the original."""
    titles = {
        "original skin": _("original"),
        "defaced skin": _("defaced"),
        "refaced skin": _("refaced"),
        "average skin": _("average face"),
    }
    for key, title in titles.items():
        if key in files:
            node = skin_node(files[key], _("{name} skin, {title}").format(name=name, title=title))
            if key != "original skin":
                show_legend(node)
            yield title, node


def inPlainWords(rows: list[dict], model: str) -> str:
    """What the distances say about the risk, in a few sentences."""
    mean = {row["image"]: row["mean_mm"] for row in rows if row["region"] == "face"}
    back = 1 - mean["refaced"] / mean["defaced"] if mean["defaced"] > 0 else 0.0
    sentences = [
        _("The drawn face lies {refaced:.2f} mm (mean) from the true one, the defaced head {defaced:.2f} mm.").format(
            **mean
        )
    ]
    if back <= 0.05:
        sentences.append(_("What was removed did not come back."))
    if "average" in mean:
        ratio = mean["refaced"] / mean["average"] if mean["average"] > 0 else 1.0
        sentences.append(_("An average face lies {average:.2f} mm from it.").format(**mean))
        if ratio < 0.97:
            sentences.append(
                _("The drawn face is {percent:.0f} % nearer: the rest of the head gives part of the face away.").format(
                    percent=100 * (1 - ratio)
                )
            )
        else:
            sentences.append(_("The drawn face is no nearer to this person's own than an average one."))
    sentences.append(_("Distance is geometry, not the rate at which anybody would recognise the face."))
    return " ".join(sentences)


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
