"""A DICOM series out: the person gone from every byte, the pixels as they were but for the removed ones."""

from __future__ import annotations

import builtins
import json
from dataclasses import replace
from pathlib import Path

import dicom_phantom
import fake_core
import numpy as np
import pydicom
import pytest
from dicom_phantom import CT, MR, OBLIQUE, read_pixels, secrets_in
from pydicom.datadict import DicomDictionary, keyword_for_tag

from RefaceRiskLib import cli, dicom_write, volumes
from RefaceRiskLib.errors import RefaceRiskError

SHAPE = (7, 12, 10)  # slices, rows, columns


def stored_numbers(dtype="<i2", shape=SHAPE, low=0, high=2000) -> np.ndarray:
    return np.random.default_rng(3).integers(low, high, shape).astype(dtype)


def defaced(source: Path, out: Path, value: float = 0.0, **options):
    """The series with a block of voxels set to ``value``: (original, removed)."""
    original = volumes.load(source)
    removed = np.zeros(original.shape, bool)
    removed[2:5, 3:9, 1:4] = True
    result = original.replaced(removed, value)
    dicom_write.write_series(original, result, removed, out, "mri_deface", **options)
    return original, removed


VARIANTS = {
    "signed MR": {"stored": stored_numbers()},
    "unsigned 12 bit": {"stored": stored_numbers("<u2"), "bits": 12},
    "8 bit": {"stored": stored_numbers("u1", high=255), "bits": 8},
    "CT with an intercept": {"stored": stored_numbers("<u2"), "intercept": -1024.0, "sop_class": CT, "value": -1000.0},
    "CT with a slope": {"stored": stored_numbers(), "slope": 0.5, "intercept": -7.0, "sop_class": CT, "value": -7.0},
    "MR with a slope": {"stored": stored_numbers("<u2"), "slope": 2.75, "intercept": 0.0, "sop_class": MR},
    "compressed": {"stored": stored_numbers("<u2"), "compressed": True, "intercept": -1024.0, "sop_class": CT},
}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_only_removed_pixels_change_and_the_person_is_gone(tmp_path, name):
    options = dict(VARIANTS[name])
    stored, value = options.pop("stored"), options.pop("value", 0.0)
    source = dicom_phantom.write_series(tmp_path / "in", stored, **options)
    assert all(secrets_in(file) for file in source.iterdir())
    original, removed = defaced(source, tmp_path / "out", value)
    slices = read_pixels(tmp_path / "out")
    assert len(slices) == SHAPE[0]
    for number, (dataset, pixels) in enumerate(slices):
        mask = removed[:, :, number].T
        assert dataset["PixelData"].value[: stored[number].nbytes] == pixels.tobytes()
        np.testing.assert_array_equal(pixels[~mask], stored[number][~mask])
        assert pixels.dtype == stored.dtype.newbyteorder("=") and dataset.BitsStored == options.get("bits", 16)
        scale = (options.get("slope", 1.0), options.get("intercept", 0.0))
        if "sop_class" in options:
            assert (dataset.RescaleSlope, dataset.RescaleIntercept) == scale
    for file in (tmp_path / "out").iterdir():
        assert secrets_in(file) == []
    again = volumes.load(tmp_path / "out")
    np.testing.assert_allclose(again.affine, original.affine, atol=1e-6)
    np.testing.assert_array_equal(again.voxels[~removed], original.voxels[~removed])
    np.testing.assert_allclose(again.intensities[removed], value, atol=0.51 * options.get("slope", 1.0))
    assert not np.allclose(np.abs(original.affine[:3, :3] / original.spacing).max(0), 1, atol=0.02)  # oblique


