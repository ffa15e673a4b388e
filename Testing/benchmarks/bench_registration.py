"""Registration: a known affine recovered, and every head of a cohort registered in several orientations.

    python Testing/benchmarks/bench_registration.py [--cohort DIR] [--subjects N]

Prints the mean and largest error over the head (mm) and CPU seconds of the known affine, then the share of volumes
whose registration is ``ok``: each head as it is and in six random orientations (axes permuted and mirrored together
with the affine, tilted up to 30 degrees).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import heads
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from RefaceRiskLib.registration import register
from RefaceRiskLib.template import load_template
from RefaceRiskLib.volumes import Volume, load, reorient

ANGLES, SCALES, SHIFT_MM = (12.0, -6.0, 9.0), (0.94, 1.02, 1.08), (11.0, -11.0, 11.0)


def known_affine() -> np.ndarray:
    """RAS to RAS: 12/-6/9 degrees, scales 0.94-1.08, shear 0.05, shift 19 mm."""
    shear = np.eye(3)
    shear[0, 1], shear[1, 2] = 0.05, -0.03
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", ANGLES, degrees=True).as_matrix() @ shear @ np.diag(SCALES)
    matrix[:3, 3] = SHIFT_MM
    return matrix


def disturbed(head: Volume, matrix: np.ndarray, seed: int = 0) -> Volume:
    """The head moved by ``matrix`` about its centre, with gamma, bias field and noise."""
    rng = np.random.default_rng(seed)
    image = head.intensities / np.percentile(head.intensities, 99)
    image = np.clip(image, 0, None) ** 0.8
    bias = ndimage.zoom(rng.standard_normal((4, 4, 4)), np.array(image.shape) / 4, order=3)
    image = image * np.exp(0.2 * bias / bias.std()) + 0.02 * rng.standard_normal(image.shape)
    return Volume(np.clip(1000 * image, 0, 32000).astype(np.int16), matrix @ head.affine)


def recover(head: Volume, template) -> dict[str, float]:
    """Register a head and its disturbed copy; the difference of the two results against the known affine."""
    before = register(head, template).matrix
    moved = disturbed(head, known_affine())
    begun = time.process_time()
    after = register(moved, template).matrix
    seconds = time.process_time() - begun
    points = template.points[template.head][::50]
    expected = (known_affine() @ before)[:3, :3] @ points.T + (known_affine() @ before)[:3, 3:]
    error = np.linalg.norm(after[:3, :3] @ points.T + after[:3, 3:] - expected, axis=0)
    start = np.linalg.norm(before[:3, :3] @ points.T + before[:3, 3:] - expected, axis=0)
    return {"start_mm": start.mean(), "mean_mm": error.mean(), "max_mm": error.max(), "cpu_s": seconds}


def turned(head: Volume, rng: np.random.Generator) -> tuple[Volume, np.ndarray]:
    """The head stored in a random orientation and tilted by up to 30 degrees about a random axis, and that tilt."""
    letters = rng.permutation(["LR", "PA", "IS"])
    stored = reorient(head, "".join(pair[rng.integers(2)] for pair in letters))
    axis = rng.standard_normal(3)
    tilt = np.eye(4)
    tilt[:3, :3] = Rotation.from_rotvec(np.radians(rng.uniform(5, 30)) * axis / np.linalg.norm(axis)).as_matrix()
    return Volume(stored.voxels, tilt @ stored.affine), tilt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohort", type=Path, default=None, help="folder of whole heads")
    parser.add_argument("--subjects", type=int, default=None)
    options = parser.parse_args()
    cohort = options.cohort or heads.folder("cohort_ixi_2mm")
    template = load_template()
    paths = sorted(cohort.glob("*_T1w.nii.gz"))[: options.subjects]
    print("known affine    start_mm  mean_mm  max_mm  cpu_s")
    for path in paths[:3]:
        row = recover(load(path), template)
        print(
            f"{path.name[:10]:14s} {row['start_mm']:9.2f} {row['mean_mm']:8.3f} {row['max_mm']:7.3f}"
            f" {row['cpu_s']:6.1f}"
        )
    rng = np.random.default_rng(0)
    verdicts, drift = [], []
    for path in paths:
        head = load(path)
        base = register(head, template)
        verdicts.append(base.quality.verdict)
        for _ in range(6):
            volume, tilt = turned(head, rng)
            result = register(volume, template)
            verdicts.append(result.quality.verdict)
            points = template.points[template.head][::200]
            expected = (tilt @ base.matrix)[:3, :3] @ points.T + (tilt @ base.matrix)[:3, 3:]
            drift.append(
                np.linalg.norm(result.matrix[:3, :3] @ points.T + result.matrix[:3, 3:] - expected, axis=0).mean()
            )
        print(f"{path.name[:10]} {' '.join(verdicts[-7:])}  mean drift {np.mean(drift[-6:]):.2f} mm", flush=True)
    good = sum(verdict == "ok" for verdict in verdicts)
    print(
        f"ok: {good} of {len(verdicts)} ({100 * good / len(verdicts):.1f} %);"
        f" drift over orientations {np.mean(drift):.2f} mm"
    )
    return 0 if good == len(verdicts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
