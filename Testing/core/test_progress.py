"""Progress is told once a step, shows the time left, and is the way to cancel."""

from __future__ import annotations

import io
import json
import sys
import threading

import pytest

from RefaceRiskLib.progress import (
    Cancelled,
    Progress,
    TimeLeft,
    _plain_lines,
    cancellable,
    json_lines,
    report,
    terminal_bar,
)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def long_function(on_progress, steps=5):
    done = 0
    for step in range(steps):
        done += 1
        report(on_progress, "work", step + 1, steps, preview=step)
    return done


def test_a_function_without_a_listener_runs_through():
    assert long_function(None) == 5


def test_a_listener_hears_every_step():
    heard = []
    long_function(heard.append)
    assert [(p.stage, p.step, p.of, p.preview) for p in heard] == [("work", n + 1, 5, n) for n in range(5)]


def test_a_set_event_cancels_within_one_step():
    event = threading.Event()
    heard = []

    def listen(progress):
        heard.append(progress.step)
        if progress.step == 2:
            event.set()

    with pytest.raises(Cancelled):
        long_function(cancellable(event, listen))
    assert heard == [1, 2]
    event.clear()
    assert long_function(cancellable(event)) == 5


def test_the_time_left_follows_the_pace_and_counts_down_between_steps():
    clock = Clock()
    left = TimeLeft(clock)
    assert left.update(Progress("a", 0, 10)) is None
    clock.now += 2
    assert left.update(Progress("a", 1, 10)) == pytest.approx(18)
    clock.now += 1
    assert left.update(Progress("a", 1, 10)) == pytest.approx(17)
    clock.now += 1
    assert left.update(Progress("a", 2, 10)) == pytest.approx(16)
    for step in range(3, 10):
        clock.now += 4
        seconds = left.update(Progress("a", step, 10))
    assert 3.5 < seconds < 4.1
    assert left.update(Progress("a", 10, 10)) == 0
    assert left.update(Progress("b", 0, 3)) is None


def test_json_lines_are_one_object_a_line_with_the_agreed_names():
    stream = io.StringIO()
    write = json_lines(stream)
    write(Progress("register", 0, 2, "first\nline"))
    write(Progress("register", 1, 2, preview=object()))
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first == {
        "type": "progress",
        "stage": "register",
        "step": 0,
        "of": 2,
        "message": "first\nline",
        "seconds_left": None,
    }
    assert second["step"] == 1 and second["seconds_left"] >= 0


def test_a_terminal_gets_a_bar_a_stage_and_standard_output_nothing(capsys):
    terminal = Terminal()
    with terminal_bar(terminal) as on_progress:
        for stage in ("register", "deface"):
            for step in range(4):
                on_progress(Progress(stage, step, 3, f"part {step}"))
    drawn = terminal.getvalue()
    assert "register" in drawn and "deface" in drawn and "100%" in drawn and "3/3" in drawn and "part 3" in drawn
    assert capsys.readouterr().out == ""


def test_a_log_file_gets_plain_lines_at_most_every_two_seconds():
    stream, clock = io.StringIO(), Clock()
    say = _plain_lines(stream, clock)
    for step in range(101):
        say(Progress("diffuse", step, 100))
        clock.now += 0.1
    say(Progress("measure", 0, 1, "face"))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "diffuse: 0/100" and lines[-2] == "diffuse: 100/100"
    assert lines[-1] == "measure: 0/1, face"
    assert 5 <= len(lines) <= 8
    assert lines[2].startswith("diffuse: ") and lines[2].endswith(" s left")


def test_without_tqdm_a_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    terminal = Terminal()
    with terminal_bar(terminal) as on_progress:
        on_progress(Progress("register", 1, 2))
    assert terminal.getvalue() == "register: 1/2\n"


def test_the_default_stream_is_standard_error(capsys):
    with terminal_bar() as on_progress:
        on_progress(Progress("register", 1, 1))
    captured = capsys.readouterr()
    assert captured.out == "" and "register: 1/1" in captured.err


def test_cancelling_closes_the_bar():
    terminal = Terminal()

    def cancel_in_a_bar():
        with terminal_bar(terminal) as on_progress:
            on_progress(Progress("register", 1, 2))
            raise Cancelled

    with pytest.raises(Cancelled):
        cancel_in_a_bar()
    assert terminal.getvalue().endswith("\n")
