"""What linkage costs, against the number of heads: measured, the exponent fitted, and what follows for 1,000 x 1,000.

    python Testing/benchmarks/bench_linkage.py [--subjects 4 8 16 32 64] [--images 16] [--out F.json]

Faces are bumpy balls on the real gallery's grid with the real number of points, each head with so many images in two
regions. CPU seconds of one process. Cohorts larger than the shortlist are pruned, so that both parts of the model
are measured: every pair shortly, the best few in full. The model adds reading a gallery once a chunk of probes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from RefaceRiskLib.study import linkage
from RefaceRiskLib.study.faces import FIELD_MM, POINTS, field_grid
from RefaceRiskLib.study.link import CHUNK
from RefaceRiskLib.template import load_template

GOAL_HEADS, GOAL_CORES, GOAL_HOURS = 1000, 16, 1.0


def radius(directions: np.ndarray, number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    waves, phases = rng.normal(size=(8, 3)) * 2.5, rng.uniform(0, 6, 8)
    return 75 + 1.5 * np.sin(directions @ waves.T + phases).sum(-1)


class Balls:
    """Galleries and probes, made when asked for."""

    def __init__(self):
        self.shape, self.affine = field_grid(load_template())
        self.middle = self.affine[:3, 3] + 0.5 * FIELD_MM * np.array(self.shape)
        offset = np.stack(np.meshgrid(*map(np.arange, self.shape), indexing="ij"), axis=-1) * FIELD_MM
        offset = (offset + self.affine[:3, 3] - self.middle).astype(np.float32)
        self.distance = np.linalg.norm(offset, axis=-1)
        self.directions = offset / np.maximum(self.distance, 1e-6)[..., None]

    def gallery(self, number: int) -> linkage.Gallery:
        field = self.distance - radius(self.directions, number)
        return linkage.Gallery(np.clip(field, -20, 20).astype(np.float32), self.affine)

    def probes(self, number: int, images: int) -> np.ndarray:
        rng = np.random.default_rng(10_000 + number)
        directions = rng.normal(size=(2 * images, POINTS, 3))
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        skin = directions * radius(directions, number)[..., None]
        return (skin + self.middle + rng.normal(0, 1.5, (2 * images, 1, 3))).astype(np.float32)


def cpu(function) -> tuple[float, object]:
    began = time.process_time()
    answer = function()
    return time.process_time() - began, answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--images", type=int, default=17, help="processed images a head (default: 17, as with all)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    balls = Balls()
    galleries = [balls.gallery(n) for n in range(max(options.subjects))]
    print(f"{2 * options.images} probes a head of {POINTS} points, galleries of {' x '.join(map(str, balls.shape))}")
    print(f"{'heads':>6s}{'pairs':>9s}{'cpu s':>9s}{'ms a pair':>11s}{'rank-1':>8s}")
    rows = []
    for count in options.subjects:
        probes = np.concatenate([balls.probes(n, options.images) for n in range(count)])
        own = np.repeat(np.arange(count), 2 * options.images)
        seconds, distances = cpu(lambda p=probes, c=count: linkage.score_matrix(p, galleries[:c]))
        first = float((linkage.ranks(distances, own) == 1).mean())
        pairs = len(probes) * count
        rows.append({"heads": count, "pairs": pairs, "cpu_s": seconds, "rank1": first})
        print(f"{count:6d}{pairs:9d}{seconds:9.2f}{1000 * seconds / pairs:11.3f}{first:8.1%}", flush=True)
    x, y = (np.log([row[key] for row in rows]) for key in ("heads", "cpu_s"))
    exponent = float(np.polyfit(x, y, 1)[0]) if len(rows) > 1 else float("nan")
    chunk = np.concatenate([balls.probes(n, options.images) for n in range(CHUNK)])
    coarse = min(cpu(lambda: linkage.coarse_scores(chunk, galleries[0]))[0] for _ in range(2)) / len(chunk)
    fine = min(cpu(lambda: linkage.scores(chunk, galleries[0]))[0] for _ in range(2)) / len(chunk)
    made = min(cpu(lambda: linkage.Gallery(galleries[0].field.copy(), balls.affine).layers())[0] for _ in range(3))
    heads = GOAL_HEADS
    probes = 2 * options.images * heads
    total = probes * heads * coarse + probes * linkage.SHORTLIST * fine + 2 * (heads / CHUNK) * heads * made
    hours = total / GOAL_CORES / 3600
    print(f"fitted exponent {exponent:.2f} (all pairs in full up to {linkage.SHORTLIST} heads: 2)")
    print(f"a pair shortly {1e3 * coarse:.3f} ms, in full {1e3 * fine:.3f} ms; a gallery {1e3 * made:.0f} ms")
    print(f"{heads} x {heads} heads: {total / 3600:.1f} core hours, {60 * hours:.0f} min on {GOAL_CORES} cores"
          f" ({'' if hours <= GOAL_HOURS else 'NOT '}within {GOAL_HOURS:.0f} h)")  # fmt: skip
    if options.out:
        told = {"rows": rows, "exponent": exponent, "coarse_ms": 1e3 * coarse, "fine_ms": 1e3 * fine,
                "gradient_ms": 1e3 * made, "goal_core_hours": total / 3600, "goal_minutes": 60 * hours}  # fmt: skip
        options.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0 if hours <= GOAL_HOURS else 1


if __name__ == "__main__":
    raise SystemExit(main())
