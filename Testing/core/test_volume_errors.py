"""What is wrong with a file is said in one line: which file, what is wrong, what to do."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.volumes import Meta, Volume, check_head, load, save

SHAPE = (6, 7, 8)


def refusal(path, check=False) -> str:
    """The line that a user reads; fails if there is none, or if it is not one line with path and hint."""
    with pytest.raises(RefaceRiskError) as caught:
        volume = load(path)
        if check:
            check_head(volume)
    line = str(caught.value)
    assert "\n" not in line and "\r" not in line
    assert line.startswith(f"{path}: ")
    assert "; " in line and caught.value.hint
    return line


def nifti(path, voxels=None, affine=None, **fields):
    voxels = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) if voxels is None else voxels
    image = nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    nib.save(image, path)
    if fields:
        data = bytearray(path.read_bytes())
        header = np.frombuffer(data, nib.Nifti1Header.template_dtype, 1)
        for name, value in fields.items():
            header[name] = value
        path.write_bytes(bytes(data))
    return path


def dicom_series(folder, positions, description="T1", instance=1, size=(8, 9), **tags):
    """Slices with GDCM's own writer; positions (N, 3) LPS mm."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for n, position in enumerate(positions):
        values = np.random.default_rng(n).integers(0, 1000, (1, *size[::-1]), dtype=np.int16)
        image = sitk.GetImageFromArray(values)
        image.SetSpacing((1.0, 1.5, 2.0))
        image.SetMetaData("0008|0060", "MR")
        image.SetMetaData("0008|0016", "1.2.840.10008.5.1.4.1.1.4")
        image.SetMetaData("0020|000d", "1.2.3")
        image.SetMetaData("0020|000e", f"1.2.3.{instance}")
        image.SetMetaData("0008|0018", f"1.2.3.{instance}.{n + 1}")
        image.SetMetaData("0008|103e", description)
        image.SetMetaData("0020|0032", "\\".join(f"{x:g}" for x in position))
        image.SetMetaData("0020|0037", tags.get("orientation", "1\\0\\0\\0\\1\\0"))
        image.SetMetaData("0020|0013", str(n + 1))
        writer.SetFileName(str(folder / f"{description}_{instance}_{n:03d}.dcm"))
        writer.Execute(image)
    return folder


def along_z(*depths):
    return [(0, 0, z) for z in depths]


def test_a_missing_file(tmp_path):
    assert "no such file" in refusal(tmp_path / "nothing.nii.gz")


def test_a_name_with_blanks_and_line_breaks_stays_one_line(tmp_path):
    error = RefaceRiskError("broken\nbadly", "do\nthis", tmp_path / "two  blanks\nand a break.nii")
    assert "\n" not in str(error) and "two  blanks" in str(error)


def test_an_error_survives_the_way_from_a_child_process():
    error = pickle.loads(pickle.dumps(RefaceRiskError("what", "hint", "a.nii")))
    assert str(error) == "a.nii: what; hint" and (error.what, error.hint, error.path) == (
        "what",
        "hint",
        "a.nii",
    )
    assert str(RefaceRiskError("what")) == "what"


@pytest.mark.parametrize("name", ["head.txt", "head", "head.img", "head.hdr", "head.gz"])
def test_an_unknown_file_type(tmp_path, name):
    (tmp_path / name).write_bytes(b"x" * 1000)
    assert ".nii.gz" in refusal(tmp_path / name)


