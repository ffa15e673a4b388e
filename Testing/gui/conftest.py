"""The panels behind a stand-in for Slicer's Python: see `pythonqt`. Skips, saying why, where that cannot run."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("REFACERISK_BRAIN", "registration")  # seconds a head; Testing/core has the network's own tests
REPOSITORY = Path(__file__).resolve().parents[2]


def _why_not() -> str:
    """What keeps these tests from running here; empty when nothing does."""
    try:
        import slicer
        from PySide6 import QtUiTools, QtWidgets

        QtWidgets.QApplication.instance() or QtWidgets.QApplication(["Slicer"])
    except ImportError as error:  # also told of missing system libraries, as libEGL.so.1
        return f"the panels cannot be driven here: {error} (make setup installs PySide6-Essentials and slicer-core)"
    return "" if hasattr(slicer, "vtkMRMLScene") and QtUiTools else "slicer is not slicer-core"


WHY_NOT = _why_not()


class CannotRun(pytest.Module):
    """A file of tests that is not even imported: it says why."""

    def collect(self):
        pytest.skip(WHY_NOT)


def pytest_pycollect_makemodule(module_path, parent):
    return CannotRun.from_parent(parent, path=module_path) if WHY_NOT else None


@pytest.fixture(autouse=True)
def one_library():
    """Reloading a panel imports RefaceRiskLib anew; the tests that follow in this process must find their own again."""

    def loaded() -> dict:
        return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "RefaceRiskLib"}

    import RefaceRiskLib

    before = loaded()
    yield
    if sys.modules.get("RefaceRiskLib") is not RefaceRiskLib:
        for name in loaded():
            del sys.modules[name]
        sys.modules.update(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real volumes; a test that needs it is skipped where it is absent."""
    named = os.environ.get("REFACERISK_SHARED_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real volumes at {folder} (REFACERISK_SHARED_DATA names another folder)")
    return folder


@pytest.fixture
def layer():
    """qt, ctk and slicer as in Slicer; fails the test when a slot raised or a widget complained."""
    import pythonqt

    with pythonqt.installed() as found:
        yield found
        errors, complaints = list(found.slot_errors), list(found.complaints)
    pythonqt.dialogs.forget()
    assert not errors, f"raised in slots: {errors}"
    assert not complaints, f"logged by widgets: {complaints}"


@pytest.fixture
def open_panel(layer, tmp_path, monkeypatch):
    """Opens a module as Slicer does: open_panel("RefaceRisk") -> module, widget (Python), ui, frame (the C++ side)."""
    import slicer
    from pythonqt import application

    from RefaceRiskLib.bridge import worker_process

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(worker_process.tempfile, "tempdir", str(scratch))
    opened = []

    def open_module(name: str) -> SimpleNamespace:
        module = application.load_module(REPOSITORY / name / f"{name}.py")
        frame = module.widgetRepresentation()
        frame.enter()
        widget = slicer.util.getModuleWidget(name)
        panel = SimpleNamespace(module=module, frame=frame, widget=widget, ui=widget.ui, scratch=scratch)
        opened.append(name)
        return panel

    yield open_module
    for name in opened:
        application.unload_module(name)
    assert not list(scratch.iterdir()), "temporary files were left behind"


@pytest.fixture
def layout_manager(layer):
    """Gives the application slice views (nodes and logics of the scene, nothing drawn)."""
    import slicer
    from pythonqt import application

    manager = application.LayoutManager(slicer.mrmlScene)
    slicer.app.setLayoutManager(manager)
    return manager


def patience() -> float:
    """How much slower than an idle computer this one may be: 1, or more where more runs than there are cores."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)) if hasattr(os, "getloadavg") else 2.0


def session_of(pid: int) -> list[int]:
    """The processes that live in the session which `pid` leads: the worker and whatever it started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = entry.read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if int(session) == pid and state != "Z":
            found.append(int(entry.parent.name))
    return found


