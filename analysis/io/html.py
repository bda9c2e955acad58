"""HTML from texts, tables and Vega-Lite: every text is escaped, and the page fetches nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import zip_longest
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e6e6e6; }
section, details { overflow-x: auto; }
td { overflow-wrap: break-word; } details td:last-child { overflow-wrap: anywhere; }
summary { cursor: pointer; margin: 2.2rem 0 .5rem; font-weight: bold; }
.quiet { color: #666; }
.passed td:nth-child(3) { color: #00694d; }
.failed td:nth-child(3) { color: #b34700; font-weight: bold; }
.verdict { border-left: 4px solid #0072B2; padding: .2rem 0 .2rem .9rem; font-size: 1.05rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.figures > div { max-width: 100%; overflow-x: auto; }
.controls { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; margin: .8rem 0; }
.controls select, .controls input, button { font: inherit; font-size: .9rem; }
.rows { max-height: 22rem; overflow: auto; border: 1px solid #e6e6e6; }
.rows th { position: sticky; top: 0; background: white; white-space: nowrap; }
.rows th button, .rows td button { border: 0; padding: 0; background: none; color: #0072B2; cursor: pointer; }
.rows th button { color: inherit; font-weight: bold; }
th[aria-sort=ascending] button::after { content: " ↑"; } th[aria-sort=descending] button::after { content: " ↓"; }
tr.chosen { background: #e8f1f8; }
mark { background: #ffe3b8; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .5rem 0; }
dt { color: #666; } dd { margin: 0; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } }
@media print { .controls, .rows, button { display: none; } }
"""
# Nothing may be fetched: the page says so itself. Vega compiles its expressions, hence unsafe-eval.
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"


def page(
    title: str, sections: Sequence[str], figures: Mapping[str, Any], bundle: str, scripts: Sequence[str] = ()
) -> str:
    """The whole page. `figures` maps the ids of `figure` to Vega-Lite; `bundle` is Vega's JavaScript, inlined once.

    `scripts` are run after the figures, and know them as `specs`.
    """
    draw = (
        "for (const [id, spec] of Object.entries(specs)) vegaEmbed('#' + id, spec, {actions: false, renderer: 'svg'});"
    )
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            *sections,
            "<script>",
            bundle.replace("</script", "<\\/script"),
            "</script>",
            f"<script>const specs = {script_value(figures)};\n{draw}</script>",
            *(f"<script>{script}</script>" for script in scripts),
            "</body></html>\n",
        ]
    )


def script_value(value: Any) -> str:
    """A value as a script has it, in which no text can end the script."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def title_line(title: str, below: str) -> str:
    """The head of the page: its title, and a quiet line."""
    return f"<h1>{escape(title)}</h1>{paragraph(below, 'quiet')}"


def section(heading: str, *parts: str) -> str:
    """A headed part of the page, from parts that are HTML already."""
    return f"<section><h2>{escape(heading)}</h2>{''.join(parts)}</section>"


def folded(heading: str, *parts: str) -> str:
    """A part of the page that opens where its heading is clicked."""
    return f"<details><summary>{escape(heading)}</summary>{''.join(parts)}</details>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def html_table(heads: Sequence[str], rows: Iterable[Sequence[object]], kinds: Sequence[str] = ()) -> str:
    """A table of plain texts; `kinds` names a style for each row."""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = [
        f'<tr class="{kind}">' + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row, kind in zip_longest(rows, kinds, fillvalue="")
    ]
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def figure(name: str) -> str:
    """The place that a figure is drawn into."""
    return f'<div id="{escape(name)}"></div>'


def figure_row(*figures: str) -> str:
    """Figures beside each other, where the window is wide enough."""
    return f'<div class="figures">{"".join(figures)}</div>'


def facts(values: Mapping[str, Any]) -> str:
    """A table of names and values, nested ones flattened: `data.used`."""
    return html_table(("", ""), _flat(values))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for place, item in enumerate(value, 1):
                yield f"{prefix}{name} {place}", ", ".join(f"{key} {number}" for key, number in item.items())
        else:
            yield f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else value
