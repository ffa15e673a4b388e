"""Registration that trusts the brain that was found: its shape gives the pose, whatever the contrast.

Mutual information and local correlation hold for T1w heads but can settle on a wrong pose in T2w, PD or CT, and still
look good. The signed distance to the brain has no contrast: template and head are first fitted by it, then by their
intensities as long as the two brains stay together.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
from scipy import ndimage

from .. import registration as by_intensity
from ..progress import OnProgress, report
from ..registration import Registration
from ..template import Grid, Template
from ..volumes import Volume
from .inference import FoundBrain

REACH_MM = 25.0
TOLERANCE = 0.01
"""Overlap (Dice) that a step by intensities may cost."""
SURE_AGREEMENT, OK_AGREEMENT = 0.91, 0.85
"""Overlap of the two brains from which a registration by intensities is taken as it is; below which a person should
look."""


def register_checked(
    head: Volume,
    template: Template,
    found: FoundBrain | None,
    deformable: bool = False,
    on_progress: OnProgress | None = None,
) -> Registration:
    """Register by intensities; where the brain that was found says that this went wrong, by the brain.

    The quality of a registration whose brain still disagrees with the one found is at best ``check``. Without a found
    brain (None) this is :func:`..registration.register`.
    """
    first = by_intensity.register(head, template, deformable, on_progress=on_progress)
    if found is None or (overlap := agreement(found, template, first)) >= SURE_AGREEMENT:
        return first
    second = register_with_brain(head, template, found, deformable, on_progress)
    better = agreement(found, template, second)
    best, overlap = (second, better) if better > overlap else (first, overlap)
    if overlap < OK_AGREEMENT and best.quality.verdict == "ok":
        reason = "the brain in the image does not fit the template's"
        best = replace(best, quality=replace(best.quality, verdict="check", reason=reason))
    return best


def agreement(found: FoundBrain, template: Template, registration: Registration) -> float:
    """Dice of the brain that was found and the template's carried by a registration, 0..1."""
    here = Volume(np.zeros(found.grid.shape, np.uint8), found.grid.affine)
    carried = by_intensity.carry(template.brain_distance, template, registration, here, cval=REACH_MM) <= 0
    return float(2 * (carried & found.mask).sum() / max(carried.sum() + found.mask.sum(), 1))


def register_with_brain(
    head: Volume,
    template: Template,
    found: FoundBrain,
    deformable: bool = False,
    on_progress: OnProgress | None = None,
) -> Registration:
    """As :func:`..registration.register`, starting from the brain's shape; every step by intensities (mutual
    information, local correlation, deformation) is kept only if the two brains overlap as well as before."""
    report(on_progress, "register", 0, 4, "fitting the brain")
    fine, fine_affine = by_intensity.working_image(head, by_intensity.WORKING_MM)
    best = Registration(align(found, template))
    overlap = agreement(found, template, best)

    def kept(candidate: Registration) -> Registration:
        nonlocal overlap
        new = agreement(found, template, candidate)
        if new < overlap - TOLERANCE:
            return best
        overlap = max(overlap, new)
        return candidate

    report(on_progress, "register", 1, 4, "mutual information")
    middle, middle_affine = by_intensity.working_image(Volume(fine, fine_affine), by_intensity.MIDDLE_MM)
    best = kept(Registration(by_intensity._mutual_information(middle, middle_affine, template, best.matrix)))
    report(on_progress, "register", 2, 4, "local correlation")
    best = kept(Registration(by_intensity.polish(fine, fine_affine, template, best.matrix)))
    if deformable:
        report(on_progress, "register", 3, 4, "smooth deformation")
        displacement = by_intensity.deform(fine, fine_affine, template, best.matrix)
        best = kept(Registration(best.matrix, displacement))
    quality = by_intensity.assess(fine, fine_affine, template, best)
    report(on_progress, "register", 4, 4, quality.verdict)
    return Registration(best.matrix, best.displacement, quality)


