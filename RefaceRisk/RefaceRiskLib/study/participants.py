"""Who takes part: read from a participants table, a BIDS data set, or a plain folder of heads.

A name from a table becomes a folder of the output, so that it may hold nothing that leads elsewhere.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import RefaceRiskError
from ..volumes import EXTENSIONS

# Letters, digits, - and _ after the first sign, dots only between them; short enough for every file system.
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_+-]|\.(?=[A-Za-z0-9])){0,99}")
# What Windows takes for a device, whatever the ending.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(10))}
_NAME_HINT = "use letters, digits, - and _"


@dataclass(frozen=True)
class Participant:
    """`name` as in the table (`sub-01`); `head`: the volume, which may turn out not to exist."""

    name: str
    head: Path


def read_participants(source: str | Path) -> list[Participant]:
    """The participants of a table (TSV with `participant_id` and `head`), of a BIDS data set or of a folder, by name.

    In a folder the head of `sub-01` is the one T1w image below `sub-01/` (sessions: the first by name), or the file
    `sub-01_T1w.nii.gz` or `sub-01.nii.gz` beside the table; without a `participants.tsv` every such image counts.
    `head` in a table may be absolute, or relative to the table.
    Raises RefaceRiskError for a table that cannot be read, a name that cannot be a folder, and names given twice.
    """
    source = Path(source)
    if not source.exists():
        raise RefaceRiskError("no such file or folder", "give a data set's folder or a participants table", source)
    if source.is_dir():
        table = source / "participants.tsv"
        rows = _rows(table) if table.is_file() else ((0, {"participant_id": name}) for name in _named_in(source))
        heads = _heads_in(source)
    else:
        table, rows, heads = source, _rows(source), {}
    found: dict[str, Participant] = {}
    spelled: set[str] = set()
    for line, row in rows:
        name = _checked_name(row.get("participant_id"), table, line)
        if name.lower() in spelled:  # one folder on file systems that do not tell cases apart
            raise RefaceRiskError(f"line {line}: {name} is there twice", "give each participant one row", table)
        spelled.add(name.lower())
        found[name] = Participant(name, _head_of(name, row, source, heads, table, line))
    if not found:
        raise RefaceRiskError(
            "no participants", "give a table with participant_id and head, or a folder with sub-*_T1w.nii.gz", source
        )
    return [found[name] for name in sorted(found)]


def _rows(table: Path) -> Iterator[tuple[int, dict]]:
    """Line number and row, one at a time: a table may have a hundred thousand."""
    try:
        with open(table, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            if "participant_id" not in (reader.fieldnames or ()):
                raise RefaceRiskError("has no column participant_id", "give a tab-separated table with one", table)
            for row in reader:
                if any(row.values()):
                    yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RefaceRiskError(f"cannot be read as a table ({reason})", "save it as TSV in UTF-8", table) from None


def _checked_name(text: object, table: Path, line: int) -> str:
    name = text.strip() if isinstance(text, str) else ""
    if not NAME.fullmatch(name) or name.split(".")[0].lower() in _DEVICES:
        raise RefaceRiskError(f"line {line}: {name[:60]!r} is no name for a participant", _NAME_HINT, table)
    return name


def _head_of(name: str, row: dict, source: Path, heads: dict[str, Path], table: Path, line: int) -> Path:
    told = (row.get("head") or "").strip()
    if told and told.lower() != "n/a":
        if "\0" in told:
            raise RefaceRiskError(f"line {line}: the path of the head is no path", "correct it", table)
        try:
            return table.parent / Path(told).expanduser()
        except RuntimeError:  # ~somebody of whom this computer does not know
            raise RefaceRiskError(f"line {line}: nobody's home is {told[:60]!r}", "give a whole path", table) from None
    if source.is_dir():
        return heads.get(name, source / f"{name}_T1w.nii.gz")
    raise RefaceRiskError(f"line {line}: {name} has no head", "fill the column head", table)


def _named_in(folder: Path) -> list[str]:
    named = sorted(_heads_in(folder))
    return [name for name in named if NAME.fullmatch(name)]


def _heads_in(folder: Path) -> dict[str, Path]:
    """Participant -> head, as BIDS lays them out; a folder's own images where there are no subjects' folders."""
    heads: dict[str, Path] = {}
    for path in _images(folder.glob("sub-*/**/anat/*_T1w.*")):
        heads.setdefault(path.relative_to(folder).parts[0], path)
    for path in _images(folder.iterdir()):
        name = path.name[: -len(_ending(path))]
        heads.setdefault(name.removesuffix("_T1w"), path)
    return heads


def _images(paths: Iterable[Path]) -> list[Path]:
    # Derivatives of a data set hold defaced copies of the same heads.
    return sorted(path for path in paths if _ending(path) and "derivatives" not in path.parts and path.is_file())


def _ending(path: Path) -> str:
    if path.name.startswith("."):
        return ""
    return next((ending for ending in EXTENSIONS if path.name.lower().endswith(ending)), "")
