"""The linkage of a study on disk: chunks of probes against all originals, each chunk one task of the engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..template import load_template
from ..volumes import written_beside
from . import linkage
from .faces import POINTS, REGIONS, field_grid
from .ledger import Ledger
from .statistics import rate_interval
from .subject import use_one_thread

CHUNK = 8  # subjects whose probes one task aligns
COLUMNS = ("participant_id", "defacer", "image", "region", "rank", "own_mm", "best_other_mm", "originals", "chance",
           "seen_in_training", "flag")  # fmt: skip
SUMMARY_COLUMNS = ("group", "defacer", "image", "region", "n", "originals", "rank1", "rank1_low", "rank1_high", "rank5",
                   "eer", "eer_low", "eer_high", "chance")  # fmt: skip


def probes_of(ledger: Ledger, name: str, methods: Sequence[str]) -> dict[tuple[str, str], Path]:
    """(defacer, image) -> file of points; the re-meshed original is ("original", "remeshed")."""
    folder = ledger.faces(name)
    found = {("original", "remeshed"): folder / "original.npy"}
    for step, entry in sorted(ledger.read(name).get("steps", {}).items()):
        if step in methods:
            for file in entry["outputs"]:
                path = ledger.out / file
                if path.parent == folder:
                    found[step, path.stem.removeprefix(f"{step}_")] = path
    return found


def messages(ledger: Ledger, names: Sequence[str], methods: Sequence[str]) -> Iterator[dict]:
    """One a chunk; small: names, and a key that changes with any face that takes part."""
    gallery = _digest(ledger, names, ["original"])
    for start in range(0, len(names), CHUNK):
        part = list(names[start : start + CHUNK])
        key = hashlib.sha256((gallery + _digest(ledger, part, ["original", *methods])).encode()).hexdigest()
        yield {"name": f"linkage-{start // CHUNK:05d}", "out": str(ledger.out), "probes": part, "key": key,
               "methods": list(methods)}  # fmt: skip


def _digest(ledger: Ledger, names: Sequence[str], steps: Sequence[str]) -> str:
    total = hashlib.sha256(repr((linkage.SHORTLIST, linkage.ROUNDS, POINTS)).encode())
    for name in names:
        entries = ledger.read(name).get("steps", {})
        total.update(name.encode() + b"\0")
        for step in steps:
            for file, told in sorted(entries.get(step, {}).get("outputs", {}).items()):
                if "/faces/" in file:
                    total.update(f"{file}\0{told['sha256']}\0".encode())
    return total.hexdigest()


def link_chunk(message: Mapping) -> dict:
    """Aligns the probes of a few subjects with every original of the study; the distances go to a file."""
    use_one_thread()
    try:
        _link(message, Ledger(message["out"]))
    except (OSError, ValueError, MemoryError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return {"name": message["name"], "status": "failed", "reason": reason, "seconds": 0.0}
    return {"name": message["name"], "status": "done", "reason": "", "seconds": 0.0}


def _link(message: Mapping, ledger: Ledger) -> None:
    path = ledger.folder / "linkage" / f"{message['key'][:32]}.npz"
    if not path.is_file():
        originals = json.loads((ledger.folder / "linkage" / "originals.json").read_text(encoding="utf-8"))
        affine = field_grid(load_template())[1]
        galleries = _OnDisk([ledger.faces(name) / "gallery.npy" for name in originals], affine)
        labels, points = [], []
        for name in message["probes"]:
            for (defacer, image), file in probes_of(ledger, name, message["methods"]).items():
                found = np.load(file)
                for number, region in enumerate(REGIONS):
                    if (defacer, region) != ("original", "removed"):
                        labels.append((name, defacer, image, region))
                        points.append(found[number])
        distances = linkage.score_matrix(np.stack(points), galleries)
        _save(path, labels=np.array(labels), distances=distances)


class _OnDisk(Sequence):
    """Galleries that are read one at a time."""

    def __init__(self, paths: Sequence[Path], affine: np.ndarray):
        self._paths, self._affine = list(paths), affine

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> linkage.Gallery:
        return linkage.Gallery.load(self._paths[number], self._affine)


def _save(path: Path, **arrays: np.ndarray) -> None:
    with written_beside(path, ".npz", make_folder=True) as temporary:
        np.savez_compressed(temporary, **arrays)


def read_chunks(ledger: Ledger, files: Sequence[str]) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Labels (participant, defacer, image, region) and distances (P, G) of all chunks, in order."""
    labels: list[tuple[str, ...]] = []
    distances = []
    for file in files:
        with np.load(ledger.folder / "linkage" / file) as chunk:
            labels += [tuple(map(str, row)) for row in chunk["labels"]]
            distances.append(chunk["distances"])
    return labels, np.concatenate(distances) if distances else np.zeros((0, 0))


def tables(
    labels: Sequence[tuple[str, ...]], distances: np.ndarray, originals: Sequence[str], seen: Mapping[str, str]
) -> tuple[list[dict], list[dict], dict[str, list[float]]]:
    """Rows of `linkage.tsv` (a probe each), rows a group (rank-1, equal error rate), and the match curves.

    flag : "linked" where the own original is the nearest, "near" where it is among the nearest 5 %, else "none".
    """
    place = {name: number for number, name in enumerate(originals)}
    own = np.array([place[name] for name, *_ in labels], int)
    rank = linkage.ranks(distances, own)
    chance = 1 / len(originals)
    rows = []
    for number, (name, defacer, image, region) in enumerate(labels):
        if rank[number] == 0:
            continue
        others = np.delete(distances[number], own[number])
        near = rank[number] <= max(1, round(0.05 * len(originals)))
        rows.append({
            "participant_id": name, "defacer": defacer, "image": image, "region": region, "rank": int(rank[number]),
            "own_mm": float(distances[number, own[number]]),
            "best_other_mm": float(others.min()) if len(others) else None, "originals": len(originals),
            "chance": chance, "seen_in_training": seen[name],
            "flag": "linked" if rank[number] == 1 else "near" if near else "none",
        })  # fmt: skip
    summary, curves = [], {}
    kinds = sorted({label[1:] for label in labels}, key=_order)
    for group in ("all", "unseen") if "yes" in seen.values() else ("all",):
        takes = np.array([group == "all" or seen[label[0]] != "yes" for label in labels])
        for kind in kinds:
            where = takes & np.array([label[1:] == kind for label in labels]) & (rank > 0)
            count = int(where.sum())
            if not count:
                continue
            hits = int((rank[where] == 1).sum())
            low, high = rate_interval(hits, count)
            eer = linkage.equal_error_rate(distances[where], own[where])
            summary.append({
                "group": group, "defacer": kind[0], "image": kind[1], "region": kind[2], "n": count,
                "originals": len(originals), "rank1": hits / count, "rank1_low": low, "rank1_high": high,
                "rank5": float((rank[where] <= 5).mean()), "eer": _or_none(eer[0]), "eer_low": _or_none(eer[1]),
                "eer_high": _or_none(eer[2]), "chance": chance,
            })  # fmt: skip
            if group == "all":
                curves["/".join(kind)] = [float(x) for x in linkage.match_curve(rank[where], len(originals))]
    return rows, summary, curves


def _order(kind: tuple[str, ...]) -> tuple:
    return kind[0] != "original", kind[2], kind[0], ("defaced", "dpm", "average").index(kind[1]) if kind[1] in (
        "defaced", "dpm", "average") else 9, kind[1]  # fmt: skip


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
