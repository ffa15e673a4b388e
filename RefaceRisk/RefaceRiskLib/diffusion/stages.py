"""The three stages of the cascade: what each one diffuses, sees, and pastes back.

A stage denoises *residuals* to what is known before it, in units of their spread: the signed distance and the intensity
of the removed region, relative to the linear model (coarse stage) or to the stage before (middle and fine). Zero is the
prediction that the stage starts from, so an untrained stage changes nothing. All work on Haar bands: nothing is lost,
and a network of the same width costs an eighth.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import torch

from .linear import LIMIT_MM
from .network import NetworkConfig
from .wavelets import haar, inverse_haar

LARGEST = 6.0


@dataclass(frozen=True)
class Example:
    """One head of one stage, tensors (1, C, X, Y, Z).

    base : signed distance (mm) and intensity (brain units) that the residual is added to, (1, 2, X, Y, Z).
    known : bool (1, 2, X, Y, Z), where base is already right. condition : Haar bands that the network sees.
    target : Haar bands of the residual in units of their spread, or None when sampling.
    """

    base: torch.Tensor
    known: torch.Tensor
    condition: torch.Tensor
    target: torch.Tensor | None = None

    def to(self, device: torch.device) -> Example:
        target = None if self.target is None else self.target.to(device)
        return Example(self.base.to(device), self.known.to(device), self.condition.to(device), target)


@dataclass(frozen=True)
class Stage:
    """spread : standard deviation of the sixteen Haar bands of the residual (eight of distance in mm, eight of
    intensity); dividing by it gives targets of unit variance. channels : of the network. gain : how much of the mean
    residual of distance to believe, 0 to 1, measured on heads that the network was not shown."""

    spread: tuple[float, ...] = (1.0,) * 16
    channels: tuple[int, ...] = (32, 64, 128)
    gain: float = 1.0
    seen: ClassVar[int] = 0

    @property
    def network(self) -> NetworkConfig:
        return NetworkConfig(image_channels=16, condition_channels=8 * self.seen, channels=self.channels)

    def weight(self, example: Example) -> torch.Tensor:
        """Loss weight of each band: unknown voxels, those near the predicted skin most; intensity inside the head."""
        distance = example.base[:, :1]
        near = torch.exp(-(distance / 6).square()) + 0.05
        inside = torch.sigmoid(-distance / 2)
        weight = torch.cat([near, 0.5 * inside], dim=1) * ~example.known
        return torch.nn.functional.avg_pool3d(weight, 2).repeat_interleave(8, dim=1)

    def project(self, example: Example):
        """Paste known voxels (a residual of zero) into each estimate of the sampler."""
        spread = torch.tensor(self.spread, device=example.base.device)

        def paste(x0: torch.Tensor, log_snr: float) -> torch.Tensor:
            return haar(torch.where(example.known, 0, inverse_haar(x0, spread)), spread)

        return paste

    def believed(self, x0: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """A drawn residual, moved so that its distribution's ``mean`` is ``gain`` times what the network takes it for.

        A network learns the spread of faces from few heads, but what it adds to their mean it may know by heart.
        """
        distance = torch.arange(x0.shape[1], device=x0.device).reshape(1, -1, 1, 1, 1) < 8
        return x0 - (1 - self.gain) * mean * distance

    def slope(self, example: Example, mean: torch.Tensor) -> tuple[float, float]:
        """Products (mm^2) of truth and ``mean``, and of mean and mean, whose quotient is the best gain."""
        weight = self.weight(example)[:, :8] * torch.tensor(self.spread[:8]).square().reshape(1, 8, 1, 1, 1)
        truth, mean = example.target[:, :8], mean[:, :8]
        return float((weight * truth * mean).sum()), float((weight * mean * mean).sum())

    def result(self, example: Example, x0: torch.Tensor) -> torch.Tensor:
        """Signed distance and intensity, (1, 2, X, Y, Z)."""
        return example.base + inverse_haar(x0, torch.tensor(self.spread, device=x0.device))

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Stage:
        """From JSON. Raises TypeError or ValueError for what is no stage."""
        return cls(tuple(values["spread"]), tuple(values["channels"]), float(values.get("gain", 1.0)))

    def _example(self, base, image, removed, known, seen, truth) -> Example:
        """Tensors from (X, Y, Z) arrays. base : (distance, tissue); image : the head, 0 where removed; known : bool
        for the distance; truth : (distance, intensity) in training."""
        start = torch.cat([_tensor(base[0]), _tensor(np.where(removed, base[1], image))], dim=1)
        certain = torch.cat([_tensor(known), _tensor(~removed)], dim=1) > 0.5
        condition = haar(torch.cat([_tensor(array) for array in seen], dim=1)) / 2
        if truth is None:
            return Example(start, certain, condition)
        residual = torch.cat([_tensor(truth[0]), _tensor(truth[1])], dim=1) - start
        residual = torch.where(certain, 0, residual).clamp(-LARGEST, LARGEST)
        target = haar(residual, torch.tensor(self.spread)).clamp(-LARGEST, LARGEST)
        return Example(start, certain, condition, target)


@dataclass(frozen=True)
class CoarseStage(Stage):
    """Whole head at 4 mm: residual of signed distance to the linear model's, of intensity to the average head's."""

    seen: ClassVar[int] = 6

    def example(self, start, average, image, removed, known, truth=None) -> Example:
        """start : (X, Y, Z) mm, the linear model's map. average, image : average head and this head (0 where
        removed). removed, known : bool, for intensity and for distance. truth : (distance, intensity) in training."""
        seen = (np.tanh(start / 4), start / LIMIT_MM, average, image, removed, known)
        return self._example((start, average), image, removed, known, seen, truth)


@dataclass(frozen=True)
class MiddleStage(Stage):
    """Face box at 2 mm: detail of signed distance and intensity on the upsampled coarse stage."""

    seen: ClassVar[int] = 5

    def example(self, distance, tissue, image, removed, known, truth=None) -> Example:
        """distance, tissue : (X, Y, Z), maps of the stage before brought to this grid. The rest as in CoarseStage."""
        seen = (np.tanh(distance / 4), tissue, image, removed, known)
        return self._example((distance, tissue), image, removed, known, seen, truth)


@dataclass(frozen=True)
class FineStage(MiddleStage):
    """Face box at 1 mm: detail on the upsampled middle stage; eight times the voxels, half the width."""

    channels: tuple[int, ...] = (16, 32, 64)


# In the order in which they run.
STAGES = {"coarse": CoarseStage, "middle": MiddleStage, "fine": FineStage}


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))[None, None]
