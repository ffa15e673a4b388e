"""Our samplers beside MONAI's schedulers, on distributions whose exact denoiser is known.

    python Testing/benchmarks/bench_samplers.py [--samples 20000] [--out samplers.tsv]

One run, one machine, one noise for all. Printed, lower is better:

mixture    Wasserstein-1 distance between samples and quantiles of three modes on a line
gaussian   relative error of the standard deviations of a 16-dimensional normal with spreads from 0.05 to 2

Then: whether our sampler meets the limits, and gives a number at every step count from 1 to 1000.

2M is DPM-Solver++(2M); "steps" are network calls. MONAI's schedulers are driven through their own interface as its
DiffusionInferer does: ``set_timesteps(steps)``, then ``step(model_output, t, x)`` for t in ``scheduler.timesteps``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "RefaceRisk"))

from RefaceRiskLib.diffusion.sampler import ddim, dpm_solver_pp_2m
from RefaceRiskLib.diffusion.schedule import LOG_SNR_MAX, LOG_SNR_MIN, alpha_sigma, sampling_grid

WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
MEANS = torch.tensor([-1.0, 0.2, 1.2], dtype=torch.float64)
SPREADS = torch.tensor([0.15, 0.1, 0.2], dtype=torch.float64)
MEANS = MEANS - WEIGHTS @ MEANS
UNIT = (WEIGHTS @ (MEANS**2 + SPREADS**2)).sqrt()  # the whole mixture has mean 0 and variance 1, as our data have
MEANS, SPREADS = MEANS / UNIT, SPREADS / UNIT

# W1 of the mixture by step count: DPM-Solver++(2M) on a uniform log-SNR grid over MONAI's linear_beta schedule.
LIMITS = {10: 0.035, 20: 0.005}

SCALES = torch.logspace(math.log10(0.05), math.log10(2), 16, dtype=torch.float64)


def mixture_x0(x: torch.Tensor, log_snr: float) -> torch.Tensor:
    """E[x0 | x] of the mixture, exact."""
    alpha, sigma = alpha_sigma(float(log_snr))
    variance = alpha**2 * SPREADS**2 + sigma**2
    z = x[..., None]
    logits = WEIGHTS.log() - 0.5 * variance.log() - (z - alpha * MEANS) ** 2 / (2 * variance)
    means = MEANS + (alpha * SPREADS**2 / variance) * (z - alpha * MEANS)
    return (logits.softmax(-1) * means).sum(-1)


def gaussian_x0(x: torch.Tensor, log_snr: float) -> torch.Tensor:
    """E[x0 | x] of N(0, diag(SCALES^2)), exact."""
    alpha, sigma = alpha_sigma(float(log_snr))
    return alpha * SCALES**2 / (alpha**2 * SCALES**2 + sigma**2) * x


def mixture_quantiles(count: int) -> torch.Tensor:
    """The mixture's quantiles at the middles of ``count`` equal probabilities, by inverting its distribution."""
    grid = torch.linspace(-5, 5, 400_001, dtype=torch.float64)
    below = (WEIGHTS * torch.special.ndtr((grid[:, None] - MEANS) / SPREADS)).sum(-1)
    place = torch.searchsorted(below, (torch.arange(count, dtype=torch.float64) + 0.5) / count)
    return grid[place.clamp_max(len(grid) - 1)]


def wasserstein_1(samples: torch.Tensor) -> float:
    return (samples.flatten().sort().values - mixture_quantiles(samples.numel())).abs().mean().item()


def spread_error(samples: torch.Tensor, noise: torch.Tensor) -> float:
    """Root mean square relative error; ``noise`` stands for the exact answer, which is SCALES * noise."""
    return (samples.std(0) / (SCALES * noise.std(0)) - 1).square().mean().sqrt().item()


def monai(name: str, denoise, noise: torch.Tensor, steps: int) -> torch.Tensor:
    """MONAI's scheduler with its default schedule (linear_beta, T = 1000), fed the exact noise."""
    from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, PNDMScheduler

    scheduler = {
        "DDPM": lambda: DDPMScheduler(1000, clip_sample=False),
        "DDIM": lambda: DDIMScheduler(1000, clip_sample=False),
        "PNDM": lambda: PNDMScheduler(1000, skip_prk_steps=True),
    }[name]()
    with contextlib.redirect_stdout(io.StringIO()):
        scheduler.set_timesteps(steps)
    x = noise.clone()
    for t in scheduler.timesteps:
        kept = scheduler.alphas_cumprod[int(t)].double()
        log_snr = (kept / (1 - kept)).log().item()
        eps = (x - kept.sqrt() * denoise(x, log_snr)) / (1 - kept).sqrt()
        x = scheduler.step(eps, int(t), x)[0]
    return x


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 15, 20, 50, 100])
    parser.add_argument("--ends", type=float, nargs=2, default=[LOG_SNR_MAX, LOG_SNR_MIN], metavar=("MAX", "MIN"))
    parser.add_argument("--out", type=Path, help="also write the table as TSV")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    noise = torch.randn(options.samples, len(SCALES), dtype=torch.float64)
    # the normal's own quantiles: what is left of the distance is the sampler's error, not that of the draw
    middles = (torch.arange(options.samples, dtype=torch.float64) + 0.5) / options.samples
    line_noise = torch.special.ndtri(middles)[:, None]
    ends = options.ends
    samplers = {
        "ours 2M": lambda f, x, steps: dpm_solver_pp_2m(f, x, sampling_grid(steps, *ends)),
        "ours 2M, uniform grid": lambda f, x, steps: dpm_solver_pp_2m(f, x, sampling_grid(steps, *ends, focus=None)),
        "ours DDIM": lambda f, x, steps: ddim(f, x, sampling_grid(steps, *ends)),
        "MONAI DDPM": lambda *a: monai("DDPM", *a),
        "MONAI DDIM": lambda *a: monai("DDIM", *a),
        "MONAI PNDM": lambda *a: monai("PNDM", *a),
    }
    rows = [["problem", "sampler", *map(str, options.steps)]]
    for problem in ("mixture", "gaussian"):
        for name, sample in samplers.items():
            row = [problem, name]
            for steps in options.steps:
                if problem == "mixture":
                    error = wasserstein_1(sample(mixture_x0, line_noise, steps))
                else:
                    error = spread_error(sample(gaussian_x0, noise, steps), noise)
                row.append(f"{error:.4f}")
            rows.append(row)
    for row in rows:
        print(f"{row[0]:9s} {row[1]:22s}" + "".join(f"{value:>9s}" for value in row[2:]))
    if options.out:
        options.out.write_text("".join("\t".join(row) + "\n" for row in rows))
    return 0 if within_limits(line_noise) and is_always_finite(line_noise[::400]) else 1


def within_limits(noise: torch.Tensor) -> bool:
    found = {steps: wasserstein_1(dpm_solver_pp_2m(mixture_x0, noise, sampling_grid(steps))) for steps in LIMITS}
    for steps, error in found.items():
        met = "" if error <= LIMITS[steps] else ", MISSED"
        print(f"ours 2M, mixture, {steps} steps: {error:.4f} (limit {LIMITS[steps]}{met})")
    return all(error <= LIMITS[steps] for steps, error in found.items())


def is_always_finite(noise: torch.Tensor) -> bool:
    wrong = [n for n in range(1, 1001) if not dpm_solver_pp_2m(mixture_x0, noise, sampling_grid(n)).isfinite().all()]
    print(f"step counts from 1 to 1000 with a result that is not finite: {len(wrong)}{wrong[:10] or ''}")
    return not wrong


if __name__ == "__main__":
    raise SystemExit(main())
