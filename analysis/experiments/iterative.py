"""Iterative patching: write the steps up to k, and see what the answer and the next step make of it."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.experiments.influence import both_ways
from codi_tracing.analysis.figures.marks import (
    below,
    dashes_below,
    scale_of,
    size_of_direction,
    tips,
    width_of_direction,
)
from codi_tracing.analysis.figures.style import DIRECTION_COLOURS, WIDTH, dress, heading
from codi_tracing.analysis.labels import about_pooled, one_site
from codi_tracing.analysis.rows import from_other_run
from codi_tracing.analysis.statistics.effects import effect, pooled
from codi_tracing.analysis.table import SEGMENTS

READS = {"answer": "logit difference at the answer", "next": "final state of step k + 1 (projection)"}
SERIES = {  # what was written and whether R is frozen: the words of a line, and its dash
    ("other run", "free"): ("other run", [1, 0]),
    ("other run", "R frozen"): ("other run, R frozen (next latent held at the host's)", [5, 3]),
    ("unrelated donor", "free"): ("unrelated donor", [1, 2]),
}


def iterations(table: pd.DataFrame) -> pd.DataFrame:
    """Pooled effect of writing the steps 0 to `end`, by direction, `written`, `route` and what is read (`reads`).

    `answer` is the logit difference; `next` is how far the state of step end + 1, which the run makes itself, lies
    from the host's towards the donor's. With `R frozen` the next latent is the host's, and only the cache carries.
    """
    plain = table[["layer", "head", "step_set", "knockout", "n_latents"]].isna().all(axis=1)
    prefix = plain & ~table["kind"].isin(SEGMENTS) & (table["step"] == 0).fillna(False) & table["step_last"].notna()
    rows = table[prefix & (table["freeze"].isna() | (table["freeze"] == "R"))]
    answer = (rows["metric"] == "logit_difference") & rows["read_step"].isna()
    following = (rows["metric"] == "projection") & (rows["read_step"] == rows["step_last"] + 1).fillna(False)
    unrelated = rows["source"] == "unrelated"
    rows = rows.assign(
        reads=following.map({True: "next", False: "answer"}),
        written=unrelated.map({True: "unrelated donor", False: "other run"}),
        route=rows["freeze"].isna().map({True: "free", False: "R frozen"}),
        end=rows["step_last"],
    )[(answer | following) & (unrelated | from_other_run(rows))]
    if rows["end"].nunique() < 2:  # one step alone is a single place, not the growing prefix
        raise ValueError(
            "the table has no rows that write steps 0 to k, for several k, read at the answer or at "
            "step k + 1; run configs/iterative.toml"
        )
    return pooled(effect(rows), ["protocol", "kind", "direction", "metric", "reads", "written", "route", "end"])


def iteration_curve(found: pd.DataFrame) -> Any:
    """Effect by prefix end from `iterations`: at the answer, and beside it at the step that follows the prefix."""
    kinds = zip(found["written"], found["route"], strict=True)
    names = pd.Series([SERIES[kind][0] if kind in SERIES else None for kind in kinds], found.index, dtype="str")
    shown = found.assign(series=names).dropna(subset="series")
    last, drawn = int(shown["end"].max()), set(shown["series"])
    panels = [
        _panel(shown[shown["reads"] == reads], READS[reads], last, drawn)
        for reads in READS
        if reads in set(shown.reads)
    ]
    chart = alt.hconcat(*panels).resolve_scale(y="shared")
    return dress(
        chart,
        heading(
            "Effect of writing the latent steps 0 to k",
            f"Written: {one_site(shown)}, all layers, {both_ways(list(shown['direction'].unique()))}",
            "Pooled (0 host, 1 donor); bands: 95% over clusters",
            about_pooled(shown),
            width=max(WIDTH * len(panels), 420),
        ),
    )


def _panel(shown: pd.DataFrame, title: str, last: int, series: set[str]) -> alt.LayerChart:
    """The lines of one reading, by prefix end; `series` are all that the chart has, for a legend of both panels."""
    x = alt.X(
        "end:Q",
        title="last step written, k",
        axis=alt.Axis(values=list(range(last + 1)), format="d", grid=False),
        scale=alt.Scale(domain=[0, last], nice=False, padding=8),
    )
    y = alt.Y("effect:Q", title="effect (0 host, 1 donor)")
    dashes = {words: dash for words, dash in SERIES.values() if words in series}
    base = alt.Chart(shown).encode(
        x=x, color=alt.Color("direction:N", title=None, scale=scale_of(DIRECTION_COLOURS), legend=below(2))
    )
    dash = alt.StrokeDash(
        "series:N", title=None, scale=alt.Scale(domain=list(dashes), range=list(dashes.values())), legend=dashes_below()
    )
    bands = base.mark_area(opacity=0.12).encode(y="low:Q", y2="high:Q", detail="series:N")
    lines = base.mark_line().encode(y=y, strokeDash=dash, strokeWidth=width_of_direction())
    points = base.mark_point(filled=True, opacity=1).encode(
        y=y, size=size_of_direction(), tooltip=tips("direction", "series", "end")
    )
    zero = alt.Chart(pd.DataFrame({"y": [0]})).mark_rule(color="#999").encode(y="y:Q")
    return (zero + bands + lines + points).properties(width=WIDTH, height=230, title=title)
