"""Compares what the CMake lists ship with what lies in the module folders. Needs neither CMake nor Slicer.

CMake stops at a listed file that does not exist; a file that is not listed is silently missing in the
installed extension, while a run from the checkout hides that. Run it: `python Testing/check_manifest.py`
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

MODULES = ("RefaceRisk", "DefaceCompare", "MuscleFromHead")
ROOT = Path(__file__).resolve().parents[1]


def listed(module_folder: Path) -> list[str]:
    """The files that the module's CMakeLists.txt ships, scripts and resources, relative to its folder."""
    text = re.sub(r"#.*", "", (module_folder / "CMakeLists.txt").read_text(encoding="utf-8"))
    values = {name: body.split() for name, body in re.findall(r"set\((\w+)\s+([^)]*)\)", text)}
    module_name = values["MODULE_NAME"][0]
    return [
        entry.replace("${MODULE_NAME}", module_name)
        for name in ("MODULE_PYTHON_SCRIPTS", "MODULE_PYTHON_RESOURCES")
        for entry in values[name]
    ]


def shipped(module_folder: Path) -> list[str]:
    """The files that must ship: every script, and everything in the module's Resources."""
    scripts = module_folder.rglob("*.py")
    resources = (file for file in (module_folder / "Resources").rglob("*") if file.is_file())
    return sorted(
        file.relative_to(module_folder).as_posix()
        for file in (*scripts, *resources)
        if not any(part.startswith(".") or part == "__pycache__" for part in file.relative_to(module_folder).parts)
    )


def complaints(root: Path = ROOT) -> list[str]:
    """One line for each file that is not listed, or is absent, or is listed twice; none when all is well."""
    found = []
    top = (root / "CMakeLists.txt").read_text(encoding="utf-8")
    for module in MODULES:
        files, lies_there = listed(root / module), set(shipped(root / module))
        if f"add_subdirectory({module})" not in top:
            found.append(f"{module} is not added in the top CMakeLists.txt")
        found += [
            f"{module}/{file} is not listed in {module}/CMakeLists.txt" for file in sorted(lies_there - set(files))
        ]
        found += [f"{module}/{file} is listed and does not exist" for file in sorted(set(files) - lies_there)]
        found += [f"{module}/{file} is listed twice" for file in sorted({f for f in files if files.count(f) > 1})]
    return found


def main() -> int:
    found = complaints()
    print("\n".join(found) if found else "every shipped file is listed, every listed file exists")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
