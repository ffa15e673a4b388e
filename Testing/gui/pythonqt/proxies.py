"""Objects and classes of PySide6 seen the way PythonQt shows those of Qt.

A Qt property is an attribute and not a call; slots and invokables are calls; enumerators lie flat in their
class and are integers; lists come back as tuples; a name that is not there is an AttributeError, for reading
and for writing. What a class offers is what `reference` says a running Slicer offers; for classes it says
nothing about (layouts, dialogs, value types) it is what PySide6 has.
"""

from __future__ import annotations

import enum
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

import shiboken6
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

from .dialogs import STATICS, Question
from .reference import Members, members_of

PYSIDE_MODULES = (QtCore, QtGui, QtWidgets, QtUiTools)
slot_errors: list[BaseException] = []  # what Python slots raised: Slicer prints it and goes on


class Enumerator(int):
    """An enumerator or a set of flags: an int that remembers which PySide6 enumeration it belongs to."""

    def __new__(cls, value):
        made = super().__new__(cls, value.value if isinstance(value, enum.Enum) else value)
        made.pyside = value
        return made

    def __or__(self, other):
        if isinstance(other, Enumerator) and type(self.pyside) is type(other.pyside):
            with suppress(TypeError):
                return Enumerator(self.pyside | other.pyside)
        return int(self) | int(other)

    __ror__ = __or__


class EnumScope:
    """An enumeration of a class: `qt.QProcess.ProcessState.Running`."""

    def __init__(self, pyside_enum):
        for name, member in pyside_enum.__members__.items():
            setattr(self, name, Enumerator(member))
        self._pyside = pyside_enum

    def __call__(self, value: int) -> Enumerator:
        return Enumerator(self._pyside(int(value)))


# --- names that a class holds -----------------------------------------------------------------------------


class Property:
    """A Qt property: read and written as an attribute."""

    def __init__(self, name: str, cpp_type: str, class_name: str):
        self.name, self.class_name = name, class_name
        self.read_only = cpp_type.endswith("(read-only)")
        self.type = cpp_type.removesuffix("(read-only)").strip()

    def __get__(self, instance, owner=None):
        if instance is None:
            return self
        qt_object = instance._alive(self.name)
        if qt_object.metaObject().indexOfProperty(self.name) >= 0:
            value = qt_object.property(self.name)
        elif callable(getter := getattr(qt_object, self.name, None)):
            value = getter()
        elif self.name in getattr(qt_object, "kept", {}):
            value = qt_object.kept[self.name]
        else:
            raise NotImplementedError(f"the stand-in for {self.class_name} does not model the property {self.name}")
        if self.name == "toolTip" and value and not value.startswith("<"):
            return f"<p>{value}</p>"  # Slicer's tooltip filter lets long texts wrap
        return wrap(value)

    def __set__(self, instance, value):
        qt_object = instance._alive(self.name)
        if self.read_only:
            raise AttributeError(f"Property '{self.name}' of {self.class_name} object is not writable")
        if not self._accepts(value):
            raise AttributeError(
                f"Property '{self.name}' of type '{self.type}' does not accept an object of type "
                f"{type(value).__name__} ({value!r})"
            )
        plain = unwrap(value)
        if self.type == "QStringList":
            plain = [str(item) for item in plain]
        elif self.type == "int":
            plain = int(plain)
        elif self.type == "bool":
            plain = bool(plain)
        if qt_object.metaObject().indexOfProperty(self.name) >= 0:
            qt_object.setProperty(self.name, plain)
        elif callable(setter := getattr(qt_object, f"set{self.name[0].upper()}{self.name[1:]}", None)):
            setter(plain)
        elif hasattr(qt_object, "kept"):
            qt_object.kept[self.name] = plain
        else:
            raise NotImplementedError(f"the stand-in for {self.class_name} does not model the property {self.name}")

    def _accepts(self, value) -> bool:
        accepted = {
            "QString": (str,),
            "bool": (bool, int),
            "int": (int, float),
            "double": (int, float),
            "QStringList": (list, tuple),
        }.get(self.type)
        return accepted is None or isinstance(value, accepted)


