from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from RefaceRiskLib.diffusion.network import NetworkConfig, build_network, half_precision, parameter_count  # noqa: E402
from RefaceRiskLib.diffusion.sampler import dpm_solver_pp_2m  # noqa: E402
from RefaceRiskLib.diffusion.schedule import (  # noqa: E402
    add_noise,
    alpha_sigma,
    draw_log_snr,
    loss_weight,
    sampling_grid,
)

SMALL = NetworkConfig(image_channels=2, condition_channels=3, channels=(8, 16), norm_num_groups=4)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(config=SMALL, seed=0):
    """A network whose zero-initialised convolutions are no longer zero."""
    torch.manual_seed(seed)
    net = build_network(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval()


@pytest.mark.parametrize("log_snr", [-8.0, -1.0, 0.0, 3.0, 8.0])
@pytest.mark.parametrize("sigma_data", [1.0, 0.3, (0.5, 2.0)])
def test_a_fresh_network_is_the_best_linear_shrink_of_x(log_snr, sigma_data):
    config = NetworkConfig(2, 3, (8, 16), norm_num_groups=4, sigma_data=sigma_data)
    spread = torch.as_tensor(sigma_data).expand(2).reshape(1, 2, 1, 1, 1)
    x0 = spread * random(2, 2, 16, 16, 16)
    x = add_noise(x0, log_snr, random(*x0.shape, seed=1))
    with torch.no_grad():
        estimate = build_network(config)(x, random(2, 3, 16, 16, 16, seed=2), log_snr)
    slope = (x * x0).sum((0, 2, 3, 4)) / (x * x).sum((0, 2, 3, 4))  # least squares, measured
    shrink = (estimate / x).mean((0, 2, 3, 4))
    torch.testing.assert_close(estimate, shrink.reshape(1, 2, 1, 1, 1) * x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shrink, slope, rtol=0.05, atol=0.02)


def test_a_fresh_network_says_nearly_nothing_at_the_highest_noise():
    x = random(1, 2, 8, 8, 8)
    with torch.no_grad():
        estimate = build_network(SMALL)(x, torch.zeros(1, 3, 8, 8, 8), -8.0)
    assert estimate.abs().max() < 0.02 * x.abs().max()
    assert estimate.abs().max() > 0


def test_with_unit_variance_the_raw_output_is_minus_v():
    net = trained()
    x, cond, log_snr = random(1, 2, 8, 8, 8), random(1, 3, 8, 8, 8, seed=1), 0.7
    raw = []
    net.unet.register_forward_hook(lambda module, inputs, output: raw.append(output))
    with torch.no_grad():
        x0 = net(x, cond, log_snr)
    alpha, sigma = alpha_sigma(log_snr)
    torch.testing.assert_close(x0, alpha * x + sigma * raw[0])
    assert raw[0].std() > 0.05


@pytest.mark.parametrize("sigma_data", [1.0, 0.2])
def test_input_and_training_target_have_unit_variance_at_every_level(sigma_data):
    net = build_network(NetworkConfig(1, 0, (8, 16), norm_num_groups=4, sigma_data=sigma_data))
    x0 = sigma_data * random(1, 1, 32, 32, 32)
    for log_snr in (-8.0, -2.0, 0.0, 2.0, 8.0):
        x = add_noise(x0, log_snr, random(*x0.shape, seed=1))
        c_skip, c_out, c_in = net.preconditioning(torch.tensor([log_snr]))
        assert (c_in * x).std().item() == pytest.approx(1, abs=0.03)
        assert ((x0 - c_skip * x) / c_out).std().item() == pytest.approx(1, abs=0.03)


def test_condition_and_noise_level_both_change_the_answer():
    net = trained()
    x, cond = random(1, 2, 8, 8, 8), random(1, 3, 8, 8, 8, seed=1)
    raw = []
    net.unet.register_forward_hook(lambda module, inputs, output: raw.append(output))
    with torch.no_grad():
        net(x, cond, 0.0)
        net(x, cond + 1, 0.0)
        net(x, cond, 0.5)
    assert (raw[0] - raw[1]).abs().max() > 1e-2
    assert (raw[0] - raw[2]).abs().max() > 1e-3


def test_one_level_for_all_is_that_level_for_each():
    net = trained()
    x, cond = random(2, 2, 8, 8, 8), random(2, 3, 8, 8, 8, seed=1)
    with torch.no_grad():
        each = net(x, cond, torch.tensor([-1.0, 2.0]))
        torch.testing.assert_close(each[:1], net(x[:1], cond[:1], -1.0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(each[1:], net(x[1:], cond[1:], torch.tensor(2.0)), rtol=1e-4, atol=1e-5)


def test_attention_at_the_bottom_is_there_only_when_asked_for():
    plain = build_network(SMALL)
    asked = build_network({**SMALL.to_dict(), "middle_attention": True})
    assert not any("attention" in name for name, _ in plain.named_parameters())
    assert any("middle_block.attention" in name for name, _ in asked.named_parameters())
    assert parameter_count(plain) < parameter_count(asked)


def test_blocky_upsampling_keeps_sizes_and_parameters():
    blocky = trained(NetworkConfig.from_dict({**SMALL.to_dict(), "blocky_upsampling": True}))
    assert parameter_count(blocky) == parameter_count(build_network(SMALL))
    with torch.no_grad():
        assert blocky(random(1, 2, 8, 12, 16), random(1, 3, 8, 12, 16), 0.0).shape == (1, 2, 8, 12, 16)


def test_a_config_survives_json():
    config = NetworkConfig(2, 1, (8, 16, 24), 2, 4, (2,), True, (0.5, 2.0), True)
    assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.divisor == 4


@pytest.mark.parametrize(
    "wrong",
    [{"channels": (8, 12)}, {"sigma_data": (1.0,)}, {"attention_levels": (2,)}, {"colour": "grey"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_configs_that_make_no_network_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NetworkConfig.from_dict({**SMALL.to_dict(), "norm_num_groups": 8, **wrong})


@pytest.mark.parametrize(
    ("x_shape", "cond_shape", "reason"),
    [
        ((1, 2, 8, 8, 7), (1, 3, 8, 8, 7), "no multiple of 2"),
        ((1, 1, 8, 8, 8), (1, 3, 8, 8, 8), "noisy images"),
        ((1, 2, 8, 8, 8), (1, 2, 8, 8, 8), "condition"),
        ((1, 2, 8, 8, 8), None, "condition"),
    ],
)
def test_inputs_that_do_not_fit_are_named(x_shape, cond_shape, reason):
    cond = None if cond_shape is None else torch.zeros(cond_shape)
    with pytest.raises(ValueError, match=reason):
        build_network(SMALL)(torch.zeros(x_shape), cond, 0.0)


def test_half_precision_autocast_gives_nearly_the_same_in_full_precision_numbers():
    net = trained()
    x, cond = random(1, 2, 8, 8, 8), random(1, 3, 8, 8, 8, seed=1)
    with torch.no_grad():
        full = net(x, cond, 0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = net(x, cond, 0.0)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert (half - full).std() < 0.02 * full.std()


def test_half_precision_learns_the_same_gradients():
    net = trained()
    x, cond = random(2, 2, 8, 8, 8), random(2, 3, 8, 8, 8, seed=1)
    gradients = []
    for half in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            estimate = net(x, cond, 0.0)
        (estimate - cond[:, :2]).square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.99
    assert not torch.equal(*gradients)


def test_half_precision_is_used_where_the_hardware_has_it_and_nowhere_else(monkeypatch):
    for able in (True, False):
        for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, check, lambda able=able: able, raising=False)
        with half_precision("cpu"):
            assert torch.is_autocast_enabled("cpu") == able
    with half_precision("mps"):
        assert not torch.is_autocast_enabled("cpu")


def test_a_short_training_learns_to_follow_the_condition():
    """The image is the condition: the sampler, from noise, comes back to it and not to another one."""
    torch.manual_seed(0)
    net = build_network(NetworkConfig(1, 1, (8, 16), norm_num_groups=4))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    smooth = torch.nn.functional.interpolate(random(32, 1, 2, 2, 2), size=8, mode="trilinear")
    smooth = smooth / smooth.std((2, 3, 4), keepdim=True)
    for step in range(150):
        x0 = smooth[step % 7 * 4 :][:4]
        log_snr = draw_log_snr(step, 4, law="uniform")
        x = add_noise(x0, log_snr, torch.randn_like(x0))
        error = (net(x, x0, log_snr) - x0).square().mean((1, 2, 3, 4))
        optimizer.zero_grad()
        (loss_weight(log_snr, "v") * error).mean().backward()
        optimizer.step()
    unseen = smooth[28:]
    sample = dpm_solver_pp_2m(net.conditioned(unseen), torch.randn_like(unseen), sampling_grid(10))
    assert (sample - unseen).std() < 0.5 * (sample - unseen.flip(0)).std()
