"""What may know what, what a stock Slicer must be able to import, what a wheel and the README promise."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "RefaceRisk" / "RefaceRiskLib"

# Each layer may import those before it and its own. A name covers the modules below it; the longest counts.
LAYERS = (
    (
        "errors",
        "progress",
        "resources",
        "geometry",
        "hounsfield",
        "nifti",
        "mgh",
        "dicom_elements",
        "text_headers",
        "dicom",
        "volumes",
        "diffusion.weights",
        "hygiene",
        "dicom_write",
    ),
    ("registration", "template", "tissue", "rigid", "synthesis", "brainmask"),
    ("defacing", "surface", "radiodensity", "radiodensity.ct", "template_build"),
    ("diffusion", "brainmask.training"),
    (
        "radiodensity.images",
        "radiodensity.cohort",
        "radiodensity.predictor",
        "radiodensity.validation",
        "radiodensity.simulation",
        "radiodensity.statistics",
        "radiodensity.figure",
        "radiodensity.phantoms",
    ),
    ("report", "radiodensity.fit", "radiodensity.report_page", "jobs", "demo_page", "study", "cli", "worker", "demo"),
    ("bridge",),
)
# `python -m RefaceRiskLib.template build` hands over to the builder, which needs registration and surfaces.
ALLOWED = {("template", "template_build")}

NOT_IN_A_STOCK_SLICER = (
    "torch",
    "monai",
    "einops",
    "safetensors",
    "nibabel",
    "pandas",
    "skimage",
    "matplotlib",
    "tqdm",
)
HEAVY = (*NOT_IN_A_STOCK_SLICER, "pydicom", "dask", "distributed", "sklearn")


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for file in sorted(LIBRARY.rglob("*.py")):
        name = ".".join(file.relative_to(LIBRARY).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return found


def layer_of(module: str) -> int:
    names = {name: layer for layer, members in enumerate(LAYERS) for name in members}
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in names:
            return names[name]
    raise AssertionError(f"{module} belongs to no layer: give it one in {Path(__file__).name}")


def imports_of(module: str, tree: ast.AST) -> set[str]:
    """Modules of the library that this one imports, at its top or within a function."""
    package = module.split(".") if (LIBRARY / Path(*module.split("."))).is_dir() else module.split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["RefaceRiskLib", *package][: len(package) + 2 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.removeprefix("RefaceRiskLib.") for name in names if name.startswith("RefaceRiskLib.")} & set(
            modules()
        )
    return found


def file_scope_imports(tree: ast.Module) -> set[str]:
    """Top-level packages that are imported when the module is; blocks for type checkers do not count."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize(("module", "tree"), [pytest.param(*entry, id=entry[0]) for entry in modules().items()])
def test_a_module_knows_only_what_lies_below_it(module, tree):
    if module == "__init__":
        return
    upwards = {
        other
        for other in imports_of(module, tree)
        if layer_of(other) > layer_of(module) and (module, other) not in ALLOWED
    }
    assert not upwards, f"{module} imports {', '.join(sorted(upwards))} from a layer above its own"


@pytest.mark.parametrize(("module", "tree"), [pytest.param(*entry, id=entry[0]) for entry in modules().items()])
def test_heavy_packages_are_imported_where_they_are_used(module, tree):
    allowed = {"torch", "monai"} if module.startswith("diffusion.") else set()
    heavy = file_scope_imports(tree) & set(HEAVY) - allowed
    assert not heavy, f"{module} imports {', '.join(sorted(heavy))} at file scope"


def test_only_the_bridge_knows_slicer_and_qt():
    knowing = {
        module
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and {"slicer", "qt", "ctk", "PyTorchUtils"}
        & (
            {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.Import)
            else {(node.module or "").split(".")[0]}
        )
    }
    assert all(module.startswith("bridge") for module in knowing), knowing


