"""Radiodensity of labelled muscle, on made volumes and on a real CT."""

from __future__ import annotations

import numpy as np
import pytest

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.radiodensity.ct import measure_muscles
from RefaceRiskLib.volumes import Volume, load


@pytest.fixture
def a_ct_with_two_muscles():
    """Fat around a muscle of 20 x 10 x 5 voxels, 3/4 of it 60 HU and 1/4 10 HU, and a small one of 0 HU."""
    hu = np.full((40, 40, 15), -100, np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    hu[10:30, 10:20, 5:10], labels[10:30, 10:20, 5:10] = 60, 1
    hu[10:15, 10:20, 5:10] = 10
    hu[10:14, 30:34, 5:10], labels[10:14, 30:34, 5:10] = 0, 2
    affine = np.diag([0.8, 0.5, 3.0, 1.0])
    return Volume(hu, affine), Volume(labels, affine)


def test_density_area_and_fat_share_of_known_muscles(a_ct_with_two_muscles):
    first, second = measure_muscles(*a_ct_with_two_muscles, names={1: "thigh"})
    assert (first.label, first.site, first.voxels) == (1, "thigh", 1000)
    assert first.mean_hu == pytest.approx(0.75 * 60 + 0.25 * 10)
    assert first.median_hu == 60
    assert first.sd_hu == pytest.approx(np.sqrt(0.75 * 0.25) * 50)
    assert first.area_mm2 == pytest.approx(200 * 0.8 * 0.5)
    assert first.low_attenuation_share == pytest.approx(0.25)
    assert (second.mean_hu, second.low_attenuation_share) == (0, 1)


def test_fat_within_a_label_counts_for_the_mean_and_not_for_the_share(a_ct_with_two_muscles):
    ct, labels = a_ct_with_two_muscles
    voxels = ct.voxels.copy()
    voxels[10:15, 10:20, 5:10] = -80
    [muscle] = measure_muscles(Volume(voxels, ct.affine), labels, wanted=[1])
    assert muscle.mean_hu == pytest.approx(0.75 * 60 - 0.25 * 80)
    assert muscle.low_attenuation_share == 0


@pytest.mark.parametrize("axes", [(2, 0, 1), (1, 2, 0), (0, 1, 2)])
def test_the_axial_area_does_not_depend_on_how_the_file_is_stored(a_ct_with_two_muscles, axes):
    ct, labels = a_ct_with_two_muscles
    turned = [_stored_in_another_order(volume, axes) for volume in (ct, labels)]
    assert [m.as_dict() for m in measure_muscles(*turned)] == [m.as_dict() for m in measure_muscles(ct, labels)]


def test_labels_on_another_grid_are_carried_over(a_ct_with_two_muscles):
    ct, labels = a_ct_with_two_muscles
    finer = Volume(np.repeat(labels.voxels, 2, axis=0), labels.affine @ _halved_along_i())
    assert [m.mean_hu for m in measure_muscles(ct, finer)] == [m.mean_hu for m in measure_muscles(ct, labels)]


def test_a_ct_without_its_intercept_is_refused(a_ct_with_two_muscles):
    ct, labels = a_ct_with_two_muscles
    with pytest.raises(RefaceRiskError, match="Hounsfield"):
        measure_muscles(Volume(ct.voxels + 1024, ct.affine), labels)


def test_an_absent_label_is_named_with_those_that_exist(a_ct_with_two_muscles):
    with pytest.raises(RefaceRiskError, match="label 7 does not occur; there are 1, 2"):
        measure_muscles(*a_ct_with_two_muscles, wanted=[1, 7])


def test_an_empty_label_map_is_refused(a_ct_with_two_muscles):
    ct, labels = a_ct_with_two_muscles
    with pytest.raises(RefaceRiskError, match="nothing is labelled"):
        measure_muscles(ct, Volume(np.zeros_like(labels.voxels), labels.affine))


def test_erector_spinae_of_a_real_abdomen(shared_data):
    ct = load(shared_data / "ct" / "example_ct_dicom")
    labels = load(shared_data / "ct" / "example_ct_dicom_seg117.nii.gz")
    left, right = measure_muscles(ct, labels, wanted=[86, 87])
    assert (left.mean_hu, right.mean_hu) == (pytest.approx(24.5, abs=0.1), pytest.approx(20.8, abs=0.1))
    assert left.voxels == 16338
    for muscle in (left, right):
        assert 500 < muscle.area_mm2 < 2500
        assert 0.3 < muscle.low_attenuation_share < 0.7


def _stored_in_another_order(volume: Volume, axes: tuple[int, int, int]) -> Volume:
    columns = np.zeros((4, 4))
    columns[list(axes), range(3)] = 1
    columns[3, 3] = 1
    return Volume(volume.voxels.transpose(axes), volume.affine @ columns)


def _halved_along_i() -> np.ndarray:
    halved = np.diag([0.5, 1.0, 1.0, 1.0])
    halved[0, 3] = -0.25
    return halved
