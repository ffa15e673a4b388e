"""Stand-ins for the widgets of CTK: PySide6 classes with the names and the behaviour that panels rely on."""

from __future__ import annotations

from pathlib import Path

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Signal

from .reference import members_of


class Keeping:
    """For members that only have to be remembered: `setX(value)` keeps it, `x()` and the property x return it."""

    def _kept(self) -> dict:
        return self.__dict__.setdefault("_kept_values", {})

    @property
    def kept(self) -> dict:
        return self._kept()

    def keep(self, name: str, *args):
        if name.startswith("set") and len(args) == 1:
            self._kept()[name[3].lower() + name[4:]] = args[0]
            return None
        if name in self._kept():
            return self._kept()[name]
        if not args and not name.startswith("set"):
            return None
        raise NotImplementedError(f"the stand-in for {type(self).__name__} does not model {name}()")


class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    """A title that folds away what lies below it."""

    contentsCollapsed = Signal(bool)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._collapsed = False
        self.setCheckable(True)
        self.setChecked(True)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Preferred)
        self._make_room()
        self.toggled.connect(lambda checked: self._set_collapsed(not checked))

    def _header(self) -> int:
        return self.fontMetrics().height() + 8

    def _make_room(self) -> None:
        self.setContentsMargins(0, self._header(), 0, 0)

    def changeEvent(self, event) -> None:
        super().changeEvent(event)
        if event.type() == QtCore.QEvent.Type.FontChange:
            self._make_room()

    def _get_collapsed(self) -> bool:
        return self._collapsed

    def _set_collapsed(self, collapsed: bool) -> None:
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        self.setChecked(not collapsed)
        for child in self.findChildren(QtWidgets.QWidget, options=QtCore.Qt.FindChildOption.FindDirectChildrenOnly):
            child.setVisible(not collapsed)
        self.setMaximumHeight(self._header() if collapsed else 16777215)
        self.contentsCollapsed.emit(collapsed)

    collapsed = Property(bool, _get_collapsed, _set_collapsed)

    def sizeHint(self) -> QtCore.QSize:
        hint = self.layout().totalSizeHint() if self.layout() and not self._collapsed else QtCore.QSize(0, 0)
        width = self.fontMetrics().horizontalAdvance(self.text()) + 40
        return QtCore.QSize(max(hint.width(), width), max(hint.height(), self._header()))

    def minimumSizeHint(self) -> QtCore.QSize:
        return self.sizeHint() if self._collapsed or not self.layout() else self.layout().totalMinimumSize()

    def paintEvent(self, event) -> None:
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width(), self._header())
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_PushButtonBevel, option)
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = QtCore.QRect(6, (self._header() - 10) // 2, 10, 10)
        painter.drawPrimitive(
            QtWidgets.QStyle.PrimitiveElement.PE_IndicatorArrowRight
            if self._collapsed
            else QtWidgets.QStyle.PrimitiveElement.PE_IndicatorArrowDown,
            arrow,
        )
        text = QtCore.QRect(22, 0, self.width() - 24, self._header())
        painter.drawText(text, QtCore.Qt.AlignmentFlag.AlignVCenter, self.text())


class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    def __init__(self, *args):
        super().__init__(*args)
        self.setCheckable(True)
        self.toggled.connect(self._fold)

    def _fold(self, checked: bool) -> None:
        for child in self.findChildren(QtWidgets.QWidget, options=QtCore.Qt.FindChildOption.FindDirectChildrenOnly):
            child.setVisible(checked)

    collapsed = Property(
        bool, lambda self: self.isCheckable() and not self.isChecked(), lambda self, on: self.setChecked(not on)
    )


class ctkSliderWidget(QtWidgets.QWidget, Keeping):
    """A slider with a number beside it."""

    valueChanged = Signal(float)
    valueIsChanging = Signal(float)
    decimalsChanged = Signal(int)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal, self)
        self._box = QtWidgets.QDoubleSpinBox(self)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider)
        layout.addWidget(self._box)
        self._box.setRange(0, 99)
        self._fit()
        self._box.valueChanged.connect(self._told)
        self._slider.valueChanged.connect(self._moved)

    def _fit(self) -> None:
        self._slider.blockSignals(True)
        step = self._box.singleStep() or 1
        self._slider.setRange(0, max(0, round((self._box.maximum() - self._box.minimum()) / step)))
        self._slider.setValue(round((self._box.value() - self._box.minimum()) / step))
        self._slider.blockSignals(False)

    def _told(self, value: float) -> None:
        self._fit()
        self.valueChanged.emit(value)

    def _moved(self, position: int) -> None:
        self._box.setValue(self._box.minimum() + position * (self._box.singleStep() or 1))

    def _changes(self, setter, value) -> None:
        setter(value)
        self._fit()

    value = Property(float, lambda self: self._box.value(), lambda self, number: self._box.setValue(number))
    minimum = Property(
        float, lambda self: self._box.minimum(), lambda self, number: self._changes(self._box.setMinimum, number)
    )
    maximum = Property(
        float, lambda self: self._box.maximum(), lambda self, number: self._changes(self._box.setMaximum, number)
    )
    singleStep = Property(
        float, lambda self: self._box.singleStep(), lambda self, number: self._changes(self._box.setSingleStep, number)
    )
    decimals = Property(int, lambda self: self._box.decimals(), lambda self, number: self._box.setDecimals(number))
    suffix = Property(str, lambda self: self._box.suffix(), lambda self, text: self._box.setSuffix(text))
    prefix = Property(str, lambda self: self._box.prefix(), lambda self, text: self._box.setPrefix(text))
    tracking = Property(bool, lambda self: self._slider.hasTracking(), lambda self, on: self._slider.setTracking(on))
    spinBoxVisible = Property(bool, lambda self: not self._box.isHidden(), lambda self, on: self._box.setVisible(on))

    def setValue(self, number: float) -> None:
        self._box.setValue(number)

    def setDecimals(self, number: int) -> None:
        self._box.setDecimals(number)

    def setSpinBoxVisible(self, on: bool) -> None:
        self._box.setVisible(on)


