"""Build the average head from a cohort: groupwise affine, then deformable averaging with shape correction.

    python -m RefaceRiskLib.template build --cohort DIR --labels DIR --out Resources/Template

``--cohort`` holds whole-head T1w volumes and a ``participants.tsv`` whose ``face`` column says ``full`` for heads
that may shape the average face. ``--labels`` holds label heads, from which brain, bone and eyes are voted.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.linalg import expm, logm, sqrtm

from . import __version__
from .progress import OnProgress, report, terminal_bar
from .registration import Registration, deform, inverse_displacement, polish, pull, register, working_image
from .surface.extract import extract_skin, signed_distance_grid
from .synthesis import BONE, EYES, MARROW, is_brain, t1w_from_labels
from .template import REGIONS, Template, distance_map
from .tissue import head_mask, largest_component
from .volumes import Volume, load

SHAPE = (96, 128, 128)
SPACING = 2.0
DISTANCE_LIMIT = 40.0
# Held out of everything that is learnt or averaged: validation subjects and demonstration heads.
HELD_OUT = ("IXI213", "IXI274", "IXI353", "IXI452", "IXI508", "IXI606", "seg_05", "seg_14", "MyConnectome")
FULL_LABEL_HEADS = ("02", "05", "06", "08", "10", "11", "12", "14", "15")
FLIP = np.diag([-1.0, 1.0, 1.0, 1.0])


@dataclass
class Subject:
    """One head on a 2 mm grid with its signed distance to the skin (mm, negative inside)."""

    name: str
    image: np.ndarray
    affine: np.ndarray
    skin_distance: np.ndarray
    real: bool
    labels: Volume | None = None
    registration: Registration | None = None


def read_subject(name: str, head: Volume, labels: Volume | None = None) -> Subject:
    image, affine = working_image(head, SPACING)
    distance = signed_distance_grid(extract_skin(head), image.shape, affine, DISTANCE_LIMIT)
    return Subject(name, image, affine, distance, labels is None, labels)


def read_cohort(folder: Path, on_progress: OnProgress | None = None) -> list[Subject]:
    """Whole-head volumes of the cohort that show a full face and are not held out."""
    with open(folder / "participants.tsv", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream, delimiter="\t") if row["face"] == "full"]
    rows = [row for row in rows if not any(name in row["participant_id"] for name in HELD_OUT)]
    subjects = []
    for number, row in enumerate(rows):
        report(on_progress, "read cohort", number, len(rows), row["participant_id"])
        subjects.append(read_subject(row["participant_id"], load(folder / f"{row['participant_id']}_T1w.nii.gz")))
    return subjects


def read_label_heads(folder: Path, on_progress: OnProgress | None = None) -> list[Subject]:
    """Label heads with a full face, as synthetic T1w images."""
    subjects = []
    for number, name in enumerate(FULL_LABEL_HEADS):
        if f"seg_{name}" in HELD_OUT:
            continue
        report(on_progress, "read label heads", number, len(FULL_LABEL_HEADS), name)
        labels = load(folder / f"training_seg_{name}.nii.gz")
        subjects.append(read_subject(f"label-{name}", t1w_from_labels(labels, seed=number, spacing_mm=SPACING), labels))
    return subjects


# --- groupwise averaging ------------------------------------------------------------------------------------------


def canonical_affine() -> np.ndarray:
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = -SPACING * (np.array(SHAPE) - 1) / 2
    return affine


def first_template(reference: Subject) -> Template:
    """The reference head itself, moved so that its brain lies a little above the middle of the grid."""
    inside = np.argwhere(head_mask(reference.image, SPACING)) * SPACING + reference.affine[:3, 3]
    crown = np.percentile(inside[:, 2], 99.9)
    upper = inside[inside[:, 2] > crown - 120]
    middle = (np.percentile(upper, 1, axis=0) + np.percentile(upper, 99, axis=0)) / 2
    matrix = np.eye(4)
    matrix[:3, 3] = [middle[0], middle[1] + 6, crown - 110]
    return average([replace(reference, registration=Registration(matrix))], canonical_affine(), symmetric=False)


def average(subjects: list[Subject], affine: np.ndarray, symmetric: bool = True) -> Template:
    """Mean image and mean skin distance of the registered heads, and its mirror image's mean where ``symmetric``."""
    image, distance = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    weight = np.full(SHAPE, 1e-3, np.float32)
    reals = [subject for subject in subjects if subject.real] or subjects
    for subject in subjects:
        here = (subject.affine, subject.registration, SHAPE, affine)
        distance += np.clip(pull(subject.skin_distance, *here, cval=DISTANCE_LIMIT), -DISTANCE_LIMIT, DISTANCE_LIMIT)
        if subject in reals:
            seen = pull(np.ones_like(subject.image), *here)
            image += pull(subject.image, *here)
            weight += seen
    image, distance = image / weight, distance / len(subjects)
    if symmetric:
        image, distance = (image + image[::-1]) / 2, (distance + distance[::-1]) / 2
    return with_core(Template(image, distance, np.zeros(SHAPE, np.uint8), affine, {}))


