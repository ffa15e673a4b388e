"""Bring a head and the template together: multi-start, mutual information, local-correlation polish, smooth warp.

Every transform maps *template* RAS mm to *head* RAS mm, the direction in which images are pulled onto the
template grid. The face never takes part: the metric looks only at ``template.core`` (cranium and skull base),
so that a head and its defaced copy land in the same place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import permutations, product
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from .errors import RefaceRiskError
from .geometry import Trilinear, corners, gaussian, grid_points, transform_points
from .hounsfield import as_mri, is_hounsfield
from .progress import OnProgress, report
from .volumes import Volume, resample, to_sitk

if TYPE_CHECKING:
    from .template import Grid, Template

COARSE_MM = 8.0
MIDDLE_MM = 4.0
WORKING_MM = 2.0
# Share of the template's head that must be covered, and the correlation below which a person should look.
OK_OVERLAP, FAILED_OVERLAP = 0.90, 0.75
OK_CORRELATION, FAILED_CORRELATION = 0.35, 0.15


@dataclass(frozen=True)
class RegistrationQuality:
    """How far the result can be trusted.

    overlap : Dice of the head masks inside the template's core (0..1).
    correlation : mean local correlation inside the core (contrast free: its absolute value, 0..1).
    verdict : ``ok``, ``check`` or ``failed``; reason : one sentence when not ``ok``.
    """

    overlap: float
    correlation: float
    verdict: str
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Registration:
    """Template to head. ``matrix`` (4, 4) maps template RAS mm to head RAS mm; ``displacement`` (X, Y, Z, 3), in
    template mm on the template grid, is added to a template position before ``matrix``."""

    matrix: np.ndarray
    displacement: np.ndarray | None = None
    quality: RegistrationQuality = field(
        default_factory=lambda: RegistrationQuality(0.0, 0.0, "failed", "not measured")
    )


# --- images made comparable -----------------------------------------------------------------------------------


def locally_normalised(
    image: np.ndarray, spacing: float, window_mm: float, known: np.ndarray | None = None
) -> np.ndarray:
    """(image - local mean) / local standard deviation, Gaussian window of ``window_mm`` (sigma, mm).

    Squared differences of two such images are 2 - 2 x their local correlation: minimising the one maximises the
    other (Cachier et al. 2003), with a least-squares problem in place of a ratio. Where the image is flat the
    result goes to zero, so noise in air has no say. ``known`` (bool) leaves voxels out of the windows.
    """
    image = np.asarray(image, np.float32)
    sigma = window_mm / spacing
    weight = np.ones_like(image) if known is None else known.astype(np.float32)

    def smooth(array: np.ndarray) -> np.ndarray:
        return gaussian(array, sigma, mode="constant", truncate=3.0)

    total = smooth(weight) + 1e-3
    mean = smooth(image * weight) / total
    variance = np.maximum(smooth(image * image * weight) / total - mean * mean, 0)
    floor = 0.1 * np.sqrt(np.mean(variance[variance > 0])) if np.any(variance > 0) else 1.0
    normal = (image - mean) / (np.sqrt(variance) + floor)
    return np.clip(normal * weight, -3, 3)


def working_image(head: Volume, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """The head on an isotropic, axis-aligned RAS grid: ``(array (I, J, K) float32, affine)``.

    Intensities are smoothed to the new resolution first, scaled so that bright tissue is 1, and clipped at 1.5. A CT
    is given the contrast of an MRI.
    """
    ends = transform_points(head.affine, corners(np.full(3, -0.5), np.subtract(head.shape, 0.5)))
    low, high = ends.min(0), ends.max(0)
    shape = np.ceil((high - low) / spacing).astype(int)
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = (low + high) / 2 - (shape - 1) / 2 * spacing
    image = head.intensities
    image = as_mri(image if np.isfinite(image).all() else np.nan_to_num(image))
    sigma = np.maximum(spacing / np.asarray(head.spacing) - 1, 0) * 0.5
    if sigma.max() > 0.1:
        image = gaussian(image, sigma)
    image = resample(image, head.affine, tuple(shape), affine)
    bright = image[image > image.mean()]
    scale = np.percentile(bright, 90) if bright.size else 1.0
    return np.clip(image / max(scale, 1e-6), -0.2, 1.5), affine


# --- affine by Gauss-Newton on local correlation ----------------------------------------------------------------


@dataclass
class _Moving:
    """A locally normalised image with its gradient, sampled at RAS points by trilinear interpolation."""

    channels: Trilinear  # of (4, I, J, K): value and gradient per mm
    affine: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray, affine: np.ndarray, window_mm: float) -> _Moving:
        spacing = float(affine[0, 0])
        normal = locally_normalised(image, spacing, window_mm)
        gradient = np.gradient(normal, spacing)
        return cls(Trilinear(np.stack([normal, *gradient])), affine)

    def at(self, points: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value (N,), gradient (3, N) and inside (N,) bool at ``matrix`` (4, 4) times the points (3, N), RAS mm."""
        to_index = np.linalg.inv(self.affine) @ matrix
        index = to_index[:3, :3] @ points + to_index[:3, 3:]
        inside = np.all((index >= 0) & (index <= self.channels.shape[:, None] - 1), axis=0)
        value, *gradient = self.channels.at(index)
        return value, np.stack(gradient), inside


