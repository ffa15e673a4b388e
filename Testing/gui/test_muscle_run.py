"""The MuscleFromHead panel on a real CT: segmented by a worker, measured, and measured again from a label map."""

from __future__ import annotations

import pytest
from conftest import patience


def test_a_muscle_is_segmented_and_measured(open_panel, layout_manager, event_loop, shared_data, screenshot):
    import slicer

    from RefaceRiskLib import volumes
    from RefaceRiskLib.bridge.nodes import node_from_volume

    scan = shared_data / "ct" / "example_ct_3mm.nii.gz"
    labels = next((path for path in sorted(scan.parent.glob("example_ct_3mm_*.nii.gz"))), None)
    if labels is None or not scan.is_file():
        pytest.skip(f"no CT in {scan.parent}")
    panel = open_panel("MuscleFromHead")
    ui, widget = panel.ui, panel.widget
    screenshot(panel, "empty")
    ui.ctSelector.setCurrentNode(node_from_volume(volumes.load(scan), "CT"))
    ui.segmentButton.click()
    event_loop.until(lambda: ui.progressBar.maximum > 0 or not widget.running, 120 * patience())
    assert widget.running, ui.statusLabel.text
    screenshot(panel, "running")
    event_loop.until(lambda: not widget.running, 120 * patience())
    screenshot(panel, "done")
    print(f"longest stall {event_loop.longest_stall * 1000:.0f} ms, own {event_loop.longest_work * 1000:.0f} ms")
    assert widget._parameterNode.radiodensity.GetNumberOfRows() > 0, ui.statusLabel.text

    muscles = node_from_volume(volumes.load(labels), "muscles", "vtkMRMLLabelMapVolumeNode")
    ui.labelsSelector.setCurrentNode(muscles)
    ui.applyButton.click()
    assert ui.statusLabel.text == "Done"
    assert widget._parameterNode.radiodensity.GetNumberOfRows() > 1
    assert len(slicer.util.getNodesByClass("vtkMRMLTableNode")) >= 2
