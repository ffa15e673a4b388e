"""The linear model on heads that it was not fitted to, each in turn: are six validation heads like the others?

    python Testing/benchmarks/bench_crossvalidation.py [--parts faces curve] [--method NAME] [--out FOLDER]

The training heads are prepared as ``refacerisk train`` does (about twenty minutes on two cores, once; kept in
FOLDER/prepared, where more heads may lie). Parts, both over the heads of the cohort whose mouth is shown:

faces    the model is fitted to all other heads. The head is defaced, registered again without its face, completed by
         that model and by the average face, and measured as in ``bench_refacing.py``; kept in FOLDER as results come
curve    the same after mri_deface with so many of the other heads; and how near the best mixture of them comes to a
         face that it is shown. The mean error of the signed distance at 4 mm within 3 mm of the removed skin is given
         against that of the average skin, unbent: nearly the ratios of distances, without drawing a face

Not tested are the networks, each of which would have to be trained anew, and two things know the head: the template, in
which it is one of many, and the mouths of other heads that dental metal hides, which were filled in with its help.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import heads
import numpy as np
from results import append, kept
from scipy.stats import wilcoxon

from RefaceRiskLib.defacing import deface
from RefaceRiskLib.defacing.compare import automatic_methods
from RefaceRiskLib.diffusion.cascade import Refacer
from RefaceRiskLib.diffusion.dataset import Hole, holes, linear_of, load_prepared, prepare
from RefaceRiskLib.diffusion.linear import LIMIT_MM, Seen, anchored, reliable
from RefaceRiskLib.diffusion.space import COARSE_MM, halved
from RefaceRiskLib.progress import Progress
from RefaceRiskLib.surface.measure import measure
from RefaceRiskLib.template import load_template
from RefaceRiskLib.template_build import FULL_LABEL_HEADS
from RefaceRiskLib.volumes import load

# Of other heads that the curve is measured with, before all of them.
HEADS = (8, 16, 24, 32)
# Variance (mm^2) of a voxel of a face that is shown: small, so that the mixture follows it.
SHOWN_RIDGE = 30.0
COLUMNS = ("head", "method", "defaced", "average", "linear")


def left_out(number: int, left: list[list[Hole]], path: Path, method: str) -> dict:
    """Mean distance (mm, region face) of each image of one head; the linear model has not seen it."""
    head = load(path)
    defaced = deface(head, method)
    done = Refacer.load("average").reface(defaced.volume, defaced.removed)
    model = Refacer("left out", linear_of([own for other, own in enumerate(left) if other != number]))
    linear = model.reface(defaced.volume, defaced.removed, registration=done.registration)
    images = {"defaced": defaced.volume, "average": done.volume, "linear": linear.volume}
    found = measure(head, images, registration=defaced.registration)
    distances = {name: found[name]["face"].mean for name in images}
    return {"head": path.name.removesuffix(".nii.gz"), "method": method} | distances


def curve(left: list[list[Hole]], tested: list[int]) -> None:
    """Print the errors by the number of heads that the model is fitted to."""
    template = load_template()
    skin = np.clip(halved(template.skin_distance), -LIMIT_MM, LIMIT_MM)
    face = halved(template.surface_region.astype(np.float32)) > 0.5
    print(f"median over {len(tested)} heads of the error at 4 mm against the average skin's, after mri_deface")
    print(f"{'heads fitted to':>16s}{'linear':>10s}{'shown the face':>16s}")
    for count in [*(number for number in HEADS if number < len(left) - 1), len(left) - 1]:
        ratios = []
        for number in tested:
            hole, rng = left[number][0], np.random.default_rng(number)
            others = rng.permutation([other for other in range(len(left)) if other != number])[:count]
            model = linear_of([left[other] for other in others])
            head, missing = hole.head, hole.mask | ~hole.head.inside
            known = reliable(head.distance, missing, COARSE_MM)
            near = (np.abs(head.distance) < 3) & face & ~known & head.inside

            def error(distance: np.ndarray, head=head, known=known, near=near) -> float:
                return np.abs(anchored(distance, head.distance, known, COARSE_MM) - head.distance)[near].mean()

            seen = Seen(head.distance, known, hole.mask, head.image, ~missing, head.bend)
            shown = Seen(head.distance, known | (np.abs(head.distance) < 4))
            best = replace(model, ridge=SHOWN_RIDGE, places=model.places[:0]).complete(hole.base, shown)
            ratios.append(np.array([error(model.complete(hole.base, seen)), error(best)]) / error(skin))
        print(f"{count:16d}" + "{:10.3f}{:16.3f}".format(*np.median(ratios, axis=0)), flush=True)


def told(progress: Progress) -> None:
    print(f"{progress.stage}: {progress.message}", flush=True)


def training_heads() -> dict[str, Path]:
    """The cohort and the label heads with a whole face, by name; ``prepare`` leaves out those that are held out."""
    cohort = sorted(heads.folder("cohort_ixi_2mm").glob("*_T1w.nii.gz"))
    labels = [heads.folder("label_heads_1mm") / f"training_seg_{number}.nii.gz" for number in FULL_LABEL_HEADS]
    return {path.name.removesuffix(".nii.gz"): path for path in cohort + labels}


def show(rows: list[dict]) -> None:
    print("mean distance to the original, mm, region face; the linear model fitted to all other heads")
    print(f"{'head':16s}" + "".join(f"{name:>10s}" for name in COLUMNS[2:]) + f"{'linear / average':>18s}")
    values = np.array([[float(row[name]) for name in COLUMNS[2:]] for row in rows])
    for row, (defaced, average, linear) in zip(rows, values, strict=True):
        print(f"{row['head']:16s}{defaced:10.3f}{average:10.3f}{linear:10.3f}{linear / average:18.3f}")
    ratio, p = values[:, 2] / values[:, 1], wilcoxon(values[:, 2], values[:, 1]).pvalue if len(rows) > 1 else np.nan
    print(f"{'median':16s}" + "".join(f"{value:10.3f}" for value in np.median(values, axis=0)), end="")
    print(f"{np.median(ratio):18.3f}   n = {len(rows)}, Wilcoxon signed-rank p = {p:.2g}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["faces", "curve"], choices=["faces", "curve"])
    parser.add_argument("--method", default="mri_deface", choices=automatic_methods(), help="(default: mri_deface)")
    parser.add_argument("--out", type=Path, default=None, help="where all is kept (default: nowhere)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        paths, prepared, table = training_heads(), out / "prepared", out / "crossvalidation.tsv"
        prepare(paths, prepared, on_progress=told)
        loaded = load_prepared(prepared)
        left = holes(loaded, prepared, on_progress=told)
        names = [head.name for head in loaded]
        tested = [n for n, head in enumerate(loaded) if head.whole and head.name in paths and "_T1w" in head.name]
        if "faces" in options.parts:
            done = {(row["head"], row["method"]) for row in kept(table)}
            for number in tested:
                if (names[number], options.method) not in done:
                    append(table, [left_out(number, left, paths[names[number]], options.method)], COLUMNS)
                    print(f"{names[number]} done", flush=True)
            show([row for row in kept(table) if row["method"] == options.method])
        if "curve" in options.parts:
            curve(left, tested)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
