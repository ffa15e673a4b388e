"""The models on unseen heads: deface, register the defaced head, reface, measure.

    python Testing/benchmarks/bench_validation.py [--cohort DIR] [--method mri_deface] [--models average linear]

Prints the mean distance (mm, region ``face``) of each image to the original for the six validation subjects, and the
medians over subjects of the ratios that the model is judged by.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import heads
import numpy as np

from RefaceRiskLib.defacing import deface
from RefaceRiskLib.diffusion.cascade import Refacer
from RefaceRiskLib.surface.measure import measure
from RefaceRiskLib.volumes import load

VALIDATION = ("IXI213", "IXI274", "IXI353", "IXI452", "IXI508", "IXI606")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohort", type=Path, default=None, help="folder of whole heads")
    parser.add_argument("--method", default="mri_deface")
    parser.add_argument("--models", nargs="+", default=["average", "linear", "reference"])
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--temperature", type=float, default=None)
    options = parser.parse_args()
    cohort = options.cohort or heads.folder("cohort_ixi_2mm")
    models = {name: Refacer.load(name) for name in options.models}
    rows = []
    print("subject   " + "".join(f"{name:>12s}" for name in ("defaced", *models)) + "     verdict  seconds")
    for subject in VALIDATION:
        head = load(cohort / f"sub-{subject}_T1w.nii.gz")
        defaced = deface(head, options.method)
        begun = time.perf_counter()
        images, registration = {"defaced": defaced.volume}, None
        for name, model in models.items():
            sampling = {
                "samples": options.samples,
                "steps": options.steps,
                "temperature": options.temperature,
            }
            result = model.reface(defaced.volume, defaced.removed, registration=registration, **sampling)
            registration = result.registration
            images[name] = result.volume
        seconds = time.perf_counter() - begun
        measured = measure(head, images, registration=defaced.registration)
        row = {name: measured[name]["face"].mean for name in images}
        rows.append(row)
        print(
            f"{subject:10s}"
            + "".join(f"{value:12.3f}" for value in row.values())
            + f"{defaced.quality.verdict:>12s} {seconds:8.1f}",
            flush=True,
        )
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    print(f"{'median':10s}" + "".join(f"{np.median(values):12.3f}" for values in table.values()))
    last = options.models[-1]
    for other in ("defaced", *options.models[:-1]):
        print(f"{last} / {other}: {np.median(table[last] / table[other]):.3f} (median over {len(rows)} subjects)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
