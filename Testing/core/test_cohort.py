"""A participants table: every row is used, or listed with its reason."""

from __future__ import annotations

import pytest

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.radiodensity.cohort import read_cohort


@pytest.fixture
def table(tmp_path):
    """Writes rows below a header; heads a.nii to e.nii exist."""
    for name in "abcde":
        (tmp_path / f"{name}.nii").touch()
    (tmp_path / "sub-02_T1w.nii").touch()

    def write(*rows, header="participant_id\thead\tage\tsex\thu_thigh"):
        path = tmp_path / "participants.tsv"
        path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return path

    return write


def test_good_rows_are_used(table):
    cohort = read_cohort(table("sub-01\ta.nii\t50\tM\t45.5", "sub-02\tsub-02_T1w.nii\t61.5\tfemale\t-3"))
    assert [(one.participant, one.sex, one.targets) for one in cohort.participants] == [
        ("sub-01", "M", {"hu_thigh": 45.5}),
        ("sub-02", "F", {"hu_thigh": -3.0}),
    ]
    assert cohort.problems == [] and cohort.targets == ["hu_thigh"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("sub-09\tb.nii\tn/a\tM\t40", "age is missing"),
        ("sub-09\tb.nii\t250\tM\t40", "age is 250"),
        ("sub-09\tb.nii\t50\t1\t40", "sex is 1"),
        ("sub-09\tz.nii\t50\tM\t40", "head z.nii does not exist"),
        ("sub-09\t\t50\tM\t40", "head is missing"),
        ("\tb.nii\t50\tM\t40", "participant_id is missing"),
        ("../x\tb.nii\t50\tM\t40", "holds more than letters"),
        ("sub-09\ta.nii\t50\tM\t40", "is given to 2 rows"),
        ("sub-01\tb.nii\t50\tM\t40", "participant_id occurs 2 times"),
        ("sub-09\tsub-02_T1w.nii\t50\tM\t40", "is of sub-02, not of sub-09"),
        ("sub-09\tb.nii\t50\tM\tn/a", "no usable value of hu_thigh"),
        ("sub-09\tb.nii\t50\tM\t4000", "no HU of muscle"),
        ("sub-09\tb.nii\t50\tM", "4 cells"),
    ],
)
def test_a_bad_row_is_listed_with_its_line_and_reason(table, row, reason):
    cohort = read_cohort(table("sub-07\tc.nii\t50\tM\t45", "sub-01\ta.nii\t50\tM\t45", row))
    told = [str(problem) for problem in cohort.problems if problem.line == 4]
    assert any(reason in text for text in told), told
    assert all(one.head.name != "z.nii" for one in cohort.participants)
    dropped = {problem.line for problem in cohort.problems if problem.dropped}
    assert len(cohort.participants) + len(dropped) == 3  # no row is in neither


def test_a_ct_stands_in_for_a_value(table):
    cohort = read_cohort(
        table(
            "sub-01\ta.nii\t50\tM\tn/a\td.nii",
            "sub-02\tb.nii\t50\tF\t41\tn/a",
            header="participant_id\thead\tage\tsex\thu_thigh\tct_thigh",
        )
    )
    assert [sorted(one.cts) for one in cohort.participants] == [["thigh"], []]
    assert cohort.problems == [] and cohort.targets == ["hu_thigh"]


def test_any_column_can_be_a_target(table):
    path = table("sub-01\ta.nii\t50\tM\t22.5", header="participant_id\thead\tage\tsex\tbmi")
    assert read_cohort(path, ["bmi"]).participants[0].targets == {"bmi": 22.5}
    with pytest.raises(RefaceRiskError, match="nothing to predict"):
        read_cohort(path)
    with pytest.raises(RefaceRiskError, match="no column height"):
        read_cohort(path, ["height"])


def test_a_table_that_is_none_is_refused(tmp_path):
    path = tmp_path / "participants.tsv"
    path.write_text("participant_id,head\n")
    with pytest.raises(RefaceRiskError, match="no tab-separated table"):
        read_cohort(path)
    path.write_text("participant_id\thead\tsex\n")
    with pytest.raises(RefaceRiskError, match="no column age"):
        read_cohort(path)
