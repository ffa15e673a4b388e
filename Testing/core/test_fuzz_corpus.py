"""Every input that fuzzing found, and those it started from: read, or refused in one line, in time and in memory."""

from __future__ import annotations

import contextlib
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[1] / "fuzz"
sys.path.insert(0, str(FUZZ))
import promise  # noqa: E402

FILES = sorted(file for file in promise.CORPUS.rglob("*") if file.is_file())
_SECONDS = 20  # each takes about a tenth of one
_MEMORY = 1 << 30
# What is so broken, or so whole, that only one answer is right; all others may be read or refused.
_READ = {"nhdr/raw.nhdr", "nhdr/list.nhdr", "participants/table.tsv", "cohort/values.tsv"}


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """No more than a gigabyte beyond what the process has already; a reader that hangs ends it (SIGALRM)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    # The default action, not a handler of Python: that would wait for the C++ code which hangs.
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, hard))
        signal.alarm(_SECONDS)
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory and time as Linux has them")
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_any_bytes_are_read_or_refused_in_one_line(file, tmp_path):
    with limits():
        line = promise.hold(file.parent.name, file.read_bytes(), tmp_path)
    if f"{file.parent.name}/{file.name}" in _READ:
        assert line is None
    if "found-promise" in file.name:
        assert "cannot hold" in line


def test_every_target_has_a_corpus_and_it_is_small():
    assert {file.parent.name for file in FILES} == set(promise.TARGETS)
    assert sum(file.stat().st_size for file in FILES) < 300_000
