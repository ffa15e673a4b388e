"""Linkage: a face is found among the originals of its own cohort, and what the rates say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from RefaceRiskLib.registration import Registration
from RefaceRiskLib.study import linkage
from RefaceRiskLib.study.faces import Faces, on_another_grid, rigid_pose, spread
from RefaceRiskLib.study.linkage import Gallery
from RefaceRiskLib.surface.extract import extract_skin
from RefaceRiskLib.template import load_template

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
SHAPE = (50, 50, 50)
MIDDLE = np.full(3, 73.5)


def radius(directions, number, rough=0.0):
    """A family of bumpy balls, one a number."""
    rng = np.random.default_rng(number)
    waves = rng.normal(size=(8, 3)) * 2.5
    phases = rng.uniform(0, 6, 8)
    return 55 + 1.2 * np.sin(directions @ waves.T + phases).sum(-1) + rough * np.sin(12 * directions[..., 0])


def gallery(number) -> Gallery:
    offset = np.stack(np.meshgrid(*[np.arange(n) * 3.0 for n in SHAPE], indexing="ij"), axis=-1) - MIDDLE
    distance = np.linalg.norm(offset, axis=-1)
    field = distance - radius(offset / np.maximum(distance, 1e-6)[..., None], number)
    return Gallery(np.clip(field, -20, 20).astype(np.float32), AFFINE)


def probe(number, count=400, rough=0.0, turn=(0, 0, 0), shift=(0, 0, 0)):
    rng = np.random.default_rng(99)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    points = directions * radius(directions, number, rough)[:, None]
    return Rotation.from_rotvec(turn).apply(points) + MIDDLE + np.array(shift)


def test_a_moved_face_is_aligned_to_its_own():
    probes = np.stack([probe(1), probe(1, turn=(0.1, -0.08, 0.05), shift=(4, -5, 3))])
    found = linkage.scores(probes, gallery(1))
    assert found[1] < 1.15 * found[0] + 0.05
    unmoved = np.abs(linkage._sampled(gallery(1).field, probes[1:], AFFINE)).mean()
    assert unmoved > 4 * found[1]


def test_every_face_is_found_and_ranked_first():
    galleries = [gallery(n) for n in range(8)]
    probes = np.stack([probe(n, rough=0.5, turn=(0.05, 0, 0.05), shift=(2, 1, -2)) for n in range(8)])
    distances = linkage.score_matrix(probes, galleries)
    assert (linkage.ranks(distances, np.arange(8)) == 1).all()
    assert linkage.equal_error_rate(distances, np.arange(8))[0] == 0.0


def test_the_shortlist_finds_what_all_pairs_find():
    galleries = [gallery(n) for n in range(12)]
    probes = np.stack([probe(n, rough=1.0, shift=(1, 0, -1)) for n in range(12)])
    whole = linkage.score_matrix(probes, galleries)
    pruned = linkage.score_matrix(probes, galleries, shortlist=4)
    rank_whole, rank_pruned = (linkage.ranks(d, np.arange(12)) for d in (whole, pruned))
    assert (rank_whole == rank_pruned).all()
    refined = np.argsort(pruned, axis=1)[:, :3]  # the list's last has company: what was not refined
    np.testing.assert_allclose(np.take_along_axis(pruned, refined, 1), np.take_along_axis(whole, refined, 1))


def test_batches_do_not_change_a_score(monkeypatch):
    probes = np.stack([probe(n, shift=(1, 2, 0)) for n in range(5)])
    together = linkage.scores(probes, gallery(2))
    monkeypatch.setattr(linkage, "BATCH", 2)
    np.testing.assert_allclose(linkage.scores(probes, gallery(2)), together, rtol=1e-6)


def test_a_probe_without_skin_has_no_rank():
    probes = np.stack([probe(0), np.full((400, 3), np.nan)])
    distances = linkage.score_matrix(probes, [gallery(0), gallery(1)])
    assert list(linkage.ranks(distances, np.array([0, 1]))) == [1, 0]


def test_ties_count_against_the_linker():
    assert list(linkage.ranks(np.ones((3, 5)), np.arange(3))) == [5, 5, 5]
    assert list(linkage.match_curve(np.array([1, 3, 0]), 3)) == [0.5, 0.5, 1.0]


def test_the_equal_error_rate_of_known_distributions():
    """Own distances N(0, 1), strangers N(2, 1): the rates are equal at 1, where both are 15.9 %."""
    rng = np.random.default_rng(0)
    count = 400
    distances = rng.normal(2, 1, (count, count))
    distances[np.arange(count), np.arange(count)] = rng.normal(0, 1, count)
    rate, low, high = linkage.equal_error_rate(distances, np.arange(count))
    assert rate == pytest.approx(0.159, abs=0.025) and low < rate < high and high - low < 0.1


def test_chance_is_what_chance_gives():
    rng = np.random.default_rng(1)
    distances = rng.normal(size=(300, 300))
    rate, low, high = linkage.equal_error_rate(distances, np.arange(300))
    assert low < 0.5 < high and rate == pytest.approx(0.5, abs=0.06)
    assert (linkage.ranks(distances, np.arange(300)) == 1).mean() < 0.03


def test_a_pose_is_rigid_and_undoes_the_turn():
    template = load_template()
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (12, -6, 9), degrees=True).as_matrix() @ np.diag([1.05, 0.95, 1.1])
    matrix[:3, 3] = (10, -20, 5)
    pose = rigid_pose(matrix, template)
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
    there = pose @ matrix
    assert np.abs(there[:3, :3] - np.eye(3)).max() < 0.15
    middle = np.mean([template.landmarks[n] for n in ("nasion", "chin", "ear_left", "ear_right")], axis=0)
    np.testing.assert_allclose((there @ [*middle, 1])[:3], middle, atol=1e-9)


def test_points_are_spread_evenly_and_the_same_each_time(tiny_head):
    skin = extract_skin(tiny_head)
    everywhere = np.ones(len(skin.points), bool)
    first, second = spread(skin, everywhere, 2000), spread(skin, everywhere, 2000)
    np.testing.assert_array_equal(first, second)
    upper = skin.points[:, 2] > 0
    share = skin.vertex_areas[upper].sum() / skin.areas.sum()
    assert (first[:, 2] > 0).mean() == pytest.approx(share, abs=0.03)


def test_an_original_meshed_anew_lies_on_its_own_field(tiny_head, tmp_path):
    """The whole way of a gallery's face to disk and back, on a head that registration would not know."""
    template = load_template()

    class Prepared:
        volume, registration = tiny_head, Registration(np.eye(4))

    Prepared.template = template
    faces = Faces(Prepared)
    field, again = faces.save_original(tmp_path)
    from RefaceRiskLib.study.faces import field_grid

    probes = np.load(again)
    assert probes.shape == (2, 1000, 3) and np.isnan(probes[1]).all()
    own = linkage.scores(probes[:1], Gallery.load(field, field_grid(template)[1]))
    assert own[0] < 0.4  # of voxels of 3 mm
    remeshed, skin = extract_skin(on_another_grid(tiny_head), faces.level), faces.skin
    from scipy.spatial import cKDTree

    assert (cKDTree(skin.points).query(remeshed.points)[0] < 1e-6).mean() < 0.01
