"""Results of one run: each statistic that several parts of a report show, computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import pandas as pd

from codi_tracing.analysis.rows import main_protocol
from codi_tracing.analysis.statistics.ceiling import LOW_CEILING, Estimate, ceiling
from codi_tracing.analysis.statistics.corners import corners, decomposition
from codi_tracing.analysis.statistics.ranking import rank_differences, winner
from codi_tracing.analysis.statistics.sites import rank_sites, site_statistics
from codi_tracing.analysis.statistics.verdict import Verdict, verdict

T = TypeVar("T")


class Results:
    """The table of a run and its statistics on the logit difference, lazily; a ValueError says why one is undefined.

    No site is critical under `low_ceiling`. Figures, sections, terminal and tracking share one instance, so nothing of
    it may be changed in place.
    """

    def __init__(self, table: pd.DataFrame, low_ceiling: float = LOW_CEILING) -> None:
        self.table, self.low_ceiling = table, low_ceiling
        self._site_statistics: dict[str, pd.DataFrame] = {}
        self._computed: dict[Callable[[Results], Any], Any] = {}

    def once(self, compute: Callable[[Results], T]) -> T:
        """`compute(self)`, computed at the first call."""
        if compute not in self._computed:
            self._computed[compute] = compute(self)
        return self._computed[compute]

    @cached_property
    def main_table(self) -> pd.DataFrame:
        """The rows of the run's own protocol, without its controls'."""
        return main_protocol(self.table)

    @cached_property
    def verdict(self) -> Verdict:
        return verdict(self.table, self.low_ceiling)

    @cached_property
    def corners(self) -> pd.DataFrame:
        return corners(self.table)

    @cached_property
    def decomposition(self) -> pd.DataFrame:
        return decomposition(self.table)

    @cached_property
    def leader(self) -> str:
        """The sentence on which site is the largest, denoising."""
        return winner(rank_differences(self.table))

    def ceiling(self, direction: str) -> Estimate:
        """The effect of the whole thought."""
        known: Estimate | None = getattr(self.verdict, direction)
        return ceiling(self.table, direction) if known is None else known

    def site_statistics(self, direction: str) -> pd.DataFrame:
        """Every site's effect, rank and p-values, in the table's order."""
        if direction not in self._site_statistics:
            self._site_statistics[direction] = site_statistics(self.table, direction=direction)
        return self._site_statistics[direction]

    def sites(self, direction: str = "denoising") -> pd.DataFrame:
        """Every site by its effect, the largest first, and which are critical."""
        return rank_sites(self.site_statistics(direction), self.ceiling(direction), self.low_ceiling)
