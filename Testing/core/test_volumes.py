"""Volumes are read and written without loss, and moved between grids without losing their place."""

from __future__ import annotations

import gzip
import itertools
import json
import pickle

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.volumes import (
    Meta,
    Volume,
    bounding_box,
    check_head,
    crop,
    from_sitk,
    grid_points,
    load,
    paste,
    reorient,
    resample,
    sample,
    save,
    sha256_of,
    sidecar,
    to_sitk,
)

SHAPE = (5, 6, 7)
ORIENTATIONS = [
    "".join(codes) for order in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*order)
]
NIFTI_TYPES = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
quick = settings(max_examples=20, deadline=None)


def oblique_affine(seed: int, spacing=(0.9, 1.1, 3.0)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() * spacing
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    return affine


def oriented_affine(axcodes: str) -> np.ndarray:
    """Voxels of 1 x 2 x 3 mm, tilted by 8 degrees, whose axes point nearest to ``axcodes``."""
    affine = np.zeros((4, 4))
    for axis, code in enumerate(axcodes):
        world = next(w for w, codes in enumerate(("RL", "AP", "SI")) if code in codes)
        affine[world, axis] = (axis + 1) * (1 if code in "RAS" else -1)
    affine[:3, :3] = Rotation.from_euler("xyz", [8, -5, 3], degrees=True).as_matrix() @ affine[:3, :3]
    affine[:, 3] = (10, -20, 30, 1)
    return affine


def numbers(dtype: str, seed: int = 0) -> np.ndarray:
    raw = np.random.default_rng(seed).integers(0, 256, (*SHAPE, np.dtype(dtype).itemsize), dtype=np.uint8)
    if np.dtype(dtype).kind == "f":
        return np.random.default_rng(seed).normal(0, 1000, SHAPE).astype(dtype)
    return raw.view(dtype)[..., 0]


def rich_nifti(path, kind=nib.Nifti1Image, dtype="i2", byte_order="<", slope=None, intercept=0.0):
    """A NIfTI file with everything a file can carry: two different forms, extensions, texts, odd fields."""
    header = kind.header_class(endianness=byte_order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(byte_order))
    image = kind(numbers(dtype), None, header)
    image.set_sform(oblique_affine(1), 4)
    image.set_qform(oblique_affine(2, (0.8, 1.3, 2.0)), 1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"], image.header["aux_file"] = b"FreeSurfer something", b"aux"
    image.header["intent_name"], image.header["toffset"] = b"T1w", 12.5
    image.header["cal_max"], image.header["dim_info"] = 800, 27
    image.header["slice_code"], image.header["slice_duration"] = 3, 0.25
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"scanned upside down"))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(44, b"\x00\x01\x02binary"))
    nib.save(image, path)
    data = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    if slope is not None:
        fields = np.frombuffer(data, kind.header_class.template_dtype.newbyteorder(byte_order), 1)
        fields["scl_slope"], fields["scl_inter"] = slope, intercept
    path.write_bytes(gzip.compress(bytes(data)) if path.suffix == ".gz" else bytes(data))
    return bytes(data)


