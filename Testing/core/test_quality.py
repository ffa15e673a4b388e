"""The verdict on a defacing, and the tables and pictures by which a person judges it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from RefaceRiskLib import cli
from RefaceRiskLib.defacing import Head, compare, deface, prepare
from RefaceRiskLib.defacing.compare import COLUMNS, Trial, automatic_methods
from RefaceRiskLib.defacing.face_view import look_at
from RefaceRiskLib.defacing.qc_picture import COLOURS, Tile, montage, qc_page
from RefaceRiskLib.defacing.quality import assess
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.geometry import grid_points, transform_points
from RefaceRiskLib.surface.extract import skin_level
from RefaceRiskLib.synthesis import t1w_from_labels
from RefaceRiskLib.volumes import Volume, crop, load, reorient, save


@pytest.fixture(scope="module")
def head(shared_data) -> Head:
    """A synthetic T1w of a label head with its whole face, 2 mm, RAS."""
    labels = load(shared_data / "label_heads_1mm" / "training_seg_08.nii.gz")
    return prepare(reorient(t1w_from_labels(labels, seed=5, spacing_mm=2.0), "RAS"))


@pytest.fixture(scope="module")
def defaced(head):
    return deface(head.volume, "fsl_deface", head=head)


@pytest.fixture(scope="module")
def places(head) -> np.ndarray:
    """Template mm of every voxel, (I, J, K, 3)."""
    points = grid_points(head.volume.shape, head.volume.affine)
    return transform_points(np.linalg.inv(head.registration.matrix), points)


def judged(head: Head, mask: np.ndarray, registration=None):
    registration = registration or head.registration
    return assess(head.volume, mask & ~head.brain, head.brain, registration, head.template)


def moved(head: Head, mask: np.ndarray, mm: tuple) -> np.ndarray:
    step = np.array(mm) / head.volume.spacing  # the head is stored as RAS
    return ndimage.shift(mask.astype(np.float32), step, order=1) > 0.5


def test_a_face_that_is_gone_is_ok_with_nothing_left(defaced):
    quality = defaced.quality
    assert (quality.verdict, quality.reason) == ("ok", "")
    assert max(quality.left[name] for name in ("eyes", "nose", "mouth")) < 0.1
    assert quality.disagreement_mm < 6


@pytest.mark.parametrize("mm", [(0, -25, 0), (0, 0, -70), (80, 0, 0)])
def test_a_mask_beside_the_face_is_never_ok(head, defaced, mm):
    quality = judged(head, moved(head, defaced.removed, mm))
    assert quality.verdict != "ok"
    assert "face" in quality.reason


@pytest.mark.parametrize("half", ["left", "right", "upper", "lower lip and chin"])
def test_half_a_mask_is_never_ok(head, defaced, places, half):
    x, _, z = np.moveaxis(places, -1, 0)
    part = {"left": x < 0, "right": x > 0, "upper": z > -8, "lower lip and chin": z < -25}[half]
    quality = judged(head, defaced.removed & part)
    assert quality.verdict != "ok"
    assert "face" in quality.reason


def test_the_tip_of_the_nose_alone_is_noticed(head, defaced, places):
    x, y, z = np.moveaxis(places, -1, 0)
    tissue = (head.volume.intensities > skin_level(head.volume)) & (np.abs(x) < 10) & (z > -20) & (z < 25)
    tip = np.argmax(np.where(tissue, y, -np.inf))
    distance = np.linalg.norm(places - places.reshape(-1, 3)[tip], axis=-1)
    quality = judged(head, defaced.removed & (distance > 12))
    assert quality.left["mouth"] < 0.1
    assert quality.verdict != "ok" and "nose" in quality.reason


def test_a_mask_in_another_storage_orientation_is_a_failure(head, defaced):
    assert judged(head, np.flip(defaced.removed, 1)).verdict == "failed"


def test_eyes_alone_make_no_face(head, defaced, places):
    quality = judged(head, defaced.removed & (places[..., 2] < 12))
    assert quality.left["eyes"] > 0.9
    assert quality.left["nose"] < 0.33 and quality.verdict == "ok"


@pytest.mark.parametrize("step", [(0, 25, 0), (0, -25, 0), (25, 0, 0)])
def test_a_wrong_registration_is_noticed_though_it_calls_itself_right(head, step):
    shift = np.eye(4)
    shift[:3, 3] = step
    wrong = replace(head, registration=replace(head.registration, matrix=head.registration.matrix @ shift))
    quality = deface(head.volume, "fsl_deface", head=wrong).quality
    assert quality.verdict != "ok"


def test_a_fill_that_never_happened_is_noticed_on_the_image(head, defaced):
    quality = assess(head.volume, defaced.removed, head.brain, head.registration, head.template, head.volume)
    assert quality.face_surface_removed > 0.9
    assert quality.verdict == "failed"
    assert "a face is left" in quality.reason and quality.left["nose"] > 0.95


@pytest.mark.parametrize("method", ["mri_deface", "quickshear"])
def test_a_scan_that_was_defaced_before_says_so(head, method):
    again = replace(head, volume=deface(head.volume, method, head=head).volume)
    quality = deface(again.volume, "pydeface", head=again).quality
    assert quality.verdict == "check"
    assert quality.reason.startswith("the face is already missing (no nose")


@pytest.mark.parametrize(
    ("box", "padded", "word"),
    [
        ("behind the nose", False, "nose"),
        ("behind the nose", True, "nose"),
        ("below the nose", False, "mouth"),
        ("below the nose", True, "mouth"),
        ("below the crown", False, "top of the head"),
        ("below the crown", True, "top of the head"),
    ],
)
def test_a_cut_field_of_view_is_named(head, places, box, padded, word):
    nose = transform_points(head.registration.matrix, head.template.landmarks["nose_tip"])
    nose = np.round(transform_points(np.linalg.inv(head.volume.affine), nose)).astype(int)
    inside = {
        "behind the nose": np.s_[:, : nose[1] - 9, :],
        "below the nose": np.s_[:, :, nose[2] - 5 :],
        "below the crown": np.s_[:, :, : nose[2] + 28],
    }[box]
    if padded:
        outside = np.ones(head.volume.shape, bool)
        outside[inside] = False
        cut = replace(head, volume=head.volume.replaced(outside, 0.0))
    else:
        slices = tuple(slice(*s.indices(n)[:2]) for s, n in zip(inside, head.volume.shape, strict=True))
        cut = replace(head, volume=crop(head.volume, slices), brain_distance=head.brain_distance[inside])
    quality = deface(cut.volume, "fsl_deface", head=cut).quality
    assert quality.verdict == "check"
    assert word in quality.reason and "cut by the field of view" in quality.reason


def test_a_hole_that_dental_metal_tears_is_no_missing_face(head, places):
    hole = np.linalg.norm(places - [0, 92, -28], axis=-1) < 26
    torn = replace(head, volume=head.volume.replaced(hole, 0.0))
    view = look_at(torn.volume, torn.registration, torn.template)
    assert view.is_missing("mouth") and not view.is_missing("nose")
    assert deface(torn.volume, "fsl_deface", head=torn).quality.verdict == "ok"


def test_brain_that_would_be_touched_is_refused_unless_forced(head, monkeypatch):
    monkeypatch.setattr("RefaceRiskLib.defacing._builtin", lambda *_: (head.volume, np.ones(head.volume.shape, bool)))
    with pytest.raises(RefaceRiskError, match="would remove"):
        deface(head.volume, "pydeface", head=head)
    assert deface(head.volume, "pydeface", head=head, force=True).quality.verdict == "failed"


# --- side by side ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison(head):
    trials = [
        "pydeface",
        Trial("pydeface", {"fill": "noise"}, label="pydeface, noise"),
        Trial("mideface", engine="original"),
    ]
    return compare.compare(head.volume, trials, head=head)


def test_a_comparison_has_a_row_for_each_trial_and_a_reason_for_each_refusal(comparison, monkeypatch):
    rows = comparison.rows()
    assert [row["method"] for row in rows] == ["pydeface", "pydeface, noise", "mideface"]
    assert all(tuple(row) == COLUMNS for row in rows)
    assert [row["verdict"] for row in rows] == ["ok", "ok", "failed"]
    assert "mideface" in rows[2]["reason"] and rows[2]["removed_ml"] is None
    assert rows[0]["brain_voxels_touched"] == 0 and rows[0]["brain_distance_mm"] >= 5
    np.testing.assert_array_equal(*(comparison.results[name].removed for name in ("pydeface", "pydeface, noise")))


def test_removed_volume_and_distance_are_those_of_the_mask(comparison):
    result, row = comparison.results["pydeface"], comparison.rows()[0]
    assert row["removed_ml"] == pytest.approx(result.removed.sum() * 8 / 1000)
    spread = ndimage.distance_transform_edt(~result.brain, sampling=2.0)[result.removed].min()
    assert row["brain_distance_mm"] == pytest.approx(spread, abs=2.0)


def test_every_method_that_needs_no_drawing_is_compared_by_default():
    assert "interactive" not in automatic_methods()
    assert {"mri_deface", "quickshear", "skull_strip"} <= set(automatic_methods())


@pytest.mark.parametrize("methods", [["nonsense"], [], ["pydeface", "pydeface"]])
def test_a_comparison_that_makes_no_sense_is_refused_before_the_work(head, methods, monkeypatch):
    monkeypatch.setattr(compare, "prepare", lambda *_, **__: pytest.fail("work was begun"))
    with pytest.raises(RefaceRiskError):
        compare.compare(head.volume, methods)


# --- pictures -------------------------------------------------------------------------------------------------------


def pixels(path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(int)


def has_colour(picture: np.ndarray, colour) -> bool:
    return bool((np.abs(picture - np.array(colour)).max(axis=-1) < 3).any())


def test_a_montage_puts_the_doubtful_heads_first(head, defaced, tmp_path):
    tiles = [
        Tile("a", head.volume, "ok"),
        Tile("b", defaced.volume, "failed", "a face is left"),
        Tile("c", head.volume),
    ]
    sheet = pixels(montage(tiles, tmp_path / "sheet.png", columns=1, height=90))
    frames = sheet[64:, 15]
    first = {name: int(np.argmax(np.abs(frames - colour).max(axis=-1) < 3)) for name, colour in COLOURS.items()}
    assert first["failed"] < first["ok"]
    assert sheet.shape[0] > 2 * 130


def test_a_picture_is_a_png(head, defaced, tmp_path):
    with pytest.raises(RefaceRiskError, match="PNG"):
        qc_page(head.volume, defaced, tmp_path / "page.jpg")


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def head_file(head, tmp_path, monkeypatch):
    """The head as a file, with its registration known."""

    def known(volume: Volume, **_) -> Head:
        return replace(head, volume=volume)

    monkeypatch.setattr("RefaceRiskLib.defacing.prepare", known)
    monkeypatch.setattr("RefaceRiskLib.defacing.compare.prepare", known)
    return save(head.volume, tmp_path / "head.nii.gz")


def test_compare_writes_volumes_masks_tables_and_a_picture(head_file, tmp_path, capsys):
    out = tmp_path / "compared"
    assert cli.main(["compare", str(head_file), str(out), "--methods", "pydeface", "quickshear", "--quiet"]) == 0
    assert "quickshear" in capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    assert {"pydeface.nii.gz", "pydeface_mask.nii.gz", "quickshear.nii.gz", "comparison.png"} <= names
    picture = pixels(out / "comparison.png")
    assert picture.shape[0] > 3 * 300 and has_colour(picture, COLOURS["ok"])  # the head and two methods
    with (out / "comparison.tsv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [row["method"] for row in rows] == ["pydeface", "quickshear"] and tuple(rows[0]) == COLUMNS
    assert json.loads((out / "comparison.json").read_text(encoding="utf-8"))["rows"][1]["brain_voxels_touched"] == 0
    mask, before, after = (
        load(path).voxels for path in (out / "pydeface_mask.nii.gz", head_file, out / "pydeface.nii.gz")
    )
    np.testing.assert_array_equal(before[mask == 0], after[mask == 0])
    assert (after[mask == 1] == 0).all()


def test_a_montage_of_a_folder_takes_heads_and_leaves_masks(head_file, tmp_path):
    out = tmp_path / "defaced"
    arguments = [
        "deface",
        str(head_file),
        str(out / "a.nii.gz"),
        "--method",
        "pydeface",
        "--mask-out",
        str(out / "gone.nii.gz"),
    ]
    assert cli.main([*arguments, "--picture", str(out / "a.png"), "--quiet"]) == 0
    page = pixels(out / "a.png")
    assert has_colour(page[:4], COLOURS["ok"])
    assert has_colour(page, (240, 84, 72)) and has_colour(page, (92, 176, 255))  # what goes, and the brain
    assert not list(out.glob("*.tmp"))
    assert cli.main(["montage", str(out), "--out", str(tmp_path / "sheet.png"), "--quiet"]) == 0
    sheet = pixels(tmp_path / "sheet.png")
    assert has_colour(sheet[64:90], COLOURS["ok"])
    assert sheet.shape[0] < 64 + 2 * 250  # one tile: the mask is no head


def test_a_folder_without_defaced_heads_is_refused(tmp_path, capsys):
    assert cli.main(["montage", str(tmp_path), "--out", str(tmp_path / "sheet.png")]) == 2
    assert "no defaced volumes" in capsys.readouterr().err
