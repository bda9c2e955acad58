"""Effect by layer, between an unrelated donor's and the whole thought's."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.captions import BOTH_WAYS, about_measure, about_pooled
from codi_tracing.analysis.figures.marks import (
    band,
    colour_by_direction,
    dash_by,
    direction_lines,
    direction_points,
    effect_title,
    layer_axis,
    row_of,
    tips,
    zero_line,
)
from codi_tracing.analysis.figures.style import WIDTH, dress, heading
from codi_tracing.analysis.rows import SERIES, from_other_run, known_split, layerwise_rows, main_protocol, plain
from codi_tracing.analysis.statistics.effects import effect, oriented, pooled
from codi_tracing.analysis.statistics.measures import TRANSFER, measured

OTHER_LAYER, UNRELATED_LAYER, CEILING, NOISE_LAYER, UNTRAINED_LAYER = (
    "one layer", "one layer, unrelated donor", "whole thought (ceiling)", "one layer, noise of equal norm",
    "one layer, re-initialised model",
)  # fmt: skip
LAYER_DASHES = {
    OTHER_LAYER: [1, 0], UNRELATED_LAYER: [4, 2], CEILING: [1, 2], NOISE_LAYER: [8, 2, 1, 2], UNTRAINED_LAYER: [12, 4],
}  # fmt: skip


def layers_data(table: pd.DataFrame, metric: str = TRANSFER, split: str | None = None) -> pd.DataFrame:
    """Pooled effect by layer and direction: of the other run, an unrelated donor, noise, and the whole thought.

    Effects are plain, beside the unrelated donor's, the control. `split` names a further column to keep apart, such as
    `edit`.
    """
    apart = [split] if split else []
    rows = plain(effect(measured(known_split(table, split), metric)))
    blank = rows[rows["protocol"].str.endswith("_reinitialised")]
    rows = main_protocol(rows)
    layers = layerwise_rows(rows)
    layers = layers[from_other_run(layers) | layers["source"].isin(["unrelated", "noise"])]
    if layers.empty:
        raise ValueError(f"the table has no rows of one layer's residual with metric {metric!r}; sweep them too")
    top = rows[(rows["kind"] == "thought") & from_other_run(rows)]
    curve, flat = pooled(layers, [*SERIES, *apart, "layer"]), pooled(top, [*SERIES, *apart])
    spread = flat.merge(curve[["layer"]].drop_duplicates(), how="cross")  # a ceiling is drawn across all layers
    written = curve["source"].map({"unrelated": UNRELATED_LAYER, "noise": NOISE_LAYER}).fillna(OTHER_LAYER)
    parts = [curve.assign(written=written), spread.assign(written=CEILING)]
    if not blank.empty:  # the effects of the architecture alone
        blank = layerwise_rows(blank[from_other_run(blank)])
        untrained = pooled(blank if metric == TRANSFER else oriented(blank), [*SERIES, *apart, "layer"])
        untrained = untrained.dropna(subset=["effect"])  # it gives no pair's answers, so that transfer is undefined
        parts.append(untrained.assign(written=UNTRAINED_LAYER, protocol=rows["protocol"].iloc[0]))
    return pd.concat(parts, ignore_index=True)


def layers_chart(data: pd.DataFrame) -> Any:
    """Effect by layer in both directions; a panel for each edit if the data were split by edit."""
    panels = [_panel(data)]
    if "edit" in data:
        panels = [
            _panel(part).properties(title=f"{str(edit).replace('_', ' ')} (n = {part['n'].max()})")
            for edit, part in data.groupby("edit", sort=True)
        ]
    chart = row_of(panels)
    return dress(
        chart.resolve_scale(y="shared") if len(panels) > 1 else chart,
        heading(
            "What one layer's residual stream carries, at all latent steps",
            BOTH_WAYS,
            f"{about_measure(data['metric'].iloc[0])}; bands: 95% over clusters",
            about_pooled(data) + ("; counted in each panel" if len(panels) > 1 else ""),
            width=WIDTH * len(panels),
        ),
    )


def _panel(data: pd.DataFrame) -> alt.LayerChart:
    base = alt.Chart(data).encode(x=layer_axis(data["layer"]), color=colour_by_direction())
    y = alt.Y("effect:Q", title=effect_title(data["metric"].iloc[0]))
    own = band(base.transform_filter(alt.datum.written == OTHER_LAYER), 0.18)
    faint = band(base.transform_filter(alt.datum.written == UNRELATED_LAYER), 0.08)
    dash = dash_by("written", LAYER_DASHES, data["written"])
    lines = direction_lines(base, y, dash, tips("direction", "written", "layer"))
    points = direction_points(base.transform_filter(alt.datum.written != CEILING), y)
    return (zero_line() + faint + own + lines + points).properties(width=WIDTH, height=230)
