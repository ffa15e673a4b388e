"""One run of the RefaceRisk panel from the click on Apply to the result, on a real head with the shipped model."""

from __future__ import annotations

import os
import time

import pytest
from conftest import patience, session_of

pytestmark = pytest.mark.skipif(os.name == "nt", reason="looks for processes by /proc")


def test_a_face_is_drawn_and_measured_while_the_events_go_on(open_panel, layout_manager, event_loop, a_head, a_cut,
                                                              screenshot):  # fmt: skip
    import slicer

    from RefaceRiskLib.bridge.nodes import node_from_volume

    panel = open_panel("RefaceRisk")
    ui = panel.ui
    screenshot(panel, "empty")
    defaced = node_from_volume(a_cut[0], "sub-01 defaced")
    original = node_from_volume(a_head, "sub-01")
    removed = node_from_volume(a_cut[1], "sub-01 removed", "vtkMRMLLabelMapVolumeNode")
    ui.defacedSelector.setCurrentNode(defaced)
    ui.originalSelector.setCurrentNode(original)
    ui.removedSelector.setCurrentNode(removed)
    ui.averageCheckBox.checked = False
    ui.stepsSpinBox.value = 4
    assert ui.modelComboBox.currentText.startswith("Diffusion")

    events, previews, forming = [], [], []
    show_progress, show_preview = panel.widget.showProgress, panel.widget.onPreview

    def on_progress(job, message):
        events.append((job.name, message["stage"], message["step"]))
        show_progress(job, message)

    def on_preview(job, message):
        show_preview(job, message)
        previews.append(message["path"])
        forming.append(panel.widget.forming)

    panel.widget.showProgress, panel.widget.onPreview = on_progress, on_preview
    began = time.perf_counter()
    ui.applyButton.click()
    clicked = time.perf_counter() - began
    pid = panel.widget.runner.pid
    assert session_of(pid)[0] == pid
    event_loop.until(lambda: len(previews) > 2 or not panel.widget.running, 120 * patience())
    assert panel.widget.running, ui.statusLabel.text
    assert forming[-1].GetPolyData().GetNumberOfPoints() > 1000
    screenshot(panel, "running")
    event_loop.until(lambda: not panel.widget.running, 120 * patience())
    screenshot(panel, "done")
    stall, work = event_loop.longest_stall, event_loop.longest_work
    print(
        f"{len(events)} reports and {len(previews)} previews in {time.perf_counter() - began:.1f} s; the click took "
        f"{clicked * 1000:.0f} ms, the longest stall of the events was {stall * 1000:.0f} ms, "
        f"{work * 1000:.0f} ms of it our own"
    )
    assert ui.statusLabel.text == "Done"
    assert len(events) >= 20
    assert len(previews) >= 3
    assert work < 0.1
    assert session_of(pid) == []
    assert list(panel.scratch.iterdir()) == []

    assert forming[-1].GetScene() is None
    table = panel.widget._parameterNode.distances
    assert table.GetNumberOfRows() > 0
    assert ui.distanceTable.mrmlTableNode() is table
    assert "mm" in ui.summaryLabel.text
    shown = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode().GetBackgroundVolumeID()
    assert slicer.mrmlScene.GetNodeByID(shown).GetName() == "sub-01 defaced refaced (synthetic)"
