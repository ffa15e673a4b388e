"""Head, brain and air, told apart on the image itself with the template as a guide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from .errors import RefaceRiskError
from .geometry import distance_to
from .registration import Registration, carry
from .volumes import Volume

if TYPE_CHECKING:
    from .brainmask.inference import FoundBrain
    from .template import Template

# A voxel nearer to the carried brain than this counts as brain: what affine and deformation leave uncertain.
BRAIN_MARGIN_MM = 3.0
BRAIN_METHODS = ("auto", "network", "registration")


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
    outside = distance_to(padded, spacing) > closing_mm
    closed = distance_to(outside, spacing) > closing_mm
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


def brain_distance(
    head: Volume,
    template: Template,
    registration: Registration,
    method: str = "auto",
    found: FoundBrain | None = None,
) -> np.ndarray:
    """Distance in mm to the brain widened by :data:`BRAIN_MARGIN_MM`, negative inside, (I, J, K) float32.

    Parameters
    ----------
    method : ``registration``: the template's brain, carried by affine and deformation. ``network``: what a small
        network finds in the image whatever its contrast (:mod:`.brainmask`; needs torch, MONAI and the weights).
        ``auto``: the union of both where the network can run and finds something like a brain, so that nothing that
        either calls brain is touched; else the registration alone.
    found : what :func:`find_brain` returned for this head, to spare a second run.

    Raises :class:`RefaceRiskError` for an unknown method, and for ``network`` where it cannot run.
    """
    if method not in BRAIN_METHODS:
        raise RefaceRiskError(f"unknown brain mask {method!r}", f"choose one of {', '.join(BRAIN_METHODS)}")
    if method != "registration":
        found = found or find_brain(head)
        if found is None and method == "network":
            raise RefaceRiskError(
                "no brain was found by the network", "use the registration's brain mask", head.meta.path
            )
    if method == "network":
        return found.on(head) - BRAIN_MARGIN_MM
    carried = carry(template.brain_distance, template, registration, head, cval=60.0)
    if found is not None and method == "auto":
        np.minimum(carried, found.on(head), out=carried)
    return carried - BRAIN_MARGIN_MM


def find_brain(head: Volume) -> FoundBrain | None:
    """The brain that the network finds in a head; None without torch, MONAI or weights, or if it is no brain's size."""
    from .brainmask import inference

    if not inference.available():
        return None
    found = inference.find_brain(head)
    return found if found.plausible else None


def brain_mask(
    head: Volume,
    template: Template,
    registration: Registration,
    method: str = "auto",
    margin_mm: float = BRAIN_MARGIN_MM,
    found: FoundBrain | None = None,
) -> np.ndarray:
    """Brain, its ventricles and the fluid around it, widened by ``margin_mm``, (I, J, K) bool; see
    :func:`brain_distance`."""
    return brain_distance(head, template, registration, method, found) <= margin_mm - BRAIN_MARGIN_MM
