"""The mask follows the handles of a real scene, quickly, and never into the brain."""

from __future__ import annotations

import time

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")

from RefaceRiskLib.bridge.live_cut import REMOVED, REMOVED_RGB, LiveCut  # noqa: E402
from RefaceRiskLib.bridge.nodes import node_from_volume  # noqa: E402
from RefaceRiskLib.volumes import Volume  # noqa: E402

PLANE = {"origin": [0.0, 30.0, -20.0], "normal": [0.0, 0.9, -0.43]}


def a_cut(size: int, tmp_path, margin_mm: float = 5.0) -> tuple[LiveCut, np.ndarray]:
    """A head of size cubed voxels over 240 mm, its brain a ball of 60 mm above the middle."""
    spacing = 240 / size
    affine = np.diag([-spacing, spacing, spacing, 1.0])  # stored right to left
    affine[:3, 3] = [120, -120, -120]
    axes = [affine[k, k] * np.arange(size, dtype=np.float32) + affine[k, 3] for k in range(3)]
    x, y, z = axes[0][:, None, None], axes[1][:, None], axes[2]
    distance = np.sqrt(x**2 + y**2 + (z - 20) ** 2) - 60
    angles = np.random.default_rng(0).normal(size=(40000, 3))
    points = 100 * angles / np.linalg.norm(angles, axis=1, keepdims=True)
    np.savez(tmp_path / "skin.npz", points=points, triangles=np.arange(39999).reshape(-1, 3))
    head = node_from_volume(Volume(np.zeros((size,) * 3, np.int16), affine), "head")
    return LiveCut(head, Volume(distance, affine), PLANE, tmp_path / "skin.npz", margin_mm), distance


def test_the_first_cut_is_made_where_the_plane_lies(scene, tmp_path):
    cut, distance = a_cut(48, tmp_path)
    shown = slicer.util.arrayFromVolume(cut.mask).transpose(2, 1, 0)
    assert 0 < cut.removed_voxels == shown.sum()
    assert not shown[distance <= 5].any()
    red = cut.skin.GetPolyData().GetPointData().GetArray(REMOVED).GetRange()
    assert red == (0, 1)


def test_what_goes_is_red_in_the_slices_too_and_the_rest_is_clear(scene, tmp_path):
    cut, _ = a_cut(32, tmp_path)
    table = cut.mask.GetDisplayNode().GetColorNode().GetLookupTable()
    np.testing.assert_allclose(table.GetTableValue(1), (*REMOVED_RGB, 1.0), atol=0.01)
    assert table.GetTableValue(0)[3] == 0


def test_a_stroke_that_changes_nothing_is_none_to_take_back(scene, tmp_path):
    cut, distance = a_cut(32, tmp_path)
    cut.draw(distance < 0)  # the brain cannot go
    assert not cut.undo()


def test_the_mask_follows_the_plane_and_the_box(scene, tmp_path):
    cut, _ = a_cut(48, tmp_path)
    before = cut.removed_voxels
    cut.plane.SetOriginWorld([0, 60, -40])
    fewer = cut.removed_voxels
    assert 0 < fewer < before
    cut.box.SetSize([20, 400, 400])
    assert 0 < cut.removed_voxels < fewer


def test_a_move_and_a_stroke_are_taken_back(scene, tmp_path):
    cut, distance = a_cut(48, tmp_path)
    before = cut.cutter.mask.copy()
    cut.plane.InvokeEvent(slicer.vtkMRMLMarkupsNode.PointStartInteractionEvent)
    cut.plane.SetOriginWorld([0, 60, -40])
    moved = cut.cutter.mask.copy()
    cut.draw(np.ones(distance.shape, bool))
    assert cut.undo()
    np.testing.assert_array_equal(cut.cutter.mask, moved)
    assert cut.undo()
    np.testing.assert_array_equal(cut.cutter.mask, before)
    assert not cut.undo()


def test_what_was_added_is_gone_from_the_scene_after_closing(scene, tmp_path):
    before = scene.GetNumberOfNodesByClass("vtkMRMLModelNode"), scene.GetNumberOfNodesByClass("vtkMRMLMarkupsNode")
    cut, _ = a_cut(32, tmp_path)
    cut.close(keep_mask=True)
    after = scene.GetNumberOfNodesByClass("vtkMRMLModelNode"), scene.GetNumberOfNodesByClass("vtkMRMLMarkupsNode")
    assert after == before and cut.mask.GetScene() is scene
    cut.close()
    assert cut.mask.GetScene() is None


def test_200_moves_at_256_cubed_touch_no_brain_and_keep_up_with_the_mouse(scene, tmp_path, capsys):
    cut, distance = a_cut(256, tmp_path)
    rng = np.random.default_rng(1)
    origin, normal = np.array(PLANE["origin"]), np.array(PLANE["normal"])
    forbidden = np.asfortranarray(distance <= 5)
    touched, spent = 0, 0.0
    for move in range(200):
        origin = np.clip(origin + rng.normal(0, 8, 3), -60, 60)
        normal = normal + rng.normal(0, 0.2, 3)
        began = time.process_time()
        if move % 3 == 2:
            cut.box.SetSize(rng.uniform(60, 240, 3).tolist())
        else:
            cut.plane.SetOriginWorld(origin)
            cut.plane.SetNormalWorld(normal / np.linalg.norm(normal))
        spent += time.process_time() - began
        touched += int(np.count_nonzero(cut.cutter.mask & forbidden))
    with capsys.disabled():
        print(f"\nlive cut, 256 cubed: {200 / spent:.0f} moves a second of processor time, brain voxels {touched}")
    assert touched == 0
    assert 200 / spent >= 10
