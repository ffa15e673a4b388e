"""Stand-ins for the parts that take long (defacers, models, surfaces), for tests of what calls them.

The head is an ellipsoid; "defacing" empties its front, "refacing" fills it with one grey value.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np

from RefaceRiskLib import volumes
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.progress import report

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
COLUMNS = ("image", "region", "mean_mm", "median_mm", "p95_mm", "max_mm", "symmetric_mean_mm")
METHODS = {"mri_deface": None, "pydeface": None, "average_face": None}


def write_head(path, grey: int = 100):
    """An ellipsoid of 140 x 180 x 150 mm in dim noise, int16 at 4 mm."""
    grid = np.stack(np.meshgrid(*[np.arange(n) - n / 2 for n in (44, 54, 46)], indexing="ij"), -1) * 4.0
    inside = ((grid / [70, 90, 75]) ** 2).sum(-1) < 1
    noise = np.random.default_rng(0).integers(0, 5, inside.shape)
    voxels = np.where(inside, grey, 0) + noise
    return volumes.save(volumes.Volume(voxels.astype(np.int16), AFFINE), path)


@dataclass(frozen=True)
class Quality:
    verdict: str = "ok"
    reason: str = ""
    brain_voxels_touched: int = 0
    face_surface_removed: float = 0.62
    overlap: float = 0.95


def deface(head, method, engine="builtin", force=False, on_progress=None, **options):
    if method not in METHODS or engine != "builtin":
        raise RefaceRiskError(f"unknown method {method} or engine {engine}", "choose another")
    for step in range(4):
        report(on_progress, method, step, 4)
    removed = np.zeros(head.shape, bool)
    removed[:, 40:] = True
    fit = SimpleNamespace(matrix=np.eye(4), quality=Quality())
    brain = np.zeros(head.shape, bool)
    volume = head.replaced(removed, np.zeros(head.shape))
    found = {"volume": volume, "removed": removed, "brain": brain, "registration": fit, "quality": Quality()}
    return SimpleNamespace(**found, options={name: value for name, value in options.items() if name != "mask"})


class Refacer:
    """Fills the removed region with 60 + seed; draws `samples` of them, one grey value apart."""

    weights = {"coarse": "ab" * 32}  # noqa: RUF012

    @classmethod
    def load(cls, name):
        if name not in ("reference", "linear", "average"):
            raise RefaceRiskError(f"there is no model {name}", "choose reference")
        return cls()

    def reface(
        self, defaced, removed=None, samples=1, steps=None, seed=0, device="auto", registration=None, on_progress=None
    ):
        report(on_progress, "coarse", 0, 1, preview=np.zeros((2, 2, 2), np.float32))
        removed = defaced.voxels == 0 if removed is None else removed
        drawn = [defaced.replaced(removed, np.full(defaced.shape, 60.0 + seed + n)) for n in range(samples)]
        spread = None if samples == 1 else np.ones(defaced.shape, np.float32)
        fit = registration or SimpleNamespace(matrix=np.eye(4), quality=Quality())
        return SimpleNamespace(volume=drawn[0], samples=drawn, uncertainty=spread, removed=removed, registration=fit)


def measure(original, others, template=None, registration=None, removed=None, on_progress=None):
    """The mean is the mean absolute difference in grey, so that other images get other numbers."""

    def one(image):
        mean = float(np.abs(image.intensities - original.intensities).mean())
        return SimpleNamespace(
            mean=mean,
            median=mean / 2,
            p95=2 * mean,
            max=3 * mean,
            symmetric_mean=mean,
            per_vertex=None,
            region=None,
        )

    found = {
        name: {"face": one(image), "removed": one(image) if removed is not None else None}
        for name, image in others.items()
    }
    return Measured(found)


class Measured(dict):
    original = None

    @property
    def surfaces(self):
        return dict.fromkeys(self)

    def rows(self):
        """As the real one: one row an image and region that was measured."""
        return [
            {"image": image, "region": region}
            | {f"{name}_mm": getattr(found, name) for name in ("mean", "median", "p95", "max", "symmetric_mean")}
            for image, regions in self.items()
            for region, found in regions.items()
            if found is not None
        ]


def faces_figure(rows, path, heat=None, frame=None):
    labels = [row.label + " (synthetic)" * row.synthetic for row in rows] + [f"heat of {row.label}" for row in heat]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + "|".join(labels).encode())


def install(monkeypatch) -> None:
    """Puts the stand-ins where `jobs` looks for the real parts."""
    row = SimpleNamespace
    parts = {
        "defacing": {"METHODS": METHODS, "PROGRAMS": {}, "deface": deface},
        "diffusion.cascade": {"Refacer": Refacer},
        "surface.measure": {"measure": measure, "COLUMNS": COLUMNS},
        "surface.render": {
            "faces_figure": faces_figure,
            "FaceRow": lambda label, surface, text="", synthetic=False: row(label=label, synthetic=synthetic),
            "HeatRow": lambda label, surface, per_vertex, region: row(label=label),
        },
        "registration": {"register": lambda head, template, **_: row(matrix=np.eye(4), quality=Quality())},
        "template": {"load_template": lambda: None},
    }
    for name, contents in parts.items():
        module = ModuleType(f"RefaceRiskLib.{name}")
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
