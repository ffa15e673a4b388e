"""What a study costs, against the number of heads and of processes; the exponent fitted; the scheduler's memory.

    python Testing/benchmarks/bench_study.py [COHORT] [--subjects 1 2 4 8] [--workers 1 2] [--methods mri_deface]

Each run is a fresh `study` in a process of its own, into an empty folder, with the light settings. That process holds
the scheduler: the memory is its largest resident set before the linkage and the figures begin.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import heads
import numpy as np


def one(cohort: Path, count: int, workers: int, methods: list[str]) -> dict:
    import psutil

    from RefaceRiskLib.study.participants import read_participants
    from RefaceRiskLib.study.run import run_study

    people = read_participants(cohort)[:count]
    process, seen = psutil.Process(), {"mb": 0.0}

    def watch(progress) -> None:
        if progress.stage == "participants":
            seen["mb"] = max(seen["mb"], process.memory_info().rss / 1e6)

    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "participants.tsv"
        lines = [f"{person.name}\t{person.head.resolve()}" for person in people]
        table.write_text("\n".join(["participant_id\thead", *lines]) + "\n", encoding="utf-8")
        began = time.perf_counter()
        done = run_study(table, Path(folder) / "out", methods=methods, workers=workers, on_progress=watch)
        wall = time.perf_counter() - began
        began = time.perf_counter()
        run_study(table, Path(folder) / "out", methods=methods, workers=workers)
        again = time.perf_counter() - began
    failed = len(done.record["failed"])
    return {"heads": count, "workers": workers, "wall_s": wall, "again_s": again, "mb": seen["mb"], "failed": failed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohort", type=Path, nargs="?")
    parser.add_argument("--subjects", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--methods", nargs="+", default=["mri_deface"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    cohort = options.cohort or heads.folder("cohort_ixi_2mm")
    if options.one:
        print(json.dumps(one(cohort, *options.one, options.methods)))
        return 0
    print(f"{', '.join(options.methods)}; load average before: {os.getloadavg()[0]:.1f}")
    names = (("workers", 8), ("heads", 7), ("wall s", 9), ("s a head", 10), ("again s", 9), ("scheduler MB", 14))
    print("".join(f"{name:>{width}s}" for name, width in (*names, ("load", 7))))
    rows = []
    for workers in options.workers:
        for count in options.subjects:
            command = [sys.executable, __file__, str(cohort), "--one", str(count), str(workers)]
            done = subprocess.run([*command, "--methods", *options.methods], check=True, capture_output=True, text=True)
            row = json.loads(done.stdout.splitlines()[-1]) | {"load": os.getloadavg()[0]}
            rows.append(row)
            print(f"{workers:8d}{count:7d}{row['wall_s']:9.1f}{row['wall_s'] / count:10.1f}{row['again_s']:9.1f}"
                  f"{row['mb']:14.0f}{row['load']:7.1f}", flush=True)  # fmt: skip
    for workers in options.workers:
        own = [row for row in rows if row["workers"] == workers and row["heads"] >= workers]
        if len(own) > 1:
            x, y = (np.log([row[key] for row in own]) for key in ("heads", "wall_s"))
            print(f"{workers} workers: fitted exponent {np.polyfit(x, y, 1)[0]:.2f}")
    largest = max(options.subjects)
    walls = {row["workers"]: row["wall_s"] for row in rows if row["heads"] == largest}
    for workers in options.workers[1:]:
        print(f"{largest} heads, {workers} workers against {options.workers[0]}: "
              f"{walls[options.workers[0]] / walls[workers]:.2f} times as fast")  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
