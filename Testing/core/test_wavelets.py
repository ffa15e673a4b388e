from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from RefaceRiskLib.diffusion.wavelets import BANDS, band_std, haar, inverse_haar  # noqa: E402


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def haar_by_definition(x: torch.Tensor) -> torch.Tensor:
    """Each band as the scalar product of every 2x2x2 block with its own +-1/sqrt(8) pattern."""
    bands = []
    for channel in x.unbind(1):
        for name in BANDS:
            total = 0.0
            for corner in range(8):
                offset = corner >> 2 & 1, corner >> 1 & 1, corner & 1
                sign = math.prod(-1 if band == "H" and o else 1 for band, o in zip(name, offset, strict=True))
                total = total + sign * channel[:, offset[0] :: 2, offset[1] :: 2, offset[2] :: 2]
            bands.append(total / math.sqrt(8))
    return torch.stack(bands, dim=1)


def test_the_bands_are_those_of_the_definition_in_the_documented_order():
    x = image(2, 3, 4, 6, 8)
    torch.testing.assert_close(haar(x), haar_by_definition(x))


@pytest.mark.parametrize("shape", [(1, 1, 2, 2, 2), (2, 3, 8, 6, 4), (1, 5, 20, 16, 24)])
def test_the_inverse_gives_the_image_back_to_float_precision(shape):
    x = image(*shape)
    torch.testing.assert_close(inverse_haar(haar(x)), x, rtol=0, atol=2e-6)


def test_the_forward_transform_also_undoes_the_inverse():
    bands = image(2, 16, 3, 4, 5)
    torch.testing.assert_close(haar(inverse_haar(bands)), bands, rtol=0, atol=2e-6)


def test_energy_is_kept_image_by_image():
    x = image(3, 2, 8, 8, 8)
    torch.testing.assert_close(haar(x).square().sum((1, 2, 3, 4)), x.square().sum((1, 2, 3, 4)))


def test_a_constant_image_is_all_in_the_first_band_of_its_channel():
    x = torch.ones(1, 2, 4, 4, 4)
    x[:, 1] = 3.0
    power = haar(x).square().sum((0, 2, 3, 4))
    assert power.nonzero().flatten().tolist() == [0, 8]
    assert haar(x)[0, 0, 0, 0, 0] == pytest.approx(math.sqrt(8))


def test_a_ramp_along_the_last_axis_shows_in_band_llh_alone():
    x = torch.arange(8.0).expand(1, 1, 8, 8, 8)
    power = haar(x - x.mean()).square().sum((0, 2, 3, 4))
    assert set(power.gt(1e-6).nonzero().flatten().tolist()) == {BANDS.index("LLL"), BANDS.index("LLH")}


def test_scaled_bands_have_unit_power_and_are_scaled_back():
    x = image(2, 2, 16, 16, 16).cumsum(2).cumsum(3).cumsum(4)
    scale = band_std(x)
    assert scale[0] > 20 * scale[7]  # smooth images live in LLL
    torch.testing.assert_close(band_std(x), haar(x).square().mean((0, 2, 3, 4)).sqrt(), rtol=1e-4, atol=0)
    scaled = haar(x, scale)
    torch.testing.assert_close(scaled.square().mean((0, 2, 3, 4)), torch.ones(16), rtol=1e-4, atol=0)
    torch.testing.assert_close(inverse_haar(scaled, scale), x, rtol=1e-4, atol=1e-3)


def test_band_power_is_measured_inside_the_weight_only():
    x = image(1, 1, 8, 8, 8)
    weight = torch.zeros(1, 1, 4, 4, 4)
    weight[..., :2] = 1
    expected = band_std(x[..., :4])
    x[..., 4:] *= 100
    torch.testing.assert_close(band_std(x, weight), expected, rtol=1e-4, atol=0)


def test_gradients_flow_through_both_ways():
    x = image(1, 1, 4, 4, 4).requires_grad_()
    inverse_haar(haar(x) * 2).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 2.0))


@pytest.mark.parametrize("shape", [(1, 1, 3, 4, 4), (1, 1, 4, 4, 5), (1, 4, 4)])
def test_odd_sizes_are_refused(shape):
    with pytest.raises(ValueError, match="even"):
        haar(torch.zeros(shape))


def test_bands_that_are_no_multiple_of_eight_are_refused():
    with pytest.raises(ValueError, match="8C"):
        inverse_haar(torch.zeros(1, 7, 2, 2, 2))
