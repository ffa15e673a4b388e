"""Defacing: the face goes, the brain and every other voxel stay."""

from __future__ import annotations

import numpy as np
import pytest

from RefaceRiskLib.defacing import METHODS, deface, prepare
from RefaceRiskLib.defacing.quality import assess
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.synthesis import is_brain, t1w_from_labels
from RefaceRiskLib.volumes import Volume, load, reorient

METHOD_NAMES = sorted(METHODS)


@pytest.fixture(scope="module")
def labels(shared_data) -> Volume:
    return load(shared_data / "label_heads_1mm" / "training_seg_05.nii.gz")


@pytest.fixture(scope="module")
def head(labels):
    """A synthetic T1w of a label head, 2 mm, with the true brain on its grid: (prepared head, brain)."""
    volume = t1w_from_labels(labels, seed=3, spacing_mm=2.0)
    numbers = np.rint(labels.intensities).astype(np.int32)
    brain = is_brain(numbers).reshape(*(n for size in volume.shape for n in (size, 2))).any(axis=(1, 3, 5))
    return prepare(volume), brain


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_no_brain_voxel_is_touched(head, method):
    prepared, brain = head
    result = deface(prepared.volume, method, head=prepared)
    assert result.quality.brain_voxels_touched == 0
    assert (result.removed & brain).sum() == 0
    assert result.removed.sum() > 20000


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_untouched_voxels_are_kept_bit_for_bit(head, method):
    prepared, _ = head
    result = deface(prepared.volume, method, head=prepared)
    before, after = prepared.volume.voxels, result.volume.voxels
    assert before.dtype == after.dtype
    np.testing.assert_array_equal(before[~result.removed], after[~result.removed])
    assert (before[result.removed] != after[result.removed]).any()
    np.testing.assert_array_equal(result.volume.affine, prepared.volume.affine)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_face_is_gone_and_the_verdict_says_so(head, method):
    prepared, _ = head
    quality = deface(prepared.volume, method, head=prepared).quality
    assert (quality.verdict, quality.reason) == ("ok", "")
    assert quality.face_surface_removed > 0.8


def test_nothing_removed_is_a_failure_with_a_reason(head):
    prepared, _ = head
    nothing = np.zeros(prepared.volume.shape, bool)
    quality = assess(prepared.volume, nothing, prepared.brain, prepared.registration, prepared.template)
    assert quality.verdict == "failed"
    assert "face surface" in quality.reason


def test_a_mask_through_the_brain_is_a_failure(head):
    prepared, _ = head
    everything = np.ones(prepared.volume.shape, bool)
    quality = assess(prepared.volume, everything, prepared.brain, prepared.registration, prepared.template)
    assert quality.verdict == "failed"
    assert "brain voxels" in quality.reason


def test_another_storage_orientation_removes_the_same_voxels(head):
    prepared, _ = head
    result = deface(prepared.volume, "mri_deface", head=prepared)
    turned = deface(reorient(prepared.volume, "PIR"), "mri_deface")
    mask = Volume(result.removed.astype(np.uint8), prepared.volume.affine)
    same = reorient(mask, "PIR").voxels > 0
    dice = 2 * (same & turned.removed).sum() / (same.sum() + turned.removed.sum())
    assert dice > 0.98


def test_a_real_head_is_defaced_at_its_own_resolution(shared_data):
    volume = load(shared_data / "head_1mm" / "sub-MyConnectome_T1w.nii.gz")
    result = deface(volume, "mri_deface")
    assert result.quality.verdict == "ok"
    kept = ~result.removed
    np.testing.assert_array_equal(volume.voxels[kept], result.volume.voxels[kept])
    assert not result.volume.voxels[result.removed].any()


@pytest.mark.parametrize(
    ("method", "options", "word"),
    [
        ("blur", {}, "unknown defacing method"),
        ("pydeface", {"margin": 3}, "pydeface"),
        ("pydeface", {"engine": "fsl"}, "engine"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(head, method, options, word):
    prepared, _ = head
    with pytest.raises(RefaceRiskError, match=word) as caught:
        deface(prepared.volume, method, head=prepared, **options)
    assert "\n" not in str(caught.value)
