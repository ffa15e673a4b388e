"""The study from one command: who takes part, what is left to do, all of it, then tables, tests, figures and report.

Given again, the command goes on where it stopped and computes only what has changed; when nothing has, no file of the
folder is touched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from .. import __version__, jobs
from ..errors import RefaceRiskError
from ..progress import OnProgress, report
from ..report import write_text
from ..volumes import sha256_of
from . import link, statistics
from . import muscle as muscles
from .engine import Engine, engine
from .ledger import Ledger, locked
from .participants import Participant, read_participants
from .plan import Settings, checked_settings, image_of, trained_on
from .subject import is_up_to_date, process

DISTANCES = ("participant_id", "defacer", "image", "region", "mean_mm", "median_mm", "p95_mm", "symmetric_mean_mm",
             "seconds", "seen_in_training")  # fmt: skip
DEFACING = ("participant_id", "defacer", "verdict", "reason", "face_surface_removed", "brain_voxels_touched",
            "removed_voxels", "refused")  # fmt: skip
TESTS = ("group", "defacer", "image", "against", "n", "difference_mm", "difference_low", "difference_high",
         "rank_biserial", "rank_biserial_low", "rank_biserial_high", "p", "p_holm")  # fmt: skip
FAILED = ("participant_id", "reason")
LARGEST_LINKAGE = 5000  # heads; every pair of them is compared
FORGETTING = "The original faces in it can be recognised: keep this folder as you keep the scans, or delete it.\n"


def run_study(
    source: str | Path,
    out: str | Path,
    methods: Sequence[str] | None = None,
    models: Sequence[str] = ("reference", "average"),
    steps: int | None = None,
    samples: int = 1,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    scheduler: str | None = None,
    linkage: bool = True,
    muscle: bool = True,
    pictures: Sequence[str] = (),
    verify: bool = False,
    strict: bool = False,
    on_note: Callable[[str], None] | None = None,
    on_progress: OnProgress | None = None,
    task: Callable[[Mapping], dict] = process,
) -> jobs.Done:
    """Defaces, refaces and measures every participant of `source` (folder or TSV), and links them; all goes to `out`.
    Where the table has muscle (`hu_thigh`, `ct_thigh` ...), predicts it from each kind of image (`muscle`: or not).

    `methods`: defacers (None or "all": all that need no mask by hand). `models`: refacers. `steps`: network calls a
    stage (default: 4, the light setting). `workers`, `scheduler`: see `engine`. `pictures`: participants whose faces
    are drawn. `verify` hashes every file of earlier runs instead of trusting size and time. `strict`: participants that
    failed are an error at the end. `on_note` gets lines for people, such as the dashboard's address.
    Returns a `jobs.Done`; its record is what `summary.json` holds. What `task` leaves in the ledger is what counts.
    Raises RefaceRiskError for wrong options, a table that cannot be used, a folder in which another run works.
    """
    settings = checked_settings(
        methods, models, samples=samples, seed=seed, device=device, **({} if steps is None else {"steps": steps})
    )
    people = read_participants(source)
    out = _checked_out(Path(out), Path(source), people)
    strangers = set(pictures) - {person.name for person in people}
    if strangers:
        raise RefaceRiskError(f"--pictures: {min(strangers)} does not take part", "name participants of the table")
    say = on_note or (lambda line: None)
    body = muscles.asked(Path(source), people, settings) if muscle else None
    with_muscle = body.names if body else frozenset()
    with locked(out) as cut_off:
        if cut_off:
            say(f"an earlier run ({cut_off}) was cut off; going on from what it finished")
        ledger = Ledger(out)
        write_if_changed(FORGETTING, ledger.folder / "README.txt")
        waiting = []
        for number, person in enumerate(people):
            if number % 100 == 0:
                report(on_progress, "what is left to do", number, len(people))
            if not is_up_to_date(ledger, person.name, person.head, settings, verify, person.name in with_muscle):
                waiting.append(person)
        report(on_progress, "what is left to do", len(people), len(people), f"{len(waiting)} participants")
        idle = not waiting
        with engine(0 if idle else workers, None if idle else scheduler, len(waiting)) as force:
            if force.dashboard:
                say(f"{force.workers} workers; dashboard: {force.dashboard}")
            failed = _bring_up_to_date(force, waiting, settings, ledger, verify, with_muscle, task, on_progress)
            finished = [person.name for person in people if person.name not in failed]
            if linkage and len(finished) > LARGEST_LINKAGE:
                say(f"the linkage is left out: it compares all pairs, and takes {LARGEST_LINKAGE} heads at most")
                linkage = False
            linked = _link(force, ledger, finished, settings, on_progress) if linkage and len(finished) > 1 else []
        predicted = None
        if body is not None:
            able = [person for person in people if person.name not in failed]
            predicted = muscles.bring_up_to_date(body, able, settings, ledger, verify, on_progress)
            if predicted["why_not"]:
                say(f"no muscle is predicted: {predicted['why_not']}")
        drawn = _draw_faces(people, finished, pictures, settings, ledger, on_progress)
        done = _write_all(ledger, people, finished, failed, settings, linked, predicted, drawn, on_progress)
    if strict and failed:
        raise RefaceRiskError(
            f"{len(failed)} of {len(people)} participants failed, the first: {min(failed)}: {failed[min(failed)]}",
            "see failed.tsv; the others are finished",
            out,
        )
    return done


def _checked_out(out: Path, source: Path, people: Sequence[Participant]) -> Path:
    if out.exists() and not out.is_dir():
        raise RefaceRiskError("is a file", "name a folder for the study", out)
    folder = source if source.is_dir() else source.parent
    inside = {folder.resolve(), *(person.head.parent.resolve() for person in people[:1000])}
    if out.resolve() in inside:
        raise RefaceRiskError("holds the heads of the study", "name another folder for the results", out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefaceRiskError(f"cannot be made ({error.strerror})", "choose another folder", out) from error
    return out


def _bring_up_to_date(
    force: Engine,
    waiting: Sequence[Participant],
    settings: Settings,
    ledger: Ledger,
    verify: bool,
    with_muscle: Collection[str],
    task,
    on_progress,
) -> dict[str, str]:
    """Runs what is left; participant -> reason, of those that failed."""
    told = settings.as_message()
    messages = (
        {"name": p.name, "head": str(p.head.absolute()), "out": str(ledger.out.absolute()), "settings": told,
         "verify": verify, "muscle": p.name in with_muscle}
        for p in waiting
    )  # fmt: skip
    failed: dict[str, str] = {}
    report(on_progress, "participants", 0, len(waiting))
    for done, result in enumerate(force.run(task, messages), 1):
        if result["status"] != "done":
            failed[result["name"]] = result["reason"]
        ending = result["status"] if result["status"] == "done" else f"failed: {result['reason']}"
        report(on_progress, "participants", done, len(waiting), f"{result['name']} {ending}")
    return failed


def _link(force: Engine, ledger: Ledger, names: Sequence[str], settings: Settings, on_progress) -> list[str]:
    """The files with the distances of all probes, in order of participants; a chunk that is there is not done again."""
    write_if_changed(json.dumps(list(names)) + "\n", ledger.folder / "linkage" / "originals.json")
    chunks = list(link.messages(ledger, names, settings.methods))
    folder = ledger.folder / "linkage"
    files = [f"{chunk['key'][:32]}.npz" for chunk in chunks]
    missing = [chunk for chunk, file in zip(chunks, files, strict=True) if not (folder / file).is_file()]
    report(on_progress, "linkage", 0, len(missing))
    for done, result in enumerate(force.run(link.link_chunk, missing), 1):
        if result["status"] != "done":
            raise RefaceRiskError(f"the linkage failed: {result['reason']}", "give the same command again", ledger.out)
        report(on_progress, "linkage", done, len(missing))
    for stale in folder.glob("*.npz"):
        if stale.name not in files:
            stale.unlink(missing_ok=True)
    return files


def _draw_faces(people, finished, pictures, settings: Settings, ledger: Ledger, on_progress) -> dict[str, Path]:
    """Label -> picture, of the participants that were asked for; drawn once."""
    heads = {person.name: person.head for person in people if person.name in finished}
    drawn: dict[str, Path] = {}
    for name in pictures:
        if name not in heads:
            continue
        entries = ledger.read(name)["steps"]
        for method in settings.methods:
            rows = entries[method].get("rows", [])
            images = list(dict.fromkeys(row["image"] for row in rows))
            if not images or entries[method].get("quality") is None:
                continue
            key = hashlib.sha256(json.dumps(entries[method]["outputs"], sort_keys=True).encode()).hexdigest()[:16]
            path = ledger.out / name / "figures" / f"{method}_faces.png"
            stamp = ledger.folder / "pictures" / f"{name}_{method}"
            if not (path.is_file() and stamp.is_file() and stamp.read_text() == key):
                from .subject import volume_path

                others = {image: volume_path(ledger.out, name, method, image) for image in images}
                jobs.measure(heads[name], others, picture=path, coloured=[i for i in images if i != "defaced"])
                write_text(key, stamp)
            drawn[f"{name}, {method}"] = path
        report(on_progress, "pictures", len(drawn), len(pictures) * len(settings.methods))
    return drawn


def _write_all(ledger, people, finished, failed, settings, linked, muscle, drawn, on_progress) -> jobs.Done:
    """Tables, figures and page, of the records alone; a file that would not change is left alone."""
    report(on_progress, "tables", 0, 1)
    seen_heads = trained_on(settings.models)
    records = {name: ledger.read(name) for name in finished}
    seen = {name: _seen(record, seen_heads) for name, record in records.items()}
    distances, defacing = [], []
    for name, record in records.items():
        for method in settings.methods:
            entry = record["steps"][method]
            told = {"participant_id": name, "defacer": method}
            distances += [{**told, **row, "seen_in_training": seen[name]} for row in entry.get("rows", [])]
            defacing.append({**told, **entry.get("quality", {}), "refused": entry.get("refused") or None})
    tests = statistics.paired_tests(distances)
    rows, groups, curves = link.tables(*link.read_chunks(ledger, linked), finished, seen) if linked else ([], [], {})
    summary = {
        "version": __version__,
        "settings": {**settings.as_message(), "models": [image_of(model) for model in settings.models]},
        "participants": len(people),
        "finished": len(finished),
        "failed": [{"participant_id": name, "reason": failed[name]} for name in sorted(failed)],
        "seen_in_training": sum(answer == "yes" for answer in seen.values()),
        "distances": _medians(distances),
        "defacing": _verdicts(defacing, settings.methods),
        "tests": tests,
        "linkage": groups,
        "match_curves": curves,
    }
    if muscle is not None:
        summary["muscle"] = muscle
    texts = {
        "distances.tsv": jobs.tsv(distances, DISTANCES),
        "defacing.tsv": jobs.tsv(defacing, DEFACING),
        "tests.tsv": jobs.tsv(tests, TESTS),
        "linkage.tsv": jobs.tsv(rows, link.COLUMNS),
        "linkage_rates.tsv": jobs.tsv(groups, link.SUMMARY_COLUMNS),
        "failed.tsv": jobs.tsv(summary["failed"], FAILED),
        "dataset_description.json": json.dumps(_description(), indent=2) + "\n",
    }
    from .page import answer, study_page

    summary["answer"] = answer(summary)
    outputs = {name: ledger.out / name for name in texts}
    for name, text in texts.items():
        write_if_changed(text, outputs[name])
    outputs["summary.json"] = ledger.out / "summary.json"
    outputs["report.html"] = ledger.out / "report.html"
    changed = write_if_changed(json.dumps(summary, indent=2) + "\n", outputs["summary.json"])
    figures = {name: ledger.out / name for name in ("distances.png", "linkage.png")}
    stamp = ledger.folder / "figures.sha256"
    shown = [*texts.values(), *map(str, drawn.values()), *([json.dumps(muscle)] if muscle is not None else [])]
    fitted = {}
    if muscle is not None and not muscle["why_not"]:
        fitted["muscle"] = ledger.out / "muscle" / "figure.png"
        outputs["muscle"] = ledger.out / "muscle" / "report.html"
        shown.append(sha256_of(fitted["muscle"]))
    key = hashlib.sha256("".join(shown).encode()).hexdigest()
    same = stamp.is_file() and stamp.read_text(encoding="utf-8").strip() == key and outputs["report.html"].is_file()
    if changed or not same:
        from .figures import distances_figure, match_figure

        report(on_progress, "figures", 0, 1)
        made = dict(fitted)
        if distances_figure(distances, figures["distances.png"]):
            made["distances"] = figures["distances.png"]
        if match_figure(curves, figures["linkage.png"]):
            made["linkage"] = figures["linkage.png"]
        write_if_changed(study_page(summary, made, drawn), outputs["report.html"])
        write_text(key + "\n", stamp)
    report(on_progress, "tables", 1, 1)
    return jobs.Done(outputs, summary)


def _seen(record: Mapping, seen_heads: Iterable[str]) -> str:
    """Whether the model was trained on this very file; "n/a" where the model does not say what it was trained on."""
    if not seen_heads:
        return "n/a"
    return "yes" if record["input"]["sha256"] in seen_heads else "no"


def _medians(rows: Sequence[Mapping]) -> list[dict]:
    """Median and quartiles over subjects of mean_mm, by group, defacer, image and region."""
    import numpy as np

    found = []
    groups = ("all", "unseen") if any(row["seen_in_training"] == "yes" for row in rows) else ("all",)
    for group in groups:
        table: dict[tuple, list[float]] = {}
        for row in rows:
            if group == "all" or row["seen_in_training"] != "yes":
                table.setdefault((row["defacer"], row["image"], row["region"]), []).append(row["mean_mm"])
        for (defacer, image, region), values in table.items():
            q1, median, q3 = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
            found.append({"group": group, "defacer": defacer, "image": image, "region": region, "n": len(values),
                          "median_mm": median, "q1_mm": q1, "q3_mm": q3})  # fmt: skip
    return found


def _verdicts(rows: Sequence[Mapping], methods: Sequence[str]) -> list[dict]:
    found = []
    for method in methods:
        own = [row for row in rows if row["defacer"] == method]
        shares = sorted(row["face_surface_removed"] for row in own if row.get("face_surface_removed") is not None)
        found.append({
            "defacer": method,
            **{verdict: sum(row.get("verdict") == verdict for row in own) for verdict in ("ok", "check", "failed")},
            "refused": sum(row["refused"] is not None for row in own),
            "brain_voxels_touched": sum(row.get("brain_voxels_touched") or 0 for row in own),
            "median_face_surface_removed": shares[len(shares) // 2] if shares else None,
        })  # fmt: skip
    return found


def _description() -> dict:
    return {
        "Name": "Defaced and refaced heads, with the risk of re-identification",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "MRIRefaceRisk", "Version": __version__}],
        "Description": "Images whose description begins with SYNTHETIC hold faces drawn by a model.",
    }


def write_if_changed(text: str, path: Path) -> bool:
    """Whether the file had to be written."""
    try:
        if path.read_text(encoding="utf-8") == text:
            return False
    except (OSError, UnicodeDecodeError):
        pass
    try:
        write_text(text, path)
    except OSError as error:
        raise RefaceRiskError(f"cannot be written ({error.strerror})", "check the folder", path) from error
    return True
