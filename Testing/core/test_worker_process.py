"""Child processes as the panels run them: what arrives, how they end, what is left behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from RefaceRiskLib.bridge import worker_process
from RefaceRiskLib.bridge.worker_process import Job, JobRunner
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.progress import Cancelled

SAYS = """
import json, os, subprocess, sys, time
job = json.load(open(sys.argv[1]))
say = lambda **message: print(json.dumps(message), flush=True)
"""
ONE = (Job("deface", {"out": "x"}),)
PROGRESS = "say(type='progress', stage='s', step=1, of=2, message='')\n"
RESULT = "say(type='result', outputs={'volume': job['arguments'].get('out', '')}, record={})\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs jobs by a stand-in for worker.py with the given body; returns the runner and what it told."""

    def start(body: str, jobs=ONE, on_error=None, on_result=None):
        script = tmp_path / "stand_in.py"
        script.write_text(SAYS + body)
        monkeypatch.setattr(worker_process, "WORKER", script)
        monkeypatch.setattr(worker_process.tempfile, "tempdir", str(tmp_path))
        told = []
        runner = JobRunner(
            lambda folder: list(jobs),
            on_progress=lambda job, message: told.append(("progress", message["step"])),
            on_result=on_result or (lambda job, message: told.append(("result", job.name))),
            on_error=on_error,
            on_end=lambda error: told.append(("end", error)),
        )
        return runner.start(), told

    yield start
    assert not list(tmp_path.glob("refacerisk-*")), "a temporary folder was left behind"


def test_progress_and_results_arrive_in_order_for_each_job(run):
    runner, told = run(PROGRESS + RESULT, jobs=[Job("deface", {}), Job("measure", {})])
    runner.wait()
    assert told == [
        ("progress", 1),
        ("result", "deface"),
        ("progress", 1),
        ("result", "measure"),
        ("end", None),
    ]


def test_a_result_is_taken_in_step_by_step(run):
    done = []

    def take_in(job, message):
        for step in range(3):
            done.append((job.name, step))
            yield

    runner, told = run(RESULT, jobs=[Job("deface", {}), Job("measure", {})], on_result=take_in)
    seen = []
    while runner.poll():
        seen.append(len(done))
        time.sleep(0.01)
    assert sorted(set(seen)) == list(range(7)), "more than one step in one poll"
    assert done == [(name, step) for name in ("deface", "measure") for step in range(3)]
    assert told == [("end", None)]


def test_a_step_that_fails_ends_the_run(run):
    def take_in(job, message):
        yield
        raise OSError("disk gone")

    runner, _ = run(RESULT, on_result=take_in)
    with pytest.raises(OSError, match="disk gone"):
        runner.wait()


def test_poll_returns_at_once_while_the_job_works(run):
    runner, _ = run("time.sleep(30)")
    began = time.monotonic()
    assert runner.poll()
    assert time.monotonic() - began < 0.1
    runner.stop()


def test_an_error_message_becomes_the_one_line_that_the_user_reads(run):
    runner, told = run(
        "say(type='error', what='no head', hint='choose one', path='f.nii', cancelled=False); sys.exit(2)"
    )
    with pytest.raises(RefaceRiskError, match=r"f\.nii: no head; choose one"):
        runner.wait()
    assert told[-1][0] == "end"


def test_the_jobs_after_a_failed_one_run_where_that_is_asked_for(run):
    body = "if job['job'] == 'deface': say(type='error', what='no'); sys.exit(2)\n" + RESULT
    failed = []
    jobs = [Job("deface", {}), Job("measure", {})]
    runner, told = run(body, jobs=jobs, on_error=lambda job, error: failed.append(job.name) or True)
    runner.wait()
    assert failed == ["deface"]
    assert told == [("result", "measure"), ("end", None)]


def test_garbage_on_stdout_is_passed_over(run):
    runner, told = run("print('{half', flush=True); print('[1]'); os.write(1, b'\\xff\\xfe\\n')\n" + RESULT)
    runner.wait()
    assert told == [("result", "deface"), ("end", None)]


def test_a_crash_is_told_with_its_last_words(run):
    runner, _ = run("sys.stderr.write('out of memory\\n'); os._exit(9)")
    with pytest.raises(RefaceRiskError, match="deface ended without a result; out of memory"):
        runner.wait()


def test_a_worker_that_is_killed_from_outside_ends_the_run(run):
    runner, _ = run("time.sleep(60)")
    os.kill(runner.pid, 9)
    with pytest.raises(RefaceRiskError, match="ended without a result"):
        runner.wait()


def test_cancel_is_answered_by_the_worker(run):
    body = "sys.stdin.readline(); say(type='error', what='cancelled', cancelled=True); sys.exit(130)"
    runner, told = run(body, jobs=[Job("deface", {}), Job("measure", {})])
    runner.cancel()
    with pytest.raises(Cancelled):
        runner.wait()
    assert len(told) == 1


@pytest.mark.skipif(os.name == "nt", reason="looks for the child by POSIX signals")
def test_a_worker_that_does_not_listen_is_killed_with_its_children(run, tmp_path):
    pid_file = tmp_path / "child"
    body = "child = subprocess.Popen(['sleep', '60'])\n"
    body += f"open({str(pid_file)!r}, 'w').write(str(child.pid)); child.wait()"
    runner, _ = run(body)
    child = int(_content_of(pid_file))
    began = time.monotonic()
    runner.cancel()
    with pytest.raises(Cancelled):
        runner.wait()
    assert time.monotonic() - began < 2.0
    assert not _lives(child)


def test_stop_ends_the_worker_and_tells_nobody(run):
    runner, told = run("time.sleep(60)")
    worker = runner.pid
    runner.stop()
    assert not _lives(worker)
    assert told == []
    assert not runner.poll()


def test_an_input_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_process.tempfile, "tempdir", str(tmp_path))

    def disk_full(folder: Path):
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        JobRunner(disk_full).start()
    assert not list(tmp_path.iterdir())


def _content_of(file: Path) -> str:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if file.exists() and file.read_text(encoding="utf-8"):
            return file.read_text(encoding="utf-8")
        time.sleep(0.02)
    raise AssertionError(f"{file} did not appear")


def _lives(pid: int) -> bool:
    """Whether a process of that id runs; one that has ended and was not waited for does not count."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
