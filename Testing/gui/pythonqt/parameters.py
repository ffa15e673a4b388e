"""`slicer.parameterNodeWrapper` as its documentation describes it, for the types that panels use.

Typed attributes over a vtkMRMLScriptedModuleNode, and widgets bound to them by the dynamic property
`SlicerParameterName`. Left out: parameter packs, tuples, dictionaries.
"""

from __future__ import annotations

import enum
import pathlib
import types
import typing
import weakref
from collections.abc import MutableSequence
from dataclasses import dataclass
from types import ModuleType

import ctk
import qt
import slicer
import vtk

# --- annotations ------------------------------------------------------------------------------------------


@dataclass
class Default:
    value: object = None
    generator: object = None


@dataclass
class Decimals:
    value: int


@dataclass
class SingleStep:
    value: float


class Validator:
    def validate(self, value) -> None:
        raise NotImplementedError


@dataclass
class WithinRange(Validator):
    minimum: float
    maximum: float

    def validate(self, value) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"Value must be within range [{self.minimum}, {self.maximum}], is {value}")


@dataclass
class Minimum(Validator):
    minimum: float

    def validate(self, value) -> None:
        if value < self.minimum:
            raise ValueError(f"Value must be greater than {self.minimum}, is {value}")


@dataclass
class Maximum(Validator):
    maximum: float

    def validate(self, value) -> None:
        if value > self.maximum:
            raise ValueError(f"Value must be less than {self.maximum}, is {value}")


@dataclass
class Choice(Validator):
    choices: typing.Sequence

    def validate(self, value) -> None:
        if value not in self.choices:
            raise ValueError(f"Value is {value}, but must be in one of the following: {self.choices}")


@dataclass
class NotNone(Validator):
    def validate(self, value) -> None:
        if value is None:
            raise ValueError("Value must not be None")


def _split(annotated) -> tuple[object, list]:
    if typing.get_origin(annotated) is typing.Annotated:
        plain, *notes = typing.get_args(annotated)
        return plain, notes
    return annotated, []


def _note(notes: list, kind: type):
    return next((note for note in notes if isinstance(note, kind)), None)


def _is_node(kind) -> bool:
    return isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode)


# --- how values lie in the node ---------------------------------------------------------------------------


class _Scalar:
    """A value that one text holds."""

    def __init__(self, kind: type):
        self.kind = kind
        self.accepts = (int, float) if kind is float else kind

    def default(self):
        return next(iter(self.kind)) if issubclass(self.kind, enum.Enum) else self.kind()

    def is_in(self, node, name: str) -> bool:
        return node.HasParameter(name)

    def check(self, value) -> None:
        if value is None and not issubclass(self.kind, enum.Enum):
            raise ValueError("Value must not be None")
        if value is not None and not isinstance(value, self.accepts):
            raise TypeError(f"Value must be of type '{self.kind}', is type '{type(value)}' value '{value}'")

    def write(self, node, name: str, value) -> None:
        self.check(value)
        node.SetParameter(name, value.name if issubclass(self.kind, enum.Enum) else str(value))

    def read(self, node, name: str):
        text = node.GetParameter(name)
        if self.kind is bool:
            return text == "True"
        return self.kind[text] if issubclass(self.kind, enum.Enum) else self.kind(text)

    def remove(self, node, name: str) -> None:
        node.UnsetParameter(name)


class _Node:
    """A node of the scene, as a node reference."""

    def __init__(self, kind: type):
        self.kind = kind

    def default(self):
        return None

    def is_in(self, node, name: str) -> bool:
        return node.HasParameter(name)

    def check(self, value) -> None:
        if value is not None and not isinstance(value, self.kind):
            raise TypeError(f"Value must be of type '{self.kind}', is type '{type(value)}' value '{value}'")

    def write(self, node, name: str, value) -> None:
        self.check(value)
        node.SetParameter(name, "")
        node.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def read(self, node, name: str):
        return node.GetNodeReference(name)

    def remove(self, node, name: str) -> None:
        node.UnsetParameter(name)
        node.RemoveNodeReferenceIDs(name)


