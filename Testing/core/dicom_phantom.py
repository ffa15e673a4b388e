"""DICOM series of a person who does not exist, written with pydicom: every place for a name holds one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

SECRETS = (
    "Mustermann", "Erika", "19640812", "4711-ID", "St Elsewhere", "Dr Who", "20190601", "101112", "SN-0815",
    "1.3.6.1.4.1.99999", "Secret Street", "SCANNER7", "ACC-12345",
)  # fmt: skip
ROOT = "1.3.6.1.4.1.99999"
MR, CT, ENHANCED_MR = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("4", "2", "4.1"))
# A head that is nodded and turned: no axis of the images lies along one of the patient's.
_TURN = np.linalg.qr(np.array([[1.0, 0.2, -0.1], [-0.15, 1.0, 0.3], [0.05, -0.3, 1.0]]))[0]
OBLIQUE = _TURN * np.sign(np.diag(_TURN)) @ np.diag([1, 1, np.linalg.det(_TURN * np.sign(np.diag(_TURN)))])


def person(dataset: Dataset) -> Dataset:
    """Names, dates, ids and places where a scanner puts them, at the top and in sequences."""
    dataset.PatientName, dataset.PatientID = "Mustermann^Erika", "4711-ID"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "19640812", "F", "054Y"
    dataset.PatientAddress, dataset.PatientWeight, dataset.PatientComments = "Secret Street 1", 71, "Erika is tall"
    dataset.OtherPatientIDs, dataset.EthnicGroup = "4711-ID", "Erika"
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20190601"
    dataset.StudyTime = dataset.AcquisitionTime = dataset.ContentTime = "101112"
    dataset.AcquisitionDateTime = "20190601101112"
    dataset.StudyID, dataset.AccessionNumber = "ACC-12345", "ACC-12345"
    dataset.ReferringPhysicianName = dataset.OperatorsName = "Dr Who"
    dataset.InstitutionName, dataset.InstitutionAddress = "St Elsewhere", "Secret Street 2"
    dataset.StationName, dataset.DeviceSerialNumber = "SCANNER7", "SN-0815"
    dataset.StudyDescription = dataset.SeriesDescription = dataset.ProtocolName = "Erika brain"
    dataset.ImageComments = "Mustermann moved"
    dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = f"{ROOT}.1", f"{ROOT}.2"
    dataset.SeriesInstanceUID = f"{ROOT}.3"
    item = Dataset()
    item.PatientID, item.RequestedProcedureDescription = "4711-ID", "Erika brain"
    dataset.RequestAttributesSequence = [item]
    icon = Dataset()
    icon.Rows = icon.Columns = 2
    icon.BitsAllocated, icon.SamplesPerPixel, icon.PixelRepresentation = 16, 1, 0
    icon.PixelData = b"Erika..."
    dataset.IconImageSequence = [icon]
    dataset.add_new((0x6000, 0x0022), "LO", "Mustermann")
    dataset.add_new((0x6000, 0x3000), "OW", b"Mustermann".ljust(64))
    block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", b"tPatientName = Mustermann")
    dataset.private_block(0x0019, "Erika", create=True).add_new(0x01, "LO", "Mustermann")
    return dataset


def image(dataset: Dataset, stored: np.ndarray, bits: int = 16) -> Dataset:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.BitsAllocated = 8 * stored.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.add_new("PixelData", "OW", stored.tobytes())
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    dataset.Manufacturer, dataset.MagneticFieldStrength, dataset.EchoTime = "ACME", "3", "2.98"
    dataset.BurnedInAnnotation = "NO"
    return dataset


def write_series(
    folder: Path, stored: np.ndarray, step=(2.0, 2.5, 3.0), directions=OBLIQUE, slope=1.0, intercept=0.0,
    sop_class=MR, bits=16, compressed=False,
) -> Path:  # fmt: skip
    """``stored`` (slices, rows, columns) integers as one file a slice, named after the patient, in no order."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(stored):
        dataset = image(person(Dataset()), pixels, bits)
        dataset.Modality = "CT" if sop_class == CT else "MR"
        dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, f"{ROOT}.3.{number + 1}"
        dataset.SeriesNumber, dataset.InstanceNumber = 4, number + 1
        dataset.ImagePositionPatient = [f"{x:.6f}" for x in directions @ (0, 0, number * step[2]) + (-40, 10, -60)]
        dataset.ImageOrientationPatient = [f"{x:.8f}" for x in directions[:, :2].T.ravel()]
        dataset.PixelSpacing, dataset.SliceThickness = [step[1], step[0]], step[2]
        if (slope, intercept) != (1, 0) or sop_class == CT:
            dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = slope, intercept, "HU"
        _save(dataset, folder / f"Mustermann_{(5 * number + 3) % len(stored):03d}.dcm", compressed)
    return folder


def write_enhanced(path: Path, stored: np.ndarray, step=(2.0, 2.5, 3.0), directions=OBLIQUE) -> Path:
    """All slices in one multi-frame file, with names and dates inside its functional groups."""
    dataset = image(person(Dataset()), stored)
    dataset.Modality, dataset.SOPClassUID, dataset.SOPInstanceUID = "MR", ENHANCED_MR, f"{ROOT}.3.1"
    dataset.NumberOfFrames = len(stored)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [f"{x:.8f}" for x in directions[:, :2].T.ravel()]
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = [step[1], step[0]], step[2], step[2]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number in range(len(stored)):
        frame, position, content, source = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [f"{x:.6f}" for x in directions @ (0, 0, number * step[2]) + (-40, 10, -60)]
        content.FrameAcquisitionDateTime, content.FrameComments = "20190601101112", "Mustermann"
        content.DimensionIndexValues, content.StackID, content.InStackPositionNumber = [1, number + 1], "1", number + 1
        source.ReferencedSOPInstanceUID, source.PatientName = f"{ROOT}.9.{number}", "Mustermann"
        frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
        frame.DerivationImageSequence = [source]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    return _save(dataset, path)


def _save(dataset: Dataset, path: Path, compressed: bool = False) -> Path:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.SourceApplicationEntityTitle = "SCANNER7"
    dataset.preamble = b"Mustermann".ljust(128)
    if compressed:
        dataset.compress(RLELossless)
    dataset.save_as(path, enforce_file_format=True)
    return path


def secrets_in(path: Path) -> list[str]:
    """Which of the secrets are in the file's bytes or in its name."""
    raw = path.read_bytes() + path.name.encode()
    return [text for text in SECRETS if text.encode() in raw]


def read_pixels(folder: Path) -> list[tuple[pydicom.Dataset, np.ndarray]]:
    return [(dataset, dataset.pixel_array) for dataset in map(pydicom.dcmread, sorted(folder.glob("*.dcm")))]
