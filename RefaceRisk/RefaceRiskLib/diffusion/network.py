"""The denoising network: MONAI's 3-D diffusion U-Net, conditioned by extra channels, predicting the clean image.

The network's raw output is not the image: a skip connection weighted by the noise level carries what is already
known from ``x``, so that the network learns a target of unit variance at every level (Karras et al. 2022, EDM, here
for the variance-preserving process). With data of unit variance this is v-prediction. A fresh network puts out
exactly zero, and its estimate is then the best that a linear shrink of ``x`` alone can do: nearly zero at the highest
noise, ``x`` itself at the lowest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import torch
from torch import nn

TIME_SCALE = 4.0
"""Log-SNR times this is the time step that MONAI embeds: its fastest wave has a period of 1.6 in log-SNR, a bit less
than a step of ten-step sampling, and the next ones (slower by up to 10,000) tell the whole range apart."""


@dataclass(frozen=True)
class NetworkConfig:
    """What a `Denoiser` is made of; plain numbers that go to JSON and back (`to_dict`, `from_dict`).

    image_channels, condition_channels
        Channels of the image that is denoised and of what it is conditioned on.
    channels
        Width of each level; each level but the last halves the grid. Multiples of ``norm_num_groups``.
    num_res_blocks
        Residual blocks a level on the way down (one more on the way up).
    attention_levels
        Numbers of the levels with self-attention (quadratic in voxels: only for the smallest).
    middle_attention
        Self-attention at the bottom. MONAI builds it always; here it is off unless asked for.
    sigma_data
        Standard deviation of the clean image, one number or one a channel.
    blocky_upsampling
        Convolve before instead of after the upsampling: an eighth of the work for it, for less smooth features.
    """

    image_channels: int
    condition_channels: int = 0
    channels: tuple[int, ...] = (16, 32, 64, 128)
    num_res_blocks: int = 1
    norm_num_groups: int = 8
    attention_levels: tuple[int, ...] = ()
    middle_attention: bool = False
    sigma_data: float | tuple[float, ...] = 1.0
    blocky_upsampling: bool = False

    def __post_init__(self) -> None:
        # JSON gives lists
        for name in ("channels", "attention_levels", "sigma_data"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.sigma_data, tuple) and len(self.sigma_data) != self.image_channels:
            raise ValueError(f"{len(self.sigma_data)} sigma_data for {self.image_channels} image channels")
        if any(width % self.norm_num_groups for width in self.channels):
            raise ValueError(f"channels {self.channels} are no multiples of norm_num_groups {self.norm_num_groups}")
        if any(not 0 <= level < len(self.channels) for level in self.attention_levels):
            raise ValueError(f"attention_levels {self.attention_levels} of a network of {len(self.channels)} levels")

    @property
    def divisor(self) -> int:
        """Every axis of the input must be a multiple of this."""
        return 2 ** (len(self.channels) - 1)

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> NetworkConfig:
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown network settings: {', '.join(sorted(unknown))}")
        return cls(**values)


class Denoiser(nn.Module):
    """``forward(x, cond, log_snr) -> x0``: the estimate of the clean image.

    x : (B, image_channels, D, H, W) noisy image, ``alpha x0 + sigma noise``.
    cond : (B, condition_channels, D, H, W), or None without condition.
    log_snr : float, 0-d tensor or (B,).

    Raises ValueError for wrong channels or sizes that are not multiples of ``config.divisor``.
    """

    def __init__(self, config: NetworkConfig, unet: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.unet = unet
        sigma_data = torch.as_tensor(config.sigma_data, dtype=torch.float32).reshape(1, -1, 1, 1, 1)
        self.register_buffer("variance", sigma_data.square(), persistent=False)

    def forward(self, x: torch.Tensor, cond: torch.Tensor | None, log_snr) -> torch.Tensor:
        self._check(x, cond)
        log_snr = torch.as_tensor(log_snr, dtype=x.dtype, device=x.device).expand(x.shape[0])
        c_skip, c_out, c_in = self.preconditioning(log_snr)
        inputs = c_in * x if cond is None else torch.cat((c_in * x, cond.to(x.dtype)), dim=1)
        # half-precision convolutions on a CPU are fastest with the channels last
        inputs = inputs.contiguous(memory_format=torch.channels_last_3d)
        return c_skip * x + c_out * self.unet(inputs, log_snr * TIME_SCALE).to(x.dtype)

    def preconditioning(self, log_snr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """c_skip, c_out, c_in for log-SNRs (B,), each to multiply an image batch.

        c_skip is the least-squares shrink of x towards x0, c_out the standard deviation of what that leaves, c_in
        makes the input unit variance. The error of the raw output is that of x0 divided by c_out.
        """
        log_snr = log_snr.reshape(-1, 1, 1, 1, 1)
        signal, noise = torch.sigmoid(log_snr), torch.sigmoid(-log_snr)
        total = signal * self.variance + noise
        return signal.sqrt() * self.variance / total, (self.variance * noise / total).sqrt(), total.rsqrt()

    def conditioned(self, cond: torch.Tensor | None):
        """``denoise(x, log_snr) -> x0`` for the samplers, with this condition."""
        return lambda x, log_snr: self(x, cond, log_snr)

    def _check(self, x: torch.Tensor, cond: torch.Tensor | None) -> None:
        config = self.config
        if x.ndim != 5 or x.shape[1] != config.image_channels:
            raise ValueError(f"expected (B, {config.image_channels}, D, H, W) noisy images, not {tuple(x.shape)}")
        wanted = (x.shape[0], config.condition_channels, *x.shape[2:])
        if config.condition_channels and (cond is None or tuple(cond.shape) != wanted):
            raise ValueError(f"expected a condition {wanted}, not {None if cond is None else tuple(cond.shape)}")
        if not config.condition_channels and cond is not None:
            raise ValueError("this network takes no condition")
        if any(size % config.divisor for size in x.shape[2:]):
            raise ValueError(
                f"image size {tuple(x.shape[2:])} is no multiple of {config.divisor} on every axis: pad it"
                f" (the network has {len(config.channels)} levels)"
            )


def build_network(config: NetworkConfig | dict) -> Denoiser:
    """A fresh denoiser; its raw output is zero (MONAI zero-initialises the last convolution)."""
    from monai.networks.nets import DiffusionModelUNet

    if isinstance(config, dict):
        config = NetworkConfig.from_dict(config)
    unet = DiffusionModelUNet(
        spatial_dims=3,
        in_channels=config.image_channels + config.condition_channels,
        out_channels=config.image_channels,
        channels=config.channels,
        num_res_blocks=config.num_res_blocks,
        attention_levels=[level in config.attention_levels for level in range(len(config.channels))],
        norm_num_groups=config.norm_num_groups,
        num_head_channels=config.channels[-1],
        use_flash_attention=True,
    )
    if not config.middle_attention:
        unet.middle_block.attention = nn.Identity()
    for module in unet.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = _GroupNorm
    if config.blocky_upsampling:
        for block in unet.up_blocks:
            if block.upsampler is not None:
                block.upsampler = _ConvolveThenRepeat(block.upsampler.postconv)
    return Denoiser(config, unet).to(memory_format=torch.channels_last_3d)


def half_precision(device: str | torch.device = "cpu"):
    """Context in which the network computes in bfloat16, where the device does that in hardware; else in float32.

    Three to five times faster on such a CPU, for training and sampling; without the hardware it would be far slower.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # absent in some builds of torch
        able = any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    else:
        able = kind == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(kind if able else "cpu", dtype=torch.bfloat16, enabled=able)


class _GroupNorm(nn.GroupNorm):
    """The same in all but speed: torch's bfloat16 channels-last backward pass is 2 to 5 times slower than float32's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.bfloat16 and x.device.type == "cpu" and torch.is_grad_enabled():
            return super().forward(x.float()).to(x.dtype)
        return super().forward(x)


class _ConvolveThenRepeat(nn.Module):
    """Upsampling by two: convolution on the small grid, then nearest neighbour."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: torch.Tensor, emb: torch.Tensor | None = None) -> torch.Tensor:
        return nn.functional.interpolate(self.convolution(x), scale_factor=2.0, mode="nearest")


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
