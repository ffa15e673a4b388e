"""What the diffusion model needs and a stock Slicer does not have: asked for on Apply, never at import."""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import RefaceRiskError

TORCH = ">=2.6"
# import name -> requirement
BESIDE_TORCH = {"monai": "monai>=1.5", "einops": "einops>=0.7", "safetensors": "safetensors>=0.4"}


def ensure_diffusion_packages() -> None:
    """Installs what is missing, asking the user first.

    PyTorch comes from the PyTorch extension (it picks the build that fits the computer), the rest through
    slicer.packaging. Raises RefaceRiskError when that extension is absent or the user declines.
    """
    if find_spec("torch") is None:
        try:
            import PyTorchUtils
        except ImportError:
            raise RefaceRiskError(
                "the diffusion model needs PyTorch",
                "install the PyTorch extension from the Extensions Manager, or choose the linear model",
            ) from None
        torch = PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True, torchVersionRequirement=TORCH)
        if torch is None:
            raise RefaceRiskError("PyTorch was not installed", "the linear model does without it")
    missing = [requirement for name, requirement in BESIDE_TORCH.items() if find_spec(name) is None]
    if missing:
        import slicer.packaging

        try:
            slicer.packaging.pip_ensure(missing, requester="RefaceRisk")
        except RuntimeError as error:
            raise RefaceRiskError(f"{', '.join(missing)} not installed", "the linear model does without") from error
