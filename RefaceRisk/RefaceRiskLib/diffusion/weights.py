"""Weights on disk, running averages of weights, and checkpoints to resume a training from. Never pickle.

A model folder holds two files::

    config.json           what the network is, and the name, shape and sha256 of everything below
    weights.safetensors   the tensors, half precision unless asked otherwise

The config says what the weights must be, so a file that is damaged, exchanged, or from another network is refused
before any of its numbers is used.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import RefaceRiskError

WEIGHTS_FILE = "weights.safetensors"
CONFIG_FILE = "config.json"
LARGEST_FILE = 16_000_000
"""Bytes of weights that a model folder may hold."""

_FORMAT = 1
_STORED = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Weights:
    """Loaded weights: float32 tensors by name, the caller's config, and the sha256 of the file they came from."""

    state_dict: dict[str, torch.Tensor]
    config: dict
    sha256: str


def save_weights(
    folder: str | Path, state_dict: Mapping[str, torch.Tensor], config: Mapping, *, dtype: str = "float16"
) -> Path:
    """Writes ``folder/weights.safetensors`` and ``folder/config.json``; returns the folder.

    ``dtype``: "float16" or "float32" for the floating tensors. Raises RefaceRiskError for numbers that are not finite
    or do not fit half precision, and for more than `LARGEST_FILE` bytes; what was in the folder then stays.
    """
    from safetensors.torch import save

    folder = Path(folder)
    stored = {}
    for name, tensor in state_dict.items():
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.to(_STORED[dtype])
            if not torch.isfinite(tensor).all():
                raise RefaceRiskError(f"weight {name} is not finite as {dtype}", "the training diverged", path=folder)
        stored[name] = tensor.contiguous().clone()
    content = save(stored)
    if len(content) > LARGEST_FILE:
        raise RefaceRiskError(
            f"weights of {len(content) / 1e6:.1f} MB exceed the limit of {LARGEST_FILE / 1e6:.0f} MB",
            "store them as float16 or make the network narrower",
            path=folder,
        )
    sha256 = hashlib.sha256(content).hexdigest()
    record = {
        "format": _FORMAT,
        "config": dict(config),
        "weights": {
            "file": WEIGHTS_FILE,
            "sha256": sha256,
            "shapes": {name: list(tensor.shape) for name, tensor in stored.items()},
        },
    }
    described = json.dumps(record, indent=1).encode()
    folder.mkdir(parents=True, exist_ok=True)
    # a run that ends between the two renames leaves a pair that does not fit, which load_weights refuses
    _write(folder / WEIGHTS_FILE, content)
    _write(folder / CONFIG_FILE, described)
    return folder


