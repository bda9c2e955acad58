"""Transfer, disruption and the three answers: what a patched run gives, read on the probabilities of both answers.

*Transfer* is the effect on the probability of the partner's whole answer, *disruption* the loss of the host's: a write
that only destroys an open answer has transfer 0 and disruption 1. Both are read on the *answered* pairs, whose two
unpatched runs give their own keys. Every patched run gives the partner's answer, keeps the host's, or gives another.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from codi_tracing.analysis.rows import host_value, main_protocol
from codi_tracing.analysis.statistics.effects import pooled_shares
from codi_tracing.configs.vocabulary import DIRECTIONS

TRANSFER, DISRUPTION = "transfer", "disruption"
THREE_ANSWERS = ("partner", "host", "another")


def answered_pairs(table: pd.DataFrame) -> pd.Index:
    """The pairs whose two unpatched runs decode their own keys, as the main protocol's rows have it."""
    return pd.Index(sorted(set.intersection(*(set(right.index[right]) for right in right_runs(table).values()))))


def right_runs(table: pd.DataFrame) -> dict[str, pd.Series]:
    """For each unpatched run, clean and corrupted: whether it decodes its own key, by pair."""
    rows = main_protocol(table)
    right = {}
    for run in ("clean", "corrupted"):
        own = rows_of_metric(rows, f"answer_is_{run}")
        right[run] = own.groupby("pair_id", sort=False)[run].first() == 1
    return right


def rows_of_metric(table: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """The rows of these metrics; ValueError if one was not swept."""
    for metric in metrics:
        if not (table["metric"] == metric).any():
            raise ValueError(f"the table has no rows of metric {metric!r}; sweep it too (the default metrics have it)")
    return table[table["metric"].isin(metrics)]


def measured(table: pd.DataFrame, metric: str = TRANSFER, answered: bool = True) -> pd.DataFrame:
    """The rows of a metric. Those of transfer and disruption are of the answered pairs, named so in `metric`.

    Their effect (see `effect`) is the transfer or disruption: the metric is the probability of the partner's or of the
    host's answer, whichever run is the host. Without `answered`, of all pairs.
    """
    if metric not in (TRANSFER, DISRUPTION):
        return rows_of_metric(table, metric)
    run = "partner" if metric == TRANSFER else "host"
    names = {name: f"probability_{getattr(direction, run)}" for name, direction in DIRECTIONS.items()}
    wanted = table["direction"].map(names)
    rows_of_metric(table, *wanted.unique())
    rows = table[table["metric"] == wanted].assign(metric=metric)
    return rows[rows["pair_id"].isin(answered_pairs(table))] if answered else rows


def given_answers(table: pd.DataFrame, answered: bool = True) -> pd.DataFrame:
    """One row per patched run: whether it gives the `partner`'s answer, the `host`'s, or `another`, each 0 or 1.

    Answers are compared with what the pair's two unpatched runs decode. `answered` keeps the answered pairs; else all
    pairs count whose two runs decode different numbers.
    """
    rows = rows_of_metric(table, "gives_clean", "gives_corrupted")
    if answered:
        rows = rows[rows["pair_id"].isin(answered_pairs(table))]
    parts = {}
    for run in ("partner", "host"):
        names = {name: f"gives_{getattr(direction, run)}" for name, direction in DIRECTIONS.items()}
        parts[run] = rows[rows["metric"] == rows["direction"].map(names)]
    # The unpatched host never gives a partner's answer that differs from its own.
    partner = parts["partner"][host_value(parts["partner"]) == 0]
    keys = [name for name in table if name not in ("metric", "patched", "clean", "corrupted")]
    both = partner.merge(parts["host"][[*keys, "patched"]], on=keys, suffixes=("", "_host"))
    given = both.rename(columns={"patched": "partner", "patched_host": "host"})
    given = given.drop(columns=["metric", "clean", "corrupted"]).dropna(subset=["partner", "host"])
    return given.assign(another=1 - given["partner"] - given["host"])


def three_answers(given: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The share of each of the three answers in `given_answers`, one row per group: `partner`, `low_partner`, …"""
    return shares_of(given, by, THREE_ANSWERS)


def shares_of(rows: pd.DataFrame, by: Sequence[str], answers: Sequence[str]) -> pd.DataFrame:
    """The share of each of several columns of 0 and 1, one row per group: the column, `low_` and `high_` of it, n."""
    shares = pd.DataFrame()
    for answer in answers:
        part = pooled_shares(rows, rows[answer], by).drop(columns=["mean", "median"])
        part = part.rename(columns={"effect": answer, "low": f"low_{answer}", "high": f"high_{answer}"})
        shares = part if shares.empty else pd.concat([shares, part.drop(columns=[*by, "n", "clusters"])], axis=1)
    return shares
