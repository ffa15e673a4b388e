"""The linear model: the removed part of a face's signed-distance map, by ridge regression on what is left of the head.

A head is a vector of signed distances to its skin (mm, negative inside, clipped) at the voxels of a shell around the
average skin, relative to the average skin bent to follow what is left of the head (:mod:`.following`), of locally
normalised tissue intensities around the face, and of the displacement that laid the average head's tissue onto it
there, on the 4 mm grid of template space. Its distribution over heads is modelled as a low-rank Gaussian (probabilistic
PCA, Tipping & Bishop 1999): x = mean + modes z + noise. Conditioning that Gaussian on the voxels that a defacer left is
exactly ridge regression of the removed voxels on the known ones, and one fitted model serves every mask. It is
conditioned anew for each of a few places of the face, with most trust in what is near that place. No torch.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..errors import RefaceRiskError
from ..geometry import distance_to, gaussian

LIMIT_MM = 12.0
# Known voxels are trusted less the farther they lie from the hole (a quarter at this distance): heads differ in more
# ways than a few dozen examples can teach, and the rim says most about what it borders on.
REACH_MM = 10.0
# Weight of a normalised intensity (unit variance) and of a displacement (mm) against a squared millimetre of skin; as
# what follows chosen by leaving training heads out.
TISSUE_WEIGHT = 100.0
BEND_WEIGHT = 0.5
# The displacement is smooth: one voxel in eight tells it, and tells of farther than the skin does.
BEND_STRIDE = 2
BEND_REACH_MM = 20.0
# What lies so far from a place of the face counts e^-1/2 there, but never less than the floor.
PLACE_REACH_MM = 50.0
PLACE_FLOOR = 0.1
PLACE_MM = 25.0


@dataclass(frozen=True)
class Seen:
    """What is left of a head, (X, Y, Z) arrays at 4 mm.

    distance : mm, right where ``known`` (bool). hole : bool, what the defacer took; None trusts all voxels alike.
    image : brain units, right where ``visible`` (bool); None leaves tissue out. bend : (3, X, Y, Z) mm, displacement of
    the average head's tissue to the head's, see :func:`RefaceRiskLib.diffusion.space.bend_of`; None leaves it out.
    """

    distance: np.ndarray
    known: np.ndarray
    hole: np.ndarray | None = None
    image: np.ndarray | None = None
    visible: np.ndarray | None = None
    bend: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class LinearFace:
    """Low-rank Gaussian over signed distances, relative to some base, tissue, and displacement.

    mean : (X, Y, Z) float32, mm. shell : (X, Y, Z) bool, voxels that vary. modes : (K, N) float32, N = shell.sum(), one
    standard deviation each, mm. ridge : noise variance (mm^2) of a known voxel at the rim of the hole.
    tissue_mean, tissue_modes : (M,) and (K, M), the same for normalised intensity in ``near`` (X, Y, Z) bool.
    bend_mean, bend_modes : (3 B,) and (K, 3 B), the same for the displacement (mm) in one of eight voxels of ``near``.
    places : (P, 3) voxels, where the Gaussian is conditioned; none conditions it once, for the whole head.
    """

    mean: np.ndarray
    shell: np.ndarray
    modes: np.ndarray
    ridge: float
    near: np.ndarray
    tissue_mean: np.ndarray
    tissue_modes: np.ndarray
    bend_mean: np.ndarray
    bend_modes: np.ndarray
    places: np.ndarray
    spacing: float = 4.0

    @classmethod
    def fit(
        cls,
        maps: np.ndarray,
        ridge: float,
        images: np.ndarray | None = None,
        near: np.ndarray | None = None,
        bends: np.ndarray | None = None,
        places: np.ndarray = (),
    ) -> LinearFace:
        """Fit to maps (H, X, Y, Z) of H heads, mm, less their bases; images (H, X, Y, Z) and displacements
        (H, 3, X, Y, Z) in the region ``near``."""
        count = len(maps)
        maps = np.clip(maps, -LIMIT_MM, LIMIT_MM)
        near = np.zeros(maps.shape[1:], bool) if near is None else near
        shell = maps.std(axis=0) > 0.05
        tissue = np.zeros((count, 0)) if images is None else np.stack([normalised(image)[near] for image in images])
        bend = np.zeros((count, 0)) if bends is None else np.stack([one[:, _thinned(near)].ravel() for one in bends])
        mean = maps.mean(axis=0)
        distances, tissue_mean, bend_mean = maps[:, shell], tissue.mean(axis=0), bend.mean(axis=0)
        parts = [distances - mean[shell], tissue - tissue_mean, bend - bend_mean]
        parts = [part / np.sqrt(count) for part in parts]
        # Few heads, many voxels: the eigenvectors of the small Gram matrix give the modes.
        weights = (1.0, TISSUE_WEIGHT, BEND_WEIGHT * BEND_STRIDE**3)
        values, vectors = np.linalg.eigh(sum(w * part @ part.T for w, part in zip(weights, parts, strict=True)))
        turn = vectors[:, values > 1e-6 * values.max()].T
        modes, tissue_modes, bend_modes = ((turn @ part).astype(np.float32) for part in parts)
        mean, tissue_mean, bend_mean = (one.astype(np.float32) for one in (mean, tissue_mean, bend_mean))
        places = np.asarray(places, np.float32).reshape(-1, 3)
        return cls(mean, shell, modes, ridge, near, tissue_mean, tissue_modes, bend_mean, bend_modes, places)

    def complete(self, base: np.ndarray, seen: Seen) -> np.ndarray:
        """The whole signed-distance map, (X, Y, Z) float32 mm, of a head whose ``base`` was bent to what was seen."""
        observed = np.clip(seen.distance, -LIMIT_MM, LIMIT_MM) - base
        return base + self.predict(replace(seen, distance=observed))

    def predict(self, seen: Seen) -> np.ndarray:
        """Conditional mean of the whole map, (X, Y, Z) float32 mm, given what was ``seen``.

        It is smooth across the border of what is known and does not repeat the known values exactly; see
        :func:`anchored` for that.
        """
        blocks = self._blocks(seen)
        away = [self._away(place) for place in self.places] or [np.zeros(self.shell.shape, np.float32)]
        closeness = [np.maximum(np.exp(-(one**2) / (2 * PLACE_REACH_MM**2)), PLACE_FLOOR) for one in away]
        answers = np.stack([self._coefficients(blocks, one) for one in closeness]) @ self.modes
        shares = np.stack([np.exp(-(one[self.shell] ** 2) / (2 * PLACE_MM**2)) + 1e-9 for one in away])
        full = self.mean.copy()
        full[self.shell] += (shares * answers).sum(axis=0) / shares.sum(axis=0)
        return full

    def _away(self, place: np.ndarray) -> np.ndarray:
        """Distance (X, Y, Z) float32, mm, of each voxel from a place (3,) in voxels."""
        axes = (np.square(np.arange(n, dtype=np.float32) - p) for n, p in zip(self.shell.shape, place, strict=True))
        return self.spacing * np.sqrt(sum(np.ix_(*axes)))

    def _blocks(self, seen: Seen) -> list[tuple]:
        """(modes, voxels, weights, values) of each kind of thing that was seen; voxels index (X, Y, Z), flat."""
        away = None if seen.hole is None or not seen.hole.any() else distance_to(seen.hole, self.spacing).ravel()

        def trust(voxels: np.ndarray, reach: float) -> np.ndarray:
            if away is None:
                return np.ones(len(voxels), np.float32)
            return ((1 + (away[voxels] / reach) ** 2) ** -2).astype(np.float32)

        known, voxels = seen.known[self.shell], np.flatnonzero(self.shell & seen.known)
        observed = np.clip(seen.distance, -LIMIT_MM, LIMIT_MM)[self.shell][known] - self.mean[self.shell][known]
        blocks = [(self.modes[:, known], voxels, trust(voxels, REACH_MM), observed)]
        if seen.image is not None and len(self.tissue_mean):
            visible, voxels = seen.visible[self.near], np.flatnonzero(self.near & seen.visible)
            tissue = normalised(np.where(seen.visible, seen.image, 0))[self.near][visible] - self.tissue_mean[visible]
            blocks.append((self.tissue_modes[:, visible], voxels, TISSUE_WEIGHT * trust(voxels, REACH_MM), tissue))
        if seen.bend is not None and len(self.bend_mean):
            few = _thinned(self.near)
            visible, voxels = np.tile(seen.visible[few], 3), np.flatnonzero(few & seen.visible)
            bend = (seen.bend[:, few].ravel() - self.bend_mean)[visible]
            weight = BEND_WEIGHT * BEND_STRIDE**3 * np.tile(trust(voxels, BEND_REACH_MM), 3)
            blocks.append((self.bend_modes[:, visible], np.tile(voxels, 3), weight, bend))
        return blocks

    def _coefficients(self, blocks: list[tuple], closeness: np.ndarray) -> np.ndarray:
        """Conditional mean of z (K,) float32, with the trust in each voxel times its ``closeness`` (X, Y, Z)."""
        normal, right = self.ridge * np.eye(len(self.modes)), np.zeros(len(self.modes))
        for design, voxels, weight, values in blocks:
            weighted = design * (weight * closeness.ravel()[voxels])
            normal += weighted @ design.T
            right += weighted @ values
        return np.linalg.solve(normal, right).astype(np.float32)


def _thinned(region: np.ndarray) -> np.ndarray:
    """One of BEND_STRIDE^3 voxels of a region, (X, Y, Z) bool."""
    few = np.zeros_like(region)
    every = (slice(None, None, BEND_STRIDE),) * 3
    few[every] = region[every]
    return few


def normalised(image: np.ndarray, sigma: float = 2.5) -> np.ndarray:
    """Tissue relative to its surroundings (local mean 0, deviation about 1; sigma in voxels), 0 in air and in holes."""
    image = np.clip(image, 0, 1.5).astype(np.float32)
    solid = (image > 0.02).astype(np.float32)
    total = gaussian(solid, sigma) + 1e-3
    mean = gaussian(image * solid, sigma) / total
    variance = np.maximum(gaussian(image * image * solid, sigma) / total - mean**2, 0)
    return np.clip((image - mean) / (np.sqrt(variance) + 0.08), -2.5, 2.5) * solid


def reliable(distance: np.ndarray, removed: np.ndarray, spacing: float, limit: float = LIMIT_MM) -> np.ndarray:
    """Where the signed distance measured on a *defaced* head equals that of the whole head, (X, Y, Z) bool.

    A voxel's distance is right if the ball up to its nearest skin holds no removed voxel; beyond ``limit`` the
    clipped value is.
    """
    if not removed.any():
        return np.ones(removed.shape, bool)
    to_removed = distance_to(removed, spacing) - spacing / 2
    return np.minimum(np.abs(distance), limit) < to_removed


def reliable_when_defaced(distance: np.ndarray, missing: np.ndarray, spacing: float) -> np.ndarray:
    """:func:`reliable` for a distance measured on a defaced head, (X, Y, Z) bool.

    Cutting the face opens nose and mouth: air that reaches the outside only through the hole was inside the closed
    skin of the whole head, so it counts as missing too.
    """
    air, count = ndimage.label((distance > 0) & ~missing)
    if count > 1:
        sizes = np.bincount(air.ravel())
        sizes[0] = 0
        missing = missing | ((air > 0) & (air != sizes.argmax()))
    return reliable(distance, missing, spacing)


def anchored(
    predicted: np.ndarray, distance: np.ndarray, known: np.ndarray, spacing: float, reach_mm: float = 10.0
) -> np.ndarray:
    """Bend a predicted map onto the known one at their border, fading over ``reach_mm``: no step at the seam."""
    weight = known.astype(np.float32)
    sigma = reach_mm / 2 / spacing
    error = gaussian(np.where(known, distance - predicted, 0), sigma)
    correction = error / (gaussian(weight, sigma) + 0.1)
    return np.where(known, distance, predicted + correction).astype(np.float32)


# --- on disk --------------------------------------------------------------------------------------------------------


def save_linear(model: LinearFace, folder: Path, **record) -> None:
    """Write ``modes.npz`` (modes as int8 with one scale each) and ``config.json`` with its sha256."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"mean": np.rint(model.mean * 1000).astype(np.int16), "places": model.places}
    arrays |= {name: getattr(model, name).astype(np.float16) for name in ("tissue_mean", "bend_mean")}
    arrays |= {"shell": np.packbits(model.shell), "near": np.packbits(model.near)}
    for name in ("modes", "tissue_modes", "bend_modes"):
        modes = getattr(model, name)
        scale = np.maximum(np.abs(modes).max(axis=1, initial=0), 1e-12) / 127
        arrays |= {name: np.rint(modes / scale[:, None]).astype(np.int8), f"{name}_scale": scale.astype(np.float32)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    content = buffer.getvalue()
    config = {"ridge": float(model.ridge), "shape": list(model.shell.shape), **record}
    config["sha256"] = hashlib.sha256(content).hexdigest()
    for name, data in (("modes.npz", content), ("config.json", (json.dumps(config, indent=1) + "\n").encode())):
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
    shape = tuple(config["shape"])
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        shell, near = (
            np.unpackbits(arrays[name], count=int(np.prod(shape))).astype(bool).reshape(shape)
            for name in ("shell", "near")
        )
        modes, tissue_modes, bend_modes = (
            arrays[name].astype(np.float32) * arrays[f"{name}_scale"][:, None]
            for name in ("modes", "tissue_modes", "bend_modes")
        )
        tissue_mean, bend_mean = (arrays[name].astype(np.float32) for name in ("tissue_mean", "bend_mean"))
        mean, places = arrays["mean"].astype(np.float32) / 1000, arrays["places"]
    ridge = float(config["ridge"])
    fitted = (mean, shell, modes, ridge, near, tissue_mean, tissue_modes, bend_mean, bend_modes, places)
    return LinearFace(*fitted), digest
