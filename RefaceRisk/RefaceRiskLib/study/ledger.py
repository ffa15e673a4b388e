"""The ledger of finished steps, and the lock that keeps two runs out of one folder.

One JSON file a subject tells, for each step, its key (see `plan`), what it wrote with size and sha256, and its numbers.
A step counts as finished only while all that it wrote is still there as it was. Every file appears under a temporary
name first, so that a run that is killed at any moment leaves finished steps and nothing half-written in their place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import RefaceRiskError
from ..report import write_text
from ..volumes import sha256_of

FOLDER = ".refacerisk"


class Ledger:
    """The records of a study's folder. Each subject's record is written by one process at a time."""

    def __init__(self, out: str | Path):
        self.out = Path(out)

    @property
    def folder(self) -> Path:
        return self.out / FOLDER

    def faces(self, name: str) -> Path:
        """Where a subject's face surfaces lie for the linkage. They show the true face, as the head itself does."""
        return self.folder / "faces" / name

    def read(self, name: str) -> dict:
        """A subject's record: `input` and `steps`; empty where there is none or it cannot be understood."""
        try:
            record = json.loads(self._path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if _is_record(record) else {}

    def write(self, name: str, record: Mapping) -> None:
        write_text(json.dumps(record, indent=1) + "\n", self._path(name))

    def wrote(self, path: Path) -> dict:
        """What the record keeps of a file."""
        seen = path.stat()
        return {"sha256": sha256_of(path), "size": seen.st_size, "mtime_ns": seen.st_mtime_ns}

    def is_finished(self, record: Mapping, step: str, key: str, verify: bool = False) -> bool:
        """Whether a step's key is this one and all it wrote is unchanged.

        A file of the same size and time (which one, early or late, does not matter) counts as unchanged unless
        `verify` asks for its hash.
        """
        entry = record.get("steps", {}).get(step)
        if not isinstance(entry, dict) or entry.get("key") != key:
            return False
        return all(self._is_unchanged(self.out / file, told, verify) for file, told in entry["outputs"].items())

    def _is_unchanged(self, path: Path, told: Mapping, verify: bool) -> bool:
        try:
            seen = path.stat()
            if seen.st_size != told["size"]:
                return False
            return (not verify and seen.st_mtime_ns == told["mtime_ns"]) or sha256_of(path) == told["sha256"]
        except OSError:
            return False

    def _path(self, name: str) -> Path:
        return self.folder / "subjects" / f"{name}.json"


def _is_record(record: object) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("input"), dict):
        return False
    steps = record.get("steps")
    entries = list(steps.values()) if isinstance(steps, dict) else [None]
    return all(isinstance(entry, dict) and isinstance(entry.get("outputs"), dict) for entry in entries)


def signature(path: Path) -> str:
    """Changes when a file, or any file in a folder, gets another size or time; cheap. Raises OSError if it is gone."""
    files = sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]
    seen = [(file.name, found.st_size, found.st_mtime_ns) for file in files for found in [file.stat()]]
    return hashlib.sha256(repr(seen).encode()).hexdigest()


@contextlib.contextmanager
def locked(out: Path) -> Iterator[str]:
    """Holds the folder for this run; yields what a run that was cut off has left behind ("" if none was).

    The operating system lets go of the lock when the process ends, however it ends, so that no stale lock can stand in
    the way. Raises RefaceRiskError when another run holds it.
    """
    path = out / FOLDER / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RefaceRiskError(f"cannot be written ({error.strerror})", "choose another folder", out) from error
    try:
        before = os.read(handle, 200).decode("utf-8", "replace").strip()
        if not _try_lock(handle):
            raise RefaceRiskError(
                f"another run works in this folder ({before or 'it just began'})", "wait for it, or choose another", out
            )
        _say(handle, f"process {os.getpid()} on {socket.gethostname()}")
        try:
            yield before
        finally:
            _say(handle, "")
    finally:
        os.close(handle)


def _say(handle: int, text: str) -> None:
    os.lseek(handle, 0, os.SEEK_SET)
    os.ftruncate(handle, 0)
    os.write(handle, text.encode())


def _try_lock(handle: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(handle, 1 << 20, os.SEEK_SET)  # a byte behind the text, which others may still read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
