"""What predictors see of a head: original, defaced by each method, skull-stripped, refaced, with the average face.

Each type becomes one image in template space (2 mm, brain's median = 1) under one folder a participant. Heads are
registered once; defaced copies share that affine, which looks at the cranium alone and so tells nothing of the face. A
refaced head is placed by the registration of its defaced copy, all that somebody without the original has.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..defacing import Head, deface, prepare
from ..errors import RefaceRiskError
from ..progress import OnProgress, report
from ..registration import Registration, pull
from ..template import Template, load_template
from ..volumes import Meta, Volume, load, save, sidecar

IMAGE_TYPES = (
    "original",
    "fsl_deface",
    "mri_deface",
    "pydeface",
    "quickshear",
    "skull_strip",
    "refaced",
    "average_face",
)
REFACED_FROM = "mri_deface"  # the defacer of the paper's example, whose hole the diffusion model fills
BRIGHTEST = 3.0  # in units of the brain's median; fat in T1w is about 2
_RECORD = "images.json"


@dataclass(frozen=True)
class HeadImages:
    """The images of one participant. `made`: type -> file; `refused`: type -> why there is none; `mm_per_template_mm`
    (3,): how large the head is beside the template, along the template's axes."""

    participant: str
    made: dict[str, Path]
    refused: dict[str, str]
    verdicts: dict[str, str]
    mm_per_template_mm: np.ndarray
    registration: dict = field(default_factory=dict)


