"""Defacing: the face goes, the brain and every other voxel stay."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from RefaceRiskLib.defacing import FILLS, METHODS, Head, deface, options_of, prepare
from RefaceRiskLib.defacing.fill import BLUR_MM, filled
from RefaceRiskLib.defacing.pydeface import wedge
from RefaceRiskLib.defacing.quality import assess
from RefaceRiskLib.defacing.quickshear import lower_hull, shear_plane
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.surface.extract import skin_level
from RefaceRiskLib.synthesis import is_brain, t1w_from_labels
from RefaceRiskLib.template import load_template
from RefaceRiskLib.volumes import Volume, load, reorient, resample

METHOD_NAMES = sorted(METHODS)
ORIENTATIONS = ("RAS", "LPS", "PIR", "ASL", "LIA", "SRP")


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


@pytest.fixture(scope="module")
def cohort_head(shared_data) -> Head:
    return prepare(load(shared_data / "cohort_ixi_2mm" / "sub-IXI213_T1w.nii.gz"))


@pytest.fixture(scope="module")
def defaced(head):
    """Name of a method -> its result on the label head; each is run once."""
    prepared, _ = head
    return cache(lambda method: deface(prepared.volume, method, head=prepared, **drawn(prepared, method)))


def drawn(head: Head, method: str) -> dict:
    """What a user would paint: everything before the brow, brain included; only `interactive` asks for it."""
    return {"mask": front(head)} if method == "interactive" else {}


def front(head: Head) -> np.ndarray:
    volume = head.volume
    nasion = head.registration.matrix[:3, :3] @ head.template.landmarks["nasion"] + head.registration.matrix[:3, 3]
    points = np.moveaxis(np.indices(volume.shape, np.float32), 0, -1) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return (points[..., 1] > nasion[1] - 35) & (points[..., 2] < nasion[2] + 20)


def turned(head: Head, axcodes: str) -> Head:
    """The same head in another storage orientation; its registration, in RAS mm, is the same."""
    distance = reorient(Volume(head.brain_distance, head.volume.affine), axcodes).voxels
    return Head(reorient(head.volume, axcodes), head.template, head.registration, distance)


# --- every method ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_no_brain_voxel_is_touched(head, defaced, method):
    _, brain = head
    result = defaced(method)
    assert result.quality.brain_voxels_touched == 0
    assert (result.removed & brain).sum() == 0
    assert result.removed.sum() > 20000


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_untouched_voxels_are_kept_bit_for_bit(head, defaced, method):
    prepared, _ = head
    result = defaced(method)
    before, after = prepared.volume.voxels, result.volume.voxels
    assert before.dtype == after.dtype
    np.testing.assert_array_equal(before[~result.removed], after[~result.removed])
    assert (before[result.removed] != after[result.removed]).any()
    np.testing.assert_array_equal(result.volume.affine, prepared.volume.affine)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_face_is_gone_and_the_verdict_says_so(defaced, method):
    quality = defaced(method).quality
    assert (quality.verdict, quality.reason) == ("ok", "")
    assert quality.face_surface_removed > 0.8


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_same_voxels_go_in_every_storage_orientation(head, cohort_head, method):
    for prepared, orientations in ((head[0], ORIENTATIONS), (cohort_head, ORIENTATIONS[:2])):
        mask = METHODS[method](prepared, **drawn(prepared, method))
        assert not (mask & prepared.brain).any() and mask.any()
        for axcodes in orientations:
            other = turned(prepared, axcodes)
            again = METHODS[method](other, **drawn(other, method))
            assert not (again & other.brain).any()
            expected = reorient(Volume(mask.astype(np.uint8), prepared.volume.affine), axcodes).voxels > 0
            assert (again != expected).sum() <= 2e-4 * expected.sum(), axcodes  # voxels on the very edge


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_margin_is_kept_in_millimetres(head, method):
    prepared, _ = head
    wide = METHODS[method](prepared, margin_mm=14.0, **drawn(prepared, method))
    assert prepared.brain_distance[wide].min() > 13.0
    narrow = METHODS[method](prepared, margin_mm=4.0, **drawn(prepared, method))
    assert wide.sum() < narrow.sum() and not (wide & ~narrow).any()


def test_nothing_removed_is_a_failure_with_a_reason(head):
    prepared, _ = head
    nothing = np.zeros(prepared.volume.shape, bool)
    quality = assess(prepared.volume, nothing, prepared.brain, prepared.registration, prepared.template)
    assert quality.verdict == "failed"
    assert "face" in quality.reason


def test_a_mask_through_the_brain_is_a_failure(head):
    prepared, _ = head
    everything = np.ones(prepared.volume.shape, bool)
    quality = assess(prepared.volume, everything, prepared.brain, prepared.registration, prepared.template)
    assert quality.verdict == "failed"
    assert "brain voxels" in quality.reason


def test_another_storage_orientation_is_registered_alike(head, defaced):
    prepared, _ = head
    again = deface(reorient(prepared.volume, "PIR"), "mri_deface")
    mask = Volume(defaced("mri_deface").removed.astype(np.uint8), prepared.volume.affine)
    same = reorient(mask, "PIR").voxels > 0
    assert dice(same, again.removed) > 0.98


def test_a_real_head_is_defaced_at_its_own_resolution(shared_data):
    volume = load(shared_data / "head_1mm" / "sub-MyConnectome_T1w.nii.gz")
    result = deface(volume, "mri_deface")
    assert result.quality.brain_voxels_touched == 0 and result.quality.face_surface_removed > 0.8
    # This face is thin: mouth and chin lie behind the average's, where the template's shell does not reach.
    assert result.quality.left["mouth"] < 0.05 and result.quality.left["chin"] < 0.05
    kept = ~result.removed
    np.testing.assert_array_equal(volume.voxels[kept], result.volume.voxels[kept])
    assert not result.volume.voxels[result.removed].any()


# --- what each one takes --------------------------------------------------------------------------------------------


def test_fsl_deface_alone_takes_the_ears(head, defaced):
    prepared, _ = head
    template, matrix = prepared.template, prepared.registration.matrix
    volume = prepared.volume
    ears = template.ears & (np.abs(template.skin_distance) < 3)
    ears = resample(ears.astype(np.float32), template.affine, volume.shape, volume.affine, np.linalg.inv(matrix)) > 0.5
    assert defaced("fsl_deface").removed[ears].mean() > 0.9
    assert defaced("pydeface").removed[ears].mean() < 0.05
    assert defaced("mri_deface").removed[ears].mean() < 0.05


def test_skull_strip_leaves_the_brain_and_little_else(head, defaced):
    _, brain = head
    kept = ~defaced("skull_strip").removed
    assert kept[brain].all()
    away_mm = ndimage.distance_transform_edt(~brain, 2.0)[kept]
    assert np.percentile(away_mm, 95) < 16


def test_the_wedge_of_pydeface_holds_eyes_nose_mouth_and_chin():
    template = load_template()
    depth, marks = wedge(template), template.landmarks
    index = {
        name: tuple(np.rint((p - template.affine[:3, 3]) / template.spacing).astype(int)) for name, p in marks.items()
    }
    assert all(depth[index[name]] > 3 for name in ("nasion", "nose_tip", "chin"))
    assert depth[index["ear_left"]] < -30
    assert not (template.brain & (depth > 0)).any()


def test_interactive_keeps_the_mask_of_the_user_off_the_brain(head, defaced):
    prepared, brain = head
    mask, result = front(prepared), defaced("interactive")
    assert (mask & brain).any() and not (result.removed & ~mask).any()
    assert result.removed.sum() > 0.5 * mask.sum()


@pytest.mark.parametrize(
    ("mask", "word"),
    [(None, "needs a mask"), (np.zeros((2, 2, 2)), "mask is"), ("empty", "empty"), ("brain", "nothing to remove")],
)
def test_interactive_refuses_a_mask_that_is_of_no_use(head, mask, word):
    prepared, _ = head
    mask = (
        {"empty": np.zeros(prepared.volume.shape), "brain": prepared.brain}.get(mask, mask)
        if isinstance(mask, str)
        else mask
    )
    with pytest.raises(RefaceRiskError, match=word):
        deface(prepared.volume, "interactive", head=prepared, mask=mask)


# --- quickshear's plane ---------------------------------------------------------------------------------------------


def ellipsoid(spacing, shape, turn=None) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoidal brain of 70 x 85 x 60 mm (radii) on a grid of that spacing: (mask, affine)."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ affine[:3, :3]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    points = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    return ((points / [70, 85, 60]) ** 2).sum(-1) < 1, affine


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (1, 1, 6), (6, 1, 1), (1, 6, 1)])
def test_the_plane_touches_the_brain_from_before_and_below_at_any_spacing(spacing):
    brain, affine = ellipsoid(spacing, tuple(int(200 / s) for s in spacing))
    normal, offset = shear_plane(brain, affine)
    heights = np.argwhere(brain) @ affine[:3, :3].T @ normal + affine[:3, 3] @ normal - offset
    assert heights.min() == pytest.approx(0, abs=1e-6)
    assert normal[0] == 0 and normal[1] < 0 < normal[2]
    nose, crown = np.array([0, 110, -40]), np.array([0, 0, 60])
    assert normal @ nose < offset - 10 and normal @ crown > offset + 40


def test_an_oblique_grid_gives_about_the_same_plane():
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    straight = shear_plane(*ellipsoid((2, 2, 2), (100, 100, 100)))
    oblique = shear_plane(*ellipsoid((2, 2, 2), (100, 100, 100), turn))
    assert straight[1] == pytest.approx(oblique[1], abs=4) and straight[0] @ oblique[0] > 0.97


def test_the_lower_hull_of_a_square_is_its_lower_edge():
    square = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [0.5, 0.5], [0.5, 0]])
    np.testing.assert_array_equal(lower_hull(square), [[0, 0], [1, 0]])


# --- fills ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [fill for fill in FILLS if fill != "average"])  # that one: see average_face above
def test_every_fill_keeps_type_scaling_and_the_outside(cohort_head, fill):
    before = cohort_head.volume
    removed = METHODS["mri_deface"](cohort_head)
    after = filled(cohort_head, removed, fill)
    assert after.voxels.dtype == before.voxels.dtype
    assert (after.meta.slope, after.meta.intercept) == (before.meta.slope, before.meta.intercept)
    np.testing.assert_array_equal(after.voxels[~removed], before.voxels[~removed])
    assert (after.voxels[removed] != before.voxels[removed]).mean() > 0.3
    assert np.array_equal(after.voxels, filled(cohort_head, removed, fill).voxels)


def test_noise_has_the_statistics_of_the_heads_own_air(head):
    prepared, _ = head
    removed = METHODS["mri_deface"](prepared)
    image = prepared.volume.intensities
    air = image[:6][image[:6] < skin_level(prepared.volume)]
    drawn_noise = filled(prepared, removed, "noise", seed=1).intensities[removed]
    assert air.std() > 0
    assert drawn_noise.mean() == pytest.approx(air.mean(), rel=0.1)
    assert drawn_noise.std() == pytest.approx(air.std(), rel=0.1)
    other = filled(prepared, removed, "noise", seed=2).intensities[removed]
    assert (other != drawn_noise).mean() > 0.5


def test_blur_leaves_no_feature_of_the_face(cohort_head):
    """From voxel to voxel hardly anything changes any more, and the mean stays."""
    removed = METHODS["mri_deface"](cohort_head)
    before = cohort_head.volume.intensities
    after = filled(cohort_head, removed, "blur").intensities
    assert after[removed].mean() == pytest.approx(before[removed].mean(), rel=0.25)
    inside = removed & np.roll(removed, 1, 2)
    steps = [np.abs(image - np.roll(image, 1, 2))[inside].mean() for image in (before, after)]
    assert steps[1] < 0.12 * steps[0]
    assert len(np.unique(after[removed])) <= 101  # too coarse to be sharpened again
    assert BLUR_MM >= 20


def test_zero_becomes_air_where_zero_is_tissue(cohort_head):
    """Hounsfield units: air is -1000, and zero would fill the face with water."""
    mri = cohort_head.volume
    hounsfield = np.where(mri.intensities > skin_level(mri), 40.0, -1000.0)
    ct = Head(
        mri.with_intensities(hounsfield, np.int16),
        *(getattr(cohort_head, n) for n in ("template", "registration", "brain_distance")),
    )
    removed = METHODS["mri_deface"](ct)
    assert (filled(ct, removed, "zero").voxels[removed] == -1000).all()
    assert (filled(cohort_head, removed, "zero").voxels[removed] == 0).all()


def test_average_face_draws_unless_told_otherwise(head, defaced):
    prepared, _ = head
    assert options_of("average_face")["fill"] == "average" and options_of("pydeface")["fill"] == "zero"
    result = defaced("average_face")
    tissue = result.volume.intensities > skin_level(prepared.volume)
    assert 0.2 < tissue[result.removed].mean() < 0.9
    emptied = deface(prepared.volume, "average_face", head=prepared, fill="zero")
    assert not emptied.volume.voxels[emptied.removed].any()


# --- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("blur", {}, "unknown defacing method .* choose one of .*pydeface"),
        ("pydeface", {"margin": 3}, "no option 'margin'.*margin_mm, fill, seed, blur_mm"),
        ("interactive", {"margin": 3}, "no option 'margin'.*mask, margin_mm"),
        ("pydeface", {"margin_mm": "wide"}, "margin_mm is 'wide'.*millimetres"),
        ("pydeface", {"margin_mm": -1}, "margin_mm is -1.*millimetres"),
        ("pydeface", {"margin_mm": float("nan")}, "millimetres"),
        ("pydeface", {"blur_mm": 0}, "blur_mm is 0"),
        ("pydeface", {"fill": "snow"}, "unknown fill 'snow'.*zero, noise, blur, average"),
        ("pydeface", {"engine": "fsl"}, "engine 'fsl'.*builtin, original"),
        ("skull_strip", {"engine": "original"}, "unknown original program 'skull_strip'.*quickshear"),
        ("pydeface", {"engine": "original", "fill": "noise"}, "no option 'fill'.*none"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(head, method, options, words):
    prepared, _ = head
    with pytest.raises(RefaceRiskError, match=words) as caught:
        deface(prepared.volume, method, head=prepared, **options)
    assert "\n" not in str(caught.value)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())
