"""Muscle from the head, measured: segmentation, phantoms, calibration, power, leakage, speed, and BMI from real heads.

    python Testing/benchmarks/bench_muscle.py [--out DIR] [--parts ct phantoms speed choice calibration power leak bmi]

Every part can be run alone; `--out` keeps images and folds, and an interrupted run goes on where it stopped. Ends with
status 1 if a figure misses its limit.

The predictor's settings were fixed on simulated targets (part `choice`: fat of the cheeks, volume of the face and size
of the head, tied to simulated HU) before any image but the originals was made and before the BMI was read. The
predictor was not changed after the BMI table; how targets are shuffled was, once, because of what part `calibration`
showed.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import heads
import numpy as np

from RefaceRiskLib.radiodensity.ct import check_hounsfield, load_ct, measure_muscles, measure_site
from RefaceRiskLib.radiodensity.features import features
from RefaceRiskLib.radiodensity.fit import TRAINED_ON_IXI, FitOptions, fit
from RefaceRiskLib.radiodensity.images import IMAGE_TYPES, load_images, make_images
from RefaceRiskLib.radiodensity.phantoms import SITES, phantom
from RefaceRiskLib.radiodensity.predictor import LightPredictor
from RefaceRiskLib.radiodensity.segmentation import segment
from RefaceRiskLib.radiodensity.simulation import TRAITS, HeadModel, facial_trait, simulated_hu
from RefaceRiskLib.radiodensity.statistics import analyse, resamples, spearman
from RefaceRiskLib.radiodensity.validation import (
    OutOfFold,
    confound_matrix,
    cross_validate,
    repeated_folds,
    residual_of,
    shuffled_targets,
)
from RefaceRiskLib.volumes import load

SEED = 20251  # of all simulations; set before the first result was looked at
FAULTS: list[str] = []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench-muscle"), help="what is kept between runs")
    parser.add_argument("--images", type=Path, default=None, help="folder of images (default: below --out)")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--cohorts", type=int, default=200, help="simulated cohorts of the calibration")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.images = options.images or options.out / "images"
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.parts:
        began = time.perf_counter()
        print(f"\n== {name}", flush=True)
        PARTS[name](options)
        print(f"({time.perf_counter() - began:.0f} s)", flush=True)
    print("\n" + ("all within their limits" if not FAULTS else "missed: " + "; ".join(FAULTS)))
    return 1 if FAULTS else 0


def within(what: str, value: float, low: float, high: float, form: str = ".3f") -> None:
    good = low <= value <= high
    print(f"{what}: {value:{form}} ({low:g} to {high:g}){'' if good else '  MISSED'}", flush=True)
    if not good:
        FAULTS.append(what)


# --- CT ---------------------------------------------------------------------------------------------------------------


def ct_part(options) -> None:
    folder = heads.folder("ct")
    ct = load_ct(folder / "example_ct_sm_3mm.nii.gz")
    truth = load(folder / "example_ct_sm_3mm_skeletal_muscle.nii.gz").voxels > 0
    found = segment(ct, "abdomen").muscle
    dice = 2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth))
    within("own segmentation against the skeletal-muscle mask, Dice", dice, 0.85, 1)
    own, reference = float(ct.intensities[found].mean()), float(ct.intensities[truth].mean())
    within(f"mean HU, own {own:.2f} less mask {reference:.2f}", own - reference, -2, 2, "+.2f")
    series = load_ct(folder / "example_ct_dicom")
    labels = load(folder / "example_ct_dicom_seg117.nii.gz")
    left, right = measure_muscles(series, labels, [86, 87])
    within("erector spinae left from the DICOM series, mean HU", left.mean_hu, 24.4, 24.6, ".2f")
    within("erector spinae right from the DICOM series, mean HU", right.mean_hu, 20.7, 20.9, ".2f")
    here = segment(series, "abdomen").muscle
    for label, side in ((86, "left"), (87, "right")):
        marked = np.rint(labels.intensities) == label
        marked = marked if labels.axcodes == series.axcodes else _flipped(marked, labels, series)
        print(f"share of the {side} erector spinae in own segmentation of the 1 mm series: {here[marked].mean():.2f}")
    for what, change in (("windowed to 0..255", lambda hu: np.clip((hu + 160) / 400 * 255, 0, 255).round()),
                         ("intercept forgotten", lambda hu: hu + 1024)):  # fmt: skip
        try:
            check_hounsfield(ct.with_intensities(change(ct.intensities)))
            FAULTS.append(f"{what} was taken for HU")
        except Exception as error:
            print(f"{what}: refused, {error}")


def _flipped(mask, labels, series):
    from RefaceRiskLib.volumes import reorient

    return reorient(labels.with_intensities(mask, np.uint8), series.axcodes).voxels > 0


def phantoms_part(options) -> None:
    print("site      noise  HU found  known   area found  known   Dice   (left, right HU)")
    for site in SITES:
        for noise in (5, 10, 20, 30):  # of a quiet, a usual and a noisy scan; the last is shown and not promised
            truth = phantom(site, noise=noise, seed=SEED)
            rows, found, *_ = measure_site(truth.ct, site)
            overlap = np.count_nonzero(found.muscle & truth.muscle)
            dice = 2 * overlap / (np.count_nonzero(found.muscle) + np.count_nonzero(truth.muscle))
            error, area = rows[0].mean_hu - truth.clean_hu, rows[0].area_mm2 / truth.area_mm2 - 1
            missed = "" if noise > 20 or (abs(error) <= 0.5 and abs(area) <= 0.02) else "  MISSED"
            sides = ", ".join(f"{row.mean_hu:.1f}" for row in rows[1:])
            sizes = f"{rows[0].area_mm2:8.0f} {truth.area_mm2:7.0f} ({area:+.1%})"
            told = f"{rows[0].mean_hu:9.2f} {truth.clean_hu:7.2f} ({error:+.2f}) {sizes}  {dice:.3f}  ({sides})"
            print(f"{site:9s} {noise:4d} {told}{missed}", flush=True)
            if missed:
                FAULTS.append(f"phantom {site}, noise {noise}")


# --- statistics -------------------------------------------------------------------------------------------------------


def speed_part(options) -> None:
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal(150)
    y = x + rng.standard_normal(150)
    seconds = []
    for _ in range(5):
        began = time.process_time()
        spearman(x, y, resamples(150, 10_000, SEED))
        seconds.append(time.process_time() - began)
    within("10,000 resamples of rho, n = 150, CPU seconds (best of 5)", min(seconds), 0, 0.3)


def head_model(options) -> HeadModel:
    """From the real heads' originals and what MRI_Deface changes in them. No BMI."""
    kept = options.out / "head_features.npz"
    rows = _participants()
    if not kept.is_file():
        _make(options, [row["participant_id"] for row in rows], ("original", "mri_deface"))
        X = {kind: np.stack([_features(options, row["participant_id"], kind) for row in rows])
             for kind in ("original", "mri_deface")}  # fmt: skip
        np.savez(kept, **X)
    with np.load(kept) as file:
        X, defaced = file["original"], file["mri_deface"]
    face = np.abs(X - defaced).mean(axis=0) > 0.1 * X.std(axis=0)
    return HeadModel.of(X, [float(row["age"]) for row in rows], [row["sex"] for row in rows], face)