class _None:
    def default(self):
        return None

    def is_in(self, node, name: str) -> bool:
        return node.HasParameter(name)

    def check(self, value) -> None:
        if value is not None:
            raise TypeError(f"Value must be None, is {value}")

    def write(self, node, name: str, value) -> None:
        node.SetParameter(name, "None")

    def read(self, node, name: str):
        return None

    def remove(self, node, name: str) -> None:
        node.UnsetParameter(name)


class _Union:
    """One of several types: the first that takes the value keeps it, under its own number."""

    def __init__(self, members: list):
        self.members = members

    def default(self):
        two_with_none = len(self.members) == 2 and isinstance(self.members[1], _None)
        return None if two_with_none else self.members[0].default()

    def is_in(self, node, name: str) -> bool:
        return any(member.is_in(node, f"{name}.{number}") for number, member in enumerate(self.members))

    def check(self, value) -> None:
        self._fitting(value)

    def _fitting(self, value) -> int:
        order = range(len(self.members))
        if value is None:  # a node type accepts None too, but None has a member of its own
            order = [n for n in order if isinstance(self.members[n], _None)] or list(order)
        for number in order:
            try:
                self.members[number].check(value)
            except (TypeError, ValueError):
                continue
            return number
        raise TypeError(f"Unable to write value '{value}' of type '{type(value)}'")

    def write(self, node, name: str, value) -> None:
        number = self._fitting(value)
        self.remove(node, name)
        self.members[number].write(node, f"{name}.{number}", value)

    def read(self, node, name: str):
        for number, member in enumerate(self.members):
            if member.is_in(node, f"{name}.{number}"):
                return member.read(node, f"{name}.{number}")
        raise KeyError(f"Unable to find value for name: {name}")

    def remove(self, node, name: str) -> None:
        for number, member in enumerate(self.members):
            member.remove(node, f"{name}.{number}")


class _List:
    def __init__(self, element):
        self.element = element

    def default(self):
        return []

    def is_in(self, node, name: str) -> bool:
        return node.HasParameter(f"{name}.len")

    def check(self, value) -> None:
        for item in value:
            self.element.check(item)

    def write(self, node, name: str, values) -> None:
        values = list(values)
        self.check(values)
        before = int(node.GetParameter(f"{name}.len") or 0)
        for index, value in enumerate(values):
            self.element.write(node, f"{name}.{index}", value)
        node.SetParameter(f"{name}.len", str(len(values)))
        for index in range(len(values), before):
            self.element.remove(node, f"{name}.{index}")

    def read(self, node, name: str):
        length = int(node.GetParameter(f"{name}.len"))
        return ObservedList(node, self, name, [self.element.read(node, f"{name}.{index}") for index in range(length)])

    def remove(self, node, name: str) -> None:
        for index in range(int(node.GetParameter(f"{name}.len") or 0)):
            self.element.remove(node, f"{name}.{index}")
        node.UnsetParameter(f"{name}.len")


class ObservedList(MutableSequence):
    """A list that writes itself into the node when it is changed."""

    def __init__(self, node, serializer: _List, name: str, values: list):
        self._node, self._serializer, self._name, self._values = node, serializer, name, values

    def _save(self) -> None:
        with slicer.util.NodeModify(self._node):
            self._serializer.write(self._node, self._name, self._values)

    def __getitem__(self, index):
        return self._values[index]

    def __setitem__(self, index, value):
        self._values[index] = value
        self._save()

    def __delitem__(self, index):
        del self._values[index]
        self._save()

    def __len__(self):
        return len(self._values)

    def insert(self, index, value):
        self._values.insert(index, value)
        self._save()

    def __eq__(self, other):
        return self._values == (other._values if isinstance(other, ObservedList) else other)

    __hash__ = None

    def __add__(self, other):
        raise NotImplementedError("Adding an ObservedList is not supported. However, += is supported.")

    __radd__ = __add__

    def __repr__(self):
        return f"ObservedList({self._values})"


