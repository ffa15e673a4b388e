"""One run of the DefaceCompare panel, on a real head: verdicts in the table, the result in the views."""

from __future__ import annotations

import pytest
from conftest import patience


@pytest.mark.long  # test_cut_by_hand.py defaces a head through the same panel
def test_a_method_runs_and_its_verdict_is_shown(open_panel, layout_manager, event_loop, a_head, screenshot):
    import numpy as np
    import slicer

    from RefaceRiskLib.bridge.nodes import node_from_volume

    panel = open_panel("DefaceCompare")
    ui, widget = panel.ui, panel.widget
    screenshot(panel, "empty")
    node_from_volume(a_head, "sub-01")
    for name, box in widget.methodBoxes.items():
        box.checked = name in ("mri_deface", "average_face")
    ui.applyButton.click()
    event_loop.until(lambda: ui.progressBar.maximum > 1 or not widget.running, 120 * patience())
    assert widget.running, ui.statusLabel.text
    screenshot(panel, "running")
    event_loop.until(lambda: not widget.running, 120 * patience())
    screenshot(panel, "done")
    print(f"longest stall {event_loop.longest_stall * 1000:.0f} ms, own {event_loop.longest_work * 1000:.0f} ms")
    warning = "The scene still holds a head with its face: sub-01. Delete it before you save or share the scene."
    assert ui.statusLabel.text == f"Done. {warning}"
    assert [ui.verdictTable.item(row, 0).text() for row in range(2)] == ["mri_deface", "average_face"]
    assert ui.verdictTable.item(0, 1).text() == "ok"
    shown = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode().GetBackgroundVolumeID()
    after = slicer.util.arrayFromVolume(slicer.mrmlScene.GetNodeByID(shown)).transpose(2, 1, 0)
    changed = np.mean(after != a_head.intensities)
    assert 0.005 < changed < 0.5
    assert event_loop.longest_work < 0.5  # reading four volumes at once, at the end