def with_core(template: Template, brain: np.ndarray | None = None) -> Template:
    """Mark where registration looks: the head above the skull base; around the voted brain once it is known."""
    points = template.points
    if brain is None:
        crown = points[template.skin_distance < 0][:, 2].max()
        front = np.percentile(points[(template.skin_distance < 0) & (points[..., 2] > crown - 80)][:, 1], 99)
        core = (template.skin_distance < 6) & (points[..., 2] > crown - 135)
        core &= (points[..., 1] < front - 45) | (points[..., 2] > crown - 75)
    else:
        core = (
            (distance_map(brain, template.spacing) < 22) & (template.skin_distance < 6) & ~template.region("removable")
        )
    regions = (template.regions & ~np.uint8(REGIONS["core"])) | np.uint8(REGIONS["core"]) * core
    return replace(template, regions=regions.astype(np.uint8))


def unbiased(subjects: list[Subject]) -> list[Subject]:
    """Remove the common part of the affines (log-Euclidean mean), so that the template has the mean pose and size."""
    mean = expm(np.mean([np.real(logm(subject.registration.matrix)) for subject in subjects], axis=0))
    drift = np.eye(4)
    drift[:3, :3] = np.real(mean[:3, :3])
    # Rotation and position stay the template's: only stretch is taken out.
    _, stretch, right = np.linalg.svd(drift[:3, :3])
    undo = np.eye(4)
    undo[:3, :3] = right.T @ np.diag(1 / stretch) @ right
    return [
        replace(s, registration=Registration(s.registration.matrix @ undo, s.registration.displacement))
        for s in subjects
    ]


def symmetrising(template: Template) -> np.ndarray:
    """The half-way transform that makes the template its own mirror image: square root of reflection x flip."""
    mirrored = np.ascontiguousarray(template.image[::-1])
    matrix = polish(mirrored, template.affine, template, np.eye(4))
    return np.real(sqrtm(FLIP @ matrix @ FLIP))


def groupwise(
    cohort: list[Subject], labelled: list[Subject], on_progress: OnProgress | None = None
) -> tuple[Template, list[Subject]]:
    """Two affine and two deformable rounds over all heads."""
    subjects = cohort + labelled
    template = first_template(cohort[2])
    for number, kind in enumerate(("affine", "affine", "deformable", "deformable")):
        subjects = _registered(subjects, template, f"round {number + 1}", kind == "deformable", on_progress)
        subjects = unbiased(subjects)
        if number == 0:
            half = symmetrising(average(subjects, template.affine, symmetric=False))
            subjects = [replace(s, registration=Registration(s.registration.matrix @ half)) for s in subjects]
        template = average(subjects, template.affine)
        if kind == "deformable":
            template = shape_corrected(template, subjects)
    return template, subjects


def _registered(
    subjects: list[Subject], template: Template, name: str, deformable: bool, on_progress: OnProgress | None
) -> list[Subject]:
    """All heads registered with the template; from where the last round left them, if there was one."""

    def one(subject: Subject) -> Subject:
        if subject.registration is None:
            matrix = register(Volume(subject.image, subject.affine), template).matrix
        else:
            matrix = polish(subject.image, subject.affine, template, subject.registration.matrix)
        displacement = deform(subject.image, subject.affine, template, matrix) if deformable else None
        return replace(subject, registration=Registration(matrix, displacement))

    done = []
    with ThreadPoolExecutor() as pool:
        for subject in pool.map(one, subjects):
            done.append(subject)
            report(on_progress, name, len(done), len(subjects), subject.name)
    return done


