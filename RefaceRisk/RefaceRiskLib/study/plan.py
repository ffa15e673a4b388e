"""What a study does to each subject, and the keys by which a result on disk is known to answer still the same question.

A key hashes all that a result depends on: the head's voxels, the method and its settings, the template, the weights and
the version of this software. A result whose key has not changed is never computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from .. import __version__
from ..errors import RefaceRiskError
from ..resources import model_folder, resources_root

# Name of a model -> its images in the tables.
IMAGES = {"reference": "dpm", "average": "average", "linear": "linear"}
DRAWN = ("average_face",)  # defacers that put a face in: nothing is left to reface
FACE_ALONE = ("fsl_deface", "mri_deface", "pydeface", "quickshear", "average_face")  # defacers that leave the scalp
ALONE = ("skull_strip",)  # and that do not
LAYOUT = 3  # raised whenever a step writes something else than before
LIGHT_STEPS = 4


@dataclass(frozen=True)
class Settings:
    """What is computed a subject. The defaults are the light settings: two models, one face each, four noises.

    methods : defacers. models : refacers, of "reference" (diffusion), "average" and "linear", or folders of weights.
    steps : network calls a stage. samples : faces drawn; one is the expected face. seed : of the draws.
    """

    methods: tuple[str, ...]
    models: tuple[str, ...] = ("reference", "average")
    steps: int = LIGHT_STEPS
    samples: int = 1
    seed: int = 0
    device: str = "auto"

    def as_message(self) -> dict:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_message(cls, message: dict) -> Settings:
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in message.items()})

    def muscle_types(self) -> tuple[str, ...]:
        """The images that muscle is predicted from: the original and all that this study makes of it."""
        from ..radiodensity.images import IMAGE_TYPES, REFACED_FROM

        made = {"original", *self.methods}
        if "reference" in self.models and REFACED_FROM in self.methods:
            made.add("refaced")
        return tuple(name for name in IMAGE_TYPES if name in made)

    def key_of(self, step: str, head_sha256: str) -> str:
        """The key of one step: "original", the name of a defacer, or "muscle"."""
        asked: dict = {"version": __version__, "layout": LAYOUT, "step": step, "head": head_sha256}
        asked["template"] = digest_of(resources_root() / "Template")
        if step != "original":
            asked["brain"] = digest_of(resources_root() / "Models" / "brain")
        if step not in ("original", *DRAWN):
            drawn = {"steps": self.steps, "samples": self.samples, "seed": self.seed}
            asked["models"] = [[name, model_digest(name), drawn if is_cascade(name) else {}] for name in self.models]
        if step == "muscle":
            asked["types"] = self.muscle_types()
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def checked_settings(methods: Iterable[str] | None, models: Iterable[str], **others) -> Settings:
    """Settings with names that exist; "all" or None stands for every defacer that needs no drawing by hand."""
    from ..defacing.compare import automatic_methods

    known = automatic_methods()
    asked = list(dict.fromkeys(methods or ["all"]))
    chosen = list(known) if asked == ["all"] else asked
    wrong = next((name for name in chosen if name not in known), None)
    if wrong is not None:
        raise RefaceRiskError(f"unknown defacing method {wrong!r}", f"choose all or from {', '.join(known)}")
    models = tuple(dict.fromkeys(models))
    for name in models:
        model_digest(name)
    labels = [image_of(name) for name in models]
    if len(set(labels)) < len(labels):
        raise RefaceRiskError("two models have the same name", "give each folder of weights a name of its own")
    return Settings(tuple(chosen), models, **others)


def image_of(model: str) -> str:
    """What a model's images are called in the tables."""
    return IMAGES.get(model, Path(model).name)


def is_cascade(model: str) -> bool:
    return model not in ("average", "linear")


def folder_of(model: str) -> Path | None:
    """The folder of a model's weights; None for the average face, which has none."""
    if model == "average":
        return None
    return model_folder("reference") if model in IMAGES else Path(model)


def model_digest(model: str) -> str:
    folder = folder_of(model)
    if folder is None:
        return ""
    if not folder.is_dir():
        raise RefaceRiskError("no such model", "choose reference, linear, average or a folder of weights", folder)
    return digest_of(folder / "linear" if model == "linear" else folder)


def trained_on(models: Iterable[str]) -> frozenset[str]:
    """sha256 of the heads that a model has been trained on, where it says so (`trained_on.json` beside its weights)."""
    found: set[str] = set()
    for folder in filter(None, map(folder_of, models)):
        try:
            found |= set(json.loads((folder / "trained_on.json").read_text(encoding="utf-8"))["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return frozenset(found)


@lru_cache(maxsize=64)
def digest_of(folder: Path) -> str:
    """sha256 over the data files of a folder, names included; of notes and lists that no result depends on, none."""
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.suffix == ".md" or file.name == "trained_on.json":
            continue
        total.update(file.relative_to(folder).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()
