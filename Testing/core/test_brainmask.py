"""The brain mask: painted contrasts, the network that learns from them, and what a registration makes of its brain."""

from __future__ import annotations

import numpy as np
import pytest

from RefaceRiskLib.brainmask import inference
from RefaceRiskLib.brainmask.agreement import agreement, register_checked
from RefaceRiskLib.brainmask.contrasts import CONTRASTS, brain_of, head_from_labels
from RefaceRiskLib.brainmask.examples import LabelHead, draw_example
from RefaceRiskLib.brainmask.frame import SHAPE, brought, normalised, whole, windowed
from RefaceRiskLib.brainmask.inference import FoundBrain, find_brain
from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.registration import Registration, RegistrationQuality
from RefaceRiskLib.synthesis import is_brain
from RefaceRiskLib.template import Grid, load_template
from RefaceRiskLib.tissue import brain_distance, brain_mask
from RefaceRiskLib.volumes import Volume, grid_points, load, reorient


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.fixture(scope="module")
def labels() -> Volume:
    """A head of nested ellipsoids at 1 mm: white and grey matter, fluid, bone, skin; a cord in fluid below."""
    shape = (150, 180, 190)
    affine = np.eye(4)
    affine[:3, 3] = [-75, -90, -120]
    points = grid_points(shape, affine)

    def inside(radii, centre=(0, 0, 0)):
        return (((points - centre) / radii) ** 2).sum(-1) < 1

    numbers = np.zeros(shape, np.int16)
    for label, radii in ((511, (72, 87, 66)), (515, (67, 82, 62)), (24, (62, 76, 57)), (3, (58, 72, 53))):
        numbers[inside(np.array(radii))] = label
    numbers[inside(np.array((45, 60, 40)))] = 2
    across = np.hypot(points[..., 0], points[..., 1] + 20)
    neck = (points[..., 2] < -45) & (numbers != 3)
    for label, radius in ((511, 50), (24, 12), (512, 7)):
        numbers[neck & (across < radius) & ((numbers == 0) | (label != 511))] = label
    return Volume(numbers, affine)


@pytest.fixture(scope="module")
def found_template() -> FoundBrain:
    """The template's own brain, as if it had been found in a head that lies and is shaped as the template."""
    template = load_template()
    return FoundBrain(template.brain_distance, Grid(template.shape, template.affine))


# --- painting --------------------------------------------------------------------------------------------------------


def test_the_true_brain_holds_the_fluid_around_it_and_not_that_of_the_spine(labels):
    brain, numbers = brain_of(labels), labels.voxels
    assert brain[is_brain(numbers)].all()
    heights = grid_points(labels.shape, labels.affine)[..., 2]
    fluid = numbers == 24
    assert brain[fluid & (heights > -40)].all()
    assert not brain[heights < -56].any()
    assert not brain[numbers > 500].any()


@pytest.mark.parametrize("name", CONTRASTS)
def test_each_contrast_paints_a_head_in_air(labels, name):
    head = head_from_labels(labels, name, seed=1, spacing_mm=(3, 3, 4), axcodes="PIR")
    assert head.volume.axcodes == "PIR"
    np.testing.assert_allclose(head.volume.spacing, (3, 4, 3))
    assert head.volume.voxels.dtype == np.int16
    air = np.median(head.volume.voxels[0, 0])
    assert head.tissue.sum() < head.brain.sum() and dice(head.tissue, head.brain) > 0.85
    if name == "CT":
        assert abs(air + 1000) < 30 and 20 < np.median(head.volume.voxels[head.tissue]) < 45
    else:
        assert np.median(head.volume.voxels[head.brain]) > air


def test_t2w_shows_fluid_bright_and_t1w_dark(labels):
    for name, sign in (("T1w", -1), ("T2w", 1)):
        head = head_from_labels(labels, name, seed=2, spacing_mm=(2, 2, 2))
        rim = head.brain & ~head.tissue
        assert sign * (np.median(head.volume.voxels[rim]) - np.median(head.volume.voxels[head.tissue])) > 0


def test_the_stored_orientation_does_not_move_the_head(labels):
    one = head_from_labels(labels, "T1w", seed=3, spacing_mm=(3, 3, 3), axcodes="RAS")
    two = head_from_labels(labels, "T1w", seed=3, spacing_mm=(3, 3, 3), axcodes="ILP")
    turned = reorient(Volume(two.brain.astype(np.uint8), two.volume.affine), "RAS")
    assert dice(turned.voxels > 0, one.brain) > 0.995


