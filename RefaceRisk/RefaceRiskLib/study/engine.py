"""Hands the subjects of a study to processes: one after the other, to an embedded cluster, or to one that is there.

A task is one function of one small message that returns a small message; data go through the disk. Only as many tasks
as keep every process busy are with the scheduler at a time, so that its memory does not grow with the cohort.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ..errors import RefaceRiskError

Task = Callable[[Mapping], dict]
MEMORY_GB = 2.5  # of one process, with a head of 256 cubed voxels
_QUIET = {
    "distributed.worker.memory.terminate": False,
    "distributed.comm.timeouts.connect": "30s",
    "distributed.scheduler.allowed-failures": 2,
    "distributed.admin.large-graph-warning-threshold": "10MB",
}


@dataclass(frozen=True)
class Engine:
    """`run(task, messages)` yields what the task returned for each message, as they finish. `dashboard`: its address,
    or ""; `workers`: how many processes work, 0 is this one alone."""

    run: Callable[[Task, Iterable[Mapping]], Iterator[dict]]
    workers: int
    dashboard: str = ""


@contextlib.contextmanager
def engine(workers: int | None = None, scheduler: str | None = None, tasks: int | None = None) -> Iterator[Engine]:
    """An engine, shut down at the end.

    `workers`: processes of the embedded cluster; None is as many as cores, memory and `tasks` ask for; 0 works in this
    process, as does everything where dask is not installed and none was asked for. `scheduler`: address of a running
    dask scheduler ("tcp://host:8786"), whose workers see the same folders.
    Raises RefaceRiskError where the cluster cannot be used.
    """
    if scheduler is not None:
        with _connected(scheduler) as found:
            yield found
        return
    asked = workers
    if workers is None:
        workers = min(fitting_workers(), tasks if tasks is not None else 1 << 30)
        workers = workers if workers > 1 and has_dask() else 0
    if workers == 0:
        yield Engine(_in_this_process, 0)
        return
    if not has_dask():
        raise RefaceRiskError(f"--workers {asked} needs dask", "pip install 'MRIRefaceRisk[cluster]', or --workers 0")
    with _embedded(workers) as found:
        yield found


def fitting_workers() -> int:
    """As many processes as there are cores, and memory and GPUs for; at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fitting = min(cores, max(1, int(_memory_gb() / MEMORY_GB)))
    gpus = _gpus()
    return min(fitting, 2 * gpus) if gpus else fitting


def has_dask() -> bool:
    try:
        import dask.distributed  # noqa: F401
    except ImportError:
        return False
    return True


def _memory_gb() -> float:
    """What is free for processes now, in GB; much where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            free = next(line for line in lines if line.startswith("MemAvailable"))
        return int(free.split()[1]) / 1e6
    except (OSError, StopIteration, ValueError):
        return 1e6


def _gpus() -> int:
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        told = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in told.stdout.splitlines())


def _in_this_process(task: Task, messages: Iterable[Mapping]) -> Iterator[dict]:
    for message in messages:
        yield task(message)


@contextlib.contextmanager
def _embedded(workers: int) -> Iterator[Engine]:
    import dask
    from dask.distributed import Client, LocalCluster

    with dask.config.set(_QUIET), _one_thread_each():
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        )
        with cluster, Client(cluster) as client:
            yield Engine(_running_on(client), workers, cluster.dashboard_link or "")


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """The worker processes inherit it; see `subject.use_one_thread`."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Engine]:
    if not has_dask():
        raise RefaceRiskError("--scheduler needs dask", "pip install 'MRIRefaceRisk[cluster]'")
    import dask
    from dask.distributed import Client

    with dask.config.set(_QUIET):
        try:
            client = Client(address, timeout="20s")
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0][:120]
            raise RefaceRiskError(f"no scheduler answers at {address} ({reason})", "check --scheduler") from None
        with client:
            yield Engine(_running_on(client), len(client.scheduler_info()["workers"]), client.dashboard_link or "")


def _running_on(client) -> Callable[[Task, Iterable[Mapping]], Iterator[dict]]:
    from concurrent.futures import CancelledError

    from dask.distributed import KilledWorker, as_completed
    from distributed.client import FutureCancelledError

    gone = (CancelledError, FutureCancelledError, OSError, TimeoutError)

    def submitted(task: Task, message: Mapping):
        future = client.submit(task, dict(message), pure=False)
        names[future.key] = message.get("name", "")
        return future

    names: dict[str, str] = {}

    def run(task: Task, messages: Iterable[Mapping]) -> Iterator[dict]:
        try:
            yield from handed_out(task, messages)
        except Exception as error:
            if isinstance(error, RefaceRiskError) or not (isinstance(error, gone) or client.status != "running"):
                raise
            raise RefaceRiskError(
                "the scheduler is gone", "give the same command again: finished participants are kept"
            ) from error

    def handed_out(task: Task, messages: Iterable[Mapping]) -> Iterator[dict]:
        waiting = iter(messages)
        # A cluster that grows while we run gets more: two tasks for each thread there is, but never just a few.
        threads = sum(client.nthreads().values())
        started = [submitted(task, m) for _, m in zip(range(max(16, 2 * threads)), waiting, strict=False)]
        running = as_completed(started, raise_errors=False)
        del started
        for future in running:
            name = names.pop(future.key, "")
            try:
                yield future.result()
            except KilledWorker:
                yield {"name": name, "status": "failed", "seconds": 0.0,
                       "reason": "its process died three times; out of memory? use fewer --workers"}  # fmt: skip
            except gone:
                raise
            except Exception as error:
                reason = f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                yield {"name": name, "status": "failed", "reason": reason, "seconds": 0.0}
            future.release()
            del future
            following = next(waiting, None)
            if following is not None:
                running.add(submitted(task, following))

    return run