@pytest.fixture(scope="session")
def a_head(shared_data):
    """A real head of 2 mm voxels, with its face."""
    from RefaceRiskLib import volumes

    files = sorted((shared_data / "cohort_ixi_2mm").glob("*_T1w.nii*"))
    if not files:
        pytest.skip(f"no heads in {shared_data / 'cohort_ixi_2mm'}")
    return volumes.load(files[0])


@pytest.fixture(scope="session")
def a_cut(a_head):
    """The same head without what lies before and below its middle, and the mask of that."""
    import numpy as np

    # Axes by their direction in RAS, whatever the order of voxels.
    directions = a_head.affine[:3, :3]
    front, up = (int(np.argmax(np.abs(directions[axis]))) for axis in (1, 2))
    removed = np.zeros(a_head.shape, bool)
    keep = [slice(None)] * 3
    for axis, row, share, low in ((front, 1, 0.72, False), (up, 2, 0.5, True)):
        size = a_head.shape[axis]
        forwards = directions[row, axis] > 0
        cut = round(size * share)
        wanted_end = forwards != low
        keep[axis] = slice(cut, None) if wanted_end and not low else slice(None, size - cut)
        if low:
            keep[axis] = slice(None, cut) if forwards else slice(size - cut, None)
        elif not forwards:
            keep[axis] = slice(None, size - cut)
    removed[tuple(keep)] = True
    removed &= a_head.voxels > 0
    return a_head.replaced(removed, np.zeros(a_head.shape)), a_head.with_intensities(removed, dtype=np.uint8)


class EventLoop:
    """Runs Qt's events and keeps count of how long they were held up.

    `longest_stall`: seconds between two ticks of a 10 ms timer. `longest_work`: of those, the most that this thread
    itself worked: on a computer with more to do than cores the rest is waiting for a turn.
    """

    def __init__(self):
        from PySide6 import QtCore

        self.longest_stall = self.longest_work = 0.0
        self._last = None
        self._timer = QtCore.QTimer()
        self._timer.setTimerType(QtCore.Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(self._tick)

    def _tick(self) -> None:
        now = time.perf_counter(), time.thread_time()
        if self._last is not None:
            self.longest_stall = max(self.longest_stall, now[0] - self._last[0])
            self.longest_work = max(self.longest_work, now[1] - self._last[1])
        self._last = now

    def until(self, condition, timeout: float = 60) -> float:
        """Until it holds; returns the seconds that took. Fails after `timeout`."""
        from PySide6 import QtCore

        began, self._last = time.perf_counter(), None
        self._timer.start(10)
        waiting = QtCore.QEventLoop()
        check = QtCore.QTimer()
        check.timeout.connect(lambda: (condition() or time.perf_counter() - began > timeout) and waiting.quit())
        check.start(5)
        waiting.exec()
        check.stop()
        self._timer.stop()
        assert condition(), f"not within {timeout} s"
        return time.perf_counter() - began


@pytest.fixture
def event_loop(layer) -> EventLoop:
    return EventLoop()


@pytest.fixture
def screenshot():
    """Saves what a panel looks like: screenshot(panel, "running") -> build/screenshots/RefaceRisk-running.png."""
    from PySide6 import QtWidgets

    folder = Path(os.environ.get("REFACERISK_SCREENSHOTS") or REPOSITORY / "build" / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)

    def save(panel: SimpleNamespace, state: str, width: int = 440) -> Path:
        frame = panel.frame._qt
        frame.resize(width, 100)
        frame.show()
        QtWidgets.QApplication.processEvents()
        # As wide as Slicer's module panel, as tall as the content wants; the room below it is the spacer's.
        frame.resize(width, max(frame.layout().heightForWidth(width), frame.layout().sizeHint().height()))
        QtWidgets.QApplication.processEvents()
        path = folder / f"{panel.module.name}-{state}.png"
        assert frame.grab().save(str(path))
        return path

    return save
