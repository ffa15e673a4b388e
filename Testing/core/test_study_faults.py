"""Nothing is lost: runs that are killed, disks that are full, inputs that vanish.

REFACERISK_KILL_ROUNDS sets how often a run is killed (default 1; 20 before a release).
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from light_study import METHODS, cohort, light, study

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.study import ledger as ledgers
from RefaceRiskLib.study.ledger import Ledger
from RefaceRiskLib.volumes import sha256_of

HERE = Path(__file__).resolve().parent
ROUNDS = int(os.environ.get("REFACERISK_KILL_ROUNDS", "1"))
HEADS = 4
TABLES = (
    "distances.tsv",
    "defacing.tsv",
    "tests.tsv",
    "linkage.tsv",
    "linkage_rates.tsv",
    "failed.tsv",
    "summary.json",
)

needs_dask = pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="dask is not installed")
posix = pytest.mark.skipif(os.name == "nt", reason="SIGKILL is a POSIX signal")


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return cohort(tmp_path_factory.mktemp("heads"), HEADS)


@pytest.fixture(scope="module")
def whole(heads, tmp_path_factory):
    """The folder of a run that nothing has disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    study(heads, out)
    return out


@pytest.fixture
def out(whole, tmp_path):
    """A copy of it, times and all."""
    return shutil.copytree(whole, tmp_path / "out")


@pytest.fixture(scope="module")
def uninterrupted(whole):
    return tables(whole)


def tables(out: Path) -> dict[str, str]:
    return {name: sha256_of(out / name) for name in TABLES}


def files(out: Path) -> dict[str, tuple]:
    return {str(path.relative_to(out)): (sha256_of(path), path.stat().st_mtime_ns)
            for path in sorted(out.rglob("*")) if path.is_file() and path.name != "lock"}  # fmt: skip


def started(table: Path, out: Path, workers: int, *more: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, str(HERE / "light_study.py"), str(table), str(out), str(workers), *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_until(condition, process, seconds=600):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and process.poll() is None:
        if condition():
            return True
        time.sleep(0.02)
    return False


def records(out: Path) -> int:
    folder = out / ledgers.FOLDER / "subjects"
    return sum(1 for _ in folder.glob("*.json")) if folder.is_dir() else 0


@needs_dask
@posix
@pytest.mark.parametrize("round_", range(ROUNDS))
def test_a_run_that_is_killed_at_any_moment_ends_alike_when_it_is_given_again(heads, uninterrupted, tmp_path, round_):
    """The run with its scheduler, one of its workers, or (every third) a scheduler of its own, at a random moment."""
    import psutil

    out, rng, victim = tmp_path / "out", random.Random(round_), ("run", "worker", "scheduler")[round_ % 3]
    cluster = cluster_of_its_own(tmp_path) if victim == "scheduler" else None
    try:
        more = ["0.25"] if cluster is None else ["0.25", cluster.address]
        run = started(heads, out, 2, *more)
        assert wait_until(lambda: records(out) > 0, run), run.stderr.read()
        time.sleep(rng.uniform(0, 1.5))
        if victim == "run":
            run.kill()
        elif victim == "scheduler":
            cluster.scheduler.kill()
        else:
            children = [c for c in psutil.Process(run.pid).children() if "spawn_main" in " ".join(c.cmdline())]
            if children:
                rng.choice(children).kill()
        _, said = run.communicate(timeout=900)
        if victim == "scheduler" and run.returncode:
            assert "the scheduler is gone" in said, said
        if victim == "worker":
            assert run.returncode == 0, said
    finally:
        if cluster is not None:
            cluster.stop()
    study(heads, out)
    assert tables(out) == uninterrupted
    assert not list(out.rglob("*.part"))


class cluster_of_its_own:
    """`dask scheduler` and two `dask worker` processes."""

    def __init__(self, folder: Path):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
        file = folder / "scheduler.json"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
        self.scheduler = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
             "--no-dashboard", "--scheduler-file", str(file)], **quiet)  # fmt: skip
        ends = time.monotonic() + 300
        while not file.is_file() and time.monotonic() < ends:
            time.sleep(0.1)
        import json

        self.address = json.loads(file.read_text(encoding="utf-8"))["address"]
        self.workers = [
            subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_worker", self.address, "--nthreads", "1",
                              "--no-dashboard", "--no-nanny", "--death-timeout", "20",
                              "--local-directory", str(folder)], **quiet)
            for _ in range(2)
        ]  # fmt: skip

    def stop(self):
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


def test_a_second_run_changes_nothing(heads, out):
    before = files(out)
    study(heads, out)
    assert files(out) == before


def test_only_what_changed_is_computed_again(heads, out, tmp_path):
    folder = shutil.copytree(heads.parent, tmp_path / "heads")
    before = files(out)
    shutil.copy(folder / "head001.nii.gz", folder / "head000.nii.gz")
    record = Ledger(out).read("sub-003")
    damaged = out / next(file for file in record["steps"]["quickshear"]["outputs"] if file.endswith("T1w.nii.gz"))
    damaged.write_bytes(b"cut off")
    study(folder / "participants.tsv", out)
    after = files(out)
    subjects = {name.split("/")[0] for name in after if name.startswith("sub-") and after[name] != before.get(name)}
    assert subjects == {"sub-000", "sub-003"}
    again = Ledger(out).read("sub-003")["steps"]
    assert again["mri_deface"] == record["steps"]["mri_deface"] and again["quickshear"]["key"]
    assert {n for n in after if n.startswith("sub-003/") and after[n] != before[n]} == {str(damaged.relative_to(out))}


