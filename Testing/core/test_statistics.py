"""Rank correlations of resamples at once, their intervals and tests, against SciPy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from RefaceRiskLib.radiodensity import statistics
from RefaceRiskLib.radiodensity.statistics import analyse, holm, interval, resamples, spearman, steiger, williams


@pytest.mark.parametrize("decimals", [6, 0])
def test_rho_of_every_resample_is_that_of_scipy_with_and_without_ties(decimals):
    rng = np.random.default_rng(1)
    x = np.round(rng.standard_normal(30), decimals)
    y = np.round(x + rng.standard_normal(30), decimals)
    weights = resamples(30, 40, seed=2)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0])
    for row, rho in zip(weights, spearman(x, y, weights), strict=True):
        drawn = np.repeat(np.arange(30), row)
        assert rho == pytest.approx(stats.spearmanr(x[drawn], y[drawn])[0], abs=1e-5)


def test_a_resample_draws_as_many_subjects_as_there_are_and_the_seed_repeats_it():
    weights = resamples(17, 50, seed=3)
    assert (weights.sum(axis=1) == 17).all()
    assert np.array_equal(weights, resamples(17, 50, seed=3))
    assert not np.array_equal(weights, resamples(17, 50, seed=4))


def test_a_constant_prediction_has_no_rho():
    assert np.isnan(spearman(np.ones(9), np.arange(9.0)))


def test_bca_agrees_with_scipy():
    rng = np.random.default_rng(5)
    x = rng.standard_normal(60)
    y = x + 1.5 * rng.standard_normal(60)
    drawn = spearman(x, y, resamples(60, 6000, seed=0))
    jackknife = spearman(x, y, 1 - np.eye(60))
    ours = interval(drawn, "bca", estimate=float(spearman(x, y)), jackknife=jackknife)
    theirs = stats.bootstrap(
        (x, y), lambda a, b: stats.spearmanr(a, b)[0], paired=True, vectorized=False, n_resamples=1500, method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, np.nan]) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)


def test_tests_of_dependent_correlations_find_what_is_there_and_agree():
    assert steiger(0.5, 0.5, 0.3, 100) == pytest.approx(1)
    assert williams(0.5, 0.5, 0.3, 100) == pytest.approx(1)
    # Simulated: how often a difference as large arises without an effect.
    rng = np.random.default_rng(0)
    p = []
    for _ in range(300):
        y, shared = rng.standard_normal((2, 80))
        a, b = (y + shared + rng.standard_normal(80) for _ in range(2))
        r = np.corrcoef([y, a, b])
        p.append((steiger(r[0, 1], r[0, 2], r[1, 2], 80), williams(r[0, 1], r[0, 2], r[1, 2], 80)))
    rejected = (np.array(p) < 0.05).mean(axis=0)
    assert (rejected > 0.02).all() and (rejected < 0.09).all()


def test_the_published_test_gets_surer_with_resamples_and_the_valid_one_does_not():
    rng = np.random.default_rng(8)
    y = rng.standard_normal(40)
    predicted = {"original": y + 2.0 * rng.standard_normal(40), "defaced": y + 2.4 * rng.standard_normal(40)}
    few, many = (analyse(predicted, y, count=count).comparisons[0] for count in (100, 4000))
    assert many["p_wilcoxon_over_resamples"] < 1e-6 * max(few["p_wilcoxon_over_resamples"], 1e-30) or (
        many["p_wilcoxon_over_resamples"] < 1e-100
    )
    assert many["p_paired_bootstrap"] == pytest.approx(few["p_paired_bootstrap"], abs=0.12)


def test_the_permutation_p_counts_what_is_as_extreme():
    assert statistics.permutation_p(0.5, np.array([0.1, -0.6, 0.5, 0.2])) == pytest.approx(3 / 5)
    assert statistics.permutation_p(0.9, np.zeros(99)) == pytest.approx(0.01)
