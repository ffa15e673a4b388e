"""The command line: what it prints, where it writes and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import fake_core
import nibabel
import numpy as np
import pytest

from RefaceRiskLib import __version__, cli, jobs, volumes
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.progress import Cancelled

LIBRARY = Path(cli.__file__).parents[1]


@pytest.fixture(autouse=True)
def fakes(monkeypatch, tmp_path):
    fake_core.install(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def head(tmp_path):
    return fake_core.write_head(tmp_path / "head.nii.gz")


@pytest.fixture
def defaced(head):
    assert cli.main(["deface", "head.nii.gz", "defaced.nii.gz", "--mask-out", "removed.nii.gz", "--quiet"]) == 0
    return Path("defaced.nii.gz")


def description(path: str) -> str:
    return bytes(nibabel.load(path).header["descrip"]).decode()


def one_line(capsys) -> str:
    """What stderr holds, which must be one line and no traceback."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "Traceback" not in lines[0], lines
    return lines[0]


# --- starting -----------------------------------------------------------------------------------------------


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(LIBRARY)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=60)


def test_help_imports_nothing_heavy():
    heavy = "{'numpy', 'scipy', 'SimpleITK', 'vtk', 'torch', 'tqdm'}"
    code = f"""
import sys
from RefaceRiskLib import cli
try:
    cli.main(["--help"])
except SystemExit:
    pass
sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)
"""
    assert run_python("-c", code).returncode == 0


def test_help_answers_in_less_than_half_a_second():
    def seconds() -> float:
        began = time.perf_counter()
        assert "examples:" in run_python("-m", "RefaceRiskLib.cli", "--help").stdout
        return time.perf_counter() - began

    assert min(seconds() for _ in range(4)) < 0.5


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"refacerisk {__version__}\n"


@pytest.mark.parametrize("command", ["deface", "compare", "montage", "reface", "measure", "train", "demo"])
def test_every_command_has_a_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and f"refacerisk {command}" in text and "--json-progress" in text


def test_the_help_of_deface_lists_the_registry(capsys):
    with pytest.raises(SystemExit):
        cli.main(["deface", "--help"])
    listed = capsys.readouterr().out.split("methods")[1]
    assert all(name in listed for name in fake_core.METHODS)


# --- deface -------------------------------------------------------------------------------------------------


def test_deface_writes_volume_mask_quality_and_sidecars(head, capsys):
    arguments = ["deface", "head.nii.gz", "out/defaced.nii.gz", "--method", "pydeface"]
    assert cli.main([*arguments, "--mask-out", "out/mask.nii.gz", "--quality-out", "out/quality.json"]) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "defaced.json",
        "defaced.nii.gz",
        "mask.json",
        "mask.nii.gz",
        "quality.json",
    ]
    before, after = volumes.load(head), volumes.load("out/defaced.nii.gz")
    removed = volumes.load("out/mask.nii.gz").voxels == 1
    assert removed.any() and np.array_equal(before.voxels[~removed], after.voxels[~removed])
    assert json.loads(Path("out/quality.json").read_text(encoding="utf-8"))["verdict"] == "ok"
    assert "ok" in capsys.readouterr().out


def test_a_sidecar_says_how_the_volume_came_about(head, defaced):
    record = json.loads(Path("defaced.json").read_text(encoding="utf-8"))
    assert record["version"] == __version__ and record["method"] == "mri_deface"
    assert record["input"]["sha256"] == volumes.sha256_of(head)
    assert record["options"] == {"engine": "builtin"} and record["quality"]["brain_voxels_touched"] == 0


def test_the_options_of_a_method_are_passed_on_and_recorded(head):
    options = ["--margin-mm", "3.5", "--fill", "noise", "--seed", "7", "--quiet"]
    assert cli.main(["deface", "head.nii.gz", "a.nii.gz", "--method", "pydeface", *options]) == 0
    record = json.loads(Path("a.json").read_text(encoding="utf-8"))
    assert record["options"] == {"engine": "builtin", "margin_mm": "3.5", "fill": "noise", "seed": 7}
    assert record["seed"] == 7 and "synthetic" not in record


