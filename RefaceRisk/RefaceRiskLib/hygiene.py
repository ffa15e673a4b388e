"""Names, dates and ids out of what travels beside the voxels: file headers, extensions, BIDS sidecars.

Free text in a header is dropped, not searched for names: nobody can tell a name from a protocol. What describes the
grid, the scaling and the scan's physics stays, and so does every voxel. DICOM has its own module, `dicom_write`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from . import mgh, nifti
from .volumes import Volume

# Of a BIDS sidecar stays what this list names: the physics of the scan. The keys are those of the BIDS
# specification's MRI, CT and PET tables and those that dcm2niix adds to them.
_KEPT = """
AcquisitionMatrixPE AcquisitionVoxelSize B0FieldIdentifier B0FieldSource BandwidthPerPixelPhaseEncode BaseResolution
BodyPart BodyPartExamined CoilCombinationMethod CoilString ContrastBolusIngredient ConversionSoftware
ConversionSoftwareVersion ConvolutionKernel DeidentificationMethod DelayTime DerivedVendorReportedEchoSpacing
DiffusionScheme DwellTime EchoNumber EchoTime EchoTime1 EchoTime2 EchoTrainLength EffectiveEchoSpacing ExposureTime
FatSuppression FatSuppressionTechnique FlipAngle FocalSpots FrameDuration FrameTimesStart GantryTilt GradientSetType
ImageDecayCorrected ImageOrientationPatientDICOM ImageType ImagingFrequency InPlanePhaseEncodingDirectionDICOM
InternalPulseSequenceName InversionTime KVP MRAcquisitionType MTPulseBandwidth MTPulseDuration MTPulseShape MTState
MagneticFieldStrength Manufacturer ManufacturersModelName MatrixCoilMode Modality MultibandAccelerationFactor
NegativeContrast NonlinearGradientCorrection NumberOfAverages NumberOfTransmitCoilActiveElements NumberShots
ParallelAcquisitionTechnique ParallelReductionFactorInPlane ParallelReductionFactorOutOfPlane
ParallelReductionOutOfPlane PartialFourier PartialFourierDirection PatientPosition PercentPhaseFOV PercentSampling
PhaseEncodingAxis PhaseEncodingDirection PhaseEncodingPolarityGE PhaseEncodingSteps PhaseOversampling PhaseResolution
PixelBandwidth PostLabelingDelay PulseSequenceType ReceiveCoilActiveElements ReceiveCoilName ReconMatrixPE RefLinesPE
RepetitionTime RepetitionTimeExcitation RepetitionTimePreparation SAR ScanOptions ScanningSequence SequenceName
SequenceVariant ShimSetting SkullStripped SliceEncodingDirection SliceThickness SliceTiming SpacingBetweenSlices
SpoilingGradientDuration SpoilingGradientMoment SpoilingRFPhaseIncrement SpoilingState SpoilingType TotalReadoutTime
TubeCurrent TxRefAmp Units VendorReportedEchoSpacing WaterFatShift XRayExposure XRayTubeCurrent
"""
PHYSICS = frozenset(_KEPT.split())


def cleaned(volume: Volume) -> Volume:
    """The same voxels on the same grid under a header without free text; notes of our own are still written.

    NIfTI: ``descrip``, ``aux_file``, ``db_name``, ``data_type`` and ``intent_name`` are emptied, unused numbers zeroed,
    extensions and what follows the voxels dropped. MGH: tags (command lines, file names) dropped, TR, flip angle, TE,
    TI and field of view kept. NRRD and MetaImage: all keys dropped but those that the format needs.
    """
    header = volume.meta.header
    if isinstance(header, nifti.NiftiHeader):
        header = nifti.without_text(header)
    elif isinstance(header, mgh.MghHeader):
        header = mgh.without_text(header)
    elif isinstance(header, Mapping):
        header = {}
    return replace(volume, meta=replace(volume.meta, header=header))


def bids_physics(source: Path) -> dict:
    """What may be kept of the BIDS sidecar beside a volume (``T1w.json`` beside ``T1w.nii.gz``); {} without one.

    Only the keys of :data:`PHYSICS`, and of these only numbers, words and lists of them: no nested records. Dates,
    device serial numbers, institution, patient, series description and UIDs are not among them.
    """
    name = source.name
    for ending in (".nii.gz", ".nii"):
        if name.lower().endswith(ending):
            break
    else:
        return {}
    try:
        record = json.loads(source.with_name(name[: -len(ending)] + ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or none that can be read: nothing to keep
        return {}
    if not isinstance(record, dict):
        return {}
    return {key: value for key, value in record.items() if key in PHYSICS and _is_plain(value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 64)
