"""From a CT and a table of people to muscle, through the panel's buttons and real child processes."""

from __future__ import annotations

import sys

import pytest
from conftest import patience

from RefaceRiskLib import volumes
from RefaceRiskLib.bridge.nodes import node_from_volume


@pytest.fixture
def panel(open_panel):
    return open_panel("MuscleFromHead")


def test_a_table_of_people_is_checked_row_by_row(panel, a_head, tmp_path):
    table = tmp_path / "participants.tsv"
    volumes.save(a_head, tmp_path / "head.nii")
    lines = ["participant_id\thead\tage\tsex\thu_thigh", "sub-1\thead.nii\t30\tF\t51", "sub-2\tno.nii\t30\tF\t51"]
    table.write_text("\n".join(lines) + "\n")
    panel.ui.participantsPath.currentPath = str(table)
    assert panel.ui.checkButton.enabled and not panel.ui.fitButton.enabled
    assert panel.ui.fitButton.toolTip == "<p>Choose a folder for the results</p>"
    panel.ui.checkButton.click()
    said = panel.ui.problemsText.plainText
    assert said.startswith("People that can be used: 1") and "sub-2" in said


def test_a_study_that_cannot_be_is_one_line_and_leaves_the_panel_ready(panel, event_loop, tmp_path):
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\thead\n")
    panel.ui.participantsPath.currentPath = str(table)
    panel.ui.outputPath.currentPath = str(tmp_path / "out")
    panel.ui.fitButton.click()
    event_loop.until(lambda: not panel.widget.running, 60 * patience())
    assert "participants.tsv" in panel.ui.statusLabel.text
    assert panel.ui.fitButton.enabled


def test_results_become_a_table_and_a_chart_of_the_scene(panel):
    import slicer

    row = {"target": "hu_thigh", "n": 30, "rho": 0.41, "ci_low": 0.1, "ci_high": 0.66, "p_permutation_holm": None}
    module = sys.modules["MuscleFromHead"]
    table = module.correlationTable([row | {"image": "original"}, row | {"image": "pydeface", "rho": 0.2}])
    chart = module.correlationChart(table)
    assert table.GetNumberOfRows() == 2
    series = chart.GetNthPlotSeriesNode(0)
    assert series.GetTableNode() is table and series.GetPlotType() == slicer.vtkMRMLPlotSeriesNode.PlotTypeBar


def test_a_ct_that_is_not_in_hounsfield_units_is_refused_in_one_line(panel, event_loop, a_head):
    node_from_volume(volumes.Volume(a_head.voxels, a_head.affine), "no CT")
    panel.frame.exit()
    panel.frame.enter()
    panel.ui.ctSelector.setCurrentNodeIndex(0)
    panel.ui.segmentButton.click()
    event_loop.until(lambda: not panel.widget.running, 60 * patience())
    assert "Hounsfield" in panel.ui.statusLabel.text or "HU" in panel.ui.statusLabel.text
    assert panel.ui.segmentButton.enabled
