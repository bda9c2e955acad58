"""What the report says, from the verdict down to the definitions: each section is a function of the run's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from codi_tracing.analysis.io.html import facts, figure, figure_row, folded, html_table, paragraph, section, title_line
from codi_tracing.analysis.labels import place_name
from codi_tracing.analysis.report.methods import citations, definitions, excluded, listed, methods
from codi_tracing.analysis.statistics.ceiling import LOW_CEILING
from codi_tracing.analysis.statistics.corners import decomposition
from codi_tracing.analysis.statistics.ranking import rank_differences, winner
from codi_tracing.analysis.statistics.sites import critical
from codi_tracing.analysis.statistics.verdict import verdict

WORDS = {True: "passed", False: "failed", None: "noted"}


class Shown(NamedTuple):
    """A figure of the page: its name and section, whether it could be drawn, and what it says (or why it could not)."""

    name: str
    section: str
    drawn: bool
    text: str


def sections(
    name: str,
    manifest: Mapping[str, Any],
    table: pd.DataFrame,
    checks: list,
    shown: Sequence[Shown],
    low_ceiling: float = LOW_CEILING,
    linked: str = "",
) -> list[str]:
    """The body of the page: the verdict, the checks, the linked view, then the figures' sections in their order."""
    by_section: dict[str, list[Shown]] = {}
    for one in shown:
        by_section.setdefault(one.section, []).append(one)
    data, model = manifest.get("data") or {}, manifest.get("model") or {}
    about = [
        manifest.get("created"),
        f"checkpoint {model.get('checkpoint', 'unknown')}",
        f"protocol {manifest.get('protocol', 'unknown')}",
        f"{data.get('used', table['pair_id'].nunique())} of {data.get('read', 'unknown')} pairs used",
    ]
    verdict_ = verdict(table, low_ceiling).sentence
    corners = figures_of(by_section.pop("Verdict", []))
    ranked = ranking(table, low_ceiling) if (manifest.get("experiment") or "sweep") == "sweep" else ""
    return [
        title_line(name, "; ".join(str(part) for part in about if part)),
        section("Verdict", paragraph(verdict_, "verdict"), *corners, routes_table(table)),
        section("Checks", checks_table(checks)),
        *([linked] if linked else []),
        *(section(title, *figures_of(figures)) for title, figures in by_section.items()),
        *([section("The largest sites", ranked)] if ranked else []),
        section("Pairs left out", *excluded(data)),
        section("Methods", *map(paragraph, methods(manifest, table))),
        section("Definitions", html_table(("", ""), definitions(table, low_ceiling))),
        section("References", html_table(("for", "cite"), citations(manifest, table))),
        folded("The run, as its manifest has it", facts(listed(manifest))),
    ]


def figures_of(shown: Sequence[Shown]) -> list[str]:
    """What the figures of a section say, then the figures beside each other."""
    said = [paragraph(one.text) for one in shown if one.drawn and one.text]
    return [*said, figure_row(*(figure(o.name) if o.drawn else paragraph(o.text, "quiet") for o in shown))]


def checks_table(checks: Sequence[Mapping[str, Any]]) -> str:
    """Invariants first, then findings, each with whether it passed and its sentence."""
    ordered = sorted(checks, key=lambda check: check.get("grade") != "invariant")
    words = [WORDS[check.get("passed")] for check in ordered]
    rows = [
        (check.get("grade", ""), str(check.get("name", "")).replace("_", " "), word, check.get("sentence", ""))
        for check, word in zip(ordered, words, strict=True)
    ]
    return html_table(("grade", "check", "result", "what was found"), rows, words)


def routes_table(table: pd.DataFrame) -> str:
    """How much of the difference between the two runs goes through the thought, and how much past it."""
    try:
        parts = decomposition(table)
    except ValueError as error:
        return paragraph(f"Not shown: {error}.", "quiet")
    rows = [
        (row.part, row.contrast, f"{row.effect:z.2f}", f"{row.low:z.2f} to {row.high:z.2f}")
        for row in parts.itertuples()
    ]
    return html_table(("route", "corners (question, thought)", "share of cc − xx", "95% interval"), rows)


def ranking(table: pd.DataFrame, low_ceiling: float, top: int = 5) -> str:
    """The largest specific effects, each with the uncertainty of its size and of its rank."""
    try:
        sites = critical(table, low_ceiling=low_ceiling)
        said = winner(rank_differences(table))
    except ValueError:  # the figure beside it says why
        return ""
    rows = [
        (
            place_name(row, with_kind=True),
            f"{row['effect']:z.2f}",
            f"{row['low']:z.2f} to {row['high']:z.2f}",
            f"{row['rank_low']} to {row['rank_high']} of {len(sites)}",
            f"{row['first']:.0%}",
            *(f"{row[name]:.2g}" if row["specific"] else "none" for name in ("p_fwer", "q")),
            "critical" if row["critical"] else "exploratory" if row["exploratory"] else "",
        )
        for row in sites.head(top).to_dict("records")
    ]
    tested = bool(sites["specific"].all())
    noun = "specific effect" if tested else "effect"
    heads = ("site", noun, "95% interval", "rank, 95%", "is first", "p, family-wise", "q (FDR)", "")
    said += "" if tested else " No unrelated donor was swept, so no p-values."
    return paragraph(said) + html_table(heads, rows)
