"""A DICOM series written back without the person: pixels changed where the face was removed, nowhere else.

The data sets follow the Basic Application Level Confidentiality Profile of DICOM PS3.15 annex E with the option Clean
Recognizable Visual Features. The profile names some 600 attributes to remove; this keeps those that describe the
image and the physics instead (by value representation, then by name), so that an attribute nobody thought of is
dropped. Dates, times and descriptions are removed, UIDs are replaced consistently, private attributes are dropped.
pydicom is imported where it is used.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import __version__
from .errors import RefaceRiskError
from .volumes import Volume


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Short text that names a device, a technique or a code, not a person or a place.
KEPT_TEXT = _names("""
    Manufacturer ManufacturerModelName SoftwareVersions SequenceName PulseSequenceName ConvolutionKernel
    ReceiveCoilName TransmitCoilName ReceiveCoilManufacturerName ImagedNucleus FilterType RescaleType StackID
    CodeValue CodingSchemeDesignator CodingSchemeVersion CodeMeaning LUTLabel LUTExplanation
    DimensionDescriptionLabel
""")
KEPT_SEQUENCES = _names("""
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence DimensionOrganizationSequence
    DimensionIndexSequence AnatomicRegionSequence RealWorldValueMappingSequence
    MeasurementUnitsCodeSequence ModalityLUTSequence VOILUTSequence
""")
# Identification, acquisition, relationship, image, nuclear medicine, functional groups; of 0040 the value mapping.
KEPT_GROUPS = (0x0008, 0x0018, 0x0020, 0x0028, 0x0054, 0x5200)
# In these groups, but of the person or the visit, or no longer true once pixels have changed.
DROPPED = _names("""
    ModifyingDeviceID FunctionalSyncPulse HeartRate SmallestImagePixelValue LargestImagePixelValue
    SmallestPixelValueInSeries LargestPixelValueInSeries
""")
# Type 2 of their modules: present in every object, empty if not known.
EMPTIED = _names("""
    StudyDate StudyTime StudyID AccessionNumber ReferringPhysicianName PatientBirthDate PatientSex
    PositionReferenceIndicator ContrastBolusAgent
""")
NO_DATE = {"DA": "19000101", "TM": "000000", "DT": "19000101000000"}
STANDARD_UIDS = "1.2.840.10008."
PROFILE_CODES = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113102", "Clean Recognizable Visual Features Option"),
)


@dataclass(frozen=True)
class Pseudonyms:
    """New UIDs and patient ids, the same for the same old one; without the secret, which is not kept, there is no way
    back. Share one object over the series of a study that are to stay together."""

    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def uid(self, old: str) -> str:
        return "2.25." + str(int.from_bytes(self._digest("uid", old)[:16], "big"))

    def patient(self, old: str) -> str:
        return "ANON-" + self._digest("patient", old)[:4].hex().upper()

    def _digest(self, kind: str, old: str) -> bytes:
        return hmac.digest(self.secret, f"{kind} {old}".encode(), hashlib.sha256)


def check_available() -> None:
    """Raise RefaceRiskError, with what to do, unless pydicom can be imported."""
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise RefaceRiskError(
            "a DICOM series is written by pydicom, which is not installed",
            "pip install pydicom, or write a .nii.gz file",
        ) from error


def check_folder(folder: Path) -> None:
    """Raise RefaceRiskError unless ``folder`` is empty or can be made."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RefaceRiskError("is there already and not an empty folder", "name a new folder", folder)


