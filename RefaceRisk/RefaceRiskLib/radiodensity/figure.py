"""The paper's second figure from any result table: one panel a target, one column of bootstrap dots an image type.

Beside the paper's stars, which come from a test over resamples, stands the p of the valid test under each column.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

NAMES = {
    "original": "original",
    "fsl_deface": "FSL_deface",
    "mri_deface": "MRI_Deface",
    "pydeface": "Pydeface",
    "quickshear": "Quickshear",
    "skull_strip": "skull-stripped",
    "refaced": "refaced (diffusion)",
    "average_face": "average face",
}
_COLOURS = ("#3b6fb6", "#d98032", "#4d9a5b", "#b8433f", "#7d63a8", "#8a6650", "#c26fa6", "#7b8087", "#a9a432")
_STARS = ((0.0001, "****"), (0.001, "***"), (0.01, "**"), (0.05, "*"))


def stars(p: float) -> str:
    """Stars of a p, "n.s." from 0.05 on, nothing for nan."""
    if not np.isfinite(p):
        return ""
    return next((mark for limit, mark in _STARS if p < limit), "n.s.")


def draw(
    correlations: Sequence[Mapping],
    comparisons: Sequence[Mapping],
    drawn: Mapping[tuple[str, str], np.ndarray],
    paths: Sequence[str | Path],
    caption: str = "",
) -> None:
    """Draw rows of `statistics.analyse` (all targets together) into every file of `paths` (.png, .svg, .pdf).

    drawn : (target, image) -> rho (B,) of the resamples; without it (a table of a paper) means and intervals are drawn
    alone. Brackets: Wilcoxon over resamples, as in the paper. Below each image: p of the valid test against `original`,
    corrected by Holm: of the permutation where it was run, else of the paired bootstrap.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    targets = list(dict.fromkeys(row["target"] for row in correlations))
    most = max(sum(row["target"] == target for row in correlations) for target in targets)
    figure = Figure(figsize=(max(6.5, 0.78 * most * len(targets) + 1.2), 5.9), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
    for axes, target in zip(panels, targets, strict=True):
        rows = [row for row in correlations if row["target"] == target]
        against = {row["image"]: row for row in comparisons if row["target"] == target}
        _panel(axes, rows, against, drawn)
        axes.set_title(f"{target.removeprefix('hu_')} (n = {rows[0]['n']})", fontsize=11)
    panels[0].set_yticks([tick for tick in panels[0].get_yticks() if -1 <= tick <= 1])
    panels[0].set_ylabel("Spearman's ρ, prediction and measurement", fontsize=10)
    if caption:
        width = int(figure.get_figwidth() * 17)
        lines = [line for part in caption.split("\n") for line in textwrap.wrap(part, width)]
        figure.supxlabel("\n".join(lines), fontsize=7.5, color="#444444")
    with rc_context({"svg.hashsalt": "muscle"}):  # the same names within the file every time
        for path in paths:
            figure.savefig(path, metadata={"Date": None} if Path(path).suffix == ".svg" else None)


def _panel(axes, rows: Sequence[Mapping], against: Mapping[str, Mapping], drawn: Mapping) -> None:
    rng = np.random.default_rng(0)
    top = max(row["ci_high"] for row in rows)
    for place, row in enumerate(rows):
        dots = drawn.get((row["target"], row["image"]))
        if dots is not None:
            top = max(top, float(np.nanmax(dots)))
            # Wider where there are more: the cloud shows the distribution.
            density = np.interp(dots, *_density(dots))
            axes.scatter(
                place + 0.36 * density * rng.uniform(-1, 1, len(dots)), dots, s=2.0, alpha=0.35, linewidths=0,
                color=_COLOURS[place % len(_COLOURS)], rasterized=True,
            )  # fmt: skip
        mean = row["bootstrap_mean"]
        axes.errorbar(
            place, mean, [[mean - row["ci_low"]], [row["ci_high"] - mean]], fmt="o", color="black", markersize=4.5,
            capsize=3, linewidth=1.3, zorder=3,
        )  # fmt: skip
    axes.axhline(0, color="#999999", linewidth=0.8, zorder=0)
    compared = [place for place, row in enumerate(rows) if row["image"] in against]
    first = next((n for n, row in enumerate(rows) if compared and row["image"] == _reference(against)), 0)
    for level, place in enumerate(compared):
        height = top + 0.05 + 0.075 * level
        axes.plot([first, first, place, place], [height - 0.012, height, height, height - 0.012], color="black", lw=0.8)
        p = against[rows[place]["image"]]["p_wilcoxon_over_resamples"]
        axes.text((first + place) / 2, height - 0.004, stars(p), ha="center", va="bottom", fontsize=7)
    labels = [f"{NAMES.get(row['image'], row['image'])}{_valid(against.get(row['image']))}" for row in rows]
    axes.set_xticks(range(len(rows)), labels, rotation=55, ha="right", rotation_mode="anchor", fontsize=8.5)
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)


def _density(dots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts, edges = np.histogram(dots[np.isfinite(dots)], bins=30)
    return (edges[:-1] + edges[1:]) / 2, counts / max(counts.max(), 1)


def _reference(against: Mapping[str, Mapping]) -> str:
    return next(iter(against.values()))["against"]


def _valid(row: Mapping | None) -> str:
    """The valid test's p, for the label of a column."""
    if row is None:
        return ""
    p = row.get("p_permutation_holm", np.nan)
    p = row.get("p_paired_bootstrap_holm", np.nan) if not np.isfinite(p) else p
    if not np.isfinite(p):
        return ""
    return "\np < 0.001" if p < 0.001 else f"\np = {p:.3f}" if p < 0.1 else f"\np = {p:.2f}"
