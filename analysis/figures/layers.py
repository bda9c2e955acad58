"""Effect by layer: the data and the chart."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.figures.marks import (
    below,
    dashes_below,
    layer_axis,
    scale_of,
    size_of_direction,
    tips,
    width_of_direction,
)
from codi_tracing.analysis.figures.style import DIRECTION_COLOURS, WIDTH, dress, heading
from codi_tracing.analysis.labels import BOTH_WAYS, about_pooled, metric_noun
from codi_tracing.analysis.rows import SERIES, from_other_run, known_split, layerwise, main_protocol, plain
from codi_tracing.analysis.statistics.effects import effect, pooled

WRITTEN = (
    "one layer", "one layer, unrelated donor", "whole thought (ceiling)", "one layer, noise as long",
    "one layer, re-initialised model",
)  # fmt: skip
DASHES = ([1, 0], [4, 2], [1, 2], [8, 2, 1, 2], [12, 4])


def layer_effects(table: pd.DataFrame, metric: str = "logit_difference", split: str | None = None) -> pd.DataFrame:
    """Pooled effect by layer and direction: of the other run, an unrelated donor, noise, and of the whole thought.

    `split` names a further column to keep apart, as `kind`, how the pair's questions differ.
    """
    apart = [split] if split else []
    rows = plain(effect(known_split(table[table["metric"] == metric], split)))
    blank = rows[rows["protocol"].str.endswith("_reinitialised")]
    rows = main_protocol(rows)
    layers = layerwise(rows)
    layers = layers[from_other_run(layers) | layers["source"].isin(["unrelated", "noise"])]
    if layers.empty:
        raise ValueError(f"the table has no rows of one layer's residual with metric {metric!r}; sweep them too")
    top = rows[(rows["kind"] == "thought") & from_other_run(rows)]
    curve, flat = pooled(layers, [*SERIES, *apart, "layer"]), pooled(top, [*SERIES, *apart])
    spread = flat.merge(curve[["layer"]].drop_duplicates(), how="cross")  # a ceiling is drawn across all layers
    written = curve["source"].map({"unrelated": WRITTEN[1], "noise": WRITTEN[3]}).fillna(WRITTEN[0])
    parts = [curve.assign(written=written), spread.assign(written=WRITTEN[2])]
    if not blank.empty:  # a reference for what the architecture alone does
        untrained = pooled(layerwise(blank[from_other_run(blank)]), [*SERIES, *apart, "layer"])
        parts.append(untrained.assign(written=WRITTEN[4], protocol=rows["protocol"].iloc[0]))
    return pd.concat(parts, ignore_index=True)


def layer_curve(effects: pd.DataFrame) -> Any:
    """Effect by layer in both directions, from `layer_effects`, between the unrelated donor's curve and the ceiling.

    Where the effects were split by kind there is one panel for each.
    """
    panels = [layer_panel(effects)]
    if "edit" in effects:
        apart = effects.groupby("edit", sort=True)
        panels = [
            layer_panel(part).properties(title=f"{str(kind).replace('_', ' ')} (n = {part['n'].max()})")
            for kind, part in apart
        ]
    chart = panels[0] if len(panels) == 1 else alt.hconcat(*panels).resolve_scale(y="shared")
    return dress(
        chart,
        heading(
            "Effect of one layer's residual stream, at all latent steps",
            BOTH_WAYS,
            f"On {metric_noun(effects['metric'].iloc[0])}, pooled; bands: 95% over clusters",
            about_pooled(effects) + ("; counted in each panel" if len(panels) > 1 else ""),
            width=WIDTH * len(panels),
        ),
    )


def layer_panel(effects: pd.DataFrame) -> alt.LayerChart:
    """The curves of `layer_curve`, without their heading."""
    x = layer_axis(effects["layer"])
    colour = alt.Color("direction:N", title=None, scale=scale_of(DIRECTION_COLOURS), legend=below(2))
    base = alt.Chart(effects).encode(x=x, color=colour)
    drawn = [(name, dash) for name, dash in zip(WRITTEN, DASHES, strict=True) if (effects["written"] == name).any()]
    names, dashes = (list(part) for part in zip(*drawn, strict=True))
    dash = alt.StrokeDash("written:N", title=None, scale=alt.Scale(domain=names, range=dashes), legend=dashes_below())
    y = alt.Y("effect:Q", title="effect (0 host, 1 donor)")
    band = base.transform_filter(alt.datum.written == WRITTEN[0]).mark_area(opacity=0.18).encode(y="low:Q", y2="high:Q")
    faint = (
        base.transform_filter(alt.datum.written == WRITTEN[1]).mark_area(opacity=0.08).encode(y="low:Q", y2="high:Q")
    )
    lines = base.mark_line().encode(
        y=y, strokeDash=dash, strokeWidth=width_of_direction(), tooltip=tips("direction", "written", "layer")
    )
    points = base.transform_filter(alt.datum.written != WRITTEN[2]).mark_point(filled=True, opacity=1)
    points = points.encode(y=y, size=size_of_direction())
    zero = alt.Chart(pd.DataFrame({"y": [0]})).mark_rule(color="#999").encode(y="y:Q")
    return (zero + faint + band + lines + points).properties(width=WIDTH, height=230)
