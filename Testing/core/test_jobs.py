"""The verbs with the real parts, on one real head at 2 mm, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from RefaceRiskLib import cli, volumes

SUBJECT = "sub-IXI213_T1w.nii.gz"  # of the validation subjects: no model was trained on it


@pytest.fixture(scope="module")
def folder(shared_data, tmp_path_factory) -> Path:
    """Holds the head, defaced and refaced, the mask and the distances."""
    folder = tmp_path_factory.mktemp("jobs")
    head = shared_data / "cohort_ixi_2mm" / SUBJECT
    run("deface", head, folder / "defaced.nii.gz", "--mask-out", folder / "removed.nii.gz")
    refaced = folder / "average.nii.gz"
    run(
        "reface",
        folder / "defaced.nii.gz",
        refaced,
        "--mask",
        folder / "removed.nii.gz",
        "--model",
        "average",
    )
    images = [folder / "defaced.nii.gz", refaced]
    files = ["--out", folder / "distances.json", "--picture", folder / "faces.png"]
    run("measure", head, *images, "--removed", folder / "removed.nii.gz", *files)
    return folder


def run(*arguments) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0


def test_the_defaced_head_differs_nowhere_outside_its_mask(folder, shared_data):
    before = volumes.load(shared_data / "cohort_ixi_2mm" / SUBJECT)
    after = volumes.load(folder / "defaced.nii.gz")
    removed = volumes.load(folder / "removed.nii.gz").voxels > 0
    assert 0.02 < removed.mean() < 0.4
    assert np.array_equal(before.voxels[~removed], after.voxels[~removed])
    assert before.voxels.dtype == after.voxels.dtype and before.meta.slope == after.meta.slope


def test_the_refaced_head_differs_nowhere_outside_the_mask_and_is_marked(folder):
    before, after = volumes.load(folder / "defaced.nii.gz"), volumes.load(folder / "average.nii.gz")
    removed = volumes.load(folder / "removed.nii.gz").voxels > 0
    assert np.array_equal(before.voxels[~removed], after.voxels[~removed])
    assert not np.array_equal(before.voxels[removed], after.voxels[removed])
    assert json.loads((folder / "average.json").read_text(encoding="utf-8"))["synthetic"] is True


def test_a_face_again_is_nearer_to_the_true_one_than_a_hole(folder):
    rows = json.loads((folder / "distances.json").read_text(encoding="utf-8"))["rows"]
    mean = {(row["image"], row["region"]): row["mean_mm"] for row in rows}
    for region in ("face", "removed"):
        assert mean["average", region] < 0.5 * mean["defaced", region]
    assert mean["defaced", "removed"] > mean["defaced", "face"]


def test_the_picture_is_a_picture(folder):
    from matplotlib.image import imread

    pixels = imread(folder / "faces.png")[..., :3]
    assert min(pixels.shape[:2]) > 300 and 0.05 < (pixels.max(-1) > 0.2).mean() < 0.9
