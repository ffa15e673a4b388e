"""Faces side by side in linked 3-D views, and the user's own layout again afterwards."""

from __future__ import annotations

from collections.abc import Mapping

import slicer

LAYOUTS = {2: 8102, 3: 8103, 4: 8104}  # number of views -> layout id; Slicer's own are below 600
FROM_THE_FRONT = 3  # the view axes are -X, +X, -Y, +Y, -Z, +Z


class Comparison:
    """Up to four groups of models, each in a 3-D view of its own, seen by the same camera.

    ``restore`` brings back the layout that the user had and shows every model in every view again. Without a layout
    manager (`--no-main-window`) nothing is shown, and nothing fails.
    """

    def __init__(self) -> None:
        self._before: int | None = None
        self._shown: list = []

    @property
    def shown(self) -> bool:
        return self._before is not None

    def show(self, groups: Mapping[str, object]) -> None:
        """``groups``: label of a view -> model node. More than four are cut to the first four."""
        manager = slicer.app.layoutManager()
        groups = {label: node for label, node in list(groups.items())[:4] if node is not None}
        if manager is None or len(groups) < 2:
            return
        self._release()
        layout = LAYOUTS[len(groups)]
        node = manager.layoutLogic().GetLayoutNode()
        if not node.IsLayoutDescription(layout):
            node.AddLayoutDescription(layout, _description(len(groups)))
        if self._before is None:
            self._before = manager.layout
        manager.setLayout(layout)
        for number, (label, model) in enumerate(groups.items(), start=1):
            view = slicer.mrmlScene.GetSingletonNode(_tag(number), "vtkMRMLViewNode")
            if view is None:
                continue
            view.SetLayoutLabel(label)
            view.SetBoxVisible(False)
            view.SetAxisLabelsVisible(False)
            model.GetDisplayNode().SetViewNodeIDs([view.GetID()])
            model.SetDisplayVisibility(True)
            self._shown.append(model)
        self._look_from_the_front(manager, len(groups))

    def restore(self) -> None:
        self._release()
        manager = slicer.app.layoutManager()
        if self._before is not None and manager is not None:
            manager.setLayout(self._before)
        self._before = None

    def _release(self) -> None:
        for model in self._shown:
            if model.GetScene() is not None and model.GetDisplayNode() is not None:
                model.GetDisplayNode().RemoveAllViewNodeIDs()
        self._shown = []

    def _look_from_the_front(self, manager, count: int) -> None:
        """All views alike, and linked from now on: turning one turns all."""
        tags = [_tag(number) for number in range(1, count + 1)]
        for index in range(manager.threeDViewCount):
            widget = manager.threeDWidget(index)
            view = widget.mrmlViewNode()
            if view is None or view.GetSingletonTag() not in tags:
                continue
            widget.threeDView().rotateToViewAxis(FROM_THE_FRONT)
            widget.threeDView().resetFocalPoint()
            widget.threeDView().resetCamera()
        for tag in tags:
            view = slicer.mrmlScene.GetSingletonNode(tag, "vtkMRMLViewNode")
            if view is not None:
                view.SetLinkedControl(True)


def _tag(number: int) -> str:
    return f"RefaceRisk{number}"


def _description(count: int) -> str:
    """A row of two or three views, or two rows of two."""

    def row(numbers) -> str:
        views = "".join(
            f'<item><view class="vtkMRMLViewNode" singletontag="{_tag(n)}">'
            f'<property name="viewlabel" action="default">{n}</property></view></item>'
            for n in numbers
        )
        return f'<layout type="horizontal">{views}</layout>'

    if count < 4:
        return row(range(1, count + 1))
    return f'<layout type="vertical"><item>{row((1, 2))}</item><item>{row((3, 4))}</item></layout>'
