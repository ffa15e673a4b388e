"""Head, brain and air, told apart on the image itself with the template as a guide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from .registration import Registration, carry
from .volumes import Volume

if TYPE_CHECKING:
    from .template import Template

# A voxel nearer to the carried brain than this counts as brain: what affine and deformation leave uncertain.
BRAIN_MARGIN_MM = 3.0


def body_level(image: np.ndarray) -> float:
    """Intensity between air and tissue: Otsu's threshold of the non-zero voxels, halved.

    Otsu separates bright from dark tissue as often as tissue from air; half of it lies safely between the noise
    and the dimmest soft tissue on every head of the test data.
    """
    positive = image[image > 0]
    if positive.size == 0:
        return 0.0
    counts, edges = np.histogram(positive, bins=256, range=(0, np.percentile(positive, 99.5)))
    centres = (edges[1:] + edges[:-1]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = (np.cumsum((counts * centres)[::-1]) / np.maximum(np.cumsum(counts[::-1]), 1))[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[np.argmax(between)]) / 2


def head_mask(
    image: np.ndarray, spacing: np.ndarray | float, level: float | None = None, closing_mm: float = 6.0
) -> np.ndarray:
    """Head with its cavities, (I, J, K) bool: above ``level``, closed by ``closing_mm``, filled, largest component."""
    spacing = np.broadcast_to(np.asarray(spacing, float), 3)
    tissue = image > (body_level(image) if level is None else level)
    tissue = largest_component(ndimage.binary_opening(tissue))
    margin = int(np.ceil(closing_mm / spacing.min())) + 1
    padded = np.pad(tissue, margin)
    outside = ndimage.distance_transform_edt(~padded, sampling=spacing) > closing_mm
    closed = ndimage.distance_transform_edt(~outside, sampling=spacing) > closing_mm
    closed = closed[(slice(margin, -margin),) * 3] | tissue
    return ndimage.binary_fill_holes(closed)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 6-connected component of a bool mask (an empty mask stays empty)."""
    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def brain_distance(head: Volume, template: Template, registration: Registration) -> np.ndarray:
    """Distance in mm to the brain, negative inside, on the head's grid, (I, J, K) float32.

    The template's brain, carried by affine and deformation and widened by :data:`BRAIN_MARGIN_MM`.
    """
    return carry(template.brain_distance, template, registration, head, cval=60.0) - BRAIN_MARGIN_MM


def brain_mask(head: Volume, template: Template, registration: Registration) -> np.ndarray:
    """Brain with its safety margin, (I, J, K) bool."""
    return brain_distance(head, template, registration) <= 0