def test_an_average_face_as_fill_marks_the_result_as_synthetic(head):
    assert cli.main(["deface", "head.nii.gz", "a.nii.gz", "--fill", "average", "--quiet"]) == 0
    assert json.loads(Path("a.json").read_text(encoding="utf-8"))["synthetic"] is True


def test_the_mask_of_the_user_is_an_input(head, defaced, capsys):
    before = Path("removed.nii.gz").read_bytes()
    arguments = ["deface", "head.nii.gz", "a.nii.gz", "--mask", "removed.nii.gz"]
    assert cli.main([*arguments, "--quiet"]) == 0
    assert json.loads(Path("a.json").read_text(encoding="utf-8"))["options"]["mask"] == "removed.nii.gz"
    assert cli.main([*arguments, "--mask-out", "removed.nii.gz"]) == 2
    assert "overwrite an input" in one_line(capsys) and Path("removed.nii.gz").read_bytes() == before


def test_a_defacer_that_draws_a_face_marks_it_as_synthetic(head):
    assert cli.main(["deface", "head.nii.gz", "a.nii.gz", "--method", "average_face", "--quiet"]) == 0
    assert json.loads(Path("a.json").read_text(encoding="utf-8"))["synthetic"] is True
    assert description("a.nii.gz").startswith("SYNTHETIC face")


def test_the_input_is_never_overwritten(head, capsys):
    before = head.read_bytes()
    assert cli.main(["deface", "head.nii.gz", "head.nii.gz"]) == 2
    assert "input" in one_line(capsys) and head.read_bytes() == before
    assert cli.main(["deface", "head.nii.gz", "./x/../head.nii.gz"]) == 2
    assert head.read_bytes() == before


def test_the_sidecar_of_an_input_is_never_overwritten(head, capsys):
    Path("head.json").write_text('{"EchoTime": 0.003}')
    assert cli.main(["deface", "head.nii.gz", "head.nii"]) == 2
    assert "input" in one_line(capsys) and "EchoTime" in Path("head.json").read_text(encoding="utf-8")


def test_two_outputs_of_one_name_are_refused(head, capsys):
    assert cli.main(["deface", "head.nii.gz", "a.nii.gz", "--mask-out", "a.nii.gz"]) == 2
    assert "two outputs" in one_line(capsys)
    assert cli.main(["deface", "head.nii.gz", "a.nii.gz", "--quality-out", "a.json"]) == 2
    assert "two outputs" in one_line(capsys)


def test_an_output_that_is_no_volume_is_refused_before_the_work(head, capsys, monkeypatch):
    monkeypatch.setattr(
        sys.modules["RefaceRiskLib.defacing"], "deface", lambda *_, **__: pytest.fail("worked for nothing")
    )
    assert cli.main(["deface", "head.nii.gz", "defaced.txt"]) == 2
    assert one_line(capsys).startswith("refacerisk: defaced.txt: is no name for a volume; end it in .nii.gz")


def test_a_failed_run_takes_no_older_result_away(head, defaced, monkeypatch, capsys):
    def fail(*_, **__):
        raise RefaceRiskError("no head found", "give a whole head", "head.nii.gz")

    before = defaced.read_bytes()
    monkeypatch.setattr(sys.modules["RefaceRiskLib.defacing"], "deface", fail)
    assert cli.main(["deface", "head.nii.gz", "defaced.nii.gz", "--quiet"]) == 2
    assert one_line(capsys) == "refacerisk: head.nii.gz: no head found; give a whole head"
    assert defaced.read_bytes() == before


def test_a_crash_while_writing_leaves_no_volume_that_looks_complete(head, defaced, monkeypatch):
    real = volumes.save

    def crash_on_the_volume(volume, path):
        if Path(path).name == "defaced.nii.gz":
            raise OSError("disk full")
        return real(volume, path)

    monkeypatch.setattr(volumes, "save", crash_on_the_volume)
    assert cli.main(["deface", "head.nii.gz", "defaced.nii.gz", "--mask-out", "removed.nii.gz", "--quiet"]) == 1
    assert not defaced.exists()


# --- reface -------------------------------------------------------------------------------------------------


