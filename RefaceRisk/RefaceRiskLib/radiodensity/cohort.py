"""The table of a study: who has a head, a CT or HU values, an age and a sex; every row that cannot be used is listed.

As BIDS has it: tab-separated ``participants.tsv`` with `participant_id`, missing values written ``n/a``. `head` is a
path, absolute or relative to the table; `ct_abdomen|ct_thigh|ct_shin` name a file or DICOM folder, or
`hu_abdomen|hu_thigh|hu_shin` hold values measured before. Any other numeric column can be a target too.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import RefaceRiskError, one_line

SITES = ("abdomen", "thigh", "shin")
MISSING = ("", "n/a", "na", "nan", "null", "none")
AGES = (0.0, 120.0)
HU_VALUES = (-200.0, 300.0)
_CELLS = None  # under this key a row tells how many cells it has where they are too few or too many
_SEX = {"m": "M", "male": "M", "f": "F", "female": "F"}  # codes such as 1 and 2 differ between studies


class TooFewParticipants(RefaceRiskError):
    """The table is as it should be, but too few people in it can be used."""


@dataclass(frozen=True)
class Participant:
    """One usable row. `targets`: name -> value; `cts`: site -> path of a CT still to be measured."""

    participant: str
    head: Path
    age: float
    sex: str
    targets: dict[str, float] = field(default_factory=dict)
    cts: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """What keeps a row, or one value of it, from being used. `line` as an editor counts (the header is line 1);
    `dropped`: the whole row is out, else only the value named in `what`."""

    line: int
    participant: str
    what: str
    dropped: bool

    def __str__(self) -> str:
        consequence = "row left out" if self.dropped else "value left out"
        return one_line(f"line {self.line}, {self.participant or 'no name'}: {self.what} ({consequence})")


@dataclass(frozen=True)
class Cohort:
    """The usable rows and the list of everything that was not used; no row is in neither."""

    participants: list[Participant]
    problems: list[Problem]
    path: Path

    def with_target(self, target: str) -> list[Participant]:
        return [one for one in self.participants if target in one.targets]

    @property
    def targets(self) -> list[str]:
        """Names of all values and of all CT sites that some participant has, in the order of the table."""
        found = {name: None for one in self.participants for name in one.targets}
        return [*found, *({f"hu_{site}": None for one in self.participants for site in one.cts}.keys() - found.keys())]


def read_cohort(
    path: str | Path, targets: Sequence[str] | None = None, heads: Mapping[str, str | Path] | None = None
) -> Cohort:
    """Read and check a participants table.

    targets : columns of values to use (as ``hu_thigh`` or ``bmi``); default: every `hu_*` and `ct_*` column there is.
    heads : participant -> head, in place of the column `head`; rows of others do not take part.

    Raises RefaceRiskError when the table cannot be read, lacks `participant_id`, `head`, `age` or `sex`, has no target,
    or has no usable row (`TooFewParticipants`). Everything else is a `Problem` of its row.
    """
    path = Path(path)
    rows, columns = _read(path)
    if heads is not None:
        found_heads = {name: str(Path(head).absolute()) for name, head in heads.items()}
        taking_part = [(line, row) for line, row in rows if _cell(row, "participant_id") in found_heads]
        rows = [(line, row | {"head": found_heads[_cell(row, "participant_id")]}) for line, row in taking_part]
        columns = list(dict.fromkeys([*columns, "head"]))
    needed = [name for name in ("participant_id", "head", "age", "sex") if name not in columns]
    if needed:
        raise RefaceRiskError(f"has no column {', '.join(needed)}", f"its columns: {_listed(columns)}", path)
    values, sites = _wanted(columns, targets, path)
    problems: list[Problem] = []
    participants = []
    names = Counter(_cell(row, "participant_id") for _, row in rows)
    heads = Counter(_place(path, _cell(row, "head")) for _, row in rows if _cell(row, "head"))
    for line, row in rows:
        reasons = _against_the_row(row, path, names, heads)
        name = _cell(row, "participant_id")
        if reasons:
            problems.append(Problem(line, name, "; ".join(reasons), True))
            continue
        found, cts, left = _values(row, values, sites, path)
        problems += [Problem(line, name, what, False) for what in left]
        if not found and not cts:
            problems.append(Problem(line, name, f"no usable value of {', '.join([*values, *sites.values()])}", True))
            continue
        head, sex = _place(path, _cell(row, "head")), _SEX[_cell(row, "sex").lower()]
        participants.append(Participant(name, head, float(_cell(row, "age")), sex, found, cts))
    if not participants:
        raise TooFewParticipants(f"no usable row of {len(rows)}", str(problems[0]) if problems else "fill it", path)
    return Cohort(participants, problems, path)


def _read(path: Path) -> tuple[list[tuple[int, dict]], list[str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter="\t")
            lines, last = [], 0
            for cells in reader:  # a row with a quoted line break counts as an editor counts it
                lines.append((last + 1, cells))
                last = reader.line_num
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RefaceRiskError("cannot be read as a table", f"save it as tab-separated UTF-8 ({error})", path) from error
    if not lines or len(lines[0][1]) < 2:
        raise RefaceRiskError("is no tab-separated table", "its columns are divided by tabs, as BIDS has it", path)
    columns = [name.strip() for name in lines[0][1]]
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise RefaceRiskError(f"has the column {twice[0]!r} twice", "rename one", path)
    rows = [
        (
            number,
            dict(zip(columns, cells, strict=False)) | ({_CELLS: len(cells)} if len(cells) != len(columns) else {}),
        )
        for number, cells in lines[1:]
        if any(cell.strip() for cell in cells)
    ]
    return rows, columns


def _wanted(columns: list[str], targets: Sequence[str] | None, path: Path) -> tuple[list[str], dict[str, str]]:
    """Columns that hold values, and site -> column of those that hold CTs."""
    cts = {f"hu_{site}": site for site in SITES if f"ct_{site}" in columns}
    if targets is None:
        targets = [*(name for name in columns if name.startswith("hu_")), *cts]
    for name in targets:
        if name not in columns and name not in cts:
            raise RefaceRiskError(f"has no column {name}", f"its columns: {_listed(columns)}", path)
    if not targets:
        raise RefaceRiskError(
            "has nothing to predict", "add hu_abdomen, hu_thigh or hu_shin (HU), or ct_... (paths of CTs)", path
        )
    values = list(dict.fromkeys(name for name in targets if name in columns))
    return values, {cts[name]: f"ct_{cts[name]}" for name in targets if name in cts}


def _against_the_row(row: dict, path: Path, names: Counter, heads: Counter) -> list[str]:
    """Why a row cannot be used; empty if it can."""
    reasons = []
    if _CELLS in row:
        return [f"{row[_CELLS]} cells where the header has another number"]
    name, head = _cell(row, "participant_id"), _cell(row, "head")
    if not name:
        reasons.append("participant_id is missing")
    elif re.search(r"[^\w.-]", name) or name.startswith("."):
        reasons.append(f"participant_id {name!r} holds more than letters, digits, '-', '_' and '.'")
    if name and names[name] > 1:
        reasons.append(f"participant_id occurs {names[name]} times")
    if not head:
        reasons.append("head is missing")
    elif (place := _place(path, head)) is None:
        reasons.append(f"head {head} does not exist")
    elif heads[place] > 1:
        reasons.append(f"head {head} is given to {heads[place]} rows")
    elif (other := _other_subject(name, head)) is not None:
        reasons.append(f"head {head} is of {other}, not of {name}")
    age, sex = _number(_cell(row, "age")), _cell(row, "sex")
    if age is None or not AGES[0] < age < AGES[1]:
        reasons.append(f"age is {_cell(row, 'age') or 'missing'}")
    if sex.lower() not in _SEX:
        reasons.append(f"sex is {sex or 'missing'} (M or F)")
    return reasons


def _other_subject(participant: str, head: str) -> str | None:
    """The BIDS subject that a file name tells, where it is not the row's."""
    named = re.search(r"sub-[A-Za-z0-9]+", Path(head).name)
    if named is None or not participant.startswith("sub-") or named.group() == participant:
        return None
    return named.group()