def shape_corrected(template: Template, subjects: list[Subject]) -> Template:
    """Warp the average by the inverse of the mean displacement, so that its shape is the mean shape (Guimond 2000)."""
    mean = np.mean([subject.registration.displacement for subject in subjects], axis=0)
    mean = (mean + mean[::-1] * np.array([-1, 1, 1], np.float32)) / 2
    undo = Registration(np.eye(4), inverse_displacement(mean, template.affine))
    image = pull(template.image, template.affine, undo, SHAPE, template.affine)
    distance = pull(template.skin_distance, template.affine, undo, SHAPE, template.affine, cval=DISTANCE_LIMIT)
    return with_core(replace(template, image=image, skin_distance=distance))


# --- what the template knows ---------------------------------------------------------------------------------------


def vote(template: Template, subjects: list[Subject], members) -> np.ndarray:
    """Share of label heads, (X, Y, Z) float32, in which ``members(labels)`` holds after registration; symmetric."""
    total = np.zeros(SHAPE, np.float32)
    for subject in subjects:
        labels = np.rint(subject.labels.intensities).astype(np.int32)
        mask = ndimage.gaussian_filter(members(labels).astype(np.float32), 0.7)
        total += pull(mask, subject.labels.affine, subject.registration, SHAPE, template.affine)
    total /= len(subjects)
    return (total + total[::-1]) / 2


def find_landmarks(template: Template) -> dict[str, np.ndarray]:
    """Nasion, nose tip, chin from the mid-sagittal profile; ears from the widest bulge beside it. RAS mm."""
    head = template.skin_distance < 0
    points = template.points
    middle = SHAPE[0] // 2
    y, z = points[middle, :, :, 1], points[middle, :, :, 2]
    profile = np.where(head[middle], y, -np.inf).max(axis=0)
    heights = z[0]
    bottom = heights[np.isfinite(profile)].min()
    below = (heights < 20) & (heights > bottom + 20)
    tip = int(np.argmax(np.where(below, profile, -np.inf)))
    upward = np.arange(tip, tip + int(70 / SPACING))
    nasion = int(upward[np.argmin(profile[upward[: int(50 / SPACING)]])])
    downward = np.flatnonzero((heights < heights[tip] - 40) & (heights > bottom))
    chin = int(downward[np.argmax(profile[downward])])
    marks = {
        name: np.array([0.0, profile[k], heights[k]])
        for name, k in (("nasion", nasion), ("nose_tip", tip), ("chin", chin))
    }
    opened = ndimage.distance_transform_edt(~(ndimage.distance_transform_edt(head) * SPACING > 12)) * SPACING <= 12
    bulge = head & ~opened & (np.abs(points[..., 0]) > 60) & (np.abs(points[..., 2] - heights[tip]) < 50)
    bulge &= points[..., 1] < marks["nasion"][1] - 50
    place = points[largest_component(bulge & (points[..., 0] > 0))].mean(axis=0)
    marks["ear_right"], marks["ear_left"] = place, place * [-1, 1, 1]
    return {name: np.round(point.astype(float), 1) for name, point in marks.items()}


def mark_regions(template: Template, brain, eyes, bone) -> Template:
    """Draw every region from the voted anatomy and the landmarks."""
    marks = find_landmarks(template)
    points = template.points
    x, y, z = np.moveaxis(points, -1, 0)
    away = distance_map(brain, SPACING)
    nasion, tip, chin, ear = marks["nasion"], marks["nose_tip"], marks["chin"], marks["ear_right"]
    brow = nasion[2] + 14

    surface = (y > ear[1] + 18) & (z > chin[2] - 12)

    # Face mask: in front of a slope from the brow to behind the chin, below the brow.
    depth = np.interp(z, [chin[2] - 30, chin[2], tip[2], nasion[2], brow], [62, 58, 50, 30, 14])
    face = (z < brow) & (y > tip[1] - depth - 0.0025 * x**2) & (template.skin_distance < 40) & (away > 8)
    face &= np.abs(x) < 75

    # MRI_Deface takes a shell of facial tissue; its depth gives the distance that the paper prints for a defaced head.
    lateral = np.interp(z, [chin[2] - 30, chin[2], tip[2], nasion[2], brow + 6], [44, 52, 56, 58, 52])
    shell = (template.skin_distance > -12) & (template.skin_distance < 40)
    removable = shell & (z < brow + 4) & (z > chin[2] - 14) & (np.abs(x) < lateral) & (away > 10)
    removable &= y > nasion[1] - 34 - 0.004 * x**2

    head = template.skin_distance < 0
    ears = (np.abs(x) > np.abs(ear[0]) - 14) & (np.hypot(y - ear[1], z - ear[2]) < 38) & (template.skin_distance > -10)
    ears &= template.skin_distance < 30

    any_face = ndimage.binary_dilation(removable | face, iterations=3)
    core = head & (away < 20) & ~any_face & ~ears
    regions = np.zeros(SHAPE, np.uint8)
    masks = {"brain": brain, "eyes": eyes, "bone": bone, "surface": surface, "face": face, "ears": ears, "core": core,
             "removable": removable}  # fmt: skip
    for name, mask in masks.items():
        regions |= np.uint8(REGIONS[name]) * mask.astype(np.uint8)
    return replace(template, regions=regions, landmarks=marks)


