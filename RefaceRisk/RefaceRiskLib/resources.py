"""Where the template and the weights lie: in a checkout, in a wheel, in an installed Slicer extension."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .errors import RefaceRiskError

_VARIABLE = "REFACERISK_RESOURCES"
_HERE = Path(__file__).resolve().parent


def resources_root() -> Path:
    """The folder that holds Template/ and Models/; the environment variable REFACERISK_RESOURCES wins.

    Raises `RefaceRiskError` where no such folder is found.
    """
    named = os.environ.get(_VARIABLE)
    if named:
        if not Path(named).is_dir():
            raise RefaceRiskError(f"{_VARIABLE} names no folder", "correct or unset it", named)
        return Path(named)
    for folder in _candidates():
        if (folder / "Template").is_dir() or (folder / "Models").is_dir():
            return folder
    raise RefaceRiskError(
        "the template and the models are not installed",
        f"reinstall, or name their folder in {_VARIABLE}",
        _HERE,
    )


def _candidates() -> list[Path]:
    """Beside this file (wheel), else in the folders above it: the checkout's top, or what CMake installed.

    A module's own Resources/ (its .ui file and icons) lies on the way, so that a name alone is not enough.
    """
    return [_HERE / "Resources", *(parent / "Resources" for parent in list(_HERE.parents)[:3])]


def template_file(name: str) -> Path:
    """A file of the built template. Raises `RefaceRiskError` when it is absent."""
    file = resources_root() / "Template" / name
    if not file.is_file():
        raise RefaceRiskError(
            "this part of the template is missing",
            "reinstall, or build it: python -m RefaceRiskLib.template build",
            file,
        )
    return file


def model_folder(name: str) -> Path:
    """The folder of a model of that name that comes along. Raises `RefaceRiskError` when there is none."""
    models = resources_root() / "Models"
    folder = models / name
    if Path(name).name != name or name in ("", ".", "..") or not folder.is_dir():
        known = sorted(p.name for p in models.iterdir() if p.is_dir()) if models.is_dir() else []
        hint = f"choose {' or '.join(known)}, or give a folder" if known else "give the folder of a model"
        raise RefaceRiskError(f"there is no model {name!r}", hint, folder)
    return folder


def cache_folder() -> Path:
    """The user's cache folder for this software (downloads, temporary models), made when it is missing."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    folder = base / "refacerisk"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefaceRiskError(
            f"the cache folder cannot be made ({error.strerror})",
            "check its rights, or set XDG_CACHE_HOME",
            folder,
        ) from error
    return folder
