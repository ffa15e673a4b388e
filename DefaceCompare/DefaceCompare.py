"""DefaceCompare: takes the face off a head MRI with several methods, or by hand, and says what can be trusted."""

import enum
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import qt
import slicer
from slicer import vtkMRMLScalarVolumeNode, vtkMRMLTableNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)

from RefaceRiskLib.bridge.comparison import Comparison
from RefaceRiskLib.bridge.drawing import Drawing
from RefaceRiskLib.bridge.nodes import in_scene, node_from_volume, place_beside, table_node, volume_from_node
from RefaceRiskLib.bridge.panel import Panel, show_in_slices, turn_to_skin
from RefaceRiskLib.bridge.worker_process import Job, JobRunner, started, waited
from RefaceRiskLib.errors import RefaceRiskError


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


class Fill(enum.Enum):
    """What the removed voxels get; the values are the names that the command line knows."""

    OWN = ""
    ZERO = "zero"
    NOISE = "noise"
    BLUR = "blur"
    AVERAGE = "average"

    def label(self) -> str:
        return {
            Fill.OWN: _("As the method does"),
            Fill.ZERO: _("Zero"),
            Fill.NOISE: _("Background noise"),
            Fill.BLUR: _("Blurred face"),
            Fill.AVERAGE: _("Average face (synthetic)"),
        }[self]


