"""The original programs: found, started as documented, read back, cancelled, and told apart from a failure.

quickshear is run for real; the others are small scripts that take the arguments which their programs document and write
what those write.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from RefaceRiskLib.defacing import PROGRAMS, Head, deface, external, options_of
from RefaceRiskLib.defacing.external import buffer_voxels, find_program, run_original
from RefaceRiskLib.defacing.quickshear import quickshear
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.progress import Cancelled
from RefaceRiskLib.registration import Registration, RegistrationQuality
from RefaceRiskLib.template import load_template
from RefaceRiskLib.volumes import Volume, reorient

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stubs are scripts with a #! line")

# Each checks its arguments as the program's own help gives them and sets the front of the head to zero.
STUBS = {
    "fsl_deface": "source, target = argv; deface(source, target)",
    "mri_deface": """
source, brain, face, target = argv
assert brain.endswith('talairach_mixed_with_skull.gca') and face.endswith('face.gca')
assert open(brain).read() == 'brain' and open(face).read() == 'face'
deface(source, target)""",
    "pydeface": """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument('infile'); parser.add_argument('--outfile'); parser.add_argument('--force', action='store_true')
given = parser.parse_args(argv)
deface(given.infile, given.outfile, kind=float)""",
    "mideface": "assert argv[0] == '--i' and argv[2] == '--o'; deface(argv[1], argv[3])",
    "@afni_refacer_run": """
given = ' '.join(argv)
assert '-mode_deface' in argv and '-no_images' in argv
deface(argv[argv.index('-input') + 1], argv[argv.index('-prefix') + 1], turn=True)""",
    "run_mri_reface.sh": """
source, folder = argv[:2]
assert source.endswith('.nii') and argv[argv.index('-imType') + 1] == 'T2'
deface(source, folder + '/head_deFaced.nii', value=300)""",
}
PREAMBLE = """#!{python}
import sys, nibabel, numpy
argv = sys.argv[1:]
def deface(source, target, kind=None, turn=False, value=0):
    image = nibabel.load(source)
    data = numpy.asanyarray(image.dataobj).copy()
    data[:, 64:, :40] = value
    image = nibabel.Nifti1Image(data if kind is None else data.astype(kind), image.affine)
    if turn:
        image = image.as_reoriented(nibabel.orientations.axcodes2ornt('LPI'))
    nibabel.save(image, target)
