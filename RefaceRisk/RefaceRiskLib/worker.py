"""One job in a child process: `python worker.py job.json`.

The job file holds `{"job": "deface"|"compare"|"reface"|"measure"|..., "arguments": {...}}`, the arguments
being those of the function of that name in `jobs`; optionally `"scratch"` (a folder for previews) and
`"cancel_on_eof": true` (also stop when the parent goes away, and remove the scratch folder, which nobody else
would: heads with their faces lie there).

stdout carries JSON objects, one a line, and nothing else:

    {"type": "progress", "stage": "...", "step": 3, "of": 20, ...}
    {"type": "preview", "path": ".../preview-0003.npz", "stage": "..."}
    {"type": "result", "outputs": {"volume": "..."}, "record": {...}}
    {"type": "error", "what": "...", "hint": "...", "path": "..." | null, "cancelled": false}

A preview is a surface (`points` (N, 3) in RAS mm and `triangles` (M, 3) in an .npz file) or an array (.npy).
A line `cancel` on stdin stops the job at its next report of progress. Exit status: 0 result, 1 unexpected
error, 2 an error that the user can mend, 130 cancelled.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

if __package__ in (None, ""):  # run by path, as Slicer's Python does
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    # The script's own folder comes first on the path and its module names would shadow others'.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.progress import Cancelled, Progress, cancellable, json_lines

SUCCESS, UNEXPECTED, WRONG, CANCELLED = 0, 1, 2, 130
PREVIEW_EVERY_S = 0.25


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    channel = _claim_stdout()
    if len(arguments) != 1:
        return _failed(channel, WRONG, "one argument is needed, the job file", "python worker.py job.json")
    try:
        job = read_job(arguments[0])
    except RefaceRiskError as error:
        return _failed(channel, WRONG, error.what, error.hint, error.path)

    asked_to_stop, alone = threading.Event(), threading.Event()
    _listen(asked_to_stop, alone, stop_at_end=bool(job.get("cancel_on_eof", False)))
    status = run_job(job, channel, asked_to_stop)
    if alone.is_set() and status != SUCCESS and job.get("scratch"):
        shutil.rmtree(job["scratch"], ignore_errors=True)
    return status


def read_job(path: str | Path) -> dict:
    """The job file as a dict; RefaceRiskError when it is missing, no JSON object or names no job."""
    from RefaceRiskLib.jobs import JOBS

    try:
        job = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RefaceRiskError("the job file cannot be read", error.strerror or "", path) from error
    except ValueError as error:
        raise RefaceRiskError("the job file is no JSON", str(error), path) from error
    if not isinstance(job, dict) or job.get("job") not in JOBS:
        raise RefaceRiskError("the job file names no known job", f'"job" is one of {", ".join(JOBS)}', path)
    if not isinstance(job.get("arguments", {}), dict):
        raise RefaceRiskError("the job's arguments are no JSON object", '"arguments": {"source": ...}', path)
    return job


def run_job(job: dict, channel, asked_to_stop: threading.Event) -> int:
    """Runs the job, writes its messages to `channel`, returns the exit status."""
    from RefaceRiskLib.jobs import JOBS

    on_progress = cancellable(asked_to_stop, _Reporter(channel, job.get("scratch")))
    try:
        done = JOBS[job["job"]](**job.get("arguments", {}), on_progress=on_progress)
    except RefaceRiskError as error:
        return _failed(channel, WRONG, error.what, error.hint, error.path)
    except (Cancelled, KeyboardInterrupt):
        return _failed(channel, CANCELLED, "cancelled", cancelled=True)
    except Exception as error:
        traceback.print_exc()
        return _failed(channel, UNEXPECTED, f"unexpected {type(error).__name__}: {error}", "see the log for details")
    _send(
        channel,
        type="result",
        outputs={name: str(path) for name, path in done.outputs.items()},
        record=done.record,
    )
    return SUCCESS


class _Reporter:
    """Progress as JSON lines; a preview array becomes a file, complete before the parent hears of it."""

    def __init__(self, channel, scratch: str | None):
        self._channel = channel
        self._lines = json_lines(channel)
        self._scratch = scratch
        self._previews: list[Path] = []
        self._shown_at = -PREVIEW_EVERY_S

    def __call__(self, progress: Progress) -> None:
        self._lines(progress)
        if progress.preview is None or time.monotonic() - self._shown_at < PREVIEW_EVERY_S:
            return
        import numpy as np

        preview = progress.preview() if callable(progress.preview) else progress.preview
        if preview is None:
            return
        if self._scratch is None:
            self._scratch = tempfile.mkdtemp(prefix="refacerisk-")
        folder = Path(self._scratch)
        folder.mkdir(parents=True, exist_ok=True)
        surface = hasattr(preview, "triangles")
        path = folder / f"preview-{len(self._previews):04d}.{'npz' if surface else 'npy'}"
        temporary = path.with_suffix(".part")
        with temporary.open("wb") as stream:
            if surface:
                points, triangles = (np.asarray(a, t) for a, t in ((preview.points, "f4"), (preview.triangles, "i4")))
                np.savez(stream, points=points, triangles=triangles)
            else:
                np.save(stream, np.asarray(preview), allow_pickle=False)
        os.replace(temporary, path)
        self._shown_at = time.monotonic()
        self._previews.append(path)
        _send(self._channel, type="preview", path=str(path), stage=progress.stage)
        # The parent may still be reading the latest two; older ones are of no use to it.
        for old in self._previews[:-2]:
            old.unlink(missing_ok=True)


def _claim_stdout():
    """The real stdout for messages alone: prints of Python and of C++ libraries go to stderr from here on."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    sys.stdout.flush()
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return channel


def _listen(asked_to_stop: threading.Event, alone: threading.Event, stop_at_end: bool) -> None:
    def read() -> None:
        # os.read and not sys.stdin: a thread blocked inside sys.stdin's lock makes Python abort at exit.
        heard = b""
        while True:
            try:
                piece = os.read(0, 1024)
            except OSError:
                piece = b""
            if not piece:
                break
            *lines, heard = (heard + piece).split(b"\n")
            if any(line.strip() == b"cancel" for line in lines):
                asked_to_stop.set()
        if stop_at_end:
            alone.set()
        if stop_at_end or heard.strip() == b"cancel":
            asked_to_stop.set()

    threading.Thread(target=read, name="cancel listener", daemon=True).start()


def _send(channel, **message) -> None:
    channel.write(json.dumps(message, default=str) + "\n")
    channel.flush()


def _failed(channel, status: int, what: str, hint: str = "", path: object = None, cancelled: bool = False) -> int:
    where = None if path is None else str(path)
    _send(channel, type="error", what=" ".join(what.split()), hint=hint, path=where, cancelled=cancelled)
    return status


if __name__ == "__main__":
    sys.exit(main())