def unzipped(path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("byte_order", "<>")
@pytest.mark.parametrize("dtype", NIFTI_TYPES)
def test_a_nifti_file_that_is_only_read_and_written_stays_the_same_byte_for_byte(tmp_path, kind, byte_order, dtype):
    before = rich_nifti(tmp_path / "in.nii", kind, dtype, byte_order, slope=0.37, intercept=-3.0)
    volume = load(tmp_path / "in.nii")
    save(volume, tmp_path / "out.nii.gz")
    assert unzipped(tmp_path / "out.nii.gz") == before
    reference = nib.load(tmp_path / "in.nii")
    np.testing.assert_array_equal(volume.affine, reference.affine)
    np.testing.assert_allclose(volume.intensities, reference.get_fdata(), rtol=2e-6, atol=1e-3)
    assert volume.voxels.dtype == np.dtype(dtype)


def test_a_replaced_volume_differs_in_its_file_only_inside_the_mask(tmp_path):
    before = rich_nifti(tmp_path / "in.nii.gz", slope=0.5, intercept=10.0)
    volume = load(tmp_path / "in.nii.gz")
    mask = np.zeros(SHAPE, bool)
    mask[1:3, 2:4, 3:6] = True
    save(volume.replaced(mask, 0.0), tmp_path / "out.nii.gz")
    after = unzipped(tmp_path / "out.nii.gz")
    start = len(before) - volume.voxels.nbytes
    assert after[:start] == before[:start]
    old, new = (np.frombuffer(data, "<i2", -1, start).reshape(SHAPE, order="F") for data in (before, after))
    np.testing.assert_array_equal(old[~mask], new[~mask])
    assert (new[mask] == -20).all()
    assert (load(tmp_path / "out.nii.gz").intensities[mask] == 0).all()


def test_a_note_changes_only_the_description(tmp_path):
    before = rich_nifti(tmp_path / "in.nii")
    save(load(tmp_path / "in.nii").noted(description="refaced; synthetic " + "x" * 90), tmp_path / "out.nii")
    after = unzipped(tmp_path / "out.nii")
    changed = [n for n, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert set(changed) <= set(range(148, 148 + 80))
    assert nib.load(tmp_path / "out.nii").header["descrip"].item() == b"refaced; synthetic " + b"x" * 60


def test_the_same_volume_gives_the_same_file_at_any_time(tmp_path, tiny_head, monkeypatch):
    first = save(tiny_head, tmp_path / "a.nii.gz").read_bytes()
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert save(tiny_head, tmp_path / "b.nii.gz").read_bytes() == first


@pytest.mark.parametrize("forms", [(0, 0), (1, 0), (0, 2), (3, 4)])
@pytest.mark.parametrize("flip", [1, -1])
def test_the_affine_is_the_one_that_nibabel_takes(tmp_path, forms, flip):
    rich_nifti(tmp_path / "in.nii")
    image = nib.load(tmp_path / "in.nii")
    qform = image.get_qform() @ np.diag([1, 1, flip, 1])
    image.set_qform(qform, forms[0])
    image.set_sform(image.get_sform(), forms[1])
    nib.save(image, tmp_path / "forms.nii")
    np.testing.assert_allclose(load(tmp_path / "forms.nii").affine, nib.load(tmp_path / "forms.nii").affine, atol=1e-5)


def test_a_cropped_and_turned_nifti_keeps_both_forms_in_their_own_spaces(tmp_path):
    rich_nifti(tmp_path / "in.nii")
    volume = load(tmp_path / "in.nii")
    box = (slice(1, 4), slice(2, 6), slice(0, 5))
    save(reorient(crop(volume, box), "LPI"), tmp_path / "out.nii")
    old, new = nib.load(tmp_path / "in.nii"), nib.load(tmp_path / "out.nii")
    assert (new.header["qform_code"], new.header["sform_code"]) == (1, 4)
    assert nib.aff2axcodes(new.affine) == ("L", "P", "I")
    values = np.asarray(old.dataobj)
    for index in [(0, 0, 0), (2, 1, 1), (1, 2, 2)]:
        value = new.dataobj[index]
        was = np.argwhere(values == value)
        assert len(was) == 1
        for form in ("get_qform", "get_sform"):
            np.testing.assert_allclose(
                nib.affines.apply_affine(getattr(new, form)(), index),
                nib.affines.apply_affine(getattr(old, form)(), was[0]),
                atol=1e-3,
            )


def test_a_volume_stored_with_a_fourth_axis_of_one_is_3d_and_goes_back_as_it_was(tmp_path):
    image = nib.Nifti1Image(numbers("i2")[..., None], oblique_affine(3))
    nib.save(image, tmp_path / "in.nii")
    volume = load(tmp_path / "in.nii")
    assert volume.shape == SHAPE
    save(volume, tmp_path / "out.nii")
    assert (tmp_path / "out.nii").read_bytes() == (tmp_path / "in.nii").read_bytes()


def test_new_intensities_take_the_header_along_but_not_its_scaling(tmp_path):
    rich_nifti(tmp_path / "in.nii", dtype="u1", slope=4.0, intercept=-2.0)
    volume = load(tmp_path / "in.nii")
    image = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    save(volume.with_intensities(image), tmp_path / "out.nii")
    reference = nib.load(tmp_path / "out.nii")
    assert reference.get_data_dtype() == np.float32
    np.testing.assert_array_equal(reference.get_fdata(dtype=np.float32), image)
    assert len(reference.header.extensions) == 2
    assert reference.header["sform_code"] == 4 and reference.header["cal_max"] == 0


@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".mgz", ".mgh", ".nrrd", ".mha"])
def test_every_format_keeps_numbers_and_place(tmp_path, extension):
    for dtype in ("u1", "i2", "i4", "f4"):
        volume = Volume(numbers(dtype), oblique_affine(5))
        copy = load(save(volume, tmp_path / f"{dtype}{extension}"))
        assert copy.voxels.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(copy.voxels, volume.voxels)
        np.testing.assert_allclose(copy.affine, volume.affine, atol=2e-5)
        assert copy.meta.sha256 == sha256_of(tmp_path / f"{dtype}{extension}")


