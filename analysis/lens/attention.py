"""Charts of attention from the latent steps, EoT and the answer: over all layers, and layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.figures.marks import below
from codi_tracing.analysis.figures.style import BLUE, GREEN, GREY, ORANGE, WIDTH, dress, heading
from codi_tracing.analysis.lens.charts import SHARES, panel_title

KEYS = ("special", "numbers", "words", "BoT", "step", "EoT", "answer")
COLOURS = (GREY, ORANGE, "#E69F00", "#CC79A7", BLUE, "#56B4E9", GREEN)
QUERIES = ("step", "EoT", "answer")


def attention_map(weights: pd.DataFrame) -> Any:
    """Attention from each step, EoT and the answer to groups of tokens, from `mean_attention`, over all layers."""
    cells = weights.assign(text=weights["weight"].map(lambda weight: f"{100 * weight:.0f}" if weight >= 0.005 else ""))
    base = alt.Chart(cells).encode(
        x=alt.X("key:N", sort=order_of(weights["key"], KEYS), title="attended to", axis=alt.Axis(labelAngle=-45)),
        y=alt.Y("query:N", sort=order_of(weights["query"], QUERIES), title="from"),
    )
    share = [alt.Tooltip(f"{name}:Q", format=".1%") for name in ("weight", "low", "high")]
    even = alt.Tooltip("even:Q", format=".1%", title="if spread evenly")
    rects = base.mark_rect().encode(
        color=alt.Color("weight:Q", title="attention", scale=SHARES, legend=alt.Legend(format="%", values=[0, 0.5, 1])),
        tooltip=["query", "key", *share, even, "n", "clusters"],
    )
    ink = alt.condition(alt.datum.weight > 0.6, alt.value("white"), alt.value("#222"))
    return dress(
        (rects + base.mark_text(fontSize=9).encode(text="text:N", color=ink)).properties(
            width=28 * weights["key"].nunique(), height=22 * weights["query"].nunique()
        ),
        heading(
            "What a thought and its answer attend to",
            "Per cent of attention, mean over questions, heads and layers; a row sums to 100",
            "numbers, words, special: the question's tokens; answer: its forced beginning, from its last token",
            f"n = {weights['n'].max()} questions, {weights['clusters'].max()} clusters; intervals in the tooltips",
            width=28 * weights["key"].nunique() + 60,
        ),
    )


def attention_by_layer(weights: pd.DataFrame, queries: Sequence[str] = ("EoT", "answer")) -> Any:
    """The same by layer, from `mean_attention(…, by_layer=True)`: a panel for each query, the latent steps summed."""
    rows = weights[weights["query"].isin(queries)]
    if rows.empty:
        known = ", ".join(weights["query"].unique())
        raise ValueError(f"the rows have no query {' or '.join(queries)}; they have {known}")
    groups = rows["key"].where(~rows["key"].str.startswith("step "), "latent steps")
    summed = rows.assign(key=groups).groupby(["query", "layer", "key"], as_index=False)[["weight", "even"]].sum()
    names = order_of(summed["key"], KEYS)
    colours = dict(zip([*KEYS[:4], "latent steps", *KEYS[5:]], COLOURS, strict=True))
    colour = alt.Color(
        "key:N", title=None, scale=alt.Scale(domain=names, range=[colours[name] for name in names]), legend=below(4)
    )
    percent, whole = alt.Axis(format="%"), alt.Scale(domain=[0, 1])
    base = alt.Chart(summed).encode(
        x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("weight:Q", title="attention, mean over heads", axis=percent, scale=whole),
        color=colour,
        tooltip=["query", "key", "layer", alt.Tooltip("weight:Q", format=".1%"),
                 alt.Tooltip("even:Q", format=".1%", title="if spread evenly")],
    )  # fmt: skip
    lines = base.mark_line(strokeWidth=2) + base.mark_point(filled=True, size=28, opacity=1)
    panels = [
        lines.transform_filter(alt.datum.query == query).properties(
            width=WIDTH // 2, height=190, title=panel_title(f"from {query}")
        )
        for query in queries
    ]
    return dress(
        alt.hconcat(*panels).resolve_scale(y="shared"),
        heading(
            "What the answer attends to, layer by layer",
            f"Mean over heads and n = {rows['n'].max()} questions; latent steps summed",
            width=WIDTH + 60,
        ),
    )


def order_of(names: pd.Series, order: Sequence[str]) -> list[str]:
    """The names in the order of a run, `step 2` before `step 10`."""

    def position(name: str) -> tuple[int, int]:
        word, _, number = str(name).partition(" ")
        word = "step" if word == "latent" else word
        return order.index(word), int(number) if number.isdecimal() else 0

    return sorted(names.unique(), key=position)
