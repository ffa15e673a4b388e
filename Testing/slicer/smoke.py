"""Opens the three modules in a real Slicer, runs, cancels, closes the scene, reloads, takes screenshots.

    Slicer --no-splash --testing --additional-module-paths RefaceRisk DefaceCompare MuscleFromHead \\
        --python-script Testing/slicer/smoke.py [OUTPUT_FOLDER]

(`--additional-module-paths` has to come first.) Prints one line a step and at the end `VERDICT: passed` or
`VERDICT: failed: ...`, also into OUTPUT_FOLDER/verdict.txt, for Slicer on Windows shows no output; the exit status
says the same. Judge by the verdict: with `--testing` Slicer's own status also tells of tracebacks of other modules.
With `--no-main-window` the screenshots are left out and the rest runs. Needs no network: the head is synthetic.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import qt
import slicer

MODULES = ("RefaceRisk", "DefaceCompare", "MuscleFromHead")
STARTED_S, JOB_S, CANCEL_S = 60, 300, 3
steps: list[str] = []
swallowed: list[str] = []  # Slicer swallows what setup() and slots raise; this hook sees it


def main() -> None:
    out = Path(sys.argv[-1] if len(sys.argv) > 1 and not sys.argv[-1].endswith(".py") else "slicer-smoke")
    out.mkdir(parents=True, exist_ok=True)
    sys.excepthook = lambda kind, error, trace: swallowed.append(
        "".join(traceback.format_exception(kind, error, trace))
    )
    try:
        run(out)
        assert not swallowed, swallowed[0]
        verdict = "passed"
    except Exception as error:
        traceback.print_exc()
        verdict = f"failed: {' '.join(str(error).split()) or type(error).__name__} (after: {(steps or ['start'])[-1]})"
    (out / "verdict.txt").write_text(f"{verdict}\n" + "\n".join(steps) + "\n", encoding="utf-8")
    print(f"VERDICT: {verdict}", flush=True)
    slicer.util.exit(slicer.util.EXIT_SUCCESS if verdict == "passed" else slicer.util.EXIT_FAILURE)


def run(out: Path) -> None:
    widgets = {name: opened(name, out) for name in MODULES}
    head, region = a_head()
    panel = widgets["RefaceRisk"]
    select("RefaceRisk")
    ui = panel.ui
    ui.defacedSelector.setCurrentNode(head)
    ui.removedSelector.setCurrentNode(region)
    ui.modelComboBox.currentIndex = 2  # the average face: needs no further packages
    check("Apply is offered", ui.applyButton.enabled)

    ui.applyButton.click()
    wait("the worker reports", lambda: ui.progressBar.maximum > 0 or not panel.running, STARTED_S)
    check("it is still running", panel.running)
    picture(panel, out / "RefaceRisk-running.png")
    began = time.monotonic()
    ui.applyButton.click()
    wait("Cancel ends it", lambda: not panel.running, CANCEL_S)
    say(f"cancelled within {time.monotonic() - began:.1f} s")
    check("it says so", ui.statusLabel.text == "Cancelled")

    ui.applyButton.click()
    wait("a job comes to its end", lambda: not panel.running, JOB_S)
    say(f"the job ended with: {ui.statusLabel.text}")
    check("in one line", ui.statusLabel.text and "\n" not in ui.statusLabel.text)
    picture(panel, out / "RefaceRisk-done.png")

    ui.applyButton.click()
    wait("the worker reports", lambda: ui.progressBar.maximum > 0 or not panel.running, STARTED_S)
    slicer.mrmlScene.Clear(0)
    check("closing the scene ends the run", not panel.running)
    check("Apply waits for a head", not ui.applyButton.enabled)

    for name in MODULES:
        select(name)
        slicer.util.getModuleWidget(name).onReload()
        fresh = slicer.util.getModuleWidget(name)
        check(f"{name} works after a reload", fresh is not widgets[name] and not fresh.ui.applyButton.enabled)


def opened(name: str, out: Path):
    select(name)
    widget = slicer.util.getModuleWidget(name)
    check(f"{name} opens", widget is not None and widget.ui.applyButton.text == "Apply")
    check(f"{name} says what is missing", not widget.ui.applyButton.enabled and bool(widget.ui.applyButton.toolTip))
    picture(widget, out / f"{name}-empty.png")
    return widget


def select(name: str) -> None:
    """Shows the module; without a main window, enters it as showing would."""
    if slicer.util.mainWindow() is not None:
        slicer.util.selectModule(name)
    else:
        slicer.util.getModule(name).widgetRepresentation().enter()
    slicer.app.processEvents()


def a_head():
    """An ellipsoid of a head with its front cut off, and the region that is gone; 3 mm voxels, RAS."""
    grid = np.stack(np.meshgrid(*[np.arange(n) - n / 2 for n in (60, 72, 54)], indexing="ij"), -1) * 3.0
    inside = ((grid / [80, 100, 75]) ** 2).sum(-1) < 1  # k, j, i: S, A, R
    brain = ((grid - [20, -5, 0]) ** 2 / np.array([50, 75, 60]) ** 2).sum(-1) < 1
    voxels = np.where(brain, 900, np.where(inside, 500, 0)).astype(np.int16)
    face = inside & (grid[..., 1] > 60) & (grid[..., 0] < 20)
    voxels[face] = 0
    to_ras = slicer.util.vtkMatrixFromArray(np.array([[3, 0, 0, -81], [0, 3, 0, -108], [0, 0, 3, -90], [0, 0, 0, 1.0]]))
    head = slicer.util.addVolumeFromArray(voxels, to_ras, "synthetic head")
    region = slicer.util.addVolumeFromArray(face.astype(np.uint8), to_ras, "gone", "vtkMRMLLabelMapVolumeNode")
    return head, region


def wait(what: str, condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        slicer.app.processEvents()
        time.sleep(0.02)
    say(what)


def check(what: str, holds) -> None:
    if not holds:
        raise AssertionError(f"not so: {what}")
    say(what)


def say(what: str) -> None:
    steps.append(what)
    print(f"[smoke] {what}", flush=True)


def picture(widget, path: Path) -> None:
    if slicer.util.mainWindow() is not None:
        slicer.app.processEvents()
        widget.parent.grab().save(os.fspath(path))


qt.QTimer.singleShot(0, main)