def crisp_skin(template: Template) -> Template:
    """Redraw the skin edge of the averaged image at the average skin, two voxels wide: averaging has blurred it."""
    edge = np.clip(0.5 - template.skin_distance / (2 * SPACING), 0, 1)
    return replace(template, image=(template.tissue * edge).astype(np.float32))


# --- command --------------------------------------------------------------------------------------------------------


def build(cohort_folder: Path, labels_folder: Path, out: Path, on_progress: OnProgress | None = None) -> Template:
    """Build the template and write it to ``out``."""
    cohort, labelled = read_cohort(cohort_folder, on_progress), read_label_heads(labels_folder, on_progress)
    template, subjects = groupwise(cohort, labelled, on_progress)
    voters = [subject for subject in subjects if not subject.real]
    brain = largest_component(
        ndimage.binary_fill_holes(vote(template, voters, lambda n: is_brain(n) | (n == 24)) > 0.5)
    )
    eyes = vote(template, voters, lambda n: np.isin(n, EYES)) > 0.4
    bone = vote(template, voters, lambda n: np.isin(n, BONE + MARROW)) > 0.5
    template = mark_regions(crisp_skin(template), brain, eyes, bone)
    write(template, out, [subject.name for subject in subjects])
    return template


def write(template: Template, out: Path, names: list[str], name: str = "average_head_2mm") -> None:
    out.mkdir(parents=True, exist_ok=True)
    scales = {"image_scale": 150.0, "distance_scale": 100.0}
    arrays = {
        "T1w": np.clip(np.rint(template.image * scales["image_scale"]), 0, 255).astype(np.uint8),
        "skin_distance": np.rint(
            np.clip(template.skin_distance, -DISTANCE_LIMIT, DISTANCE_LIMIT) * scales["distance_scale"]
        ).astype(np.int16),
        "regions": template.regions,
    }
    for suffix, array in arrays.items():
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
        image.SetSpacing([SPACING] * 3)
        image.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
        image.SetOrigin((template.affine[:3, 3] * [-1, -1, 1]).tolist())
        sitk.WriteImage(image, str(out / f"{name}_{suffix}.nii.gz"), useCompression=True)
    record = {
        "version": __version__,
        "licence": "CC BY-SA 3.0 (averaged from the IXI data set, brain-development.org; labels: SynthSeg, Apache-2.0)",
        "space": "RAS mm, left-right symmetric, axes aligned with the grid",
        "heads": len(names),
        "regions": REGIONS,
        "landmarks": {key: value.tolist() for key, value in template.landmarks.items()},
        **scales,
    }
    (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m RefaceRiskLib.template", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="average a cohort into a template")
    command.add_argument(
        "--cohort", type=Path, required=True, help="folder of whole-head T1w volumes with participants.tsv"
    )
    command.add_argument("--labels", type=Path, required=True, help="folder of label heads (training_seg_NN.nii.gz)")
    command.add_argument("--out", type=Path, required=True, help="folder that receives the template")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    with terminal_bar() as bar:
        template = build(options.cohort, options.labels, options.out, bar)
    print(f"wrote {options.out}: {template.brain.sum() * SPACING**3 / 1000:.0f} cm3 of brain")
    return 0
