"""CTs that are refused, levels, segmentation of known phantoms, and `muscle measure`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from RefaceRiskLib.cli import main
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.radiodensity.ct import check_hounsfield, choose_level, gantry_tilt, load_ct, measure_site, slab
from RefaceRiskLib.radiodensity.labels import numbers_of
from RefaceRiskLib.radiodensity.phantoms import phantom
from RefaceRiskLib.radiodensity.segmentation import segment
from RefaceRiskLib.volumes import Volume, reorient, save


@pytest.fixture(scope="module")
def thighs():
    return phantom("thigh", noise=10, spacing=1.5, slices=3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda hu: np.clip((hu + 160) / 400 * 255, 0, 255).round(), "a picture of 8 bits"),
        (lambda hu: hu + 1024, "intercept is missing"),
        (lambda hu: np.clip(hu, -160, 240), "a window"),
        (lambda hu: np.where(hu > -300, hu + 700, hu), "another scale"),
    ],
)
def test_what_is_not_in_hounsfield_units_is_refused_with_the_reason(thighs, change, reason):
    changed = thighs.ct.with_intensities(change(thighs.ct.intensities.astype(float)))
    with pytest.raises(RefaceRiskError, match=reason):
        check_hounsfield(changed)


@pytest.mark.parametrize("site", ["abdomen", "thigh", "shin"])
def test_muscle_of_a_phantom_is_found(site):
    truth = phantom(site, noise=10, seed=3)
    rows, found, *_ = measure_site(truth.ct, site)
    assert rows[0].mean_hu == pytest.approx(truth.clean_hu, abs=0.5)
    assert rows[0].area_mm2 == pytest.approx(truth.area_mm2, rel=0.02)
    assert [row.site for row in rows] == [site, f"{site} left", f"{site} right"]
    left = np.count_nonzero(found.left & truth.left) / np.count_nonzero(truth.left)
    assert left > 0.95
    assert not np.any(found.muscle & (found.bone | found.subcutaneous_fat | found.intermuscular_fat))


def test_a_stored_order_of_axes_changes_nothing(thighs):
    turned = reorient(thighs.ct, "LPI")
    there = segment(turned, "thigh")
    here = segment(thighs.ct, "thigh")
    assert np.array_equal(reorient(turned.with_intensities(there.left, np.uint8), "RAS").voxels > 0, here.left)


def test_levels_are_named_found_and_refused(thighs):
    assert choose_level(thighs.ct) == 1
    assert choose_level(thighs.ct, 2) == 2
    mark = np.zeros(thighs.ct.shape, np.uint8)
    mark[100, 100, 0] = 1
    assert choose_level(thighs.ct, roi=thighs.ct.with_intensities(mark, np.uint8)) == 0
    with pytest.raises(RefaceRiskError, match="no slice 3"):
        choose_level(thighs.ct, 3)
    part, here = slab(thighs.ct, 2, 0)
    assert part.shape[2] == 1 and here == slice(2, 3)
    assert part.affine[2, 3] == thighs.ct.affine[2, 3] + 2 * thighs.ct.spacing[2]


def test_a_tilted_gantry_is_told(thighs):
    assert gantry_tilt(thighs.ct) == pytest.approx(0, abs=1e-3)
    sheared = thighs.ct.affine.copy()
    sheared[1, 2] = np.tan(np.radians(12)) * sheared[2, 2]
    assert gantry_tilt(Volume(thighs.ct.voxels, sheared)) == pytest.approx(12, abs=0.01)


def test_muscles_are_known_by_name():
    assert numbers_of(["86", "erector_spinae_right", "iliopsoas_left", "gluteus_maximus_left"]) == [86, 87, 88, 80]
    with pytest.raises(RefaceRiskError, match="unknown muscle 'biceps'"):
        numbers_of(["biceps"])


def test_muscle_measure_writes_figures_and_a_picture(thighs, tmp_path, capsys):
    save(thighs.ct, tmp_path / "ct.nii.gz")
    arguments = ["muscle", "measure", str(tmp_path / "ct.nii.gz"), "--site", "thigh", "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png")]) == 0
    rows = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert {"label", "site", "mean_hu", "median_hu", "sd_hu", "area_mm2", "low_attenuation_share"} <= set(rows[0])
    assert rows[0]["area_mm2"] == pytest.approx(rows[1]["area_mm2"] + rows[2]["area_mm2"])
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert "thigh: mean" in capsys.readouterr().out
    assert main([*arguments[:3], "--quiet"]) == 2
    assert "--labels F or --site" in capsys.readouterr().err


def test_muscle_of_a_real_abdomen_is_found(shared_data):
    folder = shared_data / "ct"
    ct = load_ct(folder / "example_ct_sm_3mm.nii.gz")
    truth = load_ct_mask(folder / "example_ct_sm_3mm_skeletal_muscle.nii.gz")
    found = segment(ct, "abdomen").muscle
    assert 2 * np.count_nonzero(found & truth) / (found.sum() + truth.sum()) >= 0.85
    assert ct.intensities[found].mean() == pytest.approx(ct.intensities[truth].mean(), abs=2)


def load_ct_mask(path):
    from RefaceRiskLib.volumes import load

    return load(path).voxels > 0
