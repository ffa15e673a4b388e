"""One defacing carried to a T2w and a CT of the same head, on their own grids."""

from __future__ import annotations

import json
from pathlib import Path

import head_phantoms
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from RefaceRiskLib import cli, volumes
from RefaceRiskLib.defacing import deface, prepare
from RefaceRiskLib.defacing.apply_to import align, apply_to
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.synthesis import is_brain, t1w_from_labels
from RefaceRiskLib.template import load_template
from RefaceRiskLib.volumes import Volume, load, resample, transform_points


def moved(angles=(4, -3, 5), shift=(6, -4, 3)) -> np.ndarray:
    """The head between two scans: RAS mm of the second to RAS mm of the first."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


@pytest.fixture(scope="module")
def labels(shared_data) -> Volume:
    return load(shared_data / "label_heads_1mm" / "training_seg_05.nii.gz")


@pytest.fixture(scope="module")
def first(labels):
    head = prepare(t1w_from_labels(labels, seed=3, spacing_mm=2.0), brain="registration")
    return deface(head.volume, "mri_deface", head=head)


def true_brain(labels: Volume, other: Volume, matrix: np.ndarray) -> np.ndarray:
    brain = is_brain(np.rint(labels.intensities).astype(np.int32)).astype(np.float32)
    return resample(brain, labels.affine, other.shape, other.affine, matrix) > 0.5


def errors_mm(matrix: np.ndarray, truth: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(transform_points(matrix, points) - transform_points(truth, points), axis=1)


@pytest.mark.parametrize(
    ("make", "spacing"), [(head_phantoms.t2w, (1.5, 4.0, 1.5)), (head_phantoms.ct, (2.0, 2.0, 2.0))]
)
def test_another_contrast_loses_the_same_tissue_and_no_brain(labels, first, make, spacing):
    matrix = moved()
    other = make(labels, spacing, matrix=matrix)
    result = apply_to(first, other)
    assert result.removed.shape == result.brain.shape == result.volume.shape == other.shape
    np.testing.assert_array_equal(result.volume.voxels[~result.removed], other.voxels[~result.removed])
    np.testing.assert_array_equal(result.volume.affine, other.affine)
    assert result.quality.brain_voxels_touched == 0 and not (result.removed & result.brain).any()
    assert not (result.removed & true_brain(labels, other, matrix)).any()
    assert result.quality.face_surface_removed > 0.9 and result.quality.verdict == "ok", result.quality
    truth = resample(first.removed.astype(np.float32), first.volume.affine, other.shape, other.affine, matrix) > 0.5
    assert 2 * (truth & result.removed).sum() / (truth.sum() + result.removed.sum()) > 0.93
    points = first.volume.affine[:3, 3] + np.argwhere(first.brain)[::500] @ first.volume.affine[:3, :3].T
    there = first.registration.matrix @ np.linalg.inv(result.registration.matrix)  # other to first
    assert errors_mm(np.linalg.inv(there), np.linalg.inv(matrix), points).mean() < 2.0
    assert result.options["rigid_overlap"] > 0.92 and result.options["rigid_sharpness"] > 0.12


def test_scans_of_different_coordinates_are_found(labels, first):
    """Another session: 36 degrees and 90 mm away, so that the scanner's own coordinates lead nowhere."""
    other = head_phantoms.t2w(labels, (3.0, 3.0, 3.0))
    away = moved((20, 10, -35), (30, 50, -60))
    other = Volume(other.voxels, away @ other.affine)
    matrix, quality = align(first, other, load_template())
    assert quality.verdict == "ok", quality
    points = first.volume.affine[:3, 3] + np.argwhere(first.brain)[::500] @ first.volume.affine[:3, :3].T
    assert errors_mm(matrix, away, points).mean() < 2.0


def test_what_the_first_image_did_not_show_is_removed_too(labels, first):
    """The first field of view ends below the nose; the other one shows the mouth and the chin."""
    upright = volumes.reorient(first.volume, "RAS")
    removed = volumes.reorient(Volume(first.removed.astype(np.uint8), first.volume.affine), "RAS").voxels > 0
    brain = volumes.reorient(Volume(first.brain.astype(np.uint8), first.volume.affine), "RAS").voxels > 0
    lowest = int(np.argwhere(removed)[:, 2].min())
    cut = (slice(None), slice(None), slice(lowest + 25, None))  # 50 mm of what is removed lie below
    kept = volumes.crop(upright, cut)
    short = type(first)(kept, removed[cut], brain[cut], first.registration, first.quality, first.method, first.options)
    other = head_phantoms.t2w(labels, (2.0, 2.0, 2.0))
    result = apply_to(short, other)
    assert result.quality.face_surface_removed > 0.9 and result.quality.left["mouth"] < 0.25
    assert not (result.removed & true_brain(labels, other, np.eye(4))).any()


def test_another_image_that_is_not_this_head_is_refused(first):
    rng = np.random.default_rng(0)
    grid = np.indices((64, 64, 64)).transpose(1, 2, 3, 0) - 32
    ball = 500.0 * (np.linalg.norm(grid * 4.0, axis=-1) < 85) + 10 * np.abs(rng.normal(size=(64, 64, 64)))
    with pytest.raises(RefaceRiskError, match="cannot be aligned with the first image") as caught:
        apply_to(first, Volume(ball.astype(np.float32), np.diag([4.0, 4.0, 4.0, 1.0])))
    assert "\n" not in str(caught.value)


# --- through the command line -------------------------------------------------------------------------------


@pytest.fixture
def session(tmp_path, monkeypatch, labels, first):
    """A T1w and a T2w on disk; the T1w's defacing is known, so that only the second step runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("RefaceRiskLib.defacing.deface", lambda *_, **__: first)
    volumes.save(t1w_from_labels(labels, seed=3, spacing_mm=2.0), "T1w.nii.gz")
    volumes.save(head_phantoms.t2w(labels, (3.0, 3.0, 3.0)), "T2w.mgz")
    Path("T2w.json").write_text("{}")


def test_the_command_line_defaces_a_session(session, capsys):
    assert cli.main(["deface", "T1w.nii.gz", "out/a.nii.gz", "--apply-to", "T2w.mgz"]) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "T2w_defaced.json", "T2w_defaced.mgz", "a.json", "a.nii.gz",
    ]  # fmt: skip
    told = capsys.readouterr().out
    assert "T2w defaced: ok" in told and "aligned with overlap 0.9" in told and "brain voxels touched: 0" in told
    record = json.loads(Path("out/T2w_defaced.json").read_text(encoding="utf-8"))
    assert record["input"]["path"] == "T2w.mgz" and record["carried_from"]["path"] == "T1w.nii.gz"
    assert record["options"]["rigid_overlap"] > 0.9
    before, after = load("T2w.mgz"), load("out/T2w_defaced.mgz")
    assert before.shape == after.shape and before.voxels.dtype == after.voxels.dtype
    assert (before.voxels != after.voxels).sum() <= record["removed_voxels"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--apply-to", "absent.nii.gz"], "no such file"),
        (["--apply-to", "T2w.mgz", "T2w.mgz"], "two images"),
        (["--apply-to", "T2w.mgz", "--apply-out", "T1w.nii.gz"], "cannot be written"),
    ],
)
def test_if_one_image_fails_none_is_written(session, arguments, word, capsys):
    assert cli.main(["deface", "T1w.nii.gz", "out/a.nii.gz", *arguments, "--quiet"]) == 2
    line = capsys.readouterr().err
    assert word in line and line.count("\n") == 1 and not Path("out").exists()
