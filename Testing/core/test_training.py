"""Training: examples are consistent, every stage trains, stops, resumes, and writes a model that loads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from RefaceRiskLib.diffusion import following, training
from RefaceRiskLib.diffusion.cascade import Refacer
from RefaceRiskLib.diffusion.dataset import MaskDrawer, PreparedHead, holes, prepare, warped
from RefaceRiskLib.diffusion.denoisers import load_stage
from RefaceRiskLib.diffusion.linear import LIMIT_MM, load_linear
from RefaceRiskLib.diffusion.stages import STAGES, CoarseStage, FaceStage
from RefaceRiskLib.diffusion.training import ExampleMaker, train
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.progress import Cancelled
from RefaceRiskLib.template import load_template


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """A folder of four synthetic heads: the average head, randomly bent."""
    folder = tmp_path_factory.mktemp("heads")
    template = load_template()
    average = PreparedHead(
        "average",
        template.image,
        np.clip(template.skin_distance, -LIMIT_MM, LIMIT_MM),
        np.ones(template.shape, bool),
    )
    for number in range(4):
        rng = np.random.default_rng(number)
        image, distance, _ = warped(average, template.shape, (0, 0, 0), 2.0, rng, 6.0)
        PreparedHead(f"synthetic-{number}", image, distance, np.ones(template.shape, bool)).save(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def hasty():
    """Few iterations and probes: what is tested here does not depend on how well the average follows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "ITERATIONS", 3)
        patch.setattr(training, "PROBES", 1)
        yield


@pytest.fixture(scope="module")
def loaded(heads):
    return [PreparedHead.load(path) for path in sorted(heads.glob("*.npz"))]


def test_removed_regions_never_touch_the_brain_and_differ():
    drawer = MaskDrawer(load_template())
    masks = [drawer.draw(np.random.default_rng(seed)) for seed in range(12)]
    inside = drawer.brain_distance < 0
    assert not any((mask & inside).any() for mask in masks)
    assert all(mask.any() for mask in masks)
    assert len({int(mask.sum()) for mask in masks}) > 8


@pytest.mark.parametrize("name", ["coarse", "face"])
def test_base_plus_target_is_the_truth(heads, loaded, name):
    stage = STAGES[name](spread=(10.0,) * 16)  # wide, so that no target is clipped
    maker = ExampleMaker(name, stage, loaded, holes(loaded, heads / "holes"))
    example = maker.make(np.random.default_rng(0))
    network = stage.network
    assert example.target.shape[1] == network.image_channels
    assert example.condition.shape[1] == network.condition_channels
    assert all(size % 8 == 0 for size in example.target.shape[2:])
    rebuilt = stage.result(example, example.target)
    change = (rebuilt - example.base).abs()
    assert change[example.known].max() < 1e-4
    assert change.max() > 0.1
    assert torch.isfinite(example.condition).all()


def test_holes_are_made_once_and_come_back_the_same(loaded, heads, tmp_path):
    made = holes(loaded[:1], tmp_path, count=2)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "follow", None)  # would fail if anything were bent again
        kept = holes(loaded[:1], tmp_path, count=2)[0]
    assert len(made) == len(kept) == 2
    for one, other in zip(made, kept, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        np.testing.assert_array_equal(one.base, other.base)


@pytest.mark.parametrize("stage", [CoarseStage(), FaceStage()])
def test_a_residual_of_zero_changes_nothing(stage):
    shape = (8, 8, 8)
    rng = np.random.default_rng(0)
    array, mask = rng.standard_normal(shape).astype(np.float32), rng.random(shape) < 0.5
    example = stage.example(array, array, array * ~mask, mask, ~mask)
    zero = torch.zeros(1, 16, 4, 4, 4)
    torch.testing.assert_close(stage.result(example, zero), example.base)


def test_the_linear_model_trains_and_loads(heads, tmp_path):
    folder = train("linear", heads, tmp_path)
    model, _ = load_linear(folder)
    assert 1 <= len(model.modes) <= 8


@pytest.mark.parametrize("name", ["coarse", "face"])
def test_a_stage_trains_resumes_and_loads(heads, tmp_path, name):
    folder = train(name, heads, tmp_path, steps=1)
    first, digest = load_stage(folder, name)
    seen = []
    train(name, heads, tmp_path, resume=True, steps=2, on_progress=seen.append)
    steps = [p.step for p in seen if p.stage == f"train {name}"]
    assert steps == [2]
    second, other = load_stage(folder, name)
    assert digest != other
    assert first.stage == second.stage


def test_a_trained_folder_is_a_model(heads, tmp_path):
    for stage in ("linear", "coarse", "face"):
        train(stage, heads, tmp_path, steps=1)
    model = Refacer.load(tmp_path)
    assert set(model.stages) == {"coarse", "face"}
    assert all(len(digest) == 64 for digest in model.weights.values())


def test_training_can_be_cancelled(heads, tmp_path):
    def stop(progress):
        if progress.stage.startswith("train"):
            raise Cancelled

    with pytest.raises(Cancelled):
        train("face", heads, tmp_path, steps=50, on_progress=stop)


def test_an_unknown_stage_is_refused(heads, tmp_path):
    with pytest.raises(RefaceRiskError, match="unknown stage"):
        train("nose", heads, tmp_path)


def test_a_folder_without_heads_is_refused(tmp_path):
    with pytest.raises(RefaceRiskError, match="no whole heads"):
        prepare(tmp_path, tmp_path / "out")
