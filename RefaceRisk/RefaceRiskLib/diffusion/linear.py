"""The linear model: the removed part of a face's signed-distance map, by ridge regression on the part that is left.

A head's skin is a vector of signed distances (mm, negative inside, clipped) at the voxels of a shell around the average
skin, on the 4 mm grid of template space. Its distribution over heads is modelled as a low-rank Gaussian (probabilistic
PCA, Tipping & Bishop 1999): x = mean + modes z + noise. Conditioning that Gaussian on the voxels that a defacer left is
exactly ridge regression of the removed voxels on the known ones, and one fitted model serves every mask. No torch.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..errors import RefaceRiskError

LIMIT_MM = 12.0
# Known voxels are trusted less the farther they lie from the hole (half at this distance): heads differ in more ways
# than a few dozen examples can teach, and the rim says most about what it borders on.
REACH_MM = 15.0


@dataclass(frozen=True, eq=False)
class LinearFace:
    """Low-rank Gaussian over signed-distance maps.

    mean : (X, Y, Z) float32, mm. shell : (X, Y, Z) bool, voxels that vary. modes : (K, N) float32, N = shell.sum(),
    scaled by their standard deviation (mm). ridge : noise variance (mm^2) of a known voxel at the rim of the hole.
    spacing : mm.
    """

    mean: np.ndarray
    shell: np.ndarray
    modes: np.ndarray
    ridge: float
    spacing: float = 4.0

    @classmethod
    def fit(cls, maps: np.ndarray, modes: int, ridge: float, weights: np.ndarray | None = None) -> LinearFace:
        """Fit to maps (M, X, Y, Z), mm, clipped to +-LIMIT_MM. ``weights`` (M,) count heads more or less."""
        maps = np.clip(maps, -LIMIT_MM, LIMIT_MM)
        weights = np.ones(len(maps)) if weights is None else np.asarray(weights, float)
        weights = weights / weights.sum()
        mean = np.tensordot(weights, maps, axes=1).astype(np.float32)
        spread = np.sqrt(np.tensordot(weights, (maps - mean) ** 2, axes=1))
        shell = spread > 0.05
        centred = (maps[:, shell] - mean[shell]) * np.sqrt(weights)[:, None]
        # Few heads, many voxels: the eigenvectors of the small Gram matrix give the modes.
        values, vectors = np.linalg.eigh(centred @ centred.T)
        keep = np.argsort(values)[::-1][:modes]
        keep = keep[values[keep] > 1e-6 * values.max()]
        return cls(mean, shell, (vectors[:, keep].T @ centred).astype(np.float32), float(ridge))

    def predict(self, distance: np.ndarray, known: np.ndarray, removed: np.ndarray | None = None) -> np.ndarray:
        """Conditional mean of the whole map, (X, Y, Z) float32 mm, given ``distance`` where ``known``.

        ``removed`` (X, Y, Z) bool, the hole: known voxels near it count most; all count alike without it.
        It is smooth across the border of what is known and does not repeat the known values exactly; see
        :func:`anchored` for that.
        """
        full = self.mean.copy()
        full[self.shell] += self.coefficients(distance, known, removed) @ self.modes
        return full.astype(np.float32)

    def coefficients(self, distance: np.ndarray, known: np.ndarray, removed: np.ndarray | None) -> np.ndarray:
        """Conditional mean of z (K,), given the known voxels."""
        distance = np.clip(distance, -LIMIT_MM, LIMIT_MM)
        seen = known[self.shell]
        trust = np.ones(int(seen.sum()))
        if removed is not None and removed.any():
            away = ndimage.distance_transform_edt(~removed)[self.shell][seen] * self.spacing
            trust = 1 / (1 + (away / REACH_MM) ** 2)
        design = self.modes[:, seen]
        observed = distance[self.shell][seen] - self.mean[self.shell][seen]
        weighted = design * trust.astype(np.float32)
        normal = (weighted @ design.T).astype(np.float64) + self.ridge * np.eye(len(design))
        return np.linalg.solve(normal, (weighted @ observed).astype(np.float64))


def reliable(distance: np.ndarray, removed: np.ndarray, spacing: float, limit: float = LIMIT_MM) -> np.ndarray:
    """Where the signed distance measured on a *defaced* head equals that of the whole head, (X, Y, Z) bool.

    A voxel's distance is right if the ball up to its nearest skin holds no removed voxel; beyond ``limit`` the
    clipped value is.
    """
    if not removed.any():
        return np.ones(removed.shape, bool)
    to_removed = ndimage.distance_transform_edt(~removed) * spacing - spacing / 2
    return np.minimum(np.abs(distance), limit) < to_removed


def anchored(
    predicted: np.ndarray, distance: np.ndarray, known: np.ndarray, spacing: float, reach_mm: float = 10.0
) -> np.ndarray:
    """Bend a predicted map onto the known one at their border, fading over ``reach_mm``: no step at the seam."""
    weight = known.astype(np.float32)
    sigma = reach_mm / 2 / spacing
    error = ndimage.gaussian_filter(np.where(known, distance - predicted, 0).astype(np.float32), sigma)
    correction = error / (ndimage.gaussian_filter(weight, sigma) + 0.1)
    return np.where(known, distance, predicted + correction).astype(np.float32)


# --- on disk --------------------------------------------------------------------------------------------------------


def save_linear(model: LinearFace, folder: Path, **record) -> None:
    """Write ``modes.npz`` (modes as int8 with one scale each) and ``config.json`` with its sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    scale = np.abs(model.modes).max(axis=1) / 127
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        mean=np.rint(model.mean * 1000).astype(np.int16),
        shell=np.packbits(model.shell),
        modes=np.rint(model.modes / scale[:, None]).astype(np.int8),
        scale=scale.astype(np.float32),
    )
    content = buffer.getvalue()
    config = {
        "ridge": model.ridge,
        "shape": list(model.shell.shape),
        "sha256": hashlib.sha256(content).hexdigest(),
        **record,
    }
    for name, data in (
        ("modes.npz", content),
        ("config.json", (json.dumps(config, indent=1) + "\n").encode()),
    ):
        temporary = folder / f".{name}.tmp"
        temporary.write_bytes(data)
        temporary.replace(folder / name)


def load_linear(folder: Path) -> tuple[LinearFace, str]:
    """The model and the sha256 of its file. Raises RefaceRiskError when a file is missing, damaged or exchanged."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        content = (folder / "modes.npz").read_bytes()
    except (OSError, ValueError) as error:
        raise RefaceRiskError(f"no linear model ({error})", "check the model folder's name", folder) from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != config.get("sha256"):
        raise RefaceRiskError("modes.npz is damaged or was exchanged", "install the model again", folder / "modes.npz")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        shape = tuple(config["shape"])
        shell = np.unpackbits(arrays["shell"], count=int(np.prod(shape))).astype(bool).reshape(shape)
        modes = arrays["modes"].astype(np.float32) * arrays["scale"][:, None]
        mean = arrays["mean"].astype(np.float32) / 1000
    return LinearFace(mean, shell, modes, float(config["ridge"])), digest
