"""The ceiling: the effect of the whole thought, which no site of it can be expected to exceed."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from codi_tracing.analysis.rows import from_other_run, main_protocol, plain
from codi_tracing.analysis.statistics.effects import effect, pooled
from codi_tracing.configs.vocabulary import DIRECTIONS

LOW_CEILING = 0.5  # below it, the thought does not carry the edit


class Estimate(NamedTuple):
    """A pooled effect, its 95 % interval over clusters, and the numbers of pairs and clusters."""

    effect: float
    low: float
    high: float
    n: int
    clusters: int

    def __str__(self) -> str:
        return f"{self.effect:z.2f} [{self.low:z.2f}, {self.high:z.2f}]"


def ceiling(table: pd.DataFrame, direction: str = "denoising", metric: str = "logit_difference") -> Estimate:
    """The pooled effect of the whole thought of the pair's other run."""
    rows = thought_rows(table)
    rows = rows[(rows["direction"] == direction) & (rows["metric"] == metric) & from_other_run(rows)]
    if rows.empty:
        partner = DIRECTIONS[direction].partner if direction in DIRECTIONS else None
        where = f"site 'thought', source {partner!r}, direction {direction!r}, metric {metric!r}"
        raise ValueError(f"the table has no rows of {where}, so the ceiling is unknown; sweep them too")
    row = pooled(effect(rows), ["direction"]).iloc[0]
    return Estimate(float(row["effect"]), float(row["low"]), float(row["high"]), int(row["n"]), int(row["clusters"]))


def thought_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose only intervention is to exchange the whole thought."""
    rows = plain(main_protocol(table))
    return rows[rows["kind"] == "thought"]