def test_a_refaced_volume_says_that_it_is_synthetic(defaced):
    assert cli.main(["reface", "defaced.nii.gz", "r.nii.gz", "--mask", "removed.nii.gz", "--seed", "7"]) == 0
    record = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert record["synthetic"] is True and record["seed"] == 7 and record["method"] == "reference"
    assert record["weights"] == fake_core.Refacer.weights
    assert record["input"]["sha256"] == volumes.sha256_of(defaced)
    assert description("r.nii.gz").startswith(f"SYNTHETIC face, MRIRefaceRisk {__version__}")


def test_refacing_changes_nothing_outside_the_mask(defaced):
    assert cli.main(["reface", "defaced.nii.gz", "r.nii.gz", "--mask", "removed.nii.gz"]) == 0
    removed = volumes.load("removed.nii.gz").voxels == 1
    before, after = volumes.load(defaced).voxels, volumes.load("r.nii.gz").voxels
    assert np.array_equal(before[~removed], after[~removed]) and (after[removed] == 60).all()


def test_every_sample_is_written_when_asked_for(defaced):
    assert cli.main(["reface", "defaced.nii.gz", "r.nii.gz", "--samples", "3", "--samples-out", "draws"]) == 0
    names = sorted(path.name for path in Path("draws").glob("*.nii.gz"))
    assert names == ["sample-01.nii.gz", "sample-02.nii.gz", "sample-03.nii.gz", "uncertainty.nii.gz"]
    assert all(json.loads(path.read_text(encoding="utf-8"))["synthetic"] for path in Path("draws").glob("*.json"))


def test_a_mask_of_another_grid_is_refused(defaced, capsys):
    mask = volumes.load("removed.nii.gz")
    moved = mask.affine.copy()
    moved[0, 3] += 3
    volumes.save(volumes.Volume(mask.voxels, moved), "moved.nii.gz")
    assert cli.main(["reface", "defaced.nii.gz", "r.nii.gz", "--mask", "moved.nii.gz", "--quiet"]) == 2
    assert one_line(capsys).startswith("refacerisk: moved.nii.gz: the mask's grid")


def test_a_mask_of_what_was_kept_is_refused(defaced, capsys):
    mask = volumes.load("removed.nii.gz")
    volumes.save(volumes.Volume(1 - mask.voxels, mask.affine), "kept.nii.gz")
    assert cli.main(["reface", "defaced.nii.gz", "r.nii.gz", "--mask", "kept.nii.gz", "--quiet"]) == 2
    assert "invert it" in one_line(capsys)


def test_an_empty_mask_is_refused(defaced, capsys):
    mask = volumes.load("removed.nii.gz")
    volumes.save(volumes.Volume(0 * mask.voxels, mask.affine), "none.nii.gz")
    assert cli.main(["reface", "defaced.nii.gz", "r.nii.gz", "--mask", "none.nii.gz", "--quiet"]) == 2
    assert "empty" in one_line(capsys)


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_a_number_of_samples_that_is_none_is_a_usage_error(number, defaced, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["reface", "defaced.nii.gz", "r.nii.gz", "--samples", number])
    assert stop.value.code == 2 and "--samples" in capsys.readouterr().err


# --- measure ------------------------------------------------------------------------------------------------


def test_measure_prints_an_aligned_table(defaced, capsys):
    assert cli.main(["measure", "head.nii.gz", "defaced.nii.gz", "--quiet"]) == 0
    heads, row = capsys.readouterr().out.splitlines()
    assert heads.split() == ["image", "mean_mm", "median_mm", "p95_mm"]
    assert row.split()[0] == "defaced" and float(row.split()[1]) > 0 and len(heads) == len(row)


def test_measure_writes_tsv_or_json_as_the_name_says(defaced):
    arguments = ["measure", "head.nii.gz", "defaced.nii.gz", "--removed", "removed.nii.gz", "--quiet"]
    assert cli.main([*arguments, "--out", "d.tsv"]) == cli.main([*arguments, "--out", "d.json"]) == 0
    heads, *lines = [line.split("\t") for line in Path("d.tsv").read_text(encoding="utf-8").splitlines()]
    rows = json.loads(Path("d.json").read_text(encoding="utf-8"))["rows"]
    assert [line[:2] for line in lines] == [["defaced", "face"], ["defaced", "removed"]]
    assert float(lines[0][heads.index("mean_mm")]) == pytest.approx(rows[0]["mean_mm"], abs=1e-4)


