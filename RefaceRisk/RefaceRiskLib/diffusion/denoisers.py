"""The cascade's networks at work: load a stage, choose a device, sample both stages in turn (needs torch)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import RefaceRiskError
from ..progress import OnProgress, report
from .network import Denoiser, build_network
from .sampler import dpm_solver_pp_2m
from .schedule import sampling_grid
from .space import halved, upsampled
from .stages import STAGES, CoarseStage, Example, FaceStage
from .weights import load_weights, shapes_of

if TYPE_CHECKING:
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
    coarse_grid, face_grid = task.grids
    tissue = task.tissue()
    head = task.head
    removed_coarse = halved(head.removed.astype(np.float32)) > 0
    coarse_example = model.stages["coarse"].stage.example(
        task.start, halved(tissue), halved(head.image) * ~removed_coarse, removed_coarse, task.known
    )
    face_removed = task.on_face(head.removed)
    fine_known = np.zeros(face_grid.shape, bool) | task.on_face(task_fine_known(task))
    fine_distance = task.on_face(head.distance)
    maps = []
    for number in range(samples):
        generator = torch.Generator().manual_seed(seed * 1009 + number)
        which = f" {number + 1}/{samples}" if samples > 1 else ""
        low = _sample(
            model.stages["coarse"],
            coarse_example,
            steps,
            generator,
            where,
            temperature,
            f"coarse stage{which}",
            on_progress,
        )
        low_distance = upsampled(low[0], coarse_grid, face_grid)
        low_tissue = upsampled(low[1], coarse_grid, face_grid, order=1)
        fine_example = model.stages["face"].stage.example(
            np.where(fine_known, fine_distance, low_distance),
            low_tissue,
            task.on_face(head.image),
            face_removed,
            fine_known,
        )
        fine = _sample(
            model.stages["face"],
            fine_example,
            steps,
            generator,
            where,
            temperature,
            f"face stage{which}",
            on_progress,
        )
        maps.append(Maps(low[0], fine[0], np.maximum(low[1], 0.1), np.maximum(fine[1], 0.1)))
    return maps


def task_fine_known(task: _Task) -> np.ndarray:
    """Where the 2 mm signed distance of the defaced head is that of the whole head, on the template's grid."""
    from .linear import reliable

    head = task.head
    return reliable(head.distance, head.removed | ~head.inside, task.template.spacing)


def _sample(
    loaded: LoadedStage, example: Example, steps, generator, where, temperature, name, on_progress
) -> np.ndarray:
    """One sample of one stage: signed distance and intensity, (2, X, Y, Z) float32."""
    denoiser = loaded.denoiser.to(where)
    channels = loaded.stage.network.image_channels
    shape = (1, channels, *example.condition.shape[2:])
    noise = temperature * torch.randn(shape, generator=generator)
    condition = example.condition.to(where)
    moved = Example(example.base.to(where), example.known.to(where), condition)
    log_snrs = sampling_grid(steps, loaded.log_snr_max, loaded.log_snr_min)

    def on_step(step: int, of: int, x0: torch.Tensor) -> None:
        report(on_progress, name, step, of)

    report(on_progress, name, 0, steps)
    x0 = dpm_solver_pp_2m(
        denoiser.conditioned(condition),
        noise.to(where),
        log_snrs,
        project=loaded.stage.project(moved),
        on_step=on_step,
    )
    return loaded.stage.result(moved, x0)[0].float().cpu().numpy()
