"""Layouts for results side by side, and what happens without a window."""

from __future__ import annotations

import xml.dom.minidom
from types import SimpleNamespace

import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from RefaceRiskLib.bridge.comparison import Comparison, layout_description  # noqa: E402


class FakeManager:
    """The layout manager's calls on a real layout node and real view nodes."""

    def __init__(self, scene):
        self.node = scene.AddNewNodeByClass("vtkMRMLLayoutNode")
        self.layout, self.threeDViewCount, self.scene = 3, 0, scene

    def layoutLogic(self):
        return SimpleNamespace(GetLayoutNode=lambda: self.node)

    def setLayout(self, layout: int) -> None:
        self.layout = layout
        if not self.node.IsLayoutDescription(layout):
            return
        for view in xml.dom.minidom.parseString(self.node.GetLayoutDescription(layout)).getElementsByTagName("view"):
            if self.scene.GetSingletonNode(view.getAttribute("singletontag"), view.getAttribute("class")) is None:
                node = self.scene.CreateNodeByClass(view.getAttribute("class"))
                node.UnRegister(None)
                node.SetSingletonTag(view.getAttribute("singletontag"))
                self.scene.AddNode(node)


@pytest.fixture
def a_manager(scene, monkeypatch):
    manager = FakeManager(scene)
    monkeypatch.setattr(slicer, "app", SimpleNamespace(layoutManager=lambda: manager), raising=False)
    return manager


def a_model(scene, name: str):
    model = scene.AddNewNodeByClass("vtkMRMLModelNode", name)
    model.CreateDefaultDisplayNodes()
    return model


@pytest.mark.parametrize("count", range(2, 9))
@pytest.mark.parametrize("kind", ["vtkMRMLViewNode", "vtkMRMLSliceNode"])
def test_a_layout_has_one_view_for_each_result(kind, count):
    views = xml.dom.minidom.parseString(layout_description(kind, count)).getElementsByTagName("view")
    assert len({view.getAttribute("singletontag") for view in views}) == count


def test_each_model_is_in_its_own_view_and_in_all_again_afterwards(scene, a_manager):
    models = {name: a_model(scene, name) for name in ("original", "defaced", "refaced", "average")}
    comparison = Comparison()
    comparison.show_models(models)
    seen_in = [model.GetDisplayNode().GetViewNodeIDs() for model in models.values()]
    assert len(set(seen_in)) == 4 and all(len(views) == 1 for views in seen_in)
    labels = [scene.GetNodeByID(views[0]).GetLayoutLabel() for views in seen_in]
    assert labels == list(models)
    assert all(scene.GetNodeByID(views[0]).GetLinkedControl() for views in seen_in)
    comparison.restore()
    assert a_manager.layout == 3
    assert all(not model.GetDisplayNode().GetViewNodeIDs() for model in models.values())


def test_a_second_comparison_still_brings_back_the_users_own_layout(scene, a_manager):
    models = {name: a_model(scene, name) for name in ("original", "defaced", "refaced")}
    comparison = Comparison()
    comparison.show_models(models)
    comparison.show_models(dict(list(models.items())[:2]))
    comparison.restore()
    assert a_manager.layout == 3


def test_a_model_that_was_deleted_meanwhile_does_no_harm(scene, a_manager):
    models = {name: a_model(scene, name) for name in ("original", "defaced")}
    comparison = Comparison()
    comparison.show_models(models)
    scene.RemoveNode(models["defaced"])
    comparison.restore()


def test_nothing_is_shown_and_nothing_fails_without_a_window(scene, monkeypatch):
    monkeypatch.setattr(slicer, "app", SimpleNamespace(layoutManager=lambda: None), raising=False)
    comparison = Comparison()
    comparison.show_models({name: a_model(scene, name) for name in ("original", "defaced")})
    assert not comparison.shown
    comparison.restore()
