"""Every site's transfer with its interval, p-values and rank set; the critical sites, and the largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from codi_tracing.analysis.captions import site_name
from codi_tracing.analysis.rows import SERIES, from_other_run, from_run, has_unrelated, single_site_rows
from codi_tracing.analysis.statistics.ceiling import LOW_CEILING, Estimate, ceiling, interval_text
from codi_tracing.analysis.statistics.effects import CONTROLS, SUMS, by_site, cluster_sums, effect, pooled, specific
from codi_tracing.analysis.statistics.inference import (
    ALPHA,
    LEAST_ERROR,
    MOST_RANKED,
    benjamini_hochberg,
    difference_intervals,
    rank_sets,
    sign_flip_p,
    too_few,
)
from codi_tracing.analysis.statistics.measures import (
    DISRUPTION,
    THREE_ANSWERS,
    TRANSFER,
    given_answers,
    measured,
    three_answers,
)
from codi_tracing.analysis.table import SITE_KEYS
from codi_tracing.configs.vocabulary import FEWEST_CLUSTERS

SHARE_OF_CEILING = 0.05  # a critical site's lower bound is above this share of the ceiling
LEAST_LEAD = 0.05  # the largest site is named only if it exceeds every other by at least this


def critical(
    table: pd.DataFrame,
    direction: str = "denoising",
    *,
    low_ceiling: float = LOW_CEILING,
    controls: Sequence[str] = CONTROLS,
) -> pd.DataFrame:
    """Every site by its specific transfer, the largest first, and which are critical: see `site_statistics`.

    `critical`: p_fwer ≤ 0.05, a lower bound above 5 % of the ceiling, and a ceiling whose lower bound is at least
    `low_ceiling`.
    """
    sites = site_statistics(table, direction=direction, controls=controls)
    return rank_sites(sites, ceiling(table, direction, controls), low_ceiling)


def site_statistics(
    table: pd.DataFrame,
    metric: str = TRANSFER,
    direction: str = "denoising",
    *,
    controls: Sequence[str] = CONTROLS,
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """The sites of one direction with their effects and, of transfer, p-values and rank sets; in the table's order.

    `effect` is the specific transfer (`specific` is True) with its interval; beside it the `plain` transfer of the
    pair's other run, the `control`'s, and the shares of the three answers. `p` is of the site alone, `p_fwer`
    family-wise over all sites, `q` Benjamini and Hochberg's; `exploratory`: q ≤ 0.05; `below`: significantly less than
    its control. `rank_low` to `rank_high` is the simultaneous rank set. Without an unrelated donor, or on another
    metric, effects are plain and not tested. `moved` is the largest change by any write there. Sites are read at the
    answer, without knockouts.
    """
    chosen = single_site_rows(measured(table, metric), metric, direction)
    if not from_other_run(chosen).any():
        raise ValueError(
            f"no {'answered ' if metric == TRANSFER else ''}pair has a layer or step written from its other run with "
            f"metric {metric!r}, direction {direction!r}"
        )
    is_tested = metric == TRANSFER and has_unrelated(chosen)
    by, effects = [*SERIES, *SITE_KEYS], effect(chosen)
    plain = by_site(effects)
    rows = specific(chosen, controls) if is_tested else effects[from_other_run(effects)]
    rows = rows.dropna(subset=SUMS)
    sites = pooled(rows, by)
    sums = cluster_sums(rows, by).fillna(0.0)
    numerators, denominators = (sums[name].to_numpy(float) for name in SUMS)
    scale = np.abs(denominators).mean(0)
    unknown = np.full(len(sites), np.nan)
    p_fwer, p, best, worst = unknown, unknown, unknown, unknown
    if is_tested:
        p_fwer, p = sign_flip_p(numerators, scale, draws, seed)
        best, worst = rank_sets(numerators / scale, seed=seed)
        p_fwer, p = (np.where(sites["clusters"] < FEWEST_CLUSTERS, np.nan, each) for each in (p_fwer, p))
    q = benjamini_hochberg(p)
    keys = list(SITE_KEYS)
    moved = effect(from_run(chosen)).assign(moved=lambda written: written["numerator"].abs())
    sites = sites.assign(
        p=p, q=q, p_fwer=p_fwer, specific=is_tested,
        exploratory=(q <= ALPHA) & (sites["effect"] > LEAST_ERROR),
        below=(p_fwer <= ALPHA) & (sites["effect"] < -LEAST_ERROR),
        rank_low=pd.array(best, "Int64"), rank_high=pd.array(worst, "Int64"),
    ).merge(moved.groupby(keys, dropna=False)["moved"].max().reset_index(), on=keys, how="left")  # fmt: skip
    sites = sites.merge(plain[[*keys, "effect"]].rename(columns={"effect": "plain"}), on=keys, how="left")
    if is_tested:
        control = by_site(effects, source="unrelated")[[*keys, "effect"]].rename(columns={"effect": "control"})
        sites = sites.merge(control, on=keys, how="left")
    return (
        sites if metric != TRANSFER else sites.merge(_answers(table, direction).drop(columns="n"), on=keys, how="left")
    )


def site_details(table: pd.DataFrame, direction: str = "denoising") -> pd.DataFrame:
    """What `sites.csv` has of each site beside `site_statistics`, one row per site.

    `disruption` by the pair's other run and `control_disruption` by an unrelated one; `control_partner`, … the three
    answers under the control; `all_pairs_partner`, … and `all_pairs_n` those of all pairs whose two runs answer
    differently, right or wrong.
    """
    rows = single_site_rows(measured(table, DISRUPTION), DISRUPTION, direction)
    keys, effects = list(SITE_KEYS), effect(rows)
    details = by_site(effects)[[*keys, "effect"]].rename(columns={"effect": "disruption"})
    if has_unrelated(rows):
        control = by_site(effects, source="unrelated")[[*keys, "effect"]]
        details = details.merge(control.rename(columns={"effect": "control_disruption"}), on=keys, how="left")
        answers = _answers(table, direction, control=True).drop(columns="n")
        details = details.merge(answers.rename(columns={name: f"control_{name}" for name in THREE_ANSWERS}), on=keys)
    everyone = _answers(table, direction, answered=False)
    names = {name: f"all_pairs_{name}" for name in (*THREE_ANSWERS, "n")}
    return details.merge(everyone.rename(columns=names), on=keys, how="left")


def _answers(table: pd.DataFrame, direction: str, answered: bool = True, control: bool = False) -> pd.DataFrame:
    """The shares of the three answers by site, written from the pair's other run or from the control."""
    given = given_answers(table, answered)
    given = single_site_rows(given.assign(metric=TRANSFER), TRANSFER, direction)
    given = given[given["source"] == "unrelated"] if control else given[from_other_run(given)]
    columns = [*SITE_KEYS, *THREE_ANSWERS, "n"]
    if given.empty:
        return pd.DataFrame(columns=columns).astype({name: table[name].dtype for name in SITE_KEYS})
    return three_answers(given, list(SITE_KEYS))[columns]


