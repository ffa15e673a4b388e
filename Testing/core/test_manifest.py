"""What an installed extension would lack: files that the CMake lists forget, names that two modules share."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import struct
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def manifest():
    spec = importlib.util.spec_from_file_location("check_manifest", ROOT / "Testing" / "check_manifest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def a_copy(tmp_path, manifest):
    """The CMake lists and module folders in a place where they may be spoilt."""
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    for module in manifest.MODULES:
        shutil.copytree(ROOT / module, tmp_path / module, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_every_shipped_file_is_listed_and_every_listed_file_exists(manifest):
    assert manifest.complaints() == []


def test_a_script_that_is_left_out_is_named(manifest, a_copy):
    lists = a_copy / "RefaceRisk" / "CMakeLists.txt"
    lists.write_text(lists.read_text(encoding="utf-8").replace("  RefaceRiskLib/volumes.py\n", ""))
    complaint = "RefaceRisk/RefaceRiskLib/volumes.py is not listed in RefaceRisk/CMakeLists.txt"
    assert complaint in manifest.complaints(a_copy)


def test_a_resource_that_is_gone_is_named(manifest, a_copy):
    (a_copy / "DefaceCompare" / "Resources" / "UI" / "DefaceCompare.ui").unlink()
    complaint = "DefaceCompare/Resources/UI/DefaceCompare.ui is listed and does not exist"
    assert complaint in manifest.complaints(a_copy)


def test_a_new_icon_has_to_be_listed(manifest, a_copy):
    (a_copy / "MuscleFromHead" / "Resources" / "Icons" / "New.png").write_bytes(b"")
    complaint = "MuscleFromHead/Resources/Icons/New.png is not listed in MuscleFromHead/CMakeLists.txt"
    assert complaint in manifest.complaints(a_copy)


def test_no_two_modules_install_a_file_of_the_same_name(manifest):
    """All modules of an extension are copied into one folder: the second would overwrite the first."""
    files = [file for module in manifest.MODULES for file in manifest.listed(ROOT / module)]
    assert len(files) == len(set(files))


def test_extension_and_index_entry_say_what_the_index_asks_for():
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    [project] = re.findall(r"^project\((\w+)\)", cmake, re.MULTILINE)
    entry = json.loads((ROOT / f"{project}.json").read_bytes())
    assert not project.lower().startswith("slicer")
    for key in ("HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"):
        assert re.search(rf'^set\(EXTENSION_{key} "[^";]+"\)', cmake, re.MULTILINE), key
    for url in re.findall(r'set\(EXTENSION_(?:ICONURL|SCREENSHOTURLS) "([^"]+)"\)', cmake):
        assert url.startswith("https://") and url.endswith(".png")
    assert {"$schema", "category", "scm_url"} <= set(entry)
    assert set(entry) <= {
        "$schema", "category", "scm_url", "scm_revision", "scm_type", "build_dependencies",
        "dicom_support_rule", "build_subdirectory", "enabled", "tier",
    }  # fmt: skip
    assert entry["category"] in cmake
    assert Path(entry["scm_url"]).stem == f"Slicer{project}"
    assert b"\r" not in (ROOT / f"{project}.json").read_bytes()
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "icon",
    [
        "Resources/Icons/MRIRefaceRisk.png",
        "RefaceRisk/Resources/Icons/RefaceRisk.png",
        "DefaceCompare/Resources/Icons/DefaceCompare.png",
        "MuscleFromHead/Resources/Icons/MuscleFromHead.png",
    ],
)
def test_icons_are_pngs_of_128_pixels_with_their_drawing_beside_them(icon):
    data = (ROOT / icon).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24]) == (128, 128)
    assert (ROOT / icon).with_suffix(".svg").read_text(encoding="utf-8").startswith("<svg")
