"""A study whose table tells of muscle: fitted once, told in the report, and nothing where the table knows nothing."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from light_study import METHODS, LightSubject, cohort

from RefaceRiskLib import cli
from RefaceRiskLib.progress import Cancelled
from RefaceRiskLib.radiodensity import fit as fitting
from RefaceRiskLib.radiodensity.images import _write_record, keep_images, load_images
from RefaceRiskLib.radiodensity.predictor import LightPredictor
from RefaceRiskLib.registration import Registration, RegistrationQuality
from RefaceRiskLib.study import muscle
from RefaceRiskLib.study.ledger import Ledger
from RefaceRiskLib.study.participants import NAME
from RefaceRiskLib.study.plan import Settings
from RefaceRiskLib.study.run import run_study
from RefaceRiskLib.study.subject import process
from RefaceRiskLib.template import load_template
from RefaceRiskLib.volumes import Volume, save, sha256_of

HEADS = 9
HU = [52, 44, 68, 40, 60, 72, 48, 64, 56]


class MuscleSubject(LightSubject):
    """Each image is a few voxels: the original's are bright as the table's HU says, the others tell nothing."""

    def _muscle(self):
        number, place = int(self.name[-3:]), muscle.images_folder(self.ledger) / self.name
        place.mkdir(parents=True)
        made = {}
        for kind in self.settings.muscle_types():
            image = np.random.default_rng(number).uniform(0, 10, (6, 6, 6))
            image[:3] += HU[number] if kind == "original" else 0
            save(Volume(image.astype(np.float32), np.eye(4)), place / f"{kind}.nii.gz")
            made[kind] = {"verdict": "ok"}
        _write_record(place, {"made": made, "refused": {}, "input_sha256": self.volume.meta.sha256})
        return {"outputs": sorted(place.iterdir()), "refused": {}}


def registered(volume):
    """A head that lies as the template does."""
    fit = Registration(np.eye(4), quality=RegistrationQuality(0.95, 0.6, "ok"))
    return SimpleNamespace(volume=volume, registration=fit)


def light(message):
    return process(message, MuscleSubject)


def study(table, out, **options):
    settings = {"methods": METHODS, "models": ("average",), "workers": 0, "task": light, "linkage": False}
    return run_study(table, out, **(settings | options))


def table_of(folder, count=HEADS, header="age\tsex\thu_thigh", row="{age}\t{sex}\t{hu}"):
    """A cohort with muscle; `row`: the further cells of each line."""
    table = cohort(folder, count)
    lines = table.read_text(encoding="utf-8").splitlines()
    rng = np.random.default_rng(1)
    cells = [row.format(age=rng.integers(30, 70), sex="MF"[n % 2], hu=HU[n], ct=f"ct{n}.nii.gz") for n in range(count)]
    lines = [f"{lines[0]}\t{header}", *(f"{line}\t{more}" for line, more in zip(lines[1:], cells, strict=True))]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def hashes(folder):
    return {
        path.relative_to(folder).as_posix(): (sha256_of(path), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Few repeats, and voxels for features."""
    with pytest.MonkeyPatch.context() as patch:
        whole = fitting.FitOptions
        light_fit = {"folds": 4, "repeats": 2, "resamples": 100, "permutations": 19}
        patch.setattr(fitting, "FitOptions", lambda **given: whole(**(light_fit | given)))
        patch.setattr(LightPredictor, "prepare", lambda self, image, size: image.ravel())
        yield


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return table_of(tmp_path_factory.mktemp("heads"))


@pytest.fixture(scope="module")
def out(heads, tmp_path_factory):
    """A finished study."""
    folder = tmp_path_factory.mktemp("study") / "out"
    study(heads, folder)
    return folder