def rank_sites(sites: pd.DataFrame, top: Estimate, low_ceiling: float = LOW_CEILING) -> pd.DataFrame:
    """Sort `site_statistics` by effect, and mark the critical sites under the ceiling `top`."""
    large = (sites["p_fwer"] <= ALPHA) & (sites["low"] > SHARE_OF_CEILING * top.effect)
    ranked = sites.assign(ceiling=top.effect, critical=large & (top.low >= low_ceiling))
    return ranked.sort_values("effect", ascending=False, ignore_index=True)


def site_of(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A site's coordinates as plain values, None where it has none."""
    values = {key: row[key] for key in SITE_KEYS}
    return {key: None if pd.isna(v) else v if isinstance(v, str) else int(v) for key, v in values.items()}


class Largest(NamedTuple):
    """The largest site, if one may be named, and a sentence that says so or why not."""

    site: dict | None
    sentence: str


def largest_site(
    table: pd.DataFrame,
    ranked: pd.DataFrame,
    top: Estimate,
    low_ceiling: float = LOW_CEILING,
    controls: Sequence[str] = CONTROLS,
) -> Largest:
    """The site that differs from every other, family-wise and by at least 0.05, under a ceiling that is not low."""
    several = ranked["kind"].nunique() > 1
    names = [site_name(row, several) for row in ranked.to_dict("records")]
    leader = ranked.iloc[0]
    if len(ranked) < 2:
        return Largest(None, f"Only {names[0]} was written, so there is nothing to rank.")
    if not ranked["specific"].all():
        return Largest(None, "No site is called the largest: no pair has an unrelated donor there, so none was tested.")
    if leader["clusters"] < FEWEST_CLUSTERS:
        return Largest(None, f"No site is called the largest: {too_few(leader['clusters'])}.")
    if not top.low >= low_ceiling:
        return Largest(
            None,
            f"No site is called the largest: the ceiling is low ({top}; its lower bound is below {low_ceiling:g}).",
        )
    if pd.isna(leader["rank_high"]):
        return Largest(None, f"No site is called the largest: more than {MOST_RANKED} sites are not ranked.")
    words = f"{leader['effect']:z.2f} {interval_text(leader['low'], leader['high'])}"
    if not leader["low"] > 0:
        return Largest(
            None, f"No site is called the largest: the interval of the first, {names[0]}, {words}, reaches 0."
        )
    if leader["rank_high"] > 1:
        cannot = [name for name, best in zip(names, ranked["rank_low"], strict=True) if best == 1]
        shown = "; ".join(cannot[:4]) + (f" and {len(cannot) - 4} more" if len(cannot) > 4 else "")
        return Largest(None, f"No site is called the largest: any of {len(cannot)} may be it ({shown}).")
    lead, low, high = _lead(table, ranked, controls)
    ahead = f"it exceeds {names[1]} by {lead:z.2f} {interval_text(low, high)}"
    if lead < LEAST_LEAD:
        return Largest(None, f"No site is called the largest: {names[0]} has {words}, but {ahead}, less than 0.05.")
    return Largest(
        site_of(leader.to_dict()) | {"name": names[0], "transfer": float(leader["effect"]), "lead": float(lead)},
        f"{names[0].capitalize()} carries the most: {words}; {ahead}, and every other site by more "
        f"(n = {leader['n']} pairs in {leader['clusters']} clusters).",
    )


def _lead(table: pd.DataFrame, ranked: pd.DataFrame, controls: Sequence[str]) -> tuple[float, float, float]:
    """The difference of the first two sites' specific transfer, with its interval."""
    direction = ranked["direction"].iloc[0]
    rows = specific(single_site_rows(measured(table), TRANSFER, direction), controls).dropna(subset=SUMS)
    two = rows.merge(ranked.head(2)[list(SITE_KEYS)].assign(place=[0, 1]), on=list(SITE_KEYS))
    sums = two.pivot_table(index="cluster_id", columns="place", values=SUMS, aggfunc="sum").dropna()
    (a, b), (c, d) = ([sums[name][place].to_numpy(float)[None] for name in SUMS] for place in (0, 1))
    low, high = difference_intervals(a, b, c, d)
    return float(ranked["effect"].iloc[0] - ranked["effect"].iloc[1]), float(low[0]), float(high[0])
