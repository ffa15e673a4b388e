"""The linear model on heads that it was not fitted to, each in turn: are six validation heads like the others?

    python Testing/benchmarks/bench_crossvalidation.py [--method NAME] [--out FOLDER]

The training heads are prepared as ``refacerisk train`` does (about twenty minutes on two cores, once; kept in
FOLDER/prepared). For every head of the cohort among them whose mouth is shown the model is fitted to all other heads.
The head is defaced, registered again without its face, completed by that model and by the average face, and measured as
in ``bench_refacing.py``. Results are kept in FOLDER as they come.

Not tested are the networks, each of which would have to be trained anew, and two things know the head: the template, in
which it is one of many, and the mouths of other heads that dental metal hides, which were filled in with its help.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import heads
import numpy as np
from results import append, kept
from scipy.stats import wilcoxon

from RefaceRiskLib.defacing import deface
from RefaceRiskLib.defacing.compare import automatic_methods
from RefaceRiskLib.diffusion.cascade import Refacer
from RefaceRiskLib.diffusion.dataset import Hole, holes, linear_of, load_prepared, prepare
from RefaceRiskLib.progress import Progress
from RefaceRiskLib.surface.measure import measure
from RefaceRiskLib.template_build import FULL_LABEL_HEADS
from RefaceRiskLib.volumes import load

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
    parser.add_argument("--method", default="mri_deface", choices=automatic_methods(), help="(default: mri_deface)")
    parser.add_argument("--out", type=Path, default=None, help="where all is kept (default: nowhere)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        paths, prepared, table = training_heads(), out / "prepared", out / "crossvalidation.tsv"
        prepare(paths, prepared, on_progress=told)
        loaded = load_prepared(prepared)
        left = holes(loaded, prepared, on_progress=told)
        done = {(row["head"], row["method"]) for row in kept(table)}
        for number, head in enumerate(loaded):
            if head.whole and head.name.endswith("_T1w") and (head.name, options.method) not in done:
                append(table, [left_out(number, left, paths[head.name], options.method)], COLUMNS)
                print(f"{head.name} done", flush=True)
        show([row for row in kept(table) if row["method"] == options.method])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