def test_a_folder_without_dicom(tmp_path):
    (tmp_path / "notes.txt").write_text("no slices here")
    assert "no DICOM" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mgz"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_gzip(tmp_path, tiny_head, name, share):
    whole = save(tiny_head, tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    assert "cut off" in refusal(tmp_path / name)


def test_a_damaged_gzip(tmp_path, tiny_head):
    data = bytearray(save(tiny_head, tmp_path / "a.nii.gz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.nii.gz").write_bytes(bytes(data))
    assert "gzip" in refusal(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("name", ["a.nii", "a.mgh", "a.nrrd", "a.mha"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.7])
def test_a_file_that_ends_early(tmp_path, tiny_head, name, share):
    whole = save(tiny_head, tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgh", "a.mgz", "a.nrrd", "a.mha"])
def test_a_file_of_another_kind_under_a_known_name(tmp_path, name):
    (tmp_path / name).write_bytes(os.urandom(5000))
    refusal(tmp_path / name)


@pytest.mark.parametrize(
    "fields",
    [
        {"dim": [9, 1, 1, 1, 1, 1, 1, 1]},
        {"dim": [3, -6, 7, 8, 1, 1, 1, 1]},
        {"dim": [3, 0, 7, 8, 1, 1, 1, 1]},
        {"datatype": 999},
        {"magic": b"xyz"},
        {"magic": b"ni1"},
        {"vox_offset": np.nan},
        {"vox_offset": 12},
        {"scl_slope": 2, "scl_inter": np.nan},
        {"sizeof_hdr": 349},
        {"sform_code": 0, "qform_code": 1, "quatern_b": 3},
    ],
)
def test_a_corrupt_nifti_header(tmp_path, fields):
    refusal(nifti(tmp_path / "a.nii", **fields))


def test_a_header_that_promises_more_than_memory_holds(tmp_path):
    assert "ends early" in refusal(nifti(tmp_path / "a.nii", dim=[3, 32000, 32000, 32000, 1, 1, 1, 1]))


@pytest.mark.parametrize("extension", [".nii.gz", ".mgz", ".nrrd"])
def test_a_4d_file_is_refused_with_a_command_that_splits_it(tmp_path, extension):
    series = np.arange(np.prod(SHAPE) * 3, dtype=np.int16).reshape(*SHAPE, 3)
    path = tmp_path / f"a $b 'series'{extension}"
    if extension == ".nrrd":
        sitk.WriteImage(sitk.GetImageFromArray(series.T, isVector=False), str(path))
    else:
        kind = nib.MGHImage if extension == ".mgz" else nib.Nifti1Image
        nib.save(kind(series.astype(np.int16), np.eye(4)), path)
    line = refusal(path)
    assert "4-D" in line and "6 x 7 x 8 x 3" in line
    command = re.search(r"split it: (python .*)$", line).group(1)
    command = command.replace("python", f'"{sys.executable}"', 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    volumes = sorted(tmp_path.glob("volume_*"))
    assert len(volumes) == 3
    for n, file in enumerate(volumes):
        np.testing.assert_array_equal(load(file).voxels, series[..., n])


def test_an_nrrd_with_several_values_a_voxel_is_refused_with_a_command_that_splits_it(tmp_path):
    series = np.arange(np.prod(SHAPE) * 3, dtype=np.uint8).reshape(*SHAPE, 3)
    sitk.WriteImage(sitk.GetImageFromArray(series.transpose(2, 1, 0, 3), isVector=True), str(tmp_path / "a.nrrd"))
    line = refusal(tmp_path / "a.nrrd")
    assert "colour" in line
    command = re.search(r"split it: (python .*)$", line).group(1).replace("python", f'"{sys.executable}"', 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    np.testing.assert_array_equal(load(tmp_path / "volume_0001.nrrd").voxels, series[..., 1])


def test_a_2d_image(tmp_path):
    assert "2-D" in refusal(nifti(tmp_path / "a.nii", np.zeros((6, 7), np.int16)))


def test_colour_and_complex_voxels(tmp_path):
    colour = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "colour" in refusal(nifti(tmp_path / "rgb.nii", colour))
    assert "complex" in refusal(nifti(tmp_path / "complex.nii", np.ones(SHAPE, np.complex64)))


@pytest.mark.parametrize("extension", [".nii", ".nrrd"])
def test_nan_and_infinite_voxels_are_counted(tmp_path, extension):
    voxels = np.ones(SHAPE, np.float32)
    voxels[0, 0, :3] = np.nan
    voxels[1, 1, 1] = np.inf
    save(Volume(voxels, np.eye(4)), tmp_path / f"a{extension}")
    assert "4 voxels are NaN or infinite" in refusal(tmp_path / f"a{extension}")


@pytest.mark.parametrize("name", ["a.nii", "a b.nii.gz", "a.mgz", "a.nrrd"])
def test_the_command_for_nan_voxels_works(tmp_path, name):
    voxels = np.full(SHAPE, 5, np.float32)
    voxels[0, 0, 0], voxels[1, 1, 1] = np.nan, -np.inf
    save(Volume(voxels, np.eye(4)), tmp_path / name)
    command = re.search(r"(python .*)$", refusal(tmp_path / name)).group(1)
    subprocess.run(command.replace("python", f'"{sys.executable}"', 1), shell=True, check=True, cwd=tmp_path)
    (cleaned,) = tmp_path.glob("finite*")
    assert load(cleaned).voxels.ravel()[0] == 0 and load(cleaned).voxels.sum() == 5 * (np.prod(SHAPE) - 2)


def test_an_affine_that_cannot_be_inverted(tmp_path):
    affine = np.eye(4)
    affine[2, 2] = 0
    path = nifti(tmp_path / "a.nii", srow_z=[0, 0, 0, 0])
    assert "inverted" in refusal(path)
    assert "inverted" in refusal(nifti(tmp_path / "nan.nii", srow_x=[np.nan, 0, 0, 0]))


@pytest.mark.parametrize(("degrees", "refused"), [(50, True), (61, False), (75, False), (90, False)])
def test_an_affine_sheared_beyond_sense(tmp_path, degrees, refused):
    affine = np.eye(4)
    affine[:2, 1] = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    path = nifti(tmp_path / "a.nii", affine=affine)
    if refused:
        assert "sheared" in refusal(path) and "50 degrees" in refusal(path)
    else:
        load(path)


@pytest.mark.parametrize("size", [0.001, 0.05, 25.0])
def test_absurd_voxel_sizes(tmp_path, size):
    path = nifti(tmp_path / "a.nii", affine=np.diag([1, size, 1, 1]))
    assert "voxels of" in refusal(path) and f"{size:.3g}" in refusal(path)


def head_like(array, spacing=2.0) -> Volume:
    return Volume(np.asarray(array, np.float32), np.diag([spacing, spacing, spacing, 1.0]), Meta(path=None))


def test_an_empty_and_a_constant_image(tmp_path):
    save(head_like(np.zeros((90, 90, 90))), tmp_path / "empty.nii.gz")
    assert "is empty" in refusal(tmp_path / "empty.nii.gz", check=True)
    save(head_like(np.full((90, 90, 90), 7)), tmp_path / "constant.nii.gz")
    assert "is constant (all voxels are 7)" in refusal(tmp_path / "constant.nii.gz", check=True)


def not_heads():
    rng = np.random.default_rng(0)
    shape = (100, 110, 100)
    index = np.indices(shape).transpose(1, 2, 3, 0)
    radius = np.linalg.norm((index - 50) * 2.0, axis=-1)
    air = np.abs(rng.normal(size=shape) + 1j * rng.normal(size=shape))
    return {
        "noise": rng.normal(size=shape),
        "air": air,
        "air under a receive coil": air * (1 + index[..., 0] / 100),
        "salt": rng.random(shape) > 0.999,
        "a single voxel": radius == 0,
        "a small sphere": 100.0 * (radius < 30) + air,
        "a half-empty box": 1.0 * (index[..., 1] > 50),
        "a box with a rim": 1.0 * (index[..., 1] > 20),
        "a ramp": index.sum(-1),
    }


@pytest.mark.parametrize("name", list(not_heads()))
def test_a_volume_without_a_head(name):
    with pytest.raises(RefaceRiskError, match="no head in this volume"):
        check_head(head_like(not_heads()[name]))


def test_a_synthetic_head_is_a_head_however_it_lies_or_is_scaled(tiny_head):
    check_head(tiny_head)
    check_head(tiny_head.with_intensities(tiny_head.intensities * 1e-4 - 3))
    outlier = np.array(tiny_head.intensities)
    outlier[0, 0, 0] = 1e6
    check_head(tiny_head.with_intensities(outlier))
    noisy = tiny_head.intensities + np.random.default_rng(0).normal(0, 150, tiny_head.shape)
    check_head(tiny_head.with_intensities(np.abs(noisy)))


def test_a_dicom_series_is_sorted_by_position_and_read_in_place(tmp_path):
    folder = dicom_series(tmp_path / "s", [(5, 6, z) for z in (4, 0, 2, 6)])
    volume = load(folder)
    assert volume.shape == (8, 9, 4)
    np.testing.assert_allclose(volume.affine, [[-1, 0, 0, -5], [0, -1.5, 0, -6], [0, 0, 2, 0], [0, 0, 0, 1]])
    second = np.random.default_rng(1).integers(0, 1000, (9, 8), dtype=np.int16).T
    np.testing.assert_array_equal(volume.voxels[..., 0], second)


def test_a_dicom_series_with_a_tilted_gantry_is_sheared_not_straightened(tmp_path):
    volume = load(dicom_series(tmp_path / "s", [(0, 0.5 * n, 2 * n) for n in range(5)]))
    np.testing.assert_allclose(volume.affine[:3, 2], (0, -0.5, 2), atol=1e-9)


def test_missing_and_uneven_dicom_slices_are_named(tmp_path):
    line = refusal(dicom_series(tmp_path / "gap", along_z(0, 2, 4, 8, 10, 12)))
    assert "1 DICOM slice is missing" in line and "T1_1_002.dcm and T1_1_003.dcm" in line
    assert "3 DICOM slices are missing" in refusal(dicom_series(tmp_path / "gaps", along_z(0, 2, 4, 8, 10, 16, 18)))
    assert "not evenly spaced" in refusal(dicom_series(tmp_path / "uneven", along_z(0, 2, 4, 7, 9, 11)))


def test_a_dicom_time_series_is_refused(tmp_path):
    assert "same place" in refusal(dicom_series(tmp_path / "s", along_z(0, 2, 4, 0, 2, 4)))


def test_several_dicom_series_in_a_folder_are_named(tmp_path):
    folder = dicom_series(tmp_path / "s", along_z(0, 2, 4), "T1 mprage", 1)
    dicom_series(folder, along_z(0, 2, 4, 6), "T2 space", 2)
    line = refusal(folder)
    assert "2 DICOM series" in line and "'T1 mprage' (3 files" in line and "'T2 space' (4 files" in line


def test_dicom_slices_that_do_not_belong_together(tmp_path):
    folder = dicom_series(tmp_path / "s", along_z(0, 2, 4))
    dicom_series(folder, along_z(6), description="localiser", orientation="0\\1\\0\\0\\0\\-1")
    assert "not parallel" in refusal(folder)
    folder = dicom_series(tmp_path / "sizes", along_z(0, 2, 4))
    dicom_series(folder, along_z(6), description="big", size=(9, 9))
    assert "differ in size" in refusal(folder)


def test_a_single_dicom_slice(tmp_path):
    folder = dicom_series(tmp_path / "s", along_z(0))
    assert "single DICOM slice" in refusal(folder)
    assert "single DICOM slice" in refusal(next(folder.iterdir()))


def test_a_real_dicom_series_with_a_slice_taken_out(shared_data, tmp_path):
    files = sorted((shared_data / "ct" / "example_ct_dicom").glob("*.dcm"))
    for file in files[:7] + files[8:]:
        (tmp_path / file.name).symlink_to(file)
    line = refusal(tmp_path)
    assert "1 DICOM slice is missing" in line and files[6].name in line and files[8].name in line


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.nhdr", "a.dcm"])
def test_a_file_type_that_cannot_be_written(tmp_path, tiny_head, name):
    with pytest.raises(RefaceRiskError, match=r"cannot write.*\.nii\.gz"):
        save(tiny_head, tmp_path / name)


def test_an_output_folder_that_does_not_exist(tmp_path, tiny_head):
    with pytest.raises(RefaceRiskError, match="does not exist"):
        save(tiny_head, tmp_path / "nowhere" / "a.nii.gz")


def test_a_file_that_may_not_be_read(tmp_path, tiny_head):
    path = save(tiny_head, tmp_path / "a.nii.gz")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    assert "cannot be read" in refusal(path)


def test_a_nifti_file_may_be_zipped_or_not_whatever_its_name_says(tmp_path, tiny_head):
    save(tiny_head, tmp_path / "a.nii")
    (tmp_path / "plain.nii.gz").write_bytes((tmp_path / "a.nii").read_bytes())
    (tmp_path / "zipped.nii").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    for name in ("plain.nii.gz", "zipped.nii"):
        np.testing.assert_array_equal(load(tmp_path / name).voxels, tiny_head.voxels)
