"""Measuring images of one head against the original."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.progress import Cancelled
from RefaceRiskLib.surface.extract import skin_level
from RefaceRiskLib.surface.measure import COLUMNS, measure, removed_region
from RefaceRiskLib.volumes import Volume, resample


@pytest.fixture(scope="module")
def placed():
    """A template whose anterior half lies, shifted by 7 mm, where the head's does."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -140
    region = np.zeros((70, 70, 70), bool)
    region[:, 35:] = True
    matrix = np.eye(4)
    matrix[1, 3] = 7.0
    return SimpleNamespace(affine=affine, surface_region=region), SimpleNamespace(matrix=matrix)


@pytest.fixture(scope="module")
def removed(tiny_head):
    mask = np.zeros(tiny_head.shape, bool)
    mask[:, 62:, :45] = True
    return mask


@pytest.fixture(scope="module")
def measured(tiny_head, removed, placed):
    others = {"defaced": tiny_head.replaced(removed, 0), "same": tiny_head}
    return measure(tiny_head, others, *placed, removed=removed)


def test_the_face_is_the_half_that_the_registration_places(measured):
    face = measured.regions["face"]
    y = measured.original.points[:, 1]
    assert face[y > 9].all() and not face[y < 1].any()  # 7 mm, up to the template's voxels


def test_an_untouched_copy_is_at_zero_and_a_defaced_one_is_not(measured):
    assert measured["same"]["face"].max == 0
    assert measured["defaced"]["face"].mean > 1
    assert measured["defaced"]["removed"].mean > measured["defaced"]["face"].mean
    assert measured["defaced"]["face"].per_vertex.shape == (len(measured.original.points),)


def test_rows_hold_each_image_and_region(measured):
    rows = measured.rows()
    assert [(row["image"], row["region"]) for row in rows] == [
        ("defaced", "face"), ("defaced", "removed"), ("same", "face"), ("same", "removed")]  # fmt: skip
    assert all(tuple(row) == COLUMNS for row in rows)


def test_without_a_removed_mask_there_is_only_the_face(tiny_head, placed):
    found = measure(tiny_head, {"same": tiny_head}, *placed)
    assert found["same"]["removed"] is None
    assert [row["region"] for row in found.rows()] == ["face"]


def test_a_mask_that_holds_no_skin_gives_no_removed_region(tiny_head, placed):
    corner = np.zeros(tiny_head.shape, bool)
    corner[:3, :3, :3] = True
    assert measure(tiny_head, {"same": tiny_head}, *placed, removed=corner)["same"]["removed"] is None


def test_all_images_are_cut_at_the_original_s_level(tiny_head, placed):
    dim = tiny_head.with_intensities(0.5 * tiny_head.intensities)
    found = measure(tiny_head, {"dim": dim}, *placed)
    assert found.level == skin_level(tiny_head)
    assert found["dim"]["face"].mean > 0.2  # cut at its own level it would be at zero


def test_another_grid_in_the_same_space_measures_nothing(tiny_head, placed):
    affine = np.diag([2.5, -2.5, 2.5, 1.0])
    affine[:3, 3] = (-95, 120, -120)
    array = resample(tiny_head.intensities, tiny_head.affine, (77, 97, 97), affine, order=3)
    found = measure(tiny_head, {"other grid": Volume(array, affine)}, *placed)
    assert found["other grid"]["face"].mean < 0.15


def test_progress_names_each_image_and_can_stop_the_work(tiny_head, placed):
    seen = []

    def stop_at_the_second(progress):
        seen.append(progress.message)
        if progress.message == "second":
            raise Cancelled

    with pytest.raises(Cancelled):
        measure(tiny_head, {"first": tiny_head, "second": tiny_head}, *placed, on_progress=stop_at_the_second)
    assert seen == ["skin of the original", "first", "second"]


def test_the_removed_region_ends_one_voxel_from_the_mask(tiny_head, measured, removed):
    region = removed_region(measured.original, tiny_head, removed)
    index = (measured.original.points - tiny_head.affine[:3, 3]) / 3.0
    assert region.any() and not region[index[:, 1] < 60.4].any() and not region[index[:, 2] > 45.6].any()
    assert region[(index[:, 1] > 62) & (index[:, 2] < 44)].all()


def test_a_mask_on_another_grid_is_refused(tiny_head, placed):
    with pytest.raises(RefaceRiskError, match="mask"):
        measure(tiny_head, {"same": tiny_head}, *placed, removed=np.ones((3, 3, 3), bool))


def test_the_table_is_written_with_its_columns(measured, tmp_path):
    lines = measured.save_tsv(tmp_path / "distances.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0].split("\t") == list(COLUMNS)
    assert len(lines) == 1 + len(measured.rows())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["distances.tsv"]


def test_skins_are_kept_with_the_distance_of_each_point_from_the_original(measured, tmp_path):
    from RefaceRiskLib.jobs import _save_skin

    for name in ("original", "defaced"):
        _save_skin(tmp_path / f"{name}.npz", measured, name)
    with np.load(tmp_path / "defaced.npz") as kept:
        assert len(kept["distance_mm"]) == len(kept["points"])
        assert kept["triangles"].max() < len(kept["points"])
        assert kept["distance_mm"].max() == pytest.approx(measured["defaced"]["face"].max, rel=0.5)
        assert np.median(kept["distance_mm"]) == 0  # most of the head was left as it was
    with np.load(tmp_path / "original.npz") as kept:
        assert not kept["distance_mm"].any()
    assert not list(tmp_path.glob(".*"))
