"""Apply in the panels: a real worker process on a real head, and everything that can go wrong while it runs."""

from __future__ import annotations

import os
import re
import resource
import signal

import pytest
from conftest import patience, session_of

pytestmark = pytest.mark.skipif(os.name == "nt", reason="looks for processes by /proc and POSIX signals")

SAYS = """
import json, os, sys, time
job = json.load(open(sys.argv[1]))
say = lambda **message: print(json.dumps(message), flush=True)
"""
WAITS = """
say(type='progress', stage='s', step=1, of=2, message='')
sys.stdin.readline()
say(type='error', what='cancelled', cancelled=True)
"""


@pytest.fixture
def ready(open_panel, a_cut):
    """RefaceRisk with a defaced head and its mask chosen, the average face as model: Apply is enabled."""
    from RefaceRiskLib.bridge.nodes import node_from_volume

    panel = open_panel("RefaceRisk")
    panel.head = node_from_volume(a_cut[0], "cut")
    panel.ui.removedSelector.setCurrentNode(node_from_volume(a_cut[1], "mask", "vtkMRMLLabelMapVolumeNode"))
    panel.ui.modelComboBox.currentIndex = 2
    assert panel.ui.applyButton.enabled
    yield panel
    panel.widget.stop()


@pytest.fixture
def worker_says(tmp_path, monkeypatch):
    """Puts a script with the given body in the place of worker.py."""
    from RefaceRiskLib.bridge import worker_process

    def replace(body: str) -> None:
        script = tmp_path / "stand_in.py"
        script.write_text(SAYS + body)
        monkeypatch.setattr(worker_process, "WORKER", script)

    return replace


def started(panel, event_loop) -> int:
    """Clicks Apply, waits for the first news of the worker; returns its process id."""
    panel.ui.applyButton.click()
    assert panel.ui.applyButton.text == "Cancel"
    assert panel.ui.progressBar.visible or not panel.frame.visible
    pid = panel.widget.runner.pid
    event_loop.until(lambda: panel.ui.progressBar.maximum > 0 or not panel.widget.running)
    assert panel.widget.running, panel.ui.statusLabel.text
    return pid


def assert_ready(panel, pid: int, line: str) -> None:
    """Apply again, one line that says what happened, no process and no file left."""
    assert not panel.widget.running
    assert session_of(pid) == []
    assert re.fullmatch(line, panel.ui.statusLabel.text), panel.ui.statusLabel.text
    assert "\n" not in panel.ui.statusLabel.text
    assert list(panel.scratch.iterdir()) == []
    if panel.widget._parameterNode is not None and panel.widget._parameterNode.defacedVolume:
        assert (panel.ui.applyButton.text, panel.ui.applyButton.enabled) == ("Apply", True)


def test_cancel_ends_the_process_tree_and_the_panel_is_ready(ready, event_loop):
    pid = started(ready, event_loop)
    assert pid in session_of(pid)
    ready.ui.applyButton.click()
    took = event_loop.until(lambda: not ready.widget.running, 10)
    print(f"cancelled within {took:.2f} s")
    assert took < 2.0 * patience()
    assert_ready(ready, pid, "Cancelled")
    assert ready.head.GetScene() is not None


def test_cancel_before_the_worker_can_hear_it(ready, event_loop):
    ready.ui.applyButton.click()
    pid = ready.widget.runner.pid
    ready.ui.applyButton.click()
    assert ready.ui.statusLabel.text == "Stopping..."
    ready.ui.applyButton.click()  # an impatient user
    took = event_loop.until(lambda: not ready.widget.running, 10)
    assert took < 2.0 * patience()
    assert_ready(ready, pid, "Cancelled")


def test_closing_the_scene_ends_the_run(ready, event_loop):
    import slicer

    pid = started(ready, event_loop)
    slicer.mrmlScene.Clear(0)
    assert session_of(pid) == []
    assert_ready(ready, pid, "Cancelled")
    assert not ready.ui.applyButton.enabled
    event_loop.until(lambda: True)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0


def test_quitting_ends_the_run(ready, event_loop, worker_says):
    import slicer

    worker_says(WAITS)
    pid = started(ready, event_loop)
    slicer.app.aboutToQuit.emit()
    assert_ready(ready, pid, "Cancelled")


def test_reloading_ends_the_run(ready, event_loop, worker_says):
    worker_says(WAITS)
    pid = started(ready, event_loop)
    ready.widget.onReload()
    assert session_of(pid) == []


def test_a_worker_that_is_killed_is_told_in_one_line(ready, event_loop):
    pid = started(ready, event_loop)
    os.kill(pid, signal.SIGKILL)
    event_loop.until(lambda: not ready.widget.running)
    assert_ready(ready, pid, ".*ended without a result.*")


def test_leaving_the_panel_lets_the_run_go_on(ready, event_loop, worker_says):
    worker_says(WAITS)
    pid = started(ready, event_loop)
    ready.frame.exit()
    assert ready.widget.running
    ready.frame.enter()
    assert ready.ui.applyButton.text == "Cancel"
    ready.ui.applyButton.click()
    event_loop.until(lambda: not ready.widget.running, 10)
    assert_ready(ready, pid, "Cancelled")