@pytest.mark.parametrize("target", [".nii.gz", ".mgz", ".nrrd"])
@pytest.mark.parametrize("source", [".nii", ".mgz", ".nrrd"])
def test_a_volume_can_be_saved_in_another_format_than_it_came_in(tmp_path, source, target):
    original = load(save(Volume(numbers("i2"), oblique_affine(7)), tmp_path / f"in{source}"))
    copy = load(save(original, tmp_path / f"out{target}"))
    np.testing.assert_array_equal(copy.voxels, original.voxels)
    np.testing.assert_allclose(copy.affine, original.affine, atol=2e-5)


@pytest.mark.parametrize("target", [".nii", ".mgz", ".nrrd"])
def test_scaled_intensities_arrive_in_formats_with_and_without_scaling(tmp_path, target):
    volume = Volume(numbers("u1"), oblique_affine(7), Meta(slope=0.25, intercept=-7.0))
    copy = load(save(volume, tmp_path / f"out{target}"))
    np.testing.assert_array_equal(copy.intensities, numbers("u1") * 0.25 - 7)


@pytest.mark.parametrize("dtype", [*NIFTI_TYPES, "bool", "f2", ">i2", ">f4"])
@pytest.mark.parametrize("extension", [".nii", ".mgz", ".nrrd"])
def test_types_that_a_format_lacks_are_stored_in_one_that_holds_them(tmp_path, dtype, extension):
    values = np.arange(210).reshape(SHAPE) % 100
    volume = Volume(values.astype(dtype), np.eye(4))
    np.testing.assert_array_equal(load(save(volume, tmp_path / f"a{extension}")).voxels, values.astype(dtype))


def test_an_mgz_file_keeps_its_footer_and_agrees_with_nibabel(tmp_path):
    image = nib.MGHImage(numbers("i2"), oblique_affine(4))
    image.header["tr"] = 2300.0
    nib.save(image, tmp_path / "plain.mgh")
    with open(tmp_path / "plain.mgh", "ab") as file:
        file.write(b"\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x05mri_c")
    volume = load(tmp_path / "plain.mgh")
    np.testing.assert_allclose(volume.affine, nib.load(tmp_path / "plain.mgh").affine, atol=1e-5)
    save(volume, tmp_path / "out.mgz")
    assert unzipped(tmp_path / "out.mgz") == (tmp_path / "plain.mgh").read_bytes()
    fresh = nib.load(save(Volume(numbers("f4"), oblique_affine(6)), tmp_path / "fresh.mgz"))
    np.testing.assert_allclose(fresh.affine, oblique_affine(6), atol=1e-4)
    np.testing.assert_array_equal(fresh.get_fdata(), numbers("f4"))


