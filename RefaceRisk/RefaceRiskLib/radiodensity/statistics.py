"""Rank correlation, how sure it is, and whether one image tells more than another: numpy alone, vectorised, seeded.

What counts as evidence is the number of subjects. A test over bootstrap resamples (as in Gao et al. 2025) gets smaller
p the more resamples are drawn; it is computed for the comparison and named so. The valid tests beside it are the paired
bootstrap over subjects and the permutation of the whole validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.05
INTERVALS = ("percentile", "bca")


def resamples(subjects: int, count: int = 1000, seed: int = 0) -> np.ndarray:
    """How often each subject is drawn in each bootstrap resample, (count, subjects) int16."""
    drawn = np.random.default_rng(seed).integers(0, subjects, (count, subjects))
    drawn += np.arange(count)[:, None] * subjects
    return np.bincount(drawn.ravel(), minlength=count * subjects).reshape(count, subjects).astype(np.int16)


def spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Spearman's rho of x (N,) and y (N,), ties given their mean rank; nan where either is constant.

    weights (B, N): how often each subject counts; gives rho (B,) of every resample at once. A resample repeats subjects
    and so has ties: ranks follow from cumulative counts, no resample is sorted.
    """
    once = weights is None
    weights = np.ones((1, len(x)), np.float32) if once else np.asarray(weights, np.float32)
    rho = np.concatenate([_weighted_rho(x, y, part) for part in _parts(weights)])
    return rho[0] if once else rho


def _parts(weights: np.ndarray, rows: int = 512):
    """In pieces that stay in the processor's cache."""
    return (weights[first : first + rows] for first in range(0, len(weights), rows))


def _weighted_rho(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    middle = (weights.sum(axis=1, keepdims=True) + 1) / 2
    a, b = _ranks(x, weights) - middle, _ranks(y, weights) - middle
    weighted = a * weights
    cross = np.einsum("bn,bn->b", weighted, b, dtype=np.float64)
    square = np.einsum("bn,bn->b", weighted, a, dtype=np.float64)
    other = np.einsum("bn,bn,bn->b", b, b, weights, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((square > 0) & (other > 0), cross / np.sqrt(square * other), np.nan)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean ranks (B, N) of values (N,) counted `weights` (B, N) times."""
    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    counts = weights[:, order]
    if len(distinct) < len(group):
        counts = np.add.reduceat(counts, np.searchsorted(group[order], np.arange(len(distinct))), axis=1)
    return (np.cumsum(counts, axis=1) - (counts - 1) / 2)[:, group]


# --- intervals and tests ----------------------------------------------------------------------------------------------


def interval(drawn: np.ndarray, method: str = "percentile", **of) -> tuple[float, float]:
    """95 % interval of bootstrap figures `drawn` (B,). ``bca`` (Efron 1987) needs `estimate` and `jackknife` (N,)."""
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        return np.nan, np.nan
    tails = np.array([LEVEL / 2, 1 - LEVEL / 2])
    if method == "bca":
        tails = _bca_tails(drawn, tails, **of)
    elif method != "percentile":
        raise ValueError(f"unknown interval {method!r}: {', '.join(INTERVALS)}")
    low, high = np.quantile(drawn, tails)
    return float(low), float(high)


def _bca_tails(drawn: np.ndarray, tails: np.ndarray, estimate: float, jackknife: np.ndarray) -> np.ndarray:
    below = np.mean(drawn < estimate) + np.mean(drawn == estimate) / 2
    bias = stats.norm.ppf(np.clip(below, 1 / (len(drawn) + 1), 1 - 1 / (len(drawn) + 1)))
    lean = jackknife.mean() - jackknife
    acceleration = np.sum(lean**3) / (6 * max(np.sum(lean**2), 1e-300) ** 1.5)
    z = bias + stats.norm.ppf(tails)
    return stats.norm.cdf(bias + z / (1 - acceleration * z))


def bootstrap_p(drawn: np.ndarray) -> float:
    """Two-sided p that the figure is zero, from its bootstrap distribution (B,): twice the smaller tail."""
    drawn = drawn[np.isfinite(drawn)]
    tail = min(np.sum(drawn <= 0), np.sum(drawn >= 0))
    return float(min(1.0, 2 * (tail + 1) / (len(drawn) + 1)))


def permutation_p(observed: float, null: np.ndarray) -> float:
    """Two-sided p of a figure against those of permuted data (T,) (Phipson & Smyth 2010: never zero)."""
    null = null[np.isfinite(null)]
    return float((1 + np.sum(np.abs(null) >= abs(observed) - 1e-12)) / (1 + len(null)))


def wilcoxon_over_resamples(first: np.ndarray, second: np.ndarray) -> float:
    """The paper's test: Wilcoxon signed-rank over paired resamples. Its p shrinks with the number of *resamples*, so it
    says nothing about subjects; kept to reproduce the figure."""
    difference = first - second
    return 1.0 if not np.any(difference) else float(stats.wilcoxon(difference).pvalue)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p (1979), in the order given; nan stays nan and does not count."""
    p = np.asarray(p, float)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known])]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps)) if len(order) else []
    return adjusted


