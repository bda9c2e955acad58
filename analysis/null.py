"""The null that the tests of effects are calibrated by: two unrelated donors of the same pair, labelled at random."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.effects import effect
from analysis.table import SITE_KEYS


def null_contrast(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Effect of one unrelated donor less that of another, at every place of every pair: 0 on average, by construction.

    Which of draws 0 and 1 is subtracted is drawn once for each cluster, as clusters are what the tests flip. Rows are
    those of draw 0, with `numerator`, `denominator` and `effect` of the contrast. ValueError without two draws.
    """
    rows = effect(table[table["source"] == "unrelated"])
    place = ["pair_id", "protocol", "direction", "metric", *SITE_KEYS]
    first, second = (rows[rows["draw"] == draw] for draw in (0, 1))
    both = first.merge(second[[*place, "numerator"]], on=place, suffixes=("", "_second"))
    if both.empty:
        raise ValueError("the table has no two unrelated donors of the same pair; sweep with draws = 2")
    clusters, numbered = np.unique(both["cluster_id"].to_numpy(str), return_inverse=True)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=len(clusters))
    numerator = signs[numbered] * (both["numerator"] - both["numerator_second"])
    ratio = numerator / both["denominator"].where(both["denominator"] != 0)
    return both.assign(numerator=numerator, effect=ratio).drop(columns="numerator_second")
