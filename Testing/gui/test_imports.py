"""Slicer imports every module at its start: that has to be quick and to need nothing that Slicer does not bring."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY, patience

HEAVY = ("torch", "monai", "pandas", "nibabel", "einops", "sklearn", "matplotlib", "skimage", "scipy.ndimage")

IMPORT = """
import importlib.util, json, sys, time
sys.path[:0] = [{gui!r}, {library!r}]
import pythonqt
with pythonqt.installed():
    import ctk, numpy, qt, slicer, slicer.util, vtk, vtk.util.numpy_support
    from slicer.parameterNodeWrapper import parameterNodeWrapper
    [getattr(qt, name) for name in ("QCheckBox", "QFileDialog", "QTimer")]
    before = set(sys.modules)
    wall, began = time.perf_counter(), time.process_time()
    from pythonqt.application import load_module
    from pathlib import Path
    load_module(Path({file!r}))
    took = time.process_time() - began
    wall = time.perf_counter() - wall
    print(json.dumps({{"modules": sorted(set(sys.modules) - before), "cpu": took, "wall": wall}}))
"""


@pytest.mark.parametrize("name", ["RefaceRisk", "DefaceCompare", "MuscleFromHead"])
def test_importing_a_module_is_quick_and_loads_nothing_heavy(name):
    code = IMPORT.format(
        gui=str(REPOSITORY / "Testing" / "gui"),
        library=str(REPOSITORY / "RefaceRisk"),
        file=str(REPOSITORY / name / f"{name}.py"),
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    print(f"{name}: {found['cpu'] * 1000:.0f} ms ({found['wall'] * 1000:.0f} ms on the clock)")
    loaded = {heavy for heavy in HEAVY if heavy in found["modules"]}
    assert not loaded
    assert found["cpu"] < 0.2 * patience()
