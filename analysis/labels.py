"""Names of sites, metrics and directions as titles, axes and sentences write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

BOTH_WAYS = "Denoising: clean values into the corrupted run; noising: the reverse"
NOUNS = {
    "resid": "residual stream",
    "attn": "attention output",
    "mlp": "MLP output",
    "head": "one head's output",
    "kv": "cache entry",
    "latent": "fed latent",
    "thought": "whole thought",
    "question": "question's cache",
    "bot": "BoT's cache",
}
METRIC_NOUNS = {
    # Two bars, since the fonts at hand lack the sign for parallel.
    "kl_from_corrupted": "KL(patched || corrupted)",
    "kl_to_clean": "KL(clean || patched)",
}


def metric_noun(metric: str) -> str:
    """A metric's name in words."""
    return METRIC_NOUNS.get(metric, metric.replace("_", " "))


def about(table: pd.DataFrame) -> str:
    """How many pairs and clusters of which protocol a chart of cells rests on."""
    protocols = ", ".join(sorted(table["protocol"].unique()))
    return f"n = {table['pair_id'].nunique()} pairs, {table['cluster_id'].nunique()} clusters; protocol {protocols}"


def about_pooled(pooled: pd.DataFrame) -> str:
    """The same of pooled rows, whose `n` and `clusters` are counts already."""
    protocols = ", ".join(sorted(pooled["protocol"].unique()))
    counts = sorted(pooled["n"].unique())
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"n = {n} pairs, {pooled['clusters'].max()} clusters; protocol {protocols}"


def what_where(direction: str) -> str:
    """The direction in words."""
    return {"denoising": "clean values into the corrupted run", "noising": "corrupted values into the clean run"}[
        direction
    ]


def one_site(pooled: pd.DataFrame) -> str:
    """The noun of the kind of site that a chart is about; ValueError where there are several."""
    kinds = list(pooled["kind"].unique())
    if len(kinds) > 1:
        raise ValueError(f"the rows are of several kinds of site ({', '.join(kinds)}); draw one at a time")
    return NOUNS[kinds[0]]


def place_name(site: Mapping[Any, Any], with_kind: bool) -> str:
    """A site's short name: `layer 3`, `layers 0–3, step 2`, with its kind in front where there are several."""
    words = [NOUNS[site["kind"]]] if with_kind else []
    for what in ("layer", "step"):
        first, last = site[what], site[f"{what}_last"]
        if not pd.isna(first):
            words.append(f"{what} {first}" if first == last or pd.isna(last) else f"{what}s {first}–{last}")
    words += [] if pd.isna(site.get("step_set")) else [f"steps {site['step_set']}"]
    words += [] if pd.isna(site.get("head")) else [f"head {site['head']}"]
    words += [] if pd.isna(site.get("freeze")) else [f"{site['freeze']} held"]
    return ", ".join(words) or "all layers and steps"
