# SPDX-License-Identifier: GPL-2.0-or-later
"""
Write a report as one HTML file, which loads no other file
"""
import contextlib
from html import escape
import os
import secrets
import time
from typing import (
    List,
    NamedTuple,
    Sequence,
    Tuple,
)


class Table(NamedTuple):
    """A table with a head; columns of numbers are aligned to the right."""
    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[object]]


class Text(NamedTuple):
    """Commands or their output, shown verbatim."""
    title: str
    text: str


class Step(NamedTuple):
    """Something that was done or found; the time is that of time.time()."""
    time: float
    name: str
    message: str


class Report(NamedTuple):
    """
    The parts of a report, in the order of the page.

    verdict: one sentence; good: is it green, or red?
    facts: labels and values
    picture: an SVG element
    description: the picture in words, for screen readers
    """
    title: str
    verdict: str
    good: bool
    facts: Sequence[Tuple[str, str]] = ()
    picture: str = ''
    description: str = ''
    tables: Sequence[Table] = ()
    texts: Sequence[Text] = ()
    steps: Sequence[Step] = ()


STYLE = '''
:root { color-scheme: light dark; --ink: #1a1a1a; --grey: #5f5f5f;
  --line: #d9d9d9; --page: #fff; --box: #f5f5f5; --good: #00684a;
  --bad: #b3261e; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--page); }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.verdict { font-size: 1.15rem; font-weight: 600; margin: .5rem 0 1.5rem;
  padding-left: .75rem; border-left: .3rem solid; }
.good { color: var(--good); }
.bad { color: var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr;
  gap: .15rem 1.5rem; margin: 0; }
dt { color: var(--grey); }
dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; }
figure svg { width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .25rem 1.25rem .25rem 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { color: var(--grey); font-weight: 500; vertical-align: bottom; }
tbody th { font-weight: inherit; }
.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
pre { background: var(--box); padding: .75rem 1rem; overflow-x: auto;
  font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --grey: #a3a3a3; --line: #3d3d3d;
    --page: #161616; --box: #222; --good: #5cd6a8; --bad: #ff8a80; }
  figure svg { filter: invert(.914) hue-rotate(180deg); }
}
@media print {
  :root { color-scheme: light; --ink: #000; --grey: #444; --line: #bbb;
    --page: #fff; --box: #fff; --good: #00684a; --bad: #b3261e; }
  body { max-width: none; margin: 0; font-size: 10pt; }
  figure, tr, pre { break-inside: avoid; }
  h2 { break-after: avoid; }
  figure svg { filter: none; }
}
'''


def _is_number(cell: object) -> bool:
    """Does a cell begin like a number?"""
    return str(cell).lstrip('-+<>≤≥ ')[:1].isdigit()


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as HTML; the first cell of a row is its heading."""
    right = [' class="number"' if rows and all(
        _is_number(row[column]) for row in rows) else ''
        for column in range(len(heads))]
    lines = ['<div class="wide"><table><thead><tr>']
    lines += [f'<th scope="col"{place}>{escape(head)}</th>'
              for head, place in zip(heads, right)]
    lines.append('</tr></thead><tbody>')
    for row in rows:
        first, *others = [escape(str(cell)) for cell in row]
        lines.append(f'<tr><th scope="row"{right[0]}>{first}</th>')
        lines += [f'<td{place}>{cell}</td>'
                  for cell, place in zip(others, right[1:])]
        lines.append('</tr>')
    lines.append('</tbody></table></div>')
    return '\n'.join(lines)


def _log(steps: Sequence[Step]) -> str:
    """The steps as HTML, with the times since the first of them."""
    begin = steps[0].time
    when = time.strftime('%Y-%m-%d %H:%M:%S %Z', time.localtime(begin))
    return f'<h2>What happened from {when}</h2>\n' + _table(
        ('seconds', 'step', 'message'),
        [(f'{step.time - begin:.3f}', step.name, step.message)
         for step in steps])


def render(report: Report) -> str:
    """Return a report as HTML."""
    kind = 'good' if report.good else 'bad'
    parts: List[str] = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        # Keeps a browser from loading or running anything, whatever names
        # and messages contain.
        '<meta http-equiv="Content-Security-Policy" content="default-src '
        "'none'; img-src data:; style-src 'unsafe-inline'\">",
        f'<title>{escape(report.title)}</title>',
        f'<style>{STYLE}</style>\n</head>\n<body>\n<main>',
        f'<h1>{escape(report.title)}</h1>',
        f'<p class="verdict {kind}">{escape(report.verdict)}</p>']
    if report.facts:
        parts += ['<dl>', *(f'<dt>{escape(label)}</dt><dd>{escape(value)}</dd>'
                            for label, value in report.facts), '</dl>']
    if report.picture:
        parts.append('<figure>' + report.picture.replace(
            '<svg ', f'<svg role="img" aria-label="'
            f'{escape(report.description)}" ', 1) + '</figure>')
    for table in report.tables:
        parts += [f'<h2>{escape(table.title)}</h2>',
                  _table(table.heads, table.rows)]
    for text in report.texts:
        parts += [f'<h2>{escape(text.title)}</h2>',
                  f'<pre>{escape(text.text)}</pre>']
    if report.steps:
        parts.append(_log(report.steps))
    return '\n'.join(parts + ['</main>\n</body>\n</html>\n'])


def write(path: str, report: Report) -> None:
    """Write a report; until it is complete, the file has its old text."""
    temporary = f'{path}.{secrets.token_hex(4)}'
    try:
        with open(temporary, 'x', encoding='utf-8') as file:
            file.write(render(report))
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
