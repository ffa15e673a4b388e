"""The study from table to figure, on images that are made once and kept; what is left out is told."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.progress import Cancelled
from RefaceRiskLib.radiodensity import fit as fitting
from RefaceRiskLib.radiodensity.fit import FitOptions, fit, in_words
from RefaceRiskLib.radiodensity.images import HeadImages
from RefaceRiskLib.radiodensity.statistics import Analysis
from RefaceRiskLib.template import load_template
from RefaceRiskLib.volumes import Meta, Volume, save

QUICK = FitOptions(types=("original", "skull_strip"), folds=4, repeats=2, resamples=200, permutations=39)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Fourteen average heads whose cheeks are bright as the table's HU says; one of them cannot be registered."""
    template = load_template()
    low = template.surface_region & (np.abs(template.skin_distance + 8) < 6) & (template.points[..., 2] < 20)
    rng = np.random.default_rng(0)
    lines = ["participant_id\thead\tage\tsex\thu_thigh"]
    for number in range(14):
        trait = rng.standard_normal()
        (tmp_path / f"h{number}.nii.gz").touch()
        folder = tmp_path / "images" / f"sub-{number:02d}"
        folder.mkdir(parents=True)
        for kind in QUICK.types:
            image = template.image + rng.normal(0, 0.02, template.shape)
            image[low] = 0.8 + 0.3 * trait if kind == "original" else 0
            stored = np.clip(image * 85, 0, 255).astype(np.uint8)
            save(Volume(stored, template.affine, Meta(slope=1 / 85, format="nifti")), folder / f"{kind}.nii.gz")
        lines.append(f"sub-{number:02d}\th{number}.nii.gz\t{50 + number}\t{'MF'[number % 2]}\t{40 + 8 * trait:.2f}")
    lines.append("sub-99\tnowhere.nii.gz\t50\tM\t40")
    (tmp_path / "participants.tsv").write_text("\n".join(lines) + "\n")

    def images(head, folder, participant, types, device, on_progress):
        if participant == "sub-03":
            raise RefaceRiskError("cannot be used: the head does not match the template", path=head)
        made = {kind: folder / participant / f"{kind}.nii.gz" for kind in types}
        return HeadImages(participant, made, {}, dict.fromkeys(types, "ok"), np.ones(3))

    monkeypatch.setattr(fitting, "make_images", images)
    return tmp_path


def test_a_study_is_fitted_told_and_goes_on_where_it_stopped(study):
    seen = []

    def stop_late(progress):
        seen.append(progress.stage)
        if "skull_strip" in progress.stage:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit(study / "participants.tsv", study / "out", QUICK, study / "images", stop_late)
    assert not (study / "out" / "figure.png").exists()
    again = []
    done = fit(study / "participants.tsv", study / "out", QUICK, study / "images", lambda p: again.append(p.stage))
    assert any("original, repeat" in stage for stage in seen)
    assert not any("original, repeat" in stage for stage in again)  # kept

    original, stripped = done.correlations
    assert (original["image"], original["n"], stripped["n"]) == ("original", 13, 13)
    assert original["rho"] > 0.7 > stripped["rho"]
    assert done.sentences[0].startswith("thigh: ")
    told = " ".join(map(str, done.problems))
    assert "sub-99" in told and "nowhere.nii.gz does not exist" in told
    assert "sub-03" in told and "does not match the template" in told
    with open(done.files["predictions"], encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert len(rows) == 26
    record = json.loads((study / "out" / "correlations.json").read_text(encoding="utf-8"))
    assert record["options"]["seed"] == 0 and set(record["columns"]) == set(original)
    assert done.files["figure"].read_bytes()[:4] == b"\x89PNG"
    page = done.files["report"].read_text(encoding="utf-8")
    assert done.sentences[0] in page and "nowhere.nii.gz" in page


def test_the_result_is_said_in_plain_words():
    rows = [
        {"image": kind, "n": 150, "rho": 0.2, "ci_low": low, "p_permutation": p, "p_permutation_holm": p}
        for kind, low, p in (("original", 0.03, 0.01), ("quickshear", 0.01, 0.08), ("skull_strip", -0.1, 0.6))
    ]
    pairs = [
        {"image": kind, "rho_difference": 0.1, "p_permutation_holm": p}
        for kind, p in (("quickshear", 0.7), ("skull_strip", 0.02))
    ]
    assert in_words("hu_shin", Analysis(rows, pairs, {})) == (
        "shin: significant only with original images; the original tells more than skull-stripped "
        "(by the interval alone, as published: original and Quickshear)."
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (FitOptions(predictor="magic"), "unknown predictor"),
        (FitOptions(types=("skull_strip",)), "original is needed"),
        (FitOptions(types=("original", "painted")), "unknown image type"),
        (FitOptions(folds=1), "folds is 1"),
        (FitOptions(interval="wide"), "unknown interval"),
    ],
)
def test_options_that_cannot_be_are_refused(study, options, reason):
    with pytest.raises(RefaceRiskError, match=reason):
        fit(study / "participants.tsv", study / "out", options)
