"""The worker process: what it says on stdout, and that it stops when asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from RefaceRiskLib import worker

WORKER = Path(worker.__file__)

# The real worker in a process in which `jobs` is a few jobs that need neither head nor imaging libraries.
WITH_TEST_JOBS = f"""
import os, sys, time, types
sys.path.insert(0, {str(WORKER.parents[1])!r})
jobs = types.ModuleType("RefaceRiskLib.jobs")
sys.modules[jobs.__name__] = jobs
from RefaceRiskLib import worker
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.progress import Progress

def endless(on_progress, pause=0.02):
    for step in range(100000):
        on_progress(Progress("endless", step, 100000))
        time.sleep(pause)

def chatty(on_progress):
    import numpy as np
    print("a library prints")
    os.write(1, b"C++ prints\\n")
    for step in range(4):
        on_progress(Progress("chatty", step, 4, preview=np.full((2, 3, 4), step, np.float32)))
        time.sleep(1.1 * worker.PREVIEW_EVERY_S)
    return types.SimpleNamespace(outputs={{"volume": "out.nii.gz"}}, record={{"mean": 1.5}})

def watched(on_progress):
    import numpy as np
    made = []
    def surface():
        made.append(1)
        return types.SimpleNamespace(points=np.eye(3), triangles=np.arange(3).reshape(1, 3))
    for step in range(40):
        on_progress(Progress("watched", step, 40, preview=surface))
        time.sleep(0.03)
    return types.SimpleNamespace(outputs={{}}, record={{"made": len(made)}})

def wrong(on_progress):
    raise RefaceRiskError("is\\n4-D", "split it", "head.nii.gz")

def broken(on_progress):
    raise ZeroDivisionError("oh")

