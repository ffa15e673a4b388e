"""What the study's report says: the answer first, then tables, figures, tests, who failed, and how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import __version__, report
from ..radiodensity.report_page import comparison_table, correlation_table, figure_parts
from ..report import Column
from .figures import NAMES

DISTANCE_COLUMNS = (
    Column("defacer", "defacer"),
    Column("image", "image"),
    Column("n", "heads", 0),
    Column("median_mm", "median", 2, "mm"),
    Column("q1_mm", "quarter below", 2, "mm"),
    Column("q3_mm", "quarter above", 2, "mm"),
)
LINK_COLUMNS = (
    Column("defacer", "defacer"),
    Column("image", "image"),
    Column("n", "heads", 0),
    Column("rank1_percent", "rank-1", 0, "%"),
    Column("rank1_interval", "95 % interval"),
    Column("rank5_percent", "among 5 nearest", 0, "%"),
    Column("eer_percent", "equal error rate", 0, "%"),
    Column("eer_interval", "95 % interval"),
)
TEST_COLUMNS = (
    Column("defacer", "defacer"),
    Column("pair", "compared"),
    Column("n", "heads", 0),
    Column("difference_mm", "median difference", 3, "mm"),
    Column("interval", "95 % interval"),
    Column("rank_biserial", "effect (rank-biserial)", 2),
    Column("effect_interval", "95 % interval"),
    Column("p_text", "p (Holm)"),
)
DEFACING_COLUMNS = (
    Column("defacer", "defacer"),
    Column("ok", "ok", 0),
    Column("check", "check", 0),
    Column("failed", "failed", 0),
    Column("refused", "refused", 0),
    Column("face_percent", "face surface gone (median)", 0, "%"),
    Column("brain_voxels_touched", "brain voxels touched", 0),
)
LIMITS = (
    "Distance between surfaces is geometry, not the rate at which people or programs recognise a face.",
    "Linkage compares with the originals of this very cohort, from the same scans. It tells whether a face is told "
    "apart from its neighbours by shape; how well a stranger with photographs would do, it does not tell.",
    "Where the region is all of the face, skin that defacing left is the original's own: a high rate there is what an "
    "intact forehead gives away, whatever was drawn below it.",
    "A model that saw more heads would bring back more: read distances and rates as what is possible at least.",
    "Refaced images are synthetic. Do not use them as scans, and do not try to identify anybody by them.",
)
MUSCLE = (
    "How dense the muscles elsewhere in the body are (radiodensity in CT, in HU) was predicted from each kind of image "
    "of the head; rho is the rank correlation of prediction and measurement. All tables are in the folder muscle."
)
LEFT_OUT = "rows or values of the table could not be used; muscle/excluded.tsv tells which, and why."
PRIVACY = (
    "The folder of this study holds face surfaces of the originals (.refacerisk/faces). Keep it as you keep the scans, "
    "or delete that folder when you are done. This page holds numbers alone."
)
PRIVACY_OF_MUSCLE = (
    "The images that muscle is predicted from lie in .refacerisk/muscle; those of the originals show faces."
)
PRIVACY_WITH_PICTURES = "This page shows faces of participants: keep it as you keep the scans themselves."


def answer(summary: Mapping) -> str:
    """The answer in a few sentences, whichever way it went."""
    sentences = [_who(summary)]
    group = _group(summary)
    if group == "unseen":
        count = summary["seen_in_training"]
        sentences.append(
            f"The diffusion model was trained on {count} of these heads, so that the numbers here are those of the "
            f"{summary['finished'] - count} others."
        )
    elif summary["seen_in_training"]:
        sentences.append(
            "The diffusion model was trained on all of these heads: what is said of it here is too good, and tells "
            "nothing of new ones."
        )
    medians = {
        (row["defacer"], row["image"]): row["median_mm"]
        for row in summary["distances"]
        if row["region"] == "face" and row["group"] == group
    }
    sentences += _distances(medians)
    sentences += _tests(summary["tests"], group)
    sentences += _linkage(summary["linkage"], group)
    return " ".join(sentences)


def _group(summary: Mapping) -> str:
    """The group whose numbers count: heads that the model has not been trained on, where there are some."""
    return "unseen" if any(row["group"] == "unseen" for row in summary["distances"]) else "all"


def _who(summary: Mapping) -> str:
    finished, of = summary["finished"], summary["participants"]
    heads = "head was" if finished == 1 else "heads were"
    failed = f"; {of - finished} of {of} failed and are listed below" if finished < of else ""
    return f"{finished} {heads} defaced in {len(summary['settings']['methods'])} ways and refaced{failed}."


def _distances(medians: Mapping[tuple[str, str], float]) -> list[str]:
    ratios = {}
    for (defacer, image), value in medians.items():
        average = medians.get((defacer, "average"))
        if image == "dpm" and average and defacer != "skull_strip":
            ratios[defacer] = (value, average, medians[defacer, "defaced"])
    if not ratios:
        return []
    best = min(ratios, key=lambda defacer: ratios[defacer][0])
    dpm, average, defaced = ratios[best]
    nearer = [defacer for defacer, (a, b, _) in ratios.items() if a < b]
    told = (
        f"After {best}, where most came back, the diffusion face lies {dpm:.2f} mm from the true one (median over "
        f"heads), an average face {average:.2f} mm, the defaced copy {defaced:.2f} mm."
    )
    compared = f"By the medians it is nearer than the average face after {len(nearer)} of {len(ratios)} defacers"
    return [told, f"{compared} that take the face alone."]


def _tests(tests: Sequence[Mapping], group: str) -> list[str]:
    own = [row for row in tests if row["group"] == group and row["image"] == "dpm" and row["against"] == "average"]
    own = [row for row in own if row["p_holm"] is not None]
    if not own:
        return []
    held = {row["defacer"] for row in own if row["p_holm"] < 0.05 and row["difference_mm"] < 0}
    against = {row["defacer"] for row in own if row["p_holm"] < 0.05 and row["difference_mm"] > 0}
    if not held and not against:
        return ["Over subjects, none of these differences is beyond chance (Wilcoxon signed-rank, Holm)."]
    told = f"Over subjects, the diffusion face is significantly nearer after {len(held)} of {len(own)} defacers"
    return [told + (f", farther after {len(against)}." if against else ".")]


def _linkage(groups: Sequence[Mapping], group: str) -> list[str]:
    rows = [row for row in groups if row["region"] == "removed" and row["group"] == group]
    own = {(row["defacer"], row["image"]): row for row in rows}
    defacers = [defacer for defacer, image in own if image == "dpm" and defacer != "skull_strip"]
    if not defacers:
        return []
    worst = max(defacers, key=lambda defacer: own[defacer, "dpm"]["rank1"])
    row, average = own[worst, "dpm"], own.get((worst, "average"))
    told = (
        f"By the drawn part of the face alone, {100 * row['rank1']:.0f} % of the refaced heads ({worst}) were matched "
        f"to their own original among {row['originals']}"
    )
    if average:
        told += f", {100 * average['rank1']:.0f} % with the average face"
    return [f"{told}; chance is {100 * row['chance']:.1f} %."]


def study_page(summary: Mapping, figures: Mapping[str, Path], drawn: Mapping[str, Path]) -> str:
    """The HTML. `figures`: distances and linkage; `drawn`: faces of participants that were asked for."""
    group = _group(summary)
    sections = [report.paragraph(PRIVACY_WITH_PICTURES if drawn else PRIVACY, "notice")]
    if "muscle" in figures:
        sections.append(report.paragraph(PRIVACY_OF_MUSCLE, "notice"))
    if "distances" in figures:
        caption = "A point is a head; box: quartiles and median. Front half of the head, crown to chin."
        picture = report.figure(figures["distances"], "Box plot of mean distances by defacer and image", caption)
        sections.append(report.section("How far from the true face", picture, *_distance_tables(summary, group)))
    if summary["tests"]:
        sections.append(report.section("Is that beyond chance", *_test_tables(summary["tests"], group)))
    if summary["linkage"]:
        sections.append(report.section("Who is matched to whom", *_link_tables(summary, figures, group)))
    if "muscle" in summary:
        sections.append(report.section("What the head tells about muscle", *_muscle_parts(summary["muscle"], figures)))
    sections.append(report.section("How the defacing went", _defacing_table(summary["defacing"])))
    if drawn:
        pictures = [report.figure(path, f"Rendered faces of {label}", label) for label, path in drawn.items()]
        sections.append(report.section("Faces", *pictures))
    if summary["failed"]:
        columns = (Column("participant_id", "participant"), Column("reason", "why"))
        shown = summary["failed"][:200]
        more = f"The first 200 of {len(summary['failed'])}; failed.tsv has all." if len(summary["failed"]) > 200 else ""
        sections.append(report.section("Who failed", report.table(columns, shown, more)))
    sections += [
        report.section("Limits", report.bullets(LIMITS)),
        report.section("Settings", report.facts({name: _told(v) for name, v in summary["settings"].items()})),
    ]
    return report.page(
        "What defacing hides in this cohort, and what comes back",
        summary["answer"],
        sections,
        kicker="Re-identification risk of a cohort of head MRI",
        footer=f"MRIRefaceRisk {__version__}. Research software, not for clinical use.",
    )


def _distance_tables(summary: Mapping, group: str) -> list[str]:
    tables = []
    words = {"unseen": "Heads that the model was not trained on.", "all": "All heads."}
    both = [group] if group == "all" else ["unseen", "all"]
    for region, where in (("face", "All of the face."), ("removed", "Only what the defacer took.")):
        for one in both:
            rows = [row for row in summary["distances"] if row["region"] == region and row["group"] == one]
            if rows:
                caption = f"{where} {words[one]} Mean distance of each head, then median and quartiles over heads."
                table = report.table(DISTANCE_COLUMNS, [_named(row) for row in rows], caption, bars="median_mm")
                first = region == "face" and one == group
                tables.append(table if first else report.folded(f"{where} {words[one]}", table))
    return tables


def _test_tables(tests: Sequence[Mapping], group: str) -> list[str]:
    rows = []
    for row in tests:
        if row["group"] != group:
            continue
        pair = f"{NAMES.get(row['image'], row['image'])} against {NAMES.get(row['against'], row['against'])}"
        rows.append({
            **row,
            "pair": pair,
            "interval": _interval(row["difference_low"], row["difference_high"], 3),
            "effect_interval": _interval(row["rank_biserial_low"], row["rank_biserial_high"], 2),
            "p_text": None if row["p_holm"] is None else f"{row['p_holm']:.3g}",
        })  # fmt: skip
    caption = (
        "Wilcoxon signed-rank tests over heads, adjusted by Holm over the rows; a negative difference means nearer to "
        "the true face. Intervals by bootstrap over heads."
        + (" Heads that the model was not trained on." if group == "unseen" else "")
    )
    return [report.table(TEST_COLUMNS, rows, caption)]


def _link_tables(summary: Mapping, figures: Mapping[str, Path], group: str) -> list[str]:
    parts = []
    if "linkage" in figures:
        caption = "Share of heads whose own original is among the k most alike. Grey line: chance."
        parts.append(report.figure(figures["linkage"], "Cumulative match curves", caption))
    for region, where in (("removed", "Only what the defacer took"), ("face", "All of the face")):
        for one in ("unseen", "all") if group == "unseen" else ("all",):
            rows = [_linked(row) for row in summary["linkage"] if row["region"] == region and row["group"] == one]
            if not rows:
                continue
            chance = 100 * summary["linkage"][0]["chance"]
            who = "heads that the model was not trained on, against all originals" if one == "unseen" else "all heads"
            caption = f"{where}; {who}. Chance: rank-1 {chance:.1f} %, equal error rate 50 %."
            table = report.table(LINK_COLUMNS, rows, caption, bars="rank1_percent")
            parts.append(table if region == "removed" and one == group else report.folded(f"{where}; {who}", table))
    return parts


def _muscle_parts(muscle: Mapping, figures: Mapping[str, Path]) -> list[str]:
    """What `muscle.bring_up_to_date` told, with the figure."""
    if muscle["why_not"]:
        return [report.paragraph(f"No muscle is predicted: {muscle['why_not']}.")]
    left_out = muscle["left_out"]
    return [
        report.paragraph(MUSCLE),
        report.bullets(muscle["in_words"]),
        *figure_parts(figures["muscle"], muscle["correlations"]),
        correlation_table(muscle["correlations"]),
        report.folded("Does the original tell more?", comparison_table(muscle["comparisons"])),
        *([report.paragraph(f"{left_out} {LEFT_OUT}", "note")] if left_out else []),
    ]


def _defacing_table(rows: Sequence[Mapping]) -> str:
    told = [{**row, "face_percent": _percent(row["median_face_surface_removed"])} for row in rows]
    return report.table(DEFACING_COLUMNS, told, "Verdicts of the defacing; every head's own is in defacing.tsv.")


def _linked(row: Mapping) -> dict:
    return {
        **_named(row),
        **{f"{name}_percent": _percent(row[name]) for name in ("rank1", "rank5", "eer")},
        "rank1_interval": _interval(_percent(row["rank1_low"]), _percent(row["rank1_high"]), 0),
        "eer_interval": _interval(_percent(row["eer_low"]), _percent(row["eer_high"]), 0),
    }


def _named(row: Mapping) -> dict:
    return {**row, "image": NAMES.get(row["image"], row["image"])}


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _interval(low: float | None, high: float | None, digits: int) -> str | None:
    return None if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def _told(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
