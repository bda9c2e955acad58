"""The contents of a report, from the verdict down to the definitions, as values for `templates/report.html`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from codi_tracing.analysis.captions import site_name
from codi_tracing.analysis.report.catalogue import question_and_answer
from codi_tracing.analysis.report.finished_run import FinishedRun
from codi_tracing.analysis.report.methods import citations, definitions, excluded, methods, without_pair_lists
from codi_tracing.analysis.statistics.ceiling import interval_text
from codi_tracing.analysis.statistics.measures import THREE_ANSWERS
from codi_tracing.analysis.statistics.results import Results

CHECK_RESULTS = {True: "passed", False: "failed", None: "noted"}
LARGEST_SITES = 5


class Shown(NamedTuple):
    """A figure of a page: name, section, whether it is drawn, and its sentence (or why it is not drawn)."""

    name: str
    section: str
    drawn: bool
    text: str


def report_values(run: FinishedRun, shown: Sequence[Shown]) -> dict[str, Any]:
    """The values of a report's page, but for its scripts."""
    manifest, results, table = run.manifest, run.results, run.results.table
    sections: dict[str, list[Shown]] = {}
    for one in shown:
        sections.setdefault(one.section, []).append(one)
    data, model = manifest.get("data") or {}, manifest.get("model") or {}
    about = [
        manifest.get("name") or run.folder.name,
        manifest.get("created"),
        f"checkpoint {model.get('checkpoint', 'unknown')}",
        f"protocol {manifest.get('protocol', 'unknown')}",
        f"{data.get('used', table['pair_id'].nunique())} of {data.get('read', 'unknown')} pairs used",
    ]
    shown_checks = [check for check in run.checks if check.get("name") != "verdict"]  # it opens the page
    checks = sorted(shown_checks, key=lambda check: check.get("grade") != "invariant")
    held = [check.get("passed") is True for check in checks if check.get("grade") == "invariant"]
    question, answer = question_and_answer(run.experiment, results)
    corners = sections.pop("Verdict", [])
    main = sections.pop(next(iter(sections))) if sections else []
    main = [one._replace(text="") if one.text and one.text in answer else one for one in main]
    return {
        "title": question or f"{manifest.get('name') or run.folder.name}: patching of a latent thought",
        "about": "; ".join(str(part) for part in about if part),
        "answer": answer,
        "main": main,
        "invariants": f"{sum(held)} of {len(held)} invariants hold",
        "all_hold": all(held),
        "verdict": results.verdict.sentence,
        "corners": corners,
        "routes": routes(results),
        "checks": check_rows(checks),
        "check_results": [CHECK_RESULTS[check.get("passed")] for check in checks],
        "sections": sections,
        "largest": largest_sites(results) if run.experiment == "sweep" else None,
        "excluded": excluded(data),
        "methods": methods(manifest, table),
        "definitions": definitions(table, results.low_ceiling),
        "citations": citations(manifest, table),
        "manifest": list(flat_rows(without_pair_lists(manifest))),
    }


def check_rows(checks: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Each check's grade, name, result and sentence."""
    return [
        (
            check.get("grade", ""),
            str(check.get("name", "")).replace("_", " "),
            CHECK_RESULTS[check.get("passed")],
            check.get("sentence", ""),
        )
        for check in checks
    ]


def routes(results: Results) -> list[tuple[str, ...]] | str:
    """The parts of the runs' difference that go through the thought and past it, or why they are unknown."""
    try:
        parts = results.decomposition
    except ValueError as error:
        return f"Not shown: {error}."
    return [
        (row["part"], row["contrast"], f"{row['effect']:z.2f}", interval_text(row["low"], row["high"]))
        for row in parts.to_dict("records")
    ]


def largest_sites(results: Results) -> dict[str, Any] | None:
    """The sites of largest transfer, each with its interval and rank set; None where no site is ranked."""
    try:
        sites, sentence = results.sites(results.first_direction), results.largest.sentence
    except ValueError:  # the figure of the same sites gives the reason
        return None
    rows = [
        (
            site_name(row, with_kind=True),
            f"{row['effect']:z.2f}",
            interval_text(row["low"], row["high"]),
            rank_text(row, len(sites)),
            *(f"{row[name]:.0%}" for name in THREE_ANSWERS),
            *(f"{row[name]:.2g}" if row[name] == row[name] else "none" for name in ("p_fwer", "q")),
            "critical" if row["critical"] else "exploratory" if row["exploratory"] else "",
        )
        for row in sites.head(LARGEST_SITES).to_dict("records")
    ]
    noun = "specific transfer" if sites["specific"].all() else "transfer"
    answers = ("partner's answer", "host's answer", "another")
    heads = ("site", noun, "95% interval", "rank set, 95%", *answers, "p, family-wise", "q (FDR)", "")
    return {"sentence": f"{results.critical_sentence} {sentence}", "heads": heads, "rows": rows}


def rank_text(row: Mapping[Any, Any], sites: int) -> str:
    """A site's simultaneous rank set, or nothing where it was not ranked."""
    if pd.isna(row["rank_low"]):
        return "not ranked"
    ends = {row["rank_low"], row["rank_high"]}
    return f"{' to '.join(map(str, sorted(ends)))} of {sites}"


def flat_rows(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of a nested mapping, the names dotted: `data.used`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat_rows(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value, 1):
                yield f"{prefix}{name} {number}", ", ".join(f"{key} {part}" for key, part in item.items())
        else:
            yield f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else value
