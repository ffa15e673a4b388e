"""Results of a benchmark as they come: a tab-separated table that a second run reads and goes on with."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path


def kept(path: Path) -> list[dict]:
    """The rows of a table, texts by column; none where there is no table yet."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def append(path: Path, rows: list[dict], columns: Sequence[str]) -> None:
    """Add rows to a table, which is begun with its columns where there is none."""
    new = not path.exists()
    with open(path, "a", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, delimiter="\t")
        if new:
            writer.writeheader()
        writer.writerows(rows)
