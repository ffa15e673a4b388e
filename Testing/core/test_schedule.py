from __future__ import annotations

import itertools
import math

import pytest

torch = pytest.importorskip("torch")

from RefaceRiskLib.diffusion import schedule  # noqa: E402
from RefaceRiskLib.diffusion.schedule import (  # noqa: E402
    add_noise,
    alpha_sigma,
    cosine_log_snr,
    draw_log_snr,
    loss_weight,
    low_discrepancy,
    sampling_grid,
)


def test_signal_and_noise_keep_unit_variance_and_have_the_named_ratio():
    log_snr = torch.linspace(-30, 30, 61, dtype=torch.float64)
    alpha, sigma = alpha_sigma(log_snr)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    torch.testing.assert_close(2 * (alpha.log() - sigma.log()), log_snr)


@pytest.mark.parametrize("log_snr", [-800.0, -7.5, 0.0, 3.0, 800.0])
def test_floats_and_tensors_agree_even_far_out(log_snr):
    alpha, sigma = alpha_sigma(log_snr)
    assert isinstance(alpha, float)
    expected = alpha_sigma(torch.tensor(log_snr, dtype=torch.float64))
    assert (alpha, sigma) == pytest.approx(tuple(value.item() for value in expected))


def test_a_level_per_image_multiplies_its_own_image():
    x = torch.ones(2, 3, 4, 4, 4)
    noisy = add_noise(x, torch.tensor([-40.0, 40.0]), torch.zeros_like(x))
    assert noisy[0].abs().max() < 1e-6
    torch.testing.assert_close(noisy[1], x[1])


def test_noisy_unit_data_have_unit_variance_at_every_level():
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 1, 32, 32, 32, generator=generator)
    noisy = add_noise(x0, torch.tensor([-6.0, -1.0, 0.0, 5.0]), noise)
    torch.testing.assert_close(noisy.var((1, 2, 3, 4)), torch.ones(4), rtol=0.03, atol=0)


def test_the_cosine_schedule_falls_strictly_from_end_to_end():
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    levels = cosine_log_snr(t, -8, 8)
    assert levels[0].item() == pytest.approx(8)
    assert levels[-1].item() == pytest.approx(-8)
    assert (levels.diff() < 0).all()
    alpha, _ = alpha_sigma(cosine_log_snr(t, -40, 40))
    torch.testing.assert_close(alpha, torch.cos(math.pi / 2 * t), rtol=0, atol=1e-6)


def test_a_negative_shift_keeps_the_ends_and_adds_noise_in_between():
    assert cosine_log_snr(0.0, -8, 8, shift=-2).item() == pytest.approx(8, abs=1e-4)
    assert cosine_log_snr(1.0, -8, 8, shift=-2).item() == pytest.approx(-8, abs=1e-4)
    assert cosine_log_snr(0.5, -8, 8, shift=-2).item() < -1.5


@pytest.mark.parametrize("steps", [2, 5, 10, 50, 100, 1000])
def test_the_sampling_grid_rises_strictly_from_noise_to_image(steps):
    grid = sampling_grid(steps, 8, -7)
    assert len(grid) == steps
    assert (grid[0], grid[-1]) == (-7, 8)
    assert all(now < after for now, after in itertools.pairwise(grid))


def test_a_grid_without_focus_is_uniform():
    widths = torch.tensor(sampling_grid(11, 8, -7, focus=None), dtype=torch.float64).diff()
    torch.testing.assert_close(widths, torch.full_like(widths, 1.5))


def test_a_focused_grid_has_its_shortest_steps_at_the_focus():
    grid = torch.tensor(sampling_grid(30, focus=2.0), dtype=torch.float64)
    shortest = grid.diff().argmin()
    assert grid[shortest] < 2.6
    assert grid[shortest + 1] > 1.4
    assert grid.diff()[0] > 2 * grid.diff().min()


def test_one_step_starts_from_noise():
    assert sampling_grid(1, 8, -7) == [-7]


