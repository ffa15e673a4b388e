"""The HTML page: self-contained, escaped, complete."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from RefaceRiskLib import report

NASTY = '<script>alert("1 & 2")</script>'
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63f8cfc0f01f0005000201a5d5b1d40000000049454e44ae426082"
)
COLUMNS = [report.Column("image", "image"), report.Column("mean_mm", "mean", 2, "mm")]


class Outline(HTMLParser):
    """Opens and closes as a browser would have to, and collects what the page would load."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "faces.png"
    path.write_bytes(PNG)
    return path


def whole_page(picture) -> str:
    rows = [
        {"image": NASTY, "mean_mm": 2.4519},
        {"image": "dpm", "mean_mm": 0.363},
        {"image": "none", "mean_mm": None},
    ]
    return report.page(
        NASTY,
        NASTY,
        [
            report.section(NASTY, report.table(COLUMNS, rows, NASTY, bars="mean_mm", strong={"image": "dpm"})),
            report.figure(picture, NASTY, NASTY),
            report.facts({NASTY: NASTY, "sum": "a" * 64}),
            report.folded(NASTY, report.bullets([NASTY]), report.paragraph(NASTY, "notice")),
        ],
        kicker=NASTY,
        footer=NASTY,
    )


def test_the_page_is_one_well_formed_document(picture):
    outline = Outline(whole_page(picture))
    assert outline.open == []
    assert outline.tags.count("html") == outline.tags.count("h1") == outline.tags.count("table") == 1


def test_the_page_loads_nothing_from_anywhere(picture):
    html = whole_page(picture)
    assert Outline(html).loads and all(source.startswith("data:image/png;base64,") for source in Outline(html).loads)
    assert not re.search(r"https?://|@import|url\(", html)


def test_every_text_is_escaped(picture):
    outline = Outline(whole_page(picture))
    assert "script" not in outline.tags
    assert sum(NASTY in text for text in outline.texts) >= 10


def test_numbers_are_written_with_their_decimals_and_a_gap_as_a_dash():
    outline = Outline(report.table(COLUMNS, [{"image": "a", "mean_mm": 2.4519}, {"image": "b", "mean_mm": None}]))
    assert "2.45" in outline.texts and "–" in outline.texts and "mean [mm]" in outline.texts


def test_bars_are_drawn_to_the_longest():
    html = report.table(COLUMNS, [{"image": "a", "mean_mm": 4.0}, {"image": "b", "mean_mm": 1.0}], bars="mean_mm")
    assert re.findall(r"width:([\d.]+)%", html) == ["100.0", "25.0"]


def test_bars_of_nothing_but_zeros_do_not_divide_by_zero():
    assert "width:0.0%" in report.table(COLUMNS, [{"image": "a", "mean_mm": 0.0}], bars="mean_mm")


def test_only_the_row_asked_for_stands_out():
    html = report.table(
        COLUMNS, [{"image": "a", "mean_mm": 4.0}, {"image": "b", "mean_mm": 1.0}], strong={"image": "b"}
    )
    assert html.count('<tr class="strong"><td>b</td>') == html.count("strong") == 1


def test_dollar_signs_in_names_survive_the_template():
    assert "$title ${x} $" in Outline(report.page("$title ${x} $", "", [])).texts


def test_a_page_that_cannot_be_written_leaves_the_old_one_and_no_crumbs(tmp_path, monkeypatch):
    path = report.write("old", tmp_path / "report.html")
    monkeypatch.setattr(report.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report.write("new", path)
    assert path.read_text(encoding="utf-8") == "old" and [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
