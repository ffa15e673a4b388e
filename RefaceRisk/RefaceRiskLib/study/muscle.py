"""Muscle from the head, where the participants table tells of muscle: who takes part, and the fit over all of them.

The images of a head that the prediction sees are a step of that participant (`subject`), made of what the other steps
left on disk. The fit is one step of the cohort, and computed again only when something that it depends on has changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import __version__, jobs
from ..errors import RefaceRiskError
from ..progress import OnProgress
from ..radiodensity.cohort import SITES, Cohort, TooFewParticipants, read_cohort
from ..volumes import sha256_of
from .ledger import Ledger, signature
from .participants import Participant
from .plan import LAYOUT, Settings

COHORT = "_cohort"  # the record of all together; no participant can be called so
STEP = "muscle"


@dataclass(frozen=True, eq=False)
class Asked:
    """What a table of muscle allows. `why_not`: one line where it does not allow a fit, else ""."""

    table: Path
    targets: tuple[str, ...]
    cohort: Cohort | None
    why_not: str = ""

    @property
    def names(self) -> frozenset[str]:
        """Who has a head, an age, a sex and muscle; nobody where there is no fit."""
        return frozenset(() if self.why_not else (one.participant for one in self.cohort.participants))


def asked(source: Path, people: Sequence[Participant], settings: Settings) -> Asked | None:
    """What the table of the study tells of muscle; None where it has no such column, or where there is no table.

    Raises RefaceRiskError for a table with muscle that cannot be used at all, as one without age.
    """
    table = source / "participants.tsv" if source.is_dir() else source
    targets = _targets(table)
    if not targets:
        return None
    try:
        cohort = read_cohort(table, targets, {person.name: person.head for person in people})
    except TooFewParticipants as error:
        return Asked(table, targets, None, f"{error.what} ({error.hint})")
    except RefaceRiskError as error:
        hint = f"{error.hint}; or do without the muscle (--no-muscle)"
        raise RefaceRiskError(f"cannot be used for muscle: {error.what}", hint, error.path) from None
    most, least = max(_counts(cohort, targets)), _options(targets, settings)[1]
    return Asked(table, targets, cohort, "" if most >= least else _too_few(most, least, cohort))


def images_folder(ledger: Ledger) -> Path:
    """Where the images lie that the prediction sees; the originals among them show faces."""
    return ledger.folder / "muscle" / "images"


def bring_up_to_date(
    asked: Asked,
    people: Iterable[Participant],
    settings: Settings,
    ledger: Ledger,
    verify: bool = False,
    on_progress: OnProgress | None = None,
) -> dict:
    """Fits what is not fitted yet, into the folder muscle; returns what the summary tells of it.

    `people`: the finished ones. The result has `why_not`, and, where that is "", `in_words`, `correlations`,
    `comparisons` and `left_out`, the number of rows and values that could not be used.
    """
    if asked.why_not:
        return {"why_not": asked.why_not}
    options, _ = _options(asked.targets, settings)
    heads = {person.name: person.head for person in people}
    record = ledger.read(COHORT) or {"input": {}, "steps": {}}
    key = _key(asked, heads, ledger, options)
    if not ledger.is_finished(record, STEP, key, verify):
        out = ledger.out / "muscle"
        files, told = _fitted(asked.table, out, heads, ledger, options, jobs.within(on_progress, "muscle"))
        outputs = {path.relative_to(ledger.out).as_posix(): ledger.wrote(path) for path in files}
        record["steps"][STEP] = {"key": key, "told": told, "outputs": outputs}
        ledger.write(COHORT, record)
        shutil.rmtree(out / "folds", ignore_errors=True)  # large, and of use only to a run that was cut off
    return record["steps"][STEP]["told"]


def _fitted(table: Path, out: Path, heads: Mapping, ledger: Ledger, options: Mapping, on_progress) -> tuple:
    """The files, and what is told of them."""
    from ..radiodensity.report_page import without_nan

    try:
        done = jobs.muscle_fit(table, out, images_folder(ledger), on_progress, heads, **options)
    except TooFewParticipants as error:
        return [], {"why_not": f"{error.what} ({error.hint})"}
    told = {"why_not": "", "in_words": done.record["in_words"], "left_out": len(done.record["left_out"])}
    told |= {name: [without_nan(row) for row in done.record[name]] for name in ("correlations", "comparisons")}
    beside = (path.with_suffix(".json") for path in done.outputs.values())
    return [*done.outputs.values(), *(path for path in beside if path.is_file())], told


def _options(targets: tuple[str, ...], settings: Settings) -> tuple[dict, int]:
    """How to fit, as `refacerisk muscle fit` does by default; and how many participants that needs."""
    from ..radiodensity.fit import FitOptions, fewest

    options = FitOptions(targets=targets, types=settings.muscle_types(), seed=settings.seed)
    return asdict(options), fewest(options)


def _key(asked: Asked, heads: Mapping[str, Path], ledger: Ledger, options: Mapping) -> str:
    """Changes with the table, with any image or CT that takes part, and with how the fit is done."""
    told = {"version": __version__, "layout": LAYOUT, "table": sha256_of(asked.table), "options": options}
    for name in sorted(asked.names & heads.keys()):
        outputs = ledger.read(name)["steps"][STEP]["outputs"]
        told[name] = {file: output["sha256"] for file, output in outputs.items()}
    for one in asked.cohort.participants:
        for site, ct in one.cts.items():
            try:
                told[f"{one.participant} {site}"] = signature(ct)
            except OSError:  # gone since the table was read; the fit tells
                told[f"{one.participant} {site}"] = ""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _targets(table: Path) -> tuple[str, ...]:
    """As `hu_thigh`, of each site that the table's header has values or CTs of."""
    if not table.is_file():
        return ()
    with open(table, encoding="utf-8-sig") as stream:
        columns = {name.strip() for name in stream.readline().split("\t")}
    return tuple(f"hu_{site}" for site in SITES if columns & {f"hu_{site}", f"ct_{site}"})


def _counts(cohort: Cohort, targets: Sequence[str]) -> list[int]:
    """The participants with a value or a CT, of each target."""
    return [
        sum(target in one.targets or target.removeprefix("hu_") in one.cts for one in cohort.participants)
        for target in targets
    ]


def _too_few(most: int, least: int, cohort: Cohort) -> str:
    first = f" (the first: {cohort.problems[0]})" if cohort.problems else ""
    return f"{most} participants with muscle, age and sex are fewer than {least}{first}"
