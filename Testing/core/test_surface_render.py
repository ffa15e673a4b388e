"""Pictures of faces, drawn off-screen."""

from __future__ import annotations

import numpy as np
import pytest
import vtk
from surface_phantoms import oblique
from vtk.util.numpy_support import vtk_to_numpy

from RefaceRiskLib.surface.extract import Surface, extract_skin
from RefaceRiskLib.surface.render import FaceRow, HeatRow, faces_figure, render_views, viridis


@pytest.fixture(scope="module")
def skin(tiny_head) -> Surface:
    return extract_skin(tiny_head)


def read(path) -> np.ndarray:
    reader = vtk.vtkPNGReader()
    reader.SetFileName(str(path))
    reader.Update()
    width, height, _ = reader.GetOutput().GetDimensions()
    return vtk_to_numpy(reader.GetOutput().GetPointData().GetScalars()).reshape(height, width, -1)[::-1].astype(int)


def lit(picture) -> np.ndarray:
    return picture.max(axis=-1) > 20


def test_five_views_turn_from_the_left_profile_to_the_right(skin):
    pictures = render_views(skin, height=120)
    assert pictures.shape[:2] == (5, 120) and pictures.dtype == np.uint8
    middle = [np.flatnonzero(lit(p)[60:90].any(axis=0)) for p in pictures]
    above = [np.flatnonzero(lit(p)[25:35].any(axis=0)) for p in pictures]
    # The nose juts out to the left of the forehead in the left profile, to the right in the right profile.
    assert middle[0][0] < above[0][0] - 2 and middle[4][-1] > above[4][-1] + 2
    assert abs((middle[2][0] + middle[2][-1]) - (above[2][0] + above[2][-1])) <= 3


def test_the_frame_turns_a_tilted_head_straight(skin):
    tilt = oblique()
    straight, tilted = render_views(skin, [0], 120), render_views(skin.transformed(tilt), [0], 120, frame=tilt)
    assert np.abs(straight.astype(int) - tilted).mean() < 2
    assert np.abs(straight.astype(int) - render_views(skin.transformed(tilt), [0], 120)).mean() > 8


def test_scale_in_the_frame_does_not_change_a_head_s_size(skin):
    same = render_views(skin, [0], 120, frame=np.diag([0.8, 0.8, 0.8, 1.0]))
    assert np.array_equal(lit(same), lit(render_views(skin, [0], 120)))


def test_a_surface_without_distances_is_grey(skin):
    picture = render_views(skin, [0], 100)[0].astype(int)
    assert np.ptp(picture, axis=-1).max() < 12 and picture.max() > 150


def test_far_vertices_are_yellow_and_near_ones_violet(skin):
    distance = np.where(skin.points[:, 2] > 0, 5.0, 0.0)
    picture = render_views(skin, [0], 100, per_vertex=distance)[0].astype(int)
    upper, lower = (picture[rows][lit(picture[rows])].mean(axis=0) for rows in (slice(0, 40), slice(60, 85)))
    assert upper[0] > upper[2] + 60 and lower[2] > lower[1] + 20


def test_viridis_gets_lighter_all_the_way():
    luminance = viridis(np.linspace(0, 1, 64)) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
    assert viridis(np.array([0.0, 1.0, 7.0])).tolist()[1:] == [viridis(np.array(1.0)).tolist()] * 2


def test_the_figure_has_a_row_for_each_image_and_a_distance_at_its_right(skin, tmp_path):
    rows = [FaceRow("original", skin), FaceRow("defaced", skin, "2.45 mm")]
    path = faces_figure(rows, tmp_path / "faces.png", height=110)
    picture = lit(read(path))
    top = picture.shape[0] - 2 * 110 - round(14 / 3)
    right = slice(picture.shape[1] - round(205 / 3), None)
    first, second = picture[top : top + 110], picture[top + 110 : top + 220]
    assert not first[20:90, right].any() and second[20:90, right].any()
    assert [p.name for p in tmp_path.iterdir()] == ["faces.png"]


def test_a_synthetic_row_is_marked(skin, tmp_path):
    plain, marked = (
        read(faces_figure([FaceRow("average face", skin, "0.79 mm", synthetic)], tmp_path / "f.png", height=110))
        for synthetic in (False, True)
    )
    amber = (marked[..., 0] > 120) & (marked[..., 2] < 0.6 * marked[..., 0])
    assert amber[:, : round(200 / 3)].sum() > 20
    assert not ((plain[..., 0] > 120) & (plain[..., 2] < 0.6 * plain[..., 0])).any()


def test_coloured_rows_come_with_a_scale_and_stay_grey_outside_the_region(skin, tmp_path):
    front = skin.points[:, 1] > 0
    heat = [HeatRow("refaced", skin, np.full(len(front), 2.5), front)]
    picture = read(faces_figure([FaceRow("original", skin)], tmp_path / "f.png", heat, height=110))
    bar = picture[-110:, -round(190 / 3) : -round(182 / 3)]
    present = {tuple(colour) for colour in bar.reshape(-1, 3)}
    assert tuple(viridis(np.array(1.0)).tolist()) in present and tuple(viridis(np.array(0.0)).tolist()) in present
    profile = picture[-110:-30, round(200 / 3) : round(200 / 3) + 108]
    coloured = np.ptp(profile, axis=-1) > 30
    assert coloured[:, :50].sum() > 5 * coloured[:, 60:].sum()


def test_a_failed_figure_leaves_no_file_behind(skin, tmp_path):
    with pytest.raises(FileNotFoundError):
        faces_figure([FaceRow("original", skin)], tmp_path / "absent" / "f.png", height=60)
    assert list(tmp_path.iterdir()) == []
