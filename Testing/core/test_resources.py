"""The template and the weights are found in a checkout, in a wheel and where the user says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import RefaceRiskLib
from RefaceRiskLib import resources
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.resources import cache_folder, model_folder, resources_root, template_file


@pytest.fixture
def named(tmp_path, monkeypatch) -> Path:
    for folder in ("Template", "Models/reference", "Models/linear"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "Template" / "head.nii.gz").write_bytes(b"")
    monkeypatch.setenv("REFACERISK_RESOURCES", str(tmp_path))
    return tmp_path


def test_the_checkout_is_found(monkeypatch):
    monkeypatch.delenv("REFACERISK_RESOURCES", raising=False)
    root = resources_root()
    assert root.name == "Resources"
    assert (root / "Template").is_dir() or (root / "Models").is_dir()


def test_the_folder_that_the_user_names_wins(named):
    assert resources_root() == named
    assert template_file("head.nii.gz") == named / "Template" / "head.nii.gz"
    assert model_folder("linear") == named / "Models" / "linear"


@pytest.mark.parametrize("place", ["RefaceRiskLib/Resources", "Resources", "../Resources"])
def test_a_wheel_an_extension_and_a_checkout_are_searched(tmp_path, monkeypatch, place):
    monkeypatch.delenv("REFACERISK_RESOURCES", raising=False)
    library = tmp_path / "RefaceRisk" / "RefaceRiskLib"
    (tmp_path / "RefaceRisk" / "Resources" / "UI").mkdir(parents=True)
    library.mkdir()
    root = (tmp_path / "RefaceRisk" / place).resolve()
    (root / "Template").mkdir(parents=True)
    monkeypatch.setattr(resources, "_HERE", library)
    assert resources_root().resolve() == root


def test_nothing_installed_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("REFACERISK_RESOURCES", raising=False)
    monkeypatch.setattr(resources, "_HERE", tmp_path)
    with pytest.raises(RefaceRiskError, match=r"not installed; .*REFACERISK_RESOURCES"):
        resources_root()


def test_a_named_folder_that_does_not_exist(monkeypatch, tmp_path):
    monkeypatch.setenv("REFACERISK_RESOURCES", str(tmp_path / "no"))
    with pytest.raises(RefaceRiskError, match="names no folder"):
        resources_root()


def test_a_missing_template_file_and_model(named):
    with pytest.raises(RefaceRiskError, match=r"brain\.nii\.gz: .*template build"):
        template_file("brain.nii.gz")
    with pytest.raises(RefaceRiskError, match="there is no model 'best'; choose linear or reference"):
        model_folder("best")
    with pytest.raises(RefaceRiskError, match="no model"):
        model_folder("../Template")


@pytest.mark.parametrize(
    ("platform", "variable"), [("linux", "XDG_CACHE_HOME"), ("win32", "LOCALAPPDATA"), ("darwin", "HOME")]
)
def test_the_cache_lies_where_the_platform_keeps_caches(tmp_path, monkeypatch, platform, variable):
    monkeypatch.setattr(resources.sys, "platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    folder = cache_folder()
    assert folder.is_dir() and folder.name == "refacerisk" and folder.is_relative_to(tmp_path)


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(resources.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RefaceRiskError, match="cache folder cannot be made"):
        cache_folder()


def test_reading_and_writing_volumes_needs_only_what_a_stock_slicer_has(tmp_path):
    script = f"""
import sys
absent = ("nibabel", "torch", "monai", "pandas", "skimage", "matplotlib", "pydicom", "tqdm", "rich")
class Absent:
    def find_spec(name, path, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent)
import numpy as np
from RefaceRiskLib import errors, progress, resources, volumes
v = volumes.Volume(np.arange(27, dtype=np.int16).reshape(3, 3, 3), np.eye(4))
for name in ("a.nii.gz", "a.mgz", "a.nrrd"):
    w = volumes.load(volumes.save(v, {str(tmp_path)!r} + "/" + name))
    assert (w.voxels == v.voxels).all()
"""
    path = str(Path(RefaceRiskLib.__file__).parents[1])
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": path})