def _values(row: dict, values: list[str], sites: dict[str, str], path: Path) -> tuple[dict, dict, list[str]]:
    found, cts, left = {}, {}, []
    for name in values:
        text = _cell(row, name)
        number = _number(text)
        if not text:
            left.append(f"{name} is missing")
        elif number is None or (name.startswith("hu_") and not HU_VALUES[0] < number < HU_VALUES[1]):
            left.append(f"{name} is {text}" + (", no HU of muscle" if number is not None else ", no number"))
        else:
            found[name] = number
    for site, column in sites.items():
        text = _cell(row, column)
        if f"hu_{site}" in found:
            continue  # measured before
        if not text:
            left.append(f"{column} is missing")
        elif (place := _place(path, text)) is None:
            left.append(f"{column} {text} does not exist")
        else:
            cts[site] = place
    # A value that the other column of the same site provides is not missing.
    provided = {f"hu_{site} is missing" for site in cts} | {
        f"{column} is missing" for site, column in sites.items() if f"hu_{site}" in found
    }
    return found, cts, [what for what in left if what not in provided]


def _listed(columns: list[str]) -> str:
    text = ", ".join(columns)
    return text if len(text) <= 500 else text[:500] + " ..."


def _cell(row: dict, name: str) -> str:
    text = (row.get(name) or "").strip()
    return "" if text.lower() in MISSING else text


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _place(table: Path, text: str) -> Path | None:
    """Where a path of the table leads; None where there is nothing, as for a text that cannot be a path."""
    try:
        place = (table.parent / text).resolve()
        return place if place.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, a circle of links, a NUL
        return None