def steiger(r_first: float, r_second: float, r_between: float, subjects: int) -> float:
    """Two-sided p of two dependent correlations that share a variable (Steiger 1980, equation 14)."""
    mean = (r_first + r_second) / 2
    cross = r_between * (1 - 2 * mean**2) - mean**2 * (1 - 2 * mean**2 - r_between**2) / 2
    covariance = cross / (1 - mean**2) ** 2
    spread = np.sqrt(max(2 - 2 * covariance, 1e-12))
    z = (np.arctanh(_open(r_first)) - np.arctanh(_open(r_second))) * np.sqrt(subjects - 3) / spread
    return float(2 * stats.norm.sf(abs(z)))


def williams(r_first: float, r_second: float, r_between: float, subjects: int) -> float:
    """Two-sided p of the same question by Williams' t (1959) with `subjects` - 3 degrees of freedom."""
    r_between = _open(r_between)
    determinant = 1 - r_first**2 - r_second**2 - r_between**2 + 2 * r_first * r_second * r_between
    mean = (r_first + r_second) / 2
    below = 2 * determinant * (subjects - 1) / (subjects - 3) + mean**2 * (1 - r_between) ** 3
    t = (r_first - r_second) * np.sqrt((subjects - 1) * (1 + r_between) / max(below, 1e-12))
    return float(2 * stats.t.sf(abs(t), subjects - 3))


def _open(r: float) -> float:
    return float(np.clip(r, -1 + 1e-9, 1 - 1e-9))


# --- a whole result ---------------------------------------------------------------------------------------------------

CORRELATION_COLUMNS = (
    "target", "image", "n", "rho", "bootstrap_mean", "ci_low", "ci_high", "ci_excludes_zero", "p_permutation",
    "p_permutation_holm",
)  # fmt: skip
COMPARISON_COLUMNS = (
    "target", "image", "against", "n", "rho_difference", "ci_low", "ci_high", "p_paired_bootstrap",
    "p_paired_bootstrap_holm", "p_permutation", "p_permutation_holm", "p_steiger", "p_williams",
    "p_wilcoxon_over_resamples",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Analysis:
    """correlations: a dict an image with CORRELATION_COLUMNS. comparisons: `against` less image, a dict an image with
    COMPARISON_COLUMNS. drawn: image -> rho (B,) of the resamples, the dots of the figure."""

    correlations: list[dict]
    comparisons: list[dict]
    drawn: dict[str, np.ndarray]


def analyse(
    predicted: Mapping[str, np.ndarray],
    residual: np.ndarray,
    null: Mapping[str, np.ndarray] | None = None,
    target: str = "",
    against: str = "original",
    count: int = 1000,
    seed: int = 0,
    method: str = "percentile",
) -> Analysis:
    """Everything that is said about one target.

    predicted : image -> out-of-fold predictions (N,); residual (N,): the target less age and sex. The same resamples
    serve all images. null : image -> rho (T,) of the whole validation run on T shuffled targets (the same shuffles for
    all images); without it there is no permutation p. Holm's correction runs over the images of this target.
    """
    weights = resamples(len(residual), count, seed)
    drawn = {image: spearman(values, residual, weights) for image, values in predicted.items()}
    rho = {image: float(spearman(values, residual)) for image, values in predicted.items()}
    left_out = 1 - np.eye(len(residual))
    jackknife = {image: spearman(values, residual, left_out) for image, values in predicted.items()} \
        if method == "bca" else {}  # fmt: skip

    def between(figures: np.ndarray, estimate: float, left: np.ndarray | None) -> tuple[float, float]:
        return interval(figures, method, **({} if left is None else {"estimate": estimate, "jackknife": left}))

    correlations = []
    for image in predicted:
        low, high = between(drawn[image], rho[image], jackknife.get(image))
        correlations.append({
            "target": target, "image": image, "n": len(residual), "rho": rho[image],
            "bootstrap_mean": float(np.nanmean(drawn[image])), "ci_low": low, "ci_high": high,
            "ci_excludes_zero": bool(low > 0 or high < 0),
            "p_permutation": np.nan if null is None else permutation_p(rho[image], null[image]),
        })  # fmt: skip
    comparisons = []
    for image in (image for image in predicted if image != against and against in predicted):
        difference = drawn[against] - drawn[image]
        observed = rho[against] - rho[image]
        left = jackknife[against] - jackknife[image] if jackknife else None
        low, high = between(difference, observed, left)
        pair = rho[against], rho[image], float(spearman(predicted[against], predicted[image])), len(residual)
        comparisons.append({
            "target": target, "image": image, "against": against, "n": len(residual), "rho_difference": observed,
            "ci_low": low, "ci_high": high, "p_paired_bootstrap": bootstrap_p(difference),
            "p_permutation": np.nan if null is None else permutation_p(observed, null[against] - null[image]),
            "p_steiger": steiger(*pair), "p_williams": williams(*pair),
            "p_wilcoxon_over_resamples": wilcoxon_over_resamples(drawn[against], drawn[image]),
        })  # fmt: skip
    for rows, names in ((correlations, ["p_permutation"]), (comparisons, ["p_paired_bootstrap", "p_permutation"])):
        for name in names:
            for row, adjusted in zip(rows, holm([row[name] for row in rows]), strict=True):
                row[f"{name}_holm"] = float(adjusted)
    return Analysis(correlations, comparisons, drawn)