def test_measure_draws_the_original_first(defaced):
    assert cli.main(["measure", "head.nii.gz", "defaced.nii.gz", "--picture", "p/faces.png"]) == 0
    assert Path("p/faces.png").read_bytes().endswith(b"original|defaced|heat of defaced")


def test_the_picture_says_which_rows_are_synthetic(defaced):
    assert cli.main(["reface", "defaced.nii.gz", "r.nii.gz", "--mask", "removed.nii.gz", "--quiet"]) == 0
    Path("r.json").unlink()  # the header alone must do
    arguments = ["measure", "head.nii.gz", "defaced.nii.gz", "r.nii.gz", "--picture", "faces.png", "--quiet"]
    assert cli.main(arguments) == 0
    assert b"original|defaced|r (synthetic)|" in Path("faces.png").read_bytes()


def test_a_format_without_a_description_is_known_as_synthetic_by_its_sidecar(defaced):
    assert cli.main(["reface", "defaced.nii.gz", "r.mgz", "--mask", "removed.nii.gz", "--quiet"]) == 0
    assert jobs.is_synthetic(volumes.load("r.mgz"), "r.mgz")
    Path("r.json").unlink()
    assert not jobs.is_synthetic(volumes.load("r.mgz"), "r.mgz")


def test_images_of_one_name_are_told_apart_by_their_folders(defaced, capsys):
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "x.nii.gz").write_bytes(defaced.read_bytes())
    assert cli.main(["measure", "head.nii.gz", "a/x.nii.gz", "b/x.nii.gz", "--quiet"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["a/x", "b/x"]


def test_measure_never_writes_over_what_it_measures(defaced, capsys):
    before = defaced.read_bytes()
    assert cli.main(["measure", "head.nii.gz", "defaced.nii.gz", "--out", "defaced.nii.gz"]) == 2
    assert "input" in one_line(capsys) and defaced.read_bytes() == before


# --- progress, failing, stopping ----------------------------------------------------------------------------


def test_json_progress_is_one_object_a_line(head, capsys):
    assert cli.main(["deface", "head.nii.gz", "d.nii.gz", "--json-progress"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) == 4 and {line["type"] for line in lines} == {"progress"}
    assert [line["step"] for line in lines] == [0, 1, 2, 3]


def test_quiet_is_quiet(head, capsys):
    assert cli.main(["deface", "head.nii.gz", "d.nii.gz", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["deface", "absent.nii.gz", "d.nii.gz"],
        ["reface", "absent.nii.gz", "d.nii.gz"],
        ["measure", "absent.nii.gz", "d.nii.gz"],
        ["demo", "--input", "absent.nii.gz"],
        ["train", "coarse", "--data", "absent", "--out", "weights"],
        ["deface", "head.nii.gz", "d.nii.gz", "--method", "nonesuch"],
        ["deface", "head.nii.gz", "d.nii.gz", "--engine", "original"],
        ["reface", "head.nii.gz", "d.nii.gz", "--model", "nonesuch"],
        ["measure", "head.nii.gz", "head.nii.gz", "--out", "d.csv"],
        ["measure", "head.nii.gz", "head.nii.gz", "--picture", "d.jpg"],
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_2(arguments, head, capsys):
    assert cli.main([*arguments, "--json-progress"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("{")]
    assert len(lines) == 1 and lines[0].startswith("refacerisk: ") and ";" in lines[0]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Cancelled])
def test_a_stopped_command_says_so_in_one_line_and_exits_130(stop, head, monkeypatch, capsys):
    def stopped(*_, **__):
        raise stop()

    monkeypatch.setattr(jobs, "deface", stopped)
    assert cli.main(["deface", "head.nii.gz", "d.nii.gz"]) == 130
    assert "cancelled" in one_line(capsys)


def test_the_unexpected_is_one_line_and_exit_1_with_a_traceback_only_on_request(head, monkeypatch, capsys):
    def broken(*_, **__):
        raise ZeroDivisionError("float\ndivision")

    monkeypatch.setattr(jobs, "deface", broken)
    assert cli.main(["deface", "head.nii.gz", "d.nii.gz"]) == 1
    assert one_line(capsys) == ("refacerisk: unexpected ZeroDivisionError: float division; --debug shows the traceback")
    assert cli.main(["deface", "head.nii.gz", "d.nii.gz", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