def load_weights(folder: str | Path, *, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Weights:
    """The checked weights of a model folder, as float32 (whole-number tensors keep their type).

    ``shapes``: names and shapes that the network to be filled has, usually `shapes_of` it. Raises RefaceRiskError
    when a file is missing, too large, no safetensors file, not the one that the config describes (sha256, names,
    shapes), of another network than ``shapes``, or holds numbers that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    record, path = _read_config(folder), folder / WEIGHTS_FILE
    content = _read(path)
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != record["weights"]["sha256"]:
        raise RefaceRiskError(
            f"sha256 {sha256[:12]}... is not the {str(record['weights']['sha256'])[:12]}... of {CONFIG_FILE}",
            "the file is damaged or was exchanged: install the model again",
            path=path,
        )
    try:
        state_dict = load(content)
    except SafetensorError as error:
        raise RefaceRiskError(f"not a safetensors file ({error})", "install the model again", path=path) from None
    found = {name: list(tensor.shape) for name, tensor in state_dict.items()}
    if found != record["weights"]["shapes"]:
        raise RefaceRiskError(f"tensors differ from those in {CONFIG_FILE}: {_difference(found, record)}", path=path)
    for name, tensor in state_dict.items():
        if tensor.is_floating_point():
            state_dict[name] = tensor = tensor.float()
            if not torch.isfinite(tensor).all():
                raise RefaceRiskError(f"weight {name} is not finite", "install the model again", path=path)
    if shapes is not None:
        expected = {name: list(shape) for name, shape in shapes.items()}
        if found != expected:
            raise RefaceRiskError(
                f"these weights are of another network: {_difference(found, expected)}",
                f"use the network settings in {CONFIG_FILE}",
                path=path,
            )
    return Weights(state_dict, record["config"], sha256)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _read_config(folder: Path) -> dict:
    path = folder / CONFIG_FILE
    try:
        record = json.loads(_read(path))
        known = record["format"] == _FORMAT
        usable = isinstance(record["config"], dict) and {"sha256", "shapes"} <= set(record["weights"])
    except (ValueError, KeyError, TypeError) as error:
        raise RefaceRiskError(f"not a model config ({error!r})", "install the model again", path=path) from None
    if not known:
        raise RefaceRiskError(
            f"model format {record['format']!r}, this version reads {_FORMAT}", "update MRIRefaceRisk", path=path
        )
    if not usable:
        raise RefaceRiskError("not a model config (parts are missing)", "install the model again", path=path)
    return record


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise RefaceRiskError(
                f"{size / 1e6:.1f} MB, more than the {LARGEST_FILE / 1e6:.0f} MB that a model may have", path=path
            )
        return path.read_bytes()
    except OSError as error:
        raise RefaceRiskError(
            f"cannot read the model ({error.strerror or error})", "check the model folder's name", path=path
        ) from None


def _difference(found: Mapping, expected: Mapping) -> str:
    expected = expected.get("weights", {}).get("shapes", {}) if "weights" in expected else expected
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    other = sorted(name for name in set(found) & set(expected) if list(found[name]) != list(expected[name]))
    parts = [
        f"{len(names)} {what}, such as {names[0]}"
        for what, names in (("missing", missing), ("unexpected", extra), ("of another shape", other))
        if names
    ]
    return "; ".join(parts)


def _write(path: Path, content: bytes) -> None:
    """All of the file or nothing: a temporary file beside it, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# Running average -----------------------------------------------------------------------------------------------


class ExponentialMovingAverage:
    """Running average of a model's weights, which samples better than the last of them.

    The decay warms up as ``min(decay, (1 + n) / (10 + n))`` after n updates, so that a short training forgets its
    random start. Buffers and whole-number tensors are copied, not averaged.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.updates = 0
        self.average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
        for name, tensor in model.state_dict().items():
            if name in averaged:
                self.average[name].lerp_(tensor, 1 - decay)
            else:
                self.average[name].copy_(tensor)

    def copy_to(self, model: nn.Module) -> None:
        model.load_state_dict(self.average)

    @contextlib.contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model with the averaged weights, for validation; its own come back afterwards."""
        own = copy.deepcopy(model.state_dict())
        self.copy_to(model)
        try:
            yield model
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict:
        return {"decay": self.decay, "updates": self.updates, "average": self.average}

    def load_state_dict(self, state: Mapping) -> None:
        self.decay, self.updates = state["decay"], state["updates"]
        for name, tensor in self.average.items():
            tensor.copy_(state["average"][name])


# Checkpoints ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """Where a training stood: the number of steps done and the caller's notes (plain JSON values)."""

    step: int
    notes: dict = field(default_factory=dict)


def save_checkpoint(
    path: str | Path,
    *,
    step: int,
    parts: Mapping[str, Any],
    generators: Mapping[str, Any] | None = None,
    notes: Mapping | None = None,
) -> Path:
    """Writes one safetensors file from which training goes on as if it had never stopped; returns its path.

    ``parts``: objects with ``state_dict`` by name (model, ema, optimizer, learning rate). ``generators``: torch or
    numpy random generators by name; torch's global one is always kept. The tensors of the nested states are the
    file's tensors, everything else is JSON in its header, so that one rename makes all of it valid.
    """
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    states = {name: _flatten(part.state_dict(), f"parts.{name}", tensors) for name, part in parts.items()}
    draws = {"torch": _flatten(torch.get_rng_state(), "rng.torch", tensors)}
    for name, generator in (generators or {}).items():
        draws[f"given.{name}"] = _flatten(_generator_state(generator), f"rng.given.{name}", tensors)
    record = {"format": _FORMAT, "step": step, "parts": states, "generators": draws, "notes": dict(notes or {})}
    _write(Path(path), save(tensors, metadata={"checkpoint": json.dumps(record)}))
    return Path(path)


def load_checkpoint(
    path: str | Path, *, parts: Mapping[str, Any], generators: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Puts ``parts`` and ``generators`` back as they were; the same names as in `save_checkpoint`.

    Raises RefaceRiskError when the file is missing, damaged or lacks one of them (nothing is then changed), and
    when a part refuses its state because the network is another one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    try:
        content = path.read_bytes()
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        record = json.loads(header["__metadata__"]["checkpoint"])
        states = {name: _restore(record["parts"][name], tensors) for name in parts}
        draws = {name: _restore(state, tensors) for name, state in record["generators"].items()}
        wanted = {name: draws[f"given.{name}"] for name in generators or {}}
    except OSError as error:
        raise RefaceRiskError(f"cannot read the checkpoint ({error.strerror or error})", path=path) from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RefaceRiskError(f"not a usable checkpoint ({error!r})", "train without --resume", path=path) from None
    for name, part in parts.items():
        try:
            part.load_state_dict(states[name])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise RefaceRiskError(
                f"the checkpoint's {name} is of another training ({reason})", "train without --resume", path=path
            ) from None
    for name, generator in (generators or {}).items():
        _restore_generator(generator, wanted[name])
    torch.set_rng_state(draws["torch"])
    return Checkpoint(record["step"], record["notes"])


def _flatten(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """``value`` as JSON with references to the tensors, which are added to ``tensors`` under ``name``."""
    if torch.is_tensor(value):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):  # keys may be numbers, as in an optimizer's state
        return {"items": [[key, _flatten(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        flat = [_flatten(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return {"tuple": flat} if isinstance(value, tuple) else {"list": flat}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(f"{name} holds a {type(value).__name__}, which a checkpoint cannot keep")


def _restore(flat: dict, tensors: Mapping[str, torch.Tensor]) -> Any:
    ((kind, content),) = flat.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: _restore(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [_restore(item, tensors) for item in content]
        return tuple(items) if kind == "tuple" else items
    if kind == "value":
        return content
    raise ValueError(f"unknown kind {kind!r}")


def _generator_state(generator: Any) -> Any:
    return generator.get_state() if isinstance(generator, torch.Generator) else generator.bit_generator.state


def _restore_generator(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state
