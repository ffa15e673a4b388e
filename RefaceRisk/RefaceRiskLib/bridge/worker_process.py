"""Jobs of `worker.py` in child processes, one after another, watched without blocking the panel.

Nothing here needs Qt: whoever owns the event loop calls `JobRunner.poll` now and then (`follow` does it with
a Qt timer), a script calls `JobRunner.wait`.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..errors import RefaceRiskError
from ..progress import Cancelled

Outputs = TypeVar("Outputs")  # whatever a module collects the results of its jobs in
WORKER = Path(__file__).resolve().parents[1] / "worker.py"
GRACE_S = 1.5  # from asking a job to stop until its processes are killed


@dataclass(frozen=True)
class Job:
    """One job for the worker: its name, the arguments of that function in `jobs`, and a title to show."""

    name: str
    arguments: dict
    title: str = ""


class WorkerProcess:
    """One job in one child process. `messages` hands out what has arrived; `outcome` tells how it ended."""

    def __init__(self, job: Job, scratch: Path, python: str | None = None):
        self.job = job
        self._scratch = scratch
        self._python = python or slicer_python()
        self._queue: queue.Queue[dict] = queue.Queue()
        self._last_words: deque[str] = deque(maxlen=20)
        self._process: subprocess.Popen | None = None
        self._readers: list[threading.Thread] = []
        self._end: dict | None = None
        self._kill_at: float | None = None

    def start(self) -> None:
        request = {"job": self.job.name, "arguments": self.job.arguments, "scratch": str(self._scratch)}
        file = self._scratch / "job.json"
        file.write_text(json.dumps({**request, "cancel_on_eof": True}, default=str), encoding="utf-8")
        # A group of its own: PythonSlicer is a launcher, and killing it alone would leave its Python alive.
        own_group = (
            {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
            if os.name == "nt"
            else {"start_new_session": True}
        )
        self._process = subprocess.Popen(
            [self._python, str(WORKER), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            **own_group,
        )
        for read in (self._read_messages, self._read_log):
            thread = threading.Thread(target=read, daemon=True)
            thread.start()
            self._readers.append(thread)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives or something that it said has not been read yet."""
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            self.kill()
        return self._process.poll() is None or any(thread.is_alive() for thread in self._readers)

    def messages(self) -> list[dict]:
        """Progress and previews since the last call."""
        arrived = []
        while True:
            try:
                message = self._queue.get_nowait()
            except queue.Empty:
                return arrived
            if message.get("type") in ("result", "error"):
                self._end = message
            else:
                arrived.append(message)

    def outcome(self) -> dict:
        """The result message of a job that has ended; raises RefaceRiskError or Cancelled if it has none."""
        self.messages()
        end = self._end or {}
        if end.get("type") == "result":
            return end
        if self._kill_at is not None or end.get("cancelled"):
            raise Cancelled(self.job.title or self.job.name)
        if end:
            raise RefaceRiskError(end.get("what", "failed"), end.get("hint", ""), end.get("path"))
        hint = self._last_words[-1] if self._last_words else f"exit status {self._process.returncode}"
        raise RefaceRiskError(f"the job {self.job.name} ended without a result", hint)

    def cancel(self) -> None:
        """Asks the job to stop; `running` kills it when it has not within GRACE_S."""
        if self._kill_at is not None or self._process.poll() is not None:
            return
        self._kill_at = time.monotonic() + GRACE_S
        try:
            self._process.stdin.write(b"cancel\n")
            self._process.stdin.flush()
        except OSError:
            self.kill()

    def kill(self) -> None:
        """Ends the process and whatever it started, now."""
        if self._process is None or self._process.poll() is not None:
            return
        if os.name == "nt":
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(self.pid)], capture_output=True, check=False)
        else:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        self.kill()
        for thread in self._readers:
            thread.join(timeout=1)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with suppress(OSError):
                stream.close()

    def _read_messages(self) -> None:
        for line in self._process.stdout:
            text = line.decode("utf-8", errors="replace").strip()
            try:
                message = json.loads(text)
            except ValueError:
                message = None
            if _understood(message):
                self._queue.put(message)
            elif text:
                self._last_words.append(text)

    def _read_log(self) -> None:
        for line in self._process.stderr:
            text = line.decode("utf-8", errors="replace").rstrip()
            if text:
                self._last_words.append(text)
                logging.debug("worker: %s", text)


def _understood(message: object) -> bool:
    """Whether a line of the worker is one of its messages, whole: libraries print what they like."""
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        return False
    if message["type"] == "progress":
        numbers = all(isinstance(message.get(key), int) for key in ("step", "of"))
        return numbers and isinstance(message.get("stage"), str)
    return message["type"] != "preview" or isinstance(message.get("path"), str)


