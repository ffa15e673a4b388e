"""Few-step samplers, each a short function of ``(denoise, x, log_snrs)`` in the manner of k-diffusion.

``denoise(x, log_snr) -> x0`` estimates the clean image from ``x`` (B, C, ...) at a float log-SNR. ``x`` is noise
at ``log_snrs[0]`` (all but unit white noise; any temperature on it is the caller's), ``log_snrs`` rises strictly
and comes from `schedule.sampling_grid`. Every sampler takes its last step to the clean image itself: it returns
the estimate made at ``log_snrs[-1]``.

Keywords of all of them:

``known=(values, mask)``
    ``values`` are pasted into each estimate of the clean image where ``mask`` is True (both broadcast to ``x``).
``project``
    ``project(x0, log_snr) -> x0``, for any other constraint on the estimate (known voxels of Haar bands, ...).
``on_step``
    ``on_step(step, of, x0)`` after each estimate, step = 1 .. of; whatever it raises (`Cancelled`) ends the run.

All run without gradients and are deterministic given ``x`` (``ddim`` with eta > 0: given its generator too).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch

from .schedule import alpha_sigma

Denoise = Callable[[torch.Tensor, float], torch.Tensor]


@torch.no_grad()
def dpm_solver_pp_2m(
    denoise: Denoise, x: torch.Tensor, log_snrs: Sequence[float], *, known=None, project=None, on_step=None
) -> torch.Tensor:
    """DPM-Solver++(2M) in data prediction (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order, one
    network call a step, ``len(log_snrs)`` calls in all. 10 to 20 steps suffice.
    """
    grid, estimate = _begin(denoise, log_snrs, known, project, on_step)
    before, before_width = None, None
    for step in range(len(grid) - 1):
        x0 = estimate(x, step)
        width = grid[step + 1] - grid[step]
        midway = x0 if before is None else x0 + width / (2 * before_width) * (x0 - before)
        shrink, gain = _exponential_step(grid[step], grid[step + 1])
        x = shrink * x + gain * midway
        before, before_width = x0, width
    return estimate(x, len(grid) - 1)


@torch.no_grad()
def ddim(
    denoise: Denoise,
    x: torch.Tensor,
    log_snrs: Sequence[float],
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    known=None,
    project=None,
    on_step=None,
) -> torch.Tensor:
    """DDIM (Song et al. 2021), first order: Euler's method of the same equation when ``eta`` is 0, ancestral
    sampling (DDPM, at any spacing) when it is 1. The previous noise level is the one on the list.
    """
    grid, estimate = _begin(denoise, log_snrs, known, project, on_step)
    for step in range(len(grid) - 1):
        x0 = estimate(x, step)
        alpha, sigma = alpha_sigma(grid[step])
        alpha_next, sigma_next = alpha_sigma(grid[step + 1])
        eps = (x - alpha * x0) / sigma
        fresh = eta * (sigma_next / sigma) * math.sqrt(-math.expm1(grid[step] - grid[step + 1])) * sigma
        fresh = min(fresh, sigma_next)
        x = alpha_next * x0 + math.sqrt(sigma_next**2 - fresh**2) * eps
        if fresh:
            x = x + fresh * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return estimate(x, len(grid) - 1)


@torch.no_grad()
def expected(
    denoise: Denoise, noise: Callable[[], torch.Tensor], log_snr: float, draws: int, *, project=None, on_step=None
) -> torch.Tensor:
    """The mean of the distribution instead of a draw from it: at the highest noise the estimate of the clean image is
    its expectation given the condition alone. Averaged over ``draws`` noises, because what is left of ``x`` there
    still moves an imperfect network. ``noise()`` gives unit white noise of the image's shape.
    """
    total = None
    for step in range(draws):
        x0 = denoise(noise(), log_snr)
        total = x0 if total is None else total + x0
        mean = total / (step + 1)
        if project is not None:
            mean = project(mean, log_snr)
        if on_step is not None:
            on_step(step + 1, draws, mean)
    return mean


SAMPLERS = {"dpm_solver_pp_2m": dpm_solver_pp_2m, "ddim": ddim}


def _exponential_step(log_snr: float, log_snr_next: float) -> tuple[float, float]:
    """The exact solution ``shrink x + gain x0`` of the step if x0 stayed the same all along."""
    _, sigma = alpha_sigma(log_snr)
    alpha_next, sigma_next = alpha_sigma(log_snr_next)
    return sigma_next / sigma, -alpha_next * math.expm1((log_snr - log_snr_next) / 2)


def _begin(denoise, log_snrs, known, project, on_step):
    """The checked grid, and the estimate of the clean image at one of its steps with all constraints applied."""
    grid = [float(value) for value in log_snrs]
    if not grid or not all(math.isfinite(value) for value in grid):
        raise ValueError(f"a sampler needs finite log-SNRs, not {grid}")
    if any(after <= now for now, after in itertools.pairwise(grid)):
        raise ValueError("log-SNRs must rise strictly from noise to image: a repeated level divides by zero")

    def estimate(x: torch.Tensor, step: int) -> torch.Tensor:
        x0 = denoise(x, grid[step])
        if known is not None:
            values, mask = known
            x0 = torch.where(mask, values, x0)
        if project is not None:
            x0 = project(x0, grid[step])
        if on_step is not None:
            on_step(step + 1, len(grid), x0)
        return x0

    return grid, estimate
