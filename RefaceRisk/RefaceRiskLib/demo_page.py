"""What the demo's report says: the answer first, then the numbers, the picture, and how far to trust them."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from . import __version__, report

# Name in the tables -> name for people.
TITLES = {"defaced": "defaced", "dpm": "refaced by diffusion", "average": "average face", "linear": "linear model"}

# sub-MyConnectome, whose owner made his face public; any other head is private.
PUBLIC_HEADS = {"577d1484b5376b3925e9a4141d9f4534b0f29e1df7feeea3427525a19b91c5d2"}
IS_PUBLIC = "The head is sub-MyConnectome (OpenNeuro ds000031); the subject shared his own scan."
IS_PRIVATE = "This page shows the face of the person scanned: keep it as you keep the scan itself."

COLUMNS = (
    report.Column("image", "image"),
    report.Column("mean_mm", "mean", 2, "mm"),
    report.Column("median_mm", "median", 2, "mm"),
    report.Column("p95_mm", "95 %", 2, "mm"),
    report.Column("symmetric_mean_mm", "both ways", 2, "mm"),
    report.Column("seconds", "made in", 1, "s"),
)
FACE_CAPTION = (
    "From the skin of the original to that of each image, over the front half of the head, crown to chin. "
    "“Both ways” also counts the way back. Forehead and scalp, which defacing left alone, lie in this region "
    "too and pull the mean down."
)
REMOVED_CAPTION = "The same, over the part alone that defacing took."
PICTURE_ALT = "Rendered heads in rows: original, defaced, refaced, average face, and the distances in colours"
PICTURE_CAPTION = (
    "Each head from five sides, at its right the mean distance to the original. The coloured heads are the "
    "original's skin, painted with its distance to the image named. In the refaced and the average row, all "
    "that the defaced row lacks is synthetic."
)
METHOD = (
    "The models saw the defaced head and the mask of what was removed, nothing of the original. Skin is an "
    "isosurface of the greyscale; distances are exact from point to triangle and weighted by area."
)
LIMITS = (
    "One head. It shows how the method works; what holds for a population needs a population.",
    "Distance between surfaces is geometry, not the rate at which people or programs recognise a face.",
    "The model learned from a small cohort at 2 mm. One that saw more heads would bring back more: read the "
    "distance as what is possible at least.",
    "A refaced image is synthetic. Do not use it as a scan of the person, and do not try to identify anybody by it.",
)


def in_plain_words(rows: Sequence[Mapping], hidden: float | None, method: str) -> str:
    """The answer in a few sentences, whichever way it went. `hidden`: share of the face surface, 0 to 1."""
    mean = {row["image"]: row["mean_mm"] for row in rows if row["region"] == "face"}
    dpm, average, defaced = mean["dpm"], mean["average"], mean["defaced"]
    sentences = [] if hidden is None else [f"Defacing ({method}) hid {100 * hidden:.0f} % of the face surface."]
    if dpm < defaced:
        sentences.append(
            f"A diffusion model brought it back to {dpm:.2f} mm (mean) from the true face; the average face "
            f"lies at {average:.2f} mm, the defaced copy at {defaced:.2f} mm."
        )
    else:
        sentences.append(
            f"A diffusion model did not bring it back: its face lies {dpm:.2f} mm (mean) from the true one, "
            f"the average face {average:.2f} mm, the defaced copy {defaced:.2f} mm."
        )
    sentences.append(_against(dpm, average))
    if "linear" in mean:
        sentences.append(f"A linear model of the head's shape, without diffusion, reaches {mean['linear']:.2f} mm.")
    return " ".join(sentences)


def _against(dpm: float, average: float) -> str:
    ratio = dpm / average if average > 0 else float("inf")
    if ratio < 0.97:
        return (
            f"The diffusion face is {100 * (1 - ratio):.0f} % nearer to this person's own than an average "
            "face: the rest of the head gives part of the face away."
        )
    if ratio <= 1.03:
        return "The diffusion face is no nearer to this person's own than an average face."
    return (
        f"The diffusion face is {100 * (ratio - 1):.0f} % farther from this person's own than an average "
        "face: what came back is a face, but not this one."
    )


def report_page(
    answer: str,
    rows: Sequence[Mapping],
    defacing,
    refacings: Mapping[str, object],
    outputs: Mapping[str, Path],
) -> str:
    """The HTML. `rows` as in distances.tsv; `defacing` and `refacings` (by name) are the jobs' `Done`."""
    source = defacing.record["input"]
    made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return report.page(
        "What came back of a hidden face",
        answer,
        [
            report.paragraph(IS_PUBLIC if source["sha256"] in PUBLIC_HEADS else IS_PRIVATE, "notice"),
            report.section("How far from the true face", *_tables(rows)),
            report.section("The faces", report.figure(outputs["picture"], PICTURE_ALT, PICTURE_CAPTION)),
            report.section("How it was made", report.facts(_making(defacing, refacings)), report.paragraph(METHOD)),
            report.section("Limits", report.bullets(LIMITS)),
            report.section(
                "Provenance",
                report.facts(versions()),
                report.folded("checksums (sha256)", report.facts(_checksums(source, refacings, outputs))),
            ),
        ],
        kicker="Re-identification risk of a defaced head MRI",
        footer=f"MRIRefaceRisk {__version__}, {made}. Research software, not for clinical use.",
    )


def _tables(rows: Sequence[Mapping]) -> list[str]:
    named = [{**row, "image": TITLES.get(row["image"], row["image"])} for row in rows]
    face = [row for row in named if row["region"] == "face"]
    removed = [row for row in named if row["region"] == "removed"]
    stands_out = {"image": TITLES["dpm"]}
    tables = [report.table(COLUMNS, face, FACE_CAPTION, bars="mean_mm", strong=stands_out)]
    if removed:
        tables.append(report.table(COLUMNS[:-1], removed, REMOVED_CAPTION, bars="mean_mm", strong=stands_out))
    return tables


def _making(defacing, refacings: Mapping[str, object]) -> list[tuple[str, object]]:
    record, quality, fit = defacing.record, defacing.record["quality"], defacing.record["registration"]
    verdict = f"{quality['verdict']}: {quality['reason']}" if quality["reason"] else quality["verdict"]
    facts = [
        ("head", Path(record["input"]["path"]).name),
        ("defaced as", f"{record['method']} (a re-implementation on our own template)"),
        ("verdict", verdict),
        ("brain voxels touched", quality["brain_voxels_touched"]),
        ("registration", f"{fit['verdict']}, overlap {fit['overlap']:.3f}"),
    ]
    for name, done in refacings.items():
        how = f"model “{done.record['method']}”, seed {done.record['seed']}, {done.record['seconds']:.0f} s"
        facts.append((TITLES.get(name, name), how))
    return facts


def versions() -> dict[str, str]:
    """What ran: this package, Python, the platform and the libraries that make the numbers."""
    found = {
        "MRIRefaceRisk": __version__,
        "Python": platform.python_version(),
        "platform": platform.platform(terse=True),
    }
    for name in ("numpy", "scipy", "SimpleITK", "vtk", "torch", "monai"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _checksums(source: Mapping, refacings: Mapping, outputs: Mapping[str, Path]) -> list[tuple[str, str]]:
    from .volumes import sha256_of

    sums = [(f"{Path(source['path']).name} (input)", source["sha256"])]
    for name, done in refacings.items():
        if done.record["weights"]:
            sums += [(f"{TITLES.get(name, name)}: {part}", str(sha)) for part, sha in done.record["weights"].items()]
    return sums + [(path.name, sha256_of(path)) for path in outputs.values()]
