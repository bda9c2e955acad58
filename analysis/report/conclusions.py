"""What a run concludes, for a terminal: sentences, and tables as rows of text under their heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from codi_tracing.analysis.io.run_folder import read_checks, read_manifest
from codi_tracing.analysis.io.table_file import read_table
from codi_tracing.analysis.labels import metric_noun, place_name
from codi_tracing.analysis.report.catalogue import fitting
from codi_tracing.analysis.report.compare_runs import compare_runs, run_names
from codi_tracing.analysis.rows import places_have_unrelated
from codi_tracing.analysis.statistics.ceiling import LOW_CEILING
from codi_tracing.analysis.statistics.corners import corners
from codi_tracing.analysis.statistics.ranking import rank_differences, winner
from codi_tracing.analysis.statistics.sites import ALPHA, critical
from codi_tracing.analysis.statistics.verdict import verdict
from codi_tracing.configs.vocabulary import SEGMENTS

Rows = list[list[str]]


def conclusions(folder: Path) -> Iterator[str | Rows]:
    """The checks, the four corners and their verdict, and the largest layers of the run in a folder."""
    table = read_table(folder / "cells.parquet")
    manifest, checks = read_manifest(folder), read_checks(folder)
    experiment = manifest.get("experiment") or "sweep"
    low_ceiling = (manifest.get("config") or {}).get("low_ceiling", LOW_CEILING)
    invariants = [mark(check) for check in checks if check["grade"] == "invariant"]
    yield f"{invariants.count('ok')} of {len(invariants)} invariants hold."
    for check in checks:
        if mark(check) in ("FAILED", "note") and check["name"] != "corners":  # the corners' verdict is said below
            yield f"{mark(check)}: {check['sentence']}"
    yield "\nThe four corners: which question and whose thought a run reads, and what it answers"
    yield said_or_why(corner_rows, table)
    yield f"\n{verdict(table, low_ceiling).sentence}"
    for _, figure in fitting(experiment, table):
        if figure.says is not None:
            yield f"\n{said_or_why(figure.says, figure.rows(table))}"
    if experiment == "sweep":
        kind = (
            "specific effect" if places_have_unrelated(table) else "effect (no unrelated donor was swept: no p-values)"
        )
        yield f"\nThe five largest sites, by {kind} on the logit difference, denoising"
        yield said_or_why(lambda rows: site_rows(rows, low_ceiling), table)
        yield said_or_why(lambda rows: winner(rank_differences(rows)), table)


def comparison(first: Path, second: Path, metric: str = "logit_difference") -> Iterator[str | Rows]:
    """Two runs on the same pairs beside each other: their verdicts, ceilings, and where their effects differ most."""
    names = run_names(first, second)
    compared = compare_runs(first, second, metric)
    for name, run in zip(names, (first, second), strict=True):
        low_ceiling = (read_manifest(run).get("config") or {}).get("low_ceiling", LOW_CEILING)
        yield f"{name}: {verdict(read_table(run / 'cells.parquet'), low_ceiling).sentence}\n"
    differing = int((compared["p_fwer"] <= ALPHA).sum())
    kind = "specific effects (whole cuts: plain ones)" if compared["specific"].any() else "plain effects"
    yield (
        f"On {metric_noun(metric)}, {kind}: the runs differ at {differing} of {len(compared)} places, family-wise "
        f"5 % (n = {compared['n'].max()} pairs that both have, {compared['clusters'].max()} clusters). The most:"
    )
    rows = [["direction", "site", names[0], names[1], "difference", "95 % interval", "p, family-wise", ""]]
    largest = compared.assign(segment=compared["kind"].isin(SEGMENTS), size=compared["difference"].abs())
    largest = largest.sort_values(["segment", "size"], ascending=False, kind="stable")  # whole cuts first
    for row in largest.head(10).to_dict("records"):
        values = (f"{row[name]:z.2f}" for name in ("first", "second", "difference"))
        interval, word = f"[{row['low']:z.2f}, {row['high']:z.2f}]", "differs" if row["p_fwer"] <= ALPHA else ""
        rows.append([row["direction"], place_name(row, True), *values, interval, f"{row['p_fwer']:.2g}", word])
    yield rows


def mark(check: Mapping[str, Any]) -> str:
    """How a check went, in a word: only an invariant can fail; a finding is as hoped for, or noted."""
    if check["passed"] is None:
        return "measured"
    return "ok" if check["passed"] else "FAILED" if check["grade"] == "invariant" else "note"


def said_or_why(part: Callable[[pd.DataFrame], str | Rows], table: pd.DataFrame) -> str | Rows:
    """A part of the conclusions, or why this table does not allow it."""
    try:
        return part(table)
    except ValueError as error:
        return f"not shown: {error}"


def corner_rows(table: pd.DataFrame) -> Rows:
    """The corners: logit difference with its interval, and the shares of answers."""
    rows = [["question", "thought", "logit difference", "95 % interval", "clean", "corrupted", "other", "n"]]
    for row in corners(table).to_dict("records"):
        shares = [f"{row[f'answer_{name}']:.0%}" for name in ("clean", "corrupted", "other")]
        rows.append([row["question"], row["thought"], *estimate(row, "logit_difference"), *shares, str(row["n"])])
    return rows


def site_rows(table: pd.DataFrame, low_ceiling: float) -> Rows:
    """The largest sites; the word "critical" stands only where the statistics allow it."""
    rows = [["site", "effect", "95 % interval", "rank", "n", "clusters", ""]]
    found = critical(table, direction="denoising", metric="logit_difference", low_ceiling=low_ceiling)
    for row in found.head(5).to_dict("records"):
        ranks, word = f"{row['rank_low']} to {row['rank_high']}", "critical" if row["critical"] else ""
        counts = str(row["n"]), str(row["clusters"])
        rows.append([place_name(row, with_kind=True), *estimate(row, "effect"), ranks, *counts, word])
    return rows


def estimate(row: Mapping[Any, Any], name: str) -> tuple[str, str]:
    """A number and its interval."""
    return f"{row[name]:z.2f}", f"[{row['low']:z.2f}, {row['high']:z.2f}]"
