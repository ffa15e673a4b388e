"""From a table of people to the paper's second figure: measure, make the images, predict out of fold, test, tell.

Everything that takes time is kept below the output folder and used again: HU values, images, and each repeat of each
validation. What a result depends on is in its name, so that another setting never meets an old result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from .. import __version__
from ..errors import RefaceRiskError
from ..progress import OnProgress, report
from ..report import write_text
from ..volumes import load, sha256_of, sidecar, written_beside
from .cohort import Cohort, Participant, Problem, TooFewParticipants, read_cohort
from .ct import choose_level, gantry_tilt, load_ct, measure_muscles, measure_site
from .images import IMAGE_TYPES, HeadImages, load_images, make_images
from .labels import MUSCLES, muscles_in, numbers_of
from .predictor import make_predictor
from .statistics import COMPARISON_COLUMNS, CORRELATION_COLUMNS, INTERVALS, Analysis, analyse, spearman
from .validation import confound_matrix, cross_validate, repeated_folds, shuffled_targets

TRAINED_ON_IXI = (
    "The diffusion weights that come with the software were trained on 24 heads of the IXI data set: refaced images of "
    "those heads may hold what the model remembers of them."
)


# --- one CT -----------------------------------------------------------------------------------------------------------


def measure_ct(
    ct: str | Path,
    labels: str | Path | None = None,
    wanted: Sequence[int | str] | None = None,
    site: str | None = None,
    slice_number: int | None = None,
    roi: str | Path | None = None,
    slab_mm: float = 0.0,
    picture: str | Path | None = None,
) -> tuple[list[dict], dict]:
    """Radiodensity of labelled muscles, or of the muscle of a `site` found without a network: rows and their record.

    wanted : label numbers or names (TotalSegmentator's); default: the muscles among them. Raises RefaceRiskError.
    """
    if (labels is None) == (site is None):
        raise RefaceRiskError("muscles come from a label map or from a site", "give --labels F or --site abdomen", ct)
    volume = load_ct(ct)
    record = {
        "command": "muscle measure", "version": __version__, "site": site,
        "input": {"path": Path(ct).name, "sha256": volume.meta.sha256},
        "gantry_tilt_degrees": round(gantry_tilt(volume), 2),
    }  # fmt: skip
    if labels is not None:
        label_map = load(labels)
        present = np.unique(np.rint(label_map.intensities)).astype(int)
        numbers = muscles_in(set(present.tolist()) - {0}) if wanted is None else numbers_of(wanted)
        rows = measure_muscles(volume, label_map, numbers or None, MUSCLES)
        record["labels"] = {"path": Path(labels).name, "sha256": label_map.meta.sha256}
        if picture is not None:
            from ..volumes import resample
            from .picture import draw_muscles

            whole = np.rint(label_map.intensities).astype(np.int32)
            here = resample(whole, label_map.affine, volume.shape, volume.affine, order=0, dtype=np.int32)
            draw_muscles(volume, {row.site or str(row.label): here == row.label for row in rows}, rows, picture)
    else:
        marked = None if roi is None else load(roi)
        rows, found, around, chosen = measure_site(volume, site, slice_number, marked, slab_mm)
        record |= {"slice": choose_level(volume, slice_number, marked), "slab_mm": slab_mm}
        if picture is not None:
            from .picture import draw_muscles

            names = ("muscle", "intermuscular fat", "subcutaneous fat", "bone")
            masks = {name: getattr(found, name.replace(" ", "_")) & chosen for name in names}
            draw_muscles(around, masks, rows, picture)
    return [row.as_dict() for row in rows], record


# --- the whole study --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FitOptions:
    """How to fit; see `refacerisk muscle fit --help`."""

    targets: tuple[str, ...] | None = None
    types: tuple[str, ...] = IMAGE_TYPES
    predictor: str = "light"
    folds: int = 5
    repeats: int = 10
    resamples: int = 1000
    permutations: int = 999
    interval: str = "percentile"
    seed: int = 0
    device: str = "auto"

    def checked(self) -> FitOptions:
        """Itself; raises RefaceRiskError for what cannot be."""
        make_predictor(self.predictor)
        if self.interval not in INTERVALS:
            raise RefaceRiskError(f"unknown interval {self.interval!r}", f"choose one of {', '.join(INTERVALS)}")
        for name, least in (("folds", 2), ("repeats", 1), ("resamples", 100), ("permutations", 0)):
            if getattr(self, name) < least:
                raise RefaceRiskError(f"{name} is {getattr(self, name)}", f"give {least} or more")
        unknown = [name for name in self.types if name not in IMAGE_TYPES]
        if unknown or "original" not in self.types:
            raise RefaceRiskError(
                f"unknown image type {unknown[0]!r}"
                if unknown
                else "the image type original is needed to compare with",
                f"choose from {', '.join(IMAGE_TYPES)}",
            )
        return self


@dataclass(frozen=True, eq=False)
class Fitted:
    """files : name -> path of everything written. rows as in `statistics`; problems : all that was left out."""

    files: dict[str, Path]
    correlations: list[dict]
    comparisons: list[dict]
    problems: list[Problem]
    sentences: list[str]
    record: dict = field(default_factory=dict)


def fit(
    table: str | Path,
    out: str | Path,
    options: FitOptions | None = None,
    images: str | Path | None = None,
    on_progress: OnProgress | None = None,
    heads: Mapping[str, str | Path] | None = None,
) -> Fitted:
    """Run the study of `table` into the folder `out`; an interrupted run goes on where it stopped.

    images : folder in which images of heads are kept (default: below `out`). heads : participant -> head, of those who
    take part, where `images` holds already what could be made of them: none is made, and the table needs no `head`.
    Raises RefaceRiskError for a table, an option or a folder that cannot be used, TooFewParticipants where no target
    has enough; rows, CTs and heads that cannot be used are listed in ``excluded.tsv``.
    """
    options = (options or FitOptions()).checked()
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise RefaceRiskError("is a file", "name a folder for the results", out)
    out.mkdir(parents=True, exist_ok=True)
    cohort = read_cohort(table, options.targets, heads)
    problems = list(cohort.problems)
    values = _measured(cohort, out / "hu", problems, on_progress)
    made = _images(cohort, Path(images or out / "images"), heads is None, options, problems, on_progress)
    prepared = _prepared(made, options, on_progress)
    correlations, comparisons, predictions, drawn, sentences = [], [], [], {}, []
    for target in cohort.targets:
        people = [one for one in cohort.participants if target in values[one.participant] and one.participant in made]
        least = fewest(options)
        if len(people) < least:
            problems.append(Problem(0, "", f"{target}: {len(people)} participants are fewer than {least}", False))
            continue
        found, told = _one_target(target, people, values, prepared, made, options, out / "folds", on_progress)
        correlations += found.correlations
        comparisons += found.comparisons
        predictions += told
        drawn |= {(target, image): rhos for image, rhos in found.drawn.items()}
        sentences.append(in_words(target, found))
    if not correlations:
        raise TooFewParticipants("no target has enough participants", str(problems[-1]) if problems else "", table)
    record = {
        "command": "muscle fit", "options": asdict(options),
        "predictor": {key: value for key, value in vars(make_predictor(options.predictor)).items() if key[0] != "_"},
        "input": {"path": Path(table).name, "sha256": sha256_of(table)},
        "in_words": sentences,
    }  # fmt: skip
    files = _written(out, correlations, comparisons, predictions, drawn, problems, record)
    from .report_page import write_report

    files["report"] = write_report(out / "report.html", files["figure"], correlations, comparisons, problems, record)
    return Fitted(files, correlations, comparisons, problems, sentences, record)


def fewest(options: FitOptions) -> int:
    """The participants that a target needs."""
    return max(options.folds, 6)


def _measured(cohort: Cohort, folder: Path, problems: list[Problem], on_progress) -> dict[str, dict[str, float]]:
    """participant -> target -> value; CTs are measured once and their figures kept."""
    values = {one.participant: dict(one.targets) for one in cohort.participants}
    waiting = [(one, site, ct) for one in cohort.participants for site, ct in one.cts.items()]
    for step, (one, site, ct) in enumerate(waiting):
        report(on_progress, "measure CTs", step, len(waiting), f"{one.participant} {site}")
        kept = folder / f"{one.participant}_{site}.json"
        try:
            known = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else None
            if known is None or known["input"]["sha256"] != load(ct).meta.sha256:
                rows, record = measure_ct(ct, site=site)
                folder.mkdir(parents=True, exist_ok=True)
                known = {**record, "rows": rows}
                sidecar(kept, **{key: value for key, value in known.items() if key != "version"})
            values[one.participant][f"hu_{site}"] = float(known["rows"][0]["mean_hu"])
        except RefaceRiskError as error:
            problems.append(Problem(0, one.participant, f"CT of the {site}: {error}", False))
    return values


def _images(cohort: Cohort, folder: Path, make: bool, options: FitOptions, problems: list[Problem], on_progress):
    """participant -> HeadImages, of those who have every type; the same people for every image."""
    made: dict[str, HeadImages] = {}
    for step, one in enumerate(cohort.participants):
        report(on_progress, "images", step, len(cohort.participants), one.participant)
        try:
            if make:
                found = make_images(one.head, folder, one.participant, options.types, options.device, on_progress)
            else:
                found = load_images(folder, one.participant, options.types)
        except RefaceRiskError as error:
            problems.append(Problem(0, one.participant, f"head: {error}", True))
            continue
        if found.refused:
            reasons = "; ".join(f"{name}: {why}" for name, why in found.refused.items())
            problems.append(Problem(0, one.participant, f"images missing: {reasons}", True))
            continue
        made[one.participant] = found
    report(on_progress, "images", len(cohort.participants), len(cohort.participants))
    return made


def _prepared(made: Mapping[str, HeadImages], options: FitOptions, on_progress) -> dict[tuple[str, str], np.ndarray]:
    """(participant, image type) -> what the predictor takes."""
    predictor, out = make_predictor(options.predictor), {}
    for step, (name, found) in enumerate(made.items()):
        report(on_progress, "features", step, len(made), name)
        for kind, path in found.made.items():
            out[name, kind] = predictor.prepare(load(path).intensities, found.mm_per_template_mm)
    report(on_progress, "features", len(made), len(made))
    return out


def _one_target(
    target: str, people: list[Participant], values, prepared, made, options: FitOptions, folder: Path, on_progress
) -> tuple[Analysis, list[dict]]:
    names = [one.participant for one in people]
    y = np.array([values[name][target] for name in names])
    confounds = confound_matrix([one.age for one in people], [one.sex for one in people])
    folds = repeated_folds(names, options.folds, options.repeats, options.seed)
    predictor = make_predictor(options.predictor)
    if hasattr(predictor, "device"):
        predictor.device = options.device
    shuffles = options.permutations if predictor.vectorised else 0
    targets = np.column_stack([y, shuffled_targets(y, confounds, shuffles, options.seed)]) if shuffles else y
    predicted, null, residual = {}, {}, None
    for kind in options.types:
        X = np.stack([prepared[name, kind] for name in names])
        repeats = []
        for number, row in enumerate(folds):
            key = _key(
                asdict(options) | {"predictor": repr(predictor)}, target, kind, names, X, targets, confounds, row
            )
            stage = f"{target}, {kind}, repeat {number + 1} of {len(folds)}"
            repeats.append(
                _kept(folder / f"{key}.npz", predictor, X, targets, confounds, row[None], stage, on_progress)
            )
        mean_of = {name: np.mean([one[name] for one in repeats], axis=0) for name in ("predicted", "residual")}
        if shuffles:
            columns = zip(mean_of["predicted"].T, mean_of["residual"].T, strict=True)
            rhos = np.array([spearman(p, r) for p, r in columns])
            null[kind] = rhos[1:]
            mean_of = {name: values_[:, 0] for name, values_ in mean_of.items()}
        predicted[kind], residual = mean_of["predicted"], mean_of["residual"]
    found = analyse(predicted, residual, null or None, target, "original", options.resamples, options.seed,
                    options.interval)  # fmt: skip
    told = [
        {"participant_id": name, "target": target, "image": kind, "measured": y[n], "residual": residual[n],
         "predicted": predicted[kind][n]}
        for kind in options.types for n, name in enumerate(names)
    ]  # fmt: skip
    return found, told


def _kept(path: Path, predictor, X, targets, confounds, row, stage, on_progress) -> dict[str, np.ndarray]:
    """One repeat of a validation, from its file if it was done before."""
    if path.is_file():
        with np.load(path) as file:
            return {name: file[name].astype(float) for name in ("predicted", "residual")}
    done = cross_validate(predictor, X, targets, confounds, row, stage, on_progress)
    with written_beside(path, ".npz", make_folder=True) as temporary:
        np.savez(temporary, predicted=done.predicted.astype(np.float32), residual=done.residual.astype(np.float32))
    return {"predicted": done.predicted, "residual": done.residual}


_NOT_OF_A_REPEAT = ("targets", "types", "resamples", "interval", "repeats")


def _key(options: dict, *parts) -> str:
    """A name from everything that a repeat depends on."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in options.items() if k not in _NOT_OF_A_REPEAT}).encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return f"{parts[0]}_{parts[1]}_{digest.hexdigest()[:16]}"


# --- what is told -----------------------------------------------------------------------------------------------------


def in_words(target: str, found: Analysis, level: float = 0.05) -> str:
    """One or two sentences: with which images the target was predicted, and where the original tells more."""
    permuted = any(np.isfinite(row["p_permutation"]) for row in found.correlations)

    def predicts(row: Mapping) -> bool:
        sure = row["p_permutation_holm"] < level if permuted else row["ci_low"] > 0
        return bool(sure) and row["rho"] > 0

    name = target.removeprefix("hu_")
    yes = [row["image"] for row in found.correlations if predicts(row)]
    if not yes:
        first = f"{name}: not predicted with any kind of image"
    elif len(yes) == len(found.correlations):
        first = f"{name}: significant with every kind of image"
    else:
        first = f"{name}: significant only with {_listed(yes)} images"
    p = "p_permutation_holm" if permuted else "p_paired_bootstrap_holm"
    less = [row["image"] for row in found.comparisons if row[p] < level and row["rho_difference"] > 0]
    if less:
        second = f"the original tells more than {_listed(less)}"
    else:
        second = f"no other image is shown to tell less than the original with {found.correlations[0]['n']} subjects"
    by_interval = [row["image"] for row in found.correlations if row["ci_low"] > 0]
    third = f"by the interval alone, as published: {_listed(by_interval) if by_interval else 'with none'}"
    return f"{first}; {second} ({third})."


def _listed(names: Sequence[str]) -> str:
    from .figure import NAMES

    names = [NAMES.get(name, name) for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _written(out: Path, correlations, comparisons, predictions, drawn, problems, record) -> dict[str, Path]:
    from ..jobs import tsv
    from .figure import draw

    tables = {
        "correlations": (CORRELATION_COLUMNS, correlations),
        "comparisons": (COMPARISON_COLUMNS, comparisons),
        "predictions": (("participant_id", "target", "image", "measured", "residual", "predicted"), predictions),
        "resamples": (
            ("target", "image", "resample", "rho"),
            [{"target": target, "image": image, "resample": n, "rho": float(rho)}
             for (target, image), rhos in drawn.items() for n, rho in enumerate(rhos)],
        ),
        "excluded": (("line", "participant_id", "what", "row_dropped"),
                     [{"line": p.line or None, "participant_id": p.participant or None, "what": p.what,
                       "row_dropped": p.dropped} for p in problems]),
    }  # fmt: skip
    files = {}
    for name, (columns, rows) in tables.items():
        files[name] = write_text(tsv(rows, columns, ".5g"), out / f"{name}.tsv")
        sidecar(files[name], **record, columns={column: COLUMNS[column] for column in columns})
    caption = (
        f"Dots: {record['options']['resamples']} bootstrap resamples of subjects; black: mean and 95 % interval. "
        "Stars: Wilcoxon over resamples, as published; they reflect the number of resamples.\n"
        "p below each image: valid test of its difference from the original over subjects, Holm-corrected."
    )
    for name, ending in (("figure", "png"), ("figure_svg", "svg")):
        files[name] = out / f"figure.{ending}"
        with written_beside(files[name], f".{ending}") as temporary:
            draw(correlations, comparisons, drawn, [temporary], caption)
    return files


COLUMNS = {
    "target": "what was predicted; hu_ is the mean HU of the muscle at that site",
    "image": "image type of the head",
    "against": "image type it is compared with",
    "n": "subjects",
    "rho": "Spearman correlation of out-of-fold prediction and residual (age and sex regressed out in the fold)",
    "rho_difference": "rho of `against` less rho of `image`",
    "bootstrap_mean": "mean of rho over the resamples",
    "ci_low": "lower end of the 95 % bootstrap interval over subjects",
    "ci_high": "upper end of it",
    "ci_excludes_zero": "whether that interval excludes 0",
    "p_permutation": "two-sided p from running the whole validation on shuffled targets",
    "p_permutation_holm": "the same, Holm-corrected over the images of the target",
    "p_paired_bootstrap": "two-sided p of the difference, subjects resampled, the same resamples for both images",
    "p_paired_bootstrap_holm": "the same, Holm-corrected over the images of the target",
    "p_steiger": "Steiger's test of dependent correlations, as a cross-check",
    "p_williams": "Williams' test of dependent correlations, as a cross-check",
    "p_wilcoxon_over_resamples": "the paper's test; it reflects the number of resamples, not of subjects",
    "participant_id": "subject",
    "measured": "value of the target",
    "residual": "value less what age and sex explain, by coefficients of the training folds; mean over repeats",
    "predicted": "out-of-fold prediction of the residual; mean over repeats",
    "resample": "number of the bootstrap resample; the same subjects for all images and targets of equal n",
    "line": "line of the participants table",
    "what": "what is wrong",
    "row_dropped": "whether the whole row was left out, or only that value",
}