def test_muscle_is_predicted_and_told_in_the_report(out):
    told = json.loads((out / "summary.json").read_text(encoding="utf-8"))["muscle"]
    rho = {row["image"]: row["rho"] for row in told["correlations"]}
    assert list(rho) == ["original", *METHODS] and rho["original"] > 0.7
    assert told["why_not"] == "" and told["left_out"] == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert told["in_words"][0] in page and told["in_words"][0].startswith("thigh: ")
    assert "What the head tells about muscle" in page and page.count("data:image/png;base64,") == 2
    assert ".refacerisk/muscle" in page
    written = {path.name for path in (out / "muscle").iterdir()}
    assert written >= {"figure.png", "figure.svg", "report.html", "correlations.tsv", "resamples.tsv", "excluded.tsv"}
    assert "folds" not in written and not list((out / "muscle").rglob("*.nii.gz"))  # no face outside .refacerisk


def test_given_again_it_computes_nothing_and_touches_no_file(heads, out, monkeypatch):
    monkeypatch.setattr(fitting, "fit", None)
    before = hashes(out)
    done = study(heads, out)
    assert hashes(out) == before
    assert done.record["muscle"]["in_words"] and done.outputs["muscle"].is_file()


def test_a_fit_that_was_cut_off_goes_on_and_a_lost_file_comes_back_the_same(heads, tmp_path):
    asked_to_stop = []

    def stop(progress):
        if "quickshear" in progress.stage:
            asked_to_stop.append(progress.stage)
            raise Cancelled

    with pytest.raises(Cancelled):
        study(heads, tmp_path / "out", on_progress=stop)
    assert asked_to_stop and not (tmp_path / "out" / "report.html").exists()
    stages = []
    study(heads, tmp_path / "out", on_progress=lambda progress: stages.append(progress.stage))
    assert any("quickshear, repeat" in stage for stage in stages)
    assert not any("original, repeat" in stage for stage in stages)  # kept
    before = {name: seen[0] for name, seen in hashes(tmp_path / "out" / "muscle").items()}
    (tmp_path / "out" / "muscle" / "predictions.tsv").unlink()
    study(heads, tmp_path / "out")
    assert {name: seen[0] for name, seen in hashes(tmp_path / "out" / "muscle").items()} == before


def test_without_muscle_columns_nothing_of_it_is_there(heads, tmp_path):
    plain = cohort(tmp_path, 2)
    assert "muscle" not in study(plain, tmp_path / "plain").record
    assert "muscle" not in study(heads, tmp_path / "no", muscle=False).record
    for name in ("plain", "no"):
        assert not (tmp_path / name / "muscle").exists() and not (tmp_path / name / ".refacerisk" / "muscle").exists()
        assert "uscle" not in (tmp_path / name / "report.html").read_text(encoding="utf-8")


def test_too_few_participants_are_told_in_one_line_and_the_study_goes_on(tmp_path):
    notes = []
    done = study(table_of(tmp_path, 3), tmp_path / "out", on_note=notes.append)
    [line] = [note for note in notes if "muscle" in note]
    assert line == "no muscle is predicted: 3 participants with muscle, age and sex are fewer than 6"
    assert done.record["finished"] == 3 and not (tmp_path / "out" / "muscle").exists()
    assert "3 participants with muscle, age and sex are fewer" in done.outputs["report.html"].read_text("utf-8")


def test_a_column_of_which_nothing_can_be_used_is_told_with_the_first_line(tmp_path):
    notes = []
    table = table_of(tmp_path, 2, row="{age}\t{sex}\tbright")
    assert study(table, tmp_path / "out", on_note=notes.append).record["finished"] == 2
    [line] = [note for note in notes if "muscle" in note]
    assert "no usable row of 2 (line 2, sub-000" in line and "hu_thigh is bright, no number" in line