class JobRunner:
    """Runs jobs one after another and tells, from `poll`, what happens.

    `on_progress(job, message)` for every progress message, `on_preview(job, message)` for the latest of the previews
    that have arrived (its file is there until two more have come), `on_result(job, message)` for every job that is
    done: a generator gets one step a poll, so that events go on between the volumes that come in.
    `on_error(job, error)` for one that failed: it returns True when the jobs after it are still worth running.
    `on_end(error)` comes once, last: None, the error that ended the run, or Cancelled. The folder of inputs and
    outputs is removed after it.
    """

    def __init__(
        self,
        jobs: Callable[[Path], Sequence[Job]],
        on_progress: Callable[[Job, dict], None] | None = None,
        on_result: Callable[[Job, dict], Iterator[None] | None] | None = None,
        on_error: Callable[[Job, RefaceRiskError], bool] | None = None,
        on_end: Callable[[Exception | None], None] | None = None,
        python: str | None = None,
        on_preview: Callable[[Job, dict], None] | None = None,
    ):
        self._make_jobs = jobs
        self._on_progress = on_progress or (lambda job, message: None)
        self._on_preview = on_preview or (lambda job, message: None)
        self._on_result = on_result or (lambda job, message: None)
        self._on_error = on_error or (lambda job, error: False)
        self._on_end = on_end or (lambda error: None)
        self._python = python
        self._scratch: Path | None = None
        self._waiting: deque[Job] = deque()
        self._worker: WorkerProcess | None = None
        self._steps: Iterator[None] = iter(())  # what is left to do with the latest result
        self.ended = False

    def start(self) -> JobRunner:
        """Writes the inputs (the callable `jobs` gets the folder for them) and starts the first job."""
        self._scratch = Path(tempfile.mkdtemp(prefix="refacerisk-"))
        try:
            self._waiting.extend(self._make_jobs(self._scratch))
            self._next()
        except BaseException:
            self._clean_up()
            raise
        return self

    @property
    def pid(self) -> int | None:
        """The process of the running job."""
        return None if self._worker is None else self._worker.pid

    def poll(self) -> bool:
        """Hands out what has arrived, or does one more step with a result. True while there is more to come."""
        if self.ended:
            return False
        if self._worker is not None:
            return self._listen()
        try:
            next(self._steps)
        except StopIteration:
            if not self._waiting:
                return self._finish(None)
            self._next()
        except Exception as error:  # a result that cannot be shown ends the run as any other error does
            return self._finish(error)
        return True

    def wait(self) -> None:
        """Until all is done. Raises what ended the run."""
        outcome: list[Exception | None] = []
        tell, self._on_end = self._on_end, lambda error: (outcome.append(error), tell(error))
        try:
            while self.poll():
                time.sleep(0.02)
        finally:
            self.stop()
        if outcome and outcome[0] is not None:
            raise outcome[0]

    def cancel(self) -> None:
        """Asks the running job to stop; the run ends with Cancelled within about GRACE_S."""
        self._waiting.clear()
        if self._worker is not None:
            self._worker.cancel()

    def stop(self) -> None:
        """Ends everything at once and tells nobody: the scene or the application is closing."""
        if self.ended:
            return
        self.ended = True
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        self._clean_up()

    def fail(self, error: Exception) -> None:
        """Ends everything at once and tells so: a listener of ours could not go on."""
        if self.ended:
            return
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        self._finish(error)

    def _listen(self) -> bool:
        """Hands out what the running job has said, and how it ended. True while the run goes on."""
        running = self._worker.running
        messages = self._worker.messages()
        for message in messages:
            if message["type"] == "progress":
                self._on_progress(self._worker.job, message)
        preview = next((message for message in reversed(messages) if message["type"] == "preview"), None)
        if preview is not None and not self.ended:
            with suppress(OSError):  # a slow listener: two newer ones have come and this file is gone
                self._on_preview(self._worker.job, preview)
        if running or self.ended:
            return not self.ended
        worker, self._worker = self._worker, None
        try:
            message = worker.outcome()
        except RefaceRiskError as error:
            return self._on_error(worker.job, error) or self._finish(error)
        except Cancelled as error:
            return self._finish(error)
        finally:
            worker.close()
        try:
            self._steps = iter(self._on_result(worker.job, message) or ())
        except Exception as error:
            return self._finish(error)
        return True

    def _next(self) -> None:
        self._worker = WorkerProcess(self._waiting.popleft(), self._scratch, self._python)
        self._worker.start()

    def _finish(self, error: Exception | None) -> bool:
        self.ended = True
        try:
            self._on_end(error)
        finally:
            self._clean_up()
        return False

    def _clean_up(self) -> None:
        self.ended = True
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


def started(
    jobs: Callable[[Path], Sequence[Job]],
    collect: Callable[[Job, dict], Iterator[None] | None],
    outputs: Outputs,
    on_progress: Callable[[Job, dict], None] | None = None,
    on_end: Callable[[Outputs, Exception | None], None] | None = None,
    on_preview: Callable[[Job, dict], None] | None = None,
) -> JobRunner:
    """A running JobRunner whose results ``collect`` puts into ``outputs``, which ``on_end`` gets with the error."""
    tell = (lambda error: on_end(outputs, error)) if on_end else None
    return JobRunner(jobs, on_progress=on_progress, on_preview=on_preview, on_result=collect, on_end=tell).start()


def waited(start: Callable[[Callable[[Outputs, Exception | None], None]], JobRunner]) -> Outputs:
    """What a run brought, waited for; ``start`` gets the ``on_end`` to start it with. Raises what ended the run."""
    ends = []
    start(lambda outputs, error: ends.append(outputs)).wait()
    return ends[0]


def follow(runner: JobRunner, every_ms: int = 100) -> JobRunner:
    """Polls the runner from Qt's event loop until it has ended."""
    import qt

    def poll() -> None:
        try:
            more = runner.poll()
        except Exception as error:
            runner.fail(error)
            raise
        if more:
            qt.QTimer.singleShot(every_ms, poll)

    qt.QTimer.singleShot(0, poll)
    return runner


def slicer_python() -> str:
    """The Python to run the worker with: Slicer's own where this is Slicer, else the one that runs now."""
    return shutil.which("PythonSlicer") or sys.executable
