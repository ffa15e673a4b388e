from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from RefaceRiskLib.diffusion import weights  # noqa: E402
from RefaceRiskLib.diffusion.weights import (  # noqa: E402
    ExponentialMovingAverage,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
    shapes_of,
)
from RefaceRiskLib.errors import RefaceRiskError  # noqa: E402


def small_model(seed=0, width=4):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 1))


@pytest.fixture
def folder(tmp_path):
    return save_weights(tmp_path / "model", small_model().state_dict(), {"channels": [8, 16]})


def rewrite_config(folder, change):
    path = folder / "config.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record))


def test_weights_come_back_as_float32_with_their_config(folder):
    model = small_model()
    loaded = load_weights(folder, shapes=shapes_of(model))
    assert loaded.config == {"channels": [8, 16]}
    assert loaded.sha256 == hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict[name].dtype == tensor.dtype
        torch.testing.assert_close(loaded.state_dict[name], tensor, rtol=1e-3, atol=1e-6)
    other = small_model(seed=1)
    other.load_state_dict(loaded.state_dict)


def test_half_precision_is_half_the_file_and_full_precision_is_exact(tmp_path):
    state = {"w": torch.randn(1000)}
    half = save_weights(tmp_path / "half", state, {})
    full = save_weights(tmp_path / "full", state, {}, dtype="float32")
    sizes = [(f / "weights.safetensors").stat().st_size for f in (half, full)]
    assert sizes[1] - sizes[0] == pytest.approx(2000, abs=16)
    assert torch.equal(load_weights(full).state_dict["w"], state["w"])


