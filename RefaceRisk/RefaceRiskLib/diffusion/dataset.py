"""What the models learn from: heads in template space, and the random masks, warps and intensities that multiply them.

``prepare`` registers every head of a folder once and keeps it as a small file, and so it does with the head as each
defacer leaves it: what a model sees in use is registered without its face. The examples are made from these on the fly.
Heads named in :data:`HELD_OUT` are never read.
"""

from __future__ import annotations

import csv
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..defacing import deface
from ..defacing import prepare as register_for_defacing
from ..errors import RefaceRiskError
from ..geometry import transform_points
from ..progress import OnProgress, report
from ..registration import deformed_beside_face, register
from ..synthesis import t1w_from_labels
from ..template import Grid, Template, distance_map, load_template
from ..template_build import FULL_LABEL_HEADS, HELD_OUT
from ..volumes import Volume, load
from .following import FollowedSkin
from .linear import LIMIT_MM, LinearFace, Seen, anchored, reliable
from .space import COARSE_MM, FINE_MM, bend_of, canonical, coarse_grid, face_grid, halved, is_fine, upsampled

FOLDS = 6
# Each head is shown as these leave it, MRI_Deface first: after that one the linear model is fitted, for all of them.
DEFACERS = ("mri_deface", "pydeface", "fsl_deface", "quickshear")
# Further holes of each head, drawn at random.
HOLES = 4
# Label heads become 1 mm images of so many contrasts.
LOOKS = 3


@dataclass(frozen=True, eq=False)
class PreparedHead:
    """A whole head on the template's grid, or at 4 mm.

    image : brain units. distance : mm to the skin, clipped at LIMIT_MM. inside : the field of view. whole : False for a
    head whose mouth is hidden by a dental artefact. bend : (3, X, Y, Z) mm at 4 mm, how its registration bent the
    average head, see :func:`RefaceRiskLib.diffusion.space.bend_of`.
    """

    name: str
    image: np.ndarray
    distance: np.ndarray
    inside: np.ndarray
    whole: bool = True
    bend: np.ndarray | None = None

    def save(self, folder: Path, **more: np.ndarray) -> None:
        """Write ``folder/<name>.npz``, with ``more`` arrays beside its own."""
        temporary = folder / f".{self.name}.tmp.npz"
        arrays = {name: getattr(self, name) for name in ("image", "distance", "bend")}
        arrays = {name: array.astype(np.float16) for name, array in arrays.items() if array is not None}
        np.savez_compressed(temporary, inside=np.packbits(self.inside), whole=self.whole, **arrays, **more)
        temporary.replace(folder / f"{self.name}.npz")

    @classmethod
    def load(cls, path: Path) -> PreparedHead:
        with np.load(path, allow_pickle=False) as arrays:
            image, distance = (arrays[name].astype(np.float32) for name in ("image", "distance"))
            bend = arrays["bend"].astype(np.float32) if "bend" in arrays else None
            inside = _unpacked(arrays["inside"], image.shape)
            return cls(path.stem, image, distance, inside, bool(arrays["whole"]), bend)

    def halved(self) -> PreparedHead:
        """The same at 4 mm."""
        inside = halved(self.inside.astype(np.float32)) > 0.9
        return replace(self, image=halved(self.image), distance=halved(self.distance), inside=inside)

    def mirrored(self) -> PreparedHead:
        arrays = {name: mirrored(getattr(self, name)) for name in ("image", "distance", "inside")}
        return replace(self, **arrays, bend=None if self.bend is None else mirrored(self.bend))


def mirrored(array: np.ndarray) -> np.ndarray:
    """A map (X, Y, Z), or a displacement (3, X, Y, Z), with left and right exchanged."""
    if array.ndim == 3:
        return array[::-1]
    return array[:, ::-1] * np.array([-1, 1, 1], array.dtype).reshape(3, 1, 1, 1)


def _unpacked(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)


