"""The ceiling: the specific transfer of the whole thought, which no site of it can be expected to exceed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from codi_tracing.analysis.rows import from_other_run, main_protocol, plain
from codi_tracing.analysis.statistics.effects import CONTROLS, effect, pooled, specific
from codi_tracing.analysis.statistics.measures import DISRUPTION, measured

LOW_CEILING = 0.5  # the ceiling's lower bound from which sites may be called critical


class Estimate(NamedTuple):
    """A pooled number, its 95 % interval over clusters (NaN below 8 of them), and the numbers of pairs and clusters."""

    effect: float
    low: float
    high: float
    n: int
    clusters: int

    def __str__(self) -> str:
        return f"{self.effect:z.2f} {interval_text(self.low, self.high)}".rstrip()

    @property
    def sample(self) -> str:
        """The numbers of pairs and clusters in words."""
        return f"n = {self.n} pair{'s' * (self.n != 1)} in {self.clusters} cluster{'s' * (self.clusters != 1)}"


NONE = Estimate(np.nan, np.nan, np.nan, 0, 0)


def estimate_of(row: Any) -> Estimate:
    """A pooled row as an estimate."""
    return Estimate(float(row["effect"]), float(row["low"]), float(row["high"]), int(row["n"]), int(row["clusters"]))


def interval_text(low: float, high: float, form: str = "z.2f") -> str:
    """An interval in brackets, or nothing where there is none."""
    return "" if np.isnan(low) or np.isnan(high) else f"[{low:{form}}, {high:{form}}]"


def ceiling(table: pd.DataFrame, direction: str = "denoising", controls: Sequence[str] = CONTROLS) -> Estimate:
    """The specific transfer of the whole thought on the answered pairs; NONE where no pair is answered."""
    rows = thought_rows(table)
    rows = rows[rows["direction"] == direction]
    if not from_other_run(rows).any():
        raise ValueError(
            f"the table has no rows of site 'thought' in direction {direction!r} from the pair's other run, so the "
            "ceiling is unknown; sweep them too"
        )
    rows = thought_rows(measured(table))
    rows = rows[rows["direction"] == direction]
    return NONE if rows.empty else _one(specific(rows, controls))


def unrelated_disruption(table: pd.DataFrame) -> Estimate:
    """How much of the host's answer an unrelated question's whole thought destroys, both directions together."""
    rows = thought_rows(measured(table, DISRUPTION))
    return _one(effect(rows[rows["source"] == "unrelated"]))


def _one(effects: pd.DataFrame) -> Estimate:
    """All rows pooled."""
    if effects.dropna(subset=["numerator", "denominator"]).empty:
        return NONE
    return estimate_of(pooled(effects.assign(all="all"), ["all"]).iloc[0])


def thought_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose only intervention is to exchange the whole thought."""
    rows = plain(main_protocol(table))
    return rows[rows["kind"] == "thought"]
