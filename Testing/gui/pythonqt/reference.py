"""What the classes of a running Slicer offer to Python: names of properties, signals and callables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Members:
    """Properties (name -> C++ type, may end in "(read-only)"), signatures of signals, names of callables."""

    properties: dict[str, str]
    signals: tuple[str, ...]
    callables: frozenset[str]


@cache
def _classes() -> dict[str, dict]:
    return json.loads(Path(__file__).with_name("widgets.json").read_text(encoding="utf-8"))["classes"]


def known_classes() -> list[str]:
    """Names like `qt.QPushButton`, `ctk.ctkSliderWidget`, `slicer.qMRMLNodeComboBox`."""
    return list(_classes())


@cache
def members_of(name: str) -> Members | None:
    """The members of the class `module.Name`, or None where Slicer was not asked about it."""
    found = _classes().get(name)
    if found is None:
        return None
    inherited = members_of(found["like"]) if found["like"] else Members({}, (), frozenset())
    return Members(
        inherited.properties | found["properties"],
        inherited.signals + tuple(found["signals"]),
        inherited.callables | frozenset(found["callables"]),
    )


def members_by_class_name(class_name: str) -> Members | None:
    """The same by the name alone, as a .ui file has it."""
    for module in ("qt", "ctk", "slicer"):
        if found := members_of(f"{module}.{class_name}"):
            return found
    return None
