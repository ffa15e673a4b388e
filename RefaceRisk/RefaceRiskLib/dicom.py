"""One DICOM series in a folder, read with GDCM; its geometry comes from the slices' own positions.

ITK only warns where slices are missing and takes the mean distance for the slice thickness: a head so read is
too short. Here every position is looked at. Values are in the modality's unit (rescale slope and intercept
applied by GDCM).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from . import dicom_elements
from .errors import RefaceRiskError


@dataclass(frozen=True)
class DicomHeader:
    """Where a series came from: its files, in the order of the slices (one file if multi-frame)."""

    files: tuple[str, ...]


@dataclass(frozen=True)
class _Slice:
    file: str
    size: tuple[int, ...]  # (2,) pixels
    position: np.ndarray  # (3,) LPS mm
    directions: np.ndarray  # (3, 2) columns: along i, along j
    spacing: np.ndarray  # (2,)


def read(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Voxels (I, J, K), affine to RAS mm and files of the one series in a folder or of a multi-frame file"""
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file == path or (file.name.upper() != "DICOMDIR" and _is_dicom(file)):
            dicom_elements.check(file, path)
    files = _series_files(path) if path.is_dir() else [str(path)]
    first = _information(files[0], path)
    if len(files) == 1:
        if first.GetDimension() < 3 or first.GetSize()[2] < 2:
            raise RefaceRiskError("a single DICOM slice", "give the folder that holds the whole series", path)
        return _read_frames(files[0], path)
    slices = [_slice(file, path) for file in files]
    affine, order = _stack(slices, path)
    files = [files[n] for n in order]
    image = _pixels(files, path)
    return sitk.GetArrayFromImage(image).T, affine, files


def _series_files(folder: Path) -> list[str]:
    reader = sitk.ImageSeriesReader()
    try:
        series = reader.GetGDCMSeriesIDs(str(folder))
        found = {uid: list(reader.GetGDCMSeriesFileNames(str(folder), uid)) for uid in series}
    except (RuntimeError, TypeError) as error:  # TypeError: an identifier that is no UTF-8
        raise RefaceRiskError("the DICOM series cannot be told apart", "export them again", folder) from error
    if not series:
        raise RefaceRiskError("no DICOM slices in this folder", "give the folder that holds them directly", folder)
    if len(found) > 1:
        names = ", ".join(f"{_description(files[0])!r} ({len(files)} files, {uid})" for uid, files in found.items())
        raise RefaceRiskError(
            f"{len(found)} DICOM series in one folder: {names}",
            "put the one you want in a folder of its own",
            folder,
        )
    (files,) = found.values()
    known = {Path(file).name for file in files}
    for file in sorted(folder.iterdir()):  # GDCM passes over what it cannot read: the head would end early
        if file.name not in known and file.name.upper() != "DICOMDIR" and _is_dicom(file):
            raise RefaceRiskError(
                f"the DICOM file {file.name} cannot be read", "copy or export the series again", folder
            )
    return files


def _is_dicom(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _information(file: str, path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.SetImageIO("GDCMImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise RefaceRiskError(
            f"the DICOM file {Path(file).name} cannot be read", "copy or export it again", path
        ) from error
    return reader


def _description(file: str) -> str:
    reader = _information(file, Path(file))
    return reader.GetMetaData("0008|103e").strip() if reader.HasMetaDataKey("0008|103e") else "no description"


def _slice(file: str, path: Path) -> _Slice:
    reader = _information(file, path)
    position, directions = (
        _numbers(reader, *asked, file, path)
        for asked in (("0020|0032", "position", 3), ("0020|0037", "orientation", 6))
    )
    rows = directions.reshape(2, 3)
    return _Slice(file, reader.GetSize()[:2], position, rows.T, np.array(reader.GetSpacing()[:2]))


def _numbers(reader: sitk.ImageFileReader, key: str, name: str, count: int, file: str, path: Path) -> np.ndarray:
    """The ``count`` finite numbers of an element."""
    try:
        text = reader.GetMetaData(key) if reader.HasMetaDataKey(key) else ""
        numbers = np.array([float(number) for number in text.split("\\")])
    except ValueError:
        numbers = np.zeros(0)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise RefaceRiskError(
            f"the DICOM slice {Path(file).name} has no {name}", "export the original series again", path
        )
    return numbers


def _stack(slices: list[_Slice], path: Path) -> tuple[np.ndarray, list[int]]:
    """Affine to RAS of parallel, evenly spaced slices, and the order in which they lie."""
    first = slices[0]
    for other in slices[1:]:
        if other.size != first.size or not np.allclose(other.spacing, first.spacing, rtol=1e-4):
            raise RefaceRiskError(
                f"the slices differ in size ({Path(first.file).name}, {Path(other.file).name})",
                "keep one acquisition in the folder",
                path,
            )
        if not np.allclose(other.directions, first.directions, atol=1e-3):
            raise RefaceRiskError(
                f"the slices are not parallel ({Path(first.file).name}, {Path(other.file).name})",
                "take the localiser out of the folder",
                path,
            )
    normal = np.cross(first.directions[:, 0], first.directions[:, 1])
    positions = np.array([s.position for s in slices])
    depth = positions @ normal
    order = np.argsort(depth, kind="stable").tolist()
    gaps = np.diff(depth[order])
    step = float(np.median(gaps))
    if gaps.min() < 1e-3:
        raise RefaceRiskError(
            "several DICOM slices lie at the same place (a time series or several echoes)",
            "keep one volume in the folder",
            path,
        )
    uneven = np.flatnonzero(np.abs(gaps - step) > max(0.02 * step, 0.02))
    if uneven.size:
        raise _uneven(gaps, step, uneven, [slices[n] for n in order], path)
    affine = np.eye(4)
    affine[:3, :2] = first.directions * first.spacing
    # The step between whole positions, not along the normal: a tilted gantry shears the grid.
    affine[:3, 2] = (positions[order[-1]] - positions[order[0]]) / (len(slices) - 1)
    affine[:3, 3] = positions[order[0]]
    return _ras(affine), order


def _uneven(gaps, step: float, uneven, slices: list[_Slice], path: Path) -> RefaceRiskError:
    missing = np.round(gaps[uneven] / step).astype(int) - 1
    whole = np.abs(gaps[uneven] - (missing + 1) * step) <= max(0.02 * step, 0.02)
    at = int(uneven[0])
    between = f"between {Path(slices[at].file).name} and {Path(slices[at + 1].file).name}"
    if whole.all() and (missing > 0).all():
        count = int(missing.sum())
        what = f"{count} DICOM slice{'s are' if count > 1 else ' is'} missing ({between})"
        return RefaceRiskError(what, "copy or export the whole series again", path)
    return RefaceRiskError(
        f"the DICOM slices are not evenly spaced ({gaps.min():.3g} to {gaps.max():.3g} mm, {between})",
        "resample the series to even spacing first",
        path,
    )


def _pixels(files: str | list[str], path: Path) -> sitk.Image:
    try:
        image = sitk.ReadImage(files, imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise RefaceRiskError("the DICOM pixels cannot be read", "copy or export it again", path) from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise RefaceRiskError("the DICOM voxels are in colour", "give one grey value a voxel", path)
    return image


def _read_frames(file: str, path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    image = _pixels(file, path)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, _ras(affine), [file]


def _ras(affine: np.ndarray) -> np.ndarray:
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine + 0.0  # no negative zeros
