"""Train the models: the linear one in closed form, the cascade's stages by denoising (under torchrun on many GPUs).

    refacerisk train linear|coarse|middle|fine --data DIR_OR_TSV --out DIR [--steps N] [--batch N] [--resume]
    torchrun --nproc-per-node 4 -m RefaceRiskLib.cli train coarse --data DIR --out DIR

``--data`` is a folder of whole-head T1w volumes (BIDS or not) or a participants table; they are prepared on the first
use and kept under ``OUT/prepared``, as each defacer leaves them under ``OUT/prepared/defaced``, with random holes under
``OUT/prepared/holes``, the 1 mm ones in the face box under ``OUT/prepared/fine``. Each stage writes ``OUT/<stage>``:
weights, ``checkpoint.safetensors`` to resume from, ``losses.tsv``, and TensorBoard's files where that is installed.

One head in six is not shown to the coarse network: on those it is measured at the end how much of what it adds to the
linear model's faces is to be believed (the stage's ``gain``).

Everything random is a function of the seed and of the number of the example, so that a run that was interrupted ends
with the weights of one that was not, and N processes of batch B see what one process of batch N * B sees.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from ..errors import RefaceRiskError
from ..progress import Cancelled, OnProgress, report
from ..template import Grid, load_template
from .dataset import (
    DEFACERS,
    FOLDS,
    Hole,
    MaskDrawer,
    PreparedHead,
    folds,
    holes,
    linear_of,
    load_fine,
    load_prepared,
    prepare,
    warped,
)
from .linear import LIMIT_MM, LinearFace, Seen, anchored, reliable, save_linear
from .space import COARSE_MM, FINE_MM, MIDDLE_MM, coarse_grid, face_grid, first_voxel, halved, upsampled

if TYPE_CHECKING:
    import torch

    from .stages import Example, Stage

LOG_SNR_RANGE = {"coarse": (-8.0, 6.0), "middle": (-6.0, 8.0), "fine": (-6.0, 8.0)}
STAGE_NAMES = ("linear", *LOG_SNR_RANGE)
SAVE_EVERY_S = 60.0
LEARNING_RATE = 6e-4
# Examples on which the spread of a stage's residuals is measured before its training.
PROBES = 12
# Network calls for the mean of one hole.
GAIN_CALLS = 4
# The fine stage sees its face box in pieces of so many voxels a side; its network is convolutional.
PATCH = 64


def train(
    stage: str,
    data: Path | Mapping[str, Path],
    out: Path,
    resume: bool = False,
    steps: int = 4000,
    batch: int = 1,
    seed: int = 0,
    minutes: float | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Train one stage and write it to ``out/<stage>``; returns that folder.

    Parameters
    ----------
    data : whole heads by name, a folder of them, or a folder that :func:`prepare` has filled.
    resume : go on where the last checkpoint stood, if there is one.
    steps, batch : so many steps of so many examples on each process; ``minutes`` ends a run earlier, with the learning
        rate gone down by then (such a run cannot be repeated exactly).

    Raises RefaceRiskError for an unknown stage, data without heads, and a checkpoint of another training.
    """
    if stage not in STAGE_NAMES:
        raise RefaceRiskError(f"unknown stage {stage!r}", f"choose one of {', '.join(STAGE_NAMES)}")
    out = Path(out)
    prepared = out / "prepared"
    if not isinstance(data, Mapping) and any(Path(data).glob("*.npz")):
        prepared = Path(data)
    elif _is_first():
        prepare(data if isinstance(data, Mapping) else Path(data), prepared, on_progress=on_progress)
    _wait_for_all()
    how = (out / stage, resume, steps, batch, seed, minutes, on_progress)
    if stage == "fine":
        return _train_network(stage, load_fine(prepared), [], *how)
    heads = load_prepared(prepared)
    if stage == "middle":
        return _train_network(stage, heads, [], *how)
    left = holes(heads, prepared, on_progress=on_progress) if _is_first() else None
    _wait_for_all()
    left = left or holes(heads, prepared)
    if stage == "coarse":
        return _train_network(stage, heads, left, *how)
    report(on_progress, "linear", 0, 1, f"{len(heads)} heads")
    save_linear(linear_of(left), out / "linear", heads=len(heads))
    report(on_progress, "linear", 1, 1)
    return out / "linear"


# --- examples --------------------------------------------------------------------------------------------------------


