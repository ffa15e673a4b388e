"""What travels beside the voxels holds no name, date or id; voxels, grid and scaling stay as they were."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import fake_core
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from RefaceRiskLib import cli, hygiene, volumes

SECRETS = ("Mustermann", "Erika", "19640812", "4711-ID", "St Elsewhere")


def secret(number: int = 0, size: int = 60) -> str:
    return " ".join(SECRETS[number:] + SECRETS[:number])[:size]


def assert_no_secret(path: Path) -> None:
    raw = path.read_bytes()
    found = [raw]
    if raw[:2] == b"\x1f\x8b":
        found.append(gzip.decompress(raw))
    if path.suffix == ".nrrd":
        found.append(raw.split(b"\n\n")[0])
    for text in SECRETS:
        for data in found:
            assert text.encode() not in data and text.encode("utf-16-le") not in data, (path.name, text)


def named_nifti(path: Path, voxels: np.ndarray, kind=nibabel.Nifti1Image, mm: float = 2.0) -> Path:
    """A file whose every text field, its extensions and its tail are about a patient; scaled, with both forms."""
    image = kind(voxels, np.diag([-mm, mm, mm, 1.0]))
    image.header.set_slope_inter(0.5, -3)
    image.header.set_qform(np.diag([mm, mm, mm, 1.0]), 1)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", secret().encode()))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(44, secret(2).encode()))
    nibabel.save(image, path)
    data = bytearray(path.read_bytes())
    fields = np.frombuffer(data, image.header.template_dtype.newbyteorder(image.header.endianness), 1)
    for number, name in enumerate(("data_type", "db_name", "descrip", "aux_file", "intent_name", "unused_str")):
        if name in fields.dtype.names:
            fields[name] = secret(number % 5, fields.dtype[name].itemsize).encode()
    for name in ("extents", "glmax", "glmin"):
        if name in fields.dtype.names:
            fields[name] = 19640812
    path.write_bytes(bytes(data) + secret(1).encode())
    return path


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_nifti_file_keeps_its_voxels_and_loses_its_words(tmp_path, kind, ending):
    voxels = np.random.default_rng(0).integers(-500, 500, (5, 6, 7)).astype(np.int16)
    source = named_nifti(tmp_path / "in.nii", voxels, kind)
    before = volumes.load(source)
    out = volumes.save(hygiene.cleaned(before), tmp_path / f"out{ending}")
    assert_no_secret(out)
    after, image = volumes.load(out), nibabel.load(out)
    np.testing.assert_array_equal(after.voxels, voxels)
    np.testing.assert_array_equal(after.affine, before.affine)
    assert (after.meta.slope, after.meta.intercept) == (before.meta.slope, before.meta.intercept) == (0.5, -3)
    np.testing.assert_array_equal(image.header.get_qform(), np.diag([2.0, 2.0, 2.0, 1.0]))
    assert len(image.header.extensions) == 0 and isinstance(image, kind)
    header, old = image.header, nibabel.load(source).header
    for name in ("pixdim", "xyzt_units", "sform_code", "qform_code", "slice_code", "dim_info", "cal_max"):
        np.testing.assert_array_equal(header[name], old[name])
    assert not any(bytes(header[name]).strip(b"\0") for name in ("descrip", "aux_file", "intent_name"))


def test_our_own_note_is_still_written(tmp_path):
    source = named_nifti(tmp_path / "in.nii", np.zeros((5, 6, 7), np.int16))
    volume = hygiene.cleaned(volumes.load(source).noted(description="face removed"))
    image = nibabel.load(volumes.save(volume, tmp_path / "out.nii"))
    assert bytes(image.header["descrip"]).rstrip(b"\0") == b"face removed"


@pytest.mark.parametrize("ending", [".mgh", ".mgz"])
def test_an_mgh_file_keeps_its_scan_parameters_and_loses_its_tags(tmp_path, ending):
    voxels = np.random.default_rng(1).integers(0, 255, (5, 6, 7)).astype(np.uint8)
    source = tmp_path / "in.mgh"
    image = nibabel.MGHImage(voxels, np.diag([-1.0, 1.0, 1.0, 1.0]))
    image.header["tr"], image.header["te"] = 2300, 2.98
    nibabel.save(image, source)
    raw = bytearray(source.read_bytes())
    raw[100 : 100 + 60] = secret().ljust(60).encode()
    tag = secret(3).encode()
    source.write_bytes(bytes(raw) + (3).to_bytes(4, "big") + len(tag).to_bytes(8, "big") + tag)
    out = volumes.save(hygiene.cleaned(volumes.load(source)), tmp_path / f"out{ending}")
    assert_no_secret(out)
    after = nibabel.load(out)
    np.testing.assert_array_equal(np.asarray(after.dataobj), voxels)
    np.testing.assert_array_equal(after.affine, image.affine)
    assert after.header["tr"] == 2300 and after.header["te"] == pytest.approx(2.98)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_keys_of_an_nrrd_or_metaimage_file_are_dropped(tmp_path, ending):
    image = sitk.GetImageFromArray(np.arange(210, dtype=np.int16).reshape(7, 6, 5))
    image.SetSpacing((2, 2, 3))
    for key in ("PatientName", "0010|0010", "comment", "NRRD_content"):
        image.SetMetaData(key, secret())
    sitk.WriteImage(image, str(tmp_path / f"in{ending}"))
    assert b"Mustermann" in (tmp_path / f"in{ending}").read_bytes()
    before = volumes.load(tmp_path / f"in{ending}")
    out = volumes.save(hygiene.cleaned(before), tmp_path / f"out{ending}")
    assert_no_secret(out)
    np.testing.assert_array_equal(volumes.load(out).voxels, before.voxels)
    np.testing.assert_array_equal(volumes.load(out).affine, before.affine)


@pytest.mark.parametrize("ending", [".nii.gz", ".mgz", ".nrrd", ".mha"])
def test_the_same_volume_gives_the_same_bytes_under_any_name(tmp_path, tiny_head, ending, monkeypatch):
    first = volumes.save(tiny_head, tmp_path / f"Mustermann{ending}").read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)
    second = volumes.save(tiny_head, tmp_path / f"other{ending}").read_bytes()
    assert first == second and b"Mustermann" not in first
    if first[:2] == b"\x1f\x8b":
        assert first[3] == 0 and first[4:8] == bytes(4)  # no name, comment or extra field; no time


BIDS = {
    "Modality": "MR", "MagneticFieldStrength": 3, "EchoTime": 0.00298, "ImageType": ["ORIGINAL", "PRIMARY", "M"],
    "SliceTiming": [0.0, 0.5], "Manufacturer": "Siemens", "PartialFourier": 1,
    "PatientName": "Mustermann^Erika", "PatientID": "4711-ID", "PatientBirthDate": "19640812", "PatientWeight": 71.2,
    "AcquisitionDateTime": "2019-06-01T10:11:12", "AcquisitionTime": "10:11:12", "InstitutionName": "St Elsewhere",
    "InstitutionAddress": "x", "StationName": "x", "DeviceSerialNumber": "123456", "SeriesInstanceUID": "1.2.3",
    "StudyInstanceUID": "1.2.4", "AccessionNumber": "99", "ReferringPhysicianName": "x", "Procedure": "x",
    "SeriesDescription": "Erika T1", "ProtocolName": "x", "ImageComments": "x", "StudyID": 3, "PatientSex": "F",
    "Site": {"Modality": "nested"}, "ScanOptions": "x" * 500, "ConsistencyInfo": "x",
}  # fmt: skip


def test_a_bids_sidecar_keeps_the_physics_alone(tmp_path):
    (tmp_path / "in.json").write_text(json.dumps(BIDS))
    kept = hygiene.bids_physics(tmp_path / "in.nii.gz")
    assert set(kept) == {
        "Modality", "MagneticFieldStrength", "EchoTime", "ImageType", "SliceTiming", "Manufacturer", "PartialFourier",
    }  # fmt: skip
    assert all(kept[key] == BIDS[key] for key in kept)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "\udcff"])
def test_a_sidecar_that_cannot_be_read_is_as_none(tmp_path, text):
    (tmp_path / "in.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert hygiene.bids_physics(tmp_path / "in.nii") == {}
    assert hygiene.bids_physics(tmp_path / "absent.nii") == {} == hygiene.bids_physics(tmp_path / "in.mgz")


def test_what_deface_and_reface_write_holds_nothing_of_the_patient(tmp_path, monkeypatch):
    fake_core.install(monkeypatch)
    folder = tmp_path / "Mustermann"
    folder.mkdir()
    fake_core.write_head(tmp_path / "plain.nii")
    source = named_nifti(folder / "scan.nii", volumes.load(tmp_path / "plain.nii").voxels, mm=4.0)
    (folder / "scan.json").write_text(json.dumps(BIDS))
    out = tmp_path / "out"
    run = ["deface", str(source), str(out / "defaced.nii.gz"), "--mask-out", str(out / "mask.nii.gz"), "--quiet"]
    assert cli.main([*run, "--quality-out", str(out / "quality.json")]) == 0
    again = ["reface", str(out / "defaced.nii.gz"), str(out / "refaced.nii.gz"), "--mask", str(out / "mask.nii.gz")]
    assert cli.main([*again, "--samples", "2", "--samples-out", str(out / "drawn"), "--quiet"]) == 0
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) == 5 + 2 + 6
    for path in written:
        assert_no_secret(path)
        assert str(tmp_path).encode() not in path.read_bytes()
    for name in ("defaced", "refaced"):
        record = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        assert record["EchoTime"] == 0.00298 and "PatientWeight" not in record
    assert bytes(nibabel.load(out / "defaced.nii.gz").header["descrip"]).startswith(b"MRIRefaceRisk")