def _gauss_newton(points, values, moving, matrix, iterations, rigid=False, signed=True):
    """Refine ``matrix`` so that ``moving`` at ``matrix @ points`` equals ``values``. Returns (matrix, correlation).

    Robust (Geman-McClure weights) because skulls differ and defaced heads have holes. ``rigid`` keeps to rotation,
    translation and one scale; ``signed=False`` lets the image be the negative of the template (T2w against T1w).
    """
    # Everything is (..., N): numpy is quick along the last axis.
    points = np.ascontiguousarray(points.T)
    centre = points.mean(axis=1)
    local = points - centre[:, None]
    scale = np.abs(local).max()
    homogeneous = np.concatenate([local / scale, np.ones((1, len(values)))])
    damping = 1e-3
    best = (matrix, -np.inf)
    for _ in range(iterations + 1):
        got, gradient, inside = moving.at(points, matrix)
        norm = np.sqrt((got[inside] ** 2).sum() * (values[inside] ** 2).sum()) + 1e-9
        correlation = float((got[inside] * values[inside]).sum() / norm) * float(inside.mean())
        score = correlation if signed else abs(correlation)
        if score > best[1]:
            best = (matrix.copy(), score)
        sign = 1.0 if signed or correlation >= 0 else -1.0
        residual = values - sign * got
        weight = inside / (1 + (residual / 1.5) ** 2) ** 2
        jacobian = ((sign * gradient)[:, None] * homogeneous).reshape(12, -1)
        if rigid:
            jacobian = _similarity_basis(matrix, centre, scale).T @ jacobian
        weighted = jacobian * weight
        normal = weighted @ jacobian.T
        step = np.linalg.solve(
            normal + damping * np.trace(normal) / len(normal) * np.eye(len(normal)), weighted @ residual
        )
        if rigid:
            step = _similarity_basis(matrix, centre, scale) @ step
        step = step.reshape(3, 4)
        change = np.zeros((4, 4))
        change[:3, :3] = step[:, :3] / scale
        change[:3, 3] = step[:, 3] - change[:3, :3] @ centre
        matrix = matrix + change
        if np.abs(step).max() < 0.005:
            break
    return best


def _similarity_basis(matrix: np.ndarray, centre: np.ndarray, scale: float) -> np.ndarray:
    """(12, 7) directions of the affine parameters that are rotations, one scaling and translations."""
    linear = matrix[:3, :3]
    basis = []
    for axis in range(3):
        generator = np.zeros((3, 3))
        a, b = (axis + 1) % 3, (axis + 2) % 3
        generator[a, b], generator[b, a] = -1, 1
        basis.append(np.concatenate([generator @ linear * scale, np.zeros((3, 1))], axis=1).ravel())
    basis.append(np.concatenate([linear * scale, np.zeros((3, 1))], axis=1).ravel())
    for axis in range(3):
        shift = np.zeros((3, 4))
        shift[axis, 3] = 1
        basis.append(shift.ravel())
    basis = np.stack(basis, axis=1)
    return basis / np.linalg.norm(basis, axis=0)


