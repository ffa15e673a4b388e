"""Average face (as mri_reface, Schwarz et al. 2021): the face is replaced by a population average.

Re-implemented on our own template. The average head is registered to what is left of the head by an affine and a smooth
deformation, its skin and tissue are drawn into the removed voxels, and its intensities follow the head's own on the
other side of the seam.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..geometry import gaussian
from ..hounsfield import AIR_HU, is_hounsfield
from ..registration import Registration, bent, deform, pull, working_image
from ..surface.draw import draw_face
from ..surface.extract import skin_level
from ..template import Grid, Template
from ..volumes import Volume
from .base import Head, carried


def average_face(head: Head, margin_mm: float = 8.0) -> np.ndarray:
    """The voxels that get the average face: facial tissue and the air before it, (I, J, K) bool."""
    template = head.template
    return carried(head, template.region("removable") | template.face_mask) & (head.brain_distance > margin_mm)


@dataclass(frozen=True, eq=False)
class FittedAverage:
    """The average head bent to what is left of a head, arrays on the template's grid, aligned by the affine alone.

    distance : mm to its skin. tissue : intensities as in ``Template.tissue``. known : bool, what the fit could see.
    """

    distance: np.ndarray
    tissue: np.ndarray
    known: np.ndarray


def fit_average(head: Volume, removed: np.ndarray, registration: Registration, template: Template) -> FittedAverage:
    """Deform the average head so that it matches the voxels outside ``removed``, continued smoothly into the hole."""
    image, affine = working_image(head, template.spacing)
    grid = (Registration(registration.matrix), template.shape, template.affine)
    gone = pull(removed.astype(np.float32), head.affine, *grid) > 0.01
    inside = pull(np.ones(head.shape, np.float32), head.affine, *grid) > 0.5
    # Two voxels around the hole would compare the cut with the average skin.
    known = inside & ~ndimage.binary_dilation(gone, iterations=2)
    displacement = deform(image, affine, template, registration.matrix, known.astype(np.float32))
    warped = Registration(registration.matrix, displacement)
    distance = bent(template.skin_distance, template.affine, warped, cval=40.0)
    return FittedAverage(distance, bent(template.tissue, template.affine, warped), known)


def replace_face(head: Volume, removed: np.ndarray, registration: Registration, template: Template) -> Volume:
    """Draw the average face into the removed voxels. Voxels outside ``removed`` stay bit for bit.

    ``registration`` is that of the head with the template; its affine is kept and a deformation is added that only
    the voxels outside ``removed`` drive.
    """
    fitted = fit_average(head, removed, registration, template)
    affine_only, grid = Registration(registration.matrix), Grid(template.shape, template.affine)
    level = skin_level(head)
    visible = pull(head.intensities, head.affine, affine_only, template.shape, template.affine)
    air = AIR_HU if is_hounsfield(head.intensities) else 0.0
    tissue = air + matched_tissue(fitted.tissue, visible - air, fitted.known, level - air)
    return draw_face(head, removed, affine_only, template, [(fitted.distance, grid)], [(tissue, grid)], level, air)


def matched_tissue(
    average: np.ndarray, seen: np.ndarray, known: np.ndarray, level: float, reach: float = 6.0
) -> np.ndarray:
    """The average's intensities in the head's own units, (X, Y, Z) float32: a smooth local gain, measured where soft
    tissue is known in both and continued into the hole (``reach``: sigma in voxels)."""
    both = known & (average > 0.25) & (seen > level)
    gain = np.median(seen[both] / average[both]) if both.any() else level / 0.2
    ratio = np.where(both, np.log(np.clip(np.where(both, seen, 1) / np.where(both, average * gain, 1), 0.2, 5)), 0)
    local = gaussian(ratio, reach) / (gaussian(both, reach) + 0.05)
    return (average * gain * np.exp(local)).astype(np.float32)
