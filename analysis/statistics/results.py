"""Results of one run: each statistic that several parts of a report show, computed once, and their summary."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from codi_tracing.analysis.captions import site_name
from codi_tracing.analysis.rows import main_protocol
from codi_tracing.analysis.statistics.ceiling import LOW_CEILING, NONE, Estimate, thought_rows
from codi_tracing.analysis.statistics.corners import corners, decomposition
from codi_tracing.analysis.statistics.effects import CLOSED_CONTROLS, CONTROLS
from codi_tracing.analysis.statistics.inference import ALPHA, too_few
from codi_tracing.analysis.statistics.measures import TRANSFER, answered_pairs
from codi_tracing.analysis.statistics.sites import (
    SHARE_OF_CEILING,
    Largest,
    largest_site,
    rank_sites,
    site_details,
    site_of,
    site_statistics,
)
from codi_tracing.analysis.statistics.verdict import Closed, Verdict, verdict
from codi_tracing.analysis.table import SITE_KEYS
from codi_tracing.configs.vocabulary import FEWEST_CLUSTERS

T = TypeVar("T")


class Results:
    """The table of a run and its statistics, lazily; a ValueError says why one is undefined.

    No site is critical under a ceiling whose lower bound is below `low_ceiling`. `closed` describes closed answers.
    Figures, sections, terminal and tracking share one instance, so nothing of it may be changed in place.
    """

    def __init__(self, table: pd.DataFrame, low_ceiling: float = LOW_CEILING, closed: Closed | None = None) -> None:
        self.table, self.low_ceiling, self.closed = table, low_ceiling, closed
        self.controls = CONTROLS if closed is None else CLOSED_CONTROLS
        self._computed: dict[Any, Any] = {}

    def once(self, compute: Callable[[Results], T]) -> T:
        """`compute(self)`, computed at the first call."""
        return self._remember(compute, lambda: compute(self))

    def _remember(self, key: Any, compute: Callable[[], T]) -> T:
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]

    @cached_property
    def main_table(self) -> pd.DataFrame:
        """The rows of the run's own protocol, without its controls'."""
        return main_protocol(self.table)

    @cached_property
    def verdict(self) -> Verdict:
        return verdict(self.table, self.closed)

    @cached_property
    def corners(self) -> pd.DataFrame:
        return corners(self.table)

    @cached_property
    def decomposition(self) -> pd.DataFrame:
        return decomposition(self.table)

    @cached_property
    def judged_rows(self) -> pd.DataFrame:
        """The rows that the verdict is read from, whole thoughts; all rows where there are none."""
        rows = thought_rows(self.table)
        return self.main_table if rows.empty else rows

    @cached_property
    def answered(self) -> int | None:
        """The number of answered pairs; None where no answers were read."""
        try:
            return len(answered_pairs(self.judged_rows))
        except ValueError:
            return None

    def ceiling(self, direction: str) -> Estimate:
        """The specific transfer of the whole thought."""
        return {"denoising": self.verdict.denoising, "noising": self.verdict.noising}.get(direction, NONE)

    def site_statistics(self, direction: str, metric: str = TRANSFER) -> pd.DataFrame:
        """Every site's effect, ranks and p-values, in the table's order."""
        return self._remember(
            (direction, metric), lambda: site_statistics(self.table, metric, direction, controls=self.controls)
        )

    def sites(self, direction: str = "denoising") -> pd.DataFrame:
        """Every site by its specific transfer, the largest first, and which are critical."""
        return rank_sites(self.site_statistics(direction), self.ceiling(direction), self.low_ceiling)

    @property
    def first_direction(self) -> str:
        """Denoising, where it was swept."""
        return str(min(self.main_table["direction"]))

    @cached_property
    def largest(self) -> Largest:
        """The largest site, if one may be named, in the first direction."""
        direction = self.first_direction
        return largest_site(self.table, self.sites(direction), self.ceiling(direction), self.low_ceiling, self.controls)

    @cached_property
    def critical_sentence(self) -> str:
        """Which sites are critical, or why none can be."""
        sites, top = self.sites(self.first_direction), self.ceiling(self.first_direction)
        clusters = int(sites["clusters"].max())
        sample = f"{self.first_direction}, n = {sites['n'].max()} pairs in {clusters} clusters"
        if not sites["specific"].all():
            return "No site is tested: no pair has an unrelated donor there."
        if clusters < FEWEST_CLUSTERS:
            return f"Nothing can be called critical: {too_few(clusters)}."
        if not top.low >= self.low_ceiling:
            return (
                f"No site is called critical: the lower bound of the ceiling, {top}, is below {self.low_ceiling:g} "
                f"({self.first_direction}, {top.sample})."
            )
        names = site_names(sites[sites["critical"]])
        below = site_names(sites[sites["below"]])
        less = f" Significantly less than the control: {_listed(below)}." if below else ""
        if not names:
            small = int(((sites["p_fwer"] <= ALPHA) & (sites["effect"] > 0)).sum())
            why = f"p > {ALPHA:g}, family-wise"
            if small:
                why = f"{small} above 0, family-wise, but not by {SHARE_OF_CEILING:.0%} of the ceiling"
            return f"None of {len(sites)} sites is critical ({why}; {sample}).{less}"
        which = f"{len(names)} of {len(sites)} sites are" if len(names) > 1 else f"1 of {len(sites)} sites is"
        return f"{which} critical: {_listed(names)} (family-wise p ≤ {ALPHA:g}; {sample}).{less}"

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The conclusions as plain data, for `summary.json`: what terminal, page and README print from."""
        judged = self.verdict
        numbers = {name: _numbers(getattr(judged, name)) for name in ("denoising", "noising", "disruption", "accuracy")}
        shares = {
            direction: {answer: _numbers(share) for answer, share in answers.items()}
            for direction, answers in judged.shares.items()
        }
        sentences = [judged.sentence]
        largest, named = None, []
        try:
            sites = self.sites(self.first_direction)
            named = [_site(row) for row in sites[sites["critical"]].to_dict("records")]
            largest = self.largest.site
            sentences += [self.critical_sentence, self.largest.sentence]
        except ValueError as error:
            sentences.append(f"No sites: {error}.")
        return {
            "verdict": {"label": judged.label, "numbers": numbers, "shares": shares},
            "ceiling": {name: numbers[name] for name in ("denoising", "noising")},
            "largest": largest,
            "critical": named,
            "clusters": int(self.judged_rows["cluster_id"].nunique()),
            "pairs": int(self.judged_rows["pair_id"].nunique()),
            "answered_pairs": self.answered,
            "sentences": sentences,
        }

    def all_sites(self) -> pd.DataFrame:
        """Every site of every direction, ranked, with its details, for `sites.csv`; empty where none was written."""
        parts = []
        for direction in self.main_table["direction"].unique():
            try:
                details = site_details(self.table, direction)
                parts.append(self.sites(direction).merge(details, on=list(SITE_KEYS), how="left"))
            except ValueError:  # the summary's sentences say why
                continue
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(SITE_KEYS))


def site_names(sites: pd.DataFrame) -> list[str]:
    """Short names, with the kind where there are several."""
    return [site_name(row, sites["kind"].nunique() > 1) for row in sites.to_dict("records")]


def _listed(names: list[str], most: int = 6) -> str:
    return "; ".join(names[:most]) + (f"; and {len(names) - most} more (sites.csv)" if len(names) > most else "")


def _site(row: dict) -> dict[str, Any]:
    """A site's coordinates and its estimate."""
    return site_of(row) | {
        "name": site_name(row, True),
        **{name: _plain(row[name]) for name in ("effect", "low", "high")},
    }


def _numbers(estimate: Estimate) -> dict[str, Any]:
    return {name: _plain(value) for name, value in estimate._asdict().items()}


def _plain(value: Any) -> Any:
    """A number as JSON has it; None for NaN."""
    return None if np.isnan(value) else int(value) if isinstance(value, int | np.integer) else float(value)
