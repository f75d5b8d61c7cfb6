"""A report as one HTML page that asks the network for nothing: pictures inlined, everything of a run escaped."""

import base64
import html
from collections.abc import Sequence

from utils.report.blocks import Block, Cell, Missing, Number, Picture, Section, Table, Text

# what the page may load: nothing but what is inside it
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --paper: #fff; --wash: #f6f8fa;
        --link: #0072b2; --warn: #8a4b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9aa4af; --line: #3d444d; --paper: #11151a; --wash: #1a2028; --link: #56b4e9;
          --warn: #e69f00; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
a { color: var(--link); }
p { margin: .6rem 0; max-width: 62rem; }
.soft, figcaption { color: var(--soft); font-size: .875rem; }
nav ul { list-style: none; padding: 0; margin: .5rem 0; display: flex; flex-wrap: wrap; gap: .25rem 1rem;
         font-size: .875rem; }
.table { overflow-x: auto; margin: 0 0 .5rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.caption { margin: 1rem 0 .35rem; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td.long { min-width: 11rem; overflow-wrap: anywhere; }
td.number { white-space: nowrap; }
th { background: var(--wash); }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible, summary:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
code { background: var(--wash); padding: .1rem .3rem; border-radius: 4px; font-size: .875rem; }
.missing { border-left: 3px solid var(--warn); padding-left: .75rem; }
summary { cursor: pointer; }
@media print {
  body { max-width: none; font-size: 10pt; }
  nav { display: none; }
  .table { overflow: visible; }
  table { font-size: 8pt; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""

SCRIPT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const column = [...head.parentElement.children].indexOf(head);
    const up = head.getAttribute("aria-sort") !== "ascending";
    const number = row => Number(row.children[column].dataset.value ?? NaN);
    const text = row => row.children[column].textContent;
    const compare = (a, b) => {  // numbers, then words
      const x = number(a), y = number(b), words = isNaN(x) - isNaN(y);
      return words || (isNaN(x) ? text(a).localeCompare(text(b), undefined, {numeric: true}) : x - y);
    };
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...[...body.rows].sort((a, b) => up ? compare(a, b) : compare(b, a)));
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => d.open = true));
"""

SCALE = 96 / 150  # a figure is saved at 150 dots an inch, and a page has 96
TALLEST = 720  # pixels of the page
MOST_NAMES = 3  # of runs that stand open
LONG = 40  # characters from which on a cell's text may wrap


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    links = "".join(f'<li><a href="#{_text(s.anchor)}">{_text(s.title)}</a></li>' for s in sections)
    body = "".join(_section(section) for section in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n"
        f'<body><header><h1>{_text(title)}</h1><p class="soft">{_text(subtitle)}</p>'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav></header>\n<main>{body}</main>\n'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _section(section: Section) -> str:
    blocks = "".join(_block(block) for block in section.blocks)
    return f'<section id="{_text(section.anchor)}"><h2>{_text(section.title)}</h2>{blocks}</section>\n'


def _block(block: Block) -> str:
    match block:
        case Text():
            lead = f"<strong>{_text(block.lead)}</strong> " if block.lead else ""
            return f"<p>{lead}{_text(block.text)}</p>"
        case Missing():
            return f'<p class="missing">{_text(block.what)} Run <code>{_text(block.command)}</code></p>'
        case Picture():
            width = round(block.size[0] * min(SCALE, TALLEST / block.size[1]))
            data = base64.b64encode(block.png).decode()
            return (
                f'<figure><img src="data:image/png;base64,{data}" width="{width}" alt="{_text(block.alt)}">'
                f"<figcaption>{_text(block.alt)}. From {_text(block.run)}</figcaption></figure>"
            )
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col"><button>{_text(column)}</button></th>' for column in table.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    source = _source(table.runs)
    whole = (
        f'<p class="soft caption">{_text(table.caption)}</p>'
        f'<div class="table" role="region" tabindex="0" aria-label="{_text(table.caption)}"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{source}\n"
    )
    return f"<details><summary>{_text(table.caption)}</summary>{whole}</details>" if table.folded else whole


def _cell(cell: Cell) -> str:
    if isinstance(cell, Number):
        bounds = "" if cell.low is None else f' data-low="{cell.low!r}" data-high="{cell.high!r}"'
        return f'<td class="number" data-value="{cell.value!r}"{bounds}>{_text(cell.text)}</td>'
    return f"<td{' class=long' if len(cell) > LONG else ''}>{_text(cell)}</td>"


def _source(runs: Sequence[str]) -> str:
    """The runs that a table came from; many of them unfold."""
    if not runs:
        return ""
    names = f"From {_text(', '.join(runs))}"
    if len(runs) <= MOST_NAMES:
        return f'<p class="soft">{names}</p>'
    return f'<details class="soft"><summary>From {len(runs):,} runs</summary><p>{names}</p></details>'


def _text(value: str) -> str:
    return html.escape(value, quote=True)