def _serializer(annotated):
    kind, _ = _split(annotated)
    if typing.get_origin(kind) is list:
        return _List(_serializer(typing.get_args(kind)[0]))
    if typing.get_origin(kind) is typing.Union or isinstance(kind, types.UnionType):
        return _Union([_serializer(member) for member in typing.get_args(kind)])
    if kind is type(None):
        return _None()
    if _is_node(kind):
        return _Node(kind)
    if kind in (int, float, str, bool) or (isinstance(kind, type) and issubclass(kind, (enum.Enum, pathlib.PurePath))):
        return _Scalar(kind)
    raise Exception(f"Unable to create serializer for type: {kind}")


# --- widgets ----------------------------------------------------------------------------------------------


class GuiConnector:
    """Reads and writes one widget, and calls back when the user changes it."""

    signal = "valueChanged"

    def __init__(self, widget, annotated):
        self._widget, self._callback = widget, None
        self.kind, self.notes = _split(annotated)
        self.prepare()

    def prepare(self) -> None:
        pass

    def onChanged(self, callback) -> None:
        self._callback = callback
        if self.signal is not None:
            signal = getattr(self._widget, self.signal)
            signal.disconnect(self.changed) if callback is None else signal.connect(self.changed)

    def changed(self) -> None:
        if self._callback:
            self._callback()

    def widget(self):
        return self._widget


class _Checkable(GuiConnector):
    signal = "toggled"

    def prepare(self) -> None:
        if not self._widget.checkable:
            self._widget.checkable = True

    def read(self) -> bool:
        return self._widget.checked

    def write(self, value: bool) -> None:
        self._widget.checked = value


class _CheckBox(_Checkable):
    signal = "stateChanged"

    def prepare(self) -> None:
        pass


class _Number(GuiConnector):
    """Takes its range from the annotation: what the .ui file says about it is overwritten."""

    lowest, highest = float("-inf"), float("inf")

    def prepare(self) -> None:
        inside, low, high = (_note(self.notes, kind) for kind in (WithinRange, Minimum, Maximum))
        needs_range = type(self._widget) in (qt.QSlider, ctk.ctkSliderWidget, slicer.qMRMLSliderWidget)
        if needs_range and not inside and not (low and high):
            raise RuntimeError(
                f"Cannot have a connection to {type(self._widget).__name__} where the type is unbounded."
            )
        for attribute, kind in (("decimals", Decimals), ("singleStep", SingleStep)):
            if note := _note(self.notes, kind):
                setattr(self._widget, attribute, note.value)
        self._widget.minimum = inside.minimum if inside else low.minimum if low else self.lowest
        self._widget.maximum = inside.maximum if inside else high.maximum if high else self.highest

    def read(self):
        return self._widget.value

    def write(self, value) -> None:
        self._widget.value = value


class _Integer(_Number):
    lowest, highest = -(2**31), 2**31 - 1


class _Options(GuiConnector):
    """A combo box; the items come from the enumeration or the choices, not from the .ui file."""

    signal = "currentIndexChanged"

    def prepare(self) -> None:
        if isinstance(self.kind, type) and issubclass(self.kind, enum.Enum):
            label = getattr(self.kind, "label", lambda member: member.name)
            self.options = [(label(member), member) for member in self.kind]
        else:
            choice = _note(self.notes, Choice)
            if choice is None:
                raise RuntimeError("ComboBoxToStringableConnector requires the Choice annotation to be used.")
            self.options = [(str(value), value) for value in choice.choices]
        self._widget.clear()
        for text, _ in self.options:
            self._widget.addItem(text)

    def read(self):
        return self.options[self._widget.currentIndex][1]

    def write(self, value) -> None:
        values = [member for _, member in self.options]
        if value not in values:
            raise ValueError(f"Unable to find value {value} in choices {values}")
        self._widget.currentIndex = values.index(value)


class _Line(GuiConnector):
    signal = "textChanged"

    def read(self) -> str:
        return self._widget.text

    def write(self, value: str) -> None:
        self._widget.text = value


class _Label(_Line):
    signal = None


class _PlainText(GuiConnector):
    signal = "textChanged"

    def read(self) -> str:
        return self._widget.toPlainText()

    def write(self, value: str) -> None:
        if self._widget.toPlainText() != value:
            self._widget.setPlainText(value)


