"""Training examples for the brain mask: a label head moved, bent, painted, and cut as scans and defacers cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..errors import RefaceRiskError
from ..progress import OnProgress, report
from ..template import grid_mm
from ..volumes import Volume, load, reorient, to_sitk
from .contrasts import bias_field, brain_of, contrast, label_numbers, noisy, painted, smooth_field, tilted
from .frame import LIMIT_MM, SHAPE, SPACING_MM, frame_at, normalised

FAR_MM = 20.0
BENDING_MM = 3.0
SHARES = {"random": 0.5, "T1w": 0.12, "T2w": 0.12, "PD": 0.08, "FLAIR": 0.08, "CT": 0.10}


@dataclass(frozen=True, eq=False)
class LabelHead:
    """A label head at 1 mm in RAS: numbers (X, Y, Z) int16; distance to the brain, mm float32, every second voxel."""

    numbers: np.ndarray
    distance: np.ndarray
    affine: np.ndarray
    centre: np.ndarray  # of the brain, RAS mm

    @classmethod
    def of(cls, labels: Volume) -> LabelHead:
        labels = reorient(labels, "RAS")
        if np.abs(labels.spacing - 1).max() > 0.01:
            raise RefaceRiskError("a label head must have voxels of 1 mm", "resample it", labels.meta.path)
        brain = brain_of(labels)
        image = to_sitk((brain, labels.affine), np.uint8)
        image = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
        distance = np.clip(sitk.GetArrayViewFromImage(image).T[::2, ::2, ::2], -FAR_MM, FAR_MM)
        centre = labels.affine[:3, :3] @ np.argwhere(brain).mean(0) + labels.affine[:3, 3]
        numbers = np.ascontiguousarray(label_numbers(labels))
        return cls(numbers, np.ascontiguousarray(distance, np.float32), labels.affine, centre)


def read_heads(folder: Path, held_out: tuple[str, ...], on_progress: OnProgress | None = None) -> list[LabelHead]:
    """All label heads (``*seg_NN.nii.gz``) of a folder but those whose NN is held out. RefaceRiskError if none."""
    files = [f for f in sorted(Path(folder).glob("*.nii.gz")) if f.name.split(".")[0].split("_")[-1] not in held_out]
    if not files:
        raise RefaceRiskError("no label heads here", "name a folder of label maps (*_NN.nii.gz)", folder)
    heads = []
    for number, file in enumerate(files):
        report(on_progress, "read label heads", number, len(files), file.name)
        heads.append(LabelHead.of(load(file)))
    return heads


@dataclass(frozen=True, eq=False)
class Example:
    """image and distance (over the frame's limit, -1 to 1), both (X, Y, Z) float32; seen (X, Y, Z) bool."""

    image: np.ndarray
    distance: np.ndarray
    seen: np.ndarray

    def mirrored(self) -> Example:
        """Left for right."""
        return Example(self.image[::-1], self.distance[::-1], self.seen[::-1])


def draw_example(heads: list[LabelHead], rng: np.random.Generator) -> Example:
    """A random head, pose, bend, contrast and field of view."""
    head = heads[int(rng.integers(len(heads)))]
    points, scale = _pose(head, rng)
    numbers = _nearest(head.numbers, head.affine, points)
    every_second = head.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    distance = _between(head.distance, every_second, points) / scale
    name = rng.choice(list(SHARES), p=list(SHARES.values()))
    image = _scanned(numbers, str(name), rng)
    if rng.random() < 0.4:
        image = np.where(_defaced(distance, rng), image.min(), image)
    seen = _field_of_view(rng)
    image = np.where(seen, image, image.min() if rng.random() < 0.8 else 0)
    return Example(normalised(image), np.clip(distance / LIMIT_MM, -1, 1).astype(np.float32), seen)


def _pose(head: LabelHead, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """RAS mm in the label head of every voxel of the frame, (3, X, Y, Z), and how much the head is shrunk there."""
    grid = frame_at(np.zeros(3))
    move = tilted(rng, 9.0, 0.07, 0.03, 4.0)
    if rng.random() < 0.5:  # the first look knows only roughly where the brain is
        move[:3, 3] += np.clip(rng.standard_normal(3), -2, 2) * (5, 8, 11)
    if rng.random() < 0.5:
        move = move @ np.diag([-1.0, 1.0, 1.0, 1.0])
    bend = rng.uniform(0, BENDING_MM)
    points = np.stack([bend * smooth_field(rng.standard_normal((6, 7, 6)), SHAPE) for _ in range(3)])
    points += np.moveaxis(grid_mm(grid.shape, grid.affine), -1, 0)
    points = np.tensordot(move[:3, :3].astype(np.float32), points, axes=1)
    points += (move[:3, 3] + head.centre).astype(np.float32)[:, None, None, None]
    return points, float(np.cbrt(abs(np.linalg.det(move[:3, :3]))))


def _nearest(array: np.ndarray, affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The nearest voxel at RAS points (3, X, Y, Z) on a 1 mm grid along RAS; 0 outside."""
    index = np.rint(points - affine[:3, 3].astype(np.float32)[:, None, None, None]).astype(np.int32)
    limit = np.array(array.shape, np.int32)[:, None, None, None]
    inside = np.all((index >= 0) & (index < limit), axis=0)
    i, j, k = np.clip(index, 0, limit - 1)
    return np.where(inside, array[i, j, k], 0)


def _between(array: np.ndarray, affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Trilinear at RAS points (3, X, Y, Z); the border's value goes on outside. torch does this fastest."""
    import torch

    centre = affine[:3, :3] @ ((np.array(array.shape) - 1) / 2) + affine[:3, 3]
    half = affine[[0, 1, 2], [0, 1, 2]] * (np.array(array.shape) - 1) / 2
    where = (points - centre[:, None, None, None]) / half[:, None, None, None]
    where = torch.from_numpy(np.ascontiguousarray(np.moveaxis(where[::-1], 0, -1), np.float32))[None]
    found = torch.nn.functional.grid_sample(
        torch.from_numpy(array)[None, None], where, padding_mode="border", align_corners=True
    )
    return found[0, 0].numpy()


def _scanned(numbers: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    """Painted labels as a scanner would show them: partial volume, thick slices, bias, gamma, noise."""
    drawn = contrast(name, rng, variation=0.12)
    image = painted(numbers, drawn, rng)
    sigma = np.full(3, rng.uniform(0.35, 0.9))
    if rng.random() < 0.4:
        sigma[int(rng.integers(3))] = rng.uniform(0.5, 1.4)
    image = ndimage.gaussian_filter(image, sigma, truncate=2.5)
    if name == "CT":
        return np.clip(noisy(image, rng.uniform(0, 0.06), rng, rician=False), 0, 1)
    image = np.clip(image, 0, None) ** np.exp(0.25 * rng.standard_normal())
    return noisy(image * bias_field(image.shape, rng.uniform(0, 0.4), rng), rng.uniform(0, 0.08), rng)


def _defaced(distance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a defacer might have set to zero, bool: before and below a plane, or all but the brain; off the brain."""
    margin = rng.uniform(1, 15)
    if rng.random() < 0.15:
        return distance > margin
    x, y, z = (
        SPACING_MM * (np.arange(n, dtype=np.float32) - (n - 1) / 2).reshape([-1 if k == a else 1 for k in range(3)])
        for a, n in enumerate(SHAPE)
    )
    slope = rng.uniform(0.3, 1.5)
    before = y - slope * (z + rng.uniform(10, 50)) + rng.normal(0, 0.1) * x > rng.uniform(0, 50)
    return before & (distance > margin)


def _field_of_view(rng: np.random.Generator) -> np.ndarray:
    """Voxels inside the image, bool: now and then one or two of the frame's sides are not covered."""
    seen = np.ones(SHAPE, bool)
    if rng.random() < 0.35:
        for _ in range(int(rng.integers(1, 3))):
            axis, cut = int(rng.integers(3)), int(rng.uniform(2, 22))
            side = [slice(None)] * 3
            side[axis] = slice(0, cut) if rng.random() < 0.5 else slice(-cut, None)
            seen[tuple(side)] = False
    return seen
