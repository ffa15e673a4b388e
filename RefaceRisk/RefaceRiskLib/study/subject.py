"""One subject of a study: defaced by every method on one registration, refaced, measured; results to disk as they come.

Each defacer is a step of the ledger. The original's registration serves the defacers and the measurement; what puts a
face back knows the defaced head and the mask alone, so that it has a registration of its own, which never saw the face.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .. import __version__, hygiene, jobs, volumes
from ..errors import RefaceRiskError
from .ledger import Ledger, signature
from .plan import ALONE, DRAWN, FACE_ALONE, Settings, image_of, model_digest


def process(message: Mapping, kind: type[Subject] | None = None) -> dict:
    """Brings one subject up to date; takes and returns a few hundred bytes, everything else goes through the disk.

    `message`: name, head, out, settings (as a message), verify, muscle (whether it is predicted). Returns name,
    status (`done` or `failed`), reason, seconds. Never raises for what is wrong with one subject.
    """
    began = time.perf_counter()
    use_one_thread()
    keep_freed_memory()
    name = message["name"]
    try:
        ledger, settings = Ledger(message["out"]), Settings.from_message(message["settings"])
        subject = (kind or Subject)(name, Path(message["head"]), ledger, settings, message.get("muscle", False))
        subject.finish_all(message.get("verify", False))
    except Exception as error:  # of one participant; the others go on
        reason = str(error) if isinstance(error, RefaceRiskError) else f"unexpected {type(error).__name__}: {error}"
        if isinstance(error, MemoryError):
            reason = "not enough memory; use fewer --workers"
        return {"name": name, "status": "failed", "reason": " ".join(reason.split())[:400], "seconds": 0.0}
    return {"name": name, "status": "done", "reason": "", "seconds": time.perf_counter() - began}


def use_one_thread() -> None:
    """One thread a process: the processes share the cores, and sums come out alike however many there are."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    if "torch" in sys.modules:  # else it reads the variables when it comes
        sys.modules["torch"].set_num_threads(1)


def keep_freed_memory() -> None:
    """Lets glibc hand the memory of freed arrays to the next ones, as it does unless it is told otherwise.

    dask tells its workers otherwise (MALLOC_TRIM_THRESHOLD_=65536): every image then comes from the system afresh, at
    30 times the page faults and a quarter more time.
    """
    trim_threshold, mmap_threshold = -1, -3  # the names of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(mmap_threshold, 32 << 20)  # the largest that glibc takes
    mallopt(trim_threshold, 64 << 20)


def steps_of(settings: Settings, muscle: bool) -> tuple[str, ...]:
    return ("original", *settings.methods, *(("muscle",) if muscle else ()))


def is_up_to_date(
    ledger: Ledger, name: str, head: Path, settings: Settings, verify: bool = False, muscle: bool = False
) -> bool:
    """Whether nothing is left to do for a subject, from the disk alone and without reading the head again."""
    record = ledger.read(name)
    told = record.get("input", {})
    try:
        same = told.get("signature") == signature(head) and not verify
    except OSError:
        return False
    if not same and told.get("sha256") != _sha256(head):
        return False
    digest = told.get("sha256") or ""
    steps = steps_of(settings, muscle)
    return all(ledger.is_finished(record, step, settings.key_of(step, digest), verify) for step in steps)


def _sha256(head: Path) -> str:
    """As `volumes.load` tells it for files; "" for folders, which have to be read for it."""
    try:
        return volumes.sha256_of(head) if head.is_file() else ""
    except OSError:
        return ""


