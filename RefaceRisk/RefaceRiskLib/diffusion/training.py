"""Train the models: the linear one in closed form, the cascade's stages by denoising (under torchrun on many GPUs).

    refacerisk train linear|coarse|face --data DIR --out DIR [--resume]

``--data`` is a folder of whole-head T1w volumes (prepared on the first use, kept under ``OUT/prepared``, with holes
cut into them and the average bent to what is left under ``OUT/prepared/holes``). Each stage
writes ``OUT/<stage>`` and resumes from ``OUT/<stage>/checkpoint.safetensors``.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from ..errors import RefaceRiskError
from ..progress import OnProgress, report
from ..template import load_template
from .dataset import Hole, MaskDrawer, PreparedHead, fit_linear, folds, holes, load_prepared, prepare, warped
from .linear import Seen, anchored, reliable, save_linear
from .space import COARSE_MM, FACE_MM, coarse_grid, face_grid, halved, upsampled

if TYPE_CHECKING:
    from .stages import Example

LOG_SNR_RANGE = {"coarse": (-8.0, 6.0), "face": (-6.0, 8.0)}
SAVE_EVERY_S = 60.0
LEARNING_RATE = 6e-4
# Examples on which the spread of a stage's residuals is measured before its training.
PROBES = 12


def train(
    stage: str,
    data: Path,
    out: Path,
    resume: bool = False,
    steps: int = 4000,
    batch: int = 1,
    seed: int = 0,
    minutes: float | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Train one stage and write it to ``out/<stage>``; returns that folder.

    ``steps`` of ``batch`` examples on each process, or as many as fit in ``minutes``. With ``resume`` it goes on where
    the last checkpoint stood. Raises RefaceRiskError for an unknown stage or a folder without heads.
    """
    if stage not in ("linear", "coarse", "face"):
        raise RefaceRiskError(f"unknown stage {stage!r}", "choose linear, coarse or face")
    data, out = Path(data), Path(out)
    prepared = data if any(data.glob("*.npz")) else out / "prepared"
    if prepared != data:
        prepare(data, prepared, on_progress=on_progress)
    heads = load_prepared(prepared)
    left = [] if stage == "face" else holes(heads, prepared / "holes", on_progress=on_progress)
    if stage == "linear":
        report(on_progress, "linear", 0, 1, f"{len(heads)} heads")
        save_linear(fit_linear(heads, [one[0].base for one in left]), out / "linear", heads=len(heads))
        report(on_progress, "linear", 1, 1)
        return out / "linear"
    return _train_network(stage, heads, left, out / stage, resume, steps, batch, seed, minutes, on_progress)


class ExampleMaker:
    """Random training examples of one stage; ``make(rng)`` gives one :class:`Example`."""

    def __init__(self, name: str, stage, heads: list[PreparedHead], left: list[list[Hole]] = ()) -> None:
        """``left`` : the holes of each head, needed for the coarse stage."""
        self.name, self.stage = name, stage
        self.template = load_template()
        self.masks = MaskDrawer(self.template)
        if name == "coarse":
            self.grid = coarse_grid(self.template)
            self.heads, self.left = [head.halved() for head in heads], left
            self.linear = folds(heads, [one[0].base for one in left])
            self.average = halved(self.template.tissue)
        else:
            self.grid = face_grid(self.template)
            self.heads = heads
            corner = (self.grid.affine[:3, 3] - self.template.affine[:3, 3]) / self.template.spacing
            self.first = np.rint(corner).astype(int)

    def make(self, rng: np.random.Generator) -> Example:
        number = int(rng.integers(len(self.heads)))
        return self._coarse(number, rng) if self.name == "coarse" else self._face(number, rng)

    def _coarse(self, number: int, rng: np.random.Generator) -> Example:
        hole = self.left[number][rng.integers(len(self.left[number]))]
        others = (hole.mask.astype(np.float32), hole.base)
        image, distance, inside, mask, base = warped(
            self.heads[number], self.grid.shape, (0, 0, 0), COARSE_MM, rng, others=others
        )
        removed = mask > 0.5
        missing = removed | ~inside
        known = reliable(distance, missing, COARSE_MM)
        seen = Seen(distance, known, removed, image, ~missing)
        start = anchored(self.linear[number].complete(base, seen), distance, known, COARSE_MM)
        return self.stage.example(start, self.average, image * ~missing, missing, known, (distance, image))

    def _face(self, number: int, rng: np.random.Generator) -> Example:
        image, distance, inside = warped(self.heads[number], self.grid.shape, self.first, FACE_MM, rng, 1.5)
        coarse = coarse_grid(self.template)
        removed = upsampled(self.masks.draw(rng).astype(np.float32), coarse, self.grid, order=1) > 0.5
        removed |= ~inside
        known = reliable(distance, removed, FACE_MM)
        # What the stage before gives: the same head at 4 mm, with noise, so that its errors are not trusted blindly.
        low_distance = _blurred(distance, rng.uniform(0, 0.6), rng)
        low_image = _blurred(image, rng.uniform(0, 0.1), rng)
        start = np.where(known, distance, low_distance)
        return self.stage.example(start, low_image, image * ~removed, removed, known, (distance, image))


