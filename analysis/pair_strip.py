"""Every pair behind one pooled effect: what each does there with its other run and with an unrelated donor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis.charts import below, scale_of
from analysis.effects import effect, from_other_run, main_protocol, pooled
from analysis.style import BLUE, GREY, WIDTH, about_pooled, dress, heading, metric_noun, place_name, what_where
from analysis.summary import site_statistics
from analysis.table import SITE_KEYS

OWN, UNRELATED = "other run", "unrelated donor"
REACH = (-1.0, 2.0)  # what is drawn; a pair whose two runs hardly differ may have an effect of any size
MOST = 250  # points of a donor; of more pairs, like ones are averaged


def site_pairs(
    table: pd.DataFrame,
    site: Mapping[str, Any] | None = None,
    metric: str = "logit_difference",
    direction: str = "denoising",
) -> pd.DataFrame:
    """One row per pair and donor at one site: numerator, denominator (the gap between the pair's runs) and effect.

    `site` is a row of `critical` or `by_site`, or any mapping with keys of SITE_KEYS, those left out empty; None is the
    site with the largest effect. Draws of an unrelated donor are averaged.
    """
    rows = main_protocol(table)
    rows = rows[(rows["metric"] == metric) & (rows["direction"] == direction)]
    if site is None:
        ranked = site_statistics(rows, metric, direction)
        site = {str(key): value for key, value in ranked.sort_values("effect").iloc[-1].items()}
    place = dict.fromkeys(SITE_KEYS) | {key: value for key, value in site.items() if key in SITE_KEYS}
    for key, value in place.items():
        here = rows[key].isna() if value is None or pd.isna(value) else rows[key].eq(value).fillna(False)
        rows = rows[here.astype(bool)]
    rows = effect(rows[from_other_run(rows) | (rows["source"] == "unrelated")]).dropna(subset=["numerator"])
    rows = rows.assign(donor=rows["source"].eq("unrelated").map({True: UNRELATED, False: OWN}))
    if not (rows["donor"] == OWN).any():
        raise ValueError(f"the table has no effect of the pair's other run at {place_name(place, True)}")
    keys = ["protocol", "direction", "metric", *SITE_KEYS, "donor", "cluster_id", "pair_id"]
    found = rows.groupby(keys, dropna=False)[["numerator", "denominator"]].mean().reset_index()
    found = found.assign(effect=found["numerator"] / found["denominator"].where(found["denominator"] != 0))
    if found["effect"].isna().all():
        raise ValueError(f"no pair's two runs differ on {metric_noun(metric)}, so none has an effect")
    return found


def pair_strip(pairs: pd.DataFrame) -> Any:
    """Each pair's two effects, from `site_pairs`, from the smallest to the largest, over the pooled ones (lines).

    A point's size is the gap between the pair's runs, by which pooling weighs it. Effects beyond the axis stand at its
    end.
    """
    whole = pooled(pairs, ["protocol", "direction", "metric", "donor"])
    wide = pairs.pivot_table(index="pair_id", columns="donor", values=["effect", "denominator"])
    order = wide["effect"][OWN].sort_values(kind="stable").dropna().index
    each = -(-len(order) // MOST)
    rank = pd.Series(np.arange(len(order)) // each, index=order, name="rank")
    points = pairs.merge(rank, left_on="pair_id", right_index=True).assign(gap=lambda rows: rows["denominator"].abs())
    points = points.groupby(["rank", "donor"], as_index=False)[["effect", "gap"]].mean().dropna()
    points = points.assign(shown=points["effect"].clip(*REACH))
    donors = [donor for donor in (OWN, UNRELATED) if (points["donor"] == donor).any()]
    colours = scale_of({donor: {OWN: BLUE, UNRELATED: GREY}[donor] for donor in donors})
    colour = alt.Color("donor:N", title="written from", scale=colours, legend=below(2, "left"))
    y = alt.Y("shown:Q", title="effect (0 host, 1 donor)", scale=alt.Scale(domain=list(REACH)))
    x = alt.X("rank:Q", title="pairs, by effect", axis=alt.Axis(labels=False, ticks=False, grid=False))
    tooltip = ["donor", alt.Tooltip("effect:Q", format=".3f"), alt.Tooltip("gap:Q", format=".2f")]
    base = alt.Chart(points).encode(x=x, color=colour)
    dots = base.mark_point(filled=True, opacity=0.75).encode(
        y=y, size=alt.Size("gap:Q", title="gap", scale=alt.Scale(range=[8, 70]), legend=None), tooltip=tooltip
    )
    line = alt.Chart(whole).encode(color=colour)
    bands = line.mark_rect(opacity=0.15).encode(y=alt.Y("low:Q"), y2="high:Q")
    rules = line.mark_rule(strokeWidth=2).encode(y="effect:Q")
    site = pairs.iloc[0].to_dict()
    said = "; ".join(f"{row.donor} {row.effect:z.2f} [{row.low:z.2f}, {row.high:z.2f}]" for row in whole.itertuples())
    averaged = f"; a point is the mean of {each} pairs" if each > 1 else ""
    return dress(
        (bands + rules + dots).properties(width=WIDTH - 50, height=200),
        heading(
            f"Each pair's effect: {place_name(site, True)}",
            f"Written: {what_where(site['direction'])}",
            f"On {metric_noun(site['metric'])}; lines: pooled, with 95% over clusters: {said}",
            f"Size: gap between the pair's runs{averaged}; beyond the axis: at its end",
            about_pooled(whole),
        ),
    )