def test_an_example_is_in_the_range_that_the_network_sees_and_is_drawn_again_from_its_seed(labels):
    pytest.importorskip("torch", reason="examples are drawn with torch")
    heads = [LabelHead.of(labels)]
    one, two, other = (draw_example(heads, np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert one.image.shape == one.distance.shape == one.seen.shape == SHAPE
    assert one.image.min() >= -0.1 and one.image.max() <= 1.3
    assert one.distance.min() == -1 and one.distance.max() == 1
    np.testing.assert_array_equal(one.image, two.image)
    assert np.abs(one.image - other.image).max() > 0.1
    np.testing.assert_array_equal(one.mirrored().distance[0], one.distance[-1])


def test_label_heads_of_another_voxel_size_are_refused(labels):
    coarse = Volume(labels.voxels[::2, ::2, ::2], labels.affine @ np.diag([2, 2, 2, 1]))
    with pytest.raises(RefaceRiskError, match="1 mm"):
        LabelHead.of(coarse)


# --- the frame -------------------------------------------------------------------------------------------------------


def test_the_whole_volume_fits_the_grid_and_the_head_keeps_its_place(tiny_head):
    grid = whole(reorient(tiny_head, "SLA"))
    assert all(n % 16 == 0 for n in grid.shape)
    image = brought(tiny_head, grid)
    own = grid_points(tiny_head.shape, tiny_head.affine)[tiny_head.voxels > 600].mean(0)
    there = grid_points(grid.shape, grid.affine)[image > 600].mean(0)
    np.testing.assert_allclose(there, own, atol=0.7)
    image = normalised(image)
    assert image.dtype == np.float32 and -0.1 <= image.min() < 0.05 and 0.95 < image.max() <= 1.3


def test_a_constant_image_is_normalised_to_a_constant():
    assert not normalised(np.full((8, 8, 8), 7.0)).any()


def test_only_a_ct_is_windowed(labels):
    ct = head_from_labels(labels, "CT", seed=1, spacing_mm=(4, 4, 4)).volume.intensities
    assert windowed(ct).min() == -150 and windowed(ct).max() == 250
    mri = head_from_labels(labels, "PD", seed=1, spacing_mm=(4, 4, 4)).volume.intensities
    assert windowed(mri) is mri


# --- the network -----------------------------------------------------------------------------------------------------


def test_blocks_and_voxels_undo_each_other():
    torch = pytest.importorskip("torch")
    from RefaceRiskLib.brainmask.network import blocks, voxels

    array = torch.randn(1, 1, 4, 6, 8)
    assert blocks(array).shape == (1, 8, 2, 3, 4)
    assert torch.equal(voxels(blocks(array)), array)


def test_training_lowers_the_loss_writes_a_model_and_goes_on(labels, tmp_path):
    torch = pytest.importorskip("torch")
    from RefaceRiskLib.brainmask import training
    from RefaceRiskLib.diffusion.weights import load_checkpoint
    from RefaceRiskLib.volumes import save

    (tmp_path / "heads").mkdir()
    for number in ("01", "02"):
        save(labels, tmp_path / "heads" / f"seg_{number}.nii.gz")
    out = tmp_path / "out"
    losses: list[float] = []

    def note(progress) -> None:
        if progress.stage.startswith("train"):
            losses.append(float(progress.message.split()[1].rstrip(",")))

    training.train(tmp_path / "heads", out, ("02",), steps=2, on_progress=note)
    training.train(tmp_path / "heads", out, ("02",), steps=5, resume=True, on_progress=note)
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    network = inference.load_network(out)
    assert sum(parameter.numel() for parameter in network.parameters()) * 2 <= 4_000_000
    parts = {"model": network, "optimizer": torch.optim.AdamW(network.parameters())}
    assert load_checkpoint(out / "checkpoint.safetensors", parts=parts).step == 5


def test_a_folder_without_label_heads_is_refused(tmp_path):
    from RefaceRiskLib.brainmask.examples import read_heads

    with pytest.raises(RefaceRiskError, match="no label heads"):
        read_heads(tmp_path, ())


# --- the brain that comes along --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scans(shared_data):
    """Synthetic scans of a label head that the network has not seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(inference.CHOICE, raising=False)
        yield from _scans(shared_data)


def _scans(shared_data):
    if not inference.available():
        pytest.skip("no torch, MONAI or weights")
    labels = load(shared_data / "label_heads_1mm" / "training_seg_05.nii.gz")
    stored = {"T1w": "RAS", "T2w": "PIR", "CT": "LPS"}
    yield {
        name: head_from_labels(labels, name, seed=7, spacing_mm=(2, 2, 2), axcodes=axes)
        for name, axes in stored.items()
    }


@pytest.mark.parametrize("name", ["T1w", "T2w", "CT"])
def test_the_brain_is_found_in_any_contrast_and_orientation(scans, name):
    head = scans[name]
    found = find_brain(head.volume)
    assert found.plausible
    assert dice(found.on(head.volume) <= 0, head.brain) > 0.94
    # What defacers keep off is 3 mm wider, and united with the registration's brain.
    missed = (head.tissue & (found.on(head.volume) > 3)).sum()
    assert missed < 5e-4 * head.tissue.sum()


def test_the_same_head_gives_the_same_brain(scans):
    head = scans["T2w"].volume
    np.testing.assert_array_equal(find_brain(head).distance, find_brain(head).distance)


# --- agreement with a registration -----------------------------------------------------------------------------------


def test_a_registration_whose_brain_is_elsewhere_is_not_ok(found_template, monkeypatch):
    from RefaceRiskLib.brainmask import agreement as module

    template = load_template()
    head = Volume(np.zeros(template.shape, np.int16), template.affine)
    good = RegistrationQuality(0.95, 0.7, "ok")
    moved = np.eye(4)
    moved[2, 3] = 20
    for matrix, least, verdict in ((np.eye(4), 0.99, "ok"), (moved, 0.5, "check")):
        registration = Registration(matrix, None, good)
        monkeypatch.setattr(module, "register", lambda *_, registration=registration, **__: registration)
        assert least < agreement(found_template, template, registration) <= 1
        checked = register_checked(head, template, found_template)
        assert checked.quality.verdict == verdict
        assert bool(checked.quality.reason) == (verdict == "check")
        assert register_checked(head, template, None) is registration


def test_distances_beyond_what_the_network_learnt_are_in_millimetres():
    grid = Grid((60, 60, 60), np.diag([2.0, 2.0, 2.0, 1.0]))
    from_middle = np.linalg.norm(grid_points(grid.shape, grid.affine) - 60, axis=-1)
    sphere = from_middle - 25
    completed = inference._completed(np.clip(sphere, -10, 10).astype(np.float32), grid)
    assert np.abs(completed - sphere)[np.abs(sphere) < 7].max() < 0.01
    assert np.abs(completed - sphere)[from_middle > 3].max() < 2


# --- the mask that defacers keep off ---------------------------------------------------------------------------------


def test_the_mask_is_the_union_of_what_registration_and_network_call_brain(found_template):
    template, registration = load_template(), Registration(np.eye(4))
    head = Volume(np.zeros(template.shape, np.int16), template.affine)
    lifted = FoundBrain(np.roll(found_template.distance, 4, axis=2), found_template.grid)
    carried = brain_distance(head, template, registration, "registration")
    network = brain_distance(head, template, registration, "network", lifted)
    both = brain_distance(head, template, registration, "auto", lifted)
    np.testing.assert_array_equal(both <= 0, (carried <= 0) | (network <= 0))
    assert ((network <= 0) & (carried > 0)).any() and ((carried <= 0) & (network > 0)).any()
    np.testing.assert_array_equal(brain_mask(head, template, registration, "network", 0, lifted), lifted.distance <= 0)


def test_the_user_may_do_without_the_network(monkeypatch):
    monkeypatch.setenv(inference.CHOICE, "registration")
    assert not inference.available()


def test_without_torch_or_weights_the_mask_is_the_registrations(monkeypatch):
    monkeypatch.setattr(inference, "available", lambda: False)
    template, registration = load_template(), Registration(np.eye(4))
    head = Volume(np.zeros(template.shape, np.int16), template.affine)
    np.testing.assert_array_equal(
        brain_distance(head, template, registration), brain_distance(head, template, registration, "registration")
    )
    with pytest.raises(RefaceRiskError, match="network"):
        brain_distance(head, template, registration, "network")
    with pytest.raises(RefaceRiskError, match="unknown brain mask"):
        brain_distance(head, template, registration, "guess")


def test_something_that_is_no_brains_size_is_not_plausible(found_template):
    assert found_template.plausible
    assert not FoundBrain(found_template.distance + 30, found_template.grid).plausible
