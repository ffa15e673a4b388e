"""Coverage-guided fuzzing of everything that reads a file from outside; see README.md here.

    python Testing/fuzz/fuzz_headers.py nifti [options of libFuzzer, as -max_total_time=60]
"""

from __future__ import annotations

import gzip
import random
import re
import sys
import tempfile
import zlib
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["RefaceRiskLib"]):
    import promise

# Sizes and numbers at which readers of headers break.
_NUMBERS = (
    b"0", b"-1", b"1", b"3", b"4", b"1e-30", b"1e30", b"1e308", b"nan", b"inf", b"-inf", b"32767", b"65536",
    b"2147483647", b"4294967295", b"9223372036854775807", b"18446744073709551616", b"", b"1 2", b"0.5",
)  # fmt: skip
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def mutated(data: bytes, most: int, seed: int) -> bytes:
    """As libFuzzer does it, but inside a gzip stream, and now and then a whole number of a text at a time."""
    chance = random.Random(seed)
    if data[:2] == b"\x1f\x8b" and chance.random() < 0.9:
        try:
            plain = gzip.decompress(data)
        except (EOFError, OSError, zlib.error):
            return atheris.Mutate(data, most)
        if len(plain) <= most:
            return gzip.compress(atheris.Mutate(plain, most), 1, mtime=0)[:most]
    numbers = list(_NUMBER.finditer(data[:2000]))
    if numbers and chance.random() < 0.4:
        found = chance.choice(numbers)
        return (data[: found.start()] + chance.choice(_NUMBERS) + data[found.end() :])[:most]
    return atheris.Mutate(data, most)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in promise.TARGETS:
        raise SystemExit(f"{Path(sys.argv[0]).name} {{{','.join(promise.TARGETS)}}} [-max_total_time=60 ...]")
    target = sys.argv.pop(1)
    # What is found new goes into a folder that is thrown away: the corpus holds only what somebody chose to keep.
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as new:
        folders = [new, str(promise.CORPUS / target)] if all(a.startswith("-") for a in sys.argv[1:]) else []
        options = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=4096", f"-artifact_prefix={target}-"]
        atheris.Setup(
            [sys.argv[0], *options, *sys.argv[1:], *folders],
            lambda data: promise.hold(target, data, Path(work)),
            custom_mutator=mutated,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
