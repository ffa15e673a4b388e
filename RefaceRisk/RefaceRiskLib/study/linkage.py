"""Linkage: which original of the cohort does a processed face look most like? Closed-set identification by shape.

Each probe (points of a face) is aligned rigidly with each original of the cohort and ranked by the mean distance that
is left. No photograph, no recognition service and no other data set takes part: the gallery is the cohort itself. Two
regions are told apart. `face` is all that is seen, the skin that defacing left included; the same scan stands in the
gallery, so that an unaltered forehead alone gives it away. `removed` is only what the defacer took and a model drew.

The distance of a point to an original is looked up in the field that the gallery keeps, and many probes are aligned
with an original at once: Gauss-Newton on the point-to-surface distance (Chen and Medioni 1992) with Huber's weights. In
large cohorts a short alignment of few points picks the originals that are worth the full one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

SHORTLIST = 48  # originals that get the full alignment with a probe; smaller cohorts are aligned in full
COARSE_POINTS, COARSE_ROUNDS, ROUNDS = 150, 3, 6
HUBER_MM = 3.0
BATCH = 64  # probes that are aligned at once: 64,000 points, which stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Gallery:
    """One original: `field` (X, Y, Z) float32 of signed distances in mm, `affine` (4, 4) of its grid (axes aligned)."""

    field: np.ndarray
    affine: np.ndarray

    @classmethod
    def load(cls, path: Path, affine: np.ndarray) -> Gallery:
        return cls(np.load(path).astype(np.float32), affine)

    def layers(self) -> list[np.ndarray]:
        """Distance, and its gradient by mm."""
        spacing = float(self.affine[0, 0])
        return [self.field, *(np.gradient(self.field, spacing, axis=axis).astype(np.float32) for axis in range(3))]


def scores(probes: np.ndarray, gallery: Gallery, rounds: int = ROUNDS) -> np.ndarray:
    """(P,) mean distance in mm of each probe, (P, N, 3) points, to one original after a rigid alignment; NaN stays."""
    layers = gallery.layers()
    found = np.full(len(probes), np.nan)
    known = np.flatnonzero(np.isfinite(probes).all(axis=(1, 2)))
    for start in range(0, len(known), BATCH):
        part = known[start : start + BATCH]
        found[part] = _aligned_scores(probes[part].astype(np.float64), layers, gallery.affine, rounds)
    return found


def _aligned_scores(points: np.ndarray, layers: list[np.ndarray], affine: np.ndarray, rounds: int) -> np.ndarray:
    centre = points.mean(axis=1, keepdims=True)
    arms = points - centre
    place = centre.copy()
    best = np.full(len(points), np.inf)
    for step in range(rounds + 1):
        moved = arms + place
        distance = _sampled(layers[0], moved, affine)
        best = np.minimum(best, np.abs(distance).mean(axis=1))
        if step == rounds:
            break
        gradient = np.stack([_sampled(layer, moved, affine) for layer in layers[1:]], axis=-1)
        weight = np.minimum(1.0, HUBER_MM / np.maximum(np.abs(distance), 1e-9))
        jacobian = np.concatenate([np.cross(arms, gradient), gradient], axis=-1)  # (P, N, 6): turn, then shift
        weighted = jacobian * weight[..., None]
        normal = np.einsum("pni,pnj->pij", weighted, jacobian, optimize=True)
        # A thousandth of the mean stiffness holds directions in which the face slides along itself.
        trace = np.einsum("pii->p", normal)
        normal += np.eye(6) * np.array([1e3, 1e3, 1e3, 1, 1, 1]) * (1e-3 * trace / 6e3 + 1e-6)[:, None, None]
        move = -np.linalg.solve(normal, np.einsum("pni,pn->pi", weighted, distance)[..., None])[..., 0]
        move[:, :3] = np.clip(move[:, :3], -0.15, 0.15)
        move[:, 3:] = np.clip(move[:, 3:], -10, 10)
        arms = np.einsum("pij,pnj->pni", Rotation.from_rotvec(move[:, :3]).as_matrix(), arms)
        place = place + move[:, None, 3:]
    return best


def _sampled(layer: np.ndarray, points: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Trilinear values at (P, N, 3) points; beyond the grid those of its edge."""
    index = (points - affine[:3, 3]) / affine[0, 0]
    return ndimage.map_coordinates(layer, np.moveaxis(index, -1, 0), order=1, mode="nearest", prefilter=False)


