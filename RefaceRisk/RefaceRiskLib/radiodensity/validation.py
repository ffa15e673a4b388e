"""Out-of-fold predictions without leakage: what is learnt of a fold's subjects comes from the others alone.

Age and sex are regressed out of the target with coefficients that the training subjects give (fitting them on everybody
makes test and training residuals depend on each other); scaling, components and strength are the predictor's own and
are fitted on the training subjects too. Folds are by subject, and the same for every image type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..progress import OnProgress, Progress, report
from .predictor import Predictor


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Means over the repeats. predicted, residual : (N,) or (N, T); every entry comes from folds in which the subject
    was not trained on. repeats : (R, N[, T]) predictions of each repeat."""

    predicted: np.ndarray
    residual: np.ndarray
    repeats: np.ndarray


def repeated_folds(subjects: Sequence[str], folds: int = 5, repeats: int = 10, seed: int = 0) -> np.ndarray:
    """Fold of each row in each repeat, (R, N) int: rows of one subject share a fold, folds differ by one subject."""
    names, of_row = np.unique(np.asarray(subjects, str), return_inverse=True)
    if not 2 <= folds <= len(names):
        raise ValueError(f"{folds} folds of {len(names)} subjects")
    rng = np.random.default_rng(seed)
    return np.stack([(rng.permutation(len(names)) % folds)[of_row] for _ in range(repeats)])


def confound_matrix(age: Sequence[float], sex: Sequence[str]) -> np.ndarray:
    """Constant, age in decades and sex, (N, 1 to 3) float; a confound that does not vary is left out."""
    age = np.asarray(age, float) / 10
    male = np.array([str(s).upper().startswith("M") for s in sex], float)
    columns = [np.ones(len(age))]
    columns += [column - column.mean() for column in (age, male) if np.ptp(column) > 0]
    return np.stack(columns, axis=1)


def residual_of(y: np.ndarray, confounds: np.ndarray, train: np.ndarray) -> np.ndarray:
    """y (N,) or (N, T) less what the confounds (N, C) explain, by coefficients of the rows in `train` alone."""
    coefficients, *_ = np.linalg.lstsq(confounds[train], y[train], rcond=None)
    return y - confounds @ coefficients


def cross_validate(
    predictor: Predictor,
    X: np.ndarray,
    y: np.ndarray,
    confounds: np.ndarray,
    folds: np.ndarray,
    stage: str = "folds",
    on_progress: OnProgress | None = None,
) -> OutOfFold:
    """Predict every subject's residual from the others.

    X (N, ...) as the predictor prepares it; y (N,), or (N, T) for a predictor that is vectorised; confounds (N, C);
    folds (R, N). Raises Cancelled within one step of the predictor.
    """
    predictions, residuals = [], []
    steps, step = int(sum(len(np.unique(row)) for row in folds)), 0
    for row in folds:
        predicted, residual = np.zeros(np.shape(y)), np.zeros(np.shape(y))
        for fold in np.unique(row):
            report(on_progress, stage, step, steps, f"{step} of {steps} fits")
            step += 1
            test = row == fold
            left = residual_of(y, confounds, ~test)
            predictor.fit(X[~test], left[~test], on_progress=_inside(on_progress, stage, step - 1, steps))
            predicted[test], residual[test] = predictor.predict(X[test]), left[test]
        predictions.append(predicted)
        residuals.append(residual)
    report(on_progress, stage, steps, steps)
    return OutOfFold(np.mean(predictions, axis=0), np.mean(residuals, axis=0), np.stack(predictions))


def _inside(on_progress: OnProgress | None, stage: str, step: int, steps: int) -> OnProgress | None:
    """Epochs within a fold: the bar stays at the fold, the message tells of the epoch."""
    if on_progress is None:
        return None

    def tell(progress: Progress) -> None:
        on_progress(Progress(stage, step, steps, f"{progress.stage} {progress.step}/{progress.of} {progress.message}"))

    return tell


def shuffled_targets(y: np.ndarray, confounds: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Targets (N, T) under the hypothesis that the head tells nothing: residuals given to other subjects (Freedman &
    Lane 1983). Running the whole validation on them gives the null distribution of every figure, with the dependence
    between folds in it; shuffling finished predictions does not.

    Residuals of a regression are not exchangeable: they lack what the confounds took. Noise of their size is put back
    in that direction first. No figure depends on it (`residual_of` takes it away), and what is shuffled is then alike.
    """
    left = residual_of(y, confounds, np.ones(len(y), bool))
    rng = np.random.default_rng(seed)
    noise = np.sqrt(left @ left / max(len(y) - confounds.shape[1], 1)) * rng.standard_normal(len(y))
    whole = left + noise - residual_of(noise, confounds, np.ones(len(y), bool))
    return whole[rng.permuted(np.tile(np.arange(len(y)), (count, 1)), axis=1)].T