class _Path(GuiConnector):
    signal = "currentPathChanged"

    def read(self):
        return self.kind(self._widget.currentPath)

    def write(self, value) -> None:
        self._widget.currentPath = str(value)


class _NodeChoice(GuiConnector):
    """Takes the node types from the annotation: what the .ui file says about them is overwritten."""

    signal = "currentNodeChanged"

    def prepare(self) -> None:
        members = [self.kind] if _is_node(self.kind) else [m for m in typing.get_args(self.kind) if _is_node(m)]
        # Slicer makes an object of each type to ask for its name, which fails for abstract ones.
        self._widget.nodeTypes = [member().GetClassName() for member in members]

    def read(self):
        return self._widget.currentNode()

    def write(self, value) -> None:
        self._widget.setCurrentNode(value)


def createGuiConnector(widget, annotated) -> GuiConnector:
    """The connector for this very class of widget (none derived from it) and type; RuntimeError if there is none."""
    kind, _ = _split(annotated)
    is_enum = isinstance(kind, type) and issubclass(kind, enum.Enum)
    nodes = typing.get_args(kind) if typing.get_origin(kind) is typing.Union else (kind,)
    numbers = (qt.QDoubleSpinBox, ctk.ctkDoubleSpinBox, ctk.ctkSliderWidget, slicer.qMRMLSliderWidget)
    table = (
        (_CheckBox, (qt.QCheckBox, ctk.ctkCheckBox), kind is bool),
        (_Checkable, (qt.QPushButton, ctk.ctkPushButton), kind is bool),
        (_Integer, (qt.QSlider, qt.QSpinBox), kind is int),
        (_Number, numbers, kind in (int, float)),
        (_Options, (qt.QComboBox, ctk.ctkComboBox), is_enum or kind in (int, float, str, bool)),
        (_Line, (qt.QLineEdit,), kind is str),
        (_Label, (qt.QLabel,), kind is str),
        (_PlainText, (qt.QTextEdit, qt.QPlainTextEdit), kind is str),
        (_Path, (ctk.ctkPathLineEdit,), isinstance(kind, type) and issubclass(kind, pathlib.PurePath)),
        (_NodeChoice, (slicer.qMRMLNodeComboBox,), all(m is type(None) or _is_node(m) for m in nodes)),
    )
    for connector, widgets, fits in table:
        if type(widget) in widgets and fits:
            return connector(widget, annotated)
    raise RuntimeError(f"Unable to create GUI connector from datatype '{annotated}' to widget type '{type(widget)}'")


# --- the wrapper ------------------------------------------------------------------------------------------


class _Value:
    """One parameter of one node: read once, then again whenever the node has changed."""

    def __init__(self, node, name: str, annotated, default):
        _, self.notes = _split(annotated)
        self.node, self.name, self.serializer, self.default = node, name, _serializer(annotated), default
        if not self.serializer.is_in(node, name):
            self._put(default)
        self.value = self.serializer.read(node, name)
        myself = weakref.ref(self)
        self.tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: myself() and myself().refresh())

    def __del__(self):
        self.node.RemoveObserver(self.tag)

    def refresh(self) -> None:
        if not self.serializer.is_in(self.node, self.name):
            self._put(self.default)
        self.value = self.serializer.read(self.node, self.name)

    def write(self, value) -> None:
        self.serializer.check(value)
        for note in self.notes:
            if isinstance(note, Validator):
                note.validate(value)
        with slicer.util.NodeModify(self.node):
            self._put(value)
            self.value = self.serializer.read(self.node, self.name)

    def _put(self, value) -> None:
        with slicer.util.NodeModify(self.node):
            self.serializer.write(self.node, self.name, value)


