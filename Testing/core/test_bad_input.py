"""Damaged, odd and hostile inputs through the real command line: one line and exit 2, or a correct result.

Never a traceback, never a half-written file, never a changed input. What must succeed is really defaced; the search for
the head is done once, since the variants show it at the same place in space.
"""

from __future__ import annotations

import gzip
import json
import resource
from collections.abc import Callable
from pathlib import Path

import dicom_phantom
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from RefaceRiskLib import cli, volumes
from RefaceRiskLib.defacing import Head
from RefaceRiskLib.registration import register
from RefaceRiskLib.template import load_template
from RefaceRiskLib.tissue import brain_distance
from RefaceRiskLib.volumes import Volume, check_head, load, reorient, resample


@pytest.fixture(scope="module")
def head(shared_data) -> Volume:
    """A real head, 2 mm, 90 x 120 x 120, uint8."""
    scan = load(shared_data / "cohort_ixi_2mm" / "sub-IXI015_T1w.nii.gz")
    return Volume(scan.voxels, scan.affine)


@pytest.fixture(scope="module")
def registration(head):
    return register(head, load_template())


@pytest.fixture
def here(tmp_path, monkeypatch, registration) -> Path:
    """An empty working folder; registration is known and the brain comes from it alone."""

    def prepared(volume, *_, **__) -> Head:
        check_head(volume)
        brain = brain_distance(volume, load_template(), registration, method="registration")
        return Head(volume, load_template(), registration, brain)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("RefaceRiskLib.defacing.prepare", prepared)
    return tmp_path


# --- what must be refused -----------------------------------------------------------------------------------

SMALL = (20, 22, 24)


