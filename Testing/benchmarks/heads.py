"""Where the benchmarks find their heads: REFACERISK_SHARED_DATA, or the folder that the tests use."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def folder(name: str) -> Path:
    """A folder of the test data; ends the program with a clear line where there is none."""
    root = Path(
        os.environ.get("REFACERISK_SHARED_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data")
    )
    if not (root / name).is_dir():
        print(f"skipped: no {name} in {root}; set REFACERISK_SHARED_DATA or name the heads")
        sys.exit(0)
    return root / name