class SingleShot(Property):
    """QTimer.singleShot: of the class, the function that calls something later; of an object, a property."""

    def __get__(self, instance, owner=None):
        return self._later if instance is None else super().__get__(instance, owner)

    @staticmethod
    def _later(milliseconds: float, slot: Callable) -> None:
        QtCore.QTimer.singleShot(int(milliseconds), _slot_of(slot, 0))


class Method:
    """A slot or an invokable: a call, without keywords."""

    def __init__(self, name: str, class_name: str, pyside_class: type):
        self.name, self.class_name, self.pyside_class = name, class_name, pyside_class

    def __get__(self, instance, owner=None):
        if instance is None:
            return BoundMethod(self, None)
        return BoundMethod(self, instance)


class BoundMethod:
    def __init__(self, method: Method, instance):
        self._method, self._instance = method, instance
        self.__name__ = method.name

    def __eq__(self, other):
        if not isinstance(other, BoundMethod):
            return NotImplemented
        return self._method.name == other._method.name and self._instance is other._instance

    def __hash__(self):
        return hash((self._method.name, id(self._instance)))

    def __call__(self, *args):
        method = self._method
        function = getattr(method.pyside_class, method.name, None)
        if self._instance is None:  # Class.method(object, ...) or a static one
            return wrap(call(function, args))
        qt_object = self._instance._alive(method.name)
        if function is None and hasattr(qt_object, "kept"):
            return wrap(qt_object.keep(method.name, *map(unwrap, args)))
        if function is None:
            raise NotImplementedError(f"the stand-in for {method.class_name} does not model {method.name}()")
        # A Python subclass may override it: what was asked for here is the base class's own.
        overridden = method.name in getattr(type(qt_object), "_overridden", ())
        bound = getattr(super(type(qt_object), qt_object) if overridden else qt_object, method.name)
        return wrap(call(bound, args))


class Missing:
    """Something that a base class has and Slicer does not offer on this class."""

    def __init__(self, name: str, class_name: str):
        self.name, self.class_name = name, class_name

    def __get__(self, instance, owner=None):
        raise AttributeError(f"{self.class_name} has no attribute named '{self.name}'")


class Signal:
    """A signal of a class; all its overloads."""

    def __init__(self, name: str, signatures: list[str]):
        self.name, self.signatures = name, signatures

    def __get__(self, instance, owner=None):
        return self if instance is None else BoundSignal(self, instance)


class BoundSignal:
    def __init__(self, signal: Signal, instance):
        self._signal, self._instance = signal, instance

    def __getitem__(self, types):
        return BoundSignal(Signal(self._signal.name, [f"{self._signal.name}({types})"]), self._instance)

    def connect(self, slot) -> bool:
        return self._instance.connect(self._signature(), slot)

    def disconnect(self, slot=None) -> bool:
        return self._instance.disconnect(self._signature(), slot)

    def emit(self, *args) -> None:
        pyside_signal(self._instance._alive(self._signal.name), self._signature()).emit(*map(unwrap, args))

    def _signature(self) -> str:
        """The overload that the signal alone means: the first that its header declares, with its defaults."""

        def order(signature: str) -> tuple:
            return ("vtkMRMLNode" not in signature, "QString" in signature, -signature.count(","), signature[-2] == "(")

        return min(self._signal.signatures, key=order)


# Signals that Qt 6 has no longer under these signatures.
QT6_NAMES = {
    "activated(QString)": "textActivated",
    "highlighted(QString)": "textHighlighted",
    "currentIndexChanged(QString)": "currentTextChanged",
    "valueChanged(QString)": "textChanged",
    "buttonClicked(int)": "idClicked",
    "buttonPressed(int)": "idPressed",
    "error(QProcess::ProcessError)": "errorOccurred",
}


def pyside_signal(qt_object, signature: str):
    name = QT6_NAMES.get(signature, signature.split("(")[0])
    by_type = getattr(type(qt_object), "OVERLOADS", {}).get(signature)
    return getattr(qt_object, by_type or name, None) or getattr(qt_object, signature.split("(")[0])


# --- classes and objects ----------------------------------------------------------------------------------


class ProxyType(type):
    """The type of proxy classes: unknown names of a class are told as PythonQt tells them."""

    def __getattr__(cls, name):
        raise AttributeError(f"type object '{cls.__name__}' has no attribute '{name}'")


