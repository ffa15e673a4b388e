"""The cascade's networks at work: load a stage, choose a device, sample both stages in turn (needs torch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import RefaceRiskError
from ..progress import OnProgress, report
from .network import Denoiser, build_network, half_precision
from .sampler import dpm_solver_pp_2m, expected
from .schedule import sampling_grid
from .space import halved, upsampled
from .stages import STAGES, CoarseStage, Example, FaceStage
from .weights import load_weights, shapes_of

if TYPE_CHECKING:
    from ..surface.extract import Surface
    from .cascade import Maps, Refacer, _Task


@dataclass(frozen=True, eq=False)
class LoadedStage:
    stage: CoarseStage | FaceStage
    denoiser: Denoiser
    log_snr_min: float
    log_snr_max: float


def load_stage(folder: Path, name: str) -> tuple[LoadedStage, str]:
    """A trained stage and the sha256 of its weights. Raises RefaceRiskError for missing or damaged files."""
    loaded = load_weights(folder)
    try:
        stage = STAGES[name](**{key: tuple(value) for key, value in loaded.config["stage"].items()})
        denoiser = build_network(stage.network)
        bounds = float(loaded.config["log_snr_min"]), float(loaded.config["log_snr_max"])
    except (KeyError, TypeError, ValueError) as error:
        raise RefaceRiskError(
            f"not a {name} stage ({error})", "pass a model folder written by training", folder
        ) from None
    load_weights(folder, shapes=shapes_of(denoiser))
    denoiser.load_state_dict(loaded.state_dict)
    return LoadedStage(stage, denoiser.eval(), *bounds), loaded.sha256


def choose_device(device: str) -> torch.device:
    """``auto`` is CUDA, then Apple's MPS, then the CPU. Raises RefaceRiskError for a device that is not there."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise RefaceRiskError(
            f"device {device!r} cannot be used ({str(error).splitlines()[0]})", "use --device cpu"
        ) from None


def sample_cascade(
    model: Refacer,
    task: _Task,
    samples: int,
    steps: int,
    seed: int,
    device: str,
    temperature: float,
    on_progress: OnProgress | None,
) -> list[Maps]:
    """Draw ``samples`` completed faces, both stages each."""
    from .cascade import Maps

    where = choose_device(device)
    coarse, face = model.stages["coarse"], model.stages["face"]
    coarse_grid, face_grid = task.grids
    head = task.head
    missing = head.removed | ~head.inside
    missing_coarse = halved(missing.astype(np.float32)) > 0
    first = coarse.stage.example(
        task.start, halved(task.tissue()), halved(head.image) * ~missing_coarse, missing_coarse, task.known
    )
    face_image, face_missing, face_distance = (task.on_face(a) for a in (head.image, missing, head.distance))
    face_known = task.face_known
    maps = []
    for number in range(samples):
        generator = torch.Generator().manual_seed(seed * 1009 + number)
        run = _Run(steps, generator, where, temperature, f" {number + 1}/{samples}" if samples > 1 else "", on_progress)
        distance, tissue = run.sample(coarse, first, "coarse stage", lambda d: task.skin(upsampled(d, *task.grids)))
        finer = np.where(face_known, face_distance, upsampled(distance, coarse_grid, face_grid))
        finer_tissue = upsampled(tissue, coarse_grid, face_grid, order=1)
        second = face.stage.example(finer, finer_tissue, face_image, face_missing, face_known)
        fine_distance, fine_tissue = run.sample(face, second, "face stage", task.skin)
        fine_distance = task.anchored_face(fine_distance)
        maps.append(Maps(distance, fine_distance, np.maximum(tissue, 0.1), np.maximum(fine_tissue, 0.1)))
    return maps


@dataclass(frozen=True, eq=False)
class _Run:
    """How one face is sampled: the same for both stages."""

    steps: int
    generator: torch.Generator
    device: torch.device
    temperature: float
    which: str
    on_progress: OnProgress | None

    def sample(
        self, loaded: LoadedStage, example: Example, name: str, skin: Callable[[np.ndarray], Surface | None]
    ) -> np.ndarray:
        """Signed distance and intensity, (2, X, Y, Z) float32; ``skin`` makes a preview of a signed distance."""
        denoiser, example = loaded.denoiser.to(self.device), example.to(self.device)
        shape = (1, loaded.stage.network.image_channels, *example.condition.shape[2:])

        def denoise(x: torch.Tensor, log_snr: float) -> torch.Tensor:
            with half_precision(self.device):
                return denoiser(x, example.condition, log_snr).float()

        def on_step(step: int, of: int, x0: torch.Tensor) -> None:
            preview = partial(self._preview, loaded, example, x0, skin)
            report(self.on_progress, name + self.which, step, of, f"on {self.device}", preview)

        report(self.on_progress, name + self.which, 0, self.steps, f"on {self.device}")
        project = loaded.stage.project(example)

        def noise() -> torch.Tensor:
            return torch.randn(shape, generator=self.generator).to(self.device)

        if self.temperature == 0:
            x0 = expected(denoise, noise, loaded.log_snr_min, self.steps, project=project, on_step=on_step)
        else:
            log_snrs = sampling_grid(self.steps, loaded.log_snr_max, loaded.log_snr_min)
            x0 = dpm_solver_pp_2m(denoise, self.temperature * noise(), log_snrs, project=project, on_step=on_step)
        return loaded.stage.result(example, x0)[0].float().cpu().numpy()

    @staticmethod
    def _preview(loaded: LoadedStage, example: Example, x0: torch.Tensor, skin) -> Surface | None:
        return skin(loaded.stage.result(example, x0)[0, 0].float().cpu().numpy())
