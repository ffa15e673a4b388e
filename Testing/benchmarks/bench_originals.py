"""How well our methods agree with the originals that can be had from PyPI: Dice of the removed voxels, head by head.

    python Testing/benchmarks/bench_originals.py [HEAD_OR_FOLDER...] [--heads 10] [--margin-mm 5]

quickshear: the package itself, on the same brain mask, with the margin as voxels straight down; heads as RAS, where its
mistake about axes does not show. pydeface: its own average head is registered with ours, so that its own face mask is
carried to every head by the same affine as ours (the program itself would need FSL). The package is fetched by pip
without its dependencies, 8 MB, into the user's cache folder; nothing of it is installed.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import heads
import nibabel
import numpy as np

from RefaceRiskLib.defacing import METHODS, Head, prepare
from RefaceRiskLib.defacing.external import buffer_voxels
from RefaceRiskLib.registration import register
from RefaceRiskLib.template import load_template
from RefaceRiskLib.tissue import BRAIN_MARGIN_MM
from RefaceRiskLib.volumes import Volume, load, reorient, resample

PYDEFACE = "pydeface==2.1.0"
TARGETS = {"quickshear": 0.98, "pydeface": 0.90}


def original_quickshear(head: Head, margin_mm: float) -> np.ndarray:
    """What the package removes, (I, J, K) bool."""
    from quickshear import quickshear

    volume = head.volume
    everything = nibabel.Nifti1Image(np.ones(volume.shape, np.uint8), volume.affine)
    mask = head.brain_itself
    brain = nibabel.Nifti1Image(mask.astype(np.uint8), volume.affine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy deprecates what it calls
        kept = quickshear(everything, brain, buffer_voxels(mask, volume.affine, margin_mm + BRAIN_MARGIN_MM))
    return np.asarray(kept.dataobj) == 0


class OriginalPydeface:
    """The package's average head and face mask, and where they lie in our template."""

    def __init__(self, package: Path):
        self.mask = load(package / "data" / "facemask.nii.gz")  # 1 keeps, 0 removes
        registration = register(load(package / "data" / "mean_reg2mean.nii.gz"), load_template())
        print(f"pydeface's average head with our template: {registration.quality}", flush=True)
        self.from_template = registration.matrix

    def removed(self, head: Head) -> np.ndarray:
        """What its mask removes of a head, (I, J, K) bool."""
        volume = head.volume
        to_mask = self.from_template @ np.linalg.inv(head.registration.matrix)
        gone = 1 - self.mask.intensities
        return resample(gone, self.mask.affine, volume.shape, volume.affine, to_mask) > 0.5


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", type=Path, nargs="*", metavar="HEAD_OR_FOLDER")
    parser.add_argument("--heads", type=int, default=10, help="of each folder (default: %(default)s)")
    parser.add_argument("--margin-mm", type=float, default=5.0, help="of quickshear (default: %(default)s)")
    options = parser.parse_args()
    found: dict[str, list[float]] = {method: [] for method in TARGETS}
    pydeface = OriginalPydeface(heads.from_package(PYDEFACE, "pydeface"))
    print(f"{'head':28s}  quickshear  pydeface")
    for path in chosen(options.paths or [heads.folder("cohort_ixi_2mm")], options.heads):
        volume: Volume = reorient(load(path), "RAS")
        head = prepare(volume)
        ours = METHODS["quickshear"](head, margin_mm=options.margin_mm)
        found["quickshear"].append(dice(ours, original_quickshear(head, options.margin_mm)))
        found["pydeface"].append(dice(METHODS["pydeface"](head), pydeface.removed(head)))
        print(f"{path.name[:28]:28s}  {found['quickshear'][-1]:10.4f}  {found['pydeface'][-1]:8.4f}", flush=True)
    for method, values in found.items():
        told = f"lowest {min(values):.4f}, mean {np.mean(values):.4f} of {len(values)} heads"
        print(f"{method}: {told}; target {TARGETS[method]} for each")
    return int(any(min(values) < TARGETS[method] for method, values in found.items()))


def chosen(paths: list[Path], count: int) -> list[Path]:
    """Heads that were named, and the first of each folder, those with a full face where its table tells."""
    out = []
    for path in paths:
        out += [path] if path.is_file() else heads.with_faces(path)[:count]
    return out


if __name__ == "__main__":
    raise SystemExit(main())