@parameterNodeWrapper
class DefaceCompareParameterNode:
    """
    inputVolume - A head with its face.
    methods - Names of the methods to run.
    fill - What the removed voxels get.
    marginMm - How far from the brain a cut by hand stops.
    verdicts - The table of the latest run.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    methods: list[str] = ["mri_deface"]  # noqa: RUF012 - the wrapper reads it as a default and copies it
    fill: Fill = Fill.OWN
    marginMm: Annotated[float, WithinRange(0, 30)] = 5.0
    verdicts: vtkMRMLTableNode


TABLE_HEIGHT, SCROLL_BAR_HEIGHT = 180, 20  # pixels: of the rows at most, and of what lies below them
VERDICT_COLOURS = {"ok": "#2e9e5b", "check": "#d08a00", "failed": "#d23f31"}
BY_HAND = "interactive"


class DefaceCompareWidget(Panel):
    def makeLogic(self) -> "DefaceCompareLogic":
        return DefaceCompareLogic()

    def connectPanel(self) -> None:
        self.comparison, self.drawing = Comparison(), Drawing()
        self.cut = None  # a LiveCut, while its handles are in the scene
        self.results: dict[str, Result] = {}
        self.methodBoxes = {}
        for name, description in self.logic.methods().items():
            if name == BY_HAND:
                continue
            box = qt.QCheckBox(name)
            box.toolTip = description
            box.connect("toggled(bool)", self.onMethodToggled)
            self.ui.methodsGroupBox.layout().addWidget(box)
            self.methodBoxes[name] = box
        ui = self.ui
        ui.verdictTable.connect("itemSelectionChanged()", self.onVerdictSelected)
        ui.compareButton.connect("toggled(bool)", self.onCompareToggled)
        ui.saveButton.connect("clicked(bool)", self.onSaveButton)
        ui.carryButton.connect("clicked(bool)", self.onCarryButton)
        ui.othersSelector.connect("checkedNodesChanged()", self.updateApplyButton)
        ui.cutButton.connect("clicked(bool)", self.onCutButton)
        ui.undoButton.connect("clicked(bool)", self.onUndoButton)
        ui.drawButton.connect("toggled(bool)", self.onDrawToggled)
        ui.defaceByHandButton.connect("clicked(bool)", self.onDefaceByHandButton)
        # Slicer has no event for a scene that is about to be saved: results say it when they come, and this afterwards.
        slicer.app.ioManager().connect("fileSaved(qSlicerIO::IOProperties)", self.onFileSaved)

    def selectDefaults(self) -> None:
        if not self._parameterNode.inputVolume:
            first = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
            if first:
                self._parameterNode.inputVolume = first

    def onMethodToggled(self, *_checked) -> None:
        if self._parameterNode is not None:
            self._parameterNode.methods = [name for name, box in self.methodBoxes.items() if box.checked]

    def parametersChanged(self) -> None:
        parameters = self._parameterNode
        for name, box in self.methodBoxes.items():
            wasBlocked = box.blockSignals(True)
            box.checked = name in parameters.methods
            box.blockSignals(wasBlocked)
        if self.cut is not None and self.cut.cutter.margin_mm != parameters.marginMm:
            self.cut.set_margin(parameters.marginMm)
        self.showVerdicts(parameters.verdicts)

    def updateApplyButton(self, *_changed) -> None:
        super().updateApplyButton()
        ui, idle, cutting = self.ui, not self.running, self.cut is not None
        results = self.liveResults()
        ui.compareButton.enabled = bool(results)
        ui.saveButton.enabled = bool(results) and idle
        ui.carryButton.enabled = bool(results) and idle and bool(ui.othersSelector.checkedNodes())
        head = self._parameterNode is not None and self._parameterNode.inputVolume is not None
        ui.cutButton.enabled = idle and (head or cutting)
        ui.cutButton.text = _("Stop cutting") if cutting else _("Cut by hand")
        for widget in (ui.undoButton, ui.drawButton, ui.defaceByHandButton):
            widget.enabled = cutting and idle

    def whyNotApply(self) -> str:
        if not self._parameterNode.inputVolume:
            return _("Choose a head")
        if not self._parameterNode.methods:
            return _("Tick at least one method")
        return ""

    def apply(self) -> JobRunner:
        self.ui.compareButton.checked = False
        return self.logic.startDeface(
            self._parameterNode.inputVolume,
            list(self._parameterNode.methods),
            fill=self._parameterNode.fill.value,
            onProgress=self.showProgress,
            onEnd=self.onEnd,
        )

    def onEnd(self, outputs: "Outputs", error: Exception | None) -> None:
        self.results.update(outputs.results)
        if outputs.verdicts is not None:
            # The panel may have been left meanwhile, and has no parameter node then; the scene has.
            self.logic.getParameterNode().verdicts = outputs.verdicts
        if outputs.defaced:
            show_in_slices(background=next(iter(outputs.defaced.values())))
        self.showEnd(error)
        if error is None:
            self.ui.statusLabel.text = " ".join(filter(None, (f"{self.ui.statusLabel.text}.", self.facesInScene())))

    # --- results ---

    def liveResults(self) -> dict[str, "Result"]:
        """Results whose volume nobody has deleted."""
        return {name: result for name, result in self.results.items() if in_scene(result.volume)}

    def showVerdicts(self, node) -> None:
        table = node.GetTable() if node is not None else None
        view = self.ui.verdictTable
        view.setRowCount(table.GetNumberOfRows() if table else 0)
        view.visible = table is not None
        if table is None:
            return
        view.setColumnCount(table.GetNumberOfColumns())
        view.setHorizontalHeaderLabels([table.GetColumnName(column) for column in range(view.columnCount)])
        for row in range(view.rowCount):
            for column in range(view.columnCount):
                text = table.GetValue(row, column).ToString()
                item = qt.QTableWidgetItem(text)
                item.setToolTip(text)
                if column == 1:
                    item.setForeground(qt.QBrush(qt.QColor(VERDICT_COLOURS.get(text, "#808080"))))
                view.setItem(row, column, item)
        view.resizeColumnsToContents()
        # No taller than its rows, with room for a scroll bar: what follows in the panel stays in sight.
        rows = sum(view.rowHeight(row) for row in range(view.rowCount))
        view.setFixedHeight(view.horizontalHeader().height + min(rows, TABLE_HEIGHT) + SCROLL_BAR_HEIGHT)

    def onVerdictSelected(self) -> None:
        """Shows what the method of the selected row made."""
        item = self.ui.verdictTable.item(self.ui.verdictTable.currentRow(), 0)
        result = self.liveResults().get(item.text()) if item is not None else None
        if result is not None:
            show_in_slices(background=result.volume)

    def onCompareToggled(self, checked: bool) -> None:
        results = self.liveResults()
        if not checked or not results:
            self.comparison.restore()
            return
        original = next(iter(results.values())).original
        shown = {_("original"): original} if in_scene(original) else {}
        self.comparison.show_volumes(shown | {name: result.volume for name, result in results.items()})

    def onSaveButton(self, *_clicked) -> None:
        folder = qt.QFileDialog.getExistingDirectory(None, _("Folder for the defaced copies"))
        if not folder:
            return
        try:
            with slicer.util.WaitCursor():
                written = self.logic.save(self.liveResults().values(), folder)
        except RefaceRiskError as error:
            self.showEnd(error)
            return
        self.ui.statusLabel.text = _("{count} defaced copies saved to {folder}").format(
            count=len(written), folder=folder
        )

    def onCarryButton(self, *_clicked) -> None:
        """Takes the same tissue off other volumes of this head, with the mask of the selected (or first) result."""
        results = self.liveResults()
        item = self.ui.verdictTable.item(max(0, self.ui.verdictTable.currentRow()), 0)
        chosen = results.get(item.text() if item is not None else "", next(iter(results.values())))
        others = [node for node in self.ui.othersSelector.checkedNodes() if node.GetID() != chosen.original.GetID()]
        self.tryTo(lambda: self.logic.startCarry(chosen, others, onProgress=self.showProgress, onEnd=self.onEnd))

    def facesInScene(self) -> str:
        """Which heads still show their faces, in one line; empty when none does."""
        originals = {result.original.GetName() for result in self.liveResults().values() if in_scene(result.original)}
        if not originals:
            return ""
        text = _("The scene still holds a head with its face: {names}. Delete it before you save or share the scene.")
        return text.format(names=", ".join(sorted(originals)))

    def onFileSaved(self, saved: dict) -> None:
        warning = self.facesInScene()
        if warning and str(saved.get("fileName", "")).lower().endswith((".mrb", ".mrml")):
            self.ui.statusLabel.text = warning
            slicer.util.warningDisplay(warning)

    # --- by hand ---

    def onCutButton(self, *_clicked) -> None:
        if self.cut is not None:
            self.stopCutting()
            self.updateApplyButton()
            return
        head = self._parameterNode.inputVolume
        self.tryTo(
            lambda: self.logic.startPrepare(
                head,
                margin_mm=self._parameterNode.marginMm,
                onProgress=self.showProgress,
                onEnd=self.onPrepared,
            )
        )

    def onPrepared(self, cut, error: Exception | None) -> None:
        self.cut = cut
        if cut is not None:
            show_in_slices(background=cut.head, label=cut.mask)
            turn_to_skin()
        self.showEnd(error)
        if cut is not None:
            self.ui.statusLabel.text = _("Drag the plane and the box: what turns red goes. The brain cannot be cut.")

    def onUndoButton(self, *_clicked) -> None:
        if self.cut is not None and not self.cut.undo():
            self.ui.statusLabel.text = _("Nothing to undo")

    def onDrawToggled(self, checked: bool) -> None:
        """A brush for what the plane misses, an eraser for what it should not take."""
        if self.cut is None:
            return
        if checked:
            self.drawing.begin(self.cut, self.ui.drawingBox.layout())
        else:
            self.drawing.end()
        show_in_slices(background=self.cut.head, label=self.cut.mask)  # the Segment Editor empties the label layer

    def onDefaceByHandButton(self, *_clicked) -> None:
        self.ui.drawButton.checked = False
        cut, fill = self.cut, self._parameterNode.fill.value
        self.tryTo(
            lambda: self.logic.startDefaceByHand(
                cut.head, cut.mask, cut.cutter.margin_mm, fill, onProgress=self.showProgress, onEnd=self.onEnd
            )
        )

    def stopCutting(self) -> None:
        self.drawing.end(use=False)
        self.ui.drawButton.checked = False
        if self.cut is not None:
            self.cut.close()
            self.cut = None

    def onSceneStartClose(self, caller, event) -> None:
        super().onSceneStartClose(caller, event)
        self.stopCutting()
        self.ui.compareButton.checked = False
        self.results = {}

    def cleanup(self) -> None:
        self.stopCutting()
        self.comparison.restore()
        slicer.app.ioManager().disconnect("fileSaved(qSlicerIO::IOProperties)", self.onFileSaved)
        super().cleanup()


@dataclass
class Result:
    """One defaced copy: its volume node, the label map node of what was removed, the head that it was made from, and
    the record that is saved beside it."""

    volume: vtkMRMLScalarVolumeNode
    removed: object
    original: vtkMRMLScalarVolumeNode
    record: dict


@dataclass
class Outputs:
    """Results by method, and the table of verdicts."""

    results: dict[str, Result] = field(default_factory=dict)
    verdicts: vtkMRMLTableNode | None = None

    @property
    def defaced(self) -> dict[str, vtkMRMLScalarVolumeNode]:
        """Defaced volume nodes by method."""
        return {name: result.volume for name, result in self.results.items()}


class DefaceCompareLogic(ScriptedLoadableModuleLogic):
    """Defaces volume nodes: `slicer.util.getModuleLogic("DefaceCompare").deface(node, ["pydeface"])`."""

    def getParameterNode(self) -> DefaceCompareParameterNode:
        return DefaceCompareParameterNode(super().getParameterNode())

    def methods(self) -> dict[str, str]:
        """Name -> one line of what the method does."""
        from RefaceRiskLib.jobs import defacing_methods

        return defacing_methods()

    def deface(self, head, methods: list[str], fill: str = "") -> Outputs:
        """Defaces the volume node `head` by each method, on one registration, and waits.

        A method that cannot do it has a row in the table that says why, and no volume.

        :param fill: zero, noise, blur or average for the removed voxels; empty: as each method does
        :raises RefaceRiskError: when `head` cannot be read at all
        """
        return waited(lambda onEnd: self.startDeface(head, methods, fill, onEnd=onEnd))

    def defaceByHand(self, head, mask, margin_mm: float = 5.0, fill: str = "") -> Outputs:
        """Takes what the label map node `mask` (on the grid of `head`) covers, kept off the brain, and waits."""
        return waited(lambda onEnd: self.startDefaceByHand(head, mask, margin_mm, fill, onEnd=onEnd))

    def carry(self, result: Result, others: Sequence) -> Outputs:
        """Takes what `result` lost off other volume nodes of the same head, on their own grids, and waits."""
        return waited(lambda onEnd: self.startCarry(result, others, onEnd=onEnd))

    def save(self, results: Sequence[Result], folder: str | Path) -> list[Path]:
        """Writes each defaced volume as .nii.gz with a clean header and its record beside it.

        :raises RefaceRiskError: when the folder cannot be written to, or a file of that name is there already
        """
        from RefaceRiskLib import hygiene, volumes

        wanted = {Path(folder) / f"{fileName(result.volume.GetName())}.nii.gz": result for result in results}
        for path in wanted:
            if path.exists():
                raise RefaceRiskError("is there already", "choose another folder", path)
        for path, result in wanted.items():
            volumes.sidecar(path, **result.record)
            volumes.save(hygiene.cleaned(volume_from_node(result.volume)), path)
        return list(wanted)

    def startDeface(
        self,
        head,
        methods: list[str],
        fill: str = "",
        onProgress: Callable[[Job, dict], None] | None = None,
        onEnd: Callable[[Outputs, Exception | None], None] | None = None,
    ) -> JobRunner:
        """The same in a child process: returns at once. `worker_process.follow` polls the runner from Qt."""
        from RefaceRiskLib import volumes

        outputs = Outputs()

        def jobs(folder: Path) -> list[Job]:
            source = volumes.save(volume_from_node(head), folder / "head.nii")
            todo = {"source": source, "out": folder / "out", "methods": methods, "picture": False, "fill": fill or None}
            return [Job("compare", todo, _("Defacing"))]

        def collect(job: Job, message: dict) -> Iterator[None]:
            rows = message["record"]["rows"]
            outputs.verdicts = verdictTable(rows, head)
            for row in rows:
                method, files = row["method"], message["outputs"]
                if method in files:
                    outputs.results[method] = loaded(files[method], files[f"{method} mask"], head, method)
                    yield

        return started(jobs, collect, outputs, onProgress, onEnd)

    def startDefaceByHand(
        self,
        head,
        mask,
        margin_mm: float = 5.0,
        fill: str = "",
        onProgress: Callable[[Job, dict], None] | None = None,
        onEnd: Callable[[Outputs, Exception | None], None] | None = None,
    ) -> JobRunner:
        """The same in a child process: returns at once."""
        from RefaceRiskLib import volumes

        outputs = Outputs()

        def jobs(folder: Path) -> list[Job]:
            options = {"margin_mm": margin_mm} | ({"fill": fill} if fill else {})
            todo = {
                "source": volumes.save(volume_from_node(head), folder / "head.nii"),
                "mask": volumes.save(volume_from_node(mask), folder / "mask.nii"),
                "out": folder / "defaced.nii",
                "mask_out": folder / "removed.nii",
                "method": BY_HAND,
                "options": options,
            }
            return [Job("deface", todo, _("Defacing"))]

        def collect(job: Job, message: dict) -> None:
            files, quality = message["outputs"], message["record"]["quality"]
            outputs.results[BY_HAND] = loaded(files["defaced"], files["mask"], head, BY_HAND)
            outputs.verdicts = verdictTable([{"method": BY_HAND, **quality}], head)

        return started(jobs, collect, outputs, onProgress, onEnd)

    def startCarry(
        self,
        result: Result,
        others: Sequence,
        onProgress: Callable[[Job, dict], None] | None = None,
        onEnd: Callable[[Outputs, Exception | None], None] | None = None,
    ) -> JobRunner:
        """The same in a child process: returns at once."""
        from RefaceRiskLib import volumes

        if not others:
            raise RefaceRiskError("no other volume is ticked", "tick volumes of the same head")
        if not in_scene(result.original) or not in_scene(result.removed):
            raise RefaceRiskError("the original head or the mask is not in the scene any more", "deface it again")
        outputs = Outputs()
        names = {f"other-{number}": node for number, node in enumerate(others, start=1)}

        def jobs(folder: Path) -> list[Job]:
            todo = {
                "source": volumes.save(volume_from_node(result.original), folder / "head.nii"),
                "mask": volumes.save(volume_from_node(result.removed), folder / "mask.nii"),
                "out": folder / "defaced.nii",
                "method": BY_HAND,
                "options": {"margin_mm": 0.0},
                "apply_to": [
                    volumes.save(volume_from_node(node), folder / f"{name}.nii") for name, node in names.items()
                ],
                "apply_out": folder,
            }
            return [Job("deface", todo, _("Carrying over"))]

        def collect(job: Job, message: dict) -> Iterator[None]:
            for name, node in names.items():
                file = message["outputs"][f"{name} defaced"]
                outputs.results[node.GetName()] = loaded(file, None, node, _("defaced"))
                yield

        return started(jobs, collect, outputs, onProgress, onEnd)

    def startPrepare(
        self,
        head,
        margin_mm: float = 5.0,
        onProgress: Callable[[Job, dict], None] | None = None,
        onEnd: Callable[[object, Exception | None], None] | None = None,
    ) -> JobRunner:
        """Finds the brain in a child process and puts the handles of a live cut into the scene."""
        from RefaceRiskLib import volumes

        made = []

        def jobs(folder: Path) -> list[Job]:
            source = volumes.save(volume_from_node(head), folder / "head.nii")
            todo = {"source": source, "out": folder / "brain.nii", "skin": folder / "skin.npz"}
            return [Job("prepare", todo, _("Looking for the brain"))]

        def collect(job: Job, message: dict) -> None:
            distance = volumes.load(message["outputs"]["brain distance"])
            from RefaceRiskLib.bridge.live_cut import LiveCut  # needs scipy, which takes a second to import

            made.append(LiveCut(head, distance, message["record"]["plane"], message["outputs"]["skin"], margin_mm))

        return JobRunner(
            jobs,
            on_progress=onProgress,
            on_result=collect,
            on_end=lambda error: onEnd(made[0] if made else None, error) if onEnd else None,
        ).start()


def loaded(file: str, mask: str | None, original, label: str) -> Result:
    """The nodes of a defaced file of the worker; its record is read while the file is there."""
    from RefaceRiskLib import volumes

    name = f"{original.GetName()} {label}"
    volume = node_from_volume(volumes.load(file), name)
    place_beside(volume, original)
    removed = None
    if mask is not None:
        title = _("{name} removed").format(name=name)
        removed = node_from_volume(volumes.load(mask), title, "vtkMRMLLabelMapVolumeNode")
        place_beside(removed, original)
    record = json.loads(Path(file).with_suffix("").with_suffix(".json").read_text(encoding="utf-8"))
    return Result(volume, removed, original, record)


def verdictTable(rows: Sequence[dict], head) -> vtkMRMLTableNode:
    """A table node with a row for each method: may its result be trusted, and why."""
    columns = {
        _("method"): [row["method"] for row in rows],
        _("verdict"): [row["verdict"] for row in rows],
        _("face gone"): [percent(row["face_surface_removed"]) for row in rows],
        _("brain voxels"): ["" if (n := row["brain_voxels_touched"]) is None else str(n) for row in rows],
        _("why"): [row["reason"] for row in rows],
    }
    return table_node(_("{name} defacing").format(name=head.GetName()), columns)


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def fileName(title: str) -> str:
    """A node's name as the name of a file."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in title).strip("._") or "head"


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
