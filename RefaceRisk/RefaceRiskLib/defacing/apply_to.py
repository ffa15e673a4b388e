"""One defacing carried to other images of the same head: T2w, FLAIR, CT, on their own grids.

The other image is aligned with the defaced one by a rigid transform, so that all series of a session lose the same
tissue. The first head's brain travels along and is kept off in the other image too; where the other image shows more
than the first one did, the template says what is face and what is brain.
"""

from __future__ import annotations

import numpy as np

from ..errors import RefaceRiskError
from ..progress import OnProgress, report
from ..registration import Registration, RegistrationQuality, carry
from ..rigid import RigidQuality, register_rigid
from ..template import Template, load_template
from ..volumes import Volume, check_head, resample
from .base import Defaced, Head
from .fill import filled
from .quality import assess


def apply_to(
    defaced: Defaced,
    other: Volume,
    template: Template | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Defaced:
    """Remove from ``other``, an image of the same head, what was removed from the first.

    Parameters
    ----------
    defaced : of the first image. other : any contrast, grid and orientation; never changed.
    force : return a result even if the two images cannot be aligned.

    Returns a :class:`Defaced` on the grid of ``other``, equal to it bit for bit outside its mask; its options hold
    the figures of the rigid registration (``rigid_overlap``, ``rigid_sharpness``, see
    :class:`~RefaceRiskLib.rigid.RigidQuality`), and its registration maps the template to ``other``.
    Raises :class:`RefaceRiskError` when ``other`` is no head and when the images cannot be aligned.
    """
    check_head(other)
    template = template or load_template()
    report(on_progress, "apply", 0, 2, "aligning with the first image")
    matrix, rigid = align(defaced, other, template)
    if rigid.verdict == "failed" and not force:
        raise RefaceRiskError(
            f"cannot be aligned with the first image: {rigid.reason}",
            "check that it is the same head, or deface it by itself",
            other.meta.path,
        )
    report(on_progress, "apply", 1, 2, "removing the face")
    registration = Registration(
        matrix @ defaced.registration.matrix,
        defaced.registration.displacement,
        _joint_quality(defaced.registration.quality, rigid),
    )
    distance = carry(template.brain_distance, template, registration, other, cval=60.0)
    unseen = ~_seen(defaced.volume, other, matrix)
    brain = _carried(defaced.brain, defaced.volume, other, matrix) > 0.01  # a voxel that holds any of it
    brain |= unseen & (distance <= 0)
    removed = _carried(defaced.removed, defaced.volume, other, matrix) > 0.5
    removed |= unseen & _continued(defaced.removed, defaced.volume, other, matrix, unseen)
    face = carry(template.region("removable").astype(np.float32), template, Registration(registration.matrix), other)
    removed |= unseen & (face > 0.5)
    removed &= ~brain
    head = Head(other, template, registration, np.where(brain, np.minimum(distance, 0), distance))
    how = {name: defaced.options[name] for name in ("fill", "seed", "blur_mm") if name in defaced.options}
    result = filled(head, removed, **how)
    quality = assess(other, removed, brain, registration, template, result)
    report(on_progress, "apply", 2, 2, quality.verdict)
    figures = {"rigid_overlap": round(rigid.overlap, 4), "rigid_sharpness": round(rigid.sharpness, 4)}
    return Defaced(result, removed, brain, registration, quality, defaced.method, {**how, **figures})


def align(defaced: Defaced, other: Volume, template: Template) -> tuple[np.ndarray, RigidQuality]:
    """Rigid transform (4, 4) from the first image's RAS mm to the other's, from cranium and skull base alone."""
    affine = Registration(defaced.registration.matrix)
    core = carry(template.core_dilated.astype(np.float32), template, affine, defaced.volume) > 0.5
    return register_rigid(defaced.volume, other, core & ~defaced.removed)


def _joint_quality(first: RegistrationQuality, rigid: RigidQuality) -> RegistrationQuality:
    """The worse of the two links between template and image."""
    worse = max(first, rigid, key=lambda quality: ("ok", "check", "failed").index(quality.verdict))
    return RegistrationQuality(min(first.overlap, rigid.overlap), first.correlation, worse.verdict, worse.reason)


def _carried(mask: np.ndarray, first: Volume, other: Volume, matrix: np.ndarray) -> np.ndarray:
    """Share (0..1) of a mask of the first image in each voxel of the other."""
    return resample(mask.astype(np.float32), first.affine, other.shape, other.affine, np.linalg.inv(matrix))


def _seen(first: Volume, other: Volume, matrix: np.ndarray) -> np.ndarray:
    """Voxels of the other image that the first one shows, (I, J, K) bool."""
    return _carried(np.ones(first.shape, bool), first, other, matrix) > 0.5


def _continued(mask: np.ndarray, first: Volume, other: Volume, matrix: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """The mask of the first image beyond its borders: each unseen voxel gets the value of the nearest seen one."""
    out = np.zeros(other.shape, bool)
    index = np.linalg.inv(first.affine) @ np.linalg.inv(matrix) @ other.affine
    last = np.array(first.shape) - 1
    for k in np.flatnonzero(unseen.any(axis=(0, 1))):  # slice by slice, for the memory's sake
        i, j = np.nonzero(unseen[:, :, k])
        places = np.stack([i, j, np.full_like(i, k)], axis=1) @ index[:3, :3].T + index[:3, 3]
        nearest = np.clip(np.rint(places).astype(int), 0, last)
        out[i, j, k] = mask[tuple(nearest.T)]
    return out
