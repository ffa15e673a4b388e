"""Every defacer on every head in six storage orientations: brain touched, faces left, verdicts, doubtful scans.

    python Testing/benchmarks/bench_defacing.py [--methods ...] [--heads N] [--orientations N] [--jobs N] [--out FOLDER]

Label heads (``training_seg_NN.nii.gz``) are turned into synthetic T1w images at 2 mm; their labels give the true brain.
For other heads the brain is the mask that the defacers kept off. Whether a face is left is judged here on the head's
own grid, apart from the program's own verdict: half of the skin round the tip of the nose, or of the mouth, unchanged.

Three more parts show what must *not* be ``ok``: cut fields of view, scans that were defaced before, and masks in the
wrong place. Results are kept in FOLDER/cases.tsv as they come; a second run does what is missing and prints the table.
A case costs about 1 s and a registration 8 s on one core: 1.5 hours for all, minutes for ``--heads 3``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import heads
import numpy as np
from results import append, kept
from scipy import ndimage

from RefaceRiskLib.defacing import Head, deface, prepare
from RefaceRiskLib.defacing.compare import automatic_methods
from RefaceRiskLib.defacing.quality import assess
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.geometry import grid_points, transform_points
from RefaceRiskLib.registration import Registration
from RefaceRiskLib.surface.extract import skin_level
from RefaceRiskLib.synthesis import is_brain, t1w_from_labels
from RefaceRiskLib.tissue import largest_component
from RefaceRiskLib.volumes import Volume, crop, load, reorient, save

ORIENTATIONS = ("RAS", "LPS", "PIR", "ASL", "SRA", "ILP")
# Label heads whose face lies in the field of view; the others end at nose or mouth.
WHOLE_LABEL_HEADS = ("02", "05", "06", "08", "10", "11", "12", "14", "15")
PARTS = ("faces", "cut fields of view", "defaced before", "wrong masks")
COLUMNS = (
    "part", "head", "variant", "method", "verdict", "reason", "brain_touched", "changed_outside", "face_removed",
    "eyes_left", "nose_left", "mouth_left", "face_left", "seconds",
)  # fmt: skip
BEFORE = ("mri_deface", "fsl_deface", "quickshear")  # how scans are defaced that are then defaced again


# --- heads ----------------------------------------------------------------------------------------------------------


def read(path: Path, number: int) -> tuple[Volume, np.ndarray | None]:
    """The head, and its true brain where labels tell."""
    volume = load(path)
    if "seg_" not in path.name:
        return volume, None
    head = t1w_from_labels(volume, seed=number, spacing_mm=2.0)
    brain = is_brain(np.rint(volume.intensities).astype(np.int32))
    return head, brain.reshape(*(n for size in head.shape for n in (size, 2))).any(axis=(1, 3, 5))


def turned(volume: Volume, truth: np.ndarray | None, axcodes: str) -> tuple[Volume, np.ndarray | None]:
    """Head and true brain in another storage orientation."""
    if truth is not None:
        truth = reorient(Volume(truth.astype(np.uint8), volume.affine), axcodes).voxels > 0
    return reorient(volume, axcodes), truth


def has_face(path: Path) -> bool:
    return "seg_" not in path.name or path.name.split("seg_")[1][:2] in WHOLE_LABEL_HEADS


# --- judged apart from the program --------------------------------------------------------------------------------


def face_skin(head: Head) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of the skin round the tip of the nose and of the mouth, two (I, J, K) bool, found on the whole head."""
    volume = head.volume
    tissue = largest_component(volume.intensities > skin_level(volume))
    skin = tissue & (ndimage.distance_transform_edt(tissue, sampling=volume.spacing) <= 3)
    x, y, z = np.moveaxis(
        transform_points(np.linalg.inv(head.registration.matrix), grid_points(volume.shape, volume.affine)), -1, 0
    )
    middle = skin & (np.abs(x) < 10) & (z > -20) & (z < 25)
    tip = np.array([c[middle][np.argmax(y[middle])] for c in (x, y, z)])
    nose = skin & (np.hypot(np.hypot(x - tip[0], y - tip[1]), z - tip[2]) < 18)
    mouth = skin & (np.abs(x) < 22) & (z > tip[2] - 40) & (z < tip[2] - 18) & (y > tip[1] - 32)
    return nose, mouth