class Subject:
    """One participant with its record; `finish_all` does what the record lacks."""

    def __init__(self, name: str, head: Path, ledger: Ledger, settings: Settings, muscle: bool = False):
        self.name, self.path, self.ledger, self.settings, self.muscle = name, head, ledger, settings, muscle
        self.record = ledger.read(name)
        self.prepared = self.faces = self.shared = None
        self._refacers: dict = {}

    def finish_all(self, verify: bool) -> None:
        before = _signature(self.path)
        self.volume = volumes.load(self.path)
        digest = self.volume.meta.sha256
        if self.record.get("input", {}).get("sha256") != digest:
            self.record = {"input": {}, "steps": {}}
        self.record["input"] = {"file": self.path.name, "sha256": digest, "signature": before}
        wanted = {step: self.settings.key_of(step, digest) for step in steps_of(self.settings, self.muscle)}
        missing = [s for s, key in wanted.items() if not self.ledger.is_finished(self.record, s, key, verify)]
        for step in missing:
            began = time.perf_counter()
            self._prepare()
            whole = {"original": self._original, "muscle": self._muscle}
            found = whole[step]() if step in whole else self._defaced(step)
            outputs = found.pop("outputs")
            self.record["steps"][step] = {
                "key": wanted[step],
                **found,
                "seconds": round(time.perf_counter() - began, 2),
                "outputs": {path.relative_to(self.ledger.out).as_posix(): self.ledger.wrote(path) for path in outputs},
            }
            self.ledger.write(self.name, self.record)
        if not missing:  # touched, but the same
            self.ledger.write(self.name, self.record)

    def _prepare(self) -> None:
        if self.prepared is None:
            from ..defacing import prepare
            from .faces import Faces

            volumes.check_head(self.volume)
            for model in self.settings.models:  # damaged weights are told before an hour is spent
                self._refacer(model)
            self.prepared = prepare(self.volume)
            if self.prepared.registration.quality.verdict == "failed":
                raise RefaceRiskError(
                    f"cannot be defaced: {self.prepared.registration.quality.reason}",
                    "check that it is a whole head",
                    self.path,
                )
            self.faces = Faces(self.prepared)

    # --- steps ------------------------------------------------------------------------------------------------------

    def _original(self) -> dict:
        """The true face, as the gallery of the linkage holds it, and as a probe that was meshed anew."""
        folder = self.ledger.faces(self.name)
        quality = self.prepared.registration.quality
        return {
            "outputs": self.faces.save_original(folder),
            "registration": {"verdict": quality.verdict, "overlap": quality.overlap},
        }

    def _defaced(self, method: str) -> dict:
        from ..defacing import deface

        began = time.perf_counter()
        try:
            defaced = deface(self.volume, method, head=self.prepared)
        except RefaceRiskError as error:
            return {"outputs": [], "refused": error.what, "rows": []}
        made = "average" if method in DRAWN else "defaced"
        images, seconds = {made: defaced.volume}, {made: time.perf_counter() - began}
        place, refused = self.prepared.registration, ""
        outputs = self._save_defaced(defaced)
        if method not in DRAWN:
            try:
                place, completed, took = self._refaced(defaced)
            except RefaceRiskError as error:
                completed, took, refused = {}, {}, f"not refaced: {error.what}"
            images |= completed
            seconds |= took
            for image, volume in completed.items():
                outputs += self._save_refaced(defaced, image, volume)
        rows, skins = self.faces.measured(images, defaced.removed)
        for row in rows:
            row["seconds"] = round(seconds[row["image"]], 2)
        for image, skin in skins.items():
            path = self.ledger.faces(self.name) / f"{method}_{image}.npy"
            outputs.append(self.faces.save_probe(path, skin, defaced.removed, place))
        quality = defaced.quality
        return {
            "outputs": outputs,
            "rows": rows,
            "refused": refused,
            "quality": {
                "verdict": quality.verdict,
                "reason": quality.reason,
                "face_surface_removed": quality.face_surface_removed,
                "brain_voxels_touched": quality.brain_voxels_touched,
                "removed_voxels": int(defaced.removed.sum()),
            },
        }

    def _muscle(self) -> dict:
        """The images that muscle is predicted from, of what the defacers' steps left on disk."""
        from ..radiodensity.images import keep_images
        from .muscle import images_folder

        images = ((name, self._image_for_muscle(name)) for name in self.settings.muscle_types())
        kept = keep_images(self.prepared, images_folder(self.ledger), self.name, images)
        return {
            "outputs": sorted(file for file in (images_folder(self.ledger) / self.name).iterdir() if file.is_file()),
            "refused": kept.refused,
        }

    def _image_for_muscle(self, name: str) -> tuple | str:
        """Image, affine and verdict; or why there is none."""
        from ..radiodensity.images import REFACED_FROM

        registration = self.prepared.registration
        if name == "original":
            return self.volume, registration.matrix, registration.quality.verdict
        method, image = (REFACED_FROM, "dpm") if name == "refaced" else (name, "defaced")
        path, entry = volume_path(self.ledger.out, self.name, method, image), self.record["steps"][method]
        if path.relative_to(self.ledger.out).as_posix() not in entry["outputs"]:
            return entry.get("refused") or "was not made"
        place = self._blind_of_all() if name == "refaced" else registration
        return volumes.load(path), place.matrix, entry["quality"]["verdict"]

    def _refaced(self, defaced) -> tuple:
        """The registration of the defaced head alone, and by image the completed volumes and their seconds."""
        began = time.perf_counter()
        blind = self._blind(defaced)
        registering = time.perf_counter() - began
        volumes_, seconds, task = {}, {}, None
        for model in self.settings.models:
            began = time.perf_counter()
            refacer = self._refacer(model)
            options = {"samples": self.settings.samples, "steps": self.settings.steps, "seed": self.settings.seed}
            if model == "average":
                done = refacer.reface(defaced.volume, defaced.removed, registration=blind)
            else:
                if task is None or not _same_start(task[0], model):
                    task = model, refacer.prepared(defaced.volume, defaced.removed, blind, self.prepared.template)
                done = refacer.completed(task[1], device=self.settings.device, **options)
            volumes_[image_of(model)] = done.volume
            seconds[image_of(model)] = registering + time.perf_counter() - began
        return blind, volumes_, seconds

    def _blind(self, defaced):
        """The registration of what a defacer left, knowing nothing of what it took.

        Defacers that take the face alone share one, of the head without all that any of them would take: each of them
        left more than that. A head without its scalp is registered on its own.
        """
        if defaced.method in ALONE:
            return self._registered(defaced.volume, defaced.method)
        return self._blind_of_all()

    def _blind_of_all(self):
        if self.shared is None:
            from ..defacing import METHODS

            head = self.prepared
            taken = np.logical_or.reduce([METHODS[name](head) for name in FACE_ALONE]) & ~head.brain
            self.shared = self._registered(head.volume.replaced(taken, float(head.volume.intensities.min())), "all")
        return self.shared

    def _registered(self, left: volumes.Volume, method: str):
        from ..registration import deformed_beside_face, register

        template = self.prepared.template
        found = register(left, template)
        if found.quality.verdict == "failed":
            raise RefaceRiskError(f"{method}: {found.quality.reason}", "check the head", self.path)
        return deformed_beside_face(left, template, found)

    def _refacer(self, model: str):
        return _loaded(model, model_digest(model))

    # --- files ------------------------------------------------------------------------------------------------------

    def _save_defaced(self, defaced) -> list[Path]:
        record = self._told(defaced.method, {"options": dict(defaced.options), "command": "deface"})
        note = f"MRIRefaceRisk {__version__}: face removed ({defaced.method})"[:79]
        if defaced.method in DRAWN:
            record["synthetic"] = True
            note = f"{jobs.SYNTHETIC} ({defaced.method})"[:79]
        head = self.prepared.volume
        mask = head.with_intensities(defaced.removed, dtype=np.uint8).noted(description="1 = removed by defacing")
        label = _label(defaced.method)
        written = self._save(f"desc-{label}_mask", mask, {**record, "synthetic": False, "content": jobs.MASK})
        physics = hygiene.bids_physics(self.path)
        return written + self._save(f"desc-{label}_T1w", defaced.volume.noted(description=note), {**physics, **record})

    def _save_refaced(self, defaced, image: str, volume: volumes.Volume) -> list[Path]:
        model = next(model for model in self.settings.models if image_of(model) == image)
        told = {"command": "reface", "synthetic": True, "model": Path(model).name, "weights": model_digest(model)}
        told |= {"seed": self.settings.seed, "steps": self.settings.steps, "samples": self.settings.samples}
        note = f"{jobs.SYNTHETIC} ({image} after {defaced.method})"[:79]
        label = _label(f"{defaced.method}_{image}")
        return self._save(f"desc-{label}_T1w", volume.noted(description=note), self._told(defaced.method, told))

    def _told(self, method: str, more: Mapping) -> dict:
        head = self.record["input"]
        return {"method": method, "input": {"file": head["file"], "sha256": head["sha256"]}, **more}

    def _save(self, ending: str, volume: volumes.Volume, record: Mapping) -> list[Path]:
        path = self.ledger.out / self.name / "anat" / f"{self.name}_{ending}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        return [volumes.sidecar(path, **record), volumes.save(hygiene.cleaned(volume), path)]


def volume_path(out: Path, name: str, method: str, image: str) -> Path:
    """Where the image of a subject lies after a defacer."""
    ending = method if image == "defaced" or method in DRAWN else f"{method}_{image}"
    return out / name / "anat" / f"{name}_desc-{_label(ending)}_T1w.nii.gz"


def _signature(path: Path) -> str:
    try:
        return signature(path)
    except OSError as error:
        raise RefaceRiskError("no such file", "check the path", path) from error


_REFACERS: dict[tuple[str, str], object] = {}


def _loaded(model: str, digest: str):
    """A refacer, loaded once a process."""
    from ..diffusion.cascade import Refacer

    if (model, digest) not in _REFACERS:
        _REFACERS[model, digest] = Refacer.load(model)
    return _REFACERS[model, digest]


def _same_start(one: str, other: str) -> bool:
    return {one, other} <= {"reference", "linear"} or one == other


def _label(name: str) -> str:
    """A BIDS label, letters and digits only: mri_deface becomes mriDeface."""
    first, *rest = name.replace("-", "_").split("_")
    return "".join(c for c in first + "".join(part[:1].upper() + part[1:] for part in rest) if c.isalnum())