"""


@pytest.fixture
def bin_folder(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.delenv("FREESURFER_HOME", raising=False)
    return folder


def install(folder: Path, name: str, script: str | None = None) -> Path:
    path = folder / name
    path.write_text(PREAMBLE.format(python=sys.executable) + (STUBS[name] if script is None else script) + "\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def atlases(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "talairach_mixed_with_skull.gca").write_text("brain")
    (folder / "face.gca").write_text("face")
    return folder


@pytest.fixture(scope="module")
def head(tiny_head) -> Head:
    """The synthetic head with its true brain; nothing here needs a real registration."""
    points = np.moveaxis(np.indices(tiny_head.shape, np.float32), 0, -1) * 3 + tiny_head.affine[:3, 3].astype(
        np.float32
    )
    distance = (np.linalg.norm((points - [0, -4, 20]) / [57, 74, 72], axis=-1) - 1) * 57
    registration = Registration(np.eye(4), quality=RegistrationQuality(1.0, 1.0, "ok"))
    return Head(tiny_head, load_template(), registration, distance.astype(np.float32))


def the_front(head: Head) -> np.ndarray:
    mask = np.zeros(head.volume.shape, bool)
    mask[:, 64:, :40] = True
    return mask


# --- each program ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [name for name in PROGRAMS if name != "quickshear"])
def test_a_program_is_called_as_documented_and_read_back(head, bin_folder, tmp_path, method):
    install(bin_folder, PROGRAMS[method].executables[0])
    options = {
        "mri_deface": {"templates": None},
        "mri_reface": {"image_type": "T2"},
        "average_face": {"image_type": "T2"},
    }
    if method == "mri_deface":
        options["mri_deface"]["templates"] = atlases(tmp_path / "atlases")
    result, removed = run_original(head, method, **options.get(method, {}))
    before = head.volume
    assert result.voxels.dtype == before.voxels.dtype
    np.testing.assert_array_equal(result.affine, before.affine)
    np.testing.assert_array_equal(result.voxels[~removed], before.voxels[~removed])
    value = 300 if PROGRAMS[method].output.endswith("deFaced.nii") else 0
    expected = the_front(head) & (before.voxels != value)
    np.testing.assert_array_equal(removed, expected)
    assert (result.voxels[removed] == value).all()


def test_the_atlases_of_mri_deface_are_found_under_freesurfer_home(head, bin_folder, tmp_path, monkeypatch):
    install(bin_folder, "mri_deface")
    with pytest.raises(
        RefaceRiskError, match=r"needs talairach_mixed_with_skull.gca and face.gca; set FREESURFER_HOME"
    ):
        run_original(head, "mri_deface")
    atlases(tmp_path / "freesurfer" / "average")
    monkeypatch.setenv("FREESURFER_HOME", str(tmp_path / "freesurfer"))
    assert run_original(head, "mri_deface")[1].any()


def test_the_real_quickshear_removes_what_ours_removes(head):
    pytest.importorskip("quickshear")
    result, removed = run_original(head, "quickshear", margin_mm=8.0)
    ours = quickshear(head, margin_mm=8.0)
    changed = ours & (head.volume.voxels != 0)
    assert 2 * (removed & changed).sum() / (removed.sum() + changed.sum()) > 0.98
    assert not (removed & head.brain).any() and not result.voxels[removed].any()
    # Ten voxels straight down on a brain whose plane leans by 45 degrees are 10 * 3 mm / sqrt(2).
    normal = external.shear_plane(head.brain, head.volume.affine)[0]
    assert buffer_voxels(head.brain, head.volume.affine, 30 * normal[2]) == pytest.approx(10)


def test_the_promise_is_the_same_through_deface(head, bin_folder):
    """Brain that an original took is counted and fails the result; it is neither hidden nor given back."""
    install(bin_folder, "fsl_deface", STUBS["fsl_deface"])
    result = deface(head.volume, "fsl_deface", engine="original", head=head)
    assert result.quality.brain_voxels_touched == int((result.removed & head.brain).sum())
    greedy = "image = nibabel.load(argv[0]); data = image.get_fdata(); data[:, 45:] = 0\n"
    install(bin_folder, "fsl_deface", greedy + "nibabel.save(nibabel.Nifti1Image(data, image.affine), argv[1])")
    with pytest.raises(RefaceRiskError, match="brain voxels"):
        deface(head.volume, "fsl_deface", engine="original", head=head)
    result = deface(head.volume, "fsl_deface", engine="original", head=head, force=True)
    assert result.quality.brain_voxels_touched > 1000 and result.quality.verdict == "failed"
    assert "brain voxels" in result.quality.reason
    assert not result.volume.voxels[:, 45:].any()


# --- what programs do to a volume -----------------------------------------------------------------------------------


def run_script(head: Head, folder: Path, script: str) -> tuple[Volume, np.ndarray]:
    install(folder, "fsl_deface", script)
    return run_original(head, "fsl_deface")


def test_an_output_of_another_scale_and_type_is_matched(head, bin_folder):
    """An 8-bit copy: greys change everywhere, the head does not."""
    script = """
image = nibabel.load(argv[0]); data = image.get_fdata(); data[:, 64:, :40] = 0
nibabel.save(nibabel.Nifti1Image(numpy.rint(data * 255 / data.max()).astype('uint8'), image.affine), argv[1])"""
    result, removed = run_script(head, bin_folder, script)
    front = the_front(head)
    assert not removed[~front].any()
    assert removed[front & (head.volume.voxels > 30)].all()
    np.testing.assert_array_equal(result.voxels[~front], head.volume.voxels[~front])


def test_an_output_on_another_grid_still_tells_what_is_gone(head, bin_folder):
    script = """
