"""Predictors and their validation: what is found, and that nothing leaks."""

from __future__ import annotations

import numpy as np
import pytest

from RefaceRiskLib.progress import Cancelled
from RefaceRiskLib.radiodensity.predictor import LightPredictor, ResNetPredictor
from RefaceRiskLib.radiodensity.statistics import spearman
from RefaceRiskLib.radiodensity.validation import (
    confound_matrix,
    cross_validate,
    repeated_folds,
    residual_of,
    shuffled_targets,
)


@pytest.fixture(scope="module")
def cohort():
    """60 subjects of 200 features; the target follows one component of them, age and sex."""
    rng = np.random.default_rng(0)
    age, sex = rng.uniform(40, 80, 60), rng.choice(["M", "F"], 60)
    hidden = rng.standard_normal((60, 6))
    X = hidden @ rng.standard_normal((6, 200)) + 0.3 * rng.standard_normal((60, 200))
    y = 4 * hidden[:, 0] - 0.5 * age + 6 * (sex == "M") + rng.standard_normal(60)
    return X, y, confound_matrix(age, sex), repeated_folds([str(n) for n in range(60)], 5, 2)


def test_an_effect_is_found_out_of_fold(cohort):
    X, y, confounds, folds = cohort
    done = cross_validate(LightPredictor(), X, y, confounds, folds)
    assert spearman(done.predicted, done.residual) > 0.7


def test_many_targets_at_once_are_the_same_as_each_alone(cohort):
    X, y, confounds, folds = cohort
    targets = np.column_stack([y, shuffled_targets(y, confounds, 3)])
    together = cross_validate(LightPredictor(), X, targets, confounds, folds)
    for column in range(4):
        alone = cross_validate(LightPredictor(), X, targets[:, column], confounds, folds)
        assert together.predicted[:, column] == pytest.approx(alone.predicted, rel=1e-6, abs=1e-9)


def test_a_prediction_does_not_know_the_subjects_own_value(cohort):
    X, y, confounds, folds = cohort
    changed = y.copy()
    changed[7] += 1000
    one, other = (cross_validate(LightPredictor(), X, target, confounds, folds[:1]) for target in (y, changed))
    mates = folds[0] == folds[0][7]
    assert other.predicted[mates] == pytest.approx(one.predicted[mates])
    assert other.residual[mates & (np.arange(60) != 7)] == pytest.approx(one.residual[mates & (np.arange(60) != 7)])


def test_residuals_use_coefficients_of_the_training_subjects():
    confounds = np.column_stack([np.ones(6), np.arange(6.0)])
    y = np.array([1.0, 3, 5, 7, 9, 100])
    left = residual_of(y, confounds, np.arange(6) < 5)
    assert left == pytest.approx([0, 0, 0, 0, 0, 89])


def test_rows_of_one_subject_share_a_fold():
    folds = repeated_folds(["a", "a", "b", "c", "d", "b"], 2, 5)
    assert (folds[:, 0] == folds[:, 1]).all() and (folds[:, 2] == folds[:, 5]).all()
    assert len({tuple(row) for row in folds}) > 1


def test_features_without_any_variance_predict_the_mean(cohort):
    X, y, *_ = cohort
    fitted = LightPredictor().fit(np.zeros_like(X), y)
    assert fitted.predict(X[:3]) == pytest.approx(np.full(3, y.mean()))


def test_validation_can_be_cancelled_between_folds(cohort):
    X, y, confounds, folds = cohort
    seen = []

    def listen(progress):
        seen.append(progress.step)
        if progress.step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        cross_validate(LightPredictor(), X, y, confounds, folds, on_progress=listen)
    assert seen == [0, 1, 2, 3]


def test_the_network_learns_what_its_images_show_and_keeps_the_best_epoch():
    rng = np.random.default_rng(0)
    y = rng.standard_normal(24)
    X = rng.normal(0, 0.1, (24, 16, 16, 16)).astype(np.float32)
    X[:, 4:12, 4:12, 4:12] += y[:, None, None, None]
    fitted = ResNetPredictor(width=8, epochs=25, patience=25, device="cpu", learning_rate=3e-3).fit(X, 10 + 2 * y)
    assert fitted.epochs_run <= 25
    assert spearman(fitted.predict(X), y) > 0.8
    assert 6 < fitted.predict(X).mean() < 14