def simulated_result(model: HeadModel, count: int, strength: float, seed: tuple, permutations: int = 199):
    """A cohort through the whole pipeline: folds, residuals, predictor, bootstrap, permutations."""
    cohort = model.cohort(count, strength, np.random.default_rng(seed))
    confounds = confound_matrix(cohort.age, cohort.sex)
    folds = repeated_folds([str(n) for n in range(count)], 5, 4, seed[-1])
    y = np.column_stack([cohort.y, shuffled_targets(cohort.y, confounds, permutations, seed[-1])])
    done = {kind: cross_validate(LightPredictor(), X, y, confounds, folds) for kind, X in cohort.X.items()}
    null = {kind: columnwise_rho(one)[1:] for kind, one in done.items()}
    return analyse({kind: one.predicted[:, 0] for kind, one in done.items()}, done["original"].residual[:, 0], null,
                   seed=seed[-1])  # fmt: skip


def columnwise_rho(done: OutOfFold) -> np.ndarray:
    from scipy.stats import rankdata

    a, b = (rankdata(part, axis=0) for part in (done.predicted, done.residual))
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return (a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0) + 1e-12)


def calibration_part(options, count: int = 60) -> None:
    model, found = head_model(options), []
    for cohort in range(options.cohorts):
        result = simulated_result(model, count, 0.0, (SEED, 1, cohort))
        one, pair = result.correlations[0], result.comparisons[0]
        found.append([one["p_permutation"] < 0.05, pair["p_permutation"] < 0.05, one["ci_excludes_zero"],
                      pair["p_paired_bootstrap"] < 0.05, pair["p_steiger"] < 0.05, pair["p_williams"] < 0.05,
                      pair["p_wilcoxon_over_resamples"] < 0.05, one["rho"]])  # fmt: skip
    rates = np.mean(found, axis=0)
    print(f"{options.cohorts} cohorts of {count} with no effect; mean out-of-fold rho {rates[-1]:+.3f}")
    within("rejected at 5 %: rho, permutation of the whole validation", rates[0], 0.03, 0.07)
    within("rejected at 5 %: original - defaced, permutation", rates[1], 0.03, 0.07)
    names = ("95 % interval of rho excludes 0", "original - defaced, paired bootstrap of finished predictions",
             "Steiger", "Williams", "Wilcoxon over resamples (as published)")  # fmt: skip
    for name, rate in zip(names, rates[2:-1], strict=True):
        print(f"rejected at 5 %: {name}: {rate:.3f}")
    fixed = [_independent_predictions(cohort, count) for cohort in range(2000)]
    print("the same of predictions that were not learnt from the cohort (2000 cohorts), which is what it assumes:")
    within("rejected at 5 %: paired bootstrap of the difference", float(np.mean(fixed)), 0.03, 0.07)


