"""The two stages of the cascade: what each one diffuses, sees, and pastes back.

A stage denoises *residuals* to what is known before it, in units of their spread: the signed distance and the intensity
of the removed region, relative to the linear model (coarse stage) or to the coarse stage (face stage). Zero is the
prediction that the stage starts from, so an untrained stage changes nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch

from .linear import LIMIT_MM
from .network import NetworkConfig
from .wavelets import haar, inverse_haar


@dataclass(frozen=True)
class Example:
    """One head of one stage, tensors (1, C, X, Y, Z) on the stage's grid.

    base : signed distance (mm) and intensity that the residual is added to, (1, 2, ...).
    known : bool (1, 2, ...), where base is already right. condition : (1, condition_channels, ...), as the network
    takes it. target : residual in stage units, or None when sampling.
    """

    base: torch.Tensor
    known: torch.Tensor
    condition: torch.Tensor
    target: torch.Tensor | None = None


class Stage(Protocol):
    network: NetworkConfig


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))[None, None]


@dataclass(frozen=True)
class CoarseStage:
    """Whole head at 4 mm: residual of signed distance to the linear model's, of intensity to the average head's.

    spread : standard deviation of the two residuals (mm, brain units), which makes the target unit variance.
    """

    spread: tuple[float, float] = (1.5, 0.25)
    channels: tuple[int, ...] = (16, 32, 64, 128)

    @property
    def network(self) -> NetworkConfig:
        return NetworkConfig(image_channels=2, condition_channels=6, channels=self.channels)

    def example(self, start, average, image, removed, known, truth=None) -> Example:
        """start : (X, Y, Z) mm, the linear model's map. average, image : average head and this head (0 where
        removed). removed, known : bool, for intensity and for distance. truth : (distance, intensity) in training."""
        base = torch.cat([tensor(start), tensor(np.where(removed, average, image))], dim=1)
        certain = torch.cat([tensor(known), tensor(~removed)], dim=1) > 0.5
        scale = torch.tensor(self.spread).reshape(1, 2, 1, 1, 1)
        condition = torch.cat(
            [
                tensor(start) / LIMIT_MM,
                tensor(np.tanh(start / 4)),
                tensor(known),
                tensor(removed),
                tensor(image),
                tensor(average),
            ],
            dim=1,
        )
        target = None
        if truth is not None:
            target = (torch.cat([tensor(truth[0]), tensor(truth[1])], dim=1) - base) / scale
            target = torch.where(certain, 0, target).clamp(-5, 5)
        return Example(base, certain, condition, target)

    def weight(self, example: Example) -> torch.Tensor:
        """Loss weight: the unknown voxels, those near the predicted skin most; intensity only inside the head."""
        distance = example.base[:, :1]
        near = torch.exp(-(distance / 6).square()) + 0.05
        inside = torch.sigmoid(-distance / 2)
        return torch.cat([near, 0.25 * inside], dim=1) * ~example.known

    def project(self, example: Example):
        """Paste known voxels (a residual of zero) into each estimate."""
        return lambda x0, log_snr: torch.where(example.known, 0, x0)

    def result(self, example: Example, x0: torch.Tensor) -> torch.Tensor:
        scale = torch.tensor(self.spread, device=x0.device).reshape(1, 2, 1, 1, 1)
        return example.base + x0 * scale

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class FaceStage:
    """Face box at 2 mm in Haar wavelet space: detail of signed distance and intensity on the upsampled coarse stage.

    spread : standard deviation of the sixteen Haar bands of the residual (eight of distance in mm, eight of intensity).
    """

    spread: tuple[float, ...] = (1.0,) * 16
    channels: tuple[int, ...] = (32, 64, 128)

    @property
    def network(self) -> NetworkConfig:
        return NetworkConfig(image_channels=16, condition_channels=40, channels=self.channels)

    def example(self, distance, tissue, image, removed, known, truth=None) -> Example:
        """distance, tissue : (X, Y, Z), the coarse stage's maps brought to this grid. The rest as in CoarseStage."""
        base = torch.cat([tensor(distance), tensor(np.where(removed, tissue, image))], dim=1)
        certain = torch.cat([tensor(known), tensor(~removed)], dim=1) > 0.5
        seen = [tensor(np.tanh(distance / 4)), tensor(tissue), tensor(image), tensor(removed), tensor(known)]
        condition = haar(torch.cat(seen, dim=1)) / 2.0
        target = None
        if truth is not None:
            residual = torch.cat([tensor(truth[0]), tensor(truth[1])], dim=1) - base
            residual = torch.where(certain, 0, residual)
            target = haar(residual.clamp(-6, 6), scale=torch.tensor(self.spread)).clamp(-6, 6)
        return Example(base, certain, condition, target)

    def weight(self, example: Example) -> torch.Tensor:
        near = torch.exp(-(example.base[:, :1] / 6).square()) + 0.05
        inside = torch.sigmoid(-example.base[:, :1] / 2)
        weight = torch.cat([near, 0.5 * inside], dim=1) * ~example.known
        return torch.nn.functional.avg_pool3d(weight, 2).repeat_interleave(8, dim=1)

    def project(self, example: Example):
        scale = torch.tensor(self.spread)

        def paste(x0: torch.Tensor, log_snr: float) -> torch.Tensor:
            bands = scale.to(x0.device)
            return haar(torch.where(example.known, 0, inverse_haar(x0, bands)), bands)

        return paste

    def result(self, example: Example, x0: torch.Tensor) -> torch.Tensor:
        return example.base + inverse_haar(x0, torch.tensor(self.spread, device=x0.device))

    def to_dict(self) -> dict:
        return asdict(self)


STAGES = {"coarse": CoarseStage, "face": FaceStage}
