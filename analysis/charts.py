"""Charts of effects: df -> alt.Chart. Intervals are computed before they are drawn; nothing global is set."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from analysis.effects import SERIES, effect, from_other_run, known_split, layerwise, main_protocol, plain, pooled
from analysis.style import (
    BLUE,
    BOTH_WAYS,
    DIRECTION_COLOURS,
    ORANGE,
    WIDTH,
    about_pooled,
    dress,
    heading,
    metric_noun,
)
from analysis.summary import CORNERS

WRITTEN = (
    "one layer", "one layer, unrelated donor", "whole thought (ceiling)", "one layer, noise as long",
    "one layer, re-initialised model",
)  # fmt: skip
DASHES = ([1, 0], [4, 2], [1, 2], [8, 2, 1, 2], [12, 4])
DASH_LENGTH = 26  # pixels of a legend's line
READ = ["logit_difference", "low", "high"]  # a corner's mean, with its interval
ANSWERS = {"clean": BLUE, "corrupted": ORANGE, "other": "#BBBBBB"}


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
    top = rows[(rows["site"] == "thought") & from_other_run(rows)]
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
    if "kind" in effects:
        apart = effects.groupby("kind", sort=True)
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


def corner_bars(corners: pd.DataFrame) -> alt.Chart:
    """What is answered in each corner, from `corners`; a `model` column puts several models side by side."""
    if corners[["answer_clean", "answer_corrupted"]].isna().all(axis=None):
        raise ValueError("the corners have no answers; sweep the metrics answer_is_clean and answer_is_corrupted too")
    models = corners if "model" in corners else corners.assign(model="")
    names = {corner: [f"{question} question,", f"{thought} thought"] for corner, (question, thought) in CORNERS.items()}
    order = [" ".join(names[corner]) for corner in CORNERS]
    long = models.assign(corner=models["corner"].map(lambda corner: " ".join(names[corner]))).melt(
        ["model", "corner", "n", *READ],
        [f"answer_{answer}" for answer in ANSWERS],
        var_name="answer",
        value_name="share",
    )
    long["answer"] = long["answer"].str.removeprefix("answer_")
    long["from"] = long.groupby(["model", "corner"])["share"].cumsum() - long["share"]
    long = long.assign(to=long["from"] + long["share"], middle=long["from"] + long["share"] / 2)
    long["label"] = long["share"].map(lambda share: f"{share:.0%}" if share >= 0.15 else "")
    count = models["model"].nunique()
    base = alt.Chart(long).encode(y=alt.Y("corner:N", sort=order, title=None))
    bars = base.mark_bar().encode(
        x=alt.X(
            "from:Q", title="share of pairs", axis=alt.Axis(format="%", tickCount=3), scale=alt.Scale(domain=[0, 1])
        ),
        x2="to:Q",
        color=alt.Color("answer:N", title="answer", scale=scale_of(ANSWERS), legend=below(3, "left")),
        tooltip=[
            *(["model"] if "model" in corners else []),
            "corner",
            "answer",
            alt.Tooltip("share:Q", format=".1%"),
            "n",
            *(alt.Tooltip(f"{name}:Q", format=".2f") for name in READ),
        ],
    )
    text = base.mark_text(fontSize=10).encode(
        x="middle:Q",
        text="label:N",
        color=alt.condition(alt.datum.answer == "other", alt.value("#222"), alt.value("white")),
    )
    size = {"width": 200 if count == 1 else 150, "height": 24 * long["corner"].nunique()}
    chart: Any = (bars + text).properties(**size)
    if count > 1 or "model" in corners:
        header = alt.Header(title=None, labelFontWeight="bold", labelFontSize=12)
        chart = chart.facet(column=alt.Column("model:N", header=header, sort=list(models["model"].unique())))
    title = "Four corners: the answer that a question gives with another question's thought"
    return dress(chart, heading(title, about_pooled(corners), width=WIDTH + 20))


def layer_axis(layers: pd.Series, most: int = 20) -> alt.X:
    """Layers from left to right, each at a whole number, of which at most so many are written."""
    last = int(layers.max())
    ticks = list(range(0, last + 1, -(-(last + 1) // most)))
    return alt.X(
        "layer:Q",
        title="layer",
        axis=alt.Axis(values=ticks, format="d", grid=False),
        scale=alt.Scale(domain=[0, last], nice=False, padding=6),
    )


def scale_of(colours: dict[str, str]) -> alt.Scale:
    """Each name in its own colour."""
    return alt.Scale(domain=list(colours), range=list(colours.values()))


def tips(*names: str) -> list[Any]:
    """A tooltip: what a mark stands for, then its pooled effect and interval."""
    return [*names, *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("effect", "low", "high")), "n:Q"]


def below(columns: int, title_orient: Any = "top") -> alt.Legend:
    """A legend under its chart, so that the chart keeps its width."""
    return alt.Legend(
        orient="bottom", columns=columns, titleOrient=title_orient, symbolStrokeWidth=2, symbolSize=90, symbolOpacity=1
    )


def dashes_below(columns: int = 1, title_orient: Any = "top") -> alt.Legend:
    """A legend of dashes under its chart, its lines long enough to tell the dashes apart."""
    legend = below(columns, title_orient)
    legend["symbolSize"] = DASH_LENGTH**2
    legend["rowPadding"] = 16 - DASH_LENGTH  # a symbol is as high as it is long, and a line needs no height
    return legend


def width_of_direction() -> Any:
    """Noising's line is thin and drawn over denoising's, so that either is seen where both are equal."""
    return alt.condition(alt.datum.direction == "denoising", alt.value(3.4), alt.value(1.3))


def size_of_direction() -> Any:
    """The same of the lines' points."""
    return alt.condition(alt.datum.direction == "denoising", alt.value(50), alt.value(14))