@pytest.mark.parametrize("arguments", [(0, 8, -8), (10, -8, 8), (10, 3, 3)])
def test_grids_that_lead_nowhere_are_refused(arguments):
    with pytest.raises(ValueError):
        sampling_grid(*arguments)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_draws_are_even_over_batch_and_steps(batch):
    draws = torch.cat([low_discrepancy(step, batch, seed=3) for step in range(1000 // batch)])
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.histc(draws, bins=20, min=0, max=1)
    assert (counts - 50).abs().max() <= 3  # independent draws would be off by 15 somewhere


def test_draws_depend_on_step_and_seed_alone():
    whole = torch.cat([draw_log_snr(step, 2, seed=1) for step in range(6)])
    torch.testing.assert_close(torch.cat([draw_log_snr(step, 2, seed=1) for step in range(3, 6)]), whole[6:])
    assert not torch.allclose(draw_log_snr(0, 2, seed=1), draw_log_snr(0, 2, seed=2))


def test_few_step_draws_are_the_grid_itself_equally_often():
    grid = sampling_grid(10)
    draws = torch.cat([draw_log_snr(step, 1, law="grid", grid=grid) for step in range(1000)])
    values, counts = draws.unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor(grid))
    assert (counts - 100).abs().max() <= 3


def test_jitter_fills_the_gaps_of_the_grid_and_stays_within_its_ends():
    grid = sampling_grid(5, 8, -8)
    draws = torch.cat([draw_log_snr(step, 1, law="grid", grid=grid, jitter=1.0) for step in range(2000)])
    assert draws.min() >= -8
    assert draws.max() <= 8
    assert (torch.histc(draws, bins=16, min=-8, max=8) > 50).all()


@pytest.mark.parametrize("law", ["cosine", "uniform"])
def test_the_laws_keep_to_their_range(law):
    draws = torch.cat([draw_log_snr(step, 4, law=law, log_snr_min=-6, log_snr_max=5) for step in range(500)])
    assert -6 - 1e-4 <= draws.min() < -5.9
    assert 4.9 < draws.max() <= 5 + 1e-4
    middle = draws.abs().lt(1).float().mean().item()
    assert (middle == pytest.approx(2 / 11, abs=0.01)) if law == "uniform" else middle > 0.25


def test_unknown_laws_and_weights_are_named():
    with pytest.raises(ValueError, match="unknown law 'sigmoid'"):
        draw_log_snr(0, 1, law="sigmoid")
    with pytest.raises(ValueError, match="unknown loss weight"):
        loss_weight(0.0, "best")
    with pytest.raises(ValueError, match="needs the grid"):
        draw_log_snr(0, 1, law="grid")


def test_x0_eps_and_v_say_the_same():
    generator = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, 3, 2, 4, 4, 4, generator=generator, dtype=torch.float64)
    log_snr = torch.tensor([-5.0, 0.3, 4.0], dtype=torch.float64)
    x = add_noise(x0, log_snr, eps)
    alpha, sigma = alpha_sigma(log_snr, like=x)
    v = alpha * eps - sigma * x0
    torch.testing.assert_close(schedule.eps_from_x0(x, x0, log_snr), eps)
    torch.testing.assert_close(schedule.x0_from_eps(x, eps, log_snr), x0)
    torch.testing.assert_close(schedule.v_from_x0(x, x0, log_snr), v)
    torch.testing.assert_close(schedule.x0_from_v(x, v, log_snr), x0)


def test_loss_weights_make_the_image_error_the_named_error():
    generator = torch.Generator().manual_seed(2)
    x0, eps, guess = torch.randn(3, 4, 1, 4, 4, 4, generator=generator, dtype=torch.float64)
    log_snr = torch.tensor([-3.0, -0.5, 1.0, 4.0], dtype=torch.float64)
    x = add_noise(x0, log_snr, eps)

    def error(a, b):
        return (a - b).square().mean((1, 2, 3, 4))

    image_error = error(guess, x0)
    for kind, from_x0, truth in (
        ("eps", schedule.eps_from_x0, eps),
        ("v", schedule.v_from_x0, schedule.v_from_x0(x, x0, log_snr)),
    ):
        weighted = loss_weight(log_snr, kind) * image_error
        torch.testing.assert_close(weighted, error(from_x0(x, guess, log_snr), truth), rtol=1e-5, atol=1e-7)


def test_cut_weights_stop_growing_at_gamma():
    assert loss_weight(math.log(3), "min_snr") == pytest.approx(3)
    assert loss_weight(10.0, "min_snr") == 5
    assert loss_weight(math.log(3), "soft") == pytest.approx(4)
    assert loss_weight(-20.0, "soft") == pytest.approx(1)
    assert loss_weight(10.0, "x0") == 1
