"""The conclusions of a run for a terminal: sentences, and tables as rows of text under their heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from codi_tracing.analysis.captions import metric_noun, site_name
from codi_tracing.analysis.report.catalogue import figures_of_run
from codi_tracing.analysis.report.compare_runs import compare_runs, run_names
from codi_tracing.analysis.report.finished_run import FinishedRun, read_run
from codi_tracing.analysis.rows import sites_have_unrelated
from codi_tracing.analysis.statistics.results import Results
from codi_tracing.analysis.statistics.sites import ALPHA
from codi_tracing.configs.vocabulary import SEGMENTS

TextRows = list[list[str]]


def conclusions(folder: Path | FinishedRun) -> Iterator[str | TextRows]:
    """The checks, the four corners and their verdict, the figures' sentences, and the largest sites of a run."""
    run = read_run(folder)
    results = run.results
    invariants = [mark(check) for check in run.checks if check["grade"] == "invariant"]
    yield f"{invariants.count('ok')} of {len(invariants)} invariants hold."
    for check in run.checks:
        if mark(check) in ("FAILED", "note") and check["name"] != "corners":  # the verdict below repeats it
            yield f"{mark(check)}: {check['sentence']}"
    yield "\nThe four corners: which question and whose thought a run reads, and what it answers"
    yield or_reason(corner_rows, results)
    yield f"\n{results.verdict.sentence}"
    for _, figure in figures_of_run(run.experiment, results.table):
        if figure.sentence is not None:
            yield f"\n{or_reason(figure.text, results)}"
    if run.experiment == "sweep":
        tested = sites_have_unrelated(results.table)
        kind = "specific effect" if tested else "effect (no unrelated donor was swept: no p-values)"
        yield f"\nThe five largest sites, by {kind} on the logit difference, denoising"
        yield or_reason(site_rows, results)
        yield or_reason(lambda results: results.leader, results)


def comparison(first: Path, second: Path, metric: str = "logit_difference") -> Iterator[str | TextRows]:
    """Two runs on the same pairs beside each other: their verdicts, ceilings, and where their effects differ most."""
    names = run_names(first, second)
    compared = compare_runs(first, second, metric)
    for name, run in zip(names, (first, second), strict=True):
        yield f"{name}: {read_run(run).results.verdict.sentence}\n"
    differing = int((compared["p_fwer"] <= ALPHA).sum())
    kind = "specific effects (whole cuts: plain ones)" if compared["specific"].any() else "plain effects"
    yield (
        f"On {metric_noun(metric)}, {kind}: the runs differ at {differing} of {len(compared)} places, family-wise "
        f"5 % (n = {compared['n'].max()} pairs that both have, {compared['clusters'].max()} clusters). The most:"
    )
    rows = [["direction", "site", names[0], names[1], "difference", "95 % interval", "p, family-wise", ""]]
    largest = compared.assign(segment=compared["kind"].isin(SEGMENTS), size=compared["difference"].abs())
    largest = largest.sort_values(["segment", "size"], ascending=False, kind="stable")  # whole segments first
    for row in largest.head(10).to_dict("records"):
        values = (f"{row[name]:z.2f}" for name in ("first", "second", "difference"))
        interval, word = f"[{row['low']:z.2f}, {row['high']:z.2f}]", "differs" if row["p_fwer"] <= ALPHA else ""
        rows.append([row["direction"], site_name(row, True), *values, interval, f"{row['p_fwer']:.2g}", word])
    yield rows


def mark(check: Mapping[str, Any]) -> str:
    """A check's result in a word: only an invariant can fail; a finding passes or is noted."""
    if check["passed"] is None:
        return "measured"
    return "ok" if check["passed"] else "FAILED" if check["grade"] == "invariant" else "note"


def or_reason(part: Callable[[Results], str | TextRows], results: Results) -> str | TextRows:
    """A part of the conclusions, or the reason why this table does not allow it."""
    try:
        return part(results)
    except ValueError as error:
        return f"not shown: {error}"


def corner_rows(results: Results) -> TextRows:
    """The corners: logit difference with its interval, and the shares of answers."""
    rows = [["question", "thought", "logit difference", "95 % interval", "clean", "corrupted", "other", "n"]]
    for row in results.corners.to_dict("records"):
        shares = [f"{row[f'answer_{name}']:.0%}" for name in ("clean", "corrupted", "other")]
        rows.append([row["question"], row["thought"], *estimate_text(row, "logit_difference"), *shares, str(row["n"])])
    return rows


def site_rows(results: Results) -> TextRows:
    """The largest sites; the word "critical" stands only where the statistics allow it."""
    rows = [["site", "effect", "95 % interval", "rank", "n", "clusters", ""]]
    for row in results.sites().head(5).to_dict("records"):
        ranks, word = f"{row['rank_low']} to {row['rank_high']}", "critical" if row["critical"] else ""
        counts = str(row["n"]), str(row["clusters"])
        rows.append([site_name(row, with_kind=True), *estimate_text(row, "effect"), ranks, *counts, word])
    return rows


def estimate_text(row: Mapping[Any, Any], name: str) -> tuple[str, str]:
    """A number and its interval."""
    return f"{row[name]:z.2f}", f"[{row['low']:z.2f}, {row['high']:z.2f}]"
