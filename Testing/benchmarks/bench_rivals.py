"""Registration beside SimpleITK's own pyramid, ANTs and elastix: accuracy on a known affine, processor time.

    python Testing/benchmarks/bench_rivals.py [--cohort DIR] [--subjects N]

Each way registers the template with a head and with a copy of it that was moved by a known affine and disturbed by
gamma, bias field and noise. What it finds for the copy should be what it finds for the head, moved: the mean
difference over the head (mm) is its error, whatever it thinks of the template. Every way starts from the images alone,
with its own settings for an affine; antspyx (which may ask for another NumPy than the rest) and itk-elastix are left
out where they are not installed.
Processor time of all threads, on the images in memory; files are read and written outside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import heads
import numpy as np
import SimpleITK as sitk
from bench_registration import disturbed, known_affine
from bench_speed import plain_affine

from RefaceRiskLib.geometry import resample, transform_points
from RefaceRiskLib.registration import register
from RefaceRiskLib.template import Template, load_template
from RefaceRiskLib.volumes import Volume, load, save

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
Found = tuple[np.ndarray, float]  # template RAS mm to head RAS mm (4, 4), and processor seconds


def timed(work: Callable[[], object]) -> tuple[object, float]:
    begun = time.process_time()
    return work(), time.process_time() - begun


def as_ras(linear: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """ITK's LPS mapping as a RAS matrix (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, shift
    return LPS @ matrix @ LPS


def of_itk(transform: sitk.Transform) -> np.ndarray:
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(axis))) - origin for axis in np.eye(3)]
    return as_ras(np.stack(columns, axis=1), origin)


def ours(head: Volume, template: Template, folder: Path) -> Found:
    found, seconds = timed(lambda: register(head, template))
    return found.matrix, seconds


def simpleitk(head: Volume, template: Template, folder: Path) -> Found:
    found, seconds = timed(lambda: plain_affine(head))
    return of_itk(found), seconds


def ants(head: Volume, template: Template, folder: Path) -> Found:
    import ants

    fixed, moving = (ants.image_read(str(path)) for path in files(head, template, folder))
    prefix = str(folder / "ants_")
    found, seconds = timed(lambda: ants.registration(fixed, moving, "Affine", outprefix=prefix, random_seed=1))
    return of_itk(sitk.ReadTransform(found["fwdtransforms"][0])), seconds


def elastix(head: Volume, template: Template, folder: Path) -> Found:
    import itk

    fixed, moving = (itk.imread(str(path), itk.F) for path in files(head, template, folder))
    settings = itk.ParameterObject.New()
    settings.AddParameterMap(settings.GetDefaultParameterMap("affine"))
    (_, found), seconds = timed(
        lambda: itk.elastix_registration_method(fixed, moving, parameter_object=settings, log_to_console=False)
    )
    told = found.GetParameterMap(0)
    numbers = np.array([float(number) for number in told["TransformParameters"]])
    centre = np.array([float(number) for number in told["CenterOfRotationPoint"]])
    linear = numbers[:9].reshape(3, 3)
    return as_ras(linear, numbers[9:] + centre - linear @ centre), seconds


WAYS = {"this project": ours, "SimpleITK pyramid": simpleitk, "antspyx Affine": ants, "itk-elastix affine": elastix}
NEEDS = {"antspyx Affine": "ants", "itk-elastix affine": "itk"}


def moved_copy(head: Volume) -> Volume:
    """The head moved by the known affine and disturbed, drawn on a grid without shear, which ANTs does not read."""
    moved = disturbed(head, known_affine())
    corners = transform_points(moved.affine, list(product(*[(0, n - 1) for n in moved.shape])))
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = corners.min(axis=0)
    shape = tuple(np.ceil(np.ptp(corners, axis=0) / 2).astype(int) + 1)
    return Volume(resample(moved.voxels, moved.affine, shape, affine, dtype=np.int16), affine)


def files(head: Volume, template: Template, folder: Path) -> tuple[Path, Path]:
    fixed = save(Volume(template.image, template.affine), folder / "fixed.nii")
    return fixed, save(head, folder / "moving.nii")


def error_mm(before: np.ndarray, after: np.ndarray, template: Template) -> float:
    """Mean distance over the head between what was found for the copy and the known affine after the first result."""
    points = template.points[template.head][::50]
    expected, found = transform_points(known_affine() @ before, points), transform_points(after, points)
    return float(np.linalg.norm(found - expected, axis=1).mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohort", type=Path, default=None, help="folder of whole heads")
    parser.add_argument("--subjects", type=int, default=3)
    options = parser.parse_args()
    paths = sorted((options.cohort or heads.folder("cohort_ixi_2mm")).glob("*_T1w.nii.gz"))[: options.subjects]
    template = load_template()
    ways = [way for way in WAYS if way not in NEEDS or find_spec(NEEDS[way])]
    errors, seconds = {way: [] for way in ways}, {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            head = load(path)
            for way in ways:
                (before, first), (after, second) = (
                    WAYS[way](volume, template, Path(folder)) for volume in (head, moved_copy(head))
                )
                errors[way].append(error_mm(before, after, template))
                seconds[way] += [first, second]
    print(f"{len(paths)} heads       error mm: median  largest     cpu s  to SimpleITK")
    plain = np.mean(seconds["SimpleITK pyramid"])
    for way in ways:
        middle, worst, cost = np.median(errors[way]), np.max(errors[way]), np.mean(seconds[way])
        print(f"{way:20s} {middle:17.3f} {worst:8.3f} {cost:9.1f} {cost / plain:12.2f}")
    return 0 if np.max(errors["this project"]) <= 0.4 else 1


if __name__ == "__main__":
    raise SystemExit(main())