class Proxy(metaclass=ProxyType):
    """An object of Qt."""

    _pyside: type = object
    _generated = True

    def __init__(self, *args):
        made = self._pyside if type(self)._is_generated() else _with_overrides(type(self), self)
        self._adopt(call(made, args))

    @classmethod
    def _is_generated(cls) -> bool:
        return cls.__dict__.get("_generated", False)

    @classmethod
    def _class_name(cls) -> str:
        return next(base.__name__ for base in cls.__mro__ if base.__dict__.get("_generated", False))

    def _adopt(self, qt_object) -> None:
        self.__dict__["_qt"] = qt_object
        self.__dict__["_connections"] = []
        with suppress(AttributeError):
            qt_object._python_proxy = self

    def _alive(self, name: str):
        qt_object = self.__dict__.get("_qt")
        if qt_object is None:
            raise ValueError(f"Trying to read attribute '{name}' of an object whose constructor was not called")
        if not shiboken6.isValid(qt_object):
            raise ValueError(f"Trying to read attribute '{name}' of a destroyed {self._class_name()} object")
        return qt_object

    def __bool__(self) -> bool:
        return shiboken6.isValid(self.__dict__.get("_qt"))

    def __getattr__(self, name):
        raise AttributeError(f"{self._class_name()} has no attribute named '{name}'")

    def __setattr__(self, name, value):
        held = inspect.getattr_static(type(self), name, None)
        if isinstance(held, Property):
            held.__set__(self, value)
        elif not type(self)._is_generated():
            object.__setattr__(self, name, value)
        elif isinstance(held, Signal):
            raise AttributeError(f"Signal '{name}' can not be overwritten on this object")
        elif isinstance(held, Method):
            raise AttributeError(f"Slot '{name}' can not be overwritten on this object")
        else:
            raise AttributeError(
                f"'{name}' does not exist on {self._class_name()} and creating new attributes on C++ objects is "
                "not allowed"
            )

    def __repr__(self) -> str:
        told = bytes(self._qt).decode(errors="replace") + " " if isinstance(self._qt, QtCore.QByteArray) else ""
        base = self._class_name()
        if type(self)._is_generated():
            return f"{base} ({told}, at: {id(self._qt):#x})" if told else f"{base} (at: {id(self._qt):#x})"
        shown = f"({base}({id(self._qt):#x}) , at: " if isinstance(self._qt, QtWidgets.QWidget) else f"({base} at: "
        return f"{type(self).__name__} {shown}{id(self._qt):#x})"


class ProxyObject(Proxy):
    """A QObject: it has signals, and calls that PythonQt adds to every object."""

    def connect(self, signature: str, slot, *unused) -> bool:
        if not isinstance(signature, str):
            raise TypeError("connect() takes the signature of a signal, as in connect('clicked(bool)', slot)")
        qt_object = self._alive("connect")
        wanted = "".join(signature.split())
        offered = inspect.getattr_static(type(self), wanted.split("(")[0], None)
        if not isinstance(offered, Signal) or wanted not in offered.signatures or not callable(slot):
            sys.stderr.write(f"QObject::connect: no such signal {type(self).__name__}::{signature}\n")
            return False
        count = 0 if wanted.endswith("()") else wanted.count(",") + 1
        adapter = _slot_of(slot, count)
        pyside_signal(qt_object, wanted).connect(adapter)
        self._connections.append((wanted, slot, adapter))
        return True

    def disconnect(self, signature: str, slot=None) -> bool:
        wanted = "".join(signature.split())
        found = [made for made in self._connections if made[0] == wanted and (slot is None or made[1] == slot)]
        for made in found:
            pyside_signal(self._alive("disconnect"), wanted).disconnect(made[2])
            self._connections.remove(made)
        return bool(found)

    def className(self) -> str:
        return self._class_name()

    def delete(self) -> None:
        shiboken6.delete(self._alive("delete"))

    def setProperty(self, name: str, value) -> bool:
        held = inspect.getattr_static(type(self), name, None)
        if isinstance(held, Property):
            held.__set__(self, value)
            return True
        return self._alive("setProperty").setProperty(name, unwrap(value))

    def property(self, name: str):
        held = inspect.getattr_static(type(self), name, None)
        return held.__get__(self) if isinstance(held, Property) else wrap(self._alive("property").property(name))