def test_the_objects_say_what_was_done_and_still_describe_the_scan(tmp_path):
    source = dicom_phantom.write_series(tmp_path / "in", stored_numbers())
    defaced(source, tmp_path / "out", face_is_gone=True)
    for dataset, _ in read_pixels(tmp_path / "out"):
        assert dataset.PatientIdentityRemoved == "YES" and "mri_deface" in dataset.DeidentificationMethod[0]
        codes = [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence]
        assert codes == ["113100", "113102"] and dataset.RecognizableVisualFeatures == "NO"
        assert dataset.LongitudinalTemporalInformationModified == "REMOVED"
        assert list(dataset.ImageType) == ["DERIVED", "PRIMARY", "M", "ND"] and dataset.BurnedInAnnotation == "NO"
        assert (dataset.Manufacturer, dataset.EchoTime, dataset.MagneticFieldStrength) == ("ACME", 2.98, 3)
        assert dataset.PatientID == dataset.PatientName and dataset.PatientID.startswith("ANON-")
        for keyword in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyID", "AccessionNumber"):
            assert keyword in dataset and not dataset[keyword].value  # type 2: there, and empty
        assert not any(element.tag.is_private or element.tag.group == 0x6000 for element in dataset.iterall())
        assert "PatientWeight" not in dataset and "IconImageSequence" not in dataset
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID


def test_a_face_that_may_be_left_is_not_called_gone(tmp_path):
    defaced(dicom_phantom.write_series(tmp_path / "in", stored_numbers()), tmp_path / "out")
    assert all("RecognizableVisualFeatures" not in dataset for dataset, _ in read_pixels(tmp_path / "out"))


def test_new_uids_hold_a_study_together_and_cannot_be_traced(tmp_path):
    source = dicom_phantom.write_series(tmp_path / "in", stored_numbers())
    one = dicom_write.Pseudonyms()
    defaced(source, tmp_path / "a", pseudonyms=one)
    defaced(source, tmp_path / "b", pseudonyms=one)
    defaced(source, tmp_path / "c")
    uids = {}
    for name in "abc":
        slices = [dataset for dataset, _ in read_pixels(tmp_path / name)]
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"):
            assert len({dataset[keyword].value for dataset in slices}) == 1
        assert len({dataset.SOPInstanceUID for dataset in slices}) == SHAPE[0]
        assert all(len(dataset.SOPInstanceUID) <= 64 and dataset.SOPInstanceUID.is_valid for dataset in slices)
        uids[name] = (slices[0].StudyInstanceUID, slices[0].FrameOfReferenceUID, slices[0].PatientID)
    assert uids["a"] == uids["b"] and not set(uids["a"]) & set(uids["c"])


def test_no_text_attribute_of_the_data_dictionary_carries_a_name_out(tmp_path):
    """Every attribute that can hold text is filled with a name, at the top and in a functional group."""
    source = dicom_phantom.write_enhanced(tmp_path / "in.dcm", stored_numbers())
    dataset = pydicom.dcmread(source)
    texts = {"LO", "SH", "LT", "ST", "UT", "UC", "UR", "PN", "AE"}
    for tag, (vr, *_) in DicomDictionary.items():
        keyword = keyword_for_tag(tag)
        if vr in texts and keyword and keyword not in dicom_write.KEPT_TEXT and not tag >> 16 < 8:
            for place in (dataset, dataset.SharedFunctionalGroupsSequence[0]):
                place.add_new(tag, vr, "Mustermann")
    for tag, (vr, *_) in DicomDictionary.items():
        if vr in ("DA", "DT") and not tag >> 16 < 8:
            dataset.add_new(tag, vr, "20190601" if vr == "DA" else "20190601101112")
        if vr == "SQ" and keyword_for_tag(tag) and tag not in dataset:
            item = pydicom.Dataset()
            item.PatientID, item.PersonName, item.TextValue = "4711-ID", "Mustermann", "Erika"
            dataset.add_new(tag, "SQ", [item])
    dataset.save_as(source, enforce_file_format=True)
    assert source.read_bytes().count(b"Mustermann") > 2000
    original = volumes.load(source)
    dicom_write.write_series(original, original, np.zeros(original.shape, bool), tmp_path / "out", "mri_deface")
    (written,) = (tmp_path / "out").iterdir()
    assert secrets_in(written) == []


