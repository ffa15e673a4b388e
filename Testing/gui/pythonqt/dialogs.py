"""Dialogs that wait for a person: a test says beforehand what that person answers."""

from __future__ import annotations

from collections import deque

# What PySide6 returns as a pair, PythonQt returns bare: the file name, the text, the number.
STATICS = {
    "QFileDialog": ("getOpenFileName", "getOpenFileNames", "getSaveFileName", "getExistingDirectory"),
    "QInputDialog": ("getText", "getMultiLineText", "getItem", "getInt", "getDouble"),
    "QMessageBox": ("question", "information", "warning", "critical", "about"),
    "QColorDialog": ("getColor",),
}
_answers: dict[str, deque] = {}
asked: list[tuple] = []  # (name of the static function, its arguments), as they came


def answer(name: str, *values) -> None:
    """The next calls of the static function `name` return these values, in turn."""
    _answers.setdefault(name, deque()).extend(values)


def forget() -> None:
    _answers.clear()
    asked.clear()


class Question:
    """A static function of a dialog class."""

    def __init__(self, class_name: str, name: str):
        self.class_name, self.name = class_name, name

    def __get__(self, instance, owner=None):
        return self

    def __call__(self, *args):
        asked.append((self.name, args))
        if not _answers.get(self.name):
            raise RuntimeError(f"qt.{self.class_name}.{self.name} would wait for the user, and no answer was prepared")
        return _answers[self.name].popleft()
