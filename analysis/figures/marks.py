"""Axes, legends and marks that several figures share."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

DASH_LENGTH = 26  # pixels of a legend's line


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