class ctkRangeWidget(QtWidgets.QWidget, Keeping):
    """Two numbers, the lower and the upper end of a range."""

    valuesChanged = Signal(float, float)
    minimumValueChanged = Signal(float)
    maximumValueChanged = Signal(float)
    rangeChanged = Signal(float, float)
    minimumValueIsChanging = Signal(float)
    maximumValueIsChanging = Signal(float)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._low, self._high = QtWidgets.QDoubleSpinBox(self), QtWidgets.QDoubleSpinBox(self)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._low)
        layout.addWidget(self._high)
        for box in (self._low, self._high):
            box.setRange(0, 99)
            box.valueChanged.connect(lambda _: self.valuesChanged.emit(self._low.value(), self._high.value()))
        self._high.setValue(99)
        self._low.valueChanged.connect(self.minimumValueChanged)
        self._high.valueChanged.connect(self.maximumValueChanged)

    def _bound(self, which: str, number: float) -> None:
        for box in (self._low, self._high):
            getattr(box, which)(number)

    minimum = Property(float, lambda self: self._low.minimum(), lambda self, number: self._bound("setMinimum", number))
    maximum = Property(float, lambda self: self._low.maximum(), lambda self, number: self._bound("setMaximum", number))
    decimals = Property(int, lambda self: self._low.decimals(), lambda self, number: self._bound("setDecimals", number))
    singleStep = Property(
        float, lambda self: self._low.singleStep(), lambda self, number: self._bound("setSingleStep", number)
    )
    minimumValue = Property(float, lambda self: self._low.value(), lambda self, number: self._low.setValue(number))
    maximumValue = Property(float, lambda self: self._high.value(), lambda self, number: self._high.setValue(number))

    def setValues(self, low: float, high: float) -> None:
        self._low.setValue(low)
        self._high.setValue(high)


class ctkDoubleSpinBox(QtWidgets.QDoubleSpinBox, Keeping):
    pass


class ctkPathLineEdit(QtWidgets.QWidget, Keeping):
    """A line for a file or folder name, with a button to browse."""

    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._line, self._button = QtWidgets.QLineEdit(self), QtWidgets.QToolButton(self)
        self._button.setText("...")
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._line)
        layout.addWidget(self._button)
        self._line.textChanged.connect(self.currentPathChanged)
        self._line.textChanged.connect(lambda text: self.validInputChanged.emit(Path(text).exists()))

    currentPath = Property(str, lambda self: self._line.text(), lambda self, text: self._line.setText(text))

    def setCurrentPath(self, text: str) -> None:
        self._line.setText(text)

    def addCurrentPathToHistory(self) -> None:
        pass


class ctkDirectoryButton(QtWidgets.QPushButton, Keeping):
    directoryChanged = Signal(str)
    directorySelected = Signal(str)

    def _set(self, folder: str) -> None:
        if folder != self.text():
            self.setText(folder)
            self.directoryChanged.emit(folder)

    directory = Property(str, lambda self: self.text(), _set)


class ctkComboBox(QtWidgets.QComboBox, Keeping):
    returnRelease = Signal()


class ctkCheckableComboBox(QtWidgets.QComboBox, Keeping):
    checkedIndexesChanged = Signal()


class ctkPushButton(QtWidgets.QPushButton, Keeping):
    pass


class ctkMenuButton(QtWidgets.QPushButton, Keeping):
    pass


class ctkCheckBox(QtWidgets.QCheckBox, Keeping):
    pass


class ctkExpandButton(QtWidgets.QToolButton, Keeping):
    pass


class ctkFittedTextBrowser(QtWidgets.QTextBrowser, Keeping):
    pass


class ctkColorPickerButton(QtWidgets.QPushButton, Keeping):
    colorChanged = Signal(QtGui.QColor)
    colorNameChanged = Signal(str)

    def __init__(self, *args):
        super().__init__(*args)
        self._color = QtGui.QColor("black")

    def _set(self, color: QtGui.QColor) -> None:
        if color != self._color:
            self._color = color
            self.colorChanged.emit(color)
            self.colorNameChanged.emit(color.name())

    color = Property(QtGui.QColor, lambda self: self._color, _set)


class ctkMessageBox(QtWidgets.QMessageBox, Keeping):
    pass


def with_all_signals(module: str, made: type) -> type:
    """The stand-in, or one derived from it that has those signals of the real widget that it lacks."""
    known = members_of(f"{module}.{made.__name__}")
    lacking = {
        signature.split("(")[0]: Signal(*[object] * (0 if signature.endswith("()") else signature.count(",") + 1))
        for signature in (known.signals if known else ())
        if not hasattr(made, signature.split("(")[0]) and signature not in getattr(made, "OVERLOADS", {})
    }
    return type(made.__name__, (made,), lacking) if lacking else made


def bare(module: str, name: str, base: type = QtWidgets.QWidget) -> type:
    """A widget that has the signals of the real one and keeps what is set on it, and does nothing else."""
    return with_all_signals(module, type(name, (base, Keeping), {}))


ctkDoubleSlider = bare("ctk", "ctkDoubleSlider")
ctkCoordinatesWidget = bare("ctk", "ctkCoordinatesWidget")

CTK = {
    name: with_all_signals("ctk", value)
    for name, value in list(globals().items())
    if name.startswith("ctk") and isinstance(value, type) and issubclass(value, QtWidgets.QWidget)
}