class _Wrapper:
    """What the decorator adds to the class of parameters."""

    def __init__(self, parameterNode, prefix: str = ""):
        self.parameterNode = parameterNode
        self._guis: dict[int, tuple[dict[str, GuiConnector], int]] = {}
        self._next_tag = 0
        self._updating = False
        self._values = {
            name: _Value(parameterNode, (prefix or "") + name, annotated, self._defaults[name])
            for name, annotated in self.allParameters.items()
        }

    def dataType(self, name: str):
        return self.allParameters[self._known(name)]

    def default(self, name: str):
        return Default(self._defaults[self._known(name)])

    def getValue(self, name: str):
        return self._values[self._known(name)].value

    def setValue(self, name: str, value) -> None:
        self._values[self._known(name)].write(value)

    def _known(self, name: str) -> str:
        if name not in self.allParameters:
            raise ValueError(f"Cannot find a param with the given name: {name}; found {list(self.allParameters)}")
        return name

    def connectGui(self, gui) -> int:
        widgets = gui.findChildren(qt.QWidget) if hasattr(gui, "isWidgetType") else vars(gui).values()
        return self.connectParametersToGui(
            {widget.property("SlicerParameterName"): widget for widget in widgets
             if widget.property("SlicerParameterName")}
        )  # fmt: skip

    def connectParametersToGui(self, widgets: dict) -> int:
        for name in widgets:
            self._known(name)
        connectors = {
            name: widget if isinstance(widget, GuiConnector) else createGuiConnector(widget, self.dataType(name))
            for name, widget in widgets.items()
        }
        tag = self._next_tag
        self._next_tag += 1
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.onChanged(lambda name=name, connector=connector: self._from_gui(name, connector))
        observer = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda caller, event: self._to_gui())
        self._guis[tag] = (connectors, observer)
        return tag

    def disconnectGui(self, tag: int) -> None:
        connectors, observer = self._guis.pop(tag, ({}, None))
        for connector in connectors.values():
            connector.onChanged(None)
        if observer is not None:
            self.RemoveObserver(observer)

    def _from_gui(self, name: str, connector: GuiConnector) -> None:
        if not self._updating:
            with slicer.util.NodeModify(self):
                self.setValue(name, connector.read())

    def _to_gui(self) -> None:
        if self._updating:
            return
        self._updating = True
        try:
            with slicer.util.NodeModify(self):
                for connectors, _ in list(self._guis.values()):
                    for name, connector in connectors.items():
                        connector.write(self.getValue(name))
        finally:
            self._updating = False

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, before):
        return self.parameterNode.EndModify(before)

    def AddObserver(self, event, callback, priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:
        self.parameterNode.Modified()


def parameterNodeWrapper(classtype=None):
    """Class decorator: annotated names become typed parameters of a vtkMRMLScriptedModuleNode."""
    if classtype is None:
        return parameterNodeWrapper
    annotations = typing.get_type_hints(classtype, include_extras=True)
    defaults = {}
    for name, annotated in annotations.items():
        serializer, note = _serializer(annotated), _note(_split(annotated)[1], Default)
        if hasattr(classtype, name):
            defaults[name] = getattr(classtype, name)
        else:
            defaults[name] = note.value if note else serializer.default()
        setattr(
            classtype,
            name,
            property(lambda self, n=name: self.getValue(n), lambda self, value, n=name: self.setValue(n, value)),
        )
    for name, member in vars(_Wrapper).items():
        if name.startswith("__") and name != "__init__":
            continue
        if name != "__init__" and hasattr(classtype, name):
            raise ValueError(f"Cannot use reserved name '{name}' in a parameterNodeWrapper")
        setattr(classtype, name, member)
    classtype.allParameters = annotations
    classtype._defaults = defaults
    classtype._is_parameter_node_wrapper = True
    return classtype


def isParameterNodeWrapper(thing) -> bool:
    return getattr(thing, "_is_parameter_node_wrapper", False)


PUBLIC = [
    "parameterNodeWrapper",
    "isParameterNodeWrapper",
    "createGuiConnector",
    "GuiConnector",
    "Default",
    "Decimals",
    "SingleStep",
    "Validator",
    "WithinRange",
    "Minimum",
    "Maximum",
    "Choice",
    "NotNone",
    "ObservedList",
]


def as_module() -> ModuleType:
    module = ModuleType("slicer.parameterNodeWrapper")
    for name in PUBLIC:
        setattr(module, name, globals()[name])
    module.__all__ = PUBLIC
    return module
