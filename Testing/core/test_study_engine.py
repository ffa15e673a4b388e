"""The engine and the whole study on it: the same with one process, with two, and within this one."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
from light_study import cohort, study

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.study import engine as engines
from RefaceRiskLib.study.engine import engine
from RefaceRiskLib.study.ledger import Ledger
from RefaceRiskLib.study.plan import Settings, checked_settings, digest_of
from RefaceRiskLib.volumes import sha256_of

needs_dask = pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="dask is not installed")


def doubled(message):
    if message.get("raise"):
        raise ValueError("of no use")
    return {"name": message["name"], "status": "done", "reason": "", "seconds": 0.0, "value": 2 * message["n"]}


def messages(count):
    return [{"name": f"t{n}", "n": n} for n in range(count)]


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return cohort(tmp_path_factory.mktemp("heads"), 3)


@pytest.fixture(scope="module")
def out(heads, tmp_path_factory):
    """A finished study."""
    folder = tmp_path_factory.mktemp("study") / "out"
    study(heads, folder)
    return folder


def test_in_this_process_tasks_run_in_order_and_one_at_a_time():
    started = []
    with engine(workers=0) as force:
        for result in force.run(doubled, (started.append(m["n"]) or m for m in messages(5))):
            assert len(started) == result["value"] // 2 + 1


@needs_dask
def test_a_cluster_does_every_task_once_and_tells_of_those_that_raise():
    many = [*messages(40), {"name": "bad", "n": 0, "raise": True}]
    with engine(workers=1) as force:
        assert force.dashboard.startswith("http")
        found = list(force.run(doubled, iter(many)))
    assert sorted(r["value"] for r in found if r["status"] == "done") == [2 * n for n in range(40)]
    assert [r["reason"] for r in found if r["status"] == "failed"] == ["unexpected ValueError: of no use"]


@needs_dask
def test_tables_are_the_same_with_two_processes(heads, out, tmp_path):
    names = ("distances.tsv", "linkage.tsv", "linkage_rates.tsv", "tests.tsv", "summary.json", "report.html")
    study(heads, tmp_path / "two", workers=2)
    first, second = ({name: sha256_of(folder / name) for name in names} for folder in (out, tmp_path / "two"))
    assert first == second


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None) if os.name == "posix" else None, "mallopt"), reason="needs glibc")
def test_a_worker_of_dask_keeps_the_memory_of_freed_arrays():
    code = """
import resource, sys, numpy as np
from RefaceRiskLib.study.subject import keep_freed_memory
if sys.argv[1] == "keep": keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100): np.ones(500_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}  # as dask.distributed starts its workers
    kept, as_it_is = (
        int(subprocess.run([sys.executable, "-c", code, how], env=environment, capture_output=True, check=True).stdout)
        for how in ("keep", "as it is")
    )
    assert kept < 10_000 < as_it_is


def test_without_dask_the_study_runs_in_this_process_unless_workers_are_asked_for(monkeypatch):
    monkeypatch.setattr(engines, "has_dask", lambda: False)
    with engine(tasks=50) as force:
        assert force.workers == 0
    for asked in ({"workers": 2}, {"scheduler": "tcp://127.0.0.1:1"}):
        with pytest.raises(RefaceRiskError, match=r"needs dask; pip install"), engine(**asked):
            pass


@needs_dask
def test_a_scheduler_that_is_not_there_is_told_in_one_line(monkeypatch):
    import dask.distributed

    real = dask.distributed.Client
    monkeypatch.setattr(dask.distributed, "Client", lambda address, timeout: real(address, timeout="1s"))
    wrong = "tcp://127.0.0.1:9"
    with pytest.raises(RefaceRiskError, match=f"no scheduler answers at {wrong}") as raised, engine(scheduler=wrong):
        pass
    assert len(str(raised.value).splitlines()) == 1


def test_messages_are_small(heads, tmp_path):
    sizes = []

    def listening(message):
        from light_study import light

        result = light(message)
        sizes.append(len(json.dumps(message)) + len(json.dumps(result)))
        return result

    from RefaceRiskLib.study.run import run_study

    run_study(heads, tmp_path / "out", methods=("quickshear",), models=("average",), workers=0, task=listening)
    assert len(sizes) == 3 and max(sizes) < 2000


def test_the_outputs_are_bids_derivatives_with_provenance(out):
    told = json.loads((out / "dataset_description.json").read_text(encoding="utf-8"))
    assert told["DatasetType"] == "derivative" and told["GeneratedBy"][0]["Name"] == "MRIRefaceRisk"
    rows = (out / "distances.tsv").read_text(encoding="utf-8").splitlines()
    assert rows[0].split("\t")[:9] == ["participant_id", "defacer", "image", "region", "mean_mm", "median_mm", "p95_mm",
                                       "symmetric_mean_mm", "seconds"]  # fmt: skip
    assert len(rows) == 1 + 3 * 2 * 3


def test_the_report_fetches_nothing_and_escapes_what_it_was_given(out):
    page = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "<script" not in page and page.count("data:image/png;base64,") == 2
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["answer"][:20] in page


def test_the_true_faces_are_kept_apart_with_a_warning(out):
    assert "can be recognised" in (Ledger(out).folder / "README.txt").read_text(encoding="utf-8")


def test_a_key_changes_with_everything_that_a_result_depends_on():
    settings = Settings(("mri_deface",))
    key = settings.key_of("mri_deface", "a" * 64)
    others = [
        Settings(("mri_deface",), steps=9).key_of("mri_deface", "a" * 64),
        Settings(("mri_deface",), seed=1).key_of("mri_deface", "a" * 64),
        Settings(("mri_deface",), models=("average",)).key_of("mri_deface", "a" * 64),
        settings.key_of("mri_deface", "b" * 64),
        settings.key_of("quickshear", "a" * 64),
    ]
    assert len({key, *others}) == 6
    assert Settings(("mri_deface", "quickshear")).key_of("mri_deface", "a" * 64) == key
    assert Settings(("mri_deface",), steps=9).key_of("original", "a" * 64) == settings.key_of("original", "a" * 64)


def test_other_weights_under_the_same_name_are_another_model(tmp_path):
    (tmp_path / "coarse").mkdir()
    (tmp_path / "coarse" / "weights.safetensors").write_bytes(b"one")
    before = digest_of(tmp_path)
    (tmp_path / "coarse" / "weights.safetensors").write_bytes(b"two")
    digest_of.cache_clear()
    assert digest_of(tmp_path) != before


def test_weights_that_were_poisoned_fail_the_subjects_with_the_reason(shared_data, tmp_path):
    """A file changed behind its checksum, and a pickle in its place: neither is ever loaded."""
    import pickle
    import shutil

    from RefaceRiskLib.resources import model_folder
    from RefaceRiskLib.study.subject import _loaded

    model = tmp_path / "model"
    shutil.copytree(model_folder("reference"), model)
    victim = model / "coarse" / "weights.safetensors"
    raw = bytearray(victim.read_bytes())
    raw[-100] ^= 1
    for poison in (bytes(raw), pickle.dumps({"weights": [1.0]})):
        victim.write_bytes(poison)
        with pytest.raises(RefaceRiskError):
            _loaded(str(model), f"{len(poison)} bytes")


def test_unknown_methods_and_models_are_refused_before_any_work():
    with pytest.raises(RefaceRiskError, match="unknown defacing method 'blur'"):
        checked_settings(["blur"], ["average"])
    with pytest.raises(RefaceRiskError, match="no such model"):
        checked_settings(["all"], ["/nowhere/model"])
    assert "interactive" not in checked_settings(None, ["average"]).methods
