"""The result of a fit in plain words, with its figure and tables, as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import report
from .figure import NAMES

_WHAT_IT_MEANS = (
    "Each dot in the figure is the rank correlation between prediction and measurement in one bootstrap resample of "
    "the subjects. A prediction for a subject always comes from models that never saw that subject, and age and sex "
    "are regressed out with coefficients of the training subjects alone.",
    "Stars repeat the published test, a Wilcoxon test over resamples. With enough resamples it calls every difference "
    "significant, so it is no evidence about people. The p values in the tables are: the permutation test repeats the "
    "whole validation on shuffled targets; the paired bootstrap resamples subjects and takes the predictions as given, "
    "which makes it too ready to reject where nothing can be predicted.",
)


def write_report(
    path: Path, figure: Path, correlations: Sequence[Mapping], comparisons: Sequence[Mapping], problems: Sequence,
    record: Mapping,
) -> Path:  # fmt: skip
    """Write the page; rows as `statistics.analyse` gives them."""
    predictor = record["options"]["predictor"]
    sections = [
        report.section("In words", report.bullets(record["in_words"])),
        report.section("The figure", *figure_parts(figure, correlations)),
        report.section("How well each image predicts", correlation_table(correlations)),
        report.section("Does the original tell more?", comparison_table(comparisons)),
        report.section(
            "Left out",
            report.bullets([str(problem) for problem in problems]) if problems else report.paragraph("Nothing."),
        ),
        report.section("How it was made", report.facts({
            "predictor": predictor,
            "folds": f"{record['options']['folds']}, repeated {record['options']['repeats']} times",
            "seed": record["options"]["seed"], "table": record["input"]["path"], "sha256": record["input"]["sha256"],
        })),
    ]  # fmt: skip
    lead = " ".join(record["in_words"])
    return report.write(report.page("What the head tells about muscle", lead, sections), path)


def figure_parts(figure: Path, correlations: Sequence[Mapping]) -> list[str]:
    """The figure, how to read it, and what to bear in mind."""
    from .fit import TRAINED_ON_IXI

    parts = [report.figure(figure, "Bootstrap distributions of the correlation by image type", "")]
    parts += [report.paragraph(text, "note") for text in _WHAT_IT_MEANS]
    refaced = any(row["image"] == "refaced" for row in correlations)
    return parts + ([report.paragraph(TRAINED_ON_IXI, "notice")] if refaced else [])


def correlation_table(rows: Sequence[Mapping]) -> str:
    return report.table(_columns(
        ("target", "target"), ("image", "image"), ("n", "n", 0), ("rho", "rho", 3), ("ci_low", "95 % from", 3),
        ("ci_high", "to", 3), ("p_permutation", "p permutation", 4), ("p_permutation_holm", "Holm", 4),
    ), [_shown(row) for row in rows])  # fmt: skip


def comparison_table(rows: Sequence[Mapping]) -> str:
    return report.table(_columns(
        ("target", "target"), ("image", "original against"), ("rho_difference", "difference", 3),
        ("ci_low", "95 % from", 3), ("ci_high", "to", 3), ("p_permutation_holm", "p permutation, Holm", 4),
        ("p_paired_bootstrap_holm", "p bootstrap, Holm", 4), ("p_steiger", "Steiger", 4),
        ("p_wilcoxon_over_resamples", "as published", 4),
    ), [_shown(row) for row in rows])  # fmt: skip


def _columns(*given: tuple) -> list:
    return [report.Column(*one) for one in given]


def _shown(row: Mapping) -> dict:
    return without_nan({**row, "image": NAMES.get(row["image"], row["image"])})


def without_nan(row: Mapping) -> dict:
    return {key: None if isinstance(value, float) and value != value else value for key, value in row.items()}
