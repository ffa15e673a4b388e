"""Run the original defacers, where they are installed, and bring what they write into the same contract as our own.

A program gets a copy of the head as NIfTI in a temporary folder and never sees the input. What it changed is read back
onto the input's own grid: voxels that it left alone stay bit for bit, and brain that it removed is not given back, so
that the quality figures tell what it did.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import RefaceRiskError
from ..geometry import axes_of, resample
from ..progress import OnProgress, report
from ..tissue import BRAIN_MARGIN_MM
from ..volumes import Volume, load, reorient, save
from .base import Head
from .quickshear import quickshear, shear_plane

POLL_S = 0.2  # how soon a running program notices a wish to cancel
GRACE_S = 3.0  # between asking a program to end and ending it
FREESURFER_TEMPLATES = ("talairach_mixed_with_skull.gca", "face.gca")


@dataclass(frozen=True)
class Call:
    """What a program is started on: its folder with the copied ``head``, what is known of it, and the options."""

    executable: str
    folder: Path
    copy: Path
    head: Head
    options: Mapping[str, object]


@dataclass(frozen=True)
class Program:
    """How a defacer is found, started and read.

    executables : names to look for, the first that is there counts. package, url : what to install.
    arguments : a call to the arguments after the executable. output : the file it leaves in the folder.
    options : with their defaults. copy : the name that the head's copy gets.
    """

    executables: tuple[str, ...]
    package: str
    url: str
    arguments: Callable[[Call], list[str]]
    output: str = "defaced.nii.gz"
    options: Mapping[str, object] = field(default_factory=dict)
    copy: str = "head.nii.gz"


# --- the programs -------------------------------------------------------------------------------------------------


def _fsl_deface(call: Call) -> list[str]:
    return [str(call.copy), "defaced.nii.gz"]


def _mri_deface(call: Call) -> list[str]:
    return [str(call.copy), *map(str, freesurfer_templates(call)), "defaced.nii.gz"]


def _pydeface(call: Call) -> list[str]:
    return [str(call.copy), "--outfile", "defaced.nii.gz", "--force"]


def _quickshear(call: Call) -> list[str]:
    volume = call.head.volume
    brain = save(volume.with_intensities(call.head.brain_itself, np.uint8), call.folder / "brain.nii.gz")
    voxels = buffer_voxels(call.head.brain_itself, volume.affine, float(call.options["margin_mm"]) + BRAIN_MARGIN_MM)
    return [str(call.copy), str(brain), "defaced.nii.gz", f"{voxels:.3f}"]


def _mideface(call: Call) -> list[str]:
    return ["--i", str(call.copy), "--o", str(call.folder / "defaced.nii.gz")]


def _afni_refacer(call: Call) -> list[str]:
    return ["-input", str(call.copy), "-mode_deface", "-no_images", "-prefix", "defaced.nii.gz"]


def _mri_reface(call: Call) -> list[str]:
    kind = str(call.options["image_type"])
    return [str(call.copy), str(call.folder), "-imType", kind, "-saveQCRenders", "0"]


_FREESURFER = "https://surfer.nmr.mgh.harvard.edu/fswiki/"
_REFACE = Program(
    ("run_mri_reface.sh", "mri_reface", "run_mri_reface_docker.sh"),
    "mri_reface (free for research)",
    "https://www.nitrc.org/projects/mri_reface",
    _mri_reface,
    output="head_deFaced.nii",
    options={"image_type": "T1"},
    copy="head.nii",
)
PROGRAMS: dict[str, Program] = {
    "fsl_deface": Program(("fsl_deface",), "FSL 6.0.1 or newer", "https://fsl.fmrib.ox.ac.uk", _fsl_deface),
    "mri_deface": Program(
        ("mri_deface",), "FreeSurfer", f"{_FREESURFER}mri_deface", _mri_deface, options={"templates": None}
    ),
    "pydeface": Program(("pydeface",), "pydeface and FSL", "https://github.com/poldracklab/pydeface", _pydeface),
    "quickshear": Program(
        ("quickshear", "quickshear.py"),
        "quickshear (pip install quickshear)",
        "https://github.com/nipy/quickshear",
        _quickshear,
        options={"margin_mm": quickshear.__defaults__[0]},
    ),
    "mideface": Program(("mideface",), "FreeSurfer 7.3 or newer", f"{_FREESURFER}MiDeFace", _mideface),
    "afni_refacer": Program(("@afni_refacer_run",), "AFNI", "https://afni.nimh.nih.gov", _afni_refacer),
    "mri_reface": _REFACE,
    "average_face": _REFACE,
}


def buffer_voxels(brain: np.ndarray, affine: np.ndarray, margin_mm: float) -> float:
    """The buffer of the original quickshear that puts its plane ``margin_mm`` from the brain.

    It counts voxels straight down, we millimetres at right angles to the plane.
    """
    normal, _ = shear_plane(brain, affine)
    world, _ = axes_of(affine)
    down_mm = float(np.linalg.norm(affine[:3, int(np.flatnonzero(world == 2)[0])]))
    return margin_mm / (float(normal[2]) * down_mm)


def freesurfer_templates(call: Call) -> list[Path]:
    """The two atlases of mri_deface: in ``templates``, $FREESURFER_HOME/average, or beside the program."""
    here = Path(call.executable).resolve().parent
    folders = [here, here.parent / "average"]
    if os.environ.get("FREESURFER_HOME"):
        folders.insert(0, Path(os.environ["FREESURFER_HOME"]) / "average")
    if call.options["templates"] is not None:
        folders = [Path(str(call.options["templates"])).absolute()]
    for folder in folders:
        files = [folder / name for name in FREESURFER_TEMPLATES]
        if all(file.is_file() for file in files):
            return files
    raise RefaceRiskError(
        f"mri_deface needs {' and '.join(FREESURFER_TEMPLATES)}",
        f"set FREESURFER_HOME or give the folder that holds them (templates); they are at {_FREESURFER}mri_deface",
        folders[0] if call.options["templates"] is not None else None,
    )


def find_program(method: str) -> str:
    """Path of the original program, on PATH or beside the running Python.

    Raises :class:`RefaceRiskError` that says what to install.
    """
    program = PROGRAMS[method]
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    for name in program.executables:
        found = shutil.which(name, path=places)
        if found:
            return str(Path(found).absolute())
    raise RefaceRiskError(
        f"the original program {program.executables[0]} is not on PATH", f"install {program.package}: {program.url}"
    )


# --- run and read ---------------------------------------------------------------------------------------------------


def run_original(
    head: Head, method: str, on_progress: OnProgress | None = None, **options: object
) -> tuple[Volume, np.ndarray]:
    """Deface with the original program: the result on the head's own grid, and what changed, (I, J, K) bool.

    Raises :class:`RefaceRiskError` when the program is absent, fails, or returns something else than this head.
    """
    program, executable = PROGRAMS[method], find_program(method)
    name = Path(executable).name
    with tempfile.TemporaryDirectory(prefix="refacerisk-", ignore_cleanup_errors=True) as made:
        folder = Path(made).resolve()
        copy = save(head.volume, folder / program.copy)
        arguments = program.arguments(Call(executable, folder, copy, head, {**program.options, **options}))
        last_words = _run([executable, *arguments], folder, name, on_progress)
        output = folder / program.output
        if not output.is_file():
            raise RefaceRiskError(f"{name} ended without an output: {last_words}", "run it by hand to see why")
        return _read_back(head, load(output), name)


def _run(command: list[str], folder: Path, name: str, on_progress: OnProgress | None) -> str:
    """Run to the end, in ``folder``; the last line that it said. Ends the whole process group when interrupted."""
    logs = [folder / "stderr.txt", folder / "stdout.txt"]
    began = time.monotonic()
    # Some write temporary files that they forget; in this folder they go with it.
    environment = {**os.environ, "TMPDIR": str(folder), "TMP": str(folder), "TEMP": str(folder)}
    own_group = {"start_new_session": True} if os.name == "posix" else {"creationflags": 0x200}
    with open(logs[0], "wb") as errors, open(logs[1], "wb") as words:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=errors,
                **own_group,
            )
        except OSError as error:
            raise RefaceRiskError(
                f"{name} cannot be started ({error.strerror})", "run it by hand to see why"
            ) from error
        try:
            while process.poll() is None:
                report(on_progress, name, 0, 1, f"running for {time.monotonic() - began:.0f} s")
                try:
                    process.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            _end(process)
            raise
    said = [_last_line(log) for log in logs]
    last_words = said[0] or said[1] or "it said nothing"
    if process.returncode:
        raise RefaceRiskError(
            f"{name} failed with exit status {process.returncode}: {last_words}", "run it by hand to see why"
        )
    return last_words


def _end(process: subprocess.Popen) -> None:
    """End a program and everything that it started."""
    if os.name != "posix":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
        process.wait()
        return
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(GRACE_S)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _read_back(head: Head, output: Volume, name: str) -> tuple[Volume, np.ndarray]:
    volume = head.volume
    after = _on_grid(output, volume)
    if after is None:
        # Conformed or cropped: its greys cannot be compared, its zeros can.
        nearest = resample(output.intensities, output.affine, volume.shape, volume.affine, order=0, cval=1.0)
        removed, after = (nearest == 0) & (volume.intensities != 0), np.zeros(volume.shape, np.float32)
    else:
        removed, after = _changed(volume, np.nan_to_num(after), head.brain)
    if removed[head.brain].mean() > 0.5:
        raise RefaceRiskError(f"what {name} returned is not this head without its face", "look at it by hand")
    if not removed.any():
        raise RefaceRiskError(f"{name} returned the head as it was", "look at it by hand", volume.meta.path)
    return volume.replaced(removed, after), removed


def _on_grid(output: Volume, volume: Volume) -> np.ndarray | None:
    """Intensities of the output on the input's grid, None if it lies on another one; axes may be stored otherwise."""
    if output.axcodes != volume.axcodes:
        output = reorient(output, volume.axcodes)
    same = output.shape == volume.shape and np.allclose(output.affine, volume.affine, atol=1e-2)
    return output.intensities if same else None


def _changed(volume: Volume, after: np.ndarray, brain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels that differ by more than rounding, and ``after`` in the input's own units.

    A program that stores its output in another type may scale it; brain tells by how much, since it is to stay.
    """
    before = volume.intensities
    bright = float(np.percentile(np.abs(before), 99))
    integers = np.issubdtype(volume.voxels.dtype, np.integer)
    tolerance = max(0.6 * abs(volume.meta.slope) if integers else 0.0, 1e-4 * bright)
    changed = np.abs(after - before) > tolerance
    inside = brain & (np.abs(before) > 0.1 * bright)
    if changed[inside].mean() > 0.5:
        gain = float(np.median(after[inside] / before[inside]))
        if gain > 0:
            after = after / np.float32(gain)
            changed = np.abs(after - before) > max(0.01 * bright, 1.0 / gain)
    return changed, after