def _slot_of(slot: Callable, count: int) -> Callable:
    """What Qt calls: hands over as many arguments as the Python function takes; an exception stays inside."""
    wanted = _positional(slot)

    def run(*args):
        given = [wrap(argument) for argument in args]
        try:
            return unwrap(slot(*(given if wanted is None else given[:wanted])))
        except Exception as error:
            slot_errors.append(error)
            traceback.print_exc()

    # PySide6 counts the parameters to choose among the forms of a signal that has a default argument.
    fixed = (
        lambda: run(),
        lambda a: run(a),
        lambda a, b: run(a, b),
        lambda a, b, c: run(a, b, c),
        lambda a, b, c, d: run(a, b, c, d),
    )
    return fixed[count]


def _positional(slot: Callable) -> int | None:
    """How many positional arguments a plain function or method takes; None for any number, or for other callables."""
    function = getattr(slot, "__func__", slot)
    if not inspect.isfunction(function):
        return None
    code = function.__code__
    if code.co_flags & inspect.CO_VARARGS:
        return None
    return code.co_argcount - (function is not slot)


def _with_overrides(python_class: type, proxy: Proxy) -> type:
    """A PySide6 class whose virtual functions are those that a Python subclass of a proxy class defines."""
    base = python_class._pyside
    overridden = {
        name: member
        for python_base in reversed(python_class.__mro__)
        if issubclass(python_base, Proxy) and not python_base.__dict__.get("_generated", False)
        for name, member in vars(python_base).items()
        if inspect.isfunction(member) and not name.startswith("_") and hasattr(base, name)
    }

    def forward(name: str) -> Callable:
        return lambda qt_object, *args: unwrap(getattr(proxy, name)(*map(wrap, args)))

    made = {name: forward(name) for name in overridden}
    return type(python_class.__name__, (base,), made | {"_overridden": frozenset(overridden)})


_proxy_classes: dict[type, type] = {}


def proxy_class(pyside_class: type, module: str = "qt", name: str | None = None, inherits: bool = True) -> type:
    """The class that stands for a PySide6 class; `inherits=False`: no isinstance of the classes it derives from."""
    if pyside_class in _proxy_classes:
        return _proxy_classes[pyside_class]
    name = name or pyside_class.__name__
    is_object = _is_qobject(pyside_class)
    bases = tuple(
        proxy_class(base)
        for base in pyside_class.__bases__
        if inherits and _is_public(base) and not (module != "qt" and base is not QtWidgets.QWidget)
    )
    if not bases and module == "ctk" and issubclass(pyside_class, QtWidgets.QWidget):
        bases = (proxy_class(QtWidgets.QWidget),)
    root = ProxyObject if is_object else Proxy
    bases = bases or (root,)
    known = members_of(f"{module}.{name}") or _members_by_pyside(pyside_class)
    names: dict[str, object] = {"_pyside": pyside_class, "_generated": True, "__module__": module}
    names |= _enumerators(pyside_class)
    for method in known.callables:
        if method not in names and not hasattr(root, method):
            names[method] = Method(method, name, pyside_class)
    if known.callables & {"exec", "exec_"} or hasattr(pyside_class, "exec"):
        names["exec_"] = names["exec"] = Method("exec", name, pyside_class)
    for signature in known.signals:
        signal = signature.split("(")[0]
        names.setdefault(signal, Signal(signal, []))
        if not isinstance(names[signal], Signal):
            names[signal] = Signal(signal, [])
        names[signal].signatures.append(signature)
    for property_name, cpp_type in known.properties.items():
        names[property_name] = Property(property_name, cpp_type, name)
    if pyside_class is QtCore.QTimer:
        names["singleShot"] = SingleShot("singleShot", "bool", name)
    if is_object:
        names["name"] = Property("objectName", "QString", name)
    names |= {static: Question(name, static) for static in STATICS.get(name, ())}
    if members_of(f"{module}.{name}"):
        for base in bases:
            for held in dir(base):
                kind = inspect.getattr_static(base, held, None)
                if held not in names and isinstance(kind, (Property, Method, Signal)):
                    names[held] = Missing(held, name)
    made = ProxyType(name, bases, names)
    _proxy_classes[pyside_class] = made
    return made


def _is_qobject(pyside_class: type) -> bool:
    return issubclass(pyside_class, QtCore.QObject)


def _is_public(pyside_class: type) -> bool:
    return pyside_class.__module__.startswith("PySide6.")


