from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from RefaceRiskLib.diffusion.sampler import SAMPLERS, ddim, dpm_solver_pp_2m  # noqa: E402
from RefaceRiskLib.diffusion.schedule import alpha_sigma, sampling_grid  # noqa: E402
from RefaceRiskLib.progress import Cancelled  # noqa: E402

F64 = torch.float64

# three modes on a line, mean 0 and variance 1 together
SHARES = torch.tensor([0.3, 0.5, 0.2], dtype=F64)
MODES = torch.tensor([-1.35, 0.17, 1.6], dtype=F64)
WIDTHS = torch.tensor([0.19, 0.13, 0.25], dtype=F64)


def mixture_x0(x, log_snr):
    alpha, sigma = alpha_sigma(float(log_snr))
    variance = alpha**2 * WIDTHS**2 + sigma**2
    gap = x[..., None] - alpha * MODES
    belonging = (SHARES.log() - 0.5 * variance.log() - gap**2 / (2 * variance)).softmax(-1)
    return (belonging * (MODES + alpha * WIDTHS**2 / variance * gap)).sum(-1)


def mixture_quantiles(count):
    line = torch.linspace(-4, 4, 80_001, dtype=F64)
    below = (SHARES * torch.special.ndtr((line[:, None] - MODES) / WIDTHS)).sum(-1)
    return line[torch.searchsorted(below, (torch.arange(count, dtype=F64) + 0.5) / count)]


def wasserstein_1(sampler, steps, count=2000, **grid):
    noise = torch.special.ndtri((torch.arange(count, dtype=F64) + 0.5) / count)
    samples = sampler(mixture_x0, noise[:, None], sampling_grid(steps, **grid))
    return (samples.flatten().sort().values - mixture_quantiles(count)).abs().mean().item()


class Normal:
    """A 4-dimensional normal with known covariance: its denoiser and the exact end of the probability flow."""

    def __init__(self, mean=(0.5, -1.0, 0.0, 2.0)):
        turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(5), dtype=F64))
        self.turn, self.variances = turn, torch.tensor([0.01, 0.2, 1.0, 3.0], dtype=F64)
        self.mean = torch.tensor(mean, dtype=F64)

    def covariance(self):
        return self.turn @ self.variances.diag() @ self.turn.T

    def denoise(self, x, log_snr):
        alpha, sigma = alpha_sigma(float(log_snr))
        shrink = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        return self.mean + ((x - alpha * self.mean) @ self.turn * shrink) @ self.turn.T

    def exact(self, x, log_snrs):
        """Along each principal axis the flow keeps x / (its standard deviation at that noise level)."""
        (a0, s0), (a1, s1) = alpha_sigma(log_snrs[0]), alpha_sigma(log_snrs[-1])
        stretch = ((a1**2 * self.variances + s1**2) / (a0**2 * self.variances + s0**2)).sqrt()
        last = a1 * self.mean + ((x - a0 * self.mean) @ self.turn * stretch) @ self.turn.T
        return self.denoise(last, log_snrs[-1])


def noise(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def normal_error(sampler, steps):
    normal, x, grid = Normal(), noise(64, 4), sampling_grid(steps)
    return (sampler(normal.denoise, x, grid) - normal.exact(x, grid)).abs().mean().item()


@pytest.mark.parametrize("steps", [8, 10, 15, 20])
def test_the_focused_grid_beats_the_uniform_one_by_far(steps):
    focused, uniform = (wasserstein_1(dpm_solver_pp_2m, steps, focus=focus) for focus in (2.0, None))
    assert focused < 0.75 * uniform


@pytest.mark.parametrize(("steps", "limit"), [(10, 0.025), (15, 0.011), (20, 0.005), (50, 0.003), (100, 0.002)])
def test_dpm_solver_reaches_the_three_modes_in_few_steps(steps, limit):
    assert wasserstein_1(dpm_solver_pp_2m, steps) < limit  # nan would fail too


def test_dpm_solver_is_far_closer_than_ddim_at_equal_cost():
    assert wasserstein_1(dpm_solver_pp_2m, 15) < wasserstein_1(ddim, 15) / 4


def test_the_error_of_dpm_solver_falls_fourfold_when_steps_double():
    errors = [normal_error(dpm_solver_pp_2m, steps) for steps in (41, 81, 161)]
    ratios = [errors[i] / errors[i + 1] for i in range(2)]
    assert all(3.3 < ratio < 4.9 for ratio in ratios), ratios


def test_the_error_of_ddim_falls_twofold_when_steps_double():
    ratio = normal_error(ddim, 81) / normal_error(ddim, 161)
    assert 1.8 < ratio < 2.2


def test_samples_of_a_normal_have_its_mean_and_covariance():
    normal = Normal()
    samples = dpm_solver_pp_2m(normal.denoise, noise(20_000, 4), sampling_grid(20))
    torch.testing.assert_close(samples.mean(0), normal.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(samples.T.cov(), normal.covariance(), rtol=0, atol=0.08)


def test_ancestral_sampling_reaches_the_right_spread_at_any_number_of_steps():
    normal = Normal(mean=(0, 0, 0, 0))
    for steps in (60, 200):
        generator = torch.Generator().manual_seed(1)
        samples = ddim(normal.denoise, noise(5000, 4), sampling_grid(steps), eta=1.0, generator=generator)
        spread = (samples @ normal.turn).std(0)
        torch.testing.assert_close(spread, normal.variances.sqrt(), rtol=0.12, atol=0)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=list(SAMPLERS))
def test_a_constant_denoiser_is_returned_exactly_from_any_grid(sampler):
    target = noise(1, 2, 3, 4, 5, seed=7)
    for log_snrs in ([-3.0], [-8.0, 0.5], [-8.0, -7.9, 2.0, 12.0]):
        assert torch.equal(sampler(lambda x, log_snr: target, noise(1, 2, 3, 4, 5), log_snrs), target)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=list(SAMPLERS))