def write_series(
    original: Volume,
    result: Volume,
    removed: np.ndarray,
    folder: str | os.PathLike,
    method: str,
    face_is_gone: bool = False,
    pseudonyms: Pseudonyms | None = None,
) -> Path:
    """Write a changed DICOM series as a new, de-identified one; the folder is complete or not there.

    original : as read by `volumes.load` from its DICOM folder or file. result : the same grid; its intensities go where
    ``removed`` (I, J, K) is true, rounded into the stored type under each slice's own rescale; every other pixel
    keeps its bits. face_is_gone : say so in RecognizableVisualFeatures.

    Raises RefaceRiskError when pydicom is absent, when the folder is not empty or cannot be written, and when the
    pixels are not integers.
    """
    check_available()
    folder, files = Path(folder), original.meta.header.files
    check_folder(folder)
    pseudonyms = pseudonyms or Pseudonyms()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        depth = original.shape[2] // len(files)  # slices a file: one, or all of a multi-frame file
        for number, file in enumerate(files):
            part = slice(number * depth, (number + 1) * depth)
            pixels = (array[:, :, part].T for array in (original.voxels, result.intensities, removed))
            dataset = _rewritten(file, *pixels, pseudonyms)
            _sign(dataset, method, face_is_gone)
            dataset.save_as(temporary / f"{number + 1:04d}.dcm", enforce_file_format=True)
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    except OSError as error:
        raise RefaceRiskError(
            f"cannot be written ({error.strerror or error})", "check the folder and its free space", folder
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _rewritten(file: str, before: np.ndarray, after: np.ndarray, removed: np.ndarray, pseudonyms: Pseudonyms):
    """One file's data set, de-identified, with new numbers where ``removed``; arrays are (frames, rows, columns)."""
    import pydicom

    source = pydicom.dcmread(file)
    pixels = _stored_pixels(source, before, file)
    slope, intercept = _scaling_that_was_read(pixels, before)
    bits = int(source.BitsStored)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if source.PixelRepresentation else (0, (1 << bits) - 1)
    fill = np.rint((after[removed].astype(np.float64) - intercept) / slope)
    pixels[removed] = np.clip(fill, low, high).astype(pixels.dtype)
    clean = _cleaned(source, pseudonyms, multi_frame="NumberOfFrames" in source)
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    clean.add_new("PixelData", "OW" if source.BitsAllocated > 8 else "OB", data + b"\0" * (len(data) % 2))
    clean.PatientName = clean.PatientID = pseudonyms.patient(str(source.get("PatientID", "")))
    clean.file_meta = pydicom.dataset.FileMetaDataset()
    clean.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    clean.file_meta.MediaStorageSOPClassUID = source.SOPClassUID
    clean.file_meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    return clean


def _stored_pixels(source, read: np.ndarray, file: str) -> np.ndarray:
    """The stored integers, (frames, rows, columns), writable. Compressed ones come from what GDCM has decoded."""
    if "PixelData" not in source or source.get("SamplesPerPixel", 1) != 1:
        raise RefaceRiskError("has no grey integer pixels", "write a .nii.gz file instead", file)
    kind = "i" if source.PixelRepresentation else "u"
    syntax = source.file_meta.TransferSyntaxUID
    dtype = np.dtype(f"{kind}{source.BitsAllocated // 8}")
    if syntax.is_compressed:
        slope, intercept = float(source.get("RescaleSlope", 1)), float(source.get("RescaleIntercept", 0))
        for a, b in ((slope, intercept), (1.0, 0.0)):
            stored = (read.astype(np.float64) - b) / a
            if np.abs(stored - np.rint(stored)).max() < 1e-3:
                return np.rint(stored).astype(dtype)
        raise RefaceRiskError("its compressed pixels cannot be brought back", "write a .nii.gz file instead", file)
    order = "<" if syntax.is_little_endian else ">"
    pixels = np.frombuffer(source.PixelData, dtype.newbyteorder(order), read.size).reshape(read.shape).astype(dtype)
    if kind == "u" and any(
        element.tag.group & 0xFF00 == 0x6000 and element.tag.element == 0x0102 for element in source
    ):
        pixels &= (1 << int(source.BitsStored)) - 1  # old files draw overlays into the unused bits
    return pixels


def _scaling_that_was_read(stored: np.ndarray, read: np.ndarray) -> tuple[float, float]:
    """Slope and intercept between stored and read numbers, from the numbers: readers differ in which tags they obey."""
    stored, read = stored.ravel(), read.ravel()
    low, high = stored.argmin(), stored.argmax()
    span = float(stored[high]) - float(stored[low])
    slope = (float(read[high]) - float(read[low])) / span if span else 1.0
    return slope, float(read[low]) - slope * float(stored[low])


def _cleaned(source, pseudonyms: Pseudonyms, multi_frame: bool, nested: bool = False):
    """A new data set with what may stay of another; the pixels are left to the caller."""
    from pydicom import Dataset
    from pydicom.datadict import keyword_for_tag

    clean = Dataset()
    for element in source:
        keyword = keyword_for_tag(element.tag)
        if keyword in EMPTIED:
            clean.add_new(element.tag, element.VR, "")
        elif not keyword or keyword in DROPPED or not _is_about_the_image(element.tag):
            continue
        elif element.VR in NO_DATE:
            if multi_frame:  # the enhanced objects demand some dates
                clean.add_new(element.tag, element.VR, NO_DATE[element.VR])
        elif element.VR == "UI":
            clean.add_new(element.tag, "UI", _new_uids(element.value, pseudonyms))
        elif element.VR == "SQ":
            if keyword in KEPT_SEQUENCES or (nested and element.tag.group != 0x0008):
                items = [_cleaned(item, pseudonyms, multi_frame, nested=True) for item in element.value]
                clean.add_new(element.tag, "SQ", items)
        elif _may_stay(keyword, element.VR):
            clean.add(element)
    return clean


def _is_about_the_image(tag) -> bool:
    return tag.group in KEPT_GROUPS or (tag.group == 0x0040 and (tag.element >= 0x9000 or tag.element == 0x08EA))


def _may_stay(keyword: str, vr: str) -> bool:
    if vr in ("LO", "SH"):
        return keyword in KEPT_TEXT
    if vr in ("PN", "LT", "ST", "UT", "UC", "UR", "AE", "AS", "UN"):
        return False
    if vr.startswith("O"):
        return keyword == "LUTData"
    return True


def _new_uids(value, pseudonyms: Pseudonyms):
    if not value:
        return value
    many = [value] if isinstance(value, str) else list(value)
    new = [uid if uid.startswith(STANDARD_UIDS) else pseudonyms.uid(str(uid)) for uid in many]
    return new[0] if isinstance(value, str) else new


def _sign(dataset, method: str, face_is_gone: bool) -> None:
    """What was done, in the words of the profile."""
    from pydicom import Dataset

    def code(value: str, meaning: str) -> Dataset:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
        return item

    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = [f"MRIRefaceRisk {__version__}: {method}"[:64], "PS3.15 basic profile"]
    dataset.DeidentificationMethodCodeSequence = [code(*pair) for pair in PROFILE_CODES]
    dataset.LongitudinalTemporalInformationModified = "REMOVED"
    if face_is_gone:
        dataset.RecognizableVisualFeatures = "NO"
    dataset.SeriesDescription = f"face removed ({method})"[:64]
    kinds = list(dataset.get("ImageType") or ["DERIVED", "PRIMARY"])
    dataset.ImageType = ["DERIVED", *kinds[1:]]