def _independent_predictions(cohort: int, count: int) -> bool:
    rng = np.random.default_rng((SEED, 2, cohort))
    y, shared = rng.standard_normal((2, count))
    first, second = (0.5 * shared + rng.standard_normal(count) for _ in range(2))
    weights = resamples(count, 1000, cohort)
    drawn = spearman(first, y, weights) - spearman(second, y, weights)
    return bool(np.quantile(drawn, 0.025) > 0 or np.quantile(drawn, 0.975) < 0)


def power_part(options, strength: float = 0.7, cohorts: int = 40) -> None:
    model = head_model(options)
    print(f"HU tied to the face alone, correlation {strength}; {cohorts} cohorts for each n")
    print("   n  rho original  rho defaced  original - defaced found at 5 %: permutation  paired bootstrap")
    power = {}
    for count in (30, 60, 100, 150, 300):
        found = []
        for cohort in range(cohorts):
            result = simulated_result(model, count, strength, (SEED, 3, count, cohort), permutations=99)
            pair = result.comparisons[0]
            above = pair["rho_difference"] > 0
            found.append([*(row["rho"] for row in result.correlations), above and pair["p_permutation"] < 0.05,
                          above and pair["p_paired_bootstrap"] < 0.05])  # fmt: skip
        mean = np.mean(found, axis=0)
        power[count] = mean[2]
        print(f"{count:4d} {mean[0]:13.2f} {mean[1]:12.2f} {mean[2]:47.2f} {mean[3]:17.2f}", flush=True)
    within("power at n = 150", power[150], 0.8, 1)


