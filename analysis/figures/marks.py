"""Axes, legends, marks and layouts that several figures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.figures.style import DIRECTION_COLOURS, GREY

DASH_LENGTH = 26  # pixels of a legend's line
TRANSFER_TITLE = "transfer (0: host's answer, 1: partner's)"


def effect_title(metric: str) -> str:
    """The axis of an effect."""
    return TRANSFER_TITLE if metric == "transfer" else "effect (0 host, 1 partner)"


def whole_axis(field: str, last: int, title: str, *, most: int = 100, padding: int = 8) -> alt.X:
    """Whole numbers from 0 to `last`, of which at most so many have a tick."""
    ticks = list(range(0, last + 1, -(-(last + 1) // most)))
    return alt.X(
        f"{field}:Q",
        title=title,
        axis=alt.Axis(values=ticks, format="d", grid=False),
        scale=alt.Scale(domain=[0, last], nice=False, padding=padding),
    )


def layer_axis(layers: pd.Series, most: int = 20) -> alt.X:
    """Layers from left to right."""
    return whole_axis("layer", int(layers.max()), "layer", most=most, padding=6)


def share_axis(title: str | None, field: str = "effect:Q") -> alt.Y:
    """Shares from 0 to 100 %."""
    return alt.Y(field, title=title, axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))


def scale_of(values: Mapping[str, Any]) -> alt.Scale:
    """A colour or dash for each name."""
    return alt.Scale(domain=list(values), range=list(values.values()))


def below(columns: int, title_orient: Any = "top") -> alt.Legend:
    """A legend under its chart, so that the chart keeps its width."""
    return alt.Legend(
        orient="bottom", columns=columns, titleOrient=title_orient, symbolStrokeWidth=2, symbolSize=90, symbolOpacity=1
    )


def dashes_below(columns: int = 1, title_orient: Any = "top") -> alt.Legend:
    """A legend of dashes under its chart, its lines longer than the dashes."""
    legend = below(columns, title_orient)
    legend["symbolSize"] = DASH_LENGTH**2
    legend["rowPadding"] = 16 - DASH_LENGTH  # a symbol is as high as it is long, and a line needs no height
    return legend


def dash_by(field: str, dashes: Mapping[str, Any], present: Any) -> alt.StrokeDash:
    """A dash for each name that is present."""
    shown = {name: dash for name, dash in dashes.items() if name in set(present)}
    return alt.StrokeDash(f"{field}:N", title=None, scale=scale_of(shown), legend=dashes_below())


def colour_by_direction() -> alt.Color:
    """Blue for denoising, orange for noising."""
    return alt.Color("direction:N", title=None, scale=scale_of(DIRECTION_COLOURS), legend=below(2))


def direction_lines(base: alt.Chart, y: alt.Y, dash: alt.StrokeDash, tooltip: Any = alt.Undefined) -> Any:
    """Noising's line is thin and drawn over denoising's, so that both are visible if they are equal."""
    width = alt.condition(alt.datum.direction == "denoising", alt.value(3.4), alt.value(1.3))
    return base.mark_line().encode(y=y, strokeDash=dash, strokeWidth=width, tooltip=tooltip)


def direction_points(base: alt.Chart, y: alt.Y, tooltip: Any = alt.Undefined) -> alt.Chart:
    """The points of these lines."""
    size = alt.condition(alt.datum.direction == "denoising", alt.value(50), alt.value(14))
    return base.mark_point(filled=True, opacity=1).encode(y=y, size=size, tooltip=tooltip)


def band(base: alt.Chart, opacity: float, **encoding: Any) -> Any:
    """The intervals of a line."""
    return base.mark_area(opacity=opacity).encode(y="low:Q", y2="high:Q", **encoding)


def zero_line() -> Any:
    return alt.Chart(pd.DataFrame({"y": [0]})).mark_rule(color="#999").encode(y="y:Q")


def numbers(*names: str, form: str = ".3f") -> list[alt.Tooltip]:
    """Numbers of a tooltip."""
    return [alt.Tooltip(f"{name}:Q", format=form) for name in names]


def tips(*names: str) -> list[Any]:
    """A tooltip: the names of a mark, its pooled effect and interval, and its number of pairs."""
    return [*names, *numbers("effect", "low", "high"), "n:Q"]


def row_of(charts: Sequence[Any], **options: Any) -> Any:
    """Charts side by side; a single one as it is."""
    return alt.hconcat(*charts, **options) if len(charts) > 1 else charts[0]


def column_of(charts: Sequence[Any]) -> Any:
    """Charts below one another; a single one as it is."""
    return alt.vconcat(*charts) if len(charts) > 1 else charts[0]


def effect_colour(reach: float, title: str = "effect") -> alt.Color:
    """Diverging colours centred on 0."""
    scale = alt.Scale(scheme="blueorange", domain=[-reach, reach], domainMid=0)
    return alt.Color("effect:Q", title=title, scale=scale, legend=alt.Legend(values=[-reach, 0, reach], format=".2f"))


def reach_of(effects: pd.Series) -> float:
    """The end of the colour scale: the largest effect, but at least 0.05, so that rounding has no colour."""
    return max(0.05, float(effects.abs().max()))  # in this order, NaN gives 0.05


def step_matrix(panel: pd.DataFrame, x: str, y: str, reach: float, titles: tuple[str, str]) -> alt.LayerChart:
    """A matrix of steps with their effects as colours and numbers; a cell without a row stays empty."""
    columns, rows = (sorted(panel[name].unique()) for name in (x, y))
    base = alt.Chart(panel).encode(
        x=alt.X(f"{x}:O", title=titles[0], scale=alt.Scale(domain=columns), axis=alt.Axis(labelAngle=0)),
        y=alt.Y(f"{y}:O", title=titles[1], scale=alt.Scale(domain=rows)),
    )
    ink = alt.condition(abs(alt.datum.effect) > 0.75 * reach, alt.value("white"), alt.value("#222"))
    cells = base.mark_rect().encode(color=effect_colour(reach), tooltip=tips(y, x))
    text = base.mark_text(fontSize=10).encode(text=alt.Text("effect:Q", format=".2f"), color=ink)
    return (cells + text).properties(width=44 * len(columns), height=30 * len(rows))


def crosses(base: alt.Chart, x: alt.X, y: alt.Y, names: Sequence[str]) -> tuple[alt.Chart, alt.Chart]:
    """The horizontal and vertical intervals of points; the columns are low_ and high_ with these names."""
    across = base.mark_rule(opacity=0.3).encode(x=f"low_{names[0]}:Q", x2=f"high_{names[0]}:Q", y=y)
    along = base.mark_rule(opacity=0.3).encode(x=x, y=f"low_{names[1]}:Q", y2=f"high_{names[1]}:Q")
    return across, along


def diagonal(ends: list[float]) -> alt.Chart:
    """The dashed line of equal effects."""
    both = alt.Chart(pd.DataFrame({"both": ends})).encode(x="both:Q", y="both:Q")
    return both.mark_line(color=GREY, strokeDash=[3, 3], strokeWidth=1)
