"""What is promised of any bytes in the place of an input file, and how each kind of file is tried.

Any bytes give a volume (or a table) that can be worked with, or one `RefaceRiskError` of one line: no other exception,
no warning on the way, no memory out of proportion. Needs nothing but the library:
the tests replay the corpus with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.radiodensity.cohort import read_cohort
from RefaceRiskLib.study.participants import read_participants
from RefaceRiskLib.volumes import Volume, check_head, crop, load, save

CORPUS = Path(__file__).resolve().parent / "corpus"
_MANY_VOXELS = 100_000  # beyond this, what takes longer than reading is left out


def hold(target: str, data: bytes, folder: Path) -> str | None:
    """Try ``data`` as a file of the kind ``target`` in ``folder``; the line of the refusal, None if it was read.

    Raises whatever breaks the promise.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning is a second line, beside the one that a user is meant to read
        try:
            TARGETS[target](data, folder)
        except RefaceRiskError as error:
            line = str(error)
            assert len(line.splitlines()) == 1 and not any(c < " " or c == "\x7f" for c in line), repr(line)
            assert len(line) < 5000, f"a line of {len(line)} characters"
            return line
    return None


def _image(extension: str) -> Callable[[bytes, Path], None]:
    def tried(data: bytes, folder: Path) -> None:
        path = folder / f"in{extension}"
        path.write_bytes(data)
        volume = load(path)
        _usable(volume)
        if volume.voxels.size > _MANY_VOXELS:
            return
        part = crop(volume, tuple(slice(n // 2, n) for n in volume.shape))
        for kept in (volume, part):  # as it came, and on a grid that the header does not know
            copy = load(save(kept, folder / f"out{extension}"))
            np.testing.assert_array_equal(copy.voxels, kept.voxels)
            np.testing.assert_allclose(copy.affine, kept.affine, rtol=1e-4, atol=1e-2)
        check_head(volume)

    return tried


def _usable(volume: Volume) -> None:
    assert repr(volume) and min(volume.shape) >= 1
    assert volume.intensities.dtype == np.float32 and np.isfinite(volume.intensities).all()
    assert np.isfinite(np.linalg.inv(volume.affine)).all()


def _detached(data: bytes, folder: Path) -> None:
    """A header whose voxels lie in another file; that file is there."""
    (folder / "in.raw").write_bytes(bytes(range(120)))
    path = folder / "in.nhdr"
    path.write_bytes(data)
    _usable(load(path))


def _dicom(data: bytes, folder: Path) -> None:
    """Alone, and in the midst of a series."""
    path = folder / "in.dcm"
    path.write_bytes(data)
    series = folder / "series"
    if not series.is_dir():
        series.mkdir()
        for number in (0, 2):
            write_slice(series / f"{number}.dcm", number)
    (series / "1.dcm").write_bytes(data)
    refused = None
    for source in (path, series):
        try:
            _usable(load(source))
        except RefaceRiskError as error:
            refused = error
    if refused:
        raise refused


def write_slice(path: Path, number: int) -> None:
    """One of the slices, 5 x 4 pixels, 2 mm apart, of nobody."""
    image = sitk.GetImageFromArray(np.arange(20, dtype=np.int16).reshape(1, 4, 5) + number)
    for key, value in {
        "0008|0060": "MR", "0008|0016": "1.2.840.10008.5.1.4.1.1.4", "0008|0018": f"1.2.3.1.{number}",
        "0020|000d": "1.2.3", "0020|000e": "1.2.3.1", "0020|0013": str(number),
        "0008|0020": "20000101", "0008|0030": "000000", "0020|0032": f"0\\0\\{2 * number}",
        "0020|0037": "1\\0\\0\\0\\1\\0",
    }.items():  # fmt: skip
        image.SetMetaData(key, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)


def _participants(data: bytes, folder: Path) -> None:
    table = folder / "participants.tsv"
    table.write_bytes(data)
    for person in read_participants(table):
        assert person.name and person.head.name is not None


def _cohort(data: bytes, folder: Path) -> None:
    table = folder / "participants.tsv"
    table.write_bytes(data)
    (folder / "head.nii").touch()
    cohort = read_cohort(table)
    assert cohort.participants and cohort.targets
    for problem in cohort.problems:
        assert len(str(problem).splitlines()) == 1, repr(str(problem))


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    "nifti": _image(".nii.gz"),  # zipped or not, as the bytes say
    "mgh": _image(".mgz"),
    "nrrd": _image(".nrrd"),
    "nhdr": _detached,
    "mha": _image(".mha"),
    "dicom": _dicom,
    "participants": _participants,
    "cohort": _cohort,
}
