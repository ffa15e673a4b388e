"""Head CT as input: told from MRI, registered, defaced to air. The CT is synthetic, made from a label head."""

from __future__ import annotations

import head_phantoms
import numpy as np
import pytest
from scipy import ndimage

from RefaceRiskLib.defacing import deface, prepare
from RefaceRiskLib.hounsfield import SKIN_HU, as_mri, is_hounsfield
from RefaceRiskLib.surface.extract import extract_skin, skin_level
from RefaceRiskLib.synthesis import is_brain
from RefaceRiskLib.volumes import Volume, check_head, load


@pytest.fixture(scope="module")
def labels(shared_data) -> Volume:
    return load(shared_data / "label_heads_1mm" / "training_seg_05.nii.gz")


@pytest.fixture(scope="module")
def ct(labels) -> Volume:
    return head_phantoms.ct(labels)


@pytest.fixture(scope="module")
def head(ct):
    return prepare(ct, brain="registration")


@pytest.mark.parametrize("name", ["example_ct_3mm.nii.gz", "example_ct_sm_3mm.nii.gz", "example_ct_dicom"])
def test_a_real_ct_is_in_hounsfield_units(shared_data, name):
    assert is_hounsfield(load(shared_data / "ct" / name).intensities)


def test_mri_is_not_in_hounsfield_units_whatever_its_scaling(shared_data, tiny_head):
    for name in ("head_1mm/sub-MyConnectome_T1w.nii.gz", "cohort_ixi_2mm/sub-IXI015_T1w.nii.gz"):
        image = load(shared_data / name).intensities
        assert not is_hounsfield(image)
        assert not is_hounsfield((image - image.mean()) / image.std())
        assert as_mri(image) is image
    assert not is_hounsfield(tiny_head.intensities) and not is_hounsfield(np.zeros(5)) and not is_hounsfield([])


def test_the_skin_of_a_ct_lies_at_its_own_level(labels, ct):
    check_head(ct)
    assert skin_level(ct) == SKIN_HU
    solid = ndimage.binary_fill_holes(labels.voxels > 0).sum()  # mm3
    assert extract_skin(ct).volume == pytest.approx(solid, rel=0.03)


@pytest.mark.parametrize("padding", [-1024, -2000, -3024])
def test_padding_outside_the_scanned_circle_is_air(ct, padding):
    voxels = ct.voxels.copy()
    i, j = np.ogrid[: ct.shape[0], : ct.shape[1]]
    voxels[(i - 63.5) ** 2 + (j - 63.5) ** 2 > 62**2] = padding
    padded = Volume(voxels, ct.affine)
    check_head(padded)
    assert skin_level(padded) == SKIN_HU


@pytest.mark.parametrize("method", ["mri_deface", "average_face"])
def test_a_ct_is_defaced_to_air_and_its_brain_is_not_touched(labels, ct, head, method):
    result = deface(ct, method, head=head)
    brain = is_brain(np.rint(labels.intensities).astype(np.int32)).reshape(128, 2, 128, 2, 128, 2).any(axis=(1, 3, 5))
    assert not (result.removed & brain).any() and result.quality.brain_voxels_touched == 0
    np.testing.assert_array_equal(result.volume.voxels[~result.removed], ct.voxels[~result.removed])
    taken = result.volume.intensities[result.removed]
    assert result.quality.face_surface_removed > 0.9
    if method == "mri_deface":
        assert result.quality.verdict == "ok" and np.abs(taken + 1000).max() < 30
    else:  # a face of soft tissue in air
        assert np.mean(taken < -900) > 0.2 and np.mean((taken > -200) & (taken < 200)) > 0.1
        assert taken.min() > -1050 and taken.max() < 1500
