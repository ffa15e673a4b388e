"""Refacing a real head that no model has seen."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from RefaceRiskLib.defacing import deface, prepare
from RefaceRiskLib.diffusion import denoisers
from RefaceRiskLib.diffusion.cascade import Refaced, Refacer, _Task, estimate_removed
from RefaceRiskLib.diffusion.denoisers import sample_cascade
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.progress import Cancelled, Progress
from RefaceRiskLib.registration import register
from RefaceRiskLib.resources import model_folder
from RefaceRiskLib.surface.distance import distance
from RefaceRiskLib.surface.extract import extract_skin, skin_level
from RefaceRiskLib.volumes import load

MODELS = ("average", "linear", "reference")


@pytest.fixture(scope="module")
def case(shared_data):
    """(original, defaced, registration of the defaced head) of a validation subject."""
    volume = load(shared_data / "cohort_ixi_2mm" / "sub-IXI452_T1w.nii.gz")
    head = prepare(volume)
    defaced = deface(volume, "mri_deface", head=head)
    return volume, defaced, register(defaced.volume, head.template)


@pytest.fixture(scope="module")
def refaced(case):
    _, defaced, registration = case
    return {
        name: Refacer.load(name).reface(defaced.volume, defaced.removed, registration=registration, steps=4)
        for name in MODELS
    }


def face_distance(original, other, template, registration) -> float:
    level = skin_level(original)
    skin = extract_skin(original, level)
    inverse = np.linalg.inv(registration.matrix)
    points = skin.points @ inverse[:3, :3].T + inverse[:3, 3]
    index = np.rint((points - template.affine[:3, 3]) / template.spacing).astype(int)
    index = np.clip(index, 0, np.array(template.shape) - 1)
    return distance(skin, extract_skin(other, level), template.surface_region[tuple(index.T)]).mean


@pytest.mark.parametrize("name", MODELS)
def test_known_voxels_are_kept_bit_for_bit(case, refaced, name):
    _, defaced, _ = case
    kept = ~defaced.removed
    np.testing.assert_array_equal(refaced[name].volume.voxels[kept], defaced.volume.voxels[kept])
    assert refaced[name].volume.voxels.dtype == defaced.volume.voxels.dtype


@pytest.mark.parametrize("name", MODELS)
def test_the_face_comes_back(case, refaced, name):
    from RefaceRiskLib.template import load_template

    original, defaced, registration = case
    gap = face_distance(original, defaced.volume, load_template(), registration)
    rest = face_distance(original, refaced[name].volume, load_template(), registration)
    assert rest < 0.5 * gap


@pytest.fixture(scope="module")
def task(case):
    """The reference model and the prepared head, shared by the tests of sampling itself."""
    from RefaceRiskLib.registration import deformed_beside_face
    from RefaceRiskLib.template import load_template

    _, defaced, registration = case
    model, template = Refacer.load("reference"), load_template()
    bent = deformed_beside_face(defaced.volume, template, registration)
    return model, _Task.of(model, defaced.volume, defaced.removed, bent, template)


def draw(task, samples=1, steps=2, seed=0, temperature=1.0, on_progress=None):
    return sample_cascade(*task, samples, steps, seed, "cpu", temperature, on_progress)


def test_the_same_seed_gives_the_same_face_and_another_seed_another(task):
    one, again, other = (draw(task, seed=seed)[0][-1].distance for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_the_expected_face_needs_no_luck(task):
    one, other = (draw(task, seed=seed, temperature=0.0, steps=3)[0][-1].distance for seed in (1, 2))
    drawn, again = (draw(task, seed=seed, steps=3)[0][-1].distance for seed in (1, 2))
    assert np.abs(one - other).mean() < 0.4 * np.abs(drawn - again).mean()


def test_several_samples_come_with_their_uncertainty(case, task):
    _, defaced, _ = case
    spread = task[1].spread(draw(task, samples=2))
    assert spread.shape == defaced.volume.shape
    assert spread[defaced.removed].max() > 0
    assert not spread[~defaced.removed].any()


def test_the_uncertainty_of_the_skin_is_that_of_the_samples(case, task):
    """Where vertices move most from sample to sample the uncertainty is largest; far from the hole there is none."""
    _, defaced, registration = case
    faces = draw(task, samples=3)
    volumes = [task[1].draw(face) for face in faces]
    refaced = Refaced(volumes[0], volumes, task[1].spread(faces), defaced.removed, registration)
    skins = [extract_skin(volume) for volume in volumes]
    told = refaced.uncertainty_at(skins[0].points)
    moved = np.mean([distance(skins[0], other).per_vertex for other in skins[1:]], axis=0)
    still = moved < 0.01
    assert told.shape == (len(skins[0].points),)
    assert told[~still].mean() > 5 * told[still].mean()
    assert np.corrcoef(told[~still], moved[~still])[0, 1] > 0.3
    with pytest.raises(RefaceRiskError, match="draw several"):
        Refaced(volumes[0], volumes[:1], None, defaced.removed, registration).uncertainty_at(skins[0].points)


def test_cancelling_stops_within_a_step(task):
    seen: list[Progress] = []

    def stop_in_the_coarse_stage(progress: Progress) -> None:
        seen.append(progress)
        if progress.stage.startswith("coarse") and progress.step == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        draw(task, steps=4, on_progress=stop_in_the_coarse_stage)
    assert seen[-1].step == 1


def test_a_device_whose_memory_is_full_gives_way_to_the_cpu(task, monkeypatch):
    sample = denoisers._Run.sample

    def full(run, *arguments):
        if run.device.type != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return sample(run, *arguments)

    monkeypatch.setattr(denoisers._Run, "sample", full)
    monkeypatch.setattr(denoisers, "choose_device", lambda name: torch.device("meta"))
    seen: list[Progress] = []
    faces = draw(task, on_progress=seen.append)
    assert np.isfinite(faces[0][-1].distance).all()
    assert sum("is full: on the CPU now" in p.message for p in seen) == 1


def test_progress_counts_every_network_call(task):
    seen: list[Progress] = []
    draw(task, steps=3, on_progress=seen.append)
    for stage in ("coarse stage", "middle stage"):
        assert [(p.step, p.of) for p in seen if p.stage == stage] == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_the_removed_region_is_found_on_the_image_itself(case):
    from RefaceRiskLib.template import load_template

    _, defaced, registration = case
    template = load_template()
    found = estimate_removed(defaced.volume, registration, template)
    # Air before the face may count or not; the tissue that was cut away must.
    tissue = defaced.removed & (case[0].intensities > skin_level(case[0]))
    assert (found & tissue).sum() > 0.9 * tissue.sum()
    assert not (found & (defaced.volume.intensities > 0)).any()


def test_a_head_that_lost_nothing_is_refused(case):
    original, defaced, registration = case
    with pytest.raises(RefaceRiskError, match="nothing was removed"):
        Refacer.load("linear").reface(original, np.zeros_like(defaced.removed), registration=registration)


def test_a_mask_of_another_grid_is_refused(case):
    _, defaced, registration = case
    with pytest.raises(RefaceRiskError, match="shape"):
        Refacer.load("linear").reface(defaced.volume, np.ones((3, 3, 3), bool), registration=registration)


@pytest.mark.parametrize("stage", ["coarse", "middle"])
def test_damaged_weights_are_refused(tmp_path, stage):
    shutil.copytree(model_folder("reference"), tmp_path / "model")
    path = tmp_path / "model" / stage / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RefaceRiskError, match="damaged") as caught:
        Refacer.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_an_unknown_model_is_refused_in_one_line():
    with pytest.raises(RefaceRiskError) as caught:
        Refacer.load("nobody")
    assert "\n" not in str(caught.value)


def test_weights_are_never_pickled():
    folder = model_folder("reference")
    assert json.loads((folder / "coarse" / "config.json").read_text(encoding="utf-8"))["weights"]["sha256"]
    assert not [path for path in folder.rglob("*") if path.suffix in {".pt", ".pth", ".pkl", ".ckpt"}]
