"""Results side by side in linked views, and the user's own layout again afterwards."""

from __future__ import annotations

from collections.abc import Mapping

import slicer

FIRST_LAYOUT = 8100  # ids of our layouts lie above Slicer's own, which are below 600
MOST = 8
FROM_THE_FRONT = 3  # the view axes are -X, +X, -Y, +Y, -Z, +Z


class Comparison:
    """Up to eight models in 3-D views seen by one camera, or volumes in linked sagittal slices.

    ``restore`` brings back the layout that the user had and shows every model in every view again. Without a layout
    manager (`--no-main-window`) nothing is shown, and nothing fails.
    """

    def __init__(self) -> None:
        self._before: int | None = None
        self._shown: list = []

    @property
    def shown(self) -> bool:
        return self._before is not None

    def show_models(self, models: Mapping[str, object]) -> None:
        """``models``: label of a view -> model node."""
        views = self._laid_out("vtkMRMLViewNode", models)
        for (view, label), model in zip(views, list(models.values())[:MOST], strict=False):
            view.SetLayoutLabel(label)
            view.SetBoxVisible(False)
            view.SetAxisLabelsVisible(False)
            model.GetDisplayNode().SetViewNodeIDs([view.GetID()])
            model.SetDisplayVisibility(True)
            self._shown.append(model)
        if views:
            self._look_from_the_front([view for view, _ in views])

    def show_volumes(self, volumes: Mapping[str, object]) -> None:
        """``volumes``: label of a view -> volume node, all of one head."""
        views = self._laid_out("vtkMRMLSliceNode", volumes)
        manager = slicer.app.layoutManager()
        for (view, label), volume in zip(views, list(volumes.values())[:MOST], strict=False):
            view.SetLayoutLabel(label)
            widget = manager.sliceWidget(view.GetName())
            if widget is None:
                continue
            composite = widget.mrmlSliceCompositeNode()
            composite.SetLinkedControl(False)
            composite.SetBackgroundVolumeID(volume.GetID())
            composite.SetForegroundVolumeID(None)
            composite.SetLabelVolumeID(None)
            widget.sliceLogic().FitSliceToAll()
            composite.SetLinkedControl(True)

    def restore(self) -> None:
        self._release()
        manager = slicer.app.layoutManager()
        if self._before is not None and manager is not None:
            manager.setLayout(self._before)
        self._before = None

    def _laid_out(self, kind: str, shown: Mapping[str, object]) -> list[tuple]:
        """(view node, label) of each view; empty where there is nothing to compare or no window."""
        manager = slicer.app.layoutManager()
        count = min(len(shown), MOST)
        if manager is None or count < 2:
            return []
        self._release()
        layout = FIRST_LAYOUT + count + (MOST if kind == "vtkMRMLSliceNode" else 0)
        node = manager.layoutLogic().GetLayoutNode()
        if not node.IsLayoutDescription(layout):
            node.AddLayoutDescription(layout, layout_description(kind, count))
        if self._before is None:
            self._before = manager.layout
        manager.setLayout(layout)
        views = [slicer.mrmlScene.GetSingletonNode(_tag(kind, n), kind) for n in range(1, count + 1)]
        return [(view, label) for view, label in zip(views, shown, strict=False) if view is not None]

    def _release(self) -> None:
        for model in self._shown:
            if model.GetScene() is not None and model.GetDisplayNode() is not None:
                model.GetDisplayNode().RemoveAllViewNodeIDs()
        self._shown = []

    def _look_from_the_front(self, views: list) -> None:
        """All views alike, and linked from now on: turning one turns all."""
        manager = slicer.app.layoutManager()
        ours = {view.GetID() for view in views}
        for view in views:
            view.SetLinkedControl(False)
        for index in range(manager.threeDViewCount):
            widget = manager.threeDWidget(index)
            if widget.mrmlViewNode() is None or widget.mrmlViewNode().GetID() not in ours:
                continue
            widget.threeDView().rotateToViewAxis(FROM_THE_FRONT)
            widget.threeDView().resetFocalPoint()
            widget.threeDView().resetCamera()
        for view in views:
            view.SetLinkedControl(True)


def _tag(kind: str, number: int) -> str:
    return f"RefaceRisk{'Slice' if kind == 'vtkMRMLSliceNode' else 'View'}{number}"


def layout_description(kind: str, count: int) -> str:
    """XML of a layout of ``count`` views: one row up to three, else two."""

    def row(numbers) -> str:
        sagittal = '<property name="orientation" action="default">Sagittal</property>'
        orientation = sagittal if kind == "vtkMRMLSliceNode" else ""
        views = "".join(
            f'<item><view class="{kind}" singletontag="{_tag(kind, n)}">{orientation}'
            f'<property name="viewlabel" action="default">{n}</property></view></item>'
            for n in numbers
        )
        return f'<layout type="horizontal">{views}</layout>'

    if count < 4:
        return row(range(1, count + 1))
    half = (count + 1) // 2
    rows = (range(1, half + 1), range(half + 1, count + 1))
    return '<layout type="vertical">' + "".join(f"<item>{row(numbers)}</item>" for numbers in rows) + "</layout>"
