"""The stand-in for PythonQt answers as a running Slicer did, probe by probe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# What was probed -> (Python that does it, what Slicer answered). An exception is (type, message); a compiled
# pattern is compared with the repr. The objects are those of `stage` below.
PROBES = {
    "b.text": ("b.text", "Go"),
    "b.text()": ("b.text()", (TypeError, "'str' object is not callable")),
    "b.setText('x')": ("b.setText('x')", None),
    "b.enabled": ("b.enabled", True),
    "b.isEnabled()": ("b.isEnabled()", True),
    "chk.checked": ("chk.checked", False),
    "chk.isChecked()": ("chk.isChecked()", False),
    "chk.checkState()": ("chk.checkState()", 0),
    "cb.currentText": ("cb.currentText", "a"),
    "cb.currentText()": ("cb.currentText()", (TypeError, "'str' object is not callable")),
    "cb.currentIndex": ("cb.currentIndex", 0),
    "cb.count": ("cb.count", 2),
    "cb.itemText(1)": ("cb.itemText(1)", "b"),
    "cb.currentData": ("cb.currentData", None),
    "cb.setItemData/itemData": ("(cb.setItemData(0, {'k': 1}), cb.itemData(0))", (None, {"k": 1})),
    "sp.value": ("sp.value", 0),
    "sp.value()": ("sp.value()", (TypeError, "'int' object is not callable")),
    "pb.value": ("pb.value", -1),
    "pb.setRange": ("pb.setRange(0, 0)", None),
    "pb.maximum": ("(pb.setRange(0, 0), pb.maximum)[1]", 0),
    "t.rowCount": ("t.rowCount", 2),
    "t.rowCount()": ("t.rowCount()", (TypeError, "'int' object is not callable")),
    "t.setItem": ("(t.setItem(0, 0, qt.QTableWidgetItem('q')), t.item(0, 0).text())", (None, "q")),
    "sl.value=3": ("(setattr(sl, 'value', 3), sl.value)", (None, 3.0)),
    "setattr unknown": (
        "setattr(b, 'nonsense', 1)",
        (
            AttributeError,
            "'nonsense' does not exist on QPushButton and creating new attributes on C++ objects is not allowed",
        ),
    ),
    "getattr unknown": ("b.nonsense2", (AttributeError, "QPushButton has no attribute named 'nonsense2'")),
    "connect new style": ("b.clicked.connect(hear('new'))", True),
    "connect string": ("b.connect('clicked(bool)', hear('str'))", True),
    "connect toggled": ("chk.connect('toggled(bool)', hear('toggled'))", True),
    "connect missing signal": ("b.connect('nonsense()', hear('nothing'))", False),
    "click": (
        "(b.clicked.connect(hear('new')), b.connect('clicked(bool)', hear('str')), b.click(), heard)[2:]",
        (None, [("new", (False,)), ("str", (False,))]),
    ),
    "disconnect new": ("(b.clicked.connect(listener), b.clicked.disconnect(listener))[1]", True),
    "qt.Signal": ("qt.Signal", re.compile(r"<class 'QtCore\.Signal'>")),
    "qt.QTimer.singleShot float": ("qt.QTimer.singleShot(1.5, listener)", None),
    "qt.QTimer.singleShot": ("qt.QTimer.singleShot(1, listener)", None),
    "enum flat": ("(qt.Qt.AlignRight, qt.Qt.Checked)", (2, 2)),
    "enum or": ("qt.Qt.AlignRight | qt.Qt.AlignTop", 34),
    "enum scoped": ("qt.QProcess.ProcessState.Running", 2),
    "QProcess enum": ("(qt.QProcess.MergedChannels, qt.QProcess.Running)", (1, 2)),
    "subclass QWidget": ("W()", re.compile(r"W \(QWidget\(0x[0-9a-f]+\) , at: 0x[0-9a-f]+\)")),
    "subclass QObject": ("O()", re.compile(r"O \(QObject at: 0x[0-9a-f]+\)")),
    "eventFilter override": ("E()", re.compile(r"E \(QObject at: 0x[0-9a-f]+\)")),
    "QProcess start": (
        "(p.start('echo', ['hi']), p.waitForFinished(), (q := p.readAllStandardOutput()), type(q).__name__)",
        re.compile(r"\(None, True, QByteArray \(hi\n? , at: 0x[0-9a-f]+\), 'QByteArray'\)"),
    ),
    "QProcess state": ("(p.start('true', []), p.waitForFinished(), p.state())[2]", 0),
    "QProcess exitCode": ("(p.start('true', []), p.waitForFinished(), p.exitCode())[2]", 0),
    "QProcess processId": ("(p.start('true', []), p.waitForFinished(), p.processId())[2]", 0),
    "QProcess finished connect": ("p.connect('finished(int,QProcess::ExitStatus)', listener)", True),
    "readyRead connect": ("p.connect('readyRead()', listener)", True),
    "p.finished.connect": ("p.finished.connect(listener)", True),
    "QProcess output": (
        "(p.start('echo', ['hello']), p.waitForFinished(), (q := p.readAll()).data(), q.data().decode())[2:]",
        (b"hello\n", "hello\n"),
    ),
    "nodeTypes": ("(setattr(c, 'nodeTypes', [V]), c.nodeTypes)", (None, ("vtkMRMLScalarVolumeNode",))),
    "setMRMLScene": ("c.setMRMLScene(slicer.mrmlScene)", None),
    "currentNode()": ("c.currentNode()", None),
    "currentNodeID": ("c.currentNodeID", ""),
    "connect currentNodeChanged": ("c.connect('currentNodeChanged(vtkMRMLNode*)', listener)", True),
    "currentNodeChanged.connect": ("c.currentNodeChanged.connect(listener)", True),
    "isinstance qSlicerWidget": ("isinstance(slicer.qSlicerWidget(), qt.QWidget)", False),
    "layoutManager": ("slicer.app.layoutManager()", None),
    "slicer.util.mainWindow": ("slicer.util.mainWindow()", None),
    "exec_": ("hasattr(qt.QDialog(), 'exec_')", True),
    "exec": ("hasattr(qt.QDialog(), 'exec')", True),
    "QByteArray": ("qt.QByteArray(b'a').data()", b"a"),
    "slicer.app.temporaryPath": ("isinstance(slicer.app.temporaryPath, str)", True),
    "setProperty/property": (
        "(w.setProperty('SlicerParameterName', 'x'), w.property('SlicerParameterName'))",
        (False, "x"),
    ),
    "dynamicPropertyNames": (
        "(w.setProperty('SlicerParameterName', 'x'), w.dynamicPropertyNames())[1]",
        re.compile(r"\(QByteArray \(SlicerParameterName , at: 0x[0-9a-f]+\),\)"),
    ),
    "le.textChanged.connect": ("le.textChanged.connect(listener)", True),
    "set text fires": (
        "(le.textChanged.connect(hear('t')), setattr(le, 'text', 'new'), heard[-1][1][0])[1:]",
        (None, "new"),
    ),
    "blockSignals": ("le.blockSignals(True)", False),
    "w.visible": ("w.visible", False),
    "b.show()": ("b.show()", None),
    "toolTip": ("(setattr(b, 'toolTip', 't'), b.toolTip)", (None, "<p>t</p>")),
    "styleSheet": ("(setattr(b, 'styleSheet', 'color:red'), b.styleSheet)", (None, "color:red")),
    "layout margins": ("qt.QVBoxLayout(w).setContentsMargins(0, 0, 0, 0)", None),
    "addWidget": ("qt.QVBoxLayout(w).addWidget(b)", None),
}


@pytest.fixture
def stage(layer) -> dict:
    """The objects that were probed."""
    import ctk
    import qt
    import slicer

    heard = []

    def hear(name):
        return lambda *args: heard.append((name, args))

    class W(qt.QWidget):
        pass

    class O(qt.QObject):  # noqa: E742
        pass

    class E(qt.QObject):
        def eventFilter(self, watched, event):
            heard.append(("filtered", event.type()))
            return False

    combo = qt.QComboBox()
    combo.addItems(["a", "b"])
    return {
        "qt": qt,
        "ctk": ctk,
        "slicer": slicer,
        "heard": heard,
        "hear": hear,
        "listener": hear("listener"),
        "W": W,
        "O": O,
        "E": E,
        "V": "vtkMRMLScalarVolumeNode",
        "b": qt.QPushButton("Go"),
        "chk": qt.QCheckBox(),
        "cb": combo,
        "sp": qt.QSpinBox(),
        "pb": qt.QProgressBar(),
        "t": qt.QTableWidget(2, 2),
        "sl": ctk.ctkSliderWidget(),
        "le": qt.QLineEdit(),
        "p": qt.QProcess(),
        "c": slicer.qMRMLNodeComboBox(),
        "w": qt.QWidget(),
    }


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_gives_what_slicer_gave(stage, probe):
    code, answer = PROBES[probe]
    if isinstance(answer, tuple) and answer and isinstance(answer[0], type) and issubclass(answer[0], Exception):
        with pytest.raises(answer[0]) as raised:
            eval(code, stage)
        assert str(raised.value) == answer[1]
        return
    found = eval(code, stage)
    if isinstance(answer, re.Pattern):
        assert answer.fullmatch(repr(found)), repr(found)
    else:
        assert found == answer
        assert type(found) is type(answer) or isinstance(found, int)


def test_every_probe_of_the_record_is_here():
    record = REPOSITORY.parent / "shared" / "reference" / "pythonqt-behaviour.md"
    if not record.is_file():
        pytest.skip(f"no record of the probes at {record}")
    rows = re.findall(r"^\| `(.+?)` \| (\w+) \| (.*) \|$", record.read_text(encoding="utf-8"), re.MULTILINE)
    assert {probe for probe, _, _ in rows} == set(PROBES)
    for probe, outcome, told in rows:
        answer = PROBES[probe][1]
        if outcome != "ok":
            assert outcome == answer[0].__name__
            assert told.strip("`") == answer[1].replace("'", "'")
        elif not isinstance(answer, re.Pattern):
            assert told.strip("`") == repr(answer), probe


def test_what_real_widgets_do_not_offer_is_refused(stage):
    """Habits of PySide that fail in Slicer fail here."""
    for code in (
        "c.setNodeTypes([V])",
        "sl.setMinimum(0)",
        "sl.setRange(0, 1)",
        "b.isVisible",
        "cb.textActivated.emit",
        "le.text = 5",
        "pb.text = 'no'",
        "b.setText = print",
        "b.clicked = print",
        "qt.QMessageBox.Nonsense",
    ):
        if code == "b.isVisible":
            assert not isinstance(eval(code, stage), bool)
            continue
        if code.startswith("cb."):
            assert eval(code, stage)
            continue
        with pytest.raises(AttributeError):
            exec(code, stage)
    with pytest.raises(TypeError):
        eval("b.setText(5)", stage)
    with pytest.raises(TypeError):
        eval("b.setText(text='x')", stage)
    with pytest.raises(RuntimeError):
        eval("qt.Signal(int)", stage)


def test_a_slot_gets_as_many_arguments_as_it_takes(stage):
    calls = []
    exec("b.clicked.connect(lambda: calls.append('none'))", stage | {"calls": calls})
    exec("b.clicked.connect(lambda checked: calls.append(checked))", stage | {"calls": calls})
    stage["b"].click()
    assert calls == ["none", False]


def test_a_slot_that_raises_is_told_and_does_not_stop_the_others(stage, layer, capsys):
    calls = []
    stage["b"].clicked.connect(lambda: 1 / 0)
    stage["b"].clicked.connect(lambda: calls.append("second"))
    stage["b"].click()
    assert calls == ["second"]
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert isinstance(layer.slot_errors.pop(), ZeroDivisionError)


def test_an_event_filter_written_in_python_sees_events(stage):
    watcher = stage["E"]()
    stage["w"].installEventFilter(watcher)
    stage["w"].show()
    assert ("filtered", stage["qt"].QEvent.Show) in stage["heard"]


def test_a_destroyed_widget_is_false_and_cannot_be_used(stage):
    button = stage["b"]
    button.delete()
    assert not button
    with pytest.raises(ValueError, match="destroyed QPushButton"):
        print(button.text)


def test_dialogs_return_bare_values_and_never_wait(stage):
    from pythonqt import dialogs

    dialogs.answer("getSaveFileName", "/tmp/a.png")
    assert stage["qt"].QFileDialog.getSaveFileName(None, "Save", "", "*.png") == "/tmp/a.png"
    with pytest.raises(RuntimeError, match="would wait for the user"):
        stage["qt"].QFileDialog.getSaveFileName(None, "Save")


def test_every_recorded_class_can_be_made_and_offers_its_members(layer):
    import ctk
    import qt
    import slicer
    from pythonqt.reference import known_classes, members_of

    modules = {"qt": qt, "ctk": ctk, "slicer": slicer}
    for name in known_classes():
        module, class_name = name.split(".")
        made = getattr(modules[module], class_name)()
        known = members_of(name)
        offered = set(dir(type(made)))
        missing = (set(known.properties) | {s.split("(")[0] for s in known.signals}) - offered
        assert not missing, (name, missing)
        for signature in known.signals:
            assert made.connect(signature, lambda *_: None), (name, signature)


def test_node_selector_follows_the_scene(layer):
    import slicer

    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.showChildNodeTypes = False
    selector.noneEnabled = True
    heard = []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", heard.append)
    selector.setMRMLScene(slicer.mrmlScene)
    head = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "head")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    assert (selector.nodeCount(), selector.currentNode()) == (1, None)
    selector.setCurrentNode(head)
    assert heard == [head]
    slicer.mrmlScene.RemoveNode(head)
    assert selector.currentNode() is None
    assert heard[-1] is None


def test_checkable_node_selector_hands_out_what_is_ticked(layer):
    import qt
    import slicer

    selector = slicer.qMRMLCheckableNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.setMRMLScene(slicer.mrmlScene)
    heard = []
    selector.connect("checkedNodesChanged()", lambda: heard.append(len(selector.checkedNodes())))
    first, second = (slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name) for name in "ab")
    assert selector.noneChecked()
    selector.check(first)
    selector.setCheckState(second, qt.Qt.Checked)
    assert selector.checkedNodes() == (first, second)
    assert selector.checkState(first) == qt.Qt.Checked
    slicer.mrmlScene.RemoveNode(first)
    assert selector.checkedNodes() == (second,)
    assert heard == [1, 2, 1]
