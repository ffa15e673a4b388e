"""Did the defacing work? Brain untouched, face surface gone, registration trustworthy."""

from __future__ import annotations

import numpy as np

from ..registration import Registration, pull
from ..template import Template
from ..volumes import Volume
from .base import Quality

# Share of the face's skin (eyes to chin) that must be gone for an ``ok``; below the second a face is left.
OK_SHARE, FAILED_SHARE = 0.80, 0.50


def assess(
    head: Volume, removed: np.ndarray, brain: np.ndarray, registration: Registration, template: Template
) -> Quality:
    """Judge a removal mask. All arrays are on the head's grid."""
    touched = int((removed & brain).sum())
    share = face_surface_removed(head, removed, registration, template)
    overlap, correlation = registration.quality.overlap, registration.quality.correlation
    verdict, reason = "ok", ""
    if touched:
        verdict, reason = "failed", f"{touched} brain voxels would be removed"
    elif registration.quality.verdict == "failed":
        verdict, reason = "failed", registration.quality.reason
    elif share < FAILED_SHARE:
        verdict, reason = "failed", f"only {100 * share:.0f} % of the face surface is removed"
    elif share < OK_SHARE:
        verdict, reason = "check", f"only {100 * share:.0f} % of the face surface is removed"
    elif registration.quality.verdict == "check":
        verdict, reason = "check", registration.quality.reason
    return Quality(verdict, reason, touched, share, overlap, correlation)


def face_surface_removed(head: Volume, removed: np.ndarray, registration: Registration, template: Template) -> float:
    """Share (0..1) of the template's facial skin, brow to chin, that lies in removed voxels or outside the image."""
    landmarks = template.landmarks
    points = template.points()
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
