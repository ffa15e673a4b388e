"""Brain masks against label truth, on heads painted in six contrasts from label heads that nothing was trained on.

    python Testing/benchmarks/bench_brain.py [--heads 05 14 03 20] [--contrasts T1w CT] [--weights FOLDER]

The truth is every brain label and the fluid around the brain (FreeSurfer labels 1 to 499, holes filled, without the
spinal canal). Each head has its own voxel size (1 to 3 mm), storage orientation, tilt, bias field, gamma and noise.

registration   the template's brain, carried by a registration on intensities alone
network        what the network finds
missed         voxels of brain tissue (no fluid) outside the mask that defacers keep off (both, + 3 mm)
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import heads
import numpy as np

from RefaceRiskLib.brainmask.contrasts import CONTRASTS, head_from_labels
from RefaceRiskLib.brainmask.inference import find_brain, load_network
from RefaceRiskLib.registration import register
from RefaceRiskLib.template import load_template
from RefaceRiskLib.tissue import brain_mask
from RefaceRiskLib.volumes import load

HELD_OUT = ("05", "14", "03", "20")
SPACINGS_MM = ((1, 1, 1), (2, 2, 2), (1, 1, 3), (1.5, 1.5, 1.5), (0.9, 3, 0.9), (1.2, 1.2, 2))
STORED = ("RAS", "LPS", "PIR", "LIA", "ASL", "RPI")


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", nargs="+", default=HELD_OUT, help="numbers of label heads (default: %(default)s)")
    parser.add_argument("--contrasts", nargs="+", default=CONTRASTS, choices=CONTRASTS)
    parser.add_argument("--weights", type=Path, help="another model folder than the one that comes along")
    parser.add_argument("--network-only", action="store_true", help="no registrations")
    options = parser.parse_args()
    folder, template, network = heads.folder("label_heads_1mm"), load_template(), load_network(options.weights)
    columns = ("network",) if options.network_only else ("registration", "network")
    print(f"{'head':5s}{'contrast':9s}{'voxels':20s}" + "".join(f"{c:>13s}" for c in columns) + "  missed  seconds")
    found_dice: dict[str, list[float]] = {column: [] for column in columns}
    missed_in_all = 0
    for row, name in enumerate(options.heads):
        labels = load(folder / f"training_seg_{name}.nii.gz")
        for contrast in options.contrasts:
            case = CONTRASTS.index(contrast) + row
            spacing = SPACINGS_MM[case % 6]
            head = head_from_labels(labels, contrast, 10 * row + case, spacing, axcodes=STORED[(case + row) % 6])
            begun = time.monotonic()
            found = find_brain(head.volume, network)
            seconds = time.monotonic() - begun
            masks = {"network": found.on(head.volume) <= 0}
            missed = found.on(head.volume) > 3
            if not options.network_only:
                alone = register(head.volume, template, deformable=True)
                masks["registration"] = brain_mask(head.volume, template, alone, "registration", 0)
                missed = ~brain_mask(head.volume, template, alone, "auto", found=found)
            missed = int((missed & head.tissue).sum())
            missed_in_all += missed
            values = [dice(masks[column], head.brain) for column in columns]
            for column, value in zip(columns, values, strict=True):
                found_dice[column].append(value)
            size = " x ".join(f"{mm:g}" for mm in spacing)
            figures = "".join(f"{value:13.4f}" for value in values)
            print(f"{name:5s}{contrast:9s}{size:20s}{figures}{missed:8d}{seconds:9.1f}", flush=True)
    for word, figure in (("mean", np.mean), ("least", np.min)):
        print(f"{word:34s}" + "".join(f"{figure(found_dice[column]):13.4f}" for column in columns))
    print(f"brain tissue missed by the mask with its margin: {missed_in_all} voxels")
    good = np.mean(found_dice["network"]) >= 0.955 and np.min(found_dice["network"]) >= 0.93
    return 0 if good and not missed_in_all else 1


if __name__ == "__main__":
    raise SystemExit(main())