def is_left(original: Volume, defaced: Volume, skins: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether half of the skin of nose or mouth is unchanged."""
    same = original.voxels == defaced.voxels
    return any(bool(same[skin].mean() > 0.5) for skin in skins if skin.any())


def changed_outside(head: Volume, result: Volume, removed: np.ndarray) -> int:
    """Voxels outside the mask that differ after writing both to disk and reading them again."""
    with tempfile.TemporaryDirectory() as folder:
        before = load(save(head, Path(folder) / "before.nii"))
        after = load(save(result, Path(folder) / "after.nii"))
    return int((before.voxels[~removed] != after.voxels[~removed]).sum())


# --- the parts: each yields rows for one head ---------------------------------------------------------------------


def row(part, head, variant, method, quality=None, seconds=0.0, reason="", **figures) -> dict:
    if quality is None:  # the program refused to write anything
        return dict.fromkeys(COLUMNS, "") | {
            "part": part, "head": head, "variant": variant, "method": method, "verdict": "refused", "reason": reason,
            "brain_touched": 0, "changed_outside": 0, "face_left": 0, "seconds": f"{seconds:.2f}",
        }  # fmt: skip
    return {
        "part": part, "head": head, "variant": variant, "method": method, "verdict": quality.verdict,
        "reason": quality.reason, "brain_touched": quality.brain_voxels_touched, "changed_outside": 0,
        "face_removed": f"{quality.face_surface_removed:.3f}", "seconds": f"{seconds:.2f}", "face_left": 0,
        **{f"{name}_left": quality.left[name] for name in ("eyes", "nose", "mouth")}, **figures,
    }  # fmt: skip


def defaced_rows(part, name, variant, volume, methods, truth=None, judge=False) -> Iterator[dict]:
    """A row a method on one registration of one volume."""
    try:
        head = prepare(volume)
    except RefaceRiskError as error:
        yield from (row(part, name, variant, method, reason=str(error)) for method in methods)
        return
    skins = face_skin(head) if judge else None
    for method in methods:
        began = time.perf_counter()
        try:
            result = deface(volume, method, head=head)
        except RefaceRiskError as error:
            yield row(part, name, variant, method, reason=str(error), seconds=time.perf_counter() - began)
            continue
        seconds = time.perf_counter() - began
        figures = {"changed_outside": changed_outside(volume, result.volume, result.removed)}
        if truth is not None:
            figures["brain_touched"] = int((result.removed & truth).sum())
        if skins:
            figures["face_left"] = int(is_left(volume, result.volume, skins))
        yield row(part, name, variant, method, result.quality, seconds, **figures)


def faces(path: Path, number: int, variant: str, methods) -> Iterator[dict]:
    volume, truth = turned(*read(path, number), variant)
    yield from defaced_rows("faces", path.name, variant, volume, methods, truth, judge=True)


def cut_fields(path: Path, number: int, variant: str, methods) -> Iterator[dict]:
    """The head as it is, where it is cut already, or a whole one cut: in front, below, above; "padded" with air."""
    volume = reorient(read(path, number)[0], "RAS")
    if variant != "as scanned":
        volume = cut_head(volume, variant)
    yield from defaced_rows("cut fields of view", path.name, variant, volume, methods)


def cut_head(volume: Volume, variant: str) -> Volume:
    """A RAS head cut 14 mm behind the tip of the nose, 6 mm below it, or 35 mm below the crown."""
    tissue = np.argwhere(largest_component(volume.intensities > skin_level(volume)))
    high = tissue.max(axis=0)
    box = [slice(0, n) for n in volume.shape]
    if variant.startswith("nose"):
        box[1] = slice(0, int(high[1] - 14 / volume.spacing[1]))
    elif variant == "below the nose":
        tip = tissue[tissue[:, 1] >= high[1] - 1][:, 2].mean()
        box[2] = slice(int(tip - 6 / volume.spacing[2]), None)
    else:
        box[2] = slice(0, int(high[2] - 35 / volume.spacing[2]))
    if "padded" not in variant:
        return crop(volume, tuple(box))
    outside = np.ones(volume.shape, bool)
    outside[tuple(box)] = False
    return volume.replaced(outside, 0.0)


def defaced_before(path: Path, number: int, variant: str, methods) -> Iterator[dict]:
    volume = read(path, number)[0]
    if variant != "as published":
        volume = deface(volume, variant).volume
    yield from defaced_rows("defaced before", path.name, variant, volume, methods)


def wrong_masks(path: Path, number: int, variant: str, methods) -> Iterator[dict]:
    """Masks and registrations moved, halved, flipped and turned; judged with the head's true skin."""
    volume = read(path, number)[0]
    head = prepare(volume)
    skins = face_skin(head)
    for method in methods:
        if method in ("skull_strip", "average_face"):  # the one takes all, the other has the masks of two others
            continue
        right = deface(volume, method, head=head).removed
        cases = [(name, mask, head.registration) for name, mask in moved_masks(head, right)]
        if method != "quickshear":  # it follows the brain, not the template
            for name, registration in moved_registrations(head.registration):
                wrong = replace(head, registration=registration)
                try:
                    cases.append((name, deface(volume, method, head=wrong, force=True).removed, registration))
                except RefaceRiskError:
                    continue
        for name, mask, registration in cases:
            mask = mask & ~head.brain
            result = volume.replaced(mask, 0.0)
            quality = assess(volume, mask, head.brain, registration, head.template, result)
            yield row("wrong masks", path.name, name, method, quality, face_left=int(is_left(volume, result, skins)))


def moved_masks(head: Head, mask: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    to_template = np.linalg.inv(head.registration.matrix)
    x, _, z = np.moveaxis(transform_points(to_template, grid_points(mask.shape, head.volume.affine)), -1, 0)
    to_voxels = np.linalg.inv(head.volume.affine[:3, :3]) @ head.registration.matrix[:3, :3]
    for mm, axis, sign in product((15, 25), range(3), (1, -1)):
        step = to_voxels[:, axis] * sign * mm
        yield f"{sign * mm:+d} mm in {'xyz'[axis]}", ndimage.shift(mask.astype(np.float32), step, order=1) > 0.5
    yield "nothing", np.zeros_like(mask)
    yield "left half", mask & (x < 0)
    yield "right half", mask & (x > 0)
    yield "upper half", mask & (z > -8)
    yield "lower half", mask & (z < -8)
    yield "above the mouth", mask & (z > -12)
    for axis in range(3):
        yield f"flipped along {'ijk'[axis]}", np.flip(mask, axis)


def moved_registrations(right: Registration) -> Iterator[tuple[str, Registration]]:
    """Wrong by a shift or a turn, with the quality of the right one."""
    for mm, axis, sign in product((15, 25), range(3), (1, -1)):
        shift = np.eye(4)
        shift[axis, 3] = sign * mm
        yield f"registered {sign * mm:+d} mm in {'xyz'[axis]}", replace(right, matrix=right.matrix @ shift)
    for degrees, axis in product((20, 90, 180), range(3)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(4)
        turn[a, a] = turn[b, b] = np.cos(np.radians(degrees))
        turn[b, a] = np.sin(np.radians(degrees))
        turn[a, b] = -turn[b, a]
        yield f"registered {degrees} degrees about {'xyz'[axis]}", replace(right, matrix=right.matrix @ turn)


RUN = dict(zip(PARTS, (faces, cut_fields, defaced_before, wrong_masks), strict=True))


# --- what is to be done, and the table -------------------------------------------------------------------------------


def plan(options: argparse.Namespace) -> list[tuple]:
    """(part, path, number, variant, methods), all of it in one orientation before any of the next."""
    if options.given:
        paths = [p for given in options.given for p in (sorted(given.glob("*.nii.gz")) if given.is_dir() else [given])]
        cut, before = [], []
    else:
        paths = [
            p for name in ("cohort_ixi_2mm", "label_heads_1mm") for p in sorted(heads.folder(name).glob("*.nii.gz"))
        ]
        cut = [p for p in paths if not has_face(p)]
        before = sorted(heads.folder("already_defaced").glob("*.nii.gz"))
    numbers = {path: number for number, path in enumerate(paths)}
    whole = [p for p in paths if has_face(p)]
    if options.heads:  # of both kinds
        whole = whole[:: max(1, len(whole) // options.heads)][: options.heads]
        cut = cut[: options.heads]
    turns = [("faces", p, numbers[p], code) for code in ORIENTATIONS[: options.orientations] for p in whole]
    jobs = turns[: len(whole)]
    jobs += [("cut fields of view", p, numbers[p], "as scanned") for p in cut]
    some = whole[:: max(1, len(whole) // 4)][:4]
    variants = ("nose cut", "nose cut, padded", "below the nose", "top cut")
    jobs += [("cut fields of view", p, numbers[p], variant) for p in some for variant in variants]
    jobs += [("defaced before", p, 0, "as published") for p in before]
    jobs += [("defaced before", p, numbers[p], how) for p in some for how in BEFORE if how in options.methods]
    jobs += [("wrong masks", p, numbers[p], "all") for p in some[:2]]
    jobs += turns[len(whole) :]
    return [(*job, tuple(options.methods)) for job in jobs if job[0] in options.parts]


def work(job: tuple) -> list[dict]:
    part, path, number, variant, methods = job
    return list(RUN[part](path, number, variant, methods))


def missing(jobs: list[tuple], done: list[dict]) -> list[tuple]:
    have = {(r["part"], r["head"], r["variant"], r["method"]) for r in done}
    complete = {(r["part"], r["head"]) for r in done if r["part"] == "wrong masks"}
    out = []
    for part, path, number, variant, methods in jobs:
        if part == "wrong masks":
            left = () if (part, path.name) in complete else methods
        else:
            left = tuple(m for m in methods if (part, path.name, variant, m) not in have)
        if left:
            out.append((part, path, number, variant, left))
    return out


def print_table(cases: list[dict], methods) -> bool:
    """The tables; whether all promises hold."""
    good = True
    main = [c for c in cases if c["part"] == "faces"]
    if main:
        heads_, codes = len({c["head"] for c in main}), sorted({c["variant"] for c in main}, key=ORIENTATIONS.index)
        print(f"heads with a face: {heads_}, orientations: {' '.join(codes)}")
        print(
            f"{'method':13s} cases  brain_touched  changed_outside    ok  check  failed  share_ok  ok_with_a_face_left"
        )
    for method in methods:
        found = [c for c in main if c["method"] == method]
        if not found:
            continue
        verdicts = Counter(c["verdict"] for c in found)
        touched, outside = (sum(int(c[key]) for c in found) for key in ("brain_touched", "changed_outside"))
        wrong = sum(c["verdict"] == "ok" and c["face_left"] == "1" for c in found)
        share = verdicts["ok"] / len(found)
        good &= not touched and not outside and not wrong and share >= 0.97
        bad = verdicts["failed"] + verdicts["refused"]
        print(
            f"{method:13s} {len(found):5d} {touched:14d} {outside:16d} {verdicts['ok']:5d} {verdicts['check']:6d}"
            f" {bad:7d} {share:9.3f} {wrong:20d}"
        )
    doubtful = Counter((c["head"], c["method"], c["verdict"], c["reason"]) for c in main if c["verdict"] != "ok")
    for (head, method, verdict, reason), times in sorted(doubtful.items()):
        print(f"    {head}  {method}  {verdict} ({times}x): {reason}")
    for part in PARTS[1:]:
        found = [c for c in cases if c["part"] == part]
        if not found:
            continue
        verdicts = Counter(c["verdict"] for c in found)
        if part == "wrong masks":
            wrong = [c for c in found if c["verdict"] == "ok" and c["face_left"] == "1"]
            left = sum(c["face_left"] == "1" for c in found)
            print(f"\n{part}: {len(found)} cases, a face is left in {left}; of these ok: {len(wrong)}")
        else:
            wrong = [c for c in found if c["verdict"] == "ok"]
            print(f"\n{part}: {len(found)} cases, {dict(verdicts)}")
            reasons = Counter((c["variant"], c["verdict"], c["reason"]) for c in found)
            for (variant, verdict, reason), times in sorted(reasons.items()):
                print(f"    {variant}: {verdict} ({times}x): {reason}")
        good &= not wrong
        for c in wrong:
            print(
                f"    wrongly ok: {c['head']}, {c['variant']}, {c['method']}: "
                f"nose {c['nose_left']}, mouth {c['mouth_left']}"
            )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("given", metavar="HEAD_OR_FOLDER", type=Path, nargs="*", help="default: all heads of the data")
    parser.add_argument("--methods", nargs="+", default=list(automatic_methods()), choices=automatic_methods())
    parser.add_argument("--heads", type=int, default=0, metavar="N", help="only N heads (default: all)")
    parser.add_argument("--orientations", type=int, default=6, metavar="N", help="storage orientations (default: 6)")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("bench-defacing"), help="folder for cases.tsv")
    parser.add_argument("--table", action="store_true", help="run nothing; print what is known")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "cases.tsv"
    jobs = [] if options.table else missing(plan(options), kept(path))
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for number, rows in enumerate(pool.imap(work, jobs), 1):
            append(path, rows, COLUMNS)
            first = rows[0]
            told = ", ".join(sorted({r["verdict"] for r in rows}))
            print(f"[{number}/{len(jobs)}] {first['part']}: {first['head']} {first['variant']}: {told}", flush=True)
    return 0 if print_table(kept(path), options.methods) else 1


if __name__ == "__main__":
    raise SystemExit(main())