def leak_part(options, count: int = 40, cohorts: int = 200) -> None:
    """No effect of the face; HU and heads both depend on age, sex and ten sites of acquisition."""
    model = head_model(options)
    rhos = {name: [] for name in ("in the training fold (ours)", "target, everybody at once",
                                  "target and images, everybody at once", "not at all")}  # fmt: skip
    for cohort in range(cohorts):
        rng = np.random.default_rng((SEED, 4, cohort))
        made = model.cohort(count, 0.0, rng)
        sites = np.eye(10)[rng.integers(0, 10, count)][:, 1:]
        confounds = np.column_stack([confound_matrix(made.age, made.sex), sites])
        X = made.X["original"] + 0.5 * sites @ rng.standard_normal((9, made.X["original"].shape[1]))
        y = made.y + 6 * sites @ rng.standard_normal(9)
        folds = repeated_folds([str(n) for n in range(count)], 5, 2, cohort)
        everybody, nothing = np.ones(count, bool), np.ones((count, 1))
        at_once = residual_of(y, confounds, everybody)
        for name, features_, target, adjusted in zip(
            rhos,
            (X, X, residual_of(X, confounds, everybody), X),
            (y, at_once, at_once, y),
            (confounds, nothing, nothing, nothing),
            strict=True,
        ):
            done = cross_validate(LightPredictor(), features_, target, adjusted, folds)
            rhos[name].append(float(spearman(done.predicted, done.residual)))
    print(f"mean out-of-fold rho of {cohorts} cohorts of {count}, truth 0; age, sex and site regressed out:")
    for name, values in rhos.items():
        print(f"  {name:38s} {np.mean(values):+.3f} (standard error {np.std(values) / np.sqrt(cohorts):.3f})")
    ours, leaky = (np.mean(rhos[name]) for name in ("in the training fold (ours)",
                                                    "target and images, everybody at once"))  # fmt: skip
    within("rho by our path", ours, -0.06, 0.05, "+.3f")
    within("rho inflated by the leak", leaky - ours, 0.05, 1, "+.3f")


def choice_part(options) -> None:
    """The table on which the settings were fixed: simulated HU tied to traits of the real heads."""
    rows = _participants()
    names = [row["participant_id"] for row in rows]
    _make(options, names, ("original",))
    X = np.stack([_features(options, name, "original") for name in names])
    age, sex = [float(row["age"]) for row in rows], [row["sex"] for row in rows]
    confounds, folds = confound_matrix(age, sex), repeated_folds(names, 5, 4, 0)
    targets = {}
    for trait in TRAITS:
        values = np.array([_trait(options, name, trait) for name in names])
        for strength in (0.9, 0.6):
            rng = np.random.default_rng(1)
            targets[trait, strength] = np.column_stack(
                [simulated_hu(values, age, sex, strength, rng) for _ in range(30)]
            )
    print(f"mean out-of-fold rho, {len(names)} real heads, 30 simulated targets each")
    for label, predictor in (
        *((f"{n} components", LightPredictor(components=n)) for n in (3, 5, 8, 12, 20)),
        *((f"strengths 1e{low:g}..1e{high:g}", LightPredictor(strengths=tuple(np.logspace(low, high, 7))))
          for low, high in ((-3, 1), (-1.5, 2.5), (0, 2), (-1, 1))),
    ):  # fmt: skip
        rhos = {key: columnwise_rho(cross_validate(predictor, X, y, confounds, folds)).mean()
                for key, y in targets.items()}  # fmt: skip
        told = "  ".join(f"{trait} {strength}: {rho:.2f}" for (trait, strength), rho in rhos.items())
        print(f"{label:22s} {told}  mean {np.mean(list(rhos.values())):.3f}", flush=True)


# --- real heads, a real measure of the body ---------------------------------------------------------------------------