def _enumerators(pyside_class: type) -> dict[str, object]:
    found: dict[str, object] = {}
    for name in dir(pyside_class):
        member = getattr(pyside_class, name, None)
        if isinstance(member, type) and issubclass(member, enum.Enum):
            found[name] = EnumScope(member)
            found |= {key: Enumerator(value) for key, value in member.__members__.items()}
    return found


def _members_by_pyside(pyside_class: type) -> Members:
    """From PySide6 itself, for classes that Slicer was not asked about."""
    properties: dict[str, str] = {}
    signals: list[str] = []
    if issubclass(pyside_class, QtCore.QObject):
        meta = pyside_class.staticMetaObject
        for index in range(meta.propertyCount()):
            found = meta.property(index)
            properties[found.name()] = found.typeName() + ("" if found.isWritable() else " (read-only)")
        for index in range(meta.methodCount()):
            if meta.method(index).methodType() == QtCore.QMetaMethod.MethodType.Signal:
                signals.append(bytes(meta.method(index).methodSignature()).decode().replace("PyObject", "QVariant"))
        signals += getattr(pyside_class, "OVERLOADS", {})
    names = {signature.split("(")[0] for signature in signals} | set(properties)
    callables = frozenset(
        name
        for name in dir(pyside_class)
        if not name.startswith("_")
        and name not in names
        and name not in ("kept", "keep", "close", "OVERLOADS")
        and callable(getattr(pyside_class, name))
        and not isinstance(getattr(pyside_class, name), type)
    )
    return Members(properties, tuple(signals), callables)


# --- values in both directions ----------------------------------------------------------------------------


def wrap(value):
    """A value of PySide6 as Python code in Slicer sees it."""
    if isinstance(value, enum.Enum):
        return Enumerator(value)
    if value is None or isinstance(value, (bool, int, float, str, bytes, dict, Proxy)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(wrap, value))
    known = getattr(value, "_python_proxy", None)
    if known is not None:
        return known
    for pyside_class in type(value).__mro__:
        is_stand_in = _is_qobject(pyside_class) and pyside_class.__module__.startswith(f"{__package__}.")
        if pyside_class in _proxy_classes or _is_public(pyside_class) or is_stand_in:
            module = ("ctk" if pyside_class.__name__.startswith("ctk") else "slicer") if is_stand_in else "qt"
            proxy = object.__new__(proxy_class(pyside_class, module, inherits=module != "slicer"))
            proxy._adopt(value)
            return proxy
    return value


def unwrap(value):
    """What Python code in Slicer hands over, as PySide6 takes it."""
    if isinstance(value, Proxy):
        return value._alive("argument")
    if isinstance(value, Enumerator):
        return value.pyside
    if isinstance(value, type) and issubclass(value, Proxy):
        return value._pyside
    if isinstance(value, (list, tuple)):
        return [unwrap(item) for item in value]
    if isinstance(value, BoundMethod):
        return lambda *args: value(*args)
    return value


def call(function: Callable, args: tuple):
    """Calls PySide6; integers become the enumerators that it insists on, floats the integers."""
    plain = [unwrap(argument) for argument in args]
    try:
        return function(*plain)
    except TypeError as error:
        if "Supported signatures" not in str(error):
            raise
        for types in _signatures(str(error)):
            with suppress(TypeError, ValueError):
                return function(*[_as_wanted(item, wanted) for item, wanted in zip(plain, types, strict=False)])
        raise


def _signatures(message: str) -> list[list[str]]:
    """The types of the arguments, for each signature that PySide6's message offers."""
    offered = message.split("Supported signatures:")[1]
    return [re.findall(r":\s*(PySide6(?:\.\w+)+|\w+)", line) + ["object"] * 8 for line in offered.splitlines()]


def _as_wanted(value, wanted: str):
    if isinstance(value, float) and wanted == "int":
        return int(value)
    number = value.value if isinstance(value, enum.Enum) else value
    if isinstance(number, int) and not isinstance(value, bool):
        if wanted == "int":
            return number
        if wanted.startswith("PySide6."):
            _, module, *path = wanted.split(".")
            found: object = sys.modules[f"PySide6.{module}"]
            for part in path:
                found = getattr(found, part)
            if isinstance(found, type) and issubclass(found, enum.Enum):
                return found(number)
    return value