def _blurred(array: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Down to half resolution, noise added, and up again by cubic interpolation."""
    small = halved(array)
    small = small + noise * rng.standard_normal(small.shape, dtype=np.float32)
    return ndimage.zoom(small, 2, order=3, mode="nearest", grid_mode=True).astype(np.float32)


def _train_network(name, heads, left, folder, resume, steps, batch, seed, minutes, on_progress) -> Path:
    import torch

    from .network import build_network, half_precision
    from .schedule import add_noise, draw_log_snr
    from .weights import ExponentialMovingAverage, load_checkpoint, save_checkpoint, save_weights

    rank, world, device = _process_group()
    torch.manual_seed(seed)
    stage = _measured_stage(name, heads, left, seed)
    maker = ExampleMaker(name, stage, heads, left)
    denoiser = build_network(stage.network).to(device)
    model = torch.nn.parallel.DistributedDataParallel(denoiser) if world > 1 else denoiser
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    average = ExponentialMovingAverage(denoiser, 0.998)
    low, high = LOG_SNR_RANGE[name]
    checkpoint = folder / "checkpoint.safetensors"
    parts = {"model": denoiser, "ema": average, "optimizer": optimizer}
    first = load_checkpoint(checkpoint, parts=parts).step if resume and checkpoint.exists() else 0

    def write(step: int) -> None:
        if rank == 0:
            save_checkpoint(checkpoint, step=step, parts=parts)
            config = {
                "stage": stage.to_dict(),
                "log_snr_min": low,
                "log_snr_max": high,
                "steps": step,
                "heads": len(heads),
            }
            save_weights(folder, average.average, config)

    begun = saved = time.monotonic()
    running = None
    for step in range(first, steps):
        rng = np.random.default_rng((seed, step, rank))
        examples = [maker.make(rng) for _ in range(batch)]
        log_snr = draw_log_snr(
            step * world + rank, batch, law="uniform", log_snr_min=low, log_snr_max=high, seed=seed
        ).to(device)
        target = torch.cat([example.target for example in examples]).to(device)
        condition = torch.cat([example.condition for example in examples]).to(device)
        weight = torch.cat([stage.weight(example) for example in examples]).to(device)
        noisy = add_noise(target, log_snr, torch.randn_like(target))
        spent = (step + 1) / steps
        if minutes is not None:
            spent = max(spent, (time.monotonic() - begun) / (60 * minutes))
        for group in optimizer.param_groups:
            group["lr"] = (
                LEARNING_RATE * min(1, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * min(spent, 1))))
            )
        with half_precision(device):
            estimate = model(noisy, condition, log_snr)
        _, c_out, _ = denoiser.preconditioning(log_snr)
        loss = (weight * ((estimate - target) / c_out).square()).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        average.update(denoiser)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        report(on_progress, f"train {name}", step + 1, steps, f"loss {running:.4f}")
        now = time.monotonic()
        if now - saved > SAVE_EVERY_S:
            write(step + 1)
            saved = now
        if minutes is not None and now - begun > 60 * minutes:
            break
    write(step + 1 if steps > first else first)
    return folder


def _measured_stage(name: str, heads, left, seed: int):
    """The stage with its residuals' spread measured on a few random examples, so that targets have unit variance."""
    import torch

    from .stages import STAGES

    stage = STAGES[name]()
    ones = (1.0,) * len(stage.spread)
    probe = ExampleMaker(name, STAGES[name](spread=ones), heads, left)
    rng = np.random.default_rng(seed)
    power, total = 0, 0
    for _ in range(PROBES):
        example = probe.make(rng)
        weight = probe.stage.weight(example)
        power = power + (weight * example.target.square()).sum(dim=(0, 2, 3, 4))
        total = total + weight.sum(dim=(0, 2, 3, 4))
    spread = torch.sqrt(power / total.clamp_min(1e-6)).clamp_min(1e-3)
    return STAGES[name](spread=tuple(round(float(value), 4) for value in spread))


def _process_group():
    """(rank, processes, device), joining the group that torchrun has made, if any."""
    import torch

    world = int(os.environ.get("WORLD_SIZE", "1"))
    cuda = torch.cuda.is_available()
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if cuda else "gloo")
    rank = torch.distributed.get_rank() if world > 1 else 0
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return rank, world, torch.device(f"cuda:{local}" if cuda else "cpu")
