"""The linear model: a conditional Gaussian, checked against the textbook formula."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from RefaceRiskLib.diffusion.linear import (
    LIMIT_MM,
    LinearFace,
    Seen,
    anchored,
    load_linear,
    reliable,
    reliable_when_defaced,
    save_linear,
)
from RefaceRiskLib.errors import RefaceRiskError

SHAPE = (6, 5, 4)


def random_maps(count: int, rank: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((rank, *SHAPE))
    return np.tensordot(rng.standard_normal((count, rank)), basis, axes=1)


def test_prediction_is_the_conditional_mean_of_the_gaussian():
    maps = random_maps(30)
    model = LinearFace.fit(maps, ridge=0.3)
    known = np.random.default_rng(1).random(SHAPE) < 0.6
    head = random_maps(1, seed=2)[0]
    head = np.where(known, head, 99.0)

    flat = maps.reshape(30, -1)
    covariance = np.cov(flat.T, bias=True)
    seen, hidden = known.ravel(), ~known.ravel()
    within = covariance[np.ix_(seen, seen)] + 0.3 * np.eye(seen.sum())
    mean = flat.mean(0)
    change = np.linalg.solve(within, head.ravel()[seen] - mean[seen])
    expected = mean[hidden] + covariance[np.ix_(hidden, seen)] @ change
    np.testing.assert_allclose(model.predict(Seen(head, known)).ravel()[hidden], expected, rtol=1e-3, atol=1e-3)


def test_a_head_of_the_family_is_completed_exactly_without_noise():
    model = LinearFace.fit(random_maps(30), ridge=1e-8)
    truth = random_maps(31)[30]
    known = np.zeros(SHAPE, bool)
    known[:3] = True
    # The mean of thirty heads is not zero, so the family is the mean plus the modes.
    z = np.array([0.5, -1.0, 0.7])
    truth = model.mean.copy()
    truth[model.shell] += z @ model.modes
    assert np.abs(model.predict(Seen(np.where(known, truth, 0), known)) - truth).max() < 1e-3


def test_tissue_helps_where_no_skin_is_known():
    rng = np.random.default_rng(0)
    shape = (12, 12, 12)
    traits = rng.standard_normal(40)
    pattern, texture = rng.standard_normal((2, *shape))
    maps = traits[:, None, None, None] * pattern
    images = 0.7 + 0.05 * traits[:, None, None, None] * texture
    model = LinearFace.fit(maps[1:], 1.0, images[1:], np.ones(shape, bool))
    nothing, everything = np.zeros(shape, bool), np.ones(shape, bool)
    blind = model.predict(Seen(maps[0], nothing))
    sighted = model.predict(Seen(maps[0], nothing, image=images[0], visible=everything))
    assert np.abs(sighted - maps[0]).mean() < 0.5 * np.abs(blind - maps[0]).mean()


def test_the_way_the_average_was_bent_helps_too():
    rng = np.random.default_rng(0)
    shape = (12, 12, 12)
    traits = rng.standard_normal(40)
    maps = traits[:, None, None, None] * rng.standard_normal(shape)
    bends = traits[:, None, None, None, None] * rng.standard_normal((3, *shape))
    images, everything = np.zeros((40, *shape)), np.ones(shape, bool)
    model = LinearFace.fit(maps[1:], 1.0, images[1:], everything, bends[1:])
    seen = Seen(maps[0], np.zeros(shape, bool), image=images[0], visible=everything)
    blind, sighted = model.predict(seen), model.predict(replace(seen, bend=bends[0]))
    assert np.abs(sighted - maps[0]).mean() < 0.1 * np.abs(blind - maps[0]).mean()
    hidden = replace(seen, visible=np.zeros(shape, bool), bend=bends[0])
    np.testing.assert_allclose(model.predict(hidden), blind, atol=1e-5)


def test_each_place_trusts_what_is_near_it():
    rng = np.random.default_rng(0)
    shape = (50, 4, 4)  # 200 mm long
    near, far, both = rng.standard_normal((3, *shape))
    near[10:], far[:40], both[10:40] = 0, 0, 0
    traits = rng.standard_normal((3, 30))
    maps = sum(t[:, None, None, None] * part for t, part in zip(traits, (0.3 * near, 0.3 * far, both), strict=True))
    known = np.ones(shape, bool)
    known[4:6] = False  # the hole is at the near end
    head = both.copy()
    head[40:] *= -1  # the far end tells another story
    told = {}
    for name, places in (("everywhere", []), ("near", [[5, 2, 2]])):
        model = LinearFace.fit(maps, 1.0, places=places)
        told[name] = np.abs(model.predict(Seen(head, known)) - both)[4:6].mean()
    assert told["near"] < 0.5 * told["everywhere"]


def test_air_that_the_cut_has_opened_is_not_taken_for_known():
    distance = np.full((30, 20, 20), -5.0)
    distance[:5] = 5.0
    distance[12:16, 8:12, 8:12] = 2.0
    removed = np.zeros(distance.shape, bool)
    removed[5:12] = True
    assert reliable(distance, removed, 1.0)[14, 10, 10]
    known = reliable_when_defaced(distance, removed, 1.0)
    assert not known[12:16, 8:12, 8:12].any()
    assert known[25, 10, 10]


def test_nothing_known_gives_the_mean():
    model = LinearFace.fit(random_maps(20), ridge=1.0)
    np.testing.assert_allclose(model.predict(Seen(np.zeros(SHAPE), np.zeros(SHAPE, bool))), model.mean, atol=1e-6)


def test_distances_are_reliable_only_where_their_ball_holds_no_removed_voxel():
    distance = np.full((21, 3, 3), 8.0)
    removed = np.zeros_like(distance, bool)
    removed[0] = True
    known = reliable(distance, removed, spacing=1.0)
    assert not known[:8].any()
    assert known[10:].all()
    assert reliable(np.full_like(distance, 99.0), removed, 1.0)[int(LIMIT_MM) + 2 :].all()


def test_anchoring_removes_the_step_and_keeps_the_far_end():
    truth = np.zeros((60, 4, 4), np.float32)
    predicted = truth + 2.0
    known = np.zeros_like(truth, bool)
    known[:30] = True
    bent = anchored(predicted, truth, known, spacing=2.0)
    assert np.abs(bent[:30]).max() == 0
    assert abs(bent[30, 2, 2]) < 0.7
    assert bent[59, 2, 2] > 1.8


def test_a_saved_model_comes_back_to_its_rounding(tmp_path):
    images, bends = np.random.default_rng(0).random((20, *SHAPE)), np.random.default_rng(1).random((20, 3, *SHAPE))
    model = LinearFace.fit(random_maps(20), 2.0, images, np.ones(SHAPE, bool), bends, places=[[1, 2, 3]])
    save_linear(model, tmp_path)
    loaded, digest = load_linear(tmp_path)
    assert len(digest) == 64
    assert loaded.ridge == 2.0
    for name in ("modes", "tissue_modes", "bend_modes"):
        saved = getattr(model, name)
        np.testing.assert_allclose(getattr(loaded, name), saved, atol=np.abs(saved).max() / 127)
    np.testing.assert_allclose(loaded.bend_mean, model.bend_mean, atol=1e-3)
    np.testing.assert_array_equal(loaded.places, model.places)


def test_a_changed_file_is_refused(tmp_path):
    save_linear(LinearFace.fit(random_maps(20), ridge=2.0), tmp_path)
    path = tmp_path / "modes.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RefaceRiskError, match="damaged"):
        load_linear(tmp_path)


def test_a_missing_model_is_one_clear_line(tmp_path):
    with pytest.raises(RefaceRiskError) as caught:
        load_linear(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)
    assert "nowhere" in str(caught.value)


def test_the_config_is_plain_json(tmp_path):
    save_linear(LinearFace.fit(random_maps(20), ridge=2.0), tmp_path, heads=20)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["heads"] == 20
