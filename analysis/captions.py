"""Sites, metrics, directions and counts as titles, axes and sentences write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from codi_tracing.configs.vocabulary import DIRECTIONS, FEWEST_CLUSTERS, METRICS, SITE_KINDS

BOTH_WAYS = f"Denoising: {DIRECTIONS['denoising'].phrase}; noising: the reverse"


def metric_noun(metric: str) -> str:
    """A metric's name in words, a user's own too."""
    return METRICS[metric].label if metric in METRICS else metric.replace("_", " ")


def about_measure(metric: str) -> str:
    """What is pooled, on which pairs, in words."""
    if metric == "transfer":
        return "Transfer on answered pairs: 0 the host's answer, 1 the partner's"
    return f"On {metric_noun(metric)}, a graded view, all pairs: 0 host, 1 partner"


def site_nouns(sites: pd.DataFrame, joint: str = " and ") -> str:
    """The kinds of these sites in words."""
    return joint.join(SITE_KINDS[kind].noun for kind in sites["kind"].unique())


def about_pooled(pooled: pd.DataFrame) -> str:
    """The pairs, clusters and protocols of pooled rows."""
    protocols = ", ".join(sorted(pooled["protocol"].unique()))
    counts = sorted(pooled["n"].unique())
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    clusters, fewest = pooled["clusters"].max(), pooled["clusters"].min()
    few = ""
    if fewest < FEWEST_CLUSTERS:
        where = "" if clusters < FEWEST_CLUSTERS else f" where {fewest}"
        few = f" (no intervals{where}: {FEWEST_CLUSTERS} are needed)"
    return f"n = {n} pairs, {clusters} clusters{few}; protocol {protocols}"


def what_where(direction: str) -> str:
    """The direction in words."""
    return DIRECTIONS[direction].phrase


def both_ways(pooled: pd.DataFrame) -> str:
    """The first direction in words, and whether there is the other."""
    directions = pooled["direction"].unique()
    return what_where(directions[0]) + (", and the reverse" if len(directions) > 1 else "")


def one_site(pooled: pd.DataFrame) -> str:
    """The noun of a chart's kind of site; ValueError if there are several kinds."""
    kinds = list(pooled["kind"].unique())
    if len(kinds) > 1:
        raise ValueError(f"the rows are of several kinds of site ({', '.join(kinds)}); draw one at a time")
    return SITE_KINDS[kinds[0]].noun


def site_name(site: Mapping[Any, Any], with_kind: bool) -> str:
    """A site's short name: `layer 3`, `layers 0–3, step 2`; its kind first if there are several."""
    words = [SITE_KINDS[site["kind"]].noun] if with_kind else []
    for what in ("layer", "step"):
        first, last = site[what], site[f"{what}_last"]
        if not pd.isna(first):
            words.append(f"{what} {first}" if first == last or pd.isna(last) else f"{what}s {first}–{last}")
    for column, pattern in (("step_set", "steps {}"), ("head", "head {}"), ("freeze", "{} frozen")):
        if not pd.isna(site.get(column)):
            words.append(pattern.format(site[column]))
    return ", ".join(words) or "all layers and steps"