def coarse_scores(probes: np.ndarray, gallery: Gallery) -> np.ndarray:
    """As `scores`, from every so-many-th point and a few rounds."""
    every = max(1, probes.shape[1] // COARSE_POINTS)
    return scores(probes[:, ::every], gallery, COARSE_ROUNDS)


def score_matrix(probes: np.ndarray, galleries: Sequence[Gallery], shortlist: int = SHORTLIST) -> np.ndarray:
    """(P, G) mean distances in mm. With more originals than `shortlist`, those that are not on a probe's list keep the
    coarse distance, raised to at least that of the list's last."""
    if len(galleries) <= shortlist:
        return np.stack([scores(probes, gallery) for gallery in galleries], axis=1)
    coarse = np.stack([coarse_scores(probes, gallery) for gallery in galleries], axis=1)
    listed = shortlisted(coarse, shortlist)
    fine = np.full(coarse.shape, np.nan)
    for number, gallery in enumerate(galleries):
        fine[listed[:, number], number] = scores(probes[listed[:, number]], gallery)
    return merged(coarse, fine)


def shortlisted(coarse: np.ndarray, shortlist: int = SHORTLIST) -> np.ndarray:
    """(P, G) bool: the originals nearest to each probe by the coarse distance."""
    order = np.argsort(np.where(np.isnan(coarse), np.inf, coarse), axis=1, kind="stable")[:, :shortlist]
    listed = np.zeros(coarse.shape, bool)
    np.put_along_axis(listed, order, True, axis=1)
    return listed & np.isfinite(coarse)


def merged(coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Fine distances where there are, coarse ones behind them."""
    last = np.nanmax(np.where(np.isnan(fine), -np.inf, fine), axis=1, keepdims=True)
    return np.where(np.isnan(fine), np.maximum(coarse, last), fine)


# --- what the distances say ------------------------------------------------------------------------------------------


def ranks(distances: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(P,) rank of each probe's own original, 1 is nearest; a tie counts against the linker. 0 for NaN probes."""
    mine = distances[np.arange(len(own)), own]
    others = (distances <= mine[:, None]).sum(axis=1)
    return np.where(np.isfinite(mine), others, 0)


def match_curve(rank: np.ndarray, originals: int) -> np.ndarray:
    """(G,) cumulative match characteristic: share of probes whose own original is among the k nearest, k = 1..G."""
    rank = rank[rank > 0]
    return np.array([(rank <= k).mean() if len(rank) else np.nan for k in range(1, originals + 1)])


def equal_error_rate(
    distances: np.ndarray, own: np.ndarray, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """The rate at which strangers accepted equal owners refused, and its 95 % interval by bootstrap over probes.

    Every pair of a probe and an original is one comparison. Thresholds are 1024 quantiles of all distances, so that the
    bootstrap is one product of matrices at any size of the cohort.
    """
    known = np.isfinite(distances).all(axis=1)
    distances, own = distances[known], own[known]
    if len(own) < 2 or distances.shape[1] < 2:
        return (np.nan,) * 3
    thresholds = np.unique(np.quantile(distances, np.linspace(0, 1, 1024)))
    mine = distances[np.arange(len(own)), own]
    accepted = mine[:, None] <= thresholds  # (P, T)
    strangers = np.stack([np.searchsorted(np.sort(np.delete(row, who)), thresholds, side="right")
                          for row, who in zip(distances, own, strict=True)]) / (distances.shape[1] - 1)  # fmt: skip
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=resamples) / len(own)
    point = _crossing(accepted.mean(axis=0), strangers.mean(axis=0))
    low, high = np.quantile([_crossing(a, s) for a, s in zip(draws @ accepted, draws @ strangers, strict=True)],
                            (0.025, 0.975))  # fmt: skip
    return point, float(low), float(high)


def _crossing(accepted: np.ndarray, strangers: np.ndarray) -> float:
    """Where the share of owners refused falls below the share of strangers accepted, linearly between thresholds."""
    gap = strangers - (1 - accepted)
    at = int(np.argmax(gap >= 0))
    if at == 0:
        return float(0.5 * (strangers[0] + 1 - accepted[0])) if gap[0] < 0 else float(strangers[0])
    share = -gap[at - 1] / (gap[at] - gap[at - 1])
    return float(strangers[at - 1] + share * (strangers[at] - strangers[at - 1]))
