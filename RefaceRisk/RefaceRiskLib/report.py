"""A self-contained HTML page: one file that can be mailed, printed and read on a phone.

Text that comes from outside (file names, subject labels, messages) goes through `escape` in every function
here; nothing on the page is fetched: pictures are embedded and the only style sheet is the one below.
"""

from __future__ import annotations

import base64
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<main>
<header>
<p class="kicker">$kicker</p>
<h1>$title</h1>
<p class="lead">$lead</p>
</header>
$body
</main>
<footer>$footer</footer>
</body>
</html>
""")

_STYLE = """
:root { --ink: #1c2126; --soft: #5d6872; --rule: #dde1e5; --paper: #fdfdfc; --panel: #f4f5f4;
  --accent: #1f6f78; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e8ea; --soft: #98a3ac; --rule: #333a41; --paper: #14171a; --panel: #1c2024;
    --accent: #6fbcc4; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main, footer { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding: 3rem 0 .5rem; }
.kicker { margin: 0 0 .35rem; color: var(--accent); font-size: .8rem; font-weight: 600; letter-spacing: .06em;
  text-transform: uppercase; }
h1 { margin: 0 0 1rem; font-size: clamp(1.5rem, 4.5vw, 2.1rem); line-height: 1.2; font-weight: 650;
  text-wrap: balance; }
h2 { margin: 2.75rem 0 .6rem; font-size: 1.15rem; line-height: 1.3; font-weight: 650; }
p, li { max-width: 44rem; }
.lead { font-size: clamp(1.08rem, 2.6vw, 1.28rem); line-height: 1.55; margin: 0; max-width: 48rem; }
.note { color: var(--soft); font-size: .9rem; }
.notice { border-left: 3px solid var(--accent); background: var(--panel); padding: .7rem 1rem;
  margin: 1.5rem 0; font-size: .93rem; max-width: 48rem; }
figure { margin: 1.5rem 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 4px; background: #000; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .6rem; max-width: 44rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .9rem .5rem 0; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--rule); }
th { font-size: .82rem; font-weight: 600; color: var(--soft); white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td:first-child { white-space: nowrap; }
tr.strong td { font-weight: 650; }
.bar { display: block; height: .55rem; min-width: 2px; border-radius: 2px; background: var(--accent); }
td.bars { width: 34%; min-width: 7rem; padding-left: .6rem; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .35rem 1.5rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
code, .hash { font: .84em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--accent); }
footer { padding-top: 2.5rem; padding-bottom: 3rem; color: var(--soft); font-size: .85rem; }
@media (max-width: 34rem) {
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .7rem; }
  th, td { padding-right: .7rem; font-size: .93rem; } th.number { white-space: normal; }
  td.bars, th.bars { display: none; }
}
@media print {
  :root { --ink: #000; --soft: #444; --rule: #bbb; --paper: #fff; --panel: #f3f3f3;
    --accent: #1f6f78; }
  body { font-size: 10.5pt; } header { padding-top: 0; } figure, tr, dl { break-inside: avoid; }
  .bar, figure img { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  @page { margin: 16mm; }
}
"""


_UNIT = re.compile(r"(?<=\d) (?=(?:mm|%)(?!\w))")  # a number and its unit stay on one line


@dataclass(frozen=True)
class Column:
    """One column of a table: the key in each row, the heading, and how a value is written."""

    key: str
    heading: str
    digits: int | None = None  # None: text; n: a number with n decimals, right-aligned
    unit: str = ""


def page(title: str, lead: str, sections: Iterable[str], kicker: str = "MRIRefaceRisk", footer: str = "") -> str:
    """The whole page. `title`, `lead`, `kicker`, `footer` are plain text; `sections` are HTML made here."""
    return _PAGE.substitute(
        title=escape(title),
        kicker=escape(kicker),
        lead=escape(_UNIT.sub("\u00a0", lead)),
        style=_STYLE.strip(),
        body="\n".join(sections),
        footer=escape(footer),
    )


def section(heading: str, *parts: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str, kind: str = "") -> str:
    """`kind`: "" | "note" (small, grey) | "notice" (set apart)."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def bullets(texts: Iterable[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{escape(text)}</li>" for text in texts) + "\n</ul>"


def table(
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, object]],
    caption: str = "",
    bars: str = "",
    strong: Mapping[str, object] | None = None,
) -> str:
    """Rows of values; the numbers under key `bars` are drawn too; rows that match `strong` stand out."""
    longest = max((float(row[bars]) for row in rows if row.get(bars) is not None), default=0.0) if bars else 0.0
    heads = "".join(f"<th{_align(column)}>{escape(_heading(column))}</th>" for column in columns)
    if bars:
        heads += '<th class="bars" aria-hidden="true"></th>'
    lines = []
    for row in rows:
        stands_out = bool(strong) and all(row.get(key) == value for key, value in strong.items())
        cells = "".join(
            f"<td{_align(column)}>{escape(_written(row.get(column.key), column))}</td>" for column in columns
        )
        if bars:
            share = 100 * float(row[bars]) / longest if longest > 0 and row.get(bars) is not None else 0
            bar = f'<span class="bar" style="width:{share:.1f}%"></span>'
            cells += f'<td class="bars" aria-hidden="true">{bar}</td>'
        lines.append(f'<tr class="strong">{cells}</tr>' if stands_out else f"<tr>{cells}</tr>")
    # A figure, and no <caption>: on a phone the table scrolls sideways and its caption must not.
    note = f"\n<figcaption>{escape(caption)}</figcaption>" if caption else ""
    body = "\n".join(lines)
    return (
        f'<figure><div class="scroll"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>{note}</figure>"
    )


def figure(png: str | Path, alt: str, caption: str = "") -> str:
    """A PNG embedded in the page."""
    data = base64.b64encode(Path(png).read_bytes()).decode("ascii")
    note = f"\n<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{data}">{note}</figure>'


def facts(pairs: Mapping[str, object] | Iterable[tuple[str, object]]) -> str:
    """A list of name and value; a value that looks like a checksum is set in a fixed-width face."""
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    lines = [f"<dt>{escape(str(name))}</dt><dd{_hash_class(value)}>{escape(str(value))}</dd>" for name, value in items]
    return "<dl>\n" + "\n".join(lines) + "\n</dl>"


def folded(summary: str, *parts: str) -> str:
    """Detail that only some readers want; open when printed is up to the browser."""
    return f"<details><summary>{escape(summary)}</summary>\n" + "\n".join(parts) + "\n</details>"


def write(html: str, path: str | Path) -> Path:
    """Writes to a temporary name beside `path` and renames, so that a half page is never seen."""
    return write_text(html, path)


def write_text(text: str, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _heading(column: Column) -> str:
    return f"{column.heading} [{column.unit}]" if column.unit else column.heading


def _align(column: Column) -> str:
    return "" if column.digits is None else ' class="number"'


def _written(value: object, column: Column) -> str:
    if value is None or value == "":
        return "–"
    return str(value) if column.digits is None else f"{float(value):.{column.digits}f}"


def _hash_class(value: object) -> str:
    text = str(value)
    return ' class="hash"' if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text) else ""