def test_nothing_but_the_two_files_is_left(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights.safetensors"]


def test_one_changed_byte_is_noticed(folder):
    path = folder / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(RefaceRiskError, match=r"weights\.safetensors: sha256 .* is not"):
        load_weights(folder)


def test_a_cut_file_is_noticed(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RefaceRiskError, match="damaged"):
        load_weights(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(RefaceRiskError, match=f"{name}: cannot read"):
        load_weights(folder)


class _Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_a_pickle_is_never_executed_even_when_the_config_vouches_for_it(folder):
    poison = pickle.dumps({"w": _Trap()})
    (folder / "weights.safetensors").write_bytes(poison)
    rewrite_config(folder, lambda r: r["weights"].update(sha256=hashlib.sha256(poison).hexdigest()))
    with pytest.raises(RefaceRiskError, match="not a safetensors file"):
        load_weights(folder)


def test_shapes_that_the_config_does_not_list_are_refused(folder):
    rewrite_config(folder, lambda r: r["weights"]["shapes"].update({"0.weight": [4, 4]}))
    with pytest.raises(RefaceRiskError, match=r"differ.*0\.weight"):
        load_weights(folder)


def test_weights_of_another_network_are_refused(folder):
    with pytest.raises(RefaceRiskError, match=r"another network.*of another shape"):
        load_weights(folder, shapes=shapes_of(small_model(width=5)))
    with pytest.raises(RefaceRiskError, match="1 missing, such as extra"):
        load_weights(folder, shapes={**shapes_of(small_model()), "extra": (1,)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_on_the_way_in_and_out(tmp_path, value):
    bad = {"w": torch.tensor([1.0, value])}
    with pytest.raises(RefaceRiskError, match="weight w is not finite"):
        save_weights(tmp_path, bad, {})
    assert list(tmp_path.iterdir()) == []
    from safetensors.torch import save

    folder = save_weights(tmp_path / "m", {"w": torch.ones(2)}, {})
    poison = save(bad)
    (folder / "weights.safetensors").write_bytes(poison)
    rewrite_config(folder, lambda r: r["weights"].update(sha256=hashlib.sha256(poison).hexdigest()))
    with pytest.raises(RefaceRiskError, match="weight w is not finite"):
        load_weights(folder)


def test_numbers_too_large_for_half_precision_are_refused(tmp_path):
    with pytest.raises(RefaceRiskError, match="float16"):
        save_weights(tmp_path, {"w": torch.tensor([1e6])}, {})


def test_files_over_the_limit_are_neither_written_nor_read(tmp_path, monkeypatch):
    large = {"w": torch.zeros(8_100_000)}
    with pytest.raises(RefaceRiskError, match=r"16\.2 MB exceed the limit of 16 MB"):
        save_weights(tmp_path / "m", large, {})
    assert not (tmp_path / "m").exists()
    folder = save_weights(tmp_path / "n", {"w": torch.zeros(1000)}, {})
    with open(folder / "weights.safetensors", "r+b") as file:
        file.truncate(17_000_000)
    with pytest.raises(RefaceRiskError, match=r"17\.0 MB, more than the 16 MB"):
        load_weights(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", "not json", '{"format": 1, "config": {}, "weights": {}}'])
def test_a_damaged_config_is_named(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(RefaceRiskError, match=r"config\.json: not a model config"):
        load_weights(folder)


def test_a_model_of_a_later_version_asks_for_an_update(folder):
    rewrite_config(folder, lambda r: r.update(format=2))
    with pytest.raises(RefaceRiskError, match="update MRIRefaceRisk"):
        load_weights(folder)


def test_a_save_that_fails_leaves_the_earlier_model(folder, monkeypatch):
    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(weights.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_weights(folder, small_model(seed=1).state_dict(), {})
    monkeypatch.undo()
    assert load_weights(folder).config == {"channels": [8, 16]}
    assert len(list(folder.iterdir())) == 2


def test_the_average_warms_up_and_then_decays_slowly():
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
        ema = ExponentialMovingAverage(model, decay=0.9)
        model.weight.fill_(1.0)
    expected = 0.0
    for n in range(1, 200):
        ema.update(model)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay)
        assert ema.average["weight"].item() == pytest.approx(expected, abs=1e-5)
        if n == 1:
            assert expected > 0.8  # the random start is forgotten at once
    with torch.no_grad():
        model.weight.fill_(0.0)
    ema.update(model)
    assert ema.average["weight"].item() == pytest.approx(0.9, abs=1e-3)


def test_averaged_weights_are_lent_to_the_model_and_its_own_come_back():
    model = small_model()
    ema = ExponentialMovingAverage(model)
    own = model[0].weight.detach().clone() + 1
    with torch.no_grad():
        model[0].weight.add_(1)
    with pytest.raises(ZeroDivisionError), ema.applied_to(model):
        torch.testing.assert_close(model[0].weight, own - 1)
        raise ZeroDivisionError
    assert torch.equal(model[0].weight, own)


def test_buffers_are_copied_not_averaged():
    model = small_model()
    ema = ExponentialMovingAverage(model)
    model(torch.randn(8, 3))
    ema.update(model)
    assert torch.equal(ema.average["1.running_mean"], model[1].running_mean)
    assert ema.average["1.num_batches_tracked"] == 1


class Training:
    """A toy training that uses everything a checkpoint has to keep."""

    def __init__(self, seed=0):
        self.model = small_model(seed)
        self.ema = ExponentialMovingAverage(self.model, 0.9)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-2)
        self.rate = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 20)
        self.order = np.random.default_rng(seed)
        self.noise = torch.Generator().manual_seed(seed)
        self.step = 0

    @property
    def state(self):
        parts = {"model": self.model, "ema": self.ema, "optimizer": self.optimizer, "rate": self.rate}
        return {"parts": parts, "generators": {"order": self.order, "noise": self.noise}}

    def run(self, steps):
        for _ in range(steps):
            x = torch.randn(6, 3, generator=self.noise) + torch.rand(6, 3) + self.order.normal()
            self.optimizer.zero_grad()
            self.model(x).square().mean().backward()
            self.optimizer.step()
            self.rate.step()
            self.ema.update(self.model)
            self.step += 1


def test_a_resumed_training_ends_where_an_unbroken_one_does(tmp_path):
    unbroken = Training()
    unbroken.run(5)
    path = save_checkpoint(tmp_path / "c.safetensors", step=5, **unbroken.state, notes={"best": 0.5})
    unbroken.run(5)

    resumed = Training(seed=9)
    resumed.run(2)
    checkpoint = load_checkpoint(path, **resumed.state)
    assert (checkpoint.step, checkpoint.notes) == (5, {"best": 0.5})
    resumed.run(5)
    for name, tensor in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor)
        assert torch.equal(resumed.ema.average[name], unbroken.ema.average[name])
    assert resumed.optimizer.param_groups[0]["lr"] == unbroken.optimizer.param_groups[0]["lr"]
    assert resumed.ema.updates == unbroken.ema.updates


def test_a_checkpoint_is_a_safetensors_file_and_leaves_nothing_else(tmp_path):
    from safetensors import safe_open

    save_checkpoint(tmp_path / "c.safetensors", step=1, **Training().state)
    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        assert "parts.model.0.weight" in set(file.keys())
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_unusable_checkpoints_are_named_and_change_nothing(tmp_path):
    training = Training()
    path = save_checkpoint(tmp_path / "c.safetensors", step=1, **training.state)
    before = training.model[0].weight.detach().clone()
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], pickle.dumps({"w": _Trap()})):
        path.write_bytes(damaged)
        with pytest.raises(RefaceRiskError, match=r"c\.safetensors: not a usable checkpoint"):
            load_checkpoint(path, **training.state)
    with pytest.raises(RefaceRiskError, match="cannot read the checkpoint"):
        load_checkpoint(tmp_path / "absent", **training.state)
    weights_alone = save_weights(tmp_path / "m", training.model.state_dict(), {}) / "weights.safetensors"
    with pytest.raises(RefaceRiskError, match="not a usable checkpoint"):
        load_checkpoint(weights_alone, **training.state)
    assert torch.equal(training.model[0].weight, before)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    path = save_checkpoint(tmp_path / "c.safetensors", step=1, parts={"model": small_model()})
    with pytest.raises(RefaceRiskError, match="model is of another training"):
        load_checkpoint(path, parts={"model": small_model(width=6)})


def test_what_a_checkpoint_cannot_keep_is_refused_when_saving(tmp_path):
    class Odd:
        def state_dict(self):
            return {"thing": object()}

    with pytest.raises(TypeError, match=r"parts\.odd\.thing holds a object"):
        save_checkpoint(tmp_path / "c.safetensors", step=1, parts={"odd": Odd()})


def test_the_package_imports_without_torch():
    code = "import sys; sys.modules['torch'] = None; import RefaceRiskLib.diffusion"
    subprocess.run([sys.executable, "-c", code], check=True)