def test_an_nrrd_file_in_ras_space_lies_where_its_header_says(tmp_path):
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 5 6 7\nencoding: gzip\n"
        "endian: little\nspace directions: (0,2,0) (-1,0,0) (0,0.3,3)\nspace origin: (1,2,3)\n"
        "site:=upstairs\n\n"
    )
    values = numbers("i2")
    data = header.encode() + gzip.compress(values.tobytes(order="F"))
    (tmp_path / "in.nrrd").write_bytes(data)
    volume = load(tmp_path / "in.nrrd")
    expected = [[0, -1, 0, 1], [2, 0, 0.3, 2], [0, 0, 3, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-6)
    np.testing.assert_array_equal(volume.voxels, values)
    copy = load(save(volume.noted(description="defaced"), tmp_path / "out.nrrd"))
    np.testing.assert_allclose(copy.affine, expected, atol=1e-6)
    np.testing.assert_array_equal(copy.voxels, values)
    assert copy.meta.header == {"site": "upstairs", "description": "defaced"}


@pytest.mark.parametrize("axcodes", ORIENTATIONS)
def test_all_48_orientations_keep_their_place_through_files_and_turning(tmp_path, axcodes):
    affine = oriented_affine(axcodes)
    volume = Volume(np.arange(210, dtype=np.int16).reshape(SHAPE), affine)
    assert volume.axcodes == axcodes == "".join(nib.aff2axcodes(affine))
    reference = nib.load(save(volume, tmp_path / "a.nii"))
    np.testing.assert_allclose(reference.get_qform(), affine, atol=1e-4)
    np.testing.assert_allclose(reference.get_sform(), affine, atol=1e-4)
    ras = reorient(volume, "RAS")
    assert ras.axcodes == "RAS"
    canonical = nib.as_closest_canonical(nib.Nifti1Image(volume.voxels, affine))
    np.testing.assert_array_equal(ras.voxels, np.asarray(canonical.dataobj))
    np.testing.assert_allclose(ras.affine, canonical.affine, atol=1e-12)
    back = reorient(ras, axcodes)
    np.testing.assert_array_equal(back.voxels, volume.voxels)
    np.testing.assert_allclose(back.affine, affine, atol=1e-12)
    np.testing.assert_allclose(from_sitk(to_sitk(volume)).affine, affine, atol=1e-12)


@quick
@given(st.integers(0, 10_000), st.sampled_from(ORIENTATIONS))
def test_turning_moves_no_voxel_in_space(seed, axcodes):
    volume = Volume(np.random.default_rng(seed).permutation(210).reshape(SHAPE), oblique_affine(seed))
    turned = reorient(volume, axcodes)
    assert turned.axcodes == axcodes == "".join(nib.aff2axcodes(turned.affine))
    places = grid_points(volume.shape, volume.affine)[np.unravel_index(np.argsort(volume.voxels, None), SHAPE)]
    order = np.unravel_index(np.argsort(turned.voxels, None), turned.shape)
    np.testing.assert_allclose(grid_points(turned.shape, turned.affine)[order], places, atol=1e-9)


@quick
@given(
    st.integers(0, 10_000),
    st.sampled_from(NIFTI_TYPES),
    st.sampled_from([(1.0, 0.0), (0.1, -5.0), (-2.0, 100.0)]),
)
def test_replacing_keeps_every_bit_outside_and_rounds_and_clips_inside(seed, dtype, scaling):
    volume = Volume(numbers(dtype, seed), np.eye(4), Meta(*scaling))
    rng = np.random.default_rng(seed)
    mask = rng.random(SHAPE) < 0.3
    values = rng.normal(0, 300, int(mask.sum()))
    new = volume.replaced(mask, values)
    assert new.voxels.dtype == volume.voxels.dtype
    assert new.voxels[~mask].tobytes() == volume.voxels[~mask].tobytes()
    if np.dtype(dtype).kind == "f":
        np.testing.assert_allclose(new.intensities[mask], values, rtol=1e-5, atol=1e-4)
    else:
        info = np.iinfo(dtype)
        ends = np.sort([float(end) * scaling[0] + scaling[1] for end in (info.min, info.max)])
        half = abs(scaling[0]) / 2
        clipped = np.clip(values, *ends)
        assert (np.abs(new.intensities[mask] - clipped) <= half * 1.001 + 1e-3).all()
    whole = np.zeros(SHAPE)
    whole[mask] = values
    np.testing.assert_array_equal(volume.replaced(mask, whole).voxels, new.voxels)


def test_replacing_keeps_the_bits_of_a_nan_with_a_payload():
    bits = np.full(SHAPE, 0x7FC01234, np.uint32)
    volume = Volume(bits.view(np.float32), np.eye(4))
    mask = np.zeros(SHAPE, bool)
    mask[0] = True
    assert (volume.replaced(mask, 1.0).voxels[~mask].view(np.uint32) == 0x7FC01234).all()


def test_the_ends_of_64_bit_integers_do_not_wrap_round():
    for dtype in ("i8", "u8"):
        volume = Volume(np.zeros(SHAPE, dtype), np.eye(4))
        new = volume.replaced(np.ones(SHAPE, bool), 1e30)
        assert (new.voxels == np.iinfo(dtype).max).all()


def test_replacing_refuses_values_that_cannot_be_stored():
    volume = Volume(numbers("i2"), np.eye(4))
    with pytest.raises(ValueError, match="NaN"):
        volume.replaced(np.ones(SHAPE, bool), np.nan)
    with pytest.raises(ValueError, match="shape"):
        volume.replaced(np.ones(SHAPE, bool), np.zeros(3))
    with pytest.raises(ValueError, match="mask"):
        volume.replaced(np.ones((2, 2, 2), bool), 0)


def test_a_volume_cannot_be_changed_in_place():
    volume = Volume(numbers("i2"), np.eye(4))
    with pytest.raises(ValueError, match="read-only"):
        volume.voxels[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        volume.intensities[0, 0, 0] = 1


def test_a_volume_goes_to_another_process_with_all_that_its_file_said(tmp_path):
    rich_nifti(tmp_path / "in.nii", slope=0.5, intercept=2.0)
    volume = load(tmp_path / "in.nii")
    copy = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(copy.intensities, volume.intensities)
    save(copy, tmp_path / "out.nii")
    assert (tmp_path / "out.nii").read_bytes() == (tmp_path / "in.nii").read_bytes()


def test_the_input_is_never_overwritten(tmp_path):
    source = save(Volume(numbers("i2"), np.eye(4)), tmp_path / "head.nii")
    (tmp_path / "link.nii").symlink_to(source)
    (tmp_path / "hard.nii").hardlink_to(source)
    before = source.read_bytes()
    volume = load(source).replaced(np.ones(SHAPE, bool), 0)
    for name in ("head.nii", "link.nii", "hard.nii", "../" + tmp_path.name + "/head.nii"):
        with pytest.raises(RefaceRiskError, match="never overwritten"):
            save(volume, tmp_path / name)
    assert source.read_bytes() == before


def test_an_input_named_relative_to_another_folder_is_not_overwritten(tmp_path, monkeypatch):
    save(Volume(numbers("i2"), np.eye(4)), tmp_path / "head.nii")
    monkeypatch.chdir(tmp_path)
    volume = load("head.nii")
    monkeypatch.chdir("/")
    with pytest.raises(RefaceRiskError, match="never overwritten"):
        save(volume, tmp_path / "head.nii")


def test_a_failed_save_leaves_the_old_output_and_no_temporary_file(tmp_path, monkeypatch):
    volume = Volume(numbers("i2"), np.eye(4))
    for name in ("out.nii.gz", "out.nrrd", "out.mgz"):
        old = save(volume, tmp_path / name).read_bytes()

        def broken(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("os.replace", broken)
            with pytest.raises(RefaceRiskError, match="No space left"):
                save(volume.replaced(np.ones(SHAPE, bool), 1), tmp_path / name)
        assert (tmp_path / name).read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mgz", "out.nii.gz", "out.nrrd"]


@quick
@given(st.integers(0, 10_000), st.sampled_from([0, 1, 3]))
def test_resampling_onto_its_own_grid_changes_nothing(seed, order):
    volume = Volume(numbers("f4", seed), oblique_affine(seed))
    same = resample(volume.intensities, volume.affine, SHAPE, volume.affine, order=order)
    np.testing.assert_allclose(same, volume.intensities, atol=0 if order < 2 else 0.05)


@quick
@given(st.integers(0, 10_000))
def test_resampling_agrees_with_sampling_at_the_same_points(seed):
    rng = np.random.default_rng(seed)
    array, affine, out = rng.random((9, 8, 7)), oblique_affine(seed), oblique_affine(seed + 1, (2, 1, 1.5))
    matrix = np.eye(4)
    matrix[:3] += rng.normal(0, 0.1, (3, 4))
    points = grid_points(SHAPE, out) @ matrix[:3, :3].T + matrix[:3, 3]
    out[:3, 3] += np.linalg.inv(matrix[:3, :3]) @ (affine[:3] @ (4, 4, 3, 1) - points.mean((0, 1, 2)))
    points = grid_points(SHAPE, out) @ matrix[:3, :3].T + matrix[:3, 3]
    for array_ in (array, np.asfortranarray(array)):
        for order in (0, 1):
            got = resample(array_, affine, SHAPE, out, matrix, order=order, cval=-1)
            expected = sample(array_, affine, points.reshape(-1, 3), order=order, cval=-1).reshape(SHAPE)
            np.testing.assert_allclose(got, expected, atol=1e-4)
            assert (got != -1).sum() > 20


def test_sampling_a_linear_ramp_gives_the_ramp_up_to_the_border():
    affine = oblique_affine(11)
    ramp = grid_points(SHAPE, affine) @ (0.3, -0.2, 0.7)
    rng = np.random.default_rng(0)
    index = rng.random((500, 3)) * (np.array(SHAPE) - 1)
    index[:8] = list(itertools.product(*[(0, n - 1) for n in SHAPE]))
    points = nib.affines.apply_affine(affine, index)
    np.testing.assert_allclose(sample(ramp, affine, points), points @ (0.3, -0.2, 0.7), atol=1e-3)
    assert (sample(ramp, affine, points + 1000, cval=-9.0) == -9).all()


def test_resampling_gives_the_type_that_was_asked_for():
    blob = np.zeros((8, 8, 8), bool)
    blob[2:6, 2:6, 2:6] = True
    half = np.diag([0.5, 0.5, 0.5, 1.0])
    fine = resample(blob, np.eye(4), (16, 16, 16), half, dtype=bool)
    assert fine.dtype == bool and 350 < fine.sum() <= 9**3
    assert resample(blob * 300, np.eye(4), (8, 8, 8), np.eye(4), dtype=np.uint8).max() == 255


@quick
@given(st.integers(0, 10_000))
def test_what_was_cropped_is_pasted_back_where_it_was(seed):
    rng = np.random.default_rng(seed)
    volume = Volume(numbers("i2", seed), oblique_affine(seed), Meta(0.5, 3.0))
    starts = [int(rng.integers(0, n)) for n in SHAPE]
    box = tuple(slice(a, int(rng.integers(a, n)) + 1) for a, n in zip(starts, SHAPE, strict=True))
    part = crop(volume, box)
    empty = volume.replaced(np.ones(SHAPE, bool), 0)
    expected = np.array(empty.voxels)
    expected[box] = volume.voxels[box]
    np.testing.assert_array_equal(paste(part, empty).voxels, expected)
    as_float = part.with_intensities(part.intensities)
    np.testing.assert_array_equal(paste(as_float, empty).voxels, expected)


def test_pasting_leaves_out_what_lies_outside_and_refuses_another_lattice():
    volume = Volume(np.zeros(SHAPE, np.int16), np.eye(4))
    shifted = np.eye(4)
    shifted[:3, 3] = (-2, 4, 5)
    pasted = paste(Volume(np.ones((4, 4, 4), np.int16), shifted), volume)
    assert pasted.voxels.sum() == 2 * 2 * 2 and pasted.voxels[:2, 4:, 5:].all()
    shifted[:3, 3] = 100
    assert paste(Volume(np.ones((4, 4, 4), np.int16), shifted), volume).voxels.sum() == 0
    shifted[:3, 3] = 0.4
    with pytest.raises(ValueError, match="lattice"):
        paste(Volume(np.ones((4, 4, 4), np.int16), shifted), volume)


def test_a_bounding_box_holds_the_mask_and_its_margin_inside_the_grid():
    mask = np.zeros(SHAPE, bool)
    mask[1, 2, 3] = mask[2, 4, 6] = True
    assert bounding_box(mask) == (slice(1, 3), slice(2, 5), slice(3, 7))
    assert bounding_box(mask, 2) == (slice(0, 5), slice(0, 6), slice(1, 7))


def test_the_sidecar_is_json_beside_its_output(tmp_path, tiny_head):
    source = load(save(tiny_head, tmp_path / "in.nii.gz"))
    record = sidecar(
        tmp_path / "sub-1.out.nii.gz",
        method="pydeface",
        seed=np.int64(3),
        share=np.float32(0.5),
        options={"levels": np.arange(3), "mask": None, "on": np.bool_(True)},
        failed=float("nan"),
        path=tmp_path,
        input=source,
    )
    assert record == tmp_path / "sub-1.out.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    assert content.pop("version")
    assert content == {
        "method": "pydeface",
        "seed": 3,
        "share": 0.5,
        "options": {"levels": [0, 1, 2], "mask": None, "on": True},
        "failed": None,
        "path": str(tmp_path),
        "input": {"file": "in.nii.gz", "sha256": sha256_of(tmp_path / "in.nii.gz")},
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.nii.gz", "sub-1.out.json"]


def test_every_real_volume_is_read_as_nibabel_reads_it_and_written_back_unchanged(shared_data, tmp_path):
    files = [
        *sorted(shared_data.glob("cohort_ixi_2mm/*.nii.gz"))[:4],
        *sorted(shared_data.glob("ct/*.nii.gz")),
        *sorted(shared_data.glob("already_defaced/*.nii.gz")),
        *sorted(shared_data.glob("head_1mm/*.nii.gz")),
    ]
    assert len(files) > 10
    for file in files:
        volume, reference = load(file), nib.load(file)
        np.testing.assert_array_equal(volume.affine, reference.affine)
        np.testing.assert_array_equal(volume.voxels, reference.dataobj.get_unscaled())
        np.testing.assert_allclose(volume.intensities, reference.get_fdata(dtype=np.float32), rtol=1e-6, atol=1e-4)
        assert unzipped(save(volume, tmp_path / "out.nii")) == unzipped(file)


def test_real_heads_whole_defaced_and_as_labels_are_heads(shared_data):
    files = [
        *sorted(shared_data.glob("cohort_ixi_2mm/*.nii.gz")),
        *sorted(shared_data.glob("label_heads_1mm/*.nii.gz"))[::5],
        *sorted(shared_data.glob("already_defaced/*.nii.gz")),
        *sorted(shared_data.glob("head_1mm/*.nii.gz")),
    ]
    assert len(files) >= 36
    for file in files:
        check_head(load(file))


def test_a_skull_stripped_brain_is_a_legal_head(shared_data):
    labels = load(shared_data / "label_heads_1mm" / "training_seg_05.nii.gz")
    brain = (labels.voxels > 0) & (labels.voxels < 500) & (labels.voxels != 24)
    stripped = labels.with_intensities(brain * 100.0)
    check_head(stripped)
    check_head(crop(stripped, bounding_box(brain)))


def test_a_real_dicom_series_lies_on_the_grid_of_its_labels(shared_data):
    series = load(shared_data / "ct" / "example_ct_dicom")
    labels = load(shared_data / "ct" / "example_ct_dicom_seg117.nii.gz")
    series = reorient(series, labels.axcodes)
    assert series.shape == labels.shape
    np.testing.assert_allclose(series.affine, labels.affine, atol=1e-3)
    for label, expected in ((86, 24.5), (87, 20.8)):
        assert series.intensities[labels.voxels == label].mean() == pytest.approx(expected, abs=0.1)
    assert series.meta.format == "dicom" and len(series.meta.sha256) == 64


def test_sitk_images_hold_lps_and_the_asked_type(tiny_head):
    image = to_sitk(tiny_head)
    assert image.GetPixelID() == sitk.sitkFloat32
    place = image.TransformIndexToPhysicalPoint((3, 4, 5))
    np.testing.assert_allclose(place * np.array([-1, -1, 1]), (tiny_head.affine @ (3, 4, 5, 1))[:3], atol=1e-9)
    assert image[3, 4, 5] == tiny_head.intensities[3, 4, 5]
    mask = to_sitk((tiny_head.voxels > 300, tiny_head.affine), np.uint8)
    assert mask.GetPixelID() == sitk.sitkUInt8
