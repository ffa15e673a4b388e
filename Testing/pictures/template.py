"""Draw the template for its README: the average face from five sides, and its regions on three slices.

python Testing/pictures/template.py OUT.png
"""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from RefaceRiskLib.surface.extract import isosurface
from RefaceRiskLib.surface.render import render_views
from RefaceRiskLib.template import load_template

COLOURS = {
    "brain": "#ff6b6b",
    "removable": "#4dd0e1",
    "face": "#e573ff",
    "ears": "#9ccc65",
    "core": "#5c9dff",
    "surface": "#ffffff",
}


def main() -> int:
    template = load_template()
    views = render_views(isosurface(-template.skin_distance, template.affine, 0.0))
    figure = plt.figure(figsize=(15, 8), facecolor="black")
    for number, view in enumerate(views):
        axis = figure.add_axes([number / 5, 0.58, 0.2, 0.4])
        axis.imshow(view)
        axis.axis("off")
    x, y, z = (n // 2 for n in template.shape)
    for number, cut in enumerate(((x, ..., ...), (x - 18, ..., ...), (..., y + 36, ...), (..., ..., z - 18))):
        index = tuple(slice(None) if part is ... else part for part in cut)
        axis = figure.add_axes([number / 4 + 0.005, 0.08, 0.24, 0.48])
        axis.imshow(template.image[index].T, origin="lower", cmap="gray", vmin=0, vmax=1.3)
        for name, colour in COLOURS.items():
            mask = template.region(name)[index].T
            if mask.any():
                axis.contour(mask, [0.5], colors=colour, linewidths=1.2)
        axis.axis("off")
    names = {"removable": "facial tissue", "face": "face mask", "core": "registration core", "surface": "face surface"}
    for number, (name, colour) in enumerate(COLOURS.items()):
        figure.text(0.06 + 0.155 * number, 0.03, names.get(name, name), color=colour, fontsize=13)
    figure.savefig(sys.argv[1], dpi=80, facecolor="black")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
