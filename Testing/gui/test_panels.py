"""The three panels as their users meet them, before anything runs: choices, reasons, scene events, reload."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from xml.etree import ElementTree

import pytest
from conftest import REPOSITORY

PANELS = ("RefaceRisk", "DefaceCompare", "MuscleFromHead")


def plain(tool_tip: str) -> str:
    return re.sub(r"</?p>", "", tool_tip)


@pytest.fixture(params=PANELS)
def panel(request, open_panel):
    return open_panel(request.param)


def two_heads(scene):
    return [scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name) for name in ("first", "second")]


# --- all three --------------------------------------------------------------------------------------------


def test_a_panel_opens_without_a_main_window_and_says_what_is_missing(panel):
    assert panel.ui.applyButton.text == "Apply"
    assert not panel.ui.applyButton.enabled
    assert plain(panel.ui.applyButton.toolTip).startswith(("Choose", "Tick", "Add", "Load"))
    assert not panel.ui.progressBar.visible
    assert panel.ui.statusLabel.text == ""


def test_a_module_tells_who_made_it_and_what_it_is_for(panel):
    module = panel.module
    assert module.title
    assert module.categories == ("Neuroimaging",)
    assert len(module.helpText) > 80
    assert "2025" in module.acknowledgementText or module.acknowledgementText
    assert module.contributors
    assert not module.icon.isNull()


class SampleDataLogic:
    """What Slicer 5.12 asks of a source: as many of each as there are addresses, though a downloader needs none."""

    sources: ClassVar[list] = []

    @classmethod
    def registerCustomSampleDataSource(
        cls, category, sampleName, uris=None, fileNames=None, nodeNames=None, customDownloader=None,
        thumbnailFileName=None, loadFiles=None, loadFileTypes=None, checksums=None,
    ):  # fmt: skip
        if isinstance(uris, list | tuple):
            each = [[None] * len(uris) if given is None else given for given in (nodeNames, loadFiles, checksums)]
            nodeNames, loadFiles, checksums = each
            loadFileTypes = [loadFileTypes] * len(uris) if loadFileTypes is None else loadFileTypes
        many = (uris, fileNames, nodeNames, loadFiles, loadFileTypes, checksums)
        assert len({len(given) for given in many}) == 1  # TypeError for None, as in Slicer
        cls.sources.append((category, sampleName, customDownloader, thumbnailFileName))


def test_the_sample_head_is_registered_as_slicer_asks(open_panel, monkeypatch):
    module = sys.modules[type(open_panel("RefaceRisk").widget).__module__]
    monkeypatch.setitem(sys.modules, "SampleData", SimpleNamespace(SampleDataLogic=SampleDataLogic))
    monkeypatch.setattr(SampleDataLogic, "sources", [])
    module.registerSampleData()
    [(_, name, downloader, thumbnail)] = SampleDataLogic.sources
    assert name == "MyConnectome" and downloader is module.downloadExampleHead
    assert Path(thumbnail).is_file()


def test_entering_and_leaving_again_and_again_binds_once(panel):
    import slicer

    for _ in range(3):
        panel.frame.exit()
        assert panel.widget._parameterNode is None
        assert plain(panel.ui.applyButton.toolTip) == "No scene is open"
        panel.frame.enter()
    observed = [entry for entry in panel.widget.Observations if entry[2].__name__ == "onParametersChanged"]
    assert len(observed) == 1
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScriptedModuleNode") == 1


def test_closing_the_scene_leaves_a_panel_that_works(panel):
    import slicer

    two_heads(slicer.mrmlScene)
    slicer.mrmlScene.Clear(0)
    assert panel.widget._parameterNode is not None
    assert not panel.ui.applyButton.enabled
    panel.frame.exit()
    slicer.mrmlScene.Clear(0)
    assert panel.widget._parameterNode is None
    panel.frame.enter()
    assert panel.widget._parameterNode is not None


def test_reloading_makes_a_new_panel_in_the_same_frame(panel, event_loop):
    import slicer

    name, before = panel.module.name, panel.widget
    panel.widget.onReload()
    after = slicer.util.getModuleWidget(name)
    assert after is not before
    assert type(after) is not type(before)
    assert before._parameterNode is None
    assert before.Observations == []
    two_heads(slicer.mrmlScene)
    assert after._parameterNode is not None
    slicer.mrmlScene.Clear(0)
    assert plain(after.ui.applyButton.toolTip).startswith(("Choose", "Tick", "Add", "Load"))


def test_quitting_while_nothing_runs_is_quiet(panel):
    import slicer

    slicer.app.aboutToQuit.emit()


def test_widgets_of_a_form_are_as_strict_as_those_made_in_python(panel):
    for widget in vars(panel.ui).values():
        if type(widget).__name__ == "ctkCollapsibleButton":
            with pytest.raises(AttributeError):
                widget.setCollapsed(True)  # a property, and no slot
            widget.collapsed = False
        if type(widget).__name__ == "qMRMLNodeComboBox":
            with pytest.raises(AttributeError):
                widget.setNodeTypes(["vtkMRMLModelNode"])


def test_every_input_explains_itself(panel):
    """A tooltip on every bound widget, and none of the names left as Designer makes them."""
    for name, widget in vars(panel.ui).items():
        if widget.property("SlicerParameterName"):
            assert widget.toolTip, name
        assert not re.fullmatch(r"(pushButton|comboBox|spinBox|label|checkBox)_?\d*", name), name


# --- .ui files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PANELS)
def test_a_form_uses_only_what_slicers_widgets_have(layer, name):
    """Qt takes any property of a .ui file without a word; Slicer then shows the panel without it."""
    from pythonqt.reference import members_by_class_name

    form = ElementTree.parse(REPOSITORY / name / "Resources" / "UI" / f"{name}.ui").getroot()
    names = [widget.get("name") for widget in form.iter("widget")]
    assert len(names) == len(set(names))
    widgets = {widget.get("name"): widget.get("class") for widget in form.iter("widget")}
    for widget in form.iter("widget"):
        known = members_by_class_name(widget.get("class"))
        if known is None:
            assert widget.get("class").startswith("Q"), widget.get("class")
            continue
        for found in widget.findall("property"):
            fixed = found.get("stdset") == "0" or found.get("name") in known.properties
            assert fixed, f"{widget.get('name')}: {widget.get('class')} has no property {found.get('name')}"
    declared = {found.findtext("class") for found in form.iter("customwidget")}
    assert {kind for kind in widgets.values() if kind.startswith(("ctk", "qMRML", "qSlicer"))} <= declared
    for connection in form.iter("connection"):
        sender = members_by_class_name(widgets[connection.findtext("sender")])
        receiver = members_by_class_name(widgets[connection.findtext("receiver")])
        assert connection.findtext("signal") in sender.signals
        assert connection.findtext("slot").split("(")[0] in receiver.callables


@pytest.mark.parametrize("name", PANELS)
def test_every_selector_of_a_form_gets_the_scene(layer, name):
    form = ElementTree.parse(REPOSITORY / name / "Resources" / "UI" / f"{name}.ui").getroot()
    fed = {
        connection.findtext("receiver")
        for connection in form.iter("connection")
        if connection.findtext("slot").startswith("setMRMLScene")
    }
    for widget in form.iter("widget"):
        if widget.get("class").startswith("qMRML") and widget.get("name") != name:
            assert widget.get("name") in fed, f"{widget.get('name')} would stay empty"


def test_bound_names_are_parameters_and_ranges_agree(panel):
    """The annotation's range overwrites that of the .ui file: two that differ mislead whoever edits one."""
    name = panel.module.name
    form = ElementTree.parse(REPOSITORY / name / "Resources" / "UI" / f"{name}.ui").getroot()
    parameters = panel.widget._parameterNode.allParameters
    for widget in form.iter("widget"):
        values = {found.get("name"): "".join(found.itertext()).strip() for found in widget.findall("property")}
        bound = values.get("SlicerParameterName")
        if bound is None:
            continue
        assert bound in parameters
        shown = getattr(panel.ui, widget.get("name"))
        for limit in ("minimum", "maximum"):
            if limit in values:
                assert float(values[limit]) == getattr(shown, limit), f"{widget.get('name')}: {limit}"
        if "nodeTypes" in values:
            assert set(values["nodeTypes"].split()) == set(shown.nodeTypes), widget.get("name")


