"""Tests over subjects, against scipy and against what is known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from RefaceRiskLib.study.statistics import holm, paired, paired_tests, rate_interval


def test_holm_of_known_p_values():
    """The example of Holm (1979) as most textbooks give it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]


def test_a_shift_in_every_subject_is_the_largest_effect():
    rng = np.random.default_rng(0)
    first = rng.normal(size=12)
    found = paired(first - 1, first)
    assert found["n"] == 12 and found["rank_biserial"] == -1 and found["difference_mm"] == pytest.approx(-1)
    assert found["p"] == pytest.approx(2 / 2**12)


def test_the_effect_size_is_that_of_the_signed_ranks():
    first, second = np.array([1.0, 5.0, 2.0, 9.0, 4.0, 4.0]), np.array([2.0, 3.0, 5.0, 1.0, 9.5, 4.5])
    difference = first - second
    rank = stats.rankdata(np.abs(difference))
    by_hand = (rank[difference > 0].sum() - rank[difference < 0].sum()) / rank.sum()
    found = paired(first, second)
    assert found["rank_biserial"] == pytest.approx(by_hand)
    assert found["rank_biserial_low"] <= by_hand <= found["rank_biserial_high"]


def test_the_interval_of_a_median_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(60):
        found = paired(rng.normal(0.3, 1, 30), np.zeros(30))
        covered += found["difference_low"] <= 0.3 <= found["difference_high"]
    assert covered >= 51  # 95 % of 60 is 57; fewer than 51 by chance once in 200 times


def test_too_few_subjects_give_no_p_and_equal_images_no_difference():
    assert paired([1, 2, 3], [2, 3, 4])["p"] is None
    equal = paired([1.0] * 8, [1.0] * 8)
    assert equal["p"] == 1.0 and equal["difference_mm"] == 0 and equal["rank_biserial"] == 0
    assert paired([], [])["n"] == 0


def test_wilsons_interval_of_a_rate():
    assert rate_interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert rate_interval(30, 30) == pytest.approx((0.8865, 1), abs=1e-4)
    assert rate_interval(0, 0) == (0, 1)


def rows(seen=lambda n: "no"):
    found = []
    for number in range(12):
        for image, value in (("defaced", 4.0), ("dpm", 0.5), ("average", 0.8)):
            found.append({"participant_id": f"sub-{number}", "defacer": "mri_deface", "image": image, "region": "face",
                          "mean_mm": value + 0.01 * number, "seen_in_training": seen(number)})  # fmt: skip
    return found


def test_every_image_is_compared_with_the_average_face_and_the_defaced_copy():
    found = paired_tests(rows())
    assert {(row["image"], row["against"]) for row in found} == {
        ("dpm", "average"), ("dpm", "defaced"), ("average", "defaced")}  # fmt: skip
    assert all(row["group"] == "all" and row["n"] == 12 and row["p_holm"] >= row["p"] for row in found)


def test_heads_of_the_training_are_told_apart():
    found = paired_tests(rows(lambda n: "yes" if n < 6 else "no"))
    assert {(row["group"], row["n"]) for row in found} == {("all", 12), ("unseen", 6)}
