"""Did the defacing work? Brain untouched, no face left in the image, a registration that the image bears out.

Eyes, nose and mouth are the features that people look for in a defaced head (Theyers et al. 2021, Front Psychiatry
12:617997). The defaced image itself is looked at (see `face_view`), so that a mask in the wrong place, a fill that
never happened, a cut field of view and a scan whose face was gone before are all noticed.
"""

from __future__ import annotations

import numpy as np

from ..registration import Registration, pull
from ..template import Template
from ..volumes import Volume
from .base import Quality
from .face_view import look_at

# Share of the template's face skin (brow to chin) that must be gone for an ``ok``; below the second a face is left.
OK_SHARE, FAILED_SHARE = 0.60, 0.40
# Share of the nose's or the mouth's skin that may be left for an ``ok``; above the second the feature still stands.
# Eyes alone, as pydeface and quickshear leave them, make no face.
OK_LEFT, FAILED_LEFT = 0.33, 0.50
DISAGREES_MM = 10.0  # forehead, crown, back and sides of all test heads lie nearer to the template's than this


def assess(
    head: Volume,
    removed: np.ndarray,
    brain: np.ndarray,
    registration: Registration,
    template: Template,
    defaced: Volume | None = None,
) -> Quality:
    """Judge a removal.

    Parameters
    ----------
    head : before defacing. removed, brain : (I, J, K) bool on its grid.
    defaced : the result on the same grid; None: ``removed`` is set to the darkest intensity.
    """
    defaced = head.replaced(removed, float(head.intensities.min())) if defaced is None else defaced
    view = look_at(head, registration, template)
    touched = int((removed & brain).sum())
    share = face_surface_removed(head, removed, registration, template)
    left = view.left(head, defaced)
    failures, doubts = [], []
    if touched:
        failures.append(f"{touched} brain voxels would be removed")
    if registration.quality.verdict == "failed":
        failures.append(registration.quality.reason)
    missing = [name for name in ("nose", "eyes", "mouth") if view.is_missing(name)]
    if "nose" in missing:
        doubts.append(f"the face is already missing (no {_listed(missing, 'or')} to be seen)")
    if view.cut:
        verb = "is" if len(view.cut) == 1 and view.cut[0] != "eyes" else "are"
        doubts.append(f"the {_listed(view.cut)} {verb} cut by the field of view")
    if "nose" not in missing:
        _judge_share(share, failures, doubts)
        _judge_features(left, failures, doubts)
        if view.disagreement_mm > DISAGREES_MM:
            doubts.append(f"the head lies {view.disagreement_mm:.0f} mm from where the template is put")
    if registration.quality.verdict == "check":
        doubts.append(registration.quality.reason)
    verdict = "failed" if failures else "check" if doubts else "ok"
    return Quality(
        verdict,
        (failures + doubts)[0] if verdict != "ok" else "",
        touched,
        share,
        registration.quality.overlap,
        registration.quality.correlation,
        {name: round(part, 3) for name, part in left.items()},
        view.disagreement_mm,
    )


def _listed(names, word: str = "and") -> str:
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last


def _judge_features(left: dict[str, float], failures: list[str], doubts: list[str]) -> None:
    standing = [name for name in ("nose", "mouth") if left[name] > FAILED_LEFT]
    told = ", ".join(f"{name} {100 * left[name]:.0f} %" for name in ("eyes", "nose", "mouth"))
    if standing or left["nose"] + left["mouth"] > OK_LEFT + FAILED_LEFT:
        failures.append(f"a face is left (still there: {told})")
    elif max(left["nose"], left["mouth"]) > OK_LEFT:
        doubts.append(f"part of the face is left (still there: {told})")


def _judge_share(share: float, failures: list[str], doubts: list[str]) -> None:
    if share < FAILED_SHARE:
        failures.append(f"only {100 * share:.0f} % of the face surface is removed")
    elif share < OK_SHARE:
        doubts.append(f"only {100 * share:.0f} % of the face surface is removed")


def face_surface_removed(head: Volume, removed: np.ndarray, registration: Registration, template: Template) -> float:
    """Share (0..1) of the template's facial skin, brow to chin, that lies in removed voxels or outside the image."""
    landmarks = template.landmarks
    points = template.points
    skin = np.abs(template.skin_distance) < template.spacing / 2
    face = skin & template.region("removable")
    face &= (points[..., 2] < landmarks["nasion"][2]) & (points[..., 2] > landmarks["chin"][2])
    face &= points[..., 1] > landmarks["nasion"][1] - 25
    gone = pull(
        removed.astype(np.float32),
        head.affine,
        Registration(registration.matrix),
        template.shape,
        template.affine,
        cval=1.0,
    )
    return float((gone[face] > 0.5).mean()) if face.any() else 0.0
