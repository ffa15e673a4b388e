"""The brain that the network finds in a head, as a signed distance."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from ..errors import RefaceRiskError
from ..resources import model_folder
from ..template import Grid, distance_map
from ..volumes import Volume, resample
from .frame import LIMIT_MM, SHAPE, brought, normalised, whole

if TYPE_CHECKING:
    import torch

MODEL = "brain"
CHOICE = "REFACERISK_BRAIN"
FAR_MM = 60.0
CROWN_CM2, CENTRE_BELOW_CROWN_MM = 20.0, 80.0
"""A slice with so much head is at the crown; the middle of an adult brain lies so far below."""
LOOKS = 4
STILL = 3
"""Voxels that the frame's centre may still move after the last look."""
PLAUSIBLE_CM3 = (500.0, 2600.0)
"""Brain with its fluid, from an infant of some months to the largest adults; outside, nothing is trusted."""


@dataclass(frozen=True, eq=False)
class FoundBrain:
    """Distance in mm to the brain, negative inside, (X, Y, Z) float32 on ``grid`` (2 mm, along RAS)."""

    distance: np.ndarray
    grid: Grid

    @property
    def mask(self) -> np.ndarray:
        return self.distance <= 0

    @property
    def volume_cm3(self) -> float:
        return float(self.mask.sum()) * self.grid.spacing**3 / 1000

    @property
    def plausible(self) -> bool:
        low, high = PLAUSIBLE_CM3
        return low <= self.volume_cm3 <= high

    def on(self, head: Volume) -> np.ndarray:
        """The distance on a head's own grid, (I, J, K) float32; its edge is as fine as that grid."""
        return resample(self.distance, self.grid.affine, head.shape, head.affine, cval=FAR_MM)


def available() -> bool:
    """Whether torch, MONAI, safetensors and the weights are there, and nobody wants to do without them.

    The environment variable ``REFACERISK_BRAIN=registration`` says so.
    """
    from importlib.util import find_spec

    if os.environ.get(CHOICE) == "registration":
        return False
    if any(find_spec(name) is None for name in ("torch", "monai", "safetensors")):
        return False
    try:
        return (model_folder(MODEL) / "weights.safetensors").is_file()
    except RefaceRiskError:
        return False


@lru_cache(maxsize=2)
def load_network(folder: Path | None = None) -> torch.nn.Module:
    """The network of a model folder (default: the one that comes along). RefaceRiskError for damaged weights."""
    from ..diffusion.weights import load_weights, shapes_of
    from .network import build_network

    weights = load_weights(folder or model_folder(MODEL))
    network = build_network(tuple(weights.config["channels"]), weights.config["residual_units"])
    weights = load_weights(folder or model_folder(MODEL), shapes=shapes_of(network))
    network.load_state_dict(weights.state_dict)
    return network.eval()


def find_brain(head: Volume, network: torch.nn.Module | None = None) -> FoundBrain:
    """Find the brain in a head of any contrast and orientation.

    The first look is into a frame below the crown; more follow, each around the brain of the one before, until the
    frame stays where it is. In single precision, so that the same head gives the same mask on every machine.
    """
    network = network or load_network()
    grid = whole(head)
    image = brought(head, grid)
    centre = below_crown(image, grid)
    for _ in range(LOOKS):
        distance = np.full(image.shape, LIMIT_MM, np.float32)
        corner = centre - np.array(SHAPE) // 2
        framed = normalised(_cut(image, corner, SHAPE, float(image.min())))
        seen = _looked(network, framed)
        _put(distance, corner, LIMIT_MM * seen)
        brain = largest_of(distance < 0)
        before, centre = centre, _middle(brain) if brain.any() else centre
        if np.abs(centre - before).max() <= STILL:
            break
    _put(distance, corner, LIMIT_MM / 2 * (seen + _looked(network, framed[::-1])[::-1]))
    return FoundBrain(_completed(distance, grid), grid)


def below_crown(image: np.ndarray, grid: Grid) -> np.ndarray:
    """Where the brain of an upright head should be, as a voxel (3,): so far below the crown, amid the head there."""
    from ..tissue import body_level, largest_component

    smooth = ndimage.gaussian_filter(image - image.min(), 1.0)
    head = largest_component(ndimage.binary_opening(smooth > body_level(smooth), iterations=2))
    area_cm2 = head.sum(axis=(0, 1)) * grid.spacing**2 / 100
    slices = np.flatnonzero(area_cm2 > CROWN_CM2)
    if not len(slices):
        return np.array(image.shape) // 2
    crown, depth = slices[-1], round(CENTRE_BELOW_CROWN_MM / grid.spacing)
    upper = np.argwhere(head[..., max(0, crown - depth) : crown + 1].any(axis=2))
    middle = (upper.min(0) + upper.max(0)) // 2
    return np.array([*middle, crown - depth])


def _looked(network: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """What the network says: distance over the limit, (X, Y, Z) float32."""
    import torch

    from .network import predict

    with torch.inference_mode():
        return predict(network, torch.from_numpy(np.ascontiguousarray(image))[None, None])[0, 0].numpy()


def _middle(mask: np.ndarray) -> np.ndarray:
    """The voxel in the middle of a mask's bounding box, (3,) int."""
    places = np.argwhere(mask)
    return (places.min(0) + places.max(0)) // 2 if len(places) else np.array(mask.shape) // 2


def _completed(distance: np.ndarray, grid: Grid) -> np.ndarray:
    """One solid brain, and true distances beyond the limit that was learnt."""
    brain = ndimage.binary_fill_holes(largest_of(distance < 0))
    euclidean = distance_map(brain, grid.spacing)  # from voxel to voxel: half a voxel more than to the surface
    euclidean -= np.sign(euclidean) * grid.spacing / 2
    near = (np.abs(distance) < 0.7 * LIMIT_MM) & ((distance < 0) == brain) & (np.abs(euclidean) < LIMIT_MM)
    return np.where(near, distance, euclidean).astype(np.float32)


def largest_of(mask: np.ndarray) -> np.ndarray:
    """The largest component after an opening that cuts thin bridges to it."""
    from ..tissue import largest_component

    opened = largest_component(ndimage.binary_opening(mask))
    return ndimage.binary_dilation(opened, iterations=2) & mask


def _cut(array: np.ndarray, corner: np.ndarray, shape: tuple[int, int, int], fill: float) -> np.ndarray:
    out = np.full(shape, fill, np.float32)
    inside, there = _overlap(corner, shape, array.shape)
    out[there] = array[inside]
    return out


def _put(array: np.ndarray, corner: np.ndarray, small: np.ndarray) -> None:
    inside, there = _overlap(corner, small.shape, array.shape)
    array[inside] = small[there]


def _overlap(corner, shape, limits) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of the large array and of the small one whose first voxel lies at ``corner``."""
    low, high = np.maximum(corner, 0), np.minimum(corner + np.array(shape), limits)
    inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return inside, tuple(slice(a - c, b - c) for a, b, c in zip(low, high, corner, strict=True))