def test_a_multi_frame_file_is_rewritten_frame_by_frame(tmp_path):
    stored = stored_numbers()
    source = dicom_phantom.write_enhanced(tmp_path / "Mustermann.dcm", stored)
    original, removed = defaced(source, tmp_path / "out")
    assert original.shape == SHAPE[::-1]
    np.testing.assert_array_equal(original.voxels, stored.T)
    (dataset, pixels), *rest = read_pixels(tmp_path / "out")
    assert not rest and not pixels[removed.T].any()
    np.testing.assert_array_equal(pixels[~removed.T], stored[~removed.T])
    assert secrets_in(tmp_path / "out" / "0001.dcm") == []
    frame = dataset.PerFrameFunctionalGroupsSequence[0]
    assert frame.FrameContentSequence[0].FrameAcquisitionDateTime == "19000101000000"
    np.testing.assert_allclose(volumes.load(tmp_path / "out" / "0001.dcm").affine, original.affine, atol=1e-6)


def test_a_folder_with_files_in_it_is_not_written_to(tmp_path):
    source = dicom_phantom.write_series(tmp_path / "in", stored_numbers())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(RefaceRiskError, match="not an empty folder"):
        defaced(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_failure_in_the_middle_leaves_no_folder(tmp_path):
    source = dicom_phantom.write_series(tmp_path / "in", stored_numbers())
    original = volumes.load(source)
    files = original.meta.header.files
    (tmp_path / "gone.dcm").write_bytes(b"")
    broken = replace(original.meta.header, files=(*files[:-1], str(tmp_path / "missing.dcm")))
    original = replace(original, meta=replace(original.meta, header=broken))
    with pytest.raises(RefaceRiskError):
        dicom_write.write_series(original, original, np.zeros(original.shape, bool), tmp_path / "out", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gone.dcm", "in"]


# --- through the command line -------------------------------------------------------------------------------


@pytest.fixture
def head_series(tmp_path, monkeypatch):
    """The stand-in's ellipsoid as a DICOM series, 4 mm."""
    fake_core.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    voxels = volumes.load(fake_core.write_head(tmp_path / "plain.nii")).voxels
    (tmp_path / "plain.nii").unlink()
    (tmp_path / "plain.json").unlink(missing_ok=True)
    return dicom_phantom.write_series(Path("in"), voxels.T.astype("<i2"), step=(4, 4, 4), directions=OBLIQUE)


def test_deface_writes_a_series_for_a_series(head_series):
    before = {path.name: path.read_bytes() for path in head_series.iterdir()}
    assert cli.main(["deface", "in", "out/", "--mask-out", "mask.nii.gz", "--quiet"]) == 0
    assert sorted(path.name for path in Path().iterdir()) == ["in", "mask.json", "mask.nii.gz", "out", "out.json"]
    assert {path.name: path.read_bytes() for path in head_series.iterdir()} == before
    original, after = volumes.load("in"), volumes.load("out")
    removed = volumes.load("mask.nii.gz").voxels > 0
    np.testing.assert_array_equal(after.voxels[~removed], original.voxels[~removed])
    assert not after.voxels[removed].any() and removed.any()
    assert json.loads(Path("out.json").read_text(encoding="utf-8"))["method"] == "mri_deface"
    for path in (*Path("out").iterdir(), Path("out.json"), Path("mask.json")):
        assert secrets_in(path) == []


def test_deface_writes_a_nifti_file_for_a_series(head_series):
    assert cli.main(["deface", "in", "out.nii.gz", "--quiet"]) == 0
    np.testing.assert_allclose(volumes.load("out.nii.gz").affine, volumes.load("in").affine, atol=1e-4)
    assert secrets_in(Path("out.nii.gz")) == secrets_in(Path("out.json")) == []


@pytest.mark.parametrize(("out", "word"), [("in", "input"), ("in/out", "input"), ("taken", "empty folder")])
def test_a_series_is_not_written_over_another(head_series, out, word, capsys):
    Path("taken").mkdir()
    Path("taken", "file").write_text("x")
    assert cli.main(["deface", "in", out, "--quiet"]) == 2
    assert word in capsys.readouterr().err
    assert len(list(head_series.iterdir())) == 46


def test_without_pydicom_one_line_says_what_to_do(head_series, monkeypatch, capsys):
    real = builtins.__import__

    def absent(name, *rest, **more):
        if name.split(".")[0] == "pydicom":
            raise ModuleNotFoundError(name, name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    assert cli.main(["deface", "in", "out", "--quiet"]) == 2
    assert "pip install pydicom" in capsys.readouterr().err and not Path("out").exists()
