"""Targets with a known truth: HU of muscle tied to a trait that real faces have, or to nothing; cohorts of any size.

For validating and teaching. CT-like pictures with known HU are in `phantoms`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..template import load_template
from .features import FAT, TISSUE
from .validation import confound_matrix, residual_of

MEAN_HU, SD_HU = 45.0, 8.0
HU_PER_YEAR, HU_OF_MEN = -0.3, 4.0  # of the order that ageing studies of muscle report
TRAITS = ("cheek_fat", "face_volume", "head_size")


def facial_trait(image: np.ndarray, mm_per_template_mm: np.ndarray, trait: str = "cheek_fat") -> float:
    """A trait of a head in template space (brain's median = 1), in ml.

    cheek_fat : tissue brighter than muscle in the lower face (below the nasion, in front of the ears), within 2 cm of
    the average skin. face_volume : all tissue of that region. head_size : of the cranium, which no defacer removes.
    """
    template = load_template()
    ml = float(np.prod(mm_per_template_mm)) * template.spacing**3 / 1000
    if trait == "head_size":
        return float(template.core.sum() * ml)
    low = template.points[..., 2] < template.landmarks["nasion"][2]
    lower_face = template.surface_region & low & (np.abs(template.skin_distance) < 20)
    if trait == "cheek_fat":
        return float((image[lower_face] > FAT).sum() * ml)
    if trait == "face_volume":
        return float((image[lower_face] > TISSUE).sum() * ml)
    raise ValueError(f"unknown trait {trait!r}: {', '.join(TRAITS)}")


def simulated_hu(
    trait: np.ndarray, age: Sequence[float], sex: Sequence[str], strength: float, rng: np.random.Generator
) -> np.ndarray:
    """HU (N,) of a muscle: falls with age, differs by sex, and what is left correlates by `strength` (0 to 1, in the
    population) with the trait (N,) less what age and sex explain of it."""
    confounds = confound_matrix(age, sex)
    own = residual_of(np.asarray(trait, float), confounds, np.ones(len(confounds), bool))
    own = own / (own.std() or 1.0)
    left = strength * own + np.sqrt(1 - strength**2) * rng.standard_normal(len(own))
    male = np.array([str(s).upper().startswith("M") for s in sex], float)
    return MEAN_HU + HU_PER_YEAR * (np.asarray(age, float) - 60) + HU_OF_MEN * male + SD_HU * left


@dataclass(frozen=True, eq=False)
class SimulatedCohort:
    """X : image type -> features (N, P); age (N,), sex (N,) "M" or "F", y (N,) HU."""

    X: dict[str, np.ndarray]
    age: np.ndarray
    sex: np.ndarray
    y: np.ndarray


@dataclass(frozen=True, eq=False)
class HeadModel:
    """Draws heads that vary as real ones do: a Gaussian model of the principal components of real heads' features.

    mean (P,), modes (M, P) with their spread in them; `age_sex` (2, P): how features move with age (decades) and sex.
    face (P,) bool: what is gone when the head is defaced.
    """

    mean: np.ndarray
    modes: np.ndarray
    age_sex: np.ndarray
    face: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray, age: Sequence[float], sex: Sequence[str], face: np.ndarray) -> HeadModel:
        """From real heads: features X (N, P), ages, sexes; face (P,) bool."""
        scaled = X / np.where(X.std(axis=0) > 0, X.std(axis=0), 1)
        confounds = confound_matrix(age, sex)
        coefficients, *_ = np.linalg.lstsq(confounds, scaled, rcond=None)
        left = scaled - confounds @ coefficients
        _, values, modes = np.linalg.svd(left / np.sqrt(len(X) - confounds.shape[1]), full_matrices=False)
        keep = values > 1e-6 * values[0]
        return cls(scaled.mean(axis=0), values[keep, None] * modes[keep], coefficients[1:], np.asarray(face, bool))

    def cohort(
        self, count: int, strength: float, rng: np.random.Generator, ageing: float = 1.0, noise: float = 0.3
    ) -> SimulatedCohort:
        """`count` heads, original and defaced; HU is tied by `strength` to a trait that facial features alone carry.

        Half of the face's variance goes with the rest of the head and half is its own; the trait is the main direction
        of the latter. `ageing` scales what heads tell of age and sex. `noise`: of each feature, in its own standard
        deviations.
        """
        age, sex = rng.uniform(45, 75, count), rng.choice(["F", "M"], count)
        shared, facial = rng.standard_normal((2, count, len(self.modes)))
        own = shared @ self.modes
        of_face = self.modes[:, self.face]
        own[:, self.face] = np.sqrt(0.5) * (own[:, self.face] + facial @ of_face)
        trait = facial @ of_face @ np.linalg.svd(of_face, full_matrices=False)[2][0]
        X = self.mean + own + ageing * confound_matrix(age, sex)[:, 1:] @ self.age_sex
        X = X + noise * rng.standard_normal(X.shape)
        defaced = X.copy()
        defaced[:, self.face] = 0.0
        y = simulated_hu(trait, age, sex, strength, rng)
        return SimulatedCohort({"original": X, "defaced": defaced}, age, sex, y)
