"""Noise levels of a variance-preserving diffusion, in continuous time, named by their log signal-to-noise ratio.

At log-SNR ``l`` a noisy image is ``x = alpha x0 + sigma eps`` with ``alpha^2 = sigmoid(l)`` and
``sigma^2 = sigmoid(-l)``; ``alpha^2 + sigma^2 = 1`` (Kingma et al. 2021, Variational diffusion models). Nothing
here knows of integer time steps, so any number of sampling steps is consistent with any training.

`x` and ``log_snr`` are tensors; ``log_snr`` is a float, a 0-d tensor or one value per image (B,).
"""

from __future__ import annotations

import math

import torch

LOG_SNR_MIN = -8.0
"""All but pure noise: alpha = 0.018. Details that span many voxels (n at once) need about log(n) less, because their
signal adds up over voxels while the noise does not."""
LOG_SNR_MAX = 8.0
"""All but clean: sigma = 0.018."""

_GOLDEN = (math.sqrt(5) - 1) / 2


def alpha_sigma(log_snr, like: torch.Tensor | None = None) -> tuple:
    """Signal and noise amplitudes at ``log_snr``.

    Without ``like``: two floats for a float, two tensors for a tensor. With ``like``, an image tensor
    (B, C, ...): two tensors of its dtype and device that multiply it.
    """
    if like is not None:
        log_snr = expand(log_snr, like)
    if torch.is_tensor(log_snr):
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
    return math.sqrt(_sigmoid(log_snr)), math.sqrt(_sigmoid(-log_snr))


def expand(log_snr, like: torch.Tensor) -> torch.Tensor:
    """``log_snr`` as a tensor that broadcasts against the image batch ``like`` (B, C, ...)."""
    log_snr = torch.as_tensor(log_snr, dtype=like.dtype, device=like.device)
    return log_snr.reshape(-1, *[1] * (like.ndim - 1)) if log_snr.ndim else log_snr


# Schedules and grids -------------------------------------------------------------------------------------------


def cosine_log_snr(t, log_snr_min: float = LOG_SNR_MIN, log_snr_max: float = LOG_SNR_MAX, shift: float = 0.0):
    """The cosine schedule (Nichol & Dhariwal 2021): log-SNR at time ``t``, 0 clean to 1 noise (tensor or float).

    The ends are cut by shortening time, not by flattening the curve, so it stays strictly falling from
    ``log_snr_max`` to ``log_snr_min``. ``shift`` below 0 moves the times in between to more noise, as large smooth
    images need: 2 log(64 / size) in Hoogeboom et al. 2023 (simple diffusion).
    """
    t = torch.as_tensor(t, dtype=torch.float32) if not torch.is_tensor(t) else t
    first = math.atan(math.exp(-(log_snr_max - shift) / 2))
    last = math.atan(math.exp(-(log_snr_min - shift) / 2))
    return -2 * torch.log(torch.tan(first + t * (last - first))) + shift


def sampling_grid(
    steps: int,
    log_snr_max: float = LOG_SNR_MAX,
    log_snr_min: float = LOG_SNR_MIN,
    *,
    focus: float | None = 2.0,
    spread: float = 4.0,
) -> list[float]:
    """The ``steps`` log-SNRs at which a sampler calls the network, rising, both ends included.

    Sampling starts from noise at ``grid[0] == log_snr_min`` and returns the estimate of the clean image made at
    ``grid[-1] == log_snr_max``, so the last step is always the step to clean. One step is the one at
    ``log_snr_min``.

    ``focus=None`` spaces them uniformly (Lu et al. 2022). By default steps are shorter near log-SNR ``focus``, where
    images take their form, and longer farther than ``spread`` from it (uniform in asinh): half the error of the
    uniform grid with 8 to 20 steps of `dpm_solver_pp_2m` (Testing/benchmarks/bench_samplers.py).
    """
    if steps < 1:
        raise ValueError(f"sampling needs at least one step, not {steps}")
    if not log_snr_min < log_snr_max:
        raise ValueError(f"log_snr_min {log_snr_min} is not below log_snr_max {log_snr_max}")
    if steps == 1:
        return [log_snr_min]
    fractions = [i / (steps - 1) for i in range(1, steps - 1)]
    if focus is None:
        inner = [log_snr_min + u * (log_snr_max - log_snr_min) for u in fractions]
    else:
        first, last = (math.asinh((end - focus) / spread) for end in (log_snr_min, log_snr_max))
        inner = [focus + spread * math.sinh(first + u * (last - first)) for u in fractions]
    return [log_snr_min, *inner, log_snr_max]


# Training ------------------------------------------------------------------------------------------------------


