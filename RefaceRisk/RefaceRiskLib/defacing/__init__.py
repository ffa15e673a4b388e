"""Defacing by the methods that the field uses, one file a method, on one registration and one brain mask."""

from __future__ import annotations

import numpy as np

from ..errors import RefaceRiskError
from ..progress import OnProgress, report
from ..registration import register
from ..template import Template, load_template
from ..tissue import brain_distance
from ..volumes import Volume, check_head
from .average_face import average_face, replace_face
from .base import Defaced, Head, Quality
from .mri_deface import mri_deface
from .pydeface import pydeface
from .quality import assess

METHODS = {"mri_deface": mri_deface, "pydeface": pydeface, "average_face": average_face}

__all__ = ["METHODS", "Defaced", "Head", "Quality", "deface", "prepare"]


def prepare(volume: Volume, template: Template | None = None, on_progress: OnProgress | None = None) -> Head:
    """Register a head and find its brain: the part that all methods share."""
    check_head(volume)
    template = template or load_template()
    registration = register(volume, template, deformable=True, on_progress=on_progress)
    return Head(volume, template, registration, brain_distance(volume, template, registration))


def deface(
    volume: Volume,
    method: str = "mri_deface",
    engine: str = "builtin",
    head: Head | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
    **options: float,
) -> Defaced:
    """Deface a whole head.

    Parameters
    ----------
    volume : any orientation; never changed.
    method : a name in :data:`METHODS`. engine : only ``builtin`` (our own re-implementation) so far.
    head : what :func:`prepare` returned for this volume, to run several methods on one registration.
    force : return a result even if the registration failed or brain would be touched.
    options : of the method, with units in their names (``margin_mm``).

    Returns a :class:`Defaced` that equals the input bit for bit outside its mask.
    Raises :class:`RefaceRiskError` for an unknown method or option, for input that is no head, and for a registration
    that failed.
    """
    if method not in METHODS:
        raise RefaceRiskError(f"unknown defacing method {method!r}", f"choose one of {', '.join(METHODS)}")
    if engine != "builtin":
        raise RefaceRiskError(f"engine {engine!r} is not available", "use engine builtin")
    head = head or prepare(volume, on_progress=on_progress)
    if head.registration.quality.verdict == "failed" and not force:
        raise RefaceRiskError(
            f"cannot be defaced: {head.registration.quality.reason}",
            "check that it is a whole head",
            volume.meta.path,
        )
    report(on_progress, method, 0, 1)
    try:
        removed = METHODS[method](head, **options)
    except TypeError as error:
        raise RefaceRiskError(f"{method}: {error}", "see its documentation for its options") from error
    removed &= ~head.brain
    if method == "average_face":
        result = replace_face(volume, removed, head.registration, head.template)
    else:
        result = volume.replaced(removed, np.float32(0))
    quality = assess(volume, removed, head.brain, head.registration, head.template)
    report(on_progress, method, 1, 1, quality.verdict)
    return Defaced(result, removed, head.brain, head.registration, quality, method, dict(options))