def is_literal(node: ast.stmt) -> bool:
    """A docstring, or a name for something that needs no code to be run."""
    try:
        ast.literal_eval(node.value)
    except (AttributeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("name", ["RefaceRisk", "DefaceCompare", "MuscleFromHead"])
def test_a_slicer_module_imports_nothing_that_slicer_lacks_and_no_other_module(name):
    tree = ast.parse((ROOT / name / f"{name}.py").read_text(encoding="utf-8"))
    imported = file_scope_imports(tree)
    outside = imported - set(sys.stdlib_module_names) - {"slicer", "qt", "ctk", "vtk", "numpy", "RefaceRiskLib"}
    assert not outside
    below = [
        node for node in tree.body if not isinstance(node, (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef))
    ]
    assert all(is_literal(node) for node in below), "code runs on import"


def test_the_core_is_importable_with_what_a_stock_slicer_has():
    """In a fresh process in which the packages that Slicer lacks cannot be found."""
    core = [
        module
        for module in modules()
        if (module != "__init__" and not module.startswith(("bridge", "diffusion.")))
        or module in ("diffusion.linear", "diffusion.cascade")  # the linear and average models do without torch
    ]
    code = f"""
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {NOT_IN_A_STOCK_SLICER!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
for name in {core!r}:
    importlib.import_module("RefaceRiskLib." + name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=LIBRARY.parent, check=False)
    assert done.returncode == 0, done.stderr


UNPICKLING = ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")


@pytest.mark.parametrize(
    "file",
    sorted(file for name in ("RefaceRisk", "DefaceCompare", "MuscleFromHead") for file in (ROOT / name).rglob("*.py")),
    ids=lambda file: file.relative_to(ROOT).as_posix(),
)
def test_nothing_that_is_shipped_can_unpickle(file):
    """No module that does, no torch.load or read_pickle, and no numpy.load that was allowed to."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & set(UNPICKLING)
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in UNPICKLING
            assert not (node.module == "torch" and "load" in {alias.name for alias in node.names})
        elif isinstance(node, ast.Attribute):
            assert node.attr not in ("read_pickle", "load_state_dict_from_url")
            assert not (node.attr == "load" and isinstance(node.value, ast.Name) and node.value.id == "torch")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant) and node.value.value is False


def test_a_wheel_carries_the_library_the_template_and_the_models(tmp_path):
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in LIBRARY.rglob("*.py"):
        assert f"RefaceRiskLib/{file.relative_to(LIBRARY).as_posix()}" in names
    for folder in ("Template", "Models"):
        here = [file for file in (ROOT / "Resources" / folder).rglob("*") if file.is_file()]
        assert here
        for file in here:
            assert f"RefaceRiskLib/Resources/{file.relative_to(ROOT / 'Resources').as_posix()}" in names
    assert not [name for name in names if "Testing" in name or name.endswith(".ui")]


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    library = ast.parse((LIBRARY / "__init__.py").read_text(encoding="utf-8"))
    [inside] = [
        node.value.value
        for node in library.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__version__"
    ]
    assert inside == version
    assert re.search(rf"^version: {re.escape(version)}$", citation, re.MULTILINE)


def test_every_package_that_is_required_is_pinned_for_ci():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {
        _canonical(re.split(r"[<>=!\[; ]", requirement)[0])
        for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]
    }
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if "==" in line)
    pinned = {_canonical(name): version for name, version in pins}
    assert required <= set(pinned)
    assert pinned["torch"] == "2.13.0"


def test_commands_in_the_readme_exist():
    from RefaceRiskLib.cli import build_parser

    lines = _console_lines()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = [shlex.split(line, comments=True) for line in lines]
    for words in commands:
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, words
        elif words[0].endswith("refacerisk"):
            build_parser().parse_args(words[1:])  # exits, and so fails, on what the command line does not know
    assert commands[0] == ["make", "demo"]
    assert {words[1] for words in commands if words[0] == "refacerisk"} >= {
        "deface",
        "reface",
        "measure",
        "demo",
    }


def test_files_that_the_readme_points_to_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", readme) + re.findall(r'src="([^"]+)"', readme)
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


def _console_lines() -> list[str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", readme, re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
