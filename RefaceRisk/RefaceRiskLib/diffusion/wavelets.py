"""Orthonormal 3-D Haar wavelets on torch tensors.

A 1 mm face has too many voxels for a network on a CPU; its eight half-size Haar bands have the same numbers,
laid out so that every convolution touches eight times fewer positions (WDM, Friedrich et al. 2024,
arXiv 2402.19043). The transform is orthonormal: it loses nothing, keeps the energy (so white noise stays white
noise of the same strength), and its inverse is its transpose.

Band order: the eight bands of input channel ``c`` are output channels ``8c .. 8c+7``, named in `BANDS` by
low (L) or high (H) pass along (D, H, W). The first of each eight, LLL, is ``sqrt(8)`` times the local mean.
"""

from __future__ import annotations

import math

import torch

BANDS = ("LLL", "LLH", "LHL", "LHH", "HLL", "HLH", "HHL", "HHH")

_ORTHONORMAL = 1 / math.sqrt(8)


def haar(x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """Haar bands of ``x``: (B, C, D, H, W) -> (B, 8C, D/2, H/2, W/2); D, H and W even, else ValueError.

    ``scale`` (8C,), for instance from `band_std`, divides each band, so that the bands of smooth images
    (LLL about sqrt(8) times the image's spread, the others far below it) all reach unit variance.
    """
    batch, channels, *size = x.shape
    if len(size) != 3 or any(n % 2 for n in size):
        raise ValueError(f"Haar bands need a (B, C, D, H, W) tensor of even D, H, W, not {tuple(x.shape)}")
    half = [n // 2 for n in size]
    for axis in (2, 3, 4):  # the slowest axis first: its sums run over whole contiguous planes
        even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
        x = torch.stack((even + odd, even - odd), dim=2).flatten(1, 2)
    x = x.reshape(batch, channels * 8, *half) * _ORTHONORMAL
    return x if scale is None else x / _per_channel(scale, x)


def inverse_haar(bands: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """The image of these bands: (B, 8C, D, H, W) -> (B, C, 2D, 2H, 2W); undoes ``haar(x, scale)``."""
    if bands.ndim != 5 or bands.shape[1] % 8:
        raise ValueError(f"expected (B, 8C, D, H, W) Haar bands, not {tuple(bands.shape)}")
    x = bands if scale is None else bands * _per_channel(scale, bands)
    for axis in (4, 3, 2):
        low, high = x.unflatten(1, (-1, 2)).unbind(2)
        x = torch.stack((low + high, low - high), dim=axis + 1).flatten(axis, axis + 1)
    return x * _ORTHONORMAL


def band_std(x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Root mean square (8C,) of each Haar band over the batch and all positions of ``x`` (B, C, D, H, W).

    ``weight`` (B, 1, D/2, H/2, W/2) restricts it, for instance to the band positions inside a removed mask.
    The mean is not taken off: bands are divided by this, never shifted.
    """
    power = haar(x).double().square()
    if weight is None:
        mean_power = power.mean(dim=(0, 2, 3, 4))
    else:
        mean_power = (power * weight).sum(dim=(0, 2, 3, 4)) / weight.double().sum().clamp_min(1e-12)
    return mean_power.clamp_min(1e-12).sqrt().to(x.dtype)


def _per_channel(scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(scale, dtype=x.dtype, device=x.device).reshape(1, -1, 1, 1, 1)