def test_deleting_the_input_while_it_runs_does_not_break_the_end(ready, event_loop, worker_says, a_cut, tmp_path):
    """The result is shown all the same: the node was only needed at the start."""
    import slicer

    worker_says(
        "say(type='progress', stage='s', step=1, of=2, message='')\n"
        "time.sleep(0.5)\n"
        "import shutil; shutil.copy(job['arguments']['source'], job['arguments']['out'])\n"
        "say(type='result', outputs={'refaced': job['arguments']['out']}, record={})\n"
    )
    pid = started(ready, event_loop)
    slicer.mrmlScene.RemoveNode(ready.head)
    event_loop.until(lambda: not ready.widget.running)
    assert_ready(ready, pid, "Done")
    names = [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]
    assert any("refaced" in name for name in names)


def test_garbage_on_stdout_is_passed_over_and_the_end_is_told(ready, event_loop, worker_says):
    worker_says(
        "say(type='progress', stage='s', step=1, of=2, message='')\n"
        "time.sleep(0.3)\n"
        "os.write(1, b'\\xff\\xfe\\x00{\\n[1, 2\\n\"text\"\\n{\"type\": 3}\\n' + os.urandom(4096) + b'\\n')\n"
    )
    pid = started(ready, event_loop)
    event_loop.until(lambda: not ready.widget.running)
    assert_ready(ready, pid, ".*ended without a result.*")


@pytest.mark.parametrize(
    "broken",
    ["say(type='progress')", "say(type='progress', stage=1, step='x', of=None)", "say(type='preview')"],
    ids=["progress without numbers", "progress of nonsense", "preview without a file"],
)
def test_half_a_message_is_passed_over(ready, event_loop, worker_says, broken):
    worker_says(broken + "\nsay(type='error', what='no', cancelled=False)\n")
    ready.ui.applyButton.click()
    pid = ready.widget.runner.pid
    event_loop.until(lambda: not ready.widget.running, 20)
    assert_ready(ready, pid, "no")


@pytest.mark.parametrize("broken", ["say(type='result')", "say(type='result', outputs={'refaced': 'x'}, record={})"])
def test_a_result_that_cannot_be_shown_is_told(ready, event_loop, worker_says, broken):
    worker_says(broken)
    ready.ui.applyButton.click()
    pid = ready.widget.runner.pid
    event_loop.until(lambda: not ready.widget.running, 20)
    assert_ready(ready, pid, ".+")


def test_a_listener_that_fails_ends_the_run_and_is_told(ready, event_loop, worker_says, layer, monkeypatch):
    worker_says(WAITS)

    def fail(job, message):
        raise ValueError("cannot draw this")

    ready.widget.showProgress = fail
    ready.ui.applyButton.click()
    pid = ready.widget.runner.pid
    event_loop.until(lambda: not ready.widget.running, 20)
    assert_ready(ready, pid, "cannot draw this")
    assert [str(error) for error in layer.slot_errors] == ["cannot draw this"]
    layer.slot_errors.clear()


def test_a_full_disk_is_told_when_the_input_is_written(ready):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        ready.ui.applyButton.click()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not ready.widget.running
    assert re.fullmatch(".*cannot be written.*free space", ready.ui.statusLabel.text)
    assert (ready.ui.applyButton.text, ready.ui.applyButton.enabled) == ("Apply", True)
    assert list(ready.scratch.iterdir()) == []


def test_a_full_disk_is_told_by_the_worker(ready, event_loop, worker_says):
    worker_says(
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "sys.argv[0] = 'worker.py'\n"
        f"sys.path.insert(0, {str(os.fspath(__import__('RefaceRiskLib').__path__[0]))!r} + '/..')\n"
        "from RefaceRiskLib import volumes, worker\n"
        "from RefaceRiskLib.jobs import JOBS, Done\n"
        "def copy(source, out, on_progress, **_):\n"
        "    return Done({'refaced': volumes.save(volumes.load(source), out)}, {})\n"
        "JOBS['reface'] = copy\n"
        "sys.exit(worker.main(sys.argv[1:]))\n"
    )
    ready.ui.applyButton.click()
    pid = ready.widget.runner.pid
    event_loop.until(lambda: not ready.widget.running)
    assert_ready(ready, pid, ".*cannot be written.*free space")


def test_a_second_run_after_a_failed_one(ready, event_loop, worker_says):
    worker_says("say(type='error', what='no', hint='try', path=None, cancelled=False); sys.exit(2)")
    for _ in range(2):
        ready.ui.applyButton.click()
        pid = ready.widget.runner.pid
        event_loop.until(lambda: not ready.widget.running)
        assert_ready(ready, pid, "no; try")


def test_many_messages_do_not_hold_up_the_events(ready, event_loop, worker_says):
    """2000 reports at once: the loop goes on turning."""
    worker_says(
        "for step in range(2000): say(type='progress', stage='s', step=step, of=2000, message='')\n"
        "say(type='error', what='enough', cancelled=False)\n"
    )
    ready.ui.applyButton.click()
    pid = ready.widget.runner.pid
    event_loop.until(lambda: not ready.widget.running)
    print(f"longest stall {event_loop.longest_stall * 1000:.0f} ms, own {event_loop.longest_work * 1000:.0f} ms")
    assert_ready(ready, pid, "enough")
    assert event_loop.longest_work < 0.1
