"""One chart per pair: how far each layer's patch disturbs the corrupted run, and how far it moves either run."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import altair as alt
import pandas as pd

from analysis.charts import (
    DASHES,
    below,
    dashes_below,
    layer_axis,
    scale_of,
    size_of_direction,
    width_of_direction,
)
from analysis.effects import effect, from_other_run, layerwise, main_protocol
from analysis.style import BOTH_WAYS, DIRECTION_COLOURS, GREY, dress, heading

DONORS = ("other run", "unrelated donor")
COLUMNS = ["panel", "direction", "donor", "layer", "value"]


def pair_chart(table: pd.DataFrame, pair_id: str, question: str = "") -> alt.HConcatChart:
    """One pair's layers: KL(patched ‖ corrupted), and the effect on the logit difference, of both donors."""
    values = pair_layers(table)
    own = values[values["pair_id"] == str(pair_id)]
    if own.empty:
        raise ValueError(f"pair {pair_id}: the table has no rows of one layer's residual; wanted one of its pairs")
    return _draw(own, _heading(pair_id, question, own["protocol"].iloc[0]))


def pair_specs(table: pd.DataFrame, questions: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pair's chart as Vega-Lite. Only the values and the title differ, so the chart itself is built once."""
    values = pair_layers(table)
    frame: dict[str, Any] = _draw(values, heading("")).to_dict() if len(values) else {}
    for pair_id, own in values.groupby("pair_id", sort=False):
        title = _heading(str(pair_id), questions.get(str(pair_id), ""), own["protocol"].iloc[0])
        yield (
            str(pair_id),
            {**frame, "title": title.to_dict(), "datasets": {**frame["datasets"], "pair": _records(own)}},
        )


def pair_layers(table: pd.DataFrame) -> pd.DataFrame:
    """What the charts draw, one row per pair × panel (`kl`, `effect`) × direction × donor × layer."""
    rows = effect(layerwise(main_protocol(table)))
    rows = rows[from_other_run(rows) | (rows["source"] == "unrelated")]
    rows = rows.assign(donor=(rows["source"] == "unrelated").map({False: DONORS[0], True: DONORS[1]}))
    kl = rows[(rows["metric"] == "kl_from_corrupted") & (rows["direction"] == "denoising")]
    moved = rows[(rows["metric"] == "logit_difference") & rows["effect"].notna()]
    panels = [kl.assign(panel="kl", value=kl["patched"]), moved.assign(panel="effect", value=moved["effect"])]
    return pd.concat(panels)[["pair_id", "protocol", *COLUMNS]]


def _draw(values: pd.DataFrame, title: alt.TitleParams) -> alt.HConcatChart:
    dash = alt.StrokeDash(
        "donor:N", title=None, scale=alt.Scale(domain=list(DONORS), range=list(DASHES[:2])), legend=dashes_below()
    )
    colour = alt.Color("direction:N", title=None, scale=scale_of(DIRECTION_COLOURS), legend=below(2))
    axis = layer_axis(values["layer"], most=8)

    def panel(name: str, label: str) -> alt.LayerChart:
        base = alt.Chart(alt.NamedData("pair")).transform_filter(alt.datum.panel == name).encode(x=axis, color=colour)
        y = alt.Y("value:Q", title=label, axis=alt.Axis(tickCount=4))
        lines = base.mark_line().encode(y=y, strokeDash=dash, strokeWidth=width_of_direction())
        points = base.mark_point(filled=True, opacity=1).encode(y=y, size=size_of_direction())
        return (lines + points).properties(width=190, height=170)

    ends = alt.Chart(alt.InlineData([{"y": 0}, {"y": 1}])).mark_rule(color=GREY, strokeDash=[2, 2]).encode(y="y:Q")
    both = alt.hconcat(
        panel("kl", "KL(patched || corrupted), nats"),
        ends + panel("effect", "effect (0 host, 1 donor)"),
        datasets={"pair": _records(values)},
    )
    return dress(both, title)


def _heading(pair_id: str, question: str, protocol: str) -> alt.TitleParams:
    return heading(
        f"Pair {pair_id}: one layer's residual stream, at all latent steps",
        textwrap.shorten(question, 150, placeholder=" …"),
        BOTH_WAYS,
        f"Effect on logit difference; n = 1 pair; protocol {protocol}",
        width=480,
    )


def _records(values: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(values[COLUMNS].to_json(orient="records"))
