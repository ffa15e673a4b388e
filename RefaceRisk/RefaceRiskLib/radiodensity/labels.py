"""Muscles of TotalSegmentator's task `total` (version 2) by name, so that a label map explains itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import RefaceRiskError

_PAIRS = ("gluteus_maximus", "gluteus_medius", "gluteus_minimus", "autochthon", "iliopsoas")
MUSCLES: dict[int, str] = dict(enumerate((f"{name}_{side}" for name in _PAIRS for side in ("left", "right")), start=80))
ALSO_CALLED = {"erector_spinae_left": 86, "erector_spinae_right": 87}


def numbers_of(wanted: Sequence[int | str]) -> list[int]:
    """Label numbers of numbers and names. Raises RefaceRiskError for an unknown name."""
    known = {name: number for number, name in MUSCLES.items()} | ALSO_CALLED
    found = []
    for one in wanted:
        text = str(one).strip()
        if text.isdigit():
            found.append(int(text))
        elif text in known:
            found.append(known[text])
        else:
            raise RefaceRiskError(f"unknown muscle {text!r}", f"give its number, or one of {', '.join(known)}")
    return found


def muscles_in(present: Iterable[int]) -> list[int]:
    """The muscles among the labels that occur; all of them where none is one of TotalSegmentator's."""
    present = sorted(int(label) for label in present)
    return [label for label in present if label in MUSCLES] or present