# --- the stages -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _template_image(template: Template, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """The template as a :func:`working_image`; kept, because every registration asks for the same few."""
    return working_image(Volume(template.image, template.affine), spacing)


@lru_cache(maxsize=4)
def _core_points(template: Template, spacing: float, window_mm: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) inside the template's core with its locally normalised values (N,), at ``spacing`` mm."""
    image, affine = _template_image(template, spacing)
    normal = locally_normalised(image, spacing, window_mm)
    core = resample(template.core.astype(np.float32), template.affine, image.shape, affine) > 0.5
    index = np.argwhere(core)
    if len(index) > count:
        index = index[np.random.default_rng(0).choice(len(index), count, replace=False)]
    points = index @ affine[:3, :3].T + affine[:3, 3]
    return points, normal[tuple(index.T)].astype(np.float64)


def _rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """Rotation matrix (3, 3) from angles about x, y, z, in that order."""
    out = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out


def _axis_rotations() -> list[np.ndarray]:
    """The 24 proper rotations of the axes: a file whose header names the wrong orientation."""
    out = []
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = signs
            if np.linalg.det(matrix) > 0:
                out.append(matrix)
    return out


def _multi_start(head_image, head_affine, template, turns: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """Best similarity over the given starting rotations x shifts, at 8 mm. Returns (matrix, correlation)."""
    window = 2 * COARSE_MM
    points, values = _core_points(template, COARSE_MM, window, 2000)
    moving = _Moving.of(head_image, head_affine, window)
    inside = np.argwhere(head_image > 0.3 * np.percentile(head_image[head_image > 0.1], 75))
    body = inside @ head_affine[:3, :3].T + head_affine[:3, 3]
    # The bounding box's centre with shifts up and down: how much neck is in view is not known.
    low, high = np.percentile(body, [1, 99], axis=0)
    middle = (low + high) / 2
    centre = points.mean(0)
    candidates = []
    for turn in turns:
        for up in (-40.0, 0.0, 40.0):
            matrix = np.eye(4)
            matrix[:3, :3] = turn
            matrix[:3, 3] = middle + turn @ np.array([0, 0, up]) - turn @ centre
            candidates.append(_gauss_newton(points, values, moving, matrix, 6, rigid=True))
    candidates.sort(key=lambda pair: -pair[1])
    finals = [_gauss_newton(points, values, moving, matrix, 25, rigid=True) for matrix, _ in candidates[:6]]
    return max(finals, key=lambda pair: pair[1])


def _mutual_information(head_image, head_affine, template, matrix: np.ndarray) -> np.ndarray:
    """Affine refinement by Mattes mutual information (SimpleITK), at 4 mm, on the template's core."""
    image, affine = _template_image(template, MIDDLE_MM)
    core = resample(template.core.astype(np.float32), template.affine, image.shape, affine) > 0.5
    fixed, moving = to_sitk((image, affine)), to_sitk((head_image, head_affine))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(to_sitk((core.astype(np.uint8), affine), np.uint8))
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.4, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(0.5, 0.01, 40, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    start = flip @ matrix @ flip
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(start[:3, :3].ravel())
    transform.SetTranslation(start[:3, 3])
    centre = template.affine[:3, :3] @ (np.array(template.core.shape) / 2) + template.affine[:3, 3]
    transform = _recentred(transform, (flip[:3, :3] @ centre))
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:  # all samples fell outside: keep the start, the quality figures will tell
        return matrix
    out = np.eye(4)
    out[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    out[:3, 3] = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    return flip @ out @ flip


def _recentred(transform: sitk.AffineTransform, centre: np.ndarray) -> sitk.AffineTransform:
    """The same mapping with its fixed centre at ``centre``, where rotations and shifts are least coupled."""
    linear = np.array(transform.GetMatrix()).reshape(3, 3)
    shift = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    out = sitk.AffineTransform(3)
    out.SetCenter(centre)
    out.SetMatrix(linear.ravel())
    out.SetTranslation(linear @ centre + shift - centre)
    return out


def register(
    head: Volume,
    template: Template,
    deformable: bool = False,
    known: np.ndarray | None = None,
    on_progress: OnProgress | None = None,
) -> Registration:
    """Register a head with the template.

    Parameters
    ----------
    head : any orientation, tilt up to 30 degrees, whole or defaced.
    deformable : add a smooth displacement after the affine.
    known : (I, J, K) bool on the head's grid; voxels outside it (a removed face) do not pull the deformation.

    Returns a :class:`Registration`. Raises :class:`RefaceRiskError` when nothing like a head is there.
    """
    report(on_progress, "register", 0, 4, "looking for the head")
    fine, fine_affine = working_image(head, WORKING_MM)
    if not np.any(fine > 0.1):
        raise RefaceRiskError("no head in this volume", "pass a whole-head image", head.meta.path)
    coarse, coarse_affine = working_image(Volume(fine, fine_affine), COARSE_MM)
    tilts = [_rotation(angles) for angles in product((-25, 0, 25), repeat=3)]
    matrix, score = _multi_start(coarse, coarse_affine, template, tilts)
    note = ""
    if score < OK_CORRELATION:
        turned, better = _multi_start(coarse, coarse_affine, template, _axis_rotations())
        if better > score + 0.1:
            matrix, note = turned, "the orientation in the file's header is wrong"
    report(on_progress, "register", 1, 4, "mutual information")
    middle, middle_affine = working_image(Volume(fine, fine_affine), MIDDLE_MM)
    if not is_hounsfield(head.intensities):  # which already looks like the template
        matrix = _mutual_information(middle, middle_affine, template, matrix)
    report(on_progress, "register", 2, 4, "local correlation")
    matrix = polish(fine, fine_affine, template, matrix)
    displacement = None
    if deformable:
        report(on_progress, "register", 3, 4, "smooth deformation")
        weight = None
        if known is not None:
            weight = resample(known.astype(np.float32), head.affine, template.image.shape, template.affine, matrix)
        displacement = deform(fine, fine_affine, template, matrix, weight)
    registration = Registration(matrix, displacement)
    quality = assess(fine, fine_affine, template, registration, note)
    report(on_progress, "register", 4, 4, quality.verdict)
    return Registration(matrix, displacement, quality)


def deformed_beside_face(head: Volume, template: Template, registration: Registration) -> Registration:
    """Add the deformation that everything but the face asks for, continued smoothly into the face.

    Whatever a defacer has removed, it is nearly the same: it makes faces comparable that hang on different skulls.
    """
    image, affine = working_image(head, WORKING_MM)
    displacement = deform(
        image, affine, template, registration.matrix, template.beside_face, levels=((MIDDLE_MM, 40, 8.0),)
    )
    return Registration(registration.matrix, displacement, registration.quality)


def polish(fine, fine_affine, template, matrix: np.ndarray) -> np.ndarray:
    """Gauss-Newton on local correlation at 4 mm and 2 mm; kept only where it raises the correlation."""
    for spacing, window, count, iterations in ((MIDDLE_MM, 12.0, 12000, 15), (WORKING_MM, 8.0, 60000, 30)):
        points, values = _core_points(template, spacing, window, count)
        image, affine = (
            working_image(Volume(fine, fine_affine), spacing) if spacing > WORKING_MM else (fine, fine_affine)
        )
        moving = _Moving.of(image, affine, window)
        matrix, _ = _gauss_newton(points, values, moving, matrix, iterations, signed=False)
    return matrix


# --- smooth deformation -----------------------------------------------------------------------------------------


def deform(
    fine: np.ndarray,
    fine_affine: np.ndarray,
    template: Template,
    matrix: np.ndarray,
    known: np.ndarray | None = None,
    levels: tuple[tuple[float, int, float], ...] = ((MIDDLE_MM, 40, 6.0),),
) -> np.ndarray:
    """Displacement (X, Y, Z, 3) in template mm, on the template grid, on top of the affine ``matrix``.

    Demons forces (Thirion 1998) on locally normalised images, smoothed as a fluid and as an elastic sheet.
    ``known`` is a weight in [0, 1] on the template grid: where it is zero no force acts and the field continues
    smoothly from its surroundings, so that a missing face is neither matched nor shrunk. ``levels`` lists
    (spacing mm, iterations, smoothing sigma mm).
    """
    weight = template.head_dilated if known is None else known * template.head_dilated
    displacement = np.zeros((*template.image.shape, 3), np.float32)
    for spacing, iterations, smoothing in levels:
        image, affine = _template_image(template, spacing)
        target = locally_normalised(image, spacing, 2 * spacing)
        source, source_affine = (
            working_image(Volume(fine, fine_affine), spacing) if spacing > WORKING_MM else (fine, fine_affine)
        )
        moving = _Moving.of(source, source_affine, 2 * spacing)
        here = resample(np.asarray(weight, np.float32), template.affine, target.shape, affine)
        field_ = resampled_field(displacement, template.affine, target.shape, affine)
        field_ = _demons(target, here, moving, affine, matrix, field_, iterations, smoothing / spacing)
        displacement = resampled_field(field_, affine, template.image.shape, template.affine)
    return displacement


def _demons(target, weight, moving, affine, matrix, displacement, iterations, sigma):
    active = np.flatnonzero(weight > 0.01)
    points = np.ascontiguousarray(grid_points(target.shape, affine).reshape(-1, 3)[active].T)
    wanted, pull_of = target.ravel()[active], weight.ravel()[active]
    spacing = float(affine[0, 0])
    confidence = gaussian(weight, sigma) + 0.05
    displacement = np.ascontiguousarray(np.moveaxis(displacement, -1, 0))
    for _ in range(iterations):
        got, gradient, inside = moving.at(points + displacement.reshape(3, -1)[:, active], matrix)
        gradient = matrix[:3, :3].T.astype(np.float32) @ gradient  # per template mm
        error = np.where(inside, wanted - got, 0)
        force = error * pull_of / ((gradient**2).sum(axis=0) + (error / spacing) ** 2 + 1e-4)
        update = np.zeros_like(displacement)
        update.reshape(3, -1)[:, active] = force * gradient
        displacement = gaussian(displacement + gaussian(update, sigma) / confidence, 0.5 * sigma)
    return np.moveaxis(displacement, 0, -1)


def resampled_field(field_, affine, shape, out_affine) -> np.ndarray:
    """A displacement (X, Y, Z, 3), mm, on another grid of template space."""
    return np.stack([resample(field_[..., axis], affine, shape, out_affine) for axis in range(3)], axis=-1)


# --- what the result is worth -------------------------------------------------------------------------------------


def assess(fine, fine_affine, template: Template, registration: Registration, note: str = "") -> RegistrationQuality:
    """Overlap of the head masks and local correlation, both inside the template's core, with a verdict."""
    carried = pull(fine, fine_affine, registration, template.image.shape, template.affine)
    core = template.core
    spacing = float(template.affine[0, 0])
    target = locally_normalised(template.image, spacing, 8.0)[core]
    got = locally_normalised(carried, spacing, 8.0)[core]
    correlation = abs(float((target * got).sum() / np.sqrt((target**2).sum() * (got**2).sum() + 1e-9)))
    inside, head = carried > 0.12, template.image > 0.12
    where = template.core_dilated
    overlap = float(2 * (inside & head & where).sum() / max((inside & where).sum() + (head & where).sum(), 1))
    if correlation < FAILED_CORRELATION or overlap < FAILED_OVERLAP:
        return RegistrationQuality(overlap, correlation, "failed", "the head does not match the template")
    if correlation < OK_CORRELATION or overlap < OK_OVERLAP:
        return RegistrationQuality(overlap, correlation, "check", "the match with the template is weak")
    return RegistrationQuality(overlap, correlation, "check" if note else "ok", note)


# --- carrying arrays ----------------------------------------------------------------------------------------------


def pull(
    array, affine, registration: Registration, shape, template_affine, order: int = 1, cval: float = 0.0
) -> np.ndarray:
    """An array on the head's grid brought onto a template-space grid (``shape``, ``template_affine``)."""
    if registration.displacement is None:
        return resample(array, affine, shape, template_affine, registration.matrix, order, cval)
    to_index = np.linalg.inv(affine) @ registration.matrix
    moved = registration.displacement.reshape(-1, 3) @ to_index[:3, :3].T.astype(np.float32)
    index = grid_points(shape, to_index @ template_affine) + moved.reshape(*shape, 3)
    return ndimage.map_coordinates(np.asarray(array, np.float32), np.moveaxis(index, -1, 0), order=order, cval=cval)


def carry(
    array, template: Template, registration: Registration, head: Volume, order: int = 1, cval: float = 0.0
) -> np.ndarray:
    """An array on the template's grid brought onto the grid of ``head``: (I, J, K) float32.

    A displacement is applied first, on the template's own grid, then the affine: a head of 256 cubed voxels costs one
    affine resampling instead of sixteen million displaced look-ups.
    """
    array = bent(np.asarray(array, np.float32), template.affine, registration, cval)
    inverse = np.linalg.inv(registration.matrix)
    return resample(array, template.affine, head.shape, head.affine, inverse, order, cval)


def bent(array: np.ndarray, affine: np.ndarray, registration: Registration, cval: float = 0.0) -> np.ndarray:
    """A template-space map bent to the shape of the registered head, still in template space and on its own grid."""
    if registration.displacement is None:
        return array
    # The field is smooth: its inverse on every second voxel costs an eighth and is the same.
    every_second = affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    back = inverse_displacement(registration.displacement[::2, ::2, ::2], every_second)
    back = resampled_field(back, every_second, array.shape, affine)
    return pull(array, affine, Registration(np.eye(4), back), array.shape, affine, cval=cval)


def to_head(points: np.ndarray, template: Template | Grid, registration: Registration) -> np.ndarray:
    """Points (N, 3) in template RAS mm to RAS mm of the head; the inverse of :func:`to_template`.

    Of ``template`` only the grid counts, that of the displacement."""
    if registration.displacement is not None:
        index = ((points - template.affine[:3, 3]) / template.spacing).T
        points = points + Trilinear(np.moveaxis(registration.displacement, -1, 0)).at(index).T
    return points @ registration.matrix[:3, :3].T + registration.matrix[:3, 3]


def to_template(points: np.ndarray, template: Template, registration: Registration) -> np.ndarray:
    """Head RAS mm (N, 3) to template RAS mm (N, 3)."""
    inverse = np.linalg.inv(registration.matrix)
    points = points @ inverse[:3, :3].T + inverse[:3, 3]
    if registration.displacement is None:
        return points
    every_second = template.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    back = inverse_displacement(registration.displacement[::2, ::2, ::2], every_second)
    index = ((points - every_second[:3, 3]) / every_second[0, 0]).T
    return points + Trilinear(np.moveaxis(back, -1, 0)).at(index).T


def inverse_displacement(displacement: np.ndarray, affine: np.ndarray, rounds: int = 6) -> np.ndarray:
    """v with v(y) = -u(y + v(y)), by fixed-point iteration (u is smooth, its gradient below 1). Same grid, mm."""
    grid = np.indices(displacement.shape[:3], dtype=np.float32).reshape(3, -1)
    to_index = np.linalg.inv(affine)[:3, :3].astype(np.float32)
    field_ = np.moveaxis(displacement, -1, 0)
    forth, back = Trilinear(field_), -field_.reshape(3, -1)
    for _ in range(rounds):
        back = -forth.at(grid + to_index @ back)
    return np.moveaxis(back.reshape(field_.shape), 0, -1)