image = nibabel.load(argv[0]); data = numpy.asanyarray(image.dataobj).copy(); data[:, 64:, :40] = 0
nibabel.save(image.__class__(data, image.affine).slicer[4:-4, :, 2:], argv[1])"""
    _, removed = run_script(head, bin_folder, script)
    expected = the_front(head) & (head.volume.voxels != 0)
    expected[:4] = expected[-4:] = expected[:, :, :2] = False
    np.testing.assert_array_equal(removed, expected)


def test_any_storage_orientation_of_the_input_comes_back(head, bin_folder):
    volume = reorient(head.volume, "PIR")
    distance = reorient(Volume(head.brain_distance, head.volume.affine), "PIR").voxels
    other = Head(volume, head.template, head.registration, distance)
    script = "import os; os.rename(argv[0], argv[1]); image = nibabel.load(argv[1]); data = image.get_fdata()\n"
    script += "data[:16] = 0; nibabel.save(nibabel.Nifti1Image(data, image.affine), argv[1])"
    result, removed = run_script(other, bin_folder, script)
    assert result.axcodes == "PIR" and removed[:16].mean() > 0.9 and not removed[16:].any()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("sys.stderr.write('loading\\nno licence file\\n\\n'); sys.exit(3)", "fsl_deface failed.* 3: no licence file;"),
        ("print('ERROR: cannot find it'); sys.exit(1)", "fsl_deface failed.* 1: ERROR: cannot find it;"),
        ("import os; os.kill(os.getpid(), 9)", "fsl_deface failed.* -9: it said nothing"),
        ("print('all well')", "ended without an output: all well"),
        ("import shutil; shutil.copy(*argv)", "returned the head as it was"),
        ("open(argv[1], 'w').write('x')", "defaced.nii.gz"),
        (
            "i = nibabel.load(argv[0]); nibabel.save(nibabel.Nifti1Image(i.get_fdata() * 0, i.affine), argv[1])",
            "not this head without its face",
        ),
    ],
)
def test_a_failing_program_is_one_line(head, bin_folder, script, words):
    with pytest.raises(RefaceRiskError, match=words) as caught:
        run_script(head, bin_folder, script)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", PROGRAMS)
def test_an_absent_program_is_named_with_what_to_install(head, bin_folder, monkeypatch, method):
    monkeypatch.setattr(external.sys, "executable", str(bin_folder / "python"))
    with pytest.raises(RefaceRiskError, match=r"is not on PATH; install .*https://") as caught:
        deface(head.volume, method, engine="original")  # before any registration: this is quick
    assert PROGRAMS[method].executables[0] in str(caught.value)


def test_programs_take_their_own_options_only(head):
    assert options_of("quickshear", "original") == {"margin_mm": 5.0}
    with pytest.raises(RefaceRiskError, match=r"no option 'templates'.*margin_mm"):
        deface(head.volume, "quickshear", engine="original", templates="x")


def test_cancelling_ends_the_program_and_all_that_it_started(head, bin_folder, tmp_path):
    note = tmp_path / "child"
    script = f"""
import subprocess, time
child = subprocess.Popen(['sleep', '60'])
open({str(note)!r}, 'w').write(str(child.pid))
time.sleep(60)"""
    install(bin_folder, "fsl_deface", script)

    def listen(progress):
        if note.exists() and note.read_text(encoding="utf-8"):
            raise Cancelled("fsl_deface")

    began = time.monotonic()
    with pytest.raises(Cancelled):
        run_original(head, "fsl_deface", on_progress=listen)
    assert time.monotonic() - began < 30
    assert has_ended(int(note.read_text(encoding="utf-8")))


def has_ended(pid: int) -> bool:
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_nothing_is_left_in_the_temporary_folder(head, bin_folder, tmp_path, monkeypatch):
    made = tmp_path / "temporary"
    made.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(made))
    script = "import tempfile; open(tempfile.mkstemp()[1], 'w').write('forgotten'); deface(*argv)"
    run_script(head, bin_folder, script)
    assert not list(made.iterdir())


def test_a_program_beside_python_is_found_without_path(bin_folder, monkeypatch):
    pytest.importorskip("quickshear")
    assert Path(find_program("quickshear")).parent == Path(sys.executable).parent
