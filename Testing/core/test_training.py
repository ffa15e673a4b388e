"""Training: examples are consistent, every stage trains, stops, resumes, and writes a model that loads."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from RefaceRiskLib.diffusion import following, training
from RefaceRiskLib.diffusion.cascade import Refacer
from RefaceRiskLib.diffusion.dataset import (
    DEFACERS,
    Hole,
    MaskDrawer,
    PreparedHead,
    holes,
    linear_of,
    load_fine,
    prepare,
    warped,
)
from RefaceRiskLib.diffusion.denoisers import load_stage
from RefaceRiskLib.diffusion.linear import LIMIT_MM, load_linear
from RefaceRiskLib.diffusion.space import COARSE_MM, FINE_MM, coarse_grid, face_grid, upsampled
from RefaceRiskLib.diffusion.stages import STAGES, CoarseStage, FineStage, MiddleStage
from RefaceRiskLib.diffusion.training import ExampleMaker, train
from RefaceRiskLib.diffusion.weights import load_weights
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.progress import Cancelled
from RefaceRiskLib.template import Grid, load_template


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
def fine_heads(heads):
    """The same heads as at 1 mm, in the face box: beside the others, as `prepare` leaves them."""
    template = load_template()
    grid, box = Grid(template.shape, template.affine), face_grid(template, FINE_MM)
    (heads / "fine").mkdir()
    for path in sorted(heads.glob("*.npz"))[:2]:
        head = PreparedHead.load(path)
        image, distance = (upsampled(array, grid, box, order=1) for array in (head.image, head.distance))
        PreparedHead(head.name, image, distance, np.ones(box.shape, bool)).save(heads / "fine")
    return heads


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


@pytest.mark.parametrize("name", ["coarse", "middle", "fine"])
def test_base_plus_target_is_the_truth(fine_heads, loaded, name):
    stage = STAGES[name](spread=(10.0,) * 16)  # wide, so that no target is clipped
    examples_of = load_fine(fine_heads) if name == "fine" else loaded
    maker = ExampleMaker(name, stage, examples_of, holes(loaded, fine_heads))
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


def test_holes_as_defacers_leave_them_come_first_in_the_space_of_the_defaced_head(loaded, tmp_path):
    (tmp_path / "defaced").mkdir()
    plain = [own[0] for own in holes(loaded, tmp_path, count=1)]
    for head, hole in zip(loaded, plain, strict=True):
        for method in DEFACERS:
            moved = replace(head.halved(), name=f"{head.name}_{method}", distance=hole.head.distance + 1)
            Hole(moved, hole.mask, hole.base).save(tmp_path / "defaced")
    left = holes(loaded, tmp_path, count=1)
    assert [len(own) for own in left] == [len(DEFACERS) + 1] * len(loaded)
    for own, hole in zip(left, plain, strict=True):
        assert own[0].head.name.endswith("_mri_deface")
        seen = own[0].head.inside & (np.abs(hole.head.distance) < 10)
        np.testing.assert_allclose(own[0].head.distance[seen], hole.head.distance[seen] + 1, atol=0.02)
        np.testing.assert_array_equal(own[0].mask, hole.mask)
    # The linear model learns from the first: the same shift in each head is its mean.
    gain = linear_of(left).mean - linear_of([[hole] for hole in plain]).mean
    assert np.median(gain[np.abs(left[0][0].base) < 3]) == pytest.approx(1, abs=0.1)


def test_how_the_average_was_bent_is_kept_mirrored_and_moved_along(loaded, tmp_path):
    grid = coarse_grid(load_template())
    bend = np.zeros((3, *grid.shape), np.float32)
    bend[0, : grid.shape[0] // 2], bend[2] = 2.0, 1.0
    head = replace(loaded[0].halved(), bend=bend)
    Hole(head, head.distance < 0, head.distance).save(tmp_path)
    kept = Hole.load(tmp_path / f"{head.name}.npz").head
    np.testing.assert_array_equal(kept.bend, bend)
    other = kept.mirrored().bend
    assert (other[0, -1] == -2).all() and (other[0, 0] == 0).all() and (other[2] == 1).all()
    for seed in range(4):  # mirrored or not: what is to the right goes to the right, or left to the left
        *_, moved = warped(head, grid.shape, (0, 0, 0), COARSE_MM, np.random.default_rng(seed), others=(bend,))
        assert moved[0, 1].mean() > 1.5 or moved[0, -2].mean() < -1.5
        np.testing.assert_allclose(moved[2], 1)


@pytest.mark.parametrize(("share", "gain"), [(2.0, 0.5), (0.5, 1.0), (-1.0, 0.0)])
def test_a_network_is_believed_as_far_as_it_is_right_on_heads_it_was_not_shown(loaded, tmp_path, share, gain):
    """``share`` : what a made-up network takes for the residual, as a multiple of the true one."""
    left = holes(loaded[:2], tmp_path, count=1)
    maker = ExampleMaker("coarse", CoarseStage(spread=(10.0,) * 16), loaded[:2], left)
    maker.unshown = [0, 1]
    truths = [maker.seen_through(own[0], linear).target for own, linear in zip(left, maker.linear, strict=True)]

    class Known(torch.nn.Linear):
        def forward(self, x, condition, log_snr):
            self.calls = getattr(self, "calls", 0) + 1
            return share * truths[(self.calls - 1) // training.GAIN_CALLS]

    assert training.measured_gain(maker, Known(1, 1), -8.0) == pytest.approx(gain, abs=0.02)


def test_a_gain_moves_the_mean_of_distances_and_nothing_else():
    stage = CoarseStage(gain=0.25)
    generator = torch.Generator().manual_seed(0)
    mean, noise = torch.randn(2, 1, 16, 4, 4, 4, generator=generator)
    believed = stage.believed(mean + noise, mean)
    torch.testing.assert_close(believed[:, :8], 0.25 * mean[:, :8] + noise[:, :8])
    torch.testing.assert_close(believed[:, 8:], mean[:, 8:] + noise[:, 8:])
    assert CoarseStage.from_dict(json.loads(json.dumps(stage.to_dict()))) == stage


def test_one_head_in_six_is_not_shown_to_a_network_if_there_are_enough():
    assert training.unshown(11) == []
    assert training.unshown(14) == [0, 6, 12]


@pytest.mark.parametrize("stage", [CoarseStage(), MiddleStage(), FineStage()])
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


@pytest.mark.parametrize("name", ["coarse", "middle", "fine"])
def test_a_stage_trains_resumes_and_loads(fine_heads, tmp_path, name):
    heads = fine_heads
    folder = train(name, heads, tmp_path, steps=1)
    first, digest = load_stage(folder, name)
    seen = []
    train(name, heads, tmp_path, resume=True, steps=2, on_progress=seen.append)
    steps = [p.step for p in seen if p.stage == f"train {name}"]
    assert steps == [2]
    second, other = load_stage(folder, name)
    assert digest != other
    assert first.stage == second.stage
    assert [line.split("\t")[0] for line in (folder / "losses.tsv").read_text().splitlines()] == ["step", "1", "2"]


# Run as a program: a training of the fine stage; HEADS OUT STEPS BATCH [crawling].
PROGRAM = """
import sys, time
from pathlib import Path
from RefaceRiskLib.diffusion import training
from RefaceRiskLib.diffusion.training import train