def low_discrepancy(step: int, batch: int, seed: int = 0) -> torch.Tensor:
    """Evenly spread numbers (batch,) in [0, 1): numbers ``step * batch ...`` of a golden-ratio sequence.

    Spread over the images of a batch and over consecutive steps alike, which matters for batches of one or two;
    a function of the step alone, so a resumed training draws what an unbroken one would have drawn.
    """
    start = (seed * 0.754877666) % 1.0  # other seeds start elsewhere on the same sequence
    return torch.tensor(
        [(start + (step * batch + i + 1) * _GOLDEN) % 1.0 for i in range(batch)], dtype=torch.float64
    ).float()


def draw_log_snr(
    step: int,
    batch: int,
    *,
    law: str = "cosine",
    grid: list[float] | None = None,
    jitter: float = 0.0,
    log_snr_min: float = LOG_SNR_MIN,
    log_snr_max: float = LOG_SNR_MAX,
    shift: float = 0.0,
    seed: int = 0,
) -> torch.Tensor:
    """Noise levels (batch,) for one training step, spread by `low_discrepancy`.

    ``law``: ``"cosine"`` (most draws near log-SNR ``shift``), ``"uniform"`` in log-SNR, or ``"grid"``: the very
    noise levels of ``grid``, each equally often, that will be used to sample (Fast-DDPM, Jiang et al. 2024,
    arXiv 2405.14802: a network that has to be good at ten noise levels learns them in a fifth of the time).
    ``jitter`` spreads these over that part of the distance between grid points (1: the whole range), so that other
    numbers of steps remain usable.
    """
    u = low_discrepancy(step, batch, seed)
    if law == "cosine":
        return cosine_log_snr(u, log_snr_min, log_snr_max, shift)
    if law == "uniform":
        return log_snr_min + u * (log_snr_max - log_snr_min)
    if law == "grid":
        if not grid:
            raise ValueError("law='grid' needs the grid of log-SNRs")
        levels = torch.tensor(grid, dtype=torch.float32)
        last = len(levels) - 1
        nearest = (u * len(levels)).floor().clamp_max(last)
        # what choosing the grid point leaves of u is evenly spread too
        place = (nearest + jitter * (u * len(levels) - nearest - 0.5)).clamp(0, last)
        below = place.floor().clamp_max(max(last - 1, 0)).long()
        return torch.lerp(levels[below], levels[(below + 1).clamp_max(last)], place - below)
    raise ValueError(f"unknown law {law!r}: cosine, uniform or grid")


def add_noise(x0: torch.Tensor, log_snr, noise: torch.Tensor) -> torch.Tensor:
    """``alpha x0 + sigma noise``."""
    alpha, sigma = alpha_sigma(log_snr, like=x0)
    return alpha * x0 + sigma * noise


def loss_weight(log_snr, kind: str = "v", gamma: float = 5.0):
    """Factor on the squared error of the x0 estimate at ``log_snr`` (float or tensor), by the loss it amounts to.

    ========== ==================== =========================================================================
    ``x0``     1                    the error of the image itself
    ``eps``    SNR                  the error of the noise (Ho et al. 2020); nothing at high noise
    ``v``      SNR + 1              the error of v (Salimans & Ho 2022): that of the network's raw output
    ``min_snr`` min(SNR, gamma)     Hang et al. 2023: ``eps`` without its emphasis on the last crumbs of noise
    ``soft``   min(SNR + 1, gamma)  ``v`` cut likewise; at high noise still the plain image error
    ========== ==================== =========================================================================
    """
    tensor = torch.as_tensor(log_snr, dtype=torch.float32)
    snr = tensor.exp()
    weights = {
        "x0": torch.ones_like(snr),
        "eps": snr,
        "v": snr + 1,
        "min_snr": snr.clamp_max(gamma),
        "soft": (snr + 1).clamp_max(gamma),
    }
    if kind not in weights:
        raise ValueError(f"unknown loss weight {kind!r}: {', '.join(weights)}")
    return weights[kind] if torch.is_tensor(log_snr) else weights[kind].item()


# The three ways to say what the network predicts ---------------------------------------------------------------


def eps_from_x0(x: torch.Tensor, x0: torch.Tensor, log_snr) -> torch.Tensor:
    alpha, sigma = alpha_sigma(log_snr, like=x)
    return (x - alpha * x0) / sigma


def x0_from_eps(x: torch.Tensor, eps: torch.Tensor, log_snr) -> torch.Tensor:
    alpha, sigma = alpha_sigma(log_snr, like=x)
    return (x - sigma * eps) / alpha


def v_from_x0(x: torch.Tensor, x0: torch.Tensor, log_snr) -> torch.Tensor:
    """``v = alpha eps - sigma x0`` (Salimans & Ho 2022)."""
    alpha, sigma = alpha_sigma(log_snr, like=x)
    return (alpha * x - x0) / sigma


def x0_from_v(x: torch.Tensor, v: torch.Tensor, log_snr) -> torch.Tensor:
    alpha, sigma = alpha_sigma(log_snr, like=x)
    return alpha * x - sigma * v


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
