"""The one exception that a user is meant to read."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator


class RefaceRiskError(Exception):
    """What is wrong, with which file, and what to do about it; ``str()`` is one line "path: what; hint".

    The command line prints that line and exits 2; the panel shows the same line.
    """

    def __init__(self, what: str, hint: str = "", path: str | os.PathLike | None = None):
        self.what = one_line(what)
        self.hint = one_line(hint)
        self.path = None if path is None else os.fspath(path)
        super().__init__(str(self))

    def __str__(self) -> str:
        line = f"{self.what}; {self.hint}" if self.hint else self.what
        return line if self.path is None else f"{one_line(self.path)}: {line}"

    def __reduce__(self):
        # Exception's own pickling passes str(self) back as `what`, which would repeat path and hint.
        return type(self), (self.what, self.hint, self.path)


def one_line(text: object) -> str:
    """``str(text)`` without line breaks and control characters, which a header or a table may hold.

    A terminal obeys some of the latter.
    """
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", " ".join(str(text).splitlines())).strip()


@contextlib.contextmanager
def unheard_libraries() -> Iterator[None]:
    """Nothing that C++ code prints to stderr is seen; what it raises is told by us, in one line."""
    try:
        sys.stderr.flush()
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except (OSError, AttributeError):  # a program without a console
        yield
        return
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