def test_a_sampler_is_deterministic_and_leaves_its_noise_alone(sampler):
    x = noise(3, 1, dtype=torch.float32)
    kept = x.clone()
    first, second = (sampler(lambda x, s: mixture_x0(x, s).float(), x, sampling_grid(6)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(x, kept)
    assert first.dtype == torch.float32


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=list(SAMPLERS))
def test_known_voxels_come_out_as_given_and_steer_the_others(sampler):
    normal, x = Normal(mean=(0, 0, 0, 0)), noise(2000, 4)
    mask = torch.tensor([True, False, False, False])
    values = torch.full((1, 4), 3.0, dtype=F64)
    samples = sampler(normal.denoise, x, sampling_grid(20), known=(values, mask))
    assert (samples[:, 0] == 3.0).all()
    conditional_mean = normal.covariance()[1:, 0] / normal.covariance()[0, 0] * 3.0
    off = (samples[:, 1:].mean(0) - conditional_mean).norm()
    unconditioned = sampler(normal.denoise, x, sampling_grid(20))
    assert off < (unconditioned[:, 1:].mean(0) - conditional_mean).norm()


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=list(SAMPLERS))
def test_the_projection_sees_every_estimate_and_its_noise_level(sampler):
    levels = []

    def project(x0, log_snr):
        levels.append(log_snr)
        return x0.clamp(-0.1, 0.1)

    grid = sampling_grid(5)
    result = sampler(mixture_x0, noise(9, 1), grid, project=project)
    assert set(levels) == set(grid)
    assert result.abs().max() <= 0.1


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=list(SAMPLERS))
def test_each_step_is_reported_with_its_estimate(sampler):
    seen = []
    result = sampler(mixture_x0, noise(9, 1), sampling_grid(7), on_step=lambda *step: seen.append(step))
    assert [(step, of) for step, of, _ in seen] == [(i, 7) for i in range(1, 8)]
    assert torch.equal(seen[-1][2], result)


def test_cancelling_ends_the_run_within_the_step():
    calls = []

    def denoise(x, log_snr):
        calls.append(log_snr)
        return mixture_x0(x, log_snr)

    def on_step(step, of, x0):
        if step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        dpm_solver_pp_2m(denoise, noise(4, 1), sampling_grid(10), on_step=on_step)
    assert len(calls) == 3


@pytest.mark.parametrize("sampler", [dpm_solver_pp_2m, ddim])
def test_one_step_costs_one_network_call(sampler):
    calls = []
    sampler(lambda x, s: calls.append(s) or x, noise(2, 1), sampling_grid(10))
    assert calls == sampling_grid(10)


@pytest.mark.parametrize("log_snrs", [[], [0.0, 0.0, 1.0], [2.0, 1.0], [-8.0, math.nan], [-math.inf, 0.0]])
def test_grids_that_would_give_nan_are_refused(log_snrs):
    with pytest.raises(ValueError, match="log-SNRs"):
        dpm_solver_pp_2m(mixture_x0, noise(2, 1), log_snrs)


def test_no_gradient_is_recorded():
    weight = torch.ones(1, dtype=F64, requires_grad=True)
    result = dpm_solver_pp_2m(lambda x, s: x * weight, noise(2, 1), sampling_grid(3))
    assert not result.requires_grad
