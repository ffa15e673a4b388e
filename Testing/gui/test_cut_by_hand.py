"""From a head to a copy cut by hand, through the buttons of the panel and real child processes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import patience

from RefaceRiskLib import volumes
from RefaceRiskLib.bridge.nodes import node_from_volume


@pytest.fixture
def panel(open_panel, layout_manager, a_head):
    import slicer

    node_from_volume(a_head, "head")
    opened = open_panel("DefaceCompare")
    assert opened.ui.inputSelector.currentNode() is slicer.util.getNode("head")
    return opened


def test_a_plane_is_dragged_used_and_saved_and_gone_with_the_scene(panel, event_loop, a_head, tmp_path, monkeypatch):
    import pythonqt
    import slicer

    ui, widget = panel.ui, panel.widget
    assert ui.cutButton.enabled and not ui.defaceByHandButton.enabled
    ui.cutButton.click()
    event_loop.until(lambda: not widget.running, 120 * patience())
    assert widget.cut is not None and ui.cutButton.text == "Stop cutting"
    assert ui.defaceByHandButton.enabled and ui.undoButton.enabled

    before = widget.cut.removed_voxels
    ui.marginSlider.value = 12.0
    wider = widget.cut.removed_voxels
    assert 0 < wider < before
    origin = np.array(widget.cut.plane.GetOriginWorld()) + np.array([0, 5, -5])
    widget.cut.plane.InvokeEvent(slicer.vtkMRMLMarkupsNode.PointStartInteractionEvent)
    widget.cut.plane.SetOriginWorld(origin)
    assert widget.cut.removed_voxels < wider
    ui.undoButton.click()
    assert widget.cut.removed_voxels == wider

    shown = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    for drawing in (True, False):
        ui.drawButton.checked = drawing
        assert widget.drawing.active == drawing
        assert shown.GetLabelVolumeID() == widget.cut.mask.GetID()

    ui.defaceByHandButton.click()
    event_loop.until(lambda: not widget.running, 120 * patience())
    assert ui.verdictTable.rowCount == 1, ui.statusLabel.text
    result = widget.results["interactive"]
    removed = slicer.util.arrayFromVolume(result.removed).transpose(2, 1, 0) > 0
    after = slicer.util.arrayFromVolume(result.volume).transpose(2, 1, 0)
    np.testing.assert_array_equal(after[~removed], a_head.intensities[~removed])
    assert removed.any() and not after[removed].any()
    assert result.record["quality"]["brain_voxels_touched"] == 0

    said = []
    monkeypatch.setattr(slicer.util, "warningDisplay", said.append)
    for name in ("head.nii.gz", "scene.mrb"):
        slicer.app.ioManager().emitFileSaved({"fileName": name})
    warning = "The scene still holds a head with its face: head. Delete it before you save or share the scene."
    assert said == [warning] and ui.statusLabel.text == warning

    folder = tmp_path / "copies"
    folder.mkdir()
    pythonqt.dialogs.answer("getExistingDirectory", str(folder))
    ui.saveButton.click()
    saved = volumes.load(folder / "head_interactive.nii.gz")
    np.testing.assert_allclose(saved.intensities[~removed], a_head.intensities[~removed])
    assert json.loads((folder / "head_interactive.json").read_text(encoding="utf-8"))["method"] == "interactive"

    slicer.mrmlScene.Clear(0)  # while the handles are there
    assert widget.cut is None and ui.cutButton.text == "Cut by hand" and ui.statusLabel.text == ""
    assert not ui.cutButton.enabled and not ui.saveButton.enabled