def test_clocks_that_jump_and_files_that_are_touched_change_nothing(heads, out, tmp_path):
    folder = shutil.copytree(heads.parent, tmp_path / "heads")
    before = tables(out)
    steps = {name: Ledger(out).read(name)["steps"] for name in ("sub-000", "sub-001")}
    for path, when in ((folder / "head000.nii.gz", 4e9), (folder / "head001.nii.gz", 1.0)):
        os.utime(path, (when, when))
    for path in out.rglob("*.nii.gz"):
        os.utime(path, (4e9, 4e9))
    study(folder / "participants.tsv", out)
    assert tables(out) == before
    assert all(Ledger(out).read(name)["steps"] == told for name, told in steps.items())


def test_the_same_size_and_time_but_other_bytes_are_found_by_verify(heads, out):
    victim = next(out.rglob("sub-002_desc-quickshear_T1w.nii.gz"))
    good, seen = victim.read_bytes(), victim.stat()
    victim.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(victim, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    study(heads, out)
    assert victim.read_bytes() != good
    study(heads, out, verify=True)
    assert victim.read_bytes() == good


def test_a_failed_subject_is_listed_with_its_reason_and_stops_nobody(heads, tmp_path):
    folder = tmp_path / "heads"
    shutil.copytree(heads.parent, folder)
    (folder / "head001.nii.gz").write_bytes(b"\x1f\x8bnot a volume")
    (folder / "head002.nii.gz").unlink()
    done = study(folder / "participants.tsv", tmp_path / "out")
    assert done.record["finished"] == HEADS - 2
    reasons = {row["participant_id"]: row["reason"] for row in done.record["failed"]}
    assert "damaged" in reasons["sub-001"] or "cut off" in reasons["sub-001"]
    assert "no such file" in reasons["sub-002"]
    assert "sub-002" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    with pytest.raises(RefaceRiskError, match="2 of 4 participants failed"):
        study(folder / "participants.tsv", tmp_path / "out", strict=True)
    shutil.copy(heads.parent / "head001.nii.gz", folder)
    shutil.copy(heads.parent / "head002.nii.gz", folder)
    assert study(folder / "participants.tsv", tmp_path / "out", strict=True).record["failed"] == []


def test_a_full_disk_fails_the_subject_and_leaves_nothing_half_written(heads, uninterrupted, tmp_path, monkeypatch):
    out = tmp_path / "out"
    real, count = os.replace, [0]

    def full(source, target):
        count[0] += 1
        if 9 <= count[0] <= 12:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    try:
        study(heads, out)
    except RefaceRiskError as error:
        assert "No space left" in str(error)
    monkeypatch.undo()
    study(heads, out)
    assert tables(out) == uninterrupted
    assert not [path for path in out.rglob(".*") if path.is_file() and path.suffix in (".part", ".gz")]


def test_a_record_that_is_damaged_is_made_again(heads, out, uninterrupted):
    path = out / ledgers.FOLDER / "subjects" / "sub-003.json"
    for damage in (b"", b"{", b"[]", b'{"steps": {"original": 3}}', b"\xff\xfe", b'{"steps": {}, "input": []}'):
        path.write_bytes(damage)
        study(heads, out)
        assert tables(out) == uninterrupted


def test_a_second_run_in_the_same_folder_is_refused_in_one_line(heads, tmp_path):
    out = tmp_path / "out"
    run = started(heads, out, 0, "3")
    try:
        lock = out / ledgers.FOLDER / "lock"
        assert wait_until(lambda: lock.is_file() and lock.read_text(encoding="utf-8"), run), run.stderr.read()
        with pytest.raises(RefaceRiskError, match=rf"another run works .* \(process {run.pid} on ") as raised:
            study(heads, out)
        assert len(str(raised.value).splitlines()) == 1
    finally:
        run.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
        run.wait()
        run.stderr.close()
    notes = []
    study(heads, out, on_note=notes.append)
    assert notes and f"process {run.pid}" in notes[0] and "cut off" in notes[0]


def test_the_folder_of_the_heads_is_no_place_for_results(heads):
    with pytest.raises(RefaceRiskError, match="holds the heads of the study"):
        study(heads, heads.parent)


def test_a_task_that_raises_out_of_memory_is_one_failed_subject(heads, tmp_path, monkeypatch):
    import light_study

    real = light_study.LightSubject._defaced

    def greedy(self, method):
        if self.name == "sub-002":
            raise MemoryError
        return real(self, method)

    monkeypatch.setattr(light_study.LightSubject, "_defaced", greedy)
    done = study(heads, tmp_path / "out")
    assert [row["participant_id"] for row in done.record["failed"]] == ["sub-002"]
    assert "not enough memory" in done.record["failed"][0]["reason"]


def test_the_methods_of_the_light_study_are_those_of_the_program():
    from RefaceRiskLib.defacing import METHODS as KNOWN

    assert set(METHODS) <= set(KNOWN) and callable(light)
