"""Statistics over subjects: paired tests with effect sizes and intervals, and the interval of a rate.

The unit is always the subject. Resampling redraws subjects; nothing is tested over resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from ..radiodensity import statistics

RESAMPLES = 4000


def paired(first: Sequence[float], second: Sequence[float], seed: int = 0) -> dict:
    """Wilcoxon signed-rank test of `first` against `second` (N,), with effect sizes and bootstrap intervals.

    difference : median over subjects of first - second, and its 95 % percentile interval. rank_biserial : matched-pairs
    rank-biserial correlation (Kerby 2014), -1 where first is the smaller in every subject, +1 where it is the larger.
    p : two-sided, exact up to 50 subjects without ties; None below 5 pairs, of which no test could say anything.
    """
    difference = np.asarray(first, float) - np.asarray(second, float)
    difference = difference[np.isfinite(difference)]
    count = len(difference)
    found = {"n": count, "difference_mm": None, "difference_low": None, "difference_high": None,
             "rank_biserial": None, "rank_biserial_low": None, "rank_biserial_high": None, "p": None}  # fmt: skip
    if not count:
        return found
    found["difference_mm"] = float(np.median(difference))
    found["rank_biserial"] = float(_rank_biserial(difference[None])[0])
    if count < 5:
        return found
    drawn = difference[np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))]
    for name, values in (("difference", np.median(drawn, axis=1)), ("rank_biserial", _rank_biserial(drawn))):
        low, high = np.quantile(values, (0.025, 0.975))
        found[f"{name}_low"], found[f"{name}_high"] = float(low), float(high)
    found["p"] = float(stats.wilcoxon(difference).pvalue) if np.any(difference) else 1.0
    return found


def _rank_biserial(differences: np.ndarray) -> np.ndarray:
    """(B,) from (B, N) differences."""
    rank = stats.rankdata(np.abs(differences), axis=1)
    rank = np.where(differences == 0, 0.0, rank)
    total = rank.sum(axis=1)
    return np.where(total > 0, (rank * np.sign(differences)).sum(axis=1) / np.where(total > 0, total, 1), 0.0)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P values adjusted for the family by Holm's step-down method (1979); None stays and does not count."""
    adjusted = statistics.holm([np.nan if p is None else p for p in p_values])
    return [None if np.isnan(p) else float(p) for p in adjusted]


def rate_interval(hits: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (1927) of a rate."""
    if of == 0:
        return 0.0, 1.0
    z = stats.norm.ppf(0.5 + confidence / 2)
    share = hits / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * np.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def paired_tests(rows: Sequence[Mapping], region: str = "face") -> list[dict]:
    """Paired tests on mean_mm, a row each: every image against the average face of the same defacer, and against the
    defaced copy; adjusted by Holm within each group of subjects (`all`, and `unseen` by the model in training)."""
    found = []
    groups = {"all": lambda row: True, "unseen": lambda row: row["seen_in_training"] != "yes"}
    some_seen = any(row["seen_in_training"] == "yes" for row in rows)
    for group, takes in groups.items():
        if group == "unseen" and not some_seen:
            continue
        table: dict[tuple, dict[str, float]] = {}
        for row in rows:
            if row["region"] == region and takes(row):
                table.setdefault((row["defacer"], row["image"]), {})[row["participant_id"]] = row["mean_mm"]
        family = []
        for (defacer, image), values in table.items():
            for other in ("average", "defaced"):
                against = table.get((defacer, other))
                if image in ("defaced", other, *(("average",) if other == "average" else ())) or not against:
                    continue
                both = sorted(values.keys() & against.keys())
                told = paired([values[name] for name in both], [against[name] for name in both])
                family.append({"group": group, "defacer": defacer, "image": image, "against": other, **told})
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            found.append({**row, "p_holm": p})
    return found
