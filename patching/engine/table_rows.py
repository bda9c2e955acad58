"""Rows of the table from the measurements of a block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from codi_tracing.analysis.table import check_table
from codi_tracing.patching.answer_metrics import ANSWER_METRICS
from codi_tracing.patching.interventions.cells import Cell, columns_of
from codi_tracing.patching.pairs.donors import Donor
from codi_tracing.patching.pairs.tokenized import TokenizedPair
from codi_tracing.traces.text import last_number

ROW_ORDER = ("rank", "metric_rank", "cell")  # extra columns of a batch's rows, by which the table is sorted
MeasuredValues = dict[str, np.ndarray]  # metric -> [3, pair, cell]: patched, clean, corrupted


def read_answers(
    batch: Sequence[TokenizedPair], decoded: list[list[str]], metrics: Sequence[str], unpatched: int
) -> MeasuredValues:
    """Answer metrics of the decoded texts `decoded[run][pair]`, as `[3, pair, cell]`: patched, clean, corrupted."""
    numbers = np.array([[last_number(text) for text in cell] for cell in decoded])  # [run, pair]
    patched = numbers[unpatched:]
    runs = (patched, np.broadcast_to(numbers[0], patched.shape), np.broadcast_to(numbers[1], patched.shape))
    keys = [p.keys._replace(own_clean=numbers[0, i], own_corrupted=numbers[1, i]) for i, p in enumerate(batch)]
    return {
        name: np.array([[[ANSWER_METRICS[name](v, of) for v in r[:, i]] for i, of in enumerate(keys)] for r in runs])
        for name in metrics
    }


def rows_of(
    batch: Sequence[TokenizedPair],
    donors: Sequence[Sequence[Donor]],
    cells: Sequence[Cell],
    values: MeasuredValues,
    protocol: str = "latent_loop",
    read_step: int | None = None,
) -> pd.DataFrame:
    """The block's rows; a pair without unrelated donor has no rows of that source."""
    about_cells = pd.DataFrame(
        {"cell": index, "protocol": protocol, **columns_of(cell), "read_step": read_step}
        for index, cell in enumerate(cells)
    )
    pairs = pd.DataFrame(
        {"pair_id": str(p.pair.pair_id), "cluster_id": p.pair.cluster_id, "edit": p.pair.edit, "pair": i}
        for i, p in enumerate(batch)
    )
    frame = pd.DataFrame({"metric": list(values)}).merge(pairs, how="cross").merge(about_cells, how="cross")
    patched, clean, corrupted = np.stack(list(values.values()), 1).reshape(3, -1)
    frame = frame.assign(patched=patched, clean=clean, corrupted=corrupted)
    unrelated_run = frame["source"] == "unrelated"
    names = {(i, draw): d.pair_id for i, drawn in enumerate(donors) for draw, d in enumerate(drawn)}
    drawn = [names.get(key) for key in zip(frame["pair"], frame["draw"].fillna(0).astype(int), strict=True)]
    frame["source_pair"] = pd.Series(drawn, frame.index, dtype="object").where(unrelated_run, frame["pair_id"])
    return frame[~unrelated_run | frame["source_pair"].notna()].drop(columns="pair")


def with_order(frame: pd.DataFrame, batch: Sequence[TokenizedPair], metrics: Sequence[str]) -> pd.DataFrame:
    """The rows with the columns of `ORDER`: ranks of pair and metric beside the index of the cell."""
    ranks = {str(p.pair.pair_id): p.rank for p in batch}
    metric_ranks = {name: i for i, name in reversed(list(enumerate(metrics)))}
    return frame.assign(rank=frame["pair_id"].map(ranks), metric_rank=frame["metric"].map(metric_ranks))


def in_order(table: pd.DataFrame, order: Sequence[str] = ROW_ORDER) -> pd.DataFrame:
    """The table sorted by `order`, whose columns are dropped, and read step: independent of batches and blocks."""
    keys = table[list(order)].assign(read_step=table["read_step"].fillna(-1).astype(int))
    sorted_rows = table.loc[keys.sort_values([*keys], kind="stable").index]
    return check_table(sorted_rows.drop(columns=list(order)).reset_index(drop=True))
