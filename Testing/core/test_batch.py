"""The script that runs the command line inside Slicer: arguments, exit status, one line of error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fake_core import write_head

BATCH = Path(__file__).parents[2] / "RefaceRisk" / "batch.py"
# `slicer.util.exit` ends the application with a status; here it ends the process.
SLICER = "import sys, types\nutil = types.SimpleNamespace(exit=sys.exit)\n"


@pytest.fixture
def slicer(tmp_path):
    """Runs the script as Slicer does, with arguments after `--`."""
    (tmp_path / "slicer.py").write_text(SLICER)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(BATCH), "--", *arguments]
        environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)

    return run


def test_the_version_is_printed_with_status_0(slicer):
    done = slicer("--version")
    assert done.returncode == 0 and done.stdout.startswith("refacerisk ")


def test_a_head_that_is_none_is_one_line_and_status_2(slicer, tmp_path):
    (tmp_path / "no.nii").write_bytes(b"no")
    done = slicer("deface", "no.nii", "out.nii.gz")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "no.nii" in done.stderr
    assert not (tmp_path / "out.nii.gz").exists()


def test_an_unknown_command_is_status_2(slicer):
    assert slicer("unknown").returncode == 2


def test_an_output_that_is_the_input_is_refused(slicer, tmp_path):
    head = write_head(tmp_path / "head.nii")
    before = head.read_bytes()
    assert slicer("deface", "head.nii", "head.nii").returncode == 2
    assert head.read_bytes() == before


def test_slicer_may_take_the_file_for_a_module_and_hides_it():
    from runpy import run_path
    from types import SimpleNamespace

    module = run_path(str(BATCH), run_name="batch")["batch"]
    parent = SimpleNamespace()
    module(parent)
    assert parent.hidden
