"""The study's figures: distances by defacer and image, and the match curves of the linkage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = {"defaced": "#7f7f7f", "dpm": "#d55e00", "average": "#0072b2", "linear": "#009e73", "remeshed": "#000000"}
NAMES = {"dpm": "diffusion", "average": "average face", "linear": "linear model", "remeshed": "originals, meshed anew"}


def distances_figure(rows: Sequence[Mapping], path: Path, region: str = "face") -> bool:
    """Box and points a defacer and image, on a logarithmic axis in mm; False where there is nothing to draw."""
    table: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for row in rows:
        if row["region"] == region:
            values = table.setdefault(row["defacer"], {}).setdefault(row["image"], [])
            values.append((row["seen_in_training"], row["mean_mm"]))
    if not table:
        return False
    from matplotlib.figure import Figure

    images = list(dict.fromkeys(image for by_image in table.values() for image in by_image))
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(images)
    rng = np.random.default_rng(0)
    for group, by_image in enumerate(table.values()):
        for number, image in enumerate(images):
            if image not in by_image:
                continue
            values = np.array([value for _, value in by_image[image]])
            unseen = np.array([seen != "yes" for seen, _ in by_image[image]])
            x = group + (number - (len(images) - 1) / 2) * width
            colour = COLOURS.get(image, "#cc79a7")
            axes.boxplot(values, positions=[x], widths=0.7 * width, showfliers=False, manage_ticks=False,
                         medianprops={"color": colour, "lw": 2}, boxprops={"color": colour},
                         whiskerprops={"color": colour}, capprops={"color": colour})  # fmt: skip
            jitter = x + rng.uniform(-0.22, 0.22, len(values)) * width
            axes.scatter(jitter[unseen], values[unseen], s=11, color=colour, alpha=0.75, lw=0)
            axes.scatter(jitter[~unseen], values[~unseen], s=11, facecolors="none", edgecolors=colour, lw=0.8)
    for image in images:
        axes.scatter([], [], color=COLOURS.get(image, "#cc79a7"), s=20, label=NAMES.get(image, image))
    if any(row["seen_in_training"] == "yes" for row in rows):
        axes.scatter([], [], facecolors="none", edgecolors="0.3", s=20, label="model trained on this head")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("mean distance to the true face [mm]")
    axes.set_xticks(range(len(table)), list(table))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, ncols=len(images) + 1, loc="lower left", bbox_to_anchor=(0, 1))
    _saved(figure, path)
    return True


def match_figure(curves: Mapping[str, Sequence[float]], path: Path) -> bool:
    """Share of heads whose own original is among the k nearest, by region; False where nothing was linked."""
    if not curves:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    told = {"face": "all of the face", "removed": "only what defacing took"}
    styles = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
    defacers = sorted({name.split("/")[0] for name in curves} - {"original"})
    originals = max(len(curve) for curve in curves.values())
    k = np.arange(1, originals + 1)
    for axes, region in zip(panels, told, strict=True):
        for name, curve in curves.items():
            defacer, image, where = name.split("/")
            if where == region:
                style = styles[defacers.index(defacer) % len(styles)] if defacer in defacers else "-"
                axes.plot(k, curve, ls=style, color=COLOURS.get(image, "#cc79a7"), lw=1.5)
        axes.plot(k, k / originals, color="0.6", lw=1)
        axes.text(originals, 0.97, "chance", color="0.5", ha="right", va="top", fontsize=8)
        axes.set(title=told[region], xlabel="among the k nearest originals", ylim=(0, 1.02), xlim=(1, originals))
        axes.grid(alpha=0.3)
    for image in dict.fromkeys(name.split("/")[1] for name in curves):
        panels[1].plot([], [], color=COLOURS.get(image, "#cc79a7"), label=NAMES.get(image, image))
    for defacer in defacers:
        panels[1].plot([], [], color="0.3", ls=styles[defacers.index(defacer) % len(styles)], label=defacer)
    panels[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    panels[0].set_ylabel("share of heads")
    _saved(figure, path)
    return True


def _saved(figure, path: Path) -> None:
    from ..volumes import written_beside

    with written_beside(path, ".png") as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