# --- each of them -----------------------------------------------------------------------------------------


def test_reface_risk_takes_the_first_volume_and_refuses_the_same_twice(open_panel, layer):
    import slicer

    panel = open_panel("RefaceRisk")
    first, second = two_heads(slicer.mrmlScene)
    assert panel.ui.defacedSelector.currentNode() is first
    assert panel.widget._parameterNode.defacedVolume is first
    assert panel.ui.applyButton.enabled
    panel.ui.originalSelector.setCurrentNode(first)
    assert not panel.ui.applyButton.enabled
    assert plain(panel.ui.applyButton.toolTip) == "The original and the defaced head are the same volume"
    panel.ui.originalSelector.setCurrentNode(second)
    assert panel.ui.applyButton.enabled


def test_reface_risk_offers_label_maps_as_removed_region(open_panel, layer):
    import slicer

    panel = open_panel("RefaceRisk")
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "removed")
    panel.ui.removedSelector.setCurrentNode(labels)
    assert panel.widget._parameterNode.removedRegion is labels
    slicer.mrmlScene.RemoveNode(labels)
    assert panel.widget._parameterNode.removedRegion is None


def test_deface_compare_needs_a_head_and_a_method(open_panel, layer):
    import slicer

    panel = open_panel("DefaceCompare")
    assert len(panel.widget.methodBoxes) >= 6
    two_heads(slicer.mrmlScene)
    assert panel.ui.applyButton.enabled
    for box in panel.widget.methodBoxes.values():
        assert box.toolTip
        box.checked = False
    assert not panel.ui.applyButton.enabled
    assert plain(panel.ui.applyButton.toolTip) == "Tick at least one method"
    panel.widget.methodBoxes["mri_deface"].click()
    assert panel.widget._parameterNode.methods == ["mri_deface"]
    assert panel.ui.applyButton.enabled


def test_choices_are_saved_with_the_scene_and_come_back(open_panel, layer):
    import slicer

    panel = open_panel("RefaceRisk")
    first, second = two_heads(slicer.mrmlScene)
    panel.ui.defacedSelector.setCurrentNode(second)
    panel.ui.originalSelector.setCurrentNode(first)
    panel.ui.modelComboBox.currentIndex = 2
    panel.ui.seedSpinBox.value = 77
    scene = slicer.mrmlScene
    scene.SetSaveToXMLString(1)
    assert scene.Commit()
    saved = scene.GetSceneXMLString()
    scene.Clear(0)
    assert panel.ui.defacedSelector.currentNode() is None
    scene.SetLoadFromXMLString(1)
    scene.SetSceneXMLString(saved)
    assert scene.Import()
    panel.frame.exit()
    panel.frame.enter()
    assert panel.ui.defacedSelector.currentNode().GetName() == "second"
    assert panel.ui.originalSelector.currentNode().GetName() == "first"
    assert panel.ui.modelComboBox.currentText == "Average face"
    assert panel.ui.seedSpinBox.value == 77