def numbers(shape=SMALL, dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def nifti(path="in.nii", voxels=None, affine=None, **fields) -> str:
    """A NIfTI file of arbitrary voxels with fields of its header overwritten."""
    affine = np.diag([2.0, 2, 2, 1]) if affine is None else affine
    image = nibabel.Nifti1Image(numbers() if voxels is None else voxels, affine)
    nibabel.save(image, path)
    data = bytearray(Path(path).read_bytes())
    header = np.frombuffer(data, nibabel.Nifti1Header.template_dtype, 1)
    for name, value in fields.items():
        header[name] = value
    Path(path).write_bytes(bytes(data))
    return path


def saved(volume: Volume, name: str) -> str:
    volumes.save(volume, name)
    return name


def cut(name: str, share: float) -> str:
    raw = Path(name).read_bytes()
    Path(name).write_bytes(raw[: int(len(raw) * share)])
    return name


def flipped_bits(name: str) -> str:
    raw = bytearray(Path(name).read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    Path(name).write_bytes(bytes(raw))
    return name


def raw(name: str, data: bytes) -> str:
    Path(name).write_bytes(data)
    return name


def with_voxel(head: Volume, value: float) -> Volume:
    voxels = head.voxels.astype(np.float32)
    voxels[40, 40, 40] = value
    return Volume(voxels, head.affine)


def bent(head: Volume, degrees: float) -> np.ndarray:
    """The head's affine with its second axis leaning towards the first."""
    affine = np.array(head.affine)
    angle, unit = np.radians(degrees), affine[:3, :3] / head.spacing
    affine[:3, 1] = head.spacing[1] * (np.cos(angle) * unit[:, 0] + np.sin(angle) * unit[:, 1])
    return affine


def series(folder="dicom", **changes) -> str:
    dicom_phantom.write_series(Path(folder), numbers((8, 20, 22), "<i2"), **changes)
    return folder


def mixed_series() -> str:
    series("a")
    for number, file in enumerate(sorted(Path(series("b", sop_class=dicom_phantom.CT)).iterdir())):
        import pydicom

        dataset = pydicom.dcmread(file)
        dataset.SeriesInstanceUID = "1.2.3.4"
        dataset.save_as(Path("a") / f"other{number}.dcm")
    return "a"


def series_without(number: int) -> str:
    import pydicom

    for file in Path(series()).iterdir():
        if pydicom.dcmread(file).InstanceNumber == number:
            file.unlink()
    return "dicom"


def damaged_series(share: float) -> str:
    files = sorted(Path(series()).iterdir())
    cut(str(files[3]), share)
    return "dicom"


def folder_of(name: str, data: bytes) -> str:
    Path("folder").mkdir()
    raw(f"folder/{name}", data)
    return "folder"


def detached(head: Volume) -> str:
    sitk.WriteImage(volumes.to_sitk(head), "in.nhdr")
    next(file for file in Path().iterdir() if file.suffix in (".raw", ".gz")).unlink()
    return "in.nhdr"


def time_series(name: str) -> str:
    image = sitk.JoinSeries([sitk.GetImageFromArray(numbers()) for _ in range(3)])
    sitk.WriteImage(image, name)
    return name


def vectors(name: str) -> str:
    sitk.WriteImage(sitk.GetImageFromArray(numbers((*SMALL, 3), np.uint8), isVector=True), name)
    return name


def bad_mgh() -> str:
    nibabel.save(nibabel.MGHImage(numbers(dtype=np.float32), np.eye(4)), "in.mgh")
    data = bytearray(Path("in.mgh").read_bytes())
    data[20:24] = (99).to_bytes(4, "big")
    return raw("in.mgh", bytes(data))


def colour(name: str) -> str:
    return nifti(name, np.zeros(SMALL, [("R", "u1"), ("G", "u1"), ("B", "u1")]))


def ball(radius_mm: float) -> Volume:
    grid = np.indices((80, 80, 80)).transpose(1, 2, 3, 0) - 40
    noise = np.random.default_rng(0).normal(0, 3, (80, 80, 80))
    return Volume((100 * (np.linalg.norm(grid * 3.0, axis=-1) < radius_mm) + noise).astype(np.float32), np.eye(4) * 3)


def flat(value: float) -> Volume:
    return Volume(np.full((60, 60, 60), value, np.float32), np.diag([3.0, 3, 3, 1]))


# name: (what writes the input and returns its path, a word of the line that the user reads)
REFUSED: dict[str, tuple[Callable[[Volume], str], str]] = {
    "a missing file": (lambda head: "absent.nii.gz", "no such file"),
    "an empty .nii": (lambda head: raw("in.nii", b""), "corrupt"),
    "an empty .nii.gz": (lambda head: raw("in.nii.gz", b""), "corrupt"),
    "an empty .mgz": (lambda head: raw("in.mgz", b""), "corrupt"),
    "an empty .nrrd": (lambda head: raw("in.nrrd", b""), "corrupt"),
    "a cut .nii.gz": (lambda head: cut(saved(head, "in.nii.gz"), 0.6), "cut off"),
    "a cut .nii": (lambda head: cut(saved(head, "in.nii"), 0.6), "ends early"),
    "a .nii cut in its header": (lambda head: cut(saved(head, "in.nii"), 0.0001), "corrupt"),
    "a cut .mgz": (lambda head: cut(saved(head, "in.mgz"), 0.6), "cut off"),
    "a cut .mgh": (lambda head: cut(saved(head, "in.mgh"), 0.6), "ends early"),
    "a cut .nrrd": (lambda head: cut(saved(head, "in.nrrd"), 0.6), "cut off"),
    "a cut .mha": (lambda head: cut(saved(head, "in.mha"), 0.6), "cut off"),
    "a .nii.gz with a flipped byte": (lambda head: flipped_bits(saved(head, "in.nii.gz")), "damaged"),
    "text called .nii": (lambda head: raw("in.nii", b"subject,age\n1,2\n" * 99), "corrupt"),
    "text called .nii.gz": (lambda head: raw("in.nii.gz", b"subject,age\n1,2\n" * 99), "corrupt"),
    "a zipped text called .nii.gz": (lambda head: raw("in.nii.gz", gzip.compress(b"x" * 999)), "corrupt"),
    "text called .nrrd": (lambda head: raw("in.nrrd", b"subject,age\n1,2\n" * 99), "corrupt"),
    "text called .mha": (lambda head: raw("in.mha", b"subject,age\n1,2\n" * 99), "corrupt"),
    "text called .dcm": (lambda head: raw("in.dcm", b"subject,age\n1,2\n" * 99), "cannot be read"),
    "an unknown file type": (lambda head: raw("in.txt", b"x"), "file type .txt"),
    "no file type": (lambda head: raw("in", b"x"), "without extension"),
    "a wrong signature": (lambda head: nifti(magic=b"xyz"), "signature"),
    "a header without its image": (lambda head: nifti(magic=b"ni1"), "another file"),
    "an unknown data type": (lambda head: nifti(datatype=999), "data type code"),
    "one-bit voxels": (lambda head: nifti(datatype=1), "one-bit"),
    "colour": (lambda head: colour("in.nii"), "colour"),
    "complex voxels": (lambda head: nifti("in.nii", np.ones(SMALL, np.complex64)), "complex"),
    "several values a voxel": (lambda head: vectors("in.nrrd"), "colour"),
    "4-D": (lambda head: nifti("in.nii", numbers((*SMALL, 3))), "4-D"),
    "4-D in NRRD": (lambda head: time_series("in.nrrd"), "4-D"),
    "2-D": (lambda head: nifti("in.nii", numbers((20, 22))), "2-D"),
    "one slice": (lambda head: saved(Volume(head.voxels[:, :, 60:61], head.affine), "in.nii"), "no head"),
    "no voxels at all": (lambda head: nifti(dim=[3, 0, 22, 24, 1, 1, 1, 1]), "corrupt"),
    "a negative size": (lambda head: nifti(dim=[3, -20, 22, 24, 1, 1, 1, 1]), "corrupt"),
    "a size beyond all memory": (lambda head: nifti(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "ends early"),
    "voxels that start in the header": (lambda head: nifti(vox_offset=4), "corrupt"),
    "NaN": (lambda head: saved(with_voxel(head, np.nan), "in.nii.gz"), "NaN"),
    "infinity": (lambda head: saved(with_voxel(head, np.inf), "in.nii.gz"), "infinite"),
    "NaN in the scaling": (lambda head: nifti(scl_slope=2, scl_inter=np.nan), "scaling"),
    "nothing but zeros": (lambda head: saved(flat(0), "in.nii"), "empty"),
    "a constant": (lambda head: saved(flat(7), "in.nii"), "constant"),
    "nothing but noise": (lambda head: nifti("in.nii", numbers((60, 60, 60)), np.diag([3.0, 3, 3, 1])), "no head"),
    "a bottle": (lambda head: saved(ball(30), "in.nii"), "no head"),
    "metres": (lambda head: nifti(srow_x=[0.002, 0, 0, 0], srow_y=[0, 0.002, 0, 0], srow_z=[0, 0, 0.002, 0]), "units"),
    "microns": (lambda head: nifti(srow_x=[2000, 0, 0, 0], srow_y=[0, 2000, 0, 0], srow_z=[0, 0, 2000, 0]), "units"),
    "a singular affine": (lambda head: nifti(srow_z=[0, 0, 0, 0]), "inverted"),
    "NaN in the affine": (lambda head: nifti(srow_x=[np.nan, 0, 0, 0]), "inverted"),
    "a spacing of zero": (lambda head: nifti(sform_code=0, pixdim=[1, 0, 2, 2, 0, 0, 0, 0]), "inverted"),
    "a rotation that is none": (lambda head: nifti(sform_code=0, qform_code=1, quatern_b=3), "quaternion"),
    "a sheared affine": (lambda head: nifti("in.nii", head.voxels, bent(head, 40)), "sheared"),
    "an unknown MGH type": (lambda head: bad_mgh(), "data type"),
    "a header whose data file is missing": (detached, "cut off"),
    "a folder without DICOM": (lambda head: folder_of("notes.txt", b"x"), "no DICOM"),
    "a folder of NIfTI files": (lambda head: folder_of("a.nii", Path(nifti()).read_bytes()), "no DICOM"),
    "two DICOM series": (lambda head: mixed_series(), "2 DICOM series"),
    "a missing DICOM slice": (lambda head: series_without(4), "missing"),
    "a DICOM slice cut in its pixels": (lambda head: damaged_series(0.999), "cannot be read"),
    "a DICOM slice cut in its header": (lambda head: damaged_series(0.6), "cannot be read"),
    "a DICOM series that is no head": (lambda head: series(), "no head"),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(arguments: list[str], capfd) -> str:
    """The one line; fails unless nothing was written, changed or printed beside it."""
    before = contents(Path())
    capfd.readouterr()
    assert cli.main([*arguments, "--quiet"]) == 2
    shown = capfd.readouterr()
    lines = shown.err.splitlines()
    assert len(lines) == 1 and shown.out == "", shown
    assert lines[0].startswith("refacerisk: ") and "; " in lines[0] and "Traceback" not in lines[0]
    assert contents(Path()) == before
    return lines[0]


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_defaced_is_refused_in_one_line(here, head, name, capfd):
    write, word = REFUSED[name]
    source = write(head)
    line = refused(["deface", source, "out/defaced.nii.gz", "--mask-out", "out/mask.nii.gz"], capfd)
    assert word in line, line
    assert f"{source}: " in line, line
    assert not Path("out").exists()


# --- outputs that cannot be written, options that make no sense ---------------------------------------------

OUTPUTS: dict[str, tuple[list[str], str]] = {
    "the input itself": (["in.nii.gz"], "overwrite an input"),
    "the input by another path": (["./sub/../in.nii.gz"], "overwrite an input"),
    "the input through a link": (["link.nii.gz"], "overwrite an input"),
    "the input as its mask": (["out.nii.gz", "--mask-out", "in.nii.gz"], "overwrite an input"),
    "one name twice": (["out.nii.gz", "--mask-out", "out.nii.gz"], "two outputs"),
    "an unknown file type": (["out.txt"], "no name for a volume"),
    "no file type": (["out"], "no name for a volume"),
    "a type that is only read": (["out.nhdr"], "no name for a volume"),
    "a folder": (["sub"], "folder"),
    "a folder that looks like a file": (["folder.nii.gz"], "is a folder"),
    "a path below a file": (["in.nii.gz/out.nii.gz"], "cannot be written"),
    "a mask below a file": (["out.nii.gz", "--mask-out", "in.nii.gz/mask.nii.gz"], "cannot be written"),
    "a read-only file system": (["/proc/refacerisk/out.nii.gz"], "cannot be written"),
    "a mask on a read-only file system": (["out.nii.gz", "--mask-out", "/proc/mask.nii.gz"], "cannot be written"),
    "a name that is too long": ([f"{'n' * 300}.nii.gz"], "cannot be written"),
    "an unknown method": (["out.nii.gz", "--method", "scissors"], "unknown"),
    "a negative margin": (["out.nii.gz", "--margin-mm", "-3"], "millimetres"),
    "a margin that is no number": (["out.nii.gz", "--margin-mm", "wide"], "millimetres"),
    "an unknown fill": (["out.nii.gz", "--fill", "marzipan"], "fill"),
    "a mask of another grid": (["out.nii.gz", "--method", "interactive", "--mask", "other.nii.gz"], "grid"),
    "an empty mask": (["out.nii.gz", "--method", "interactive", "--mask", "none.nii.gz"], "empty"),
    "a mask of everything": (["out.nii.gz", "--method", "interactive", "--mask", "all.nii.gz"], "kept"),
    "another image that is missing": (["out.nii.gz", "--apply-to", "absent.nii.gz"], "no such file"),
}


@pytest.mark.parametrize("name", list(OUTPUTS))
def test_what_cannot_be_written_or_done_is_refused_in_one_line(here, head, name, capfd):
    saved(head, "in.nii.gz")
    Path("sub").mkdir()
    Path("folder.nii.gz").mkdir()
    Path("link.nii.gz").symlink_to("in.nii.gz")
    saved(Volume(np.ones((5, 5, 5), np.uint8), head.affine), "other.nii.gz")
    saved(Volume(np.zeros(head.shape, np.uint8), head.affine), "none.nii.gz")
    saved(Volume(np.ones(head.shape, np.uint8), head.affine), "all.nii.gz")
    arguments, word = OUTPUTS[name]
    assert word in refused(["deface", "in.nii.gz", *arguments], capfd)


@pytest.mark.parametrize("limit", [600, 60_000])
def test_a_full_disk_leaves_nothing_behind(here, head, limit, capfd):
    """No file may grow beyond the limit, as on a disk that is full at that moment."""
    saved(head, "in.nii.gz")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        before = contents(here)
        assert cli.main(["deface", "in.nii.gz", "out.nii.gz", "--mask-out", "mask.nii.gz", "--quiet"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert contents(here) == before


def test_a_full_disk_is_told_in_one_line(here, head, capfd, monkeypatch):
    saved(head, "in.nii.gz")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("RefaceRiskLib.volumes.os.replace", full)
    assert "No space left on device" in refused(["deface", "in.nii.gz", "out.nii.gz"], capfd)


# --- what is odd but sound ----------------------------------------------------------------------------------


def typed(head: Volume, dtype, name="in.nii.gz", factor: float = 1.0) -> str:
    return saved(Volume((head.voxels * factor).astype(dtype), head.affine), name)


def on_grid(head: Volume, spacing_mm: tuple[float, float, float], oblique: bool = False) -> str:
    """The head with other voxels, at the same place."""
    factor = np.array(spacing_mm) / head.spacing
    affine = head.affine @ np.diag([*factor, 1.0])
    if oblique:
        turn = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.3, 0.2, -0.25))
        middle = head.affine @ [*(np.array(head.shape) / 2), 1]
        turn[:3, 3] = middle[:3] - turn[:3, :3] @ middle[:3]
        affine = turn @ affine
    shape = tuple(int(n) for n in np.ceil(np.array(head.shape) / factor))
    image = resample(head.intensities, head.affine, shape, affine)
    return saved(Volume(np.rint(image).astype(np.int16), affine), "in.nii.gz")


def byteswapped(head: Volume) -> str:
    image = nibabel.Nifti1Image(head.voxels.astype(">i2"), head.affine, nibabel.Nifti1Header(endianness=">"))
    nibabel.save(image, "in.nii")
    return "in.nii"


def two_forms(head: Volume) -> str:
    image = nibabel.Nifti1Image(head.voxels, head.affine)
    image.set_sform(head.affine, 1)
    image.set_qform(np.diag([-2.0, 2, 2, 1]), 1)
    nibabel.save(image, "in.nii.gz")
    return "in.nii.gz"


def qform_only(head: Volume) -> str:
    turned = reorient(head, "LPS")  # left-handed storage needs a qfac of -1
    turned = Volume(turned.voxels[:, :, ::-1], turned.affine @ nibabel.affines.from_matvec(
        np.diag([1, 1, -1]), [0, 0, turned.shape[2] - 1]))  # fmt: skip
    image = nibabel.Nifti1Image(turned.voxels, turned.affine)
    image.set_sform(None, 0)
    image.set_qform(turned.affine, 1)
    assert image.header["pixdim"][0] == -1
    nibabel.save(image, "in.nii.gz")
    return "in.nii.gz"


def scaled(head: Volume) -> str:
    image = nibabel.Nifti1Image(head.voxels, head.affine)
    image.header.set_slope_inter(0.01, 0.0)
    nibabel.save(image, "in.nii.gz")
    return "in.nii.gz"


def kind(head: Volume, cls, name: str, shape=None) -> str:
    nibabel.save(cls(head.voxels.reshape(shape or head.shape), head.affine), name)
    return name


def copied(source: str, name: str, change: Callable[[bytes], bytes] = bytes) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(change(Path(source).read_bytes()))
    Path(source).unlink()
    return name


SOUND: dict[str, Callable[[Volume], str]] = {
    "left-handed storage": lambda head: saved(reorient(head, "LAS"), "in.nii.gz"),
    "axes in another order": lambda head: saved(reorient(head, "PIR"), "in.nii.gz"),
    "a negative spacing": lambda head: qform_only(head),
    "forms that disagree": two_forms,
    "an oblique grid": lambda head: on_grid(head, (2.5, 2.5, 2.5), oblique=True),
    "8 mm slices": lambda head: on_grid(head, (2.0, 2.0, 8.0)),
    "0.3 mm voxels": lambda head: on_grid(head, (0.3, 4.0, 4.0)),
    "big-endian": byteswapped,
    "uint64": lambda head: typed(head, np.uint64),
    "float64 of tiny numbers": lambda head: typed(head, np.float64, factor=1e-7),
    "a stored scaling": scaled,
    "NIfTI-2": lambda head: kind(head, nibabel.Nifti2Image, "in.nii.gz"),
    "a fourth axis of one": lambda head: kind(head, nibabel.Nifti1Image, "in.nii", (*head.shape, 1)),
    "an unzipped file called .nii.gz": lambda head: copied(typed(head, np.uint8, "a.nii"), "in.nii.gz"),
    "a zipped file called .nii": lambda head: copied(typed(head, np.uint8, "a.nii"), "in.nii", gzip.compress),
    "bytes after the voxels": lambda head: copied(typed(head, np.uint8, "a.nii"), "in.nii", lambda d: d + b"tail"),
    "MGZ": lambda head: typed(head, np.uint8, "in.mgz"),
    "NRRD": lambda head: typed(head, np.int16, "in.nrrd"),
    "a name with blanks, accents and a line break": lambda head: copied(
        typed(head, np.uint8, "a.nii"), "Tête d'une\nÄrztin/头 部 $x.nii"
    ),
}


@pytest.mark.parametrize("name", list(SOUND))
def test_what_is_odd_but_sound_is_defaced(here, head, name, capfd):
    source = SOUND[name](head)
    ending = "".join(Path(source).suffixes[-2:] if source.endswith(".gz") else Path(source).suffixes[-1:])
    before, raw_before = load(source), Path(source).read_bytes()
    out, mask = f"new folder/défacé{ending}", "new folder/mask.nii.gz"
    assert cli.main(["deface", source, out, "--mask-out", mask, "--quiet"]) == 0, capfd.readouterr().err
    assert Path(source).read_bytes() == raw_before
    assert sorted(path.name for path in Path("new folder").iterdir()) == sorted(
        ["défacé.json", f"défacé{ending}", "mask.json", "mask.nii.gz"]
    )
    after, removed = load(out), load(mask).voxels > 0
    assert after.voxels.dtype == before.voxels.dtype and after.shape == before.shape
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-4)
    np.testing.assert_array_equal(after.voxels[~removed], before.voxels[~removed])
    assert (after.intensities[removed] == 0).all() and 0.01 < removed.mean() < 0.4
    quality = json.loads(Path("new folder/défacé.json").read_text(encoding="utf-8"))["quality"]
    assert quality["brain_voxels_touched"] == 0 and quality["face_surface_removed"] > 0.6
    assert quality["verdict"] == "ok", quality


def test_enough_cases_are_tried():
    assert len(REFUSED) + len(OUTPUTS) + len(SOUND) >= 90


def test_a_header_that_is_turned_by_90_degrees_is_noticed(here, head, monkeypatch):
    """A head whose header says that it lies on its side, with the real search: defaced, and told to be looked at."""
    monkeypatch.undo()
    monkeypatch.chdir(here)
    monkeypatch.setattr("RefaceRiskLib.defacing.find_brain", lambda *_: None)
    turn = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0, 0, np.pi / 2))
    saved(Volume(head.voxels, turn @ head.affine), "in.nii.gz")
    assert cli.main(["deface", "in.nii.gz", "out.nii.gz", "--quiet"]) == 0
    quality = json.loads(Path("out.json").read_text(encoding="utf-8"))["quality"]
    assert quality["verdict"] == "check" and "orientation" in quality["reason"]
    assert quality["face_surface_removed"] > 0.6 and quality["brain_voxels_touched"] == 0
