"""A real MRML scene without the application: these tests run where slicer-core is installed."""

from __future__ import annotations

import pytest


@pytest.fixture
def scene():
    import slicer

    slicer.mrmlScene = slicer.vtkMRMLScene()
    yield slicer.mrmlScene
    slicer.mrmlScene.Clear(True)
    del slicer.mrmlScene
