"""Every defacer on every head: brain voxels touched, voxels changed outside the mask, face surface removed, verdict.

    python Testing/benchmarks/bench_defacing.py [HEAD_OR_FOLDER...] [--methods mri_deface pydeface]

Label heads (``training_seg_NN.nii.gz``) are turned into synthetic T1w images at 2 mm; their labels give the true brain.
For other heads the brain is the carried mask.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import heads
import numpy as np

from RefaceRiskLib.defacing import METHODS, deface, prepare
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.synthesis import is_brain, t1w_from_labels
from RefaceRiskLib.volumes import Volume, load, save


def read(path: Path, number: int) -> tuple[Volume, np.ndarray | None]:
    """The head, and its true brain where labels tell."""
    volume = load(path)
    if "seg_" not in path.name:
        return volume, None
    head = t1w_from_labels(volume, seed=number, spacing_mm=2.0)
    brain = is_brain(np.rint(volume.intensities).astype(np.int32))
    return head, brain.reshape(*(n for size in head.shape for n in (size, 2))).any(axis=(1, 3, 5))


def changed_outside(head: Volume, result: Volume, removed: np.ndarray) -> int:
    """Voxels outside the mask that differ after writing both to disk and reading them again."""
    with tempfile.TemporaryDirectory() as folder:
        before = load(save(head, Path(folder) / "before.nii.gz"))
        after = load(save(result, Path(folder) / "after.nii.gz"))
    return int((before.voxels[~removed] != after.voxels[~removed]).sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("heads", type=Path, nargs="*")
    parser.add_argument("--methods", nargs="+", default=["mri_deface", "pydeface"], choices=sorted(METHODS))
    options = parser.parse_args()
    given_heads = options.heads or [heads.folder("cohort_ixi_2mm"), heads.folder("label_heads_1mm")]
    paths = [p for given in given_heads for p in (sorted(given.glob("*.nii.gz")) if given.is_dir() else [given])]
    print(f"{'head':28s} {'method':13s} brain_touched  changed_outside  face_removed  verdict")
    touched = changed = 0
    verdicts: dict[str, list[str]] = {method: [] for method in options.methods}
    for number, path in enumerate(paths):
        volume, truth = read(path, number)
        try:
            head = prepare(volume)
            for method in options.methods:
                result = deface(volume, method, head=head, force=True)
                brain = int((result.removed & (result.brain if truth is None else truth)).sum())
                outside = changed_outside(volume, result.volume, result.removed)
                touched, changed = touched + brain, changed + outside
                quality = result.quality
                verdicts[method].append(quality.verdict)
                print(
                    f"{path.name[:28]:28s} {method:13s} {brain:13d} {outside:16d} {quality.face_surface_removed:13.2f}"
                    f"  {quality.verdict} {quality.reason}",
                    flush=True,
                )
        except RefaceRiskError as error:
            print(f"{path.name[:28]:28s} refused: {error}", flush=True)
    for method, found in verdicts.items():
        counts = {verdict: found.count(verdict) for verdict in ("ok", "check", "failed")}
        print(f"{method}: {len(found)} heads, {counts}")
    print(f"brain voxels touched: {touched}; voxels changed outside the masks: {changed}")
    return 1 if touched or changed else 0


if __name__ == "__main__":
    raise SystemExit(main())