jobs.JOBS = dict(endless=endless, chatty=chatty, watched=watched, wrong=wrong, broken=broken)
sys.exit(worker.main())
"""


class Child:
    """A worker process; `said` holds its messages once it has ended."""

    def __init__(self, job: object, folder: Path, command: list[str] | None = None):
        file = folder / "job.json"
        file.write_text(job if isinstance(job, str) else json.dumps(job))
        self.process = subprocess.Popen(
            [sys.executable, *(command or ["-c", WITH_TEST_JOBS]), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )

    def hear(self) -> dict:
        return json.loads(self.process.stdout.readline())

    def end(self, words: bytes | None = None) -> tuple[int, list[dict], str]:
        out, log = self.process.communicate(words, timeout=30)
        return self.process.returncode, [json.loads(line) for line in out.splitlines()], log.decode()


def test_a_job_ends_with_its_result(tmp_path):
    status, said, _ = Child({"job": "chatty", "scratch": str(tmp_path)}, tmp_path).end()
    assert status == 0
    assert said[-1] == {"type": "result", "outputs": {"volume": "out.nii.gz"}, "record": {"mean": 1.5}}
    assert [line["step"] for line in said if line["type"] == "progress"] == [0, 1, 2, 3]


def test_stdout_carries_messages_alone_and_prints_go_to_the_log(tmp_path):
    _, said, log = Child({"job": "chatty", "scratch": str(tmp_path)}, tmp_path).end()
    assert {line["type"] for line in said} == {"progress", "preview", "result"}
    assert "a library prints" in log and "C++ prints" in log


def test_previews_are_whole_files_and_only_the_latest_are_kept(tmp_path):
    scratch = tmp_path / "scratch"
    _, said, _ = Child({"job": "chatty", "scratch": str(scratch)}, tmp_path).end()
    paths = [Path(line["path"]) for line in said if line["type"] == "preview"]
    assert len(paths) == 4 and sorted(scratch.iterdir()) == paths[-2:]
    assert np.array_equal(np.load(paths[-1]), np.full((2, 3, 4), 3, np.float32))


def test_a_surface_is_made_only_when_it_is_shown(tmp_path):
    _, said, _ = Child({"job": "watched", "scratch": str(tmp_path)}, tmp_path).end()
    paths = [line["path"] for line in said if line["type"] == "preview"]
    assert 1 < len(paths) < 20 and said[-1]["record"]["made"] == len(paths)
    with np.load(paths[-1]) as surface:
        assert surface["points"].shape == (3, 3) and surface["triangles"].tolist() == [[0, 1, 2]]


def test_a_user_error_comes_in_parts_and_exits_2(tmp_path):
    status, said, log = Child({"job": "wrong"}, tmp_path).end()
    error = {"type": "error", "what": "is 4-D", "hint": "split it", "path": "head.nii.gz", "cancelled": False}
    assert status == 2 and said == [error] and "Traceback" not in log


def test_the_unexpected_is_an_error_message_with_the_traceback_in_the_log(tmp_path):
    status, said, log = Child({"job": "broken"}, tmp_path).end()
    assert status == 1 and said[-1]["type"] == "error" and "ZeroDivisionError: oh" in said[-1]["what"]
    assert "Traceback" in log


def test_cancel_stops_the_job_within_one_step(tmp_path):
    child = Child({"job": "endless", "arguments": {"pause": 0.3}}, tmp_path)
    child.hear()
    asked = time.perf_counter()
    status, said, _ = child.end(b"cancel\n")
    assert time.perf_counter() - asked < 2.5
    assert status == 130 and said[-1] == {
        "type": "error",
        "what": "cancelled",
        "hint": "",
        "path": None,
        "cancelled": True,
    }
    assert len([line for line in said if line["type"] == "progress"]) <= 2


def test_cancel_may_arrive_in_pieces(tmp_path):
    child = Child({"job": "endless"}, tmp_path)
    child.hear()
    child.process.stdin.write(b"hello\ncan")
    child.process.stdin.flush()
    time.sleep(0.1)
    assert child.end(b"cel\n")[0] == 130


def test_other_words_and_a_closed_stdin_do_not_stop_the_job(tmp_path):
    child = Child({"job": "endless"}, tmp_path)
    child.hear()
    child.process.stdin.write(b"cancellation?\n")
    child.process.stdin.close()
    steps = [child.hear()["step"] for _ in range(30)]
    assert steps == list(range(1, 31))
    child.process.kill()
    child.process.wait()
    child.process.stdout.close()
    child.process.stderr.close()


def test_a_parent_that_goes_away_stops_the_job_when_it_asked_for_that(tmp_path):
    child = Child({"job": "endless", "cancel_on_eof": True}, tmp_path)
    child.hear()
    assert child.end()[0] == 130


def test_a_job_whose_parent_is_gone_leaves_no_head_behind(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "head.nii").write_text("a head with its face")
    child = Child({"job": "endless", "cancel_on_eof": True, "scratch": str(scratch)}, tmp_path)
    child.hear()
    assert child.end()[0] == 130
    assert not scratch.exists()


def test_a_job_that_is_cancelled_leaves_its_folder_to_the_parent(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    child = Child({"job": "endless", "cancel_on_eof": True, "scratch": str(scratch)}, tmp_path)
    child.hear()
    child.process.stdin.write(b"cancel\n")
    child.process.stdin.flush()
    assert child.process.wait(20) == 130
    assert scratch.exists()
    child.end()


def test_it_runs_by_path_from_any_folder(tmp_path):
    job = {"job": "train", "arguments": {"stage": "coarse", "data": "absent", "out": "weights"}}
    (tmp_path / "report.py").write_text("raise SystemExit('the wrong module')")
    status, said, log = Child(job, tmp_path, ["-I", str(WORKER)]).end()
    assert (status, said[-1]["path"]) == (2, "absent"), log


def test_it_runs_as_a_module(tmp_path):
    job = {"job": "train", "arguments": {"stage": "coarse", "data": "absent", "out": "weights"}}
    code = f"import sys, runpy; sys.path.insert(0, {str(WORKER.parents[1])!r}); "
    code += "runpy.run_module('RefaceRiskLib.worker', run_name='__main__', alter_sys=False)"
    status, said, log = Child(job, tmp_path, ["-c", code]).end()
    assert (status, said[-1]["path"]) == (2, "absent"), log


@pytest.mark.parametrize(
    ("job", "about"),
    [
        ("{", "no JSON"),
        ("[]", "no known job"),
        ({"job": "format_disk"}, "no known job"),
        ({"job": "endless", "arguments": ["head"]}, "no JSON object"),
    ],
)
def test_a_job_file_that_says_nothing_useful_is_a_user_error(job, about, tmp_path):
    status, said, _ = Child(job, tmp_path).end()
    assert status == 2 and len(said) == 1 and about in said[0]["what"]


def test_a_missing_job_file_is_a_user_error(tmp_path):
    command = [sys.executable, str(WORKER), "nowhere.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=30)
    assert done.returncode == 2 and json.loads(done.stdout)["path"] == "nowhere.json"


def test_an_argument_that_the_job_does_not_know_is_told(tmp_path):
    status, said, _ = Child({"job": "endless", "arguments": {"strength": 11}}, tmp_path).end()
    assert status == 1 and "strength" in said[-1]["what"]
