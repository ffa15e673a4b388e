"""A study whose subjects take milliseconds: the ledger, engine, linkage and tables are the real ones.

Run it as a program to have a run that can be killed:
    python light_study.py TABLE OUT WORKERS [SECONDS_A_STEP [SCHEDULER]]
"""

from __future__ import annotations

import os
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np

from RefaceRiskLib.study.faces import POINTS, field_grid
from RefaceRiskLib.study.run import run_study
from RefaceRiskLib.study.subject import Subject, process
from RefaceRiskLib.template import load_template
from RefaceRiskLib.volumes import Volume, save

METHODS = ("mri_deface", "quickshear")


@cache
def grid():
    return field_grid(load_template())


class LightSubject(Subject):
    """Every "head" is a ball of its own shape; a defacer cuts it, a model puts back a rougher ball."""

    def _prepare(self):
        time.sleep(float(os.environ.get("LIGHT_STUDY_SECONDS", "0")))
        self.shape = self.volume.intensities.mean() % 7.0

    def _radii(self, directions, rough=0.0):
        x, y, z = np.moveaxis(directions, -1, 0)
        own = 70 + 4 * np.sin(self.shape * 3 * x + y) + 3 * np.cos(self.shape * 5 * z - x)
        return own + rough * np.sin(9 * x + 4 * z)

    def _points(self, rough):
        rng = np.random.default_rng(3)
        directions = rng.normal(size=(POINTS, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return (directions * self._radii(directions, rough)[:, None] + self._middle()).astype(np.float32)

    def _middle(self):
        shape, affine = grid()
        return affine[:3, :3] @ (np.array(shape) / 2) + affine[:3, 3]

    def _save_array(self, name, array):
        path = self.ledger.faces(self.name) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}.{os.getpid()}.npy")
        np.save(temporary, array)
        os.replace(temporary, path)
        return path

    def _original(self):
        shape, affine = grid()
        every = 3  # the field at 9 mm, spread to the gallery's grid: quick to make
        places = np.stack(np.meshgrid(*[np.arange(0, n, every) for n in shape], indexing="ij"), axis=-1)
        offset = places @ affine[:3, :3].T + affine[:3, 3] - self._middle()
        distance = np.linalg.norm(offset, axis=-1)
        field = distance - self._radii(offset / np.maximum(distance, 1e-6)[..., None])
        for axis, n in enumerate(shape):
            field = np.repeat(field, every, axis=axis).take(range(n), axis=axis)
        return {
            "outputs": [
                self._save_array("gallery.npy", field.astype(np.float16)),
                self._save_array("original.npy", np.stack([self._points(0.0)] * 2)),
            ]
        }

    def _defaced(self, method):
        cut = METHODS.index(method) + 1
        voxels = self.volume.voxels.copy()
        voxels[: 2 * cut] = 0
        anat = self.ledger.out / self.name / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        path = anat / f"{self.name}_desc-{method.replace('_', '')}_T1w.nii.gz"
        outputs = [save(Volume(voxels, self.volume.affine), path)]
        rows = []
        for number, image in enumerate(("defaced", "dpm", "average")):
            mean = float(self.shape + cut + 0.1 * number)
            rows.append({"image": image, "region": "face", "mean_mm": mean, "median_mm": mean / 2, "p95_mm": 2 * mean,
                         "symmetric_mean_mm": mean, "seconds": 0.0})  # fmt: skip
            points = self._points(0.5 * (number + cut))
            outputs.append(self._save_array(f"{method}_{image}.npy", np.stack([points, points])))
        quality = {"verdict": "ok", "reason": "", "face_surface_removed": 0.9, "brain_voxels_touched": 0}
        return {"outputs": outputs, "rows": rows, "refused": "", "quality": quality}


def light(message):
    return process(message, LightSubject)


def cohort(folder: Path, count: int, seed: int = 0) -> Path:
    """A table of `count` tiny volumes."""
    rng = np.random.default_rng(seed)
    lines = ["participant_id\thead"]
    for number in range(count):
        voxels = rng.integers(0, 100, (8, 8, 8)).astype(np.int16)
        save(Volume(voxels, np.diag([2.0, 2.0, 2.0, 1.0])), folder / f"head{number:03d}.nii.gz")
        lines.append(f"sub-{number:03d}\thead{number:03d}.nii.gz")
    table = folder / "participants.tsv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def study(table, out, workers=0, **options):
    return run_study(table, out, methods=METHODS, models=("average",), workers=workers, task=light, **options)


if __name__ == "__main__":
    table, out, workers, *more = sys.argv[1:]
    os.environ["LIGHT_STUDY_SECONDS"] = more[0] if more else "0"
    scheduler = {"scheduler": more[1]} if len(more) > 1 else {"workers": int(workers)}
    import light_study  # by its name, so that the workers find what they are sent

    light_study.study(table, out, **({"workers": None} | scheduler))