def test_a_table_without_age_is_refused_in_one_line_before_any_work(tmp_path, capsys):
    table = table_of(tmp_path, 2, header="sex\thu_thigh", row="{sex}\t{hu}")
    assert cli.main(["study", str(table), str(tmp_path / "out"), "--quiet"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "participants.tsv: cannot be used for muscle: has no column age; " in line and "--no-muscle" in line
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_bad_values_leave_their_participants_out_and_are_listed(heads, tmp_path):
    text = heads.read_text(encoding="utf-8").replace("\t52\n", "\tbright\n")
    other = heads.with_name("other.tsv")
    other.write_text(text, encoding="utf-8")
    done = study(other, tmp_path / "out")
    assert {row["n"] for row in done.record["muscle"]["correlations"]} == {HEADS - 1}
    assert done.record["muscle"]["left_out"] == 2 and done.record["finished"] == HEADS
    assert "hu_thigh is bright" in (tmp_path / "out" / "muscle" / "excluded.tsv").read_text(encoding="utf-8")
    assert not (tmp_path / "out" / ".refacerisk" / "muscle" / "images" / "sub-000").exists()


def test_cts_are_measured_and_another_ct_is_fitted_anew(tmp_path, monkeypatch):
    table = table_of(tmp_path, 7, header="age\tsex\tct_thigh", row="{age}\t{sex}\t{ct}")
    for number in range(7):
        (tmp_path / f"ct{number}.nii.gz").write_bytes((tmp_path / f"head{number:03d}.nii.gz").read_bytes())
    measured = []

    def measure(ct, site):
        measured.append(ct.name)
        return [{"mean_hu": float(HU[int(ct.name[2])])}], {"input": {"sha256": sha256_of(ct)}}

    monkeypatch.setattr(fitting, "measure_ct", measure)
    done = study(table, tmp_path / "out")
    assert done.record["muscle"]["correlations"][0]["target"] == "hu_thigh" and len(measured) == 7
    study(table, tmp_path / "out")
    assert len(measured) == 7
    (tmp_path / "ct3.nii.gz").write_bytes((tmp_path / "head000.nii.gz").read_bytes())
    study(table, tmp_path / "out")
    assert measured[7:] == ["ct3.nii.gz"]


def test_a_data_set_without_a_column_of_heads_tells_of_muscle_too(heads, tmp_path):
    lines = heads.read_text(encoding="utf-8").splitlines()
    folder = tmp_path / "flat"
    folder.mkdir()
    for number in range(HEADS):
        place = folder / f"sub-{number:03d}_T1w.nii.gz"
        place.write_bytes((heads.parent / f"head{number:03d}.nii.gz").read_bytes())
    rows = ["\t".join(cell for n, cell in enumerate(line.split("\t")) if n != 1) for line in lines]
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert study(folder, tmp_path / "out").record["muscle"]["correlations"][0]["n"] == HEADS


def test_the_images_are_those_that_the_study_makes():
    every = ("fsl_deface", "mri_deface", "pydeface", "quickshear", "skull_strip", "average_face")
    assert Settings(every).muscle_types() == ("original", *every[:5], "refaced", "average_face")
    assert Settings(every, models=("average",)).muscle_types() == ("original", *every)
    assert Settings(("quickshear",)).muscle_types() == ("original", "quickshear")
    keys = {
        settings.key_of("muscle", "a" * 64) for settings in (Settings(every), Settings(every[:2]), Settings(every[:3]))
    }
    assert len(keys) == 3


def test_images_made_elsewhere_are_kept_with_why_others_are_not(tmp_path):
    template = load_template()
    head = registered(Volume(template.image, template.affine))
    images = {"original": (head.volume, np.eye(4), "ok"), "quickshear": "finds nothing to remove"}
    more = images | {"pydeface": (head.volume, np.eye(4), "check")}
    keep_images(head, tmp_path, "sub-1", more.items())
    kept = keep_images(head, tmp_path, "sub-1", images.items())
    assert kept.verdicts == {"original": "ok"} and kept.refused == {"quickshear": "finds nothing to remove"}
    found = load_images(tmp_path, "sub-1", ("original", "quickshear", "pydeface"))
    assert found.made == kept.made and set(found.refused) == {"quickshear", "pydeface"}
    dark = registered(Volume(np.zeros(template.shape, np.float32), template.affine))
    assert "brain is not brighter" in keep_images(dark, tmp_path, "sub-2", images.items()).refused["original"]


def test_the_record_of_the_cohort_is_nobodys(out):
    assert Ledger(out).read(muscle.COHORT)["steps"]["muscle"]["outputs"]
    assert not NAME.fullmatch(muscle.COHORT)
