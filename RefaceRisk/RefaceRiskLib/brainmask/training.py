"""Train the brain mask on label heads alone.

    python -m RefaceRiskLib.brainmask.training --labels DIR --out DIR [--held-out 05 14] [--minutes M] [--resume]

Every step paints a new head (:mod:`.examples`). ``OUT`` receives ``weights.safetensors`` and ``config.json`` of the
averaged weights every few minutes, and a checkpoint from which ``--resume`` goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..progress import OnProgress, report, terminal_bar
from .examples import Example, draw_example, read_heads
from .frame import LIMIT_MM, SHAPE, SPACING_MM
from .network import CHANNELS, RESIDUAL_UNITS, build_network, predict

if TYPE_CHECKING:
    import torch

HELD_OUT = ("03", "05", "14", "20")
LEARNING_RATE = 2e-3
SAVE_EVERY_S = 120.0
REMEMBERED = 64
"""Examples kept: painting one costs more than a step, so that every second step takes one of these, mirrored."""


def train(
    labels: Path,
    out: Path,
    held_out: tuple[str, ...] = HELD_OUT,
    minutes: float = 60.0,
    steps: int = 20000,
    resume: bool = False,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Path:
    """Train for ``minutes`` of this process's own time, or ``steps``; returns ``out``.

    The learning rate follows a half cosine over whichever limit comes first. Raises RefaceRiskError for a folder
    without label heads and for a checkpoint of another network.
    """
    import torch

    from ..diffusion.weights import ExponentialMovingAverage, load_checkpoint, save_checkpoint, save_weights

    torch.manual_seed(seed)
    heads = read_heads(labels, held_out, on_progress)
    network = build_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    average = ExponentialMovingAverage(network, 0.995)
    parts = {"model": network, "ema": average, "optimizer": optimizer}
    checkpoint = out / "checkpoint.safetensors"
    first, spent_before = 0, 0.0
    if resume and checkpoint.exists():
        done = load_checkpoint(checkpoint, parts=parts)
        first, spent_before = done.step, float(done.notes["seconds"])

    def spent() -> float:
        return spent_before + time.process_time() - begun

    def write(step: int) -> None:
        config = {"channels": list(CHANNELS), "residual_units": RESIDUAL_UNITS, "spacing_mm": SPACING_MM,
                  "limit_mm": LIMIT_MM, "frame": list(SHAPE), "steps": step, "heads": len(heads),
                  "held_out": list(held_out)}  # fmt: skip
        save_checkpoint(checkpoint, step=step, parts=parts, notes={"seconds": spent()})
        save_weights(out, average.average, config)

    drawn: deque[Example] = deque(maxlen=REMEMBERED)
    begun, saved, running = time.process_time(), time.monotonic(), None
    for step in range(first, steps):
        share = min(1.0, max(spent() / (60 * minutes), step / steps))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 50) * (0.02 + 0.49 * (1 + np.cos(np.pi * share)))
        rng = np.random.default_rng((seed, step))
        if step % 2 and len(drawn) >= REMEMBERED // 4:
            example = drawn[int(rng.integers(len(drawn)))].mirrored()
        else:
            example = draw_example(heads, rng)
            drawn.append(example)
        loss = step_loss(network, example)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update(network)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        report(on_progress, "train brain mask", step + 1, steps, f"loss {running:.4f}, {spent() / 60:.1f} min")
        ended = share >= 1 or step + 1 == steps
        if ended or time.monotonic() - saved > SAVE_EVERY_S:
            write(step + 1)
            saved = time.monotonic()
        if ended:
            break
    return out


def step_loss(network: torch.nn.Module, example: Example) -> torch.Tensor:
    """Absolute error of the distance, heaviest at the brain's surface, and one minus the soft Dice of the mask."""
    import torch

    from ..diffusion.network import half_precision

    image, target, seen = (
        torch.from_numpy(np.ascontiguousarray(a, np.float32))[None, None]
        for a in (example.image, example.distance, example.seen)
    )
    with half_precision():
        estimate = predict(network, image)
    near = torch.exp(-target.abs() * (LIMIT_MM / 4.0))
    weight = seen * (0.2 + near)
    error = (weight * (estimate - target).abs()).sum() / weight.sum()
    inside, truth = torch.sigmoid(-estimate * LIMIT_MM) * seen, (target < 0) * seen
    dice = 2 * (inside * truth).sum() / (inside.sum() + truth.sum() + 1)
    return error + 0.5 * (1 - dice)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m RefaceRiskLib.brainmask.training", description=__doc__)
    parser.add_argument("--labels", type=Path, required=True, help="folder of label heads (training_seg_NN.nii.gz)")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives weights and checkpoint")
    parser.add_argument("--held-out", nargs="*", default=HELD_OUT, help="numbers to leave out (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="processor time to spend (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in OUT")
    given = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    with terminal_bar() as bar:
        train(given.labels, given.out, tuple(given.held_out), given.minutes, given.steps, given.resume, on_progress=bar)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