def prepare(
    data: Path | Mapping[str, Path], out: Path, workers: int | None = None, on_progress: OnProgress | None = None
) -> list[str]:
    """Register whole heads and keep them in ``out``, as defacers leave them in ``out/defaced``; those of 1 mm also in
    ``out/fine``, in the face box at 1 mm.

    ``data`` : heads by name, or a folder (recursively ``*_T1w.nii.gz``, as in BIDS; label heads by their name). Heads
    already there are not made again. Returns the names. Raises RefaceRiskError when no head is found.
    """
    for folder in ("fine", "defaced"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    if isinstance(data, Mapping):
        paths = {name: Path(path) for name, path in data.items() if not _is_held_out(path)}
    else:
        paths = {path.name.removesuffix(".nii.gz"): path for path in sorted(data.rglob("*.nii.gz")) if _wanted(path)}
    if not paths:
        raise RefaceRiskError("no whole heads here", "pass a folder of T1w volumes (.nii.gz) or a table of heads", data)
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        names, count = list(paths), len(paths)
        done = pool.map(_prepare_one, names, paths.values(), [out] * count, range(count))
        for number, name in enumerate(done, 1):
            report(on_progress, "prepare heads", number, count, name)
    return names


def _prepare_one(name: str, path: Path, out: Path, seed: int) -> str:
    if (out / f"{name}.npz").exists():
        return name
    template = load_template()
    volume = load(path)
    closer = {name: volume} if is_fine(volume) else {}
    if "seg" in name:
        closer = {f"{name}-{look}": t1w_from_labels(volume, seed=seed + 100 * look) for look in range(LOOKS)}
        volume = t1w_from_labels(volume, seed=seed, spacing_mm=template.spacing)
    registration = register(volume, template)
    if registration.quality.verdict != "failed":
        registration = deformed_beside_face(volume, template, registration)
        for look, fine in closer.items():
            view = canonical(fine, None, registration, template).closer(face_grid(template, FINE_MM))
            PreparedHead(look, view.image, view.distance, view.inside).save(out / "fine")
        view = canonical(volume, None, registration, template).view
        whole = not _mouth_is_hidden(path)
        head = PreparedHead(name, view.image, view.distance, view.inside, whole, bend_of(registration))
        _save_defaced(head, volume, template, out / "defaced")
        head.save(out)  # last: with it a head is done
    return name


def _save_defaced(head: PreparedHead, volume: Volume, template: Template, folder: Path) -> None:
    """Keep what each defacer leaves of a head, in the space of the defaced head's own registration, unless it fails."""
    try:
        registered = register_for_defacing(volume, template)
        for method in DEFACERS:
            defaced = deface(volume, method, head=registered)
            registration = deformed_beside_face(defaced.volume, template, register(defaced.volume, template))
            whole = canonical(volume, None, registration, template).view.halved()
            left = canonical(defaced.volume, defaced.removed, registration, template).view.halved()
            average = FollowedSkin.of(template, left.image, left.missing, left.removed)
            name, bend = f"{head.name}_{method}", bend_of(registration)
            shown = PreparedHead(name, whole.image, whole.distance, whole.inside, head.whole, bend)
            Hole(shown, left.removed, average.coarse).save(folder)
    except RefaceRiskError:
        return


def _mouth_is_hidden(path: Path) -> bool:
    """Whether the participants table beside a head says that a dental artefact hides the mouth."""
    table = path.parent / "participants.tsv"
    if not table.exists():
        return False
    with open(table, encoding="utf-8") as stream:
        rows = {row["participant_id"]: row for row in csv.DictReader(stream, delimiter="\t")}
    return rows.get(path.name.split("_")[0], {}).get("face") == "mouth_hole"


def _is_held_out(path: Path) -> bool:
    return any(held in Path(path).name for held in HELD_OUT)


def _wanted(path: Path) -> bool:
    name = path.name
    if _is_held_out(path):
        return False
    return name.endswith("_T1w.nii.gz") or any(name == f"training_seg_{number}.nii.gz" for number in FULL_LABEL_HEADS)


def load_fine(folder: Path) -> list[PreparedHead]:
    """The heads of a prepared folder in the face box at 1 mm. Raises RefaceRiskError when there is none."""
    heads = [PreparedHead.load(path) for path in sorted((folder / "fine").glob("*.npz"))]
    if not heads:
        raise RefaceRiskError("no head has voxels of 1 mm", "train the fine stage on 1 mm heads", folder)
    return heads


def load_prepared(folder: Path) -> list[PreparedHead]:
    """All prepared heads of a folder, their unseen parts completed."""
    heads = [PreparedHead.load(path) for path in sorted(folder.glob("*.npz"))]
    if not heads:
        raise RefaceRiskError("no prepared heads", "run training with --data on a folder of volumes first", folder)
    return completed(heads)


def completed(heads: list[PreparedHead]) -> list[PreparedHead]:
    """Heads with what their images do not show (beyond the field of view, a mouth lost in a dental artefact) filled in
    by the linear model of the heads that show it, so that no head teaches a hole."""
    template = load_template()
    shown = [head for head in heads if head.whole] or heads
    model = fit_linear([head.halved() for head in shown])
    grid, fine = coarse_grid(template), Grid(template.shape, template.affine)
    mouth = _mouth(template)
    out = []
    for head in heads:
        unseen = _unseen(head, mouth)
        distance = halved(head.distance)
        unseen_coarse = halved(unseen.astype(np.float32)) > 0
        known = reliable(distance, unseen_coarse, grid.spacing)
        seen = Seen(distance, known, unseen_coarse)
        filled = anchored(model.predict(seen), distance, known, grid.spacing)
        right = reliable(head.distance, unseen, template.spacing)
        distance = np.where(right, head.distance, upsampled(filled, grid, fine)).astype(np.float32)
        out.append(_with_skin(head, distance, unseen, template.tissue))
    return out


def _unseen(head: PreparedHead, mouth: np.ndarray) -> np.ndarray:
    """What a head's image does not show, (X, Y, Z) bool."""
    return ~head.inside if head.whole else ~head.inside | mouth


def _with_skin(head: PreparedHead, distance: np.ndarray, unseen: np.ndarray, tissue: np.ndarray) -> PreparedHead:
    """A head with a skin filled in, and the average head's tissue where that makes ``unseen`` darkness its inside."""
    dark = unseen & (distance < -2) & (head.image < 0.3)
    return replace(head, image=np.where(dark, tissue, head.image), distance=distance)


def _mouth(template: Template) -> np.ndarray:
    """The region that dental artefacts hide: lips, teeth and front of the tongue, (X, Y, Z) bool."""
    tip, chin = template.landmarks["nose_tip"], template.landmarks["chin"]
    x, y, z = np.moveaxis(template.points, -1, 0)
    return (np.abs(x) < 42) & (y > tip[1] - 75) & (z < tip[2] - 14) & (z > chin[2] - 4)


def fit_linear(heads: list[PreparedHead], bases: list[np.ndarray] | None = None, ridge: float = 500.0) -> LinearFace:
    """The linear model of these heads, at 4 mm, and their mirror images; of what differs from their ``bases``, if
    given."""
    template = load_template()
    face = template.region("removable") | template.face_mask | template.ears
    near = distance_map(halved(face.astype(np.float32)) > 0.5, coarse_grid(template).spacing) < 40
    near &= halved(template.skin_distance) < 8
    both = [*heads, *(head.mirrored() for head in heads)]
    maps, images = (np.stack([getattr(head, name) for head in both]) for name in ("distance", "image"))
    bends = None if any(head.bend is None for head in both) else np.stack([head.bend for head in both])
    if bases is not None:
        maps = np.clip(maps, -LIMIT_MM, LIMIT_MM) - np.stack([*bases, *map(mirrored, bases)])
    return LinearFace.fit(maps, ridge, images, near, bends, _places(template))


def _places(template: Template) -> np.ndarray:
    """Places of the face (P, 3), in voxels at 4 mm: four on the midline, three on each cheek."""
    nasion, tip, chin = (template.landmarks[name] for name in ("nasion", "nose_tip", "chin"))
    cheek = [[35, tip[1] - 25, z] for z in (tip[2] + 15, tip[2] - 20, chin[2] + 10)]
    points = np.array([nasion, tip, (tip + chin) / 2, chin, *cheek, *(np.array(cheek) * [-1, 1, 1])])
    return transform_points(np.linalg.inv(coarse_grid(template).affine), points)


# --- random removals ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MaskDrawer:
    """Draws removed regions as defacers leave them, in template space, at 4 mm."""

    template: Template

    @cached_property
    def points(self) -> np.ndarray:
        grid = coarse_grid(self.template)
        axes = [grid.spacing * np.arange(n) + grid.affine[k, 3] for k, n in enumerate(grid.shape)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)

    @cached_property
    def brain_distance(self) -> np.ndarray:
        return halved(self.template.brain_distance)

    @cached_property
    def shapes(self) -> dict[str, np.ndarray]:
        t = self.template
        masks = {
            "mri_deface": t.region("removable"),
            "pydeface": t.face_mask,
            "fsl_deface": t.face_mask | t.ears,
        }
        return {name: halved(mask.astype(np.float32)) for name, mask in masks.items()}

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A removed region, (X, Y, Z) bool on the 4 mm grid, never within a random margin of the brain."""
        kinds = ["mri_deface", "pydeface", "fsl_deface", "quickshear", "brush", "skull_strip"]
        kind = rng.choice(kinds, p=[0.32, 0.2, 0.1, 0.14, 0.16, 0.08])
        if kind == "quickshear":
            mask = self._quickshear(rng)
        elif kind == "brush":
            mask = self._brush(rng)
        elif kind == "skull_strip":
            return self.brain_distance > rng.uniform(1, 8)
        else:
            mask = self._jittered(self.shapes[kind], rng)
        return mask & (self.brain_distance > rng.uniform(4, 12))

    def _jittered(self, shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """As the affine of another registration would have carried it."""
        centre = (np.array(shape.shape) - 1) / 2
        matrix = np.diag(rng.normal(1, 0.03, 3)) + rng.normal(0, 0.02, (3, 3))
        offset = centre - matrix @ centre + rng.normal(0, 0.8, 3)
        return ndimage.affine_transform(shape, matrix, offset, order=1) > rng.uniform(0.3, 0.7)

    def _quickshear(self, rng: np.random.Generator) -> np.ndarray:
        """Everything on the far side of a plane below and before the brain."""
        angle = np.radians(rng.uniform(25, 65))
        normal = np.array([0, np.cos(angle), -np.sin(angle)])
        height = self.points @ normal
        return height > height[self.brain_distance < 0].max() + rng.uniform(2, 14)

    def _brush(self, rng: np.random.Generator) -> np.ndarray:
        """A few ellipsoids or boxes around the facial skin."""
        tip, nasion = self.template.landmarks["nose_tip"], self.template.landmarks["nasion"]
        mask = np.zeros(self.points.shape[:3], bool)
        for _ in range(rng.integers(1, 5)):
            middle = [
                rng.normal(0, 30),
                rng.uniform(nasion[1] - 30, tip[1]),
                rng.uniform(tip[2] - 65, nasion[2] + 40),
            ]
            radius = rng.uniform(12, 45, 3)
            offset = np.abs(self.points - np.array(middle, np.float32)) / radius
            mask |= (offset**2).sum(-1) < 1 if rng.random() < 0.6 else offset.max(-1) < 1
        return mask


# --- holes and what they leave ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Hole:
    """A removed region of a head and the average skin bent to what it leaves, at 4 mm.

    head : in the space in which the hole is seen. mask : (X, Y, Z) bool. base : (X, Y, Z) mm, see
    :class:`RefaceRiskLib.diffusion.following.FollowedSkin`.
    """

    head: PreparedHead
    mask: np.ndarray
    base: np.ndarray

    def save(self, folder: Path) -> None:
        self.head.save(folder, mask=np.packbits(self.mask), base=self.base.astype(np.float16))

    @classmethod
    def load(cls, path: Path) -> Hole:
        head = PreparedHead.load(path)
        with np.load(path, allow_pickle=False) as arrays:
            return cls(head, _unpacked(arrays["mask"], head.image.shape), arrays["base"].astype(np.float32))


def holes(
    heads: list[PreparedHead], folder: Path, count: int = HOLES, on_progress: OnProgress | None = None
) -> list[list[Hole]]:
    """The holes of each prepared head: as DEFACERS left it, from ``folder/defaced``, then ``count`` drawn at random.

    A head that one of them failed on has but the latter, the first of the usual shape. Bending the average to a hole
    takes seconds, so the random ones are kept as ``folder/holes/<head>.npz`` and not made again.
    """
    (folder / "holes").mkdir(parents=True, exist_ok=True)
    drawer = MaskDrawer(load_template())
    out = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        works = [pool.submit(_holes_of, head, folder, count, drawer) for head in heads]
        for done, work in enumerate(works, 1):
            out.append(work.result())
            report(on_progress, "holes", done, len(heads), heads[done - 1].name)
    for number in range(len(DEFACERS)):
        _complete([own for own in out if len(own) > count], number)
    return out


def _holes_of(head: PreparedHead, folder: Path, count: int, drawer: MaskDrawer) -> list[Hole]:
    paths = [folder / "defaced" / f"{head.name}_{method}.npz" for method in DEFACERS]
    small, path = head.halved(), folder / "holes" / f"{head.name}.npz"
    if not path.exists():
        rng = np.random.default_rng(zlib.crc32(head.name.encode()))
        usual = (drawer.shapes["mri_deface"] > 0.5) & (drawer.brain_distance > 8)
        masks = [usual] + [drawer.draw(rng) for _ in range(count - 1)]
        bases = []
        for mask in masks:
            missing = mask | ~small.inside
            bases.append(FollowedSkin.of(drawer.template, small.image * ~missing, missing, mask).coarse)
        temporary = path.with_name(f".{path.stem}.tmp.npz")
        np.savez_compressed(temporary, masks=np.packbits(masks), bases=np.array(bases, np.float16))
        temporary.replace(path)
    with np.load(path, allow_pickle=False) as arrays:
        bases = arrays["bases"].astype(np.float32)
        masks = np.unpackbits(arrays["masks"], count=bases.size).astype(bool).reshape(bases.shape)
    drawn = [Hole(small, mask, base) for mask, base in zip(masks, bases, strict=True)]
    return [Hole.load(path) for path in paths] + drawn if all(path.exists() for path in paths) else drawn


def _complete(out: list[list[Hole]], number: int) -> None:
    """Fill in what the images of some heads do not show in their holes of this number, as :func:`completed` does."""
    shown = [own[number] for own in out if own[number].head.whole]
    if not shown:
        return
    template = load_template()
    model = fit_linear([hole.head for hole in shown], [hole.base for hole in shown])
    mouth, tissue = halved(_mouth(template).astype(np.float32)) > 0, halved(template.tissue)
    for own in out:
        hole, head = own[number], own[number].head
        unseen = _unseen(head, mouth)
        known = reliable(head.distance, unseen, COARSE_MM)
        filled = model.complete(hole.base, Seen(head.distance, known, unseen))
        distance = anchored(filled, head.distance, known, COARSE_MM)
        own[number] = replace(hole, head=_with_skin(head, distance, unseen, tissue))


# --- random heads ---------------------------------------------------------------------------------------------------


def smooth_noise(shape: tuple[int, ...], knots: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth random field (*shape*) of unit variance, cubic between random values on ``knots`` points an axis."""
    coarse = rng.standard_normal((knots + 3,) * 3)
    places = [np.linspace(1, knots + 1, n) for n in shape]
    weights = [_cubic_weights(place, knots + 3) for place in places]
    field = np.einsum("ia,jb,kc,abc->ijk", *weights, coarse, optimize=True)
    return (field / field.std()).astype(np.float32)


def _cubic_weights(places: np.ndarray, count: int) -> np.ndarray:
    """Cubic B-spline weights (N, count) of each place on an integer grid."""
    distance = np.abs(places[:, None] - np.arange(count))
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = np.maximum(2 - distance, 0) ** 3 / 6
    return np.where(distance < 1, inner, outer)


def warped(
    head: PreparedHead,
    shape,
    first,
    spacing: float,
    rng: np.random.Generator,
    strength_mm: float = 2.5,
    others: tuple[np.ndarray, ...] = (),
) -> tuple[np.ndarray, ...]:
    """(image, distance, inside) of a randomly mirrored, bent and relit head, on the box of ``shape`` from voxel
    ``first`` (3,) on, then the ``others``, (X, Y, Z) or (3, X, Y, Z) float, bent alike. ``spacing`` : of the head's
    arrays, mm. Distances change little under so smooth a bend."""
    if rng.random() < 0.5:
        head, others = head.mirrored(), tuple(map(mirrored, others))
    centre = ((np.array(head.image.shape) - 1) / 2).astype(np.float32).reshape(3, 1, 1, 1)
    axes = [np.arange(f, f + n, dtype=np.float32) for f, n in zip(first, shape, strict=True)]
    matrix = np.eye(3) + rng.normal(0, 0.02, (3, 3))
    shift = rng.normal(0, 1.2, (3, 1, 1, 1)) / spacing
    index = np.tensordot(matrix.astype(np.float32), np.stack(np.meshgrid(*axes, indexing="ij")) - centre, axes=1)
    bend = rng.uniform(0, strength_mm) / spacing
    index += centre + shift.astype(np.float32) + bend * np.stack([smooth_noise(shape, 5, rng) for _ in range(3)])

    def moved(array: np.ndarray, mode: str) -> np.ndarray:
        if array.ndim == 4:
            return np.stack([moved(component, mode) for component in array])
        return ndimage.map_coordinates(array, index, order=1, mode=mode, cval=0)

    image, inside = moved(head.image, "constant"), moved(head.inside.astype(np.float32), "constant")
    distance, *others = (moved(array, "nearest") for array in (head.distance, *others))
    image = np.clip(image, 0, 3) ** rng.uniform(0.8, 1.25) * np.exp(0.12 * smooth_noise(shape, 3, rng))
    image += rng.uniform(0, 0.04) * rng.standard_normal(shape, dtype=np.float32)
    image = np.clip(image, 0, 3).astype(np.float32)
    return image, np.clip(distance, -LIMIT_MM, LIMIT_MM), inside > 0.9, *others


def folds(left: list[list[Hole]]) -> list[LinearFace]:
    """For each head the linear model of all heads outside its fold: on its own heads a linear model makes no error."""
    models = []
    for fold in range(min(FOLDS, len(left))):
        rest = [own for n, own in enumerate(left) if n % FOLDS != fold]
        models.append(linear_of(rest))
    return [models[n % FOLDS] for n in range(len(left))]


def linear_of(left: list[list[Hole]]) -> LinearFace:
    """The linear model of heads whose holes these are."""
    first = [own[0] for own in left]
    return fit_linear([hole.head for hole in first], [hole.base for hole in first])


__all__ = [
    "MaskDrawer",
    "PreparedHead",
    "face_grid",
    "fit_linear",
    "folds",
    "holes",
    "linear_of",
    "load_prepared",
    "prepare",
    "warped",
]