def make_images(
    head: str | Path,
    folder: str | Path,
    participant: str,
    types: Sequence[str] = IMAGE_TYPES,
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> HeadImages:
    """Make what is missing of a participant's images below `folder`; what an earlier run made of this head is kept.

    A type that cannot be made (a defacer that refuses the head) is told in `refused` and tried again next time. Raises
    RefaceRiskError when the head cannot be read or registered at all, or for an unknown type.
    """
    unknown = [name for name in types if name not in IMAGE_TYPES]
    if unknown:
        raise RefaceRiskError(f"unknown image type {unknown[0]!r}", f"choose from {', '.join(IMAGE_TYPES)}")
    place = Path(folder) / participant
    volume = load(head)
    record = _record_of(place, volume.meta.sha256)
    missing = [name for name in types if name not in record["made"]]
    if missing:
        place.mkdir(parents=True, exist_ok=True)
        maker = _Maker(volume, place, record, device)
        for step, name in enumerate(missing):
            report(on_progress, f"images of {participant}", step, len(missing), name)
            maker.make(name)
        report(on_progress, f"images of {participant}", len(missing), len(missing))
    return _told(participant, place, record, types)


def keep_images(
    head: Head, folder: str | Path, participant: str, images: Iterable[tuple[str, tuple[Volume, np.ndarray, str] | str]]
) -> HeadImages:
    """Keep images that were made elsewhere of a registered head as `make_images` would have kept its own.

    images : types, each with its image, the affine (4, 4) that leads there from the template, and the verdict of what
    made it; or with why there is none. Taken one at a time. What lay there of this participant is replaced.
    """
    place = Path(folder) / participant
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    record = _record_of(place, head.volume.meta.sha256)
    try:
        maker = _Maker(head.volume, place, record, head=head)
    except RefaceRiskError as error:
        images = [(name, str(error)) for name, _ in images]
    for name, image in images:
        if isinstance(image, str):
            record["refused"][name] = image
        else:
            maker.keep(name, *image)
    _write_record(place, record)
    return _told(participant, place, record, (*record["made"], *record["refused"]))


def load_images(folder: str | Path, participant: str, types: Sequence[str] = IMAGE_TYPES) -> HeadImages:
    """The images that `make_images` left for a participant, whatever head they came from; nothing is made."""
    place = Path(folder) / participant
    return _told(participant, place, _record_of(place, None), types)


def _told(participant: str, place: Path, record: dict, types: Sequence[str]) -> HeadImages:
    made = {name: place / f"{name}.nii.gz" for name in types if name in record["made"]}
    refused = {name: record["refused"].get(name, "not made yet") for name in types if name not in made}
    verdicts = {name: record["made"][name]["verdict"] for name in made}
    return HeadImages(
        participant, made, refused, verdicts, np.array(record.get("mm_per_template_mm", [1.0] * 3)),
        record.get("registration", {}),
    )  # fmt: skip


def _record_of(place: Path, sha256: str | None) -> dict:
    """What has been made of this very file; empty if there is nothing, or if it came from another head."""
    fresh = {"made": {}, "refused": {}, "input_sha256": sha256}
    try:
        record = json.loads((place / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return fresh
    if sha256 is not None and record.get("input_sha256") != sha256:
        return fresh
    record["made"] = {name: told for name, told in record["made"].items() if (place / f"{name}.nii.gz").is_file()}
    return record


def _write_record(place: Path, record: Mapping) -> None:
    sidecar(place / _RECORD, **{key: value for key, value in record.items() if key != "version"})


class _Maker:
    """One head on one registration; every image is written, and told in the record, as soon as it is there."""

    def __init__(self, volume: Volume, place: Path, record: dict, device: str = "auto", head: Head | None = None):
        self._volume, self._place, self._record, self._device = volume, place, record, device
        self._template = load_template()
        self._head = prepare(volume, self._template) if head is None else head
        quality = self._head.registration.quality
        if quality.verdict == "failed":
            raise RefaceRiskError(
                f"cannot be used: {quality.reason}", "check that it is a whole head", volume.meta.path
            )
        affine = Registration(self._head.registration.matrix)
        self._scale = brain_median(volume, affine, self._template)
        record["registration"] = asdict(quality)
        record["mm_per_template_mm"] = np.linalg.norm(affine.matrix[:3, :3], axis=0).tolist()
        self._defaced: dict = {}

    def make(self, name: str) -> None:
        try:
            image, matrix, verdict = self._image(name)
        except RefaceRiskError as error:
            self._record["refused"][name] = str(error)
        else:
            self.keep(name, image, matrix, verdict)
        _write_record(self._place, self._record)

    def keep(self, name: str, image: Volume, matrix: np.ndarray, verdict: str) -> None:
        canonical = template_image(image, Registration(matrix), self._template, self._scale)
        save(canonical, self._place / f"{name}.nii.gz")
        self._record["made"][name] = {"verdict": verdict}
        self._record["refused"].pop(name, None)

    def _image(self, name: str) -> tuple[Volume, np.ndarray, str]:
        """Image on the head's own grid, the affine that leads there from the template, the verdict."""
        matrix = self._head.registration.matrix
        if name == "original":
            return self._volume, matrix, self._head.registration.quality.verdict
        if name == "refaced":
            from ..diffusion.cascade import Refacer

            defaced = self._deface(REFACED_FROM)
            done = Refacer.load("reference").reface(defaced.volume, defaced.removed, device=self._device)
            return done.volume, done.registration.matrix, defaced.quality.verdict
        defaced = self._deface(name)
        return defaced.volume, matrix, defaced.quality.verdict

    def _deface(self, method: str):
        if method not in self._defaced:
            self._defaced[method] = deface(self._volume, method, head=self._head)
        return self._defaced[method]


def brain_median(volume: Volume, registration: Registration, template: Template) -> float:
    """Median intensity of the brain, which no defacer touches: the unit of all images of this head."""
    grid = (registration, template.shape, template.affine)
    inside = pull(np.ones(volume.shape, np.float32), volume.affine, *grid) > 0.5
    brain = pull(volume.intensities, volume.affine, *grid)[template.brain & inside]
    median = float(np.median(brain)) if brain.size else 0.0
    if median <= 0:
        raise RefaceRiskError("the brain is not brighter than the air", "give a T1-weighted head", volume.meta.path)
    return median


def template_image(volume: Volume, registration: Registration, template: Template, scale: float) -> Volume:
    """A head in template space, (X, Y, Z) uint8 with a slope: 0 air, 1 the brain's median, at most BRIGHTEST."""
    sigma = np.maximum(template.spacing / np.asarray(volume.spacing) - 1, 0) * 0.5
    smooth = ndimage.gaussian_filter(volume.intensities, sigma) if sigma.max() > 0.1 else volume.intensities
    image = pull(smooth, volume.affine, registration, template.shape, template.affine) / scale
    stored = np.rint(np.clip(image, 0, BRIGHTEST) * (255 / BRIGHTEST)).astype(np.uint8)
    return Volume(stored, template.affine, Meta(slope=BRIGHTEST / 255, format="nifti"))
