"""The verbs of the program as functions from files to files, shared by command line, worker, demo and study.

Each one reads, calls the core, writes every output to a temporary name first and leaves a JSON sidecar
beside each volume. An input is never overwritten. What an earlier run left under the name of the main output
is taken away before the first file is written, and the volume comes last: where it exists, all else does.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import __version__, dicom_write, hygiene, volumes
from .errors import RefaceRiskError
from .progress import OnProgress, Progress, report
from .report import write_text

if TYPE_CHECKING:
    from .registration import Registration

SYNTHETIC = f"SYNTHETIC face, MRIRefaceRisk {__version__}"
DRAWING_METHODS = ("average_face", "mri_reface")  # defacers that put another face where the face was
MASK = "removed region"  # what the record of a mask says, so that nobody takes it for a head


@dataclass(frozen=True)
class Done:
    """What a job leaves: `outputs` (name -> path), `record` (as JSON holds it), `parts` (live objects)."""

    outputs: dict[str, Path]
    record: dict
    parts: dict = field(default_factory=dict, repr=False)


def deface(
    source: str | Path,
    out: str | Path,
    method: str = "mri_deface",
    engine: str = "builtin",
    mask_out: str | Path | None = None,
    quality_out: str | Path | None = None,
    mask: str | Path | None = None,
    options: Mapping[str, object] | None = None,
    picture: str | Path | None = None,
    force: bool = False,
    apply_to: Sequence[str | Path] = (),
    apply_out: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> Done:
    """Removes the face of the head in `source`; `mask_out` gets the removed region (1 = removed).

    `mask`: what the method `interactive` removes. `options`: of the method, as `margin_mm`, `fill`, `seed`.
    `picture`: a page (PNG) with slices, renderings and the verdict; it shows the true face. `force` writes the result
    even if brain was touched or the registration failed.
    A DICOM folder as `source` and a name without an ending as `out` give a de-identified DICOM series.
    `apply_to`: other images of the same head, which lose the same tissue on their own grids; they are written to the
    folder `apply_out` (default: that of `out`) as `<name>_defaced`. Either all images are written or none.
    Raises RefaceRiskError for an unreadable head, an unknown method, engine or option, or an output that is an input.
    """
    inputs = [path for path in (source, mask, *apply_to) if path is not None]
    carried_out = _carried_names(apply_to, Path(out).parent if apply_out is None else Path(apply_out))
    others = {"mask": mask_out, "quality": quality_out, "picture": picture, **carried_out}
    outputs = _Outputs(inputs=inputs, main=out, others=others)
    if picture is not None:
        _must_be_png(picture)
    for path in apply_to:
        if not Path(path).exists():
            raise RefaceRiskError("no such file", "check the path", path)
    from .defacing import deface as remove_face

    began = time.perf_counter()
    head = volumes.load(source)
    volumes.check_head(head)
    options = dict(options or {}) | ({} if mask is None else {"mask": load_mask(mask, head)})
    defaced = remove_face(head, method, engine=engine, force=force, on_progress=on_progress, **options)
    told = {"engine": engine, **_plain(defaced.options)} | ({} if mask is None else {"mask": Path(mask).name})
    record = {
        "command": "deface",
        "method": method,
        "options": told,
        "seed": told.get("seed") if told.get("fill") == "noise" else None,
        "input": _origin(head, source),
        "weights": None,
        "registration": _plain(defaced.registration.quality),
        "quality": _plain(defaced.quality),
        "removed_voxels": int(np.count_nonzero(defaced.removed)),
        "seconds": round(time.perf_counter() - began, 2),
    }
    carried = _carry(defaced, dict(zip(carried_out, apply_to, strict=True)), record, force, on_progress)
    result = defaced.volume.noted(description=f"MRIRefaceRisk {__version__}: face removed ({method})"[:79])
    if told.get("fill", "average" if method in DRAWING_METHODS else "zero") == "average":
        record["synthetic"] = True
        result = result.noted(description=_note(method))
    outputs.begin()
    if mask_out is not None:
        mask = head.with_intensities(defaced.removed, dtype=np.uint8).noted(description="1 = removed by defacing")
        outputs.volume("mask", mask, {**record, "content": MASK})
    if quality_out is not None:
        outputs.text("quality", json.dumps(record["quality"], indent=2) + "\n")
    if picture is not None:
        from .defacing.qc_picture import qc_page

        report(on_progress, "picture", 0, 1)
        qc_page(head, defaced, outputs.path("picture"), title=Path(source).name)
        outputs.note("picture")
    for name, (volume, told) in carried.items():
        outputs.volume(name, volume, told)
    if outputs.main_is_series:
        outputs.series("defaced", head, defaced, method, record)
    else:
        outputs.volume("defaced", result, {**hygiene.bids_physics(Path(source)), **record})
    record = {**record, "carried": {name: told for name, (_, told) in carried.items()}}
    return Done(outputs.written, record, {"head": head, "defaced": defaced})


def _carried_names(sources: Sequence[str | Path], folder: Path) -> dict[str, Path]:
    """Name -> where to write, of each image that a defacing is carried to; its own file type where that is written."""
    found = {}
    for label, path in zip(_labels(sources), map(Path, sources), strict=True):
        ending = path.name[len(_stem(path)) :].lower()
        kept = ending if ending and ending != ".nhdr" else ".nii.gz"
        stem = path.stem if path.suffix.lower() == ".dcm" else _stem(path)
        found[f"{label} defaced"] = folder / f"{stem}_defaced{kept}"
    return found


def _carry(
    defaced, sources: Mapping[str, str | Path], record: Mapping, force: bool, on_progress: OnProgress | None
) -> dict[str, tuple[volumes.Volume, dict]]:
    """Name -> the other image without its face and its record."""
    if not sources:
        return {}
    from .defacing.apply_to import apply_to

    done = {}
    for name, path in sources.items():
        began = time.perf_counter()
        other = volumes.load(path)
        result = apply_to(defaced, other, force=force, on_progress=within(on_progress, name))
        told = {
            **hygiene.bids_physics(Path(path)),
            **record,
            "options": {**record["options"], **_plain(result.options)},
            "input": _origin(other, path),
            "carried_from": record["input"],
            "registration": _plain(result.registration.quality),
            "quality": _plain(result.quality),
            "removed_voxels": int(np.count_nonzero(result.removed)),
            "seconds": round(time.perf_counter() - began, 2),
        }
        note = f"MRIRefaceRisk {__version__}: face removed ({result.method})"[:79]
        if result.options.get("fill") == "average":
            told["synthetic"], note = True, _note(result.method)
        done[name] = (result.volume.noted(description=note), told)
    return done


def compare(
    source: str | Path,
    out: str | Path,
    methods: Sequence[str] | None = None,
    picture: bool = True,
    fill: str | None = None,
    on_progress: OnProgress | None = None,
) -> Done:
    """Runs several defacers on the head in `source`, on one registration, and writes what they made to folder `out`.

    For each method `METHOD.nii.gz` and `METHOD_mask.nii.gz`, for all `comparison.tsv`, `comparison.json` and
    `comparison.png` (it shows the true face). `methods` (default: all that need no mask drawn by hand).
    `fill`: what the removed voxels get, by all methods alike (default: each method's own).
    Raises RefaceRiskError for an unreadable head, an unknown method, or an output that is an input.
    """
    from .defacing import compare as comparing

    methods = list(comparing.automatic_methods() if methods is None else methods)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise RefaceRiskError("is a file", "name a folder for the defaced volumes", out)
    files = {name: out / f"comparison.{name}" for name in ("tsv", "json")}
    files |= {"picture": out / "comparison.png"} if picture else {}
    files |= {method: out / f"{method}.nii.gz" for method in methods}
    files |= {f"{method} mask": out / f"{method}_mask.nii.gz" for method in methods}
    outputs = _Outputs(inputs=[source], main=None, others=files)
    head = volumes.load(source)
    volumes.check_head(head)
    options = {} if fill is None else {"fill": fill}
    trials = [comparing.Trial(method, options) for method in methods]
    comparison = comparing.compare(head, trials, on_progress=on_progress)
    rows = comparison.rows()
    record = {
        "command": "compare",
        "version": __version__,
        "input": _origin(head, source),
        "registration": _plain(comparison.head.registration.quality),
        "preparing_seconds": round(comparison.preparing_seconds, 2),
        "rows": _plain(rows),
    }
    for method, result in comparison.results.items():
        told = {**record, "method": method, "options": _plain(result.options), "quality": _plain(result.quality)}
        del told["rows"]
        volume = result.volume.noted(description=f"MRIRefaceRisk {__version__}: face removed ({method})"[:79])
        if result.options.get("fill") == "average":
            told["synthetic"] = True
            volume = result.volume.noted(description=_note(method))
        mask = head.with_intensities(result.removed, dtype=np.uint8).noted(description="1 = removed by defacing")
        outputs.volume(f"{method} mask", mask, {**told, "content": MASK})
        outputs.volume(method, volume, told)
    if picture:
        from .defacing.qc_picture import comparison_picture

        report(on_progress, "picture", 0, 1)
        comparison_picture(comparison, outputs.path("picture"), title=Path(source).name)
        outputs.note("picture")
    outputs.text("tsv", tsv(rows, comparing.COLUMNS))
    outputs.text("json", json.dumps(record, indent=2) + "\n")
    return Done(outputs.written, record, {"comparison": comparison})


def prepare(
    source: str | Path, out: str | Path, skin: str | Path | None = None, on_progress: OnProgress | None = None
) -> Done:
    """What cutting by hand needs to know of the head in `source`.

    `out` (a volume) gets the distance to the brain, widened by a safety margin, in mm, negative inside. `skin` (.npz)
    gets the head's surface: points (N, 3) RAS mm, triangles (M, 3). The record holds the registration's quality and, as
    "plane", where Quickshear would cut: "origin" and "normal" (towards the face), RAS mm.
    """
    outputs = _Outputs(inputs=[source], main=out, others={"skin": skin})
    from .defacing import prepare as prepare_head
    from .defacing.quickshear import shear_plane
    from .surface.extract import extract_skin

    head = volumes.load(source)
    volumes.check_head(head)
    ready = prepare_head(head, on_progress=on_progress)
    normal, offset = shear_plane(ready.brain, head.affine)
    centre = np.argwhere(ready.brain).mean(axis=0) @ head.affine[:3, :3].T + head.affine[:3, 3]
    origin = centre + (offset - normal @ centre) * normal
    record = {
        "command": "prepare",
        "version": __version__,
        "input": _origin(head, source),
        "registration": _plain(ready.registration.quality),
        "plane": {"origin": origin.tolist(), "normal": (-normal).tolist()},
    }
    if skin is not None:
        report(on_progress, "skin", 0, 1)
        _save_surface(outputs.path("skin"), extract_skin(head))
        outputs.note("skin")
        report(on_progress, "skin", 1, 1)
    outputs.volume("brain distance", head.with_intensities(ready.brain_distance, dtype=np.float32), record)
    return Done(outputs.written, record, {"head": ready})


def montage(sources: Sequence[str | Path], out: str | Path, on_progress: OnProgress | None = None) -> Done:
    """One sheet (PNG) of the defaced heads in `sources`: files, or folders of which every defaced volume is taken.

    Verdicts are read from the JSON files beside them. In folders, volumes whose record is that of a mask or of another
    command are left out. Raises RefaceRiskError where there is none.
    """
    _must_be_png(out)
    files = [path for source in sources for path in _defaced_in(Path(source))]
    outputs = _Outputs(inputs=files, main=None, others={"montage": out})
    from .defacing.qc_picture import montage as draw
    from .defacing.qc_picture import tile_of

    if not files:
        raise RefaceRiskError(
            "no defaced volumes", "name some, or a folder that `refacerisk deface` wrote to", sources[0]
        )
    tiles = []
    for number, (label, path) in enumerate(zip(_labels(files), files, strict=True)):
        report(on_progress, "montage", number, len(files), label)
        tiles.append(tile_of(label, volumes.load(path), _record_of(path)))
    draw(tiles, outputs.path("montage"))
    outputs.note("montage")
    report(on_progress, "montage", len(files), len(files))
    verdicts = {label: tile.verdict for label, tile in zip(_labels(files), tiles, strict=True)}
    return Done(outputs.written, {"command": "montage", "version": __version__, "verdicts": verdicts})


def _defaced_in(source: Path) -> list[Path]:
    """The file itself, or the defaced volumes in a folder and the folders below it, told by their records."""
    if not source.is_dir():
        return [source]
    names = sorted(path for path in source.rglob("*") if _is_volume_name(path))
    records = {path: _record_of(path) for path in names}
    return [path for path, record in records.items() if "quality" in record and record.get("content") != MASK]


def _record_of(path: Path) -> dict:
    """The JSON record beside a volume; empty where there is none."""
    try:
        record = json.loads(_sidecar_of(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _must_be_png(path: str | Path) -> None:
    if Path(path).suffix.lower() != ".png":
        raise RefaceRiskError("the picture is a PNG", "name the file .png", path)


def reface(
    source: str | Path,
    out: str | Path,
    mask: str | Path | None = None,
    model: str = "reference",
    samples: int = 1,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    samples_out: str | Path | None = None,
    registration: Registration | None = None,
    on_progress: OnProgress | None = None,
) -> Done:
    """Puts a synthetic face on the defaced head in `source`; a missing `mask` (1 = removed) is estimated.

    `samples_out`: a folder for every drawn face (`sample-01.nii.gz` ...) and, of two or more, their spread
    (`uncertainty.nii.gz`). `registration` (template to this defaced head) saves the search for it.
    """
    inputs = [path for path in (source, mask) if path is not None]
    drawn = {} if samples_out is None else {f"sample-{n:02d}": _member(samples_out, n) for n in range(1, samples + 1)}
    if samples_out is not None and samples > 1:
        drawn["uncertainty"] = Path(samples_out) / "uncertainty.nii.gz"
    outputs = _Outputs(inputs=inputs, main=out, others=drawn)
    from .diffusion.cascade import Refacer

    began = time.perf_counter()
    defaced = volumes.load(source)
    volumes.check_head(defaced)
    removed = None if mask is None else load_mask(mask, defaced)
    refacer = Refacer.load(model)
    refaced = refacer.reface(
        defaced,
        removed=removed,
        samples=samples,
        steps=steps,
        seed=seed,
        device=device,
        registration=registration,
        on_progress=on_progress,
    )
    record = {
        "command": "reface",
        "synthetic": True,
        "method": Path(str(model)).name,
        "options": {
            "samples": samples,
            "steps": steps,
            "device": device,
            "mask": None if mask is None else Path(mask).name,
        },
        "seed": seed,
        "input": _origin(defaced, source),
        "weights": dict(refacer.weights),
        "registration": _plain(refaced.registration.quality),
        "removed_voxels": int(np.count_nonzero(refaced.removed)),
        "seconds": round(time.perf_counter() - began, 2),
    }
    note = _note(Path(str(model)).name)
    outputs.begin()
    for name, sample in zip((name for name in drawn if name != "uncertainty"), refaced.samples, strict=False):
        outputs.volume(name, sample.noted(description=note), record)
    if "uncertainty" in drawn and refaced.uncertainty is not None:
        spread = defaced.with_intensities(refaced.uncertainty).noted(
            description=f"{SYNTHETIC}: SD of the skin in mm"[:79]
        )
        outputs.volume("uncertainty", spread, record)
    outputs.volume("refaced", refaced.volume.noted(description=note), {**hygiene.bids_physics(Path(source)), **record})
    return Done(outputs.written, record, {"refaced": refaced, "defaced": defaced})


def measure(
    original: str | Path,
    others: Sequence[str | Path] | Mapping[str, str | Path],
    out: str | Path | None = None,
    picture: str | Path | None = None,
    removed: str | Path | None = None,
    drawn: Sequence[str] | None = None,
    coloured: Sequence[str] | None = None,
    titles: Mapping[str, str] | None = None,
    registration: Registration | None = None,
    skins: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> Done:
    """Distances (mm) from the skin of `original` to the skin of each of `others`.

    `others` may carry names (a mapping); else the names are those of the files. `out` ends in .json or .tsv.
    `picture` shows the original and the images named in `drawn`, then the original coloured by its distance to
    those named in `coloured` (default: all), under their `titles`.
    `registration` (template to original) saves the search for it where it is known.
    `skins`: a folder for the surfaces that were compared, `original.npz` and `<name>.npz`: points (N, 3) RAS mm,
    triangles (M, 3), distance_mm (N,) of each point from the original's skin.
    """
    named = dict(others) if isinstance(others, Mapping) else dict(zip(_labels(others), others, strict=True))
    inputs = [original, *named.values()] + ([] if removed is None else [removed])
    drawn_skins = {} if skins is None else {n: Path(skins) / f"{n}.npz" for n in ("original", *named)}
    skin_files = {f"{name} skin": path for name, path in drawn_skins.items()}
    outputs = _Outputs(inputs=inputs, main=None, others={"distances": out, "picture": picture, **skin_files})
    if out is not None and Path(out).suffix.lower() not in (".json", ".tsv"):
        raise RefaceRiskError("distances are written as .json or .tsv", "name the file so", out)
    if picture is not None:
        _must_be_png(picture)
    from .registration import register
    from .surface.measure import COLUMNS
    from .surface.measure import measure as measure_surfaces
    from .template import load_template

    steps = 3 + (picture is not None)
    report(on_progress, "measure", 0, steps, "reading")
    head = volumes.load(original)
    volumes.check_head(head)
    images = {name: volumes.load(path) for name, path in named.items()}
    taken = None if removed is None else load_mask(removed, head)
    template = load_template()
    report(on_progress, "measure", 1, steps, "registration")
    if registration is None:
        registration = register(head, template, on_progress=within(on_progress, "measure"))
    report(on_progress, "measure", 2, steps, "distances")
    measurement = measure_surfaces(
        head, images, template, registration, taken, on_progress=within(on_progress, "measure")
    )
    record = {
        "command": "measure",
        "version": __version__,
        "original": _origin(head, original),
        "images": {name: _origin(image, named[name]) for name, image in images.items()},
        "registration": _plain(registration.quality),
        "rows": sorted(measurement.rows(), key=lambda row: row["region"] != "face"),
    }
    if picture is not None:
        report(on_progress, "measure", 3, steps, "picture")
        rows = [(name, is_synthetic(images[name], named[name])) for name in (named if drawn is None else drawn)]
        outputs.begin()
        _draw(
            measurement,
            rows,
            named if coloured is None else coloured,
            titles or {},
            registration,
            outputs.path("picture"),
        )
        outputs.note("picture")
    if out is not None:
        outputs.begin()
        text = (
            tsv(record["rows"], COLUMNS) if Path(out).suffix.lower() == ".tsv" else json.dumps(record, indent=2) + "\n"
        )
        outputs.text("distances", text)
    for name in drawn_skins:
        _save_skin(outputs.path(f"{name} skin"), measurement, name)
        outputs.note(f"{name} skin")
    report(on_progress, "measure", steps, steps)
    return Done(outputs.written, record, {"measurement": measurement, "registration": registration})


def _save_skin(path: Path, measurement, name: str) -> None:
    """A surface and how far its points lie from the original's skin, whole or not at all."""
    from .surface.distance import point_to_surface

    own = name == "original"
    skin = measurement.original if own else measurement.surfaces[name]
    distance = np.zeros(len(skin.points)) if own else point_to_surface(skin.points, measurement.original)
    _save_surface(path, skin, distance_mm=distance.astype("f4"))


def _save_surface(path: Path, surface, **of_points: np.ndarray) -> None:
    """Points and normals (N, 3), triangles (M, 3), what belongs to each point, as .npz, whole or not at all."""
    with volumes.written_beside(path, ".npz") as temporary:
        points, normals = surface.points.astype("f4"), surface.normals.astype("f4")
        np.savez(temporary, points=points, normals=normals, triangles=surface.triangles.astype("i4"), **of_points)


def train(
    stage: str,
    data: str | Path,
    out: str | Path,
    resume: bool = False,
    steps: int = 4000,
    batch: int = 1,
    seed: int = 0,
    minutes: float | None = None,
    on_progress: OnProgress | None = None,
) -> Done:
    """Trains one stage of the model on whole heads: a folder of volumes (BIDS or not), or a participants table."""
    from .diffusion.training import train as train_stage

    data = Path(data)
    if not data.exists():
        raise RefaceRiskError("no such file or folder", "--data is a folder of whole heads, or a table of them", data)
    heads: Path | dict[str, Path] = data
    if data.is_file():
        from .study.participants import read_participants

        heads = {person.name: person.head for person in read_participants(data)}
    train_stage(stage, heads, out, resume, steps, batch, seed, minutes, on_progress)
    return Done({"weights": Path(out)}, {"command": "train", "stage": stage, "resumed": resume})


def muscle_measure(
    source: str | Path,
    out: str | Path | None = None,
    labels: str | Path | None = None,
    wanted: Sequence[int | str] | None = None,
    site: str | None = None,
    slice_number: int | None = None,
    roi: str | Path | None = None,
    slab_mm: float = 0.0,
    picture: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> Done:
    """Radiodensity of muscles in the CT `source`: of a label map (`wanted`: numbers or names), or of a `site` (abdomen,
    thigh, shin) segmented without a network at one level. `out` (JSON) gets a list of objects, one a muscle.
    """
    inputs = [path for path in (source, labels, roi) if path is not None]
    outputs = _Outputs(inputs=inputs, main=None, others={"radiodensity": out, "picture": picture})
    if picture is not None:
        _must_be_png(picture)
    from .radiodensity.fit import measure_ct

    report(on_progress, "measure", 0, 1)
    drawn = None if picture is None else outputs.path("picture")
    rows, record = measure_ct(source, labels, wanted, site, slice_number, roi, slab_mm, drawn)
    if picture is not None:
        outputs.note("picture")
    if out is not None:
        outputs.text("radiodensity", json.dumps(_plain(rows), indent=2) + "\n")
    report(on_progress, "measure", 1, 1)
    return Done(outputs.written, {**record, "rows": _plain(rows)})


def muscle_segment(
    source: str | Path,
    out: str | Path,
    site: str,
    slice_number: int | None = None,
    slab_mm: float = 0.0,
    on_progress: OnProgress | None = None,
) -> Done:
    """Finds the muscle of a `site` (abdomen, thigh, shin) in the CT `source` without a network.

    `out` gets a label map on the slices around the level, with the numbers that the record's "tissues" names; tissue is
    labelled on the measured slices only. The record's "rows" are those of `muscle_measure`.
    """
    outputs = _Outputs(inputs=[source], main=out, others={})
    from .radiodensity.ct import load_ct, measure_site
    from .radiodensity.segmentation import TISSUES

    report(on_progress, "segment", 0, 1)
    rows, found, around, chosen = measure_site(load_ct(source), site, slice_number, slab_mm=slab_mm)
    record = {"command": "muscle segment", "version": __version__, "site": site, "tissues": dict(TISSUES)}
    record["rows"] = _plain([row.as_dict() for row in rows])
    outputs.volume("labels", around.with_intensities(found.tissues() * chosen, dtype=np.uint8), record)
    report(on_progress, "segment", 1, 1)
    return Done(outputs.written, record)


def muscle_fit(
    source: str | Path,
    out: str | Path,
    images: str | Path | None = None,
    on_progress: OnProgress | None = None,
    heads: Mapping[str, str | Path] | None = None,
    **options,
) -> Done:
    """Predicts the muscle of the people in the table `source` from their heads; tables, figure and report go to folder
    `out`. `images`: folder of the image types, kept for the next run. `heads`: participant -> head, where `images`
    holds already what could be made of them. `options`: of `radiodensity.fit.FitOptions`."""
    from .radiodensity.fit import FitOptions, fit

    for name in ("targets", "types"):
        if options.get(name) is not None:
            options[name] = tuple(options[name])
    done = fit(source, out, FitOptions(**options), images, on_progress, heads)
    rows = {"correlations": _plain(done.correlations), "comparisons": _plain(done.comparisons)}
    return Done(done.files, {**_plain(done.record), **rows, "left_out": [str(problem) for problem in done.problems]})


def _demo(**arguments) -> Done:
    from .demo import run_demo

    return run_demo(**arguments)


def _study(**arguments) -> Done:
    from .study.run import run_study

    return run_study(**arguments)


JOBS: dict[str, Callable[..., Done]] = {
    "deface": deface,
    "compare": compare,
    "prepare": prepare,
    "montage": montage,
    "reface": reface,
    "measure": measure,
    "train": train,
    "muscle_measure": muscle_measure,
    "muscle_segment": muscle_segment,
    "muscle_fit": muscle_fit,
    "study": _study,
    "demo": _demo,
}


def defacing_methods() -> dict[str, str]:
    """Name -> one line of what it does, from the registry of defacers and the head of each one's module."""
    from .defacing import METHODS

    told = {
        name: getattr(sys.modules.get(getattr(run, "__module__", "")), "__doc__", "") for name, run in METHODS.items()
    }
    return {name: (text or "").strip().split("\n")[0] for name, text in told.items()}


def original_programs() -> dict[str, str]:
    """Name -> what `--engine original` runs for it and where that comes from."""
    from .defacing import PROGRAMS

    return {
        name: f"{program.executables[0]}, of {program.package}: {program.url}" for name, program in PROGRAMS.items()
    }


def load_mask(path: str | Path, like: volumes.Volume) -> np.ndarray:
    """A mask (1 = removed) on the grid of `like`, as bool (I, J, K).

    Raises RefaceRiskError when its grid is another one, when it is empty, or when it marks what was kept.
    """
    mask = volumes.load(path)
    if mask.shape != like.shape or not np.allclose(mask.affine, like.affine, atol=1e-2):
        raise RefaceRiskError(
            f"the mask's grid {mask.shape} is not that of the head {like.shape}",
            "use the mask that `refacerisk deface --mask-out` wrote for this head",
            path,
        )
    removed = np.asarray(mask.voxels) > 0.5 * float(np.max(mask.voxels, initial=0)) if np.any(mask.voxels) else None
    if removed is None or not removed.any():
        raise RefaceRiskError("the mask is empty", "1 marks the removed region", path)
    if removed.all() or (_is_flat(like.voxels[~removed]) and not _is_flat(like.voxels[removed])):
        raise RefaceRiskError("the mask marks what was kept", "invert it: 1 marks the removed region", path)
    return removed


def is_synthetic(volume: volumes.Volume, path: str | Path) -> bool:
    """Whether header or sidecar say that the face was drawn by a model."""
    header, note = volume.meta.header, ""
    if volume.meta.format == "nifti":
        note = bytes(header.fields["descrip"]).decode("ascii", "replace")
    elif isinstance(header, Mapping):
        note = str(header.get("description", ""))
    return note.startswith("SYNTHETIC") or _record_of(Path(path)).get("synthetic") is True


def table(rows: Sequence[Mapping]) -> str:
    """The table that commands print: image, mean, median and 95th percentile in mm, aligned."""
    heads = ("image", "mean_mm", "median_mm", "p95_mm")
    lines = [heads] + [(str(row["image"]), *(f"{row[key]:.3f}" for key in heads[1:])) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        )
        for line in lines
    )


def comparison_table(rows: Sequence[Mapping]) -> str:
    """The table that `compare` prints: a line a method, the reasons of those that are not ok below."""
    lines = [("method", "verdict", "face gone", "still seen: eyes", "nose", "mouth", "brain touched", "ml", "s")]

    def cell(value: object, form: str) -> str:
        return "n/a" if value is None else format(value, form)

    for row in rows:
        shares = (cell(row[f"{name}_left"], ".0%") for name in ("eyes", "nose", "mouth"))
        numbers = (cell(row["brain_voxels_touched"], "d"), cell(row["removed_ml"], ".0f"), cell(row["seconds"], ".1f"))
        lines.append((row["method"], row["verdict"], cell(row["face_surface_removed"], ".0%"), *shares, *numbers))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    told = [
        "  ".join([line[0].ljust(widths[0]), line[1].ljust(widths[1])]
                  + [text.rjust(width) for text, width in zip(line[2:], widths[2:], strict=True)])
        for line in lines
    ]  # fmt: skip
    return "\n".join(told + [f"{row['method']}: {row['reason']}" for row in rows if row["reason"]])


def tsv(rows: Sequence[Mapping], columns: Sequence[str], number: str = ".4f") -> str:
    """Tab-separated text with a header; numbers in the format ``number``, n/a (BIDS) where there is none."""

    def cell(value: object) -> str:
        if value is None or (isinstance(value, float) and not np.isfinite(value)):
            return "n/a"
        return f"{value:{number}}" if isinstance(value, float) else " ".join(str(value).split())

    return "\n".join(["\t".join(columns)] + ["\t".join(cell(row.get(key)) for key in columns) for row in rows]) + "\n"


def within(on_progress: OnProgress | None, stage: str) -> OnProgress | None:
    """The same listener, with the stages of an inner function shown as part of `stage`."""
    if on_progress is None:
        return None

    def inner(progress: Progress) -> None:
        on_progress(
            Progress(f"{stage}: {progress.stage}", progress.step, progress.of, progress.message, progress.preview)
        )

    return inner


class _Outputs:
    """Where a job writes. Made before the work starts: a name that cannot be used is refused at once."""

    def __init__(self, inputs: Sequence[str | Path], main: str | Path | None, others: Mapping[str, str | Path | None]):
        self._main = None if main is None else Path(main)
        self._paths = {name: Path(path) for name, path in others.items() if path is not None}
        self.written: dict[str, Path] = {}
        self.main_is_series = self._main is not None and _is_series_name(self._main, Path(inputs[0]))
        with self._told(self._main or next(iter(self._paths.values()), Path())):
            self._refuse_clashes([Path(path) for path in inputs])

    def _refuse_clashes(self, inputs: list[Path]) -> None:
        wanted = ([] if self._main is None else [self._main]) + list(self._paths.values())
        kept = {path.resolve() for path in inputs}
        # A BIDS input has a sidecar of its own, which ours must not replace.
        kept |= {_sidecar_of(path).resolve() for path in inputs if _is_volume_name(path)}
        taken: set[Path] = set()
        if self.main_is_series:
            dicom_write.check_available()
            if kept & {self._main.resolve(), *self._main.resolve().parents}:
                raise RefaceRiskError("lies in the input's folder", "choose another folder", self._main)
            dicom_write.check_folder(self._main)
        for path in wanted:
            if path.is_dir() and not (self.main_is_series and path == self._main):
                raise RefaceRiskError("is a folder", "name a file to write", path)
            folder = next(parent for parent in path.resolve().parents if parent.exists())
            if not folder.is_dir() or not _can_be_written(folder):
                raise RefaceRiskError(f"the folder {folder} cannot be written to", "choose another folder", path)
            has_sidecar = _is_volume_name(path) or (self.main_is_series and path == self._main)
            for name in {path.resolve()} | ({_sidecar_of(path).resolve()} if has_sidecar else set()):
                if name in kept:
                    raise RefaceRiskError("would overwrite an input", "give another output name", path)
                if name in taken:
                    raise RefaceRiskError("is needed for two outputs", "give another output name", path)
                taken.add(name)
        for path in (self._main, self._paths.get("mask")):
            if self.main_is_series and path == self._main:
                continue
            if path is not None and (not _is_volume_name(path) or path.suffix.lower() == ".nhdr"):
                raise RefaceRiskError("is no name for a volume", "end it in .nii.gz, .nii, .mgz or .nrrd", path)

    def path(self, name: str) -> Path:
        return self._in_its_folder(self._paths[name])

    def begin(self) -> None:
        """Takes away the volume of an earlier run, so that it never stands beside newer files."""
        if self._main is not None and not self.main_is_series:
            with self._told(self._main):
                self._in_its_folder(self._main).unlink(missing_ok=True)

    def volume(self, name: str, volume: volumes.Volume, record: Mapping) -> None:
        path = self._paths.get(name, self._main)
        with self._all_or_nothing(name, path):
            volumes.sidecar(self._in_its_folder(path), **record)
            volumes.save(hygiene.cleaned(volume), path)

    def series(self, name: str, head: volumes.Volume, defaced, method: str, record: Mapping) -> None:
        with self._all_or_nothing(name, self._main):
            volumes.sidecar(self._in_its_folder(self._main), **record)
            gone = defaced.quality.verdict == "ok"
            dicom_write.write_series(head, defaced.volume, defaced.removed, self._main, method, gone)

    def text(self, name: str, text: str) -> None:
        path = self._paths[name]
        with self._all_or_nothing(name, path), self._told(path):
            write_text(text, path)

    def note(self, name: str) -> None:
        self.written[name] = self._paths[name]

    @contextlib.contextmanager
    def _all_or_nothing(self, name: str, path: Path) -> Iterator[None]:
        """A file that cannot be written takes those with it that this run has written before."""
        try:
            yield
        except BaseException:
            for done in (*self.written.values(), path):
                if done.is_file():
                    done.unlink()
                if done == self._main or _is_volume_name(done):
                    _sidecar_of(done).unlink(missing_ok=True)
            raise
        self.written[name] = path

    def _in_its_folder(self, path: Path) -> Path:
        with self._told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextlib.contextmanager
    def _told(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RefaceRiskError(
                f"cannot be written ({error.strerror})", "choose another name or folder", path
            ) from error


def _draw(
    measurement,
    drawn: Iterable[tuple[str, bool]],
    coloured: Iterable[str],
    titles: Mapping[str, str],
    registration: Registration,
    path: Path,
) -> None:
    from .surface.render import FaceRow, HeatRow, faces_figure

    rows = [FaceRow("original", measurement.original)]
    for name, synthetic in drawn:
        mean = f"{measurement[name]['face'].mean:.2f} mm"
        rows.append(FaceRow(titles.get(name, name), measurement.surfaces[name], mean, synthetic))
    heat = []
    for name in coloured:
        found = measurement[name]["face"]
        heat.append(HeatRow(titles.get(name, name), measurement.original, found.per_vertex, found.region))
    faces_figure(rows, path, heat=heat, frame=registration.matrix)


def _labels(paths: Sequence[str | Path]) -> list[str]:
    """File names without their endings; with the folder in front where two files have the same name."""
    stems = [_stem(Path(path)) for path in paths]
    full = [f"{Path(path).resolve().parent.name}/{stem}" for path, stem in zip(paths, stems, strict=True)]
    labels = [name if stems.count(stem) > 1 else stem for stem, name in zip(stems, full, strict=True)]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise RefaceRiskError(f"two images are called {twice}", "give each image once, from folders of different names")
    return labels


def _stem(path: Path) -> str:
    ending = next((ending for ending in volumes.EXTENSIONS if path.name.lower().endswith(ending)), "")
    return path.name[: len(path.name) - len(ending)]


def _is_volume_name(path: Path) -> bool:
    return _stem(path) != path.name


def _can_be_written(folder: Path) -> bool:
    """Tried, since the permissions do not tell of read-only file systems, network shares and quotas."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _is_series_name(out: Path, source: Path) -> bool:
    """A folder of DICOM slices is to be written: the source is one, and ``out`` is no file name."""
    from_dicom = source.is_dir() or source.suffix.lower() == ".dcm"
    return from_dicom and not _is_volume_name(out) and (out.is_dir() or not out.suffix)


def _sidecar_of(path: Path) -> Path:
    return path.with_name(_stem(path) + ".json")


def _member(folder: str | Path, number: int) -> Path:
    return Path(folder) / f"sample-{number:02d}.nii.gz"


def _note(how: str) -> str:
    return f"{SYNTHETIC} ({how})"[:79]  # what a NIfTI description holds


def _origin(volume: volumes.Volume, path: str | Path) -> dict:
    # The name alone: folders are often called after patients.
    return {"path": Path(path).name, "sha256": volume.meta.sha256}


def _is_flat(values: np.ndarray) -> bool:
    return values.size == 0 or bool(np.mean(values == np.median(values)) > 0.99)


def _plain(value: object) -> object:
    """Dataclasses and numpy numbers as JSON holds them."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, (np.generic, np.ndarray)) and np.size(value) == 1 else value