def bmi_part(options) -> None:
    rows = _participants()
    _make(options, [row["participant_id"] for row in rows], IMAGE_TYPES)
    table = options.out / "participants.tsv"
    cohort = heads.folder("cohort_ixi_2mm")
    lines = ["participant_id\thead\tage\tsex\tbmi"]
    lines += [f"{row['participant_id']}\t{(cohort / (row['participant_id'] + '_T1w.nii.gz')).resolve()}\t{row['age']}\t"
              f"{row['sex']}\t{row['bmi']}" for row in rows]  # fmt: skip
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    began, cpu = time.perf_counter(), time.process_time()
    done = fit(table, options.out / "bmi", FitOptions(targets=("bmi",), device=options.device), options.images)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    print("image           n    rho   95 % interval      p permutation  Holm     original - image: difference"
          "  95 % interval     p permutation, Holm  p bootstrap, Holm")  # fmt: skip
    against = {row["image"]: row for row in done.comparisons}
    for row in done.correlations:
        line = (f"{row['image']:13s} {row['n']:3d}  {row['rho']:+.3f}  [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
                f"  {row['p_permutation']:13.3f} {row['p_permutation_holm']:6.3f}")  # fmt: skip
        if (pair := against.get(row["image"])) is not None:
            line += (f"  {pair['rho_difference']:+29.3f}  [{pair['ci_low']:+.3f}, {pair['ci_high']:+.3f}]"
                     f" {pair['p_permutation_holm']:18.3f} {pair['p_paired_bootstrap_holm']:18.3f}")  # fmt: skip
        print(line)
    print("Refaced: " + TRAINED_ON_IXI + " Not trained on: IXI213, 274, 353, 452, 508, 606.")
    print(f"left out ({len(done.problems)}): " + ("; ".join(map(str, done.problems)) or "nobody"))
    odd = [f"{row['participant_id']} ({row['face']})" for row in rows if row["face"] != "full"]
    print(f"kept although the face is not whole in the scan: {', '.join(odd)}")
    images = {row["participant_id"]: load_images(options.images, row["participant_id"]) for row in rows}
    for kind in IMAGE_TYPES:
        odd = {name: found.verdicts[kind] for name, found in images.items() if found.verdicts.get(kind, "ok") != "ok"}
        if odd:
            print(f"verdicts other than ok of {kind}: " + ", ".join(f"{n} {v}" for n, v in odd.items()))
    for sentence in done.sentences:
        print(sentence)
    print(f"figure: {done.files['figure']}; report: {done.files['report']}")
    what = "muscle fit, light, images made, 30 subjects x 8 image types, CPU minutes of its one thread"
    within(what, cpu / 60, 0, 5, ".2f")
    print(f"(wall minutes {wall / 60:.2f} on this machine now; folds kept by an earlier run are used again)")


def _participants() -> list[dict]:
    with open(heads.folder("cohort_ixi_2mm") / "participants.tsv", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def _make(options, names, types) -> None:
    cohort = heads.folder("cohort_ixi_2mm")
    for number, name in enumerate(names, start=1):
        if all(kind in load_images(options.images, name, types).made for kind in types):
            continue
        print(f"making images of {name} ({number} of {len(names)})", flush=True)
        make_images(cohort / f"{name}_T1w.nii.gz", options.images, name, types, options.device)


def _image(options, name: str, kind: str):
    found = load_images(options.images, name, (kind,))
    return load(found.made[kind]).intensities, found.mm_per_template_mm


def _features(options, name: str, kind: str) -> np.ndarray:
    return features(*_image(options, name, kind))


def _trait(options, name: str, trait: str) -> float:
    return facial_trait(*_image(options, name, "original"), trait)


PARTS = {
    "ct": ct_part,
    "phantoms": phantoms_part,
    "speed": speed_part,
    "choice": choice_part,
    "calibration": calibration_part,
    "power": power_part,
    "leak": leak_part,
    "bmi": bmi_part,
}

if __name__ == "__main__":
    raise SystemExit(main())