def align(brain: FoundBrain, template: Template) -> np.ndarray:
    """Affine (4, 4) from template RAS to head RAS mm under which the template's brain fits the one found.

    Least squares of the two signed distances, by Gauss-Newton from several tilts: shape alone decides, no intensity,
    so that it holds for any contrast. Similarity first, then affine.
    """
    distance = np.clip(brain.distance, -REACH_MM, REACH_MM)
    points, values = _shape_points(template)
    channels = np.stack([distance, *np.gradient(distance, brain.grid.spacing)])
    found = np.argwhere(brain.mask).mean(0) * brain.grid.spacing + brain.grid.affine[:3, 3]
    own = template.points()[template.brain].mean(0).astype(float)
    tries = []
    for angles in product((-20, 0, 20), repeat=3):
        matrix = np.eye(4)
        matrix[:3, :3] = by_intensity._rotation(angles)
        matrix[:3, 3] = found - matrix[:3, :3] @ own
        tries.append(_fit(points[::5], values[::5], channels, brain.grid, matrix, 6, 7))
    matrix = min(tries, key=lambda pair: pair[1])[0]
    matrix, _ = _fit(points, values, channels, brain.grid, matrix, 12, 7)
    return _fit(points, values, channels, brain.grid, matrix, 12, 12)[0]


def _shape_points(template: Template) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) within 20 mm of the template brain's surface and their distances (N,)."""
    distance = template.brain_distance
    chosen = np.argwhere(np.abs(distance) < 20)
    chosen = chosen[np.random.default_rng(0).choice(len(chosen), 12000, replace=False)]
    return chosen @ template.affine[:3, :3].T + template.affine[:3, 3], distance[tuple(chosen.T)].astype(float)


def _fit(points, values, channels, grid: Grid, matrix, iterations: int, freedom: int) -> tuple[np.ndarray, float]:
    """Gauss-Newton steps of a similarity (``freedom`` 7) or an affine (12); returns (matrix, mean absolute error)."""
    centre = points.mean(0)
    for _ in range(iterations):
        error, gradient = _errors(points, values, channels, grid, matrix)
        arm = (points - centre) @ matrix[:3, :3].T
        if freedom == 7:
            turn = np.cross(arm, gradient)
            jacobian = np.concatenate([turn, (arm * gradient).sum(1, keepdims=True), gradient], axis=1)
        else:
            jacobian = np.concatenate([(gradient[:, :, None] * arm[:, None, :]).reshape(len(arm), 9), gradient], axis=1)
        weight = 1 / (1 + (error / 8.0) ** 2)
        normal = (jacobian * weight[:, None]).T @ jacobian
        normal += 1e-6 * np.trace(normal) / len(normal) * np.eye(len(normal))
        step = np.linalg.solve(normal, (jacobian * weight[:, None]).T @ -error)
        change = np.eye(4)
        if freedom == 7:
            x, y, z = step[:3]
            change[:3, :3] += step[3] * np.eye(3) + np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        else:
            change[:3, :3] += step[:9].reshape(3, 3)
        pivot = matrix[:3, :3] @ centre + matrix[:3, 3]
        change[:3, 3] = pivot + step[-3:] - change[:3, :3] @ pivot
        matrix = change @ matrix
    error, _ = _errors(points, values, channels, grid, matrix)
    return matrix, float(np.abs(error).mean())


def _errors(points, values, channels, grid: Grid, matrix) -> tuple[np.ndarray, np.ndarray]:
    """Found distance less the template's at the moved points (N,), and the gradient of the former (N, 3)."""
    moved = points @ matrix[:3, :3].T + matrix[:3, 3]
    index = ((moved - grid.affine[:3, 3]) / grid.spacing).T
    got = [ndimage.map_coordinates(channel, index, order=1, mode="nearest") for channel in channels]
    return got[0] - values, np.stack(got[1:], axis=1)
