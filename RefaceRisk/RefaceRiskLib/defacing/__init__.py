"""Defacing by the methods that the field uses, one file a method, on one registration and one brain mask."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import numpy as np

from ..brainmask.agreement import register_checked
from ..errors import RefaceRiskError
from ..progress import OnProgress, report
from ..template import Template, load_template
from ..tissue import brain_distance, find_brain
from ..volumes import Volume, check_head
from .average_face import average_face, replace_face
from .base import Defaced, Defacer, Head, Quality
from .external import PROGRAMS, find_program, run_original
from .fill import FILLS, filled
from .fsl_deface import fsl_deface
from .interactive import interactive
from .mri_deface import mri_deface
from .pydeface import pydeface
from .quality import assess
from .quickshear import quickshear
from .skull_strip import skull_strip

METHODS: dict[str, Defacer] = {
    "fsl_deface": fsl_deface,
    "mri_deface": mri_deface,
    "pydeface": pydeface,
    "quickshear": quickshear,
    "skull_strip": skull_strip,
    "average_face": average_face,
    "interactive": interactive,
}
ENGINES = ("builtin", "original")

__all__ = [
    "ENGINES", "FILLS", "METHODS", "PROGRAMS", "Defaced", "Head", "Quality", "deface", "options_of", "prepare",
    "replace_face",
]  # fmt: skip


def prepare(
    volume: Volume, template: Template | None = None, on_progress: OnProgress | None = None, brain: str = "auto"
) -> Head:
    """Register a head and find its brain: the part that all methods share.

    ``brain`` as ``method`` of :func:`..tissue.brain_distance`. The network's brain, where there is one, also checks
    the registration.
    """
    check_head(volume)
    template = template or load_template()
    found = find_brain(volume) if brain != "registration" else None
    registration = register_checked(volume, template, found, deformable=True, on_progress=on_progress)
    method = "registration" if found is None and brain == "auto" else brain
    return Head(volume, template, registration, brain_distance(volume, template, registration, method, found))


def deface(
    volume: Volume,
    method: str = "mri_deface",
    engine: str = "builtin",
    head: Head | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
    **options: object,
) -> Defaced:
    """Deface a whole head.

    Parameters
    ----------
    volume : any orientation; never changed.
    method : a name in :data:`METHODS`; with engine ``original`` one in :data:`PROGRAMS`.
    engine : ``builtin`` (our own re-implementation) or ``original`` (that program, where it is on PATH).
    head : what :func:`prepare` returned for this volume, to run several methods on one registration.
    force : return a result even if the registration failed or brain would be touched.
    options : see :func:`options_of`; of the method, with units in their names (``margin_mm``), and of the fill:
        ``fill`` (one of :data:`FILLS`), ``seed`` of the noise, ``blur_mm``.

    Returns a :class:`Defaced` that equals the input bit for bit outside its mask. Brain that an original program took
    is not given back; forced, it is counted in the quality and fails it.
    Raises :class:`RefaceRiskError` for an unknown method or option, for input that is no head, for a registration
    that failed, for brain that would be touched, and for a program that is absent or fails.
    """
    options = checked_options(method, engine, options)
    if engine == "original":
        find_program(method)  # before the minutes that the rest may take
    head = head or prepare(volume, on_progress=on_progress)
    if head.registration.quality.verdict == "failed" and not force:
        raise RefaceRiskError(
            f"cannot be defaced: {head.registration.quality.reason}",
            "check that it is a whole head",
            volume.meta.path,
        )
    report(on_progress, method, 0, 1)
    if engine == "original":
        result, removed = run_original(head, method, on_progress=on_progress, **options)
    else:
        result, removed = _builtin(head, method, options)
    quality = assess(volume, removed, head.brain, head.registration, head.template, result)
    if quality.brain_voxels_touched and not force:
        raise RefaceRiskError(
            f"{method} would remove {quality.brain_voxels_touched} brain voxels",
            "choose another method, or force it",
            volume.meta.path,
        )
    report(on_progress, method, 1, 1, quality.verdict)
    told = {name: value for name, value in options.items() if name != "mask"}
    return Defaced(result, removed, head.brain, head.registration, quality, method, told)


def _builtin(head: Head, method: str, options: Mapping) -> tuple[Volume, np.ndarray]:
    own = {name: value for name, value in options.items() if name not in _FILL_OPTIONS}
    removed = METHODS[method](head, **own) & ~head.brain
    if not removed.any():
        raise RefaceRiskError(f"{method} finds nothing to remove", "lower its margin_mm", head.volume.meta.path)
    return filled(head, removed, **{name: options[name] for name in _FILL_OPTIONS}), removed


# --- options --------------------------------------------------------------------------------------------------------

_FILL_OPTIONS = {
    name: parameter.default
    for name, parameter in inspect.signature(filled).parameters.items()
    if parameter.default is not parameter.empty
}


def options_of(method: str, engine: str = "builtin") -> dict[str, object]:
    """Options of a method with their defaults, those of the fill included.

    Raises :class:`RefaceRiskError` for an unknown method or engine.
    """
    if engine not in ENGINES:
        raise RefaceRiskError(f"engine {engine!r} is not available", f"choose one of {', '.join(ENGINES)}")
    known = METHODS if engine == "builtin" else PROGRAMS
    if method not in known:
        kind = "defacing method" if engine == "builtin" else "original program"
        raise RefaceRiskError(f"unknown {kind} {method!r}", f"choose one of {', '.join(known)}")
    if engine == "original":
        return dict(PROGRAMS[method].options)
    fill = {**_FILL_OPTIONS, "fill": "average" if method == "average_face" else "zero"}
    return {**_defaults(METHODS[method]), **fill}


def checked_options(method: str, engine: str, given: Mapping[str, object]) -> dict[str, object]:
    """The options of a method with those that were given put in, in the type of their default."""
    options = options_of(method, engine)
    for name, value in given.items():
        if name not in options:
            told = ", ".join(options) or "none"
            raise RefaceRiskError(f"{method} has no option {name!r}", f"its options: {told}")
        options[name] = _checked(method, name, value)
    return options


def _checked(method: str, name: str, value: object) -> object:
    if name.endswith("_mm"):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = np.nan
        if not 0 <= number <= 200 or (name == "blur_mm" and number == 0):
            raise RefaceRiskError(f"{method}: {name} is {value!r}", "give millimetres from 0 to 200")
        return number
    if name == "fill" and value not in FILLS:
        raise RefaceRiskError(f"unknown fill {value!r}", f"choose one of {', '.join(FILLS)}")
    return value


def _defaults(function: Callable) -> dict[str, object]:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}
