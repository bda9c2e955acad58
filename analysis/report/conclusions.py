"""The conclusions of a run for a terminal: sentences, and tables as rows of text under their heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from codi_tracing.analysis.captions import metric_noun, site_name
from codi_tracing.analysis.report.catalogue import figures_of_run, question_and_answer
from codi_tracing.analysis.report.compare_runs import compare_runs, run_names
from codi_tracing.analysis.report.finished_run import FinishedRun, read_run
from codi_tracing.analysis.report.sections import rank_text
from codi_tracing.analysis.statistics.ceiling import interval_text
from codi_tracing.analysis.statistics.corners import CORNER_ANSWERS
from codi_tracing.analysis.statistics.inference import ALPHA
from codi_tracing.analysis.statistics.measures import THREE_ANSWERS, TRANSFER
from codi_tracing.analysis.statistics.results import Results
from codi_tracing.configs.vocabulary import FEWEST_CLUSTERS, SEGMENTS

TextRows = list[list[str]]


def conclusions(folder: Path | FinishedRun) -> Iterator[str | TextRows]:
    """What a run was asked and its answer; the checks, the four corners, the figures' sentences, the largest sites."""
    run = read_run(folder)
    results = run.results
    question, answer = question_and_answer(run.experiment, results)
    yield f"{question}\n{answer}\n"
    invariants = [mark(check) for check in run.checks if check["grade"] == "invariant"]
    yield f"{invariants.count('ok')} of {len(invariants)} invariants hold."
    for check in run.checks:
        if mark(check) in ("FAILED", "note") and check["name"] != "verdict":  # it stands below
            yield f"{mark(check)}: {check['sentence']}"
    sentences = results.summary["sentences"]
    yield f"\n{sentences[0]}"
    yield "\nThe four corners: which question and whose thought a run reads, and what it answers"
    yield or_reason(corner_rows, results)
    for _, figure in figures_of_run(run.experiment, results.table):
        if figure.sentence is not None and (text := str(or_reason(figure.text, results))) not in answer:
            yield f"\n{text}"
    if run.experiment == "sweep":
        yield "\nThe largest sites"
        yield or_reason(site_rows, results)


def comparison(first: Path, second: Path, metric: str = TRANSFER) -> Iterator[str | TextRows]:
    """Two runs on the same pairs beside each other: their verdicts, ceilings, and where their effects differ most."""
    names = run_names(first, second)
    compared = compare_runs(first, second, metric)
    for name, run in zip(names, (first, second), strict=True):
        yield f"{name}: {read_run(run).results.verdict.sentence}\n"
    differing, clusters = int((compared["p_fwer"] <= ALPHA).sum()), compared["clusters"].max()
    kind = "specific " if compared["specific"].any() else ""
    found = f"the runs differ at {differing} of {len(compared)} places, family-wise 5 %"
    if clusters < FEWEST_CLUSTERS:
        found = f"no difference can be tested ({FEWEST_CLUSTERS} clusters are needed)"
    sample = f"n = {compared['n'].max()} pairs that both have, {clusters} clusters"
    yield f"By {kind}{metric_noun(metric)}, {found} ({sample}). The largest differences:"
    rows = [["direction", "site", names[0], names[1], "difference", "95 % interval", "p, family-wise", ""]]
    largest = compared.assign(segment=compared["kind"].isin(SEGMENTS), size=compared["difference"].abs())
    largest = largest.sort_values(["segment", "size"], ascending=False, kind="stable")  # whole segments first
    for row in largest.head(10).to_dict("records"):
        values = (f"{row[name]:z.2f}" for name in ("first", "second", "difference"))
        interval = interval_text(row["low"], row["high"]) or "none"
        word = "differs" if row["p_fwer"] <= ALPHA else ""
        p = "none" if row["p_fwer"] != row["p_fwer"] else f"{row['p_fwer']:.2g}"
        rows.append([row["direction"], site_name(row, True), *values, interval, p, word])
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
    """The corners: the shares of answers with their intervals."""
    rows = [["question", "thought", "clean answer", "corrupted answer", "another", "n", "pairs"]]
    for row in results.corners.to_dict("records"):
        shares = [share_text(row[f"answer_{name}"], row[f"low_{name}"], row[f"high_{name}"]) for name in CORNER_ANSWERS]
        rows.append([row["question"], row["thought"], *shares, str(row["n"]), row["pairs"]])
    return rows


def share_text(share: float, low: float, high: float) -> str:
    """A share in per cent with its interval, where there is one."""
    return f"{share:.0%} {'' if low != low else f'[{100 * low:.0f}, {100 * high:.0f}]'}".rstrip()


def site_rows(results: Results) -> TextRows:
    """The sites of largest transfer; the word "critical" stands only where the statistics allow it."""
    sites = results.sites(results.first_direction)
    noun = "specific transfer" if sites["specific"].all() else "transfer"
    rows = [["site", noun, "95 % interval", "partner's answer", "host's", "another", "rank set", "n", "clusters", ""]]
    for row in sites.head(5).to_dict("records"):
        word = "critical" if row["critical"] else ""
        interval = interval_text(row["low"], row["high"]) or "none"
        shares = (f"{row[name]:.0%}" for name in THREE_ANSWERS)
        counts = rank_text(row, len(sites)), str(row["n"]), str(row["clusters"])
        rows.append([site_name(row, with_kind=True), f"{row['effect']:z.2f}", interval, *shares, *counts, word])
    return rows