class ExampleMaker:
    """Random training examples of one stage; ``make(rng)`` gives one :class:`Example`."""

    def __init__(self, name: str, stage, heads: list[PreparedHead], left: list[list[Hole]] = ()) -> None:
        """``left`` : the holes of each head, needed for the coarse stage."""
        self.name, self.stage, self.heads = name, stage, heads
        self.unshown = unshown(len(heads)) if name == "coarse" else []
        self.shown = [number for number in range(len(heads)) if number not in self.unshown]
        self.template = load_template()
        self.masks = MaskDrawer(self.template)
        if name == "coarse":
            self.grid = coarse_grid(self.template)
            self.left, self.linear = left, folds(left)
            self.average = halved(self.template.tissue)
        else:
            self.grid = face_grid(self.template, MIDDLE_MM if name == "middle" else FINE_MM)

    def make(self, rng: np.random.Generator) -> Example:
        number = self.shown[rng.integers(len(self.shown))]
        return getattr(self, f"_{self.name}")(number, rng)

    def _coarse(self, number: int, rng: np.random.Generator) -> Example:
        hole = self.left[number][rng.integers(len(self.left[number]))]
        others = (hole.mask.astype(np.float32), hole.base, *([] if hole.head.bend is None else [hole.head.bend]))
        image, distance, inside, mask, base, *bend = warped(
            hole.head, self.grid.shape, (0, 0, 0), COARSE_MM, rng, others=others
        )
        head = PreparedHead(hole.head.name, image, distance, inside, bend=bend[0] if bend else None)
        return self.seen_through(Hole(head, mask > 0.5, base), self.linear[number])

    def seen_through(self, hole: Hole, linear: LinearFace) -> Example:
        """The coarse example of a hole, which starts from what that linear model makes of it."""
        image, distance, removed = hole.head.image, np.clip(hole.head.distance, -LIMIT_MM, LIMIT_MM), hole.mask
        missing = removed | ~hole.head.inside
        known = reliable(distance, missing, COARSE_MM)
        seen = Seen(distance, known, removed, image, ~missing, hole.head.bend)
        start = anchored(linear.complete(hole.base, seen), distance, known, COARSE_MM)
        return self.stage.example(start, self.average, image * ~missing, missing, known, (distance, image))

    def _middle(self, number: int, rng: np.random.Generator) -> Example:
        first = first_voxel(Grid(self.template.shape, self.template.affine), self.grid)
        image, distance, inside = warped(self.heads[number], self.grid.shape, first, MIDDLE_MM, rng, 1.5)
        removed = self._removed(self.masks.draw(rng), self.grid) | ~inside
        known = reliable(distance, removed, MIDDLE_MM)
        return self._detail(image, distance, removed, known, rng)

    def _fine(self, number: int, rng: np.random.Generator) -> Example:
        mask = self.masks.draw(rng)
        first = self._somewhere(mask, rng)
        image, distance, inside = warped(self.heads[number], (PATCH,) * 3, first, FINE_MM, rng, 0.7)
        # What is removed beside the patch makes distances inside it unknown, too.
        rim = int(LIMIT_MM / FINE_MM)
        affine = self.grid.affine.copy()
        affine[:3, 3] += FINE_MM * (first - rim)
        wide = self._removed(mask, Grid((PATCH + 2 * rim,) * 3, affine))
        wide |= np.pad(~inside, rim)
        inner = (slice(rim, -rim),) * 3
        known = reliable(np.pad(distance, rim, mode="edge"), wide, FINE_MM)[inner]
        return self._detail(image, distance, wide[inner], known, rng)

    def _detail(self, image, distance, removed, known, rng: np.random.Generator) -> Example:
        """What the stage before gives is the same head at half the resolution, with noise, so that its errors are not
        trusted blindly."""
        low_distance = _blurred(distance, rng.uniform(0, 0.6), rng)
        low_image = _blurred(image, rng.uniform(0, 0.1), rng)
        start = np.where(known, distance, low_distance)
        return self.stage.example(start, low_image, image * ~removed, removed, known, (distance, image))

    def _removed(self, mask: np.ndarray, grid: Grid) -> np.ndarray:
        return upsampled(mask.astype(np.float32), coarse_grid(self.template), grid, order=1) > 0.5

    def _somewhere(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """First voxel (3,) of a patch that lies around removed skin, if there is any."""
        places = self._skin[self._removed(mask, Grid(self.template.shape, self.template.affine))[tuple(self._skin.T)]]
        place = rng.choice(places if len(places) else self._skin)
        point = self.template.affine[:3, :3] @ place + self.template.affine[:3, 3]
        middle = (point - self.grid.affine[:3, 3]) / FINE_MM + rng.uniform(-PATCH / 4, PATCH / 4, 3)
        return np.clip(np.rint(middle - PATCH / 2), 0, np.array(self.grid.shape) - PATCH).astype(int)

    @cached_property
    def _skin(self) -> np.ndarray:
        """Voxels (N, 3) of the template on the average skin of the anterior head."""
        return np.argwhere((np.abs(self.template.skin_distance) < 2) & self.template.surface_region)


def unshown(heads: int) -> list[int]:
    """Numbers of the heads that are not shown to a coarse network: one fold; none where there are but a few heads."""
    return list(range(0, heads, FOLDS)) if heads >= 2 * FOLDS else []


def measured_gain(maker: ExampleMaker, denoiser, lowest: float) -> float:
    """How much of the mean residual that a coarse network puts out is true on heads it was not shown, 0 to 1.

    The least-squares factor of a stacked predictor (Wolpert 1992, Breiman 1996) over what defacers leave of the
    ``unshown`` heads of ``maker``, each started from the linear model of other heads. ``lowest`` : log-SNR at which the
    mean is read.
    """
    import torch

    from .network import half_precision
    from .sampler import expected

    device, products = next(denoiser.parameters()).device, []
    generator = torch.Generator().manual_seed(0)
    for number in maker.unshown:
        for hole in maker.left[number][: len(DEFACERS)]:
            example = maker.seen_through(hole, maker.linear[number])

            def denoise(x: torch.Tensor, log_snr: float, example=example) -> torch.Tensor:
                with half_precision(device):
                    return denoiser(x.to(device), example.condition.to(device), log_snr).float().cpu()

            def noise(example=example) -> torch.Tensor:
                return torch.randn(example.target.shape, generator=generator)

            with torch.no_grad():
                mean = expected(denoise, noise, lowest, GAIN_CALLS, project=maker.stage.project(example))
            products.append(maker.stage.slope(example, mean))
    truth, own = np.sum(products, axis=0)
    return round(float(np.clip(truth / own, 0, 1)), 3) if own > 0 else 0.0


def _blurred(array: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Down to half resolution, noise added, and up again by cubic interpolation."""
    small = halved(array)
    small = small + noise * rng.standard_normal(small.shape, dtype=np.float32)
    return ndimage.zoom(small, 2, order=3, mode="nearest", grid_mode=True).astype(np.float32)


# --- the network ------------------------------------------------------------------------------------------------------


def _train_network(name, heads, left, folder, resume, steps, batch, seed, minutes, on_progress) -> Path:
    import torch

    from .network import build_network, half_precision
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
    log = _Log(folder, first) if rank == 0 else None

    def write(step: int) -> None:
        if rank == 0:
            log.flush()
            save_checkpoint(checkpoint, step=step, parts=parts)
            config = {"stage": stage.to_dict(), "log_snr_min": low, "log_snr_max": high, "steps": step}
            config |= {"heads": len(maker.shown), "unshown": [heads[number].name for number in maker.unshown]}
            save_weights(folder, average.average, config)

    begun = saved = time.monotonic()
    running, step = None, first
    for step in range(first + 1, steps + 1):
        drawn = [_draw(maker, seed, number) for number in _numbers(step - 1, batch, rank, world)]
        noisy, target, condition, weight, log_snr = _batch(stage, drawn, (low, high), seed, device)
        spent = step / steps
        if minutes is not None:
            spent = max(spent, (time.monotonic() - begun) / (60 * minutes))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, step / 100) * (0.02 + 0.49 * (1 + np.cos(np.pi * min(spent, 1))))
        with half_precision(device):
            estimate = model(noisy, condition, log_snr)
        _, c_out, _ = denoiser.preconditioning(log_snr)
        error = (weight * ((estimate - target) / c_out).square()).flatten(1).sum(1) / weight.flatten(1).sum(1)
        loss = error.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        average.update(denoiser)
        mean = _mean_over_processes(loss.detach())
        running = mean if running is None else 0.98 * running + 0.02 * mean
        now = time.monotonic()
        last = step == steps or (minutes is not None and now - begun > 60 * minutes)
        if log:
            log.add(step, mean, optimizer.param_groups[0]["lr"])
        if last or now - saved > SAVE_EVERY_S:
            if log:
                log.picture(step, stage, drawn[0].example, estimate[:1])
            write(step)
            saved = now
        try:
            report(on_progress, f"train {name}", step, steps, f"loss {running:.4f}")
        except Cancelled:
            write(step)
            raise
        if last:
            break
    if rank == 0 and maker.unshown:
        trained = build_network(stage.network).to(device)
        average.copy_to(trained)
        stage = replace(stage, gain=measured_gain(maker, trained.eval(), low))
        write(step)
    return folder


@dataclass(frozen=True)
class _Drawn:
    """Example number ``number`` of a training, with its noise (1, C, X, Y, Z)."""

    number: int
    example: Example
    noise: torch.Tensor


def _numbers(step: int, batch: int, rank: int, world: int) -> Iterator[int]:
    """The examples of one process at one step (from 0): a share of those that one process alone would take."""
    first = (step * world + rank) * batch
    return range(first, first + batch)


def _draw(maker: ExampleMaker, seed: int, number: int) -> _Drawn:
    import torch

    rng = np.random.default_rng((seed, number))
    example = maker.make(rng)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return _Drawn(number, example, torch.randn(example.target.shape, generator=generator))


def _batch(stage: Stage, drawn: list[_Drawn], log_snr_range, seed: int, device):
    """(noisy, target, condition, weight, log_snr) of some examples, on the device."""
    import torch

    from .schedule import add_noise, draw_log_snr

    low, high = log_snr_range
    law = {"law": "uniform", "log_snr_min": low, "log_snr_max": high, "seed": seed}
    log_snr = torch.cat([draw_log_snr(one.number, 1, **law) for one in drawn]).to(device)
    examples = [one.example.to(device) for one in drawn]
    target = torch.cat([example.target for example in examples])
    noisy = add_noise(target, log_snr, torch.cat([one.noise for one in drawn]).to(device))
    condition = torch.cat([example.condition for example in examples])
    return noisy, target, condition, torch.cat([stage.weight(example) for example in examples]), log_snr


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


# --- what is written while it trains ---------------------------------------------------------------------------------


class _Log:
    """``losses.tsv`` of a stage, and the same for TensorBoard with a picture now and then, where that is installed."""

    def __init__(self, folder: Path, first: int) -> None:
        """Steps after ``first`` were lost with the run that took them: their lines go."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.lines = folder / "losses.tsv", []
        kept = self.path.read_text("utf-8").splitlines()[1:] if first and self.path.exists() else []
        kept = [line for line in kept if int(line.split("\t")[0]) <= first]
        self.path.write_text("\n".join(["step\tloss\tlearning_rate", *kept]) + "\n", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)
        except ImportError:
            self.board = None

    def add(self, step: int, loss: float, learning_rate: float) -> None:
        self.lines.append(f"{step}\t{loss:.6f}\t{learning_rate:.3g}\n")
        if self.board:
            self.board.add_scalar("loss", loss, step)
            self.board.add_scalar("learning rate", learning_rate, step)

    def flush(self) -> None:
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.writelines(self.lines)
        self.lines.clear()

    def picture(self, step: int, stage: Stage, example: Example, estimate: torch.Tensor) -> None:
        """Sagittal slices of start, estimate and truth, distance above intensity."""
        if self.board is None:
            return
        import torch

        states = (torch.zeros_like(estimate), estimate.detach().float(), example.target.to(estimate.device))
        on = example.to(estimate.device)
        rows = torch.cat([stage.result(on, state)[0, :, state.shape[2]].cpu() for state in states], dim=-2)
        distance = (rows[0] / LIMIT_MM + 1) / 2
        picture = torch.cat([distance, rows[1] / 1.5], dim=-1).clamp(0, 1).T.flip(0)
        self.board.add_image("start, estimate, truth", picture, step, dataformats="HW")


# --- processes -------------------------------------------------------------------------------------------------------


def _place() -> tuple[int, int]:
    """Number of this process and of all, as torchrun gives them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _is_first() -> bool:
    return _place()[0] == 0


def _process_group():
    """(rank, processes, device), joining the group that torchrun has made, if any."""
    import torch

    rank, world = _place()
    cuda = torch.cuda.is_available()
    if world > 1 and not torch.distributed.is_initialized():
        # The first process prepares a cohort while the others wait.
        torch.distributed.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(hours=12))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return rank, world, torch.device(f"cuda:{local}" if cuda else "cpu")


def _wait_for_all() -> None:
    """Until every process is here: the first one prepares the heads for all."""
    if _place()[1] > 1:
        import torch

        _process_group()
        torch.distributed.barrier()


def _mean_over_processes(value: torch.Tensor) -> float:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return float(value)
