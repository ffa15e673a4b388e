"""A measured slice as a picture: the CT, and what was taken for muscle, fat and bone in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..volumes import Volume, reorient
from .ct import Radiodensity

WINDOW_HU = (-160.0, 240.0)
_COLOURS = (
    "#d1495b",
    "#2e86ab",
    "#edae49",
    "#66a182",
    "#8d6a9f",
    "#c97b63",
    "#4f6d7a",
    "#b5b682",
    "#7d4e57",
    "#5c946e",
)


def draw_muscles(
    ct: Volume,
    masks: Mapping[str, np.ndarray],
    rows: Sequence[Radiodensity],
    path: str | Path,
    level: int | None = None,
) -> None:
    """Draw an axial slice with coloured masks and their figures into a PNG.

    masks : name -> (I, J, K) bool on the grid of `ct`; level : slice of the upright volume, default where the masks are
    largest. Front up, the person's right on the left, as radiologists look.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    upright = reorient(ct, "RAS")
    shown = {
        name: reorient(ct.with_intensities(mask, np.uint8), "RAS").voxels > 0
        for name, mask in masks.items()
        if mask.any()
    }
    if level is None:
        level = int(np.argmax(sum(mask.sum(axis=(0, 1)) for mask in shown.values())))
    hu, (x, y, _) = upright.intensities[:, :, level], upright.spacing
    picture_height = 8 * hu.shape[1] * y / (hu.shape[0] * x)
    below = 0.3 + 0.2 * (len(shown) / 3 + len(rows) + 1)
    figure = Figure(figsize=(8, picture_height + below), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, below / (picture_height + below), 1, picture_height / (picture_height + below)))
    kept = {"origin": "lower", "aspect": y / x, "interpolation": "nearest"}
    axes.imshow(hu[::-1].T, cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1], **kept)
    for mask, colour in zip(shown.values(), _colours(len(shown)), strict=True):
        tint = np.zeros((*mask.shape[:2], 4))
        tint[mask[:, :, level]] = colour
        axes.imshow(tint[::-1].transpose(1, 0, 2), **kept)
    axes.set_axis_off()
    handles = [Patch(color=colour, label=name) for name, colour in zip(shown, _colours(len(shown)), strict=True)]
    told = [
        f"{row.site or row.label}: mean {row.mean_hu:.1f}, median {row.median_hu:.1f}, SD {row.sd_hu:.1f} HU, "
        f"{row.area_mm2 / 100:.1f} cm², low attenuation {row.low_attenuation_share:.0%}"
        for row in rows
    ]
    top = below / (picture_height + below)
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, top), ncols=4, frameon=False, fontsize=8.5)
    figure.text(0.015, 0.1 / (picture_height + below), "\n".join(told), fontsize=8.5, va="bottom")
    figure.savefig(path)


def _colours(count: int) -> list[tuple[float, float, float, float]]:
    from matplotlib.colors import to_rgba

    return [to_rgba(_COLOURS[n % len(_COLOURS)], 0.45) for n in range(count)]
