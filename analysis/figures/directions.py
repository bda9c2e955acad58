"""Denoising against noising: each site's two effects."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from codi_tracing.analysis.captions import about_measure, about_pooled, site_name, site_nouns
from codi_tracing.analysis.figures.marks import crosses, diagonal, numbers
from codi_tracing.analysis.figures.style import BLUE, WIDTH, dress, heading


def directions_chart(data: pd.DataFrame) -> Any:
    """A point for each site of `statistics.both_directions`; equal effects lie on the dashed diagonal."""
    sides = ("denoising", "noising")
    values = data[[f"{name}_{side}" for name in ("low", "high", "effect") for side in sides]].to_numpy(float)
    if not np.isfinite(values).any():
        raise ValueError("no site has an effect in both directions, so there is nothing to draw")
    ends = [min(float(np.nanmin(values)), 0.0), max(float(np.nanmax(values)), 0.0)]
    scale = alt.Scale(domain=ends, nice=True)
    tested = bool(data["specific"].all())
    noun = ("specific " if tested else "") + ("transfer" if data["metric"].iloc[0] == "transfer" else "effect")
    x = alt.X("effect_denoising:Q", title=f"{noun}, denoising", scale=scale)
    y = alt.Y("effect_noising:Q", title=f"{noun}, noising", scale=scale)
    by_layer = alt.Color("layer:O", title="layer", scale=alt.Scale(scheme="viridis"))
    colour = by_layer if data["layer"].nunique() > 1 else alt.value(BLUE)
    tooltip: list[Any] = [
        "place:N",
        *numbers(*(f"{name}_{side}" for side in sides for name in ("effect", "low", "high"))),
        "n:Q",
        "clusters:Q",
    ]
    names = [site_name(row, data["kind"].nunique() > 1) for row in data.to_dict("records")]
    base = alt.Chart(data.assign(place=names)).encode(color=colour, tooltip=tooltip)
    points = base.mark_point(filled=True, size=50, opacity=0.9).encode(x=x, y=y)
    return dress(
        alt.layer(points, *crosses(base, x, y, sides), diagonal(ends)).properties(width=WIDTH - 60, height=WIDTH - 60),
        heading(
            "Denoising against noising, a point for each site",
            f"Written: {site_nouns(data)}; dashed: equal effects; bars: 95% over clusters",
            about_measure(data["metric"].iloc[0]),
            about_pooled(data),
        ),
    )
