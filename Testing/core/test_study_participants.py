"""Who takes part: tables, BIDS folders, and names that must not lead anywhere."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from RefaceRiskLib.errors import RefaceRiskError
from RefaceRiskLib.study.participants import NAME, read_participants


def table(tmp_path, *lines, header="participant_id\thead"):
    path = tmp_path / "participants.tsv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_a_head_is_found_beside_the_table_or_anywhere(tmp_path):
    found = read_participants(table(tmp_path, "sub-2\theads/b.nii.gz", f"sub-1\t{tmp_path}/a.nii.gz"))
    assert [(p.name, p.head) for p in found] == [
        ("sub-1", tmp_path / "a.nii.gz"),
        ("sub-2", tmp_path / "heads" / "b.nii.gz"),
    ]


@pytest.mark.parametrize(
    "name",
    ["../escaped", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "~root", "sub-1/../../x", "C:evil", "nul", "COM1.txt",
     "sub\u202e1", "-rf", ".hidden", "a" * 200, "sub-1\0", "sub 1", "sub-1.", "$(id)"],
)  # fmt: skip
def test_a_name_that_is_no_folder_is_refused_with_its_line(tmp_path, name):
    path = table(tmp_path, "sub-1\ta.nii.gz", f"{name}\tb.nii.gz")
    with pytest.raises(RefaceRiskError, match=r"line 3: .*(is no name for a participant)") as raised:
        read_participants(path)
    assert len(str(raised.value).splitlines()) == 1


@given(st.text(max_size=30))
def test_no_name_that_passes_leads_out_of_its_folder(text):
    from pathlib import Path, PureWindowsPath

    if NAME.fullmatch(text):
        for kind in (Path, PureWindowsPath):
            assert (kind("out") / text).parts == ("out", text)


def test_names_that_one_folder_would_hold_are_refused(tmp_path):
    with pytest.raises(RefaceRiskError, match="line 3: SUB-1 is there twice"):
        read_participants(table(tmp_path, "sub-1\ta.nii.gz", "SUB-1\tb.nii.gz"))


def test_a_table_that_is_none_is_refused_in_one_line(tmp_path):
    other = tmp_path / "participants.tsv"
    other.write_bytes(b"\xff\xfe\x00bad\x00")
    with pytest.raises(RefaceRiskError, match="cannot be read as a table"):
        read_participants(other)
    with pytest.raises(RefaceRiskError, match="no column participant_id"):
        read_participants(table(tmp_path, "1\t2", header="a\tb"))
    with pytest.raises(RefaceRiskError, match="line 2: sub-1 has no head"):
        read_participants(table(tmp_path, "sub-1\tn/a"))
    with pytest.raises(RefaceRiskError, match="no participants"):
        read_participants(table(tmp_path))
    with pytest.raises(RefaceRiskError, match="no such file"):
        read_participants(tmp_path / "absent")


def test_a_bids_folder_gives_the_first_session_and_no_derivatives(tmp_path):
    for name in ("sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
                 "sub-02/anat/sub-02_T1w.nii", "sub-02/anat/sub-02_T2w.nii", "derivatives/x/sub-03/anat/sub-03_T1w.nii",
                 "sub-02/anat/.sub-02_T1w.nii.part.nii"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = read_participants(tmp_path)
    assert {p.name: p.head.name for p in found} == {"sub-01": "sub-01_ses-1_T1w.nii.gz", "sub-02": "sub-02_T1w.nii"}


def test_a_flat_folder_with_a_table_gives_those_of_the_table(tmp_path):
    for name in ("sub-1_T1w.nii.gz", "sub-2_T1w.nii.gz", "sub-3_T1w.nii.gz"):
        (tmp_path / name).touch()
    table(tmp_path, "sub-2\t31", "sub-9\t32", header="participant_id\tage")
    assert [p.head.name for p in read_participants(tmp_path)] == ["sub-2_T1w.nii.gz", "sub-9_T1w.nii.gz"]


def test_the_cohort_of_the_test_data_is_read(shared_data):
    found = read_participants(shared_data / "cohort_ixi_2mm")
    assert len(found) == 30 and all(p.head.is_file() for p in found)


def test_a_hundred_thousand_rows_take_seconds(tmp_path):
    path = table(tmp_path, *(f"sub-{n:06d}\theads/sub-{n:06d}.nii.gz" for n in range(100_000)))
    began = time.process_time()
    found = read_participants(path)
    assert len(found) == 100_000 and time.process_time() - began < 10
