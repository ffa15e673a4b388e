"""Progress, time left and cancellation, the same for terminal, worker process and panel.

A long function takes ``on_progress`` and calls ``report`` once a step. Whoever listens may raise `Cancelled`
from the callback: the function then stops within that step, because nothing in the core catches it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True)
class Progress:
    """Step ``step`` of ``of`` in ``stage`` is done (0: it begins).

    ``preview``: what to show so far, or a function without arguments that makes it. Making one costs time, so that only
    whoever shows it calls the function.
    """

    stage: str
    step: int
    of: int
    message: str = ""
    preview: object = None


class Cancelled(Exception):
    """The user asked to stop. Raised by a progress callback, passes through the function that reports."""


OnProgress = Callable[[Progress], None]


def report(
    on_progress: OnProgress | None, stage: str, step: int, of: int, message: str = "", preview: object = None
) -> None:
    """Tell the listener, if any, that step ``step`` of ``of`` is done; what it raises passes through."""
    if on_progress is not None:
        on_progress(Progress(stage, step, of, message, preview))


def cancellable(event, on_progress: OnProgress | None = None) -> OnProgress:
    """A callback that raises `Cancelled` once a `threading.Event` is set and else calls ``on_progress``."""

    def listen(progress: Progress) -> None:
        if event.is_set():
            raise Cancelled(progress.stage)
        if on_progress is not None:
            on_progress(progress)

    return listen


class TimeLeft:
    """Estimates the seconds left in a stage from the pace of its latest steps.

    The mean time of a step is an exponential average (weight 0.3 to the latest), because first steps are slow
    (memory being allocated) and later stages of an iterative method change pace.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._stage: str | None = None
        self._step = 0
        self._at = 0.0
        self._pace: float | None = None

    def update(self, progress: Progress) -> float | None:
        """Seconds left in this stage after ``progress``, or None while nothing is known."""
        now = self._clock()
        if progress.stage != self._stage or progress.step < self._step:
            self._stage, self._step, self._at, self._pace = progress.stage, progress.step, now, None
        elif progress.step > self._step:
            pace = (now - self._at) / (progress.step - self._step)
            self._pace = pace if self._pace is None else 0.7 * self._pace + 0.3 * pace
            self._step, self._at = progress.step, now
        if progress.step >= progress.of:
            return 0.0
        if self._pace is None:
            return None
        return max(0.0, self._pace * (progress.of - progress.step) - (now - self._at))


def json_lines(stream: TextIO) -> OnProgress:
    """A callback that writes a JSON object a line: type, stage, step, of, message, seconds_left (or null)."""
    time_left = TimeLeft()

    def write(progress: Progress) -> None:
        seconds = time_left.update(progress)
        line = {
            "type": "progress",
            "stage": progress.stage,
            "step": int(progress.step),
            "of": int(progress.of),
            "message": progress.message,
            "seconds_left": None if seconds is None else round(seconds, 1),
        }
        stream.write(json.dumps(line) + "\n")
        stream.flush()

    return write


@contextmanager
def terminal_bar(stream: TextIO | None = None) -> Iterator[OnProgress]:
    """A callback that draws one bar a stage, with the time left, on ``stream`` (standard error if None).

    Without a terminal, or without tqdm (a stock Slicer), plain lines: one when a stage begins and ends and at
    most one every two seconds between.
    """
    stream = sys.stderr if stream is None else stream
    display = _bars(stream) if stream.isatty() else None
    if display is None:
        yield _plain_lines(stream)
        return
    show, close = display
    try:
        yield show
    finally:
        close()


def _bars(stream: TextIO) -> tuple[OnProgress, Callable[[], None]] | None:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    bar = None
    stage = None

    def show(progress: Progress) -> None:
        nonlocal bar, stage
        if bar is None or progress.stage != stage or progress.step < bar.n:
            close()
            stage = progress.stage
            bar = tqdm(
                total=progress.of,
                desc=progress.stage,
                file=stream,
                dynamic_ncols=True,
                bar_format="{desc:<24} {percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}<{remaining}] {unit}",
                unit=progress.message,
            )
        bar.total = progress.of
        if progress.message:
            bar.unit = progress.message
        bar.update(progress.step - bar.n)
        bar.refresh()

    def close() -> None:
        if bar is not None:
            bar.close()

    return show, close


def _plain_lines(stream: TextIO, clock: Callable[[], float] = time.monotonic, every: float = 2.0) -> OnProgress:
    time_left = TimeLeft(clock)
    stage: str | None = None
    said_at = 0.0

    def say(progress: Progress) -> None:
        nonlocal stage, said_at
        seconds = time_left.update(progress)
        now = clock()
        if progress.stage == stage and progress.step < progress.of and now - said_at < every:
            return
        stage, said_at = progress.stage, now
        parts = [f"{progress.stage}: {progress.step}/{progress.of}"]
        if progress.message:
            parts.append(progress.message)
        if seconds:
            parts.append(f"{_duration(seconds)} left")
        stream.write(", ".join(parts) + "\n")
        stream.flush()

    return say


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
