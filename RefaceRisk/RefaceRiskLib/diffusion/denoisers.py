"""The cascade's networks at work: load a stage, choose a device, sample the stages in turn (needs torch)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import RefaceRiskError
from ..progress import OnProgress, report
from .layers import Face, Layer
from .network import Denoiser, build_network, half_precision
from .sampler import dpm_solver_pp_2m, expected
from .schedule import sampling_grid
from .space import View, halved, is_fine, upsampled
from .stages import STAGES, CoarseStage, Example, Stage
from .weights import load_weights, shapes_of

if TYPE_CHECKING:
    from .cascade import Refacer, _Task


@dataclass(frozen=True, eq=False)
class LoadedStage:
    stage: Stage
    denoiser: Denoiser
    log_snr_min: float
    log_snr_max: float


def load_stage(folder: Path, name: str) -> tuple[LoadedStage, str]:
    """A trained stage and the sha256 of its weights. Raises RefaceRiskError for missing or damaged files."""
    loaded = load_weights(folder)
    try:
        stage = STAGES[name].from_dict(loaded.config["stage"])
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
) -> list[Face]:
    """Draw ``samples`` completed faces, all stages each."""
    where = choose_device(device)
    stages = {name: loaded for name, loaded in model.stages.items() if name != "fine" or is_fine(task.defaced)}
    faces = []
    for number in range(samples):
        generator = torch.Generator().manual_seed(seed * 1009 + number)
        which = f" {number + 1}/{samples}" if samples > 1 else ""
        run = _Run(task, steps, generator, where, temperature, which, on_progress)
        face: Face = []
        for name, loaded in stages.items():
            try:
                layer = run.sample(name, loaded, face)
            except RuntimeError as error:
                if run.device.type == "cpu" or "out of memory" not in str(error):
                    raise
                report(on_progress, f"{name} stage{which}", 0, steps, f"the memory of {where} is full: on the CPU now")
                run, where = replace(run, device=torch.device("cpu")), torch.device("cpu")
                layer = run.sample(name, loaded, face)
            face.append(layer)
        faces.append(face)
    return faces


def started(stage: Stage, task: _Task, view: View, face: Face) -> Example:
    """What a stage starts from: the linear model's map, or the layer before on a finer grid."""
    if isinstance(stage, CoarseStage):
        image = view.image * ~view.missing
        return stage.example(task.start, halved(task.tissue), image, view.missing, view.known)
    before = face[-1]
    distance = np.where(view.known, view.distance, task.closer(before, view.grid))
    tissue = upsampled(before.tissue, before.grid, view.grid, order=1)
    return stage.example(distance, tissue, view.image, view.missing, view.known)


@dataclass(frozen=True, eq=False)
class _Run:
    """How one face is sampled: the same for all stages."""

    task: _Task
    steps: int
    generator: torch.Generator
    device: torch.device
    temperature: float
    which: str
    on_progress: OnProgress | None

    def sample(self, name: str, loaded: LoadedStage, face: Face) -> Layer:
        """The next layer of a face."""
        view: View = getattr(self.task, name)
        stage, denoiser = loaded.stage, loaded.denoiser.to(self.device)
        example = started(stage, self.task, view, face).to(self.device)
        shape = (1, stage.network.image_channels, *example.condition.shape[2:])

        def denoise(x: torch.Tensor, log_snr: float) -> torch.Tensor:
            with half_precision(self.device):
                return denoiser(x, example.condition, log_snr).float()

        def noise() -> torch.Tensor:
            return torch.randn(shape, generator=self.generator).to(self.device)

        def layer(x0: torch.Tensor) -> Layer:
            return Layer(view.grid, *stage.result(example, x0)[0].float().cpu().numpy())

        def on_step(step: int, of: int, x0: torch.Tensor) -> None:
            told = (f"{name} stage{self.which}", step, of, f"on {self.device}")
            report(self.on_progress, *told, lambda: self.task.skin(layer(x0)))

        def mean(on_step=None) -> torch.Tensor:
            return expected(denoise, noise, loaded.log_snr_min, self.steps, project=project, on_step=on_step)

        report(self.on_progress, f"{name} stage{self.which}", 0, self.steps, f"on {self.device}")
        project = stage.project(example)
        if self.temperature == 0:
            x0 = mean(on_step)
            x0 = stage.believed(x0, x0)
        else:
            log_snrs = sampling_grid(self.steps, loaded.log_snr_max, loaded.log_snr_min)
            x0 = dpm_solver_pp_2m(denoise, self.temperature * noise(), log_snrs, project=project, on_step=on_step)
            if stage.gain < 1:
                x0 = stage.believed(x0, mean())
        drawn = layer(x0)
        if isinstance(stage, CoarseStage):
            return drawn
        return replace(drawn, distance=self.task.seamless(drawn.distance, view))
