"""Several defacers on one head, on one registration: a table of what each takes and leaves.

Needs no scene and no data frames: a panel, the command line and a script get the same rows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import RefaceRiskError
from ..progress import OnProgress, report
from ..volumes import Volume
from . import METHODS, deface, options_of, prepare
from .base import Defaced, Head
from .face_view import PATCHES

COLUMNS = (
    "method",
    "verdict",
    "reason",
    "removed_ml",
    "face_surface_removed",
    *(f"{name}_left" for name in PATCHES),
    "brain_voxels_touched",
    "brain_distance_mm",
    "seconds",
)


@dataclass(frozen=True)
class Trial:
    """One run of a defacer: ``options`` as `deface` takes them. ``label`` names its row (default: the method)."""

    method: str
    options: Mapping[str, object] = field(default_factory=dict)
    engine: str = "builtin"
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or self.method


@dataclass(frozen=True, eq=False)
class Comparison:
    """What N defacers made of one head.

    results : by the trial's name, in the order asked for. refused : why a defacer gave no result, by name.
    seconds : of each defacer alone. preparing_seconds : of the registration and the brain mask that all share.
    """

    head: Head
    results: dict[str, Defaced]
    refused: dict[str, RefaceRiskError]
    seconds: dict[str, float]
    preparing_seconds: float

    def rows(self) -> list[dict]:
        """One dict a trial, with the keys COLUMNS; None where there is no figure.

        removed_ml : volume cut away. face_surface_removed, *_left : shares from 0 to 1. brain_distance_mm : from the
        brain mask, its safety margin included, to the nearest removed voxel.
        """
        return [self._row(name) for name in self.seconds]

    def _row(self, name: str) -> dict:
        row = dict.fromkeys(COLUMNS) | {"method": name, "seconds": self.seconds[name]}
        if name in self.refused:
            return row | {"verdict": "failed", "reason": str(self.refused[name])}
        found = self.results[name]
        quality = found.quality
        millilitres = abs(np.linalg.det(found.volume.affine[:3, :3])) / 1000
        return row | {
            "verdict": quality.verdict,
            "reason": quality.reason,
            "removed_ml": float(found.removed.sum() * millilitres),
            "face_surface_removed": quality.face_surface_removed,
            **{f"{feature}_left": quality.left[feature] for feature in PATCHES},
            "brain_voxels_touched": quality.brain_voxels_touched,
            "brain_distance_mm": float(self.head.brain_distance[found.removed].min()),
        }


def compare(
    volume: Volume,
    methods: Sequence[str | Trial] | None = None,
    head: Head | None = None,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Run defacers on one head.

    Parameters
    ----------
    methods : names or :class:`Trial`; default: every method that needs no drawing by hand.
    head : what :func:`prepare` returned for this volume, where it is known.

    A defacer that refuses the head (an original program that is absent, brain that would be touched) gets a row with
    verdict ``failed`` and its reason; the others go on. Raises :class:`RefaceRiskError` for what is wrong with the
    request (unknown methods and engines, two trials of one name) or with the volume, before any work.
    """
    trials = _checked(automatic_methods() if methods is None else methods)
    began = time.perf_counter()
    steps = len(trials) + 1
    report(on_progress, "compare", 0, steps, "registration")
    head = head or prepare(volume, on_progress=on_progress)
    preparing = time.perf_counter() - began
    results, refused, seconds = {}, {}, {}
    for step, trial in enumerate(trials, 1):
        report(on_progress, "compare", step, steps, trial.name)
        began = time.perf_counter()
        try:
            results[trial.name] = deface(
                volume, trial.method, engine=trial.engine, head=head, on_progress=on_progress, **trial.options
            )
        except RefaceRiskError as error:
            refused[trial.name] = error
        seconds[trial.name] = time.perf_counter() - began
    report(on_progress, "compare", steps, steps)
    return Comparison(head, results, refused, seconds, preparing)


def automatic_methods() -> tuple[str, ...]:
    """The methods that need nothing but a head."""
    return tuple(name for name in METHODS if "mask" not in options_of(name))


def _checked(methods: Sequence[str | Trial]) -> list[Trial]:
    trials = [Trial(entry) if isinstance(entry, str) else entry for entry in methods]
    if not trials:
        raise RefaceRiskError("no defacing method to compare", f"choose from {', '.join(METHODS)}")
    for trial in trials:
        options_of(trial.method, trial.engine)  # refuses what is not known
    names = [trial.name for trial in trials]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise RefaceRiskError(f"two trials are called {twice}", "give each one a label of its own")
    return trials