def dawdle(progress):  # long enough to be killed between any two steps
    print(progress.step, flush=True)
    time.sleep(0.3 if "crawling" in sys.argv else 0)

if __name__ == "__main__":
    training.PROBES, training.PATCH, training.SAVE_EVERY_S = 1, 32, 0.0
    heads, out, steps, batch = sys.argv[1:5]
    train("fine", Path(heads), Path(out), True, int(steps), int(batch), on_progress=dawdle)
"""


STEPS = 4


@pytest.fixture(scope="module")
def program(fine_heads, tmp_path_factory):
    """The program's command line up to the heads, and the folder of an unbroken run of two examples a step."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "program.py").write_text(PROGRAM)
    start = [str(folder / "program.py"), str(fine_heads)]
    done = [sys.executable, *start, str(folder / "unbroken"), str(STEPS), "2"]
    subprocess.run(done, check=True, env=one_thread(), stdout=subprocess.DEVNULL)
    return start, folder / "unbroken"


def one_thread() -> dict[str, str]:
    """The environment of a child that trains on one thread and finds what this process finds."""
    local = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)} | local


def losses(folder) -> list[float]:
    return [float(line.split("\t")[1]) for line in (folder / "fine" / "losses.tsv").read_text().splitlines()[1:]]


def test_a_training_that_is_killed_ends_with_the_weights_of_one_that_is_not(program, tmp_path):
    start, unbroken = program
    command = [sys.executable, *start, str(tmp_path), str(STEPS), "2"]
    child = subprocess.Popen([*command, "crawling"], env=one_thread(), stdout=subprocess.PIPE)
    while child.stdout.readline().strip() != b"2":
        assert child.poll() is None
    time.sleep(random.random() * 0.3)
    child.kill()
    child.wait()
    assert 1 <= load_weights(tmp_path / "fine").config["steps"] < STEPS
    subprocess.run(command, check=True, env=one_thread(), stdout=subprocess.DEVNULL)
    one, other = (load_weights(folder / "fine").state_dict for folder in (unbroken, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert losses(unbroken) == losses(tmp_path)


def test_two_processes_under_torchrun_see_what_one_sees(program, tmp_path):
    start, alone = program
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, *start, str(tmp_path), str(STEPS), "1"], check=True, env=one_thread())
    assert len(losses(tmp_path)) == STEPS
    np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=0.02)  # half precision on some processors
    one, other = (load_weights(folder / "fine").state_dict for folder in (alone, tmp_path))
    largest = max(float(tensor.abs().max()) for tensor in one.values())
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 0.01 * largest


def test_a_trained_folder_is_a_model(heads, tmp_path):
    for stage in ("linear", "coarse", "middle"):
        train(stage, heads, tmp_path, steps=1)
    model = Refacer.load(tmp_path)
    assert set(model.stages) == {"coarse", "middle"}
    assert all(len(digest) == 64 for digest in model.weights.values())


def test_training_can_be_cancelled(heads, tmp_path):
    def stop(progress):
        if progress.stage.startswith("train"):
            raise Cancelled

    with pytest.raises(Cancelled):
        train("middle", heads, tmp_path, steps=50, on_progress=stop)


def test_an_unknown_stage_is_refused(heads, tmp_path):
    with pytest.raises(RefaceRiskError, match="unknown stage"):
        train("nose", heads, tmp_path)


def test_a_folder_without_heads_is_refused(tmp_path):
    with pytest.raises(RefaceRiskError, match="no whole heads"):
        prepare(tmp_path, tmp_path / "out")
