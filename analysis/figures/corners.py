"""The four corners: the answers of each question with each thought."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.captions import about_pooled
from codi_tracing.analysis.figures.marks import below, numbers, scale_of
from codi_tracing.analysis.figures.style import BLUE, ORANGE, WIDTH, dress, heading
from codi_tracing.analysis.statistics.corners import CORNERS

CORNER_COLOURS = {"clean": BLUE, "corrupted": ORANGE, "other": "#BBBBBB"}


def corners_chart(corners: pd.DataFrame) -> Any:
    """The answers in each corner, from `statistics.corners`; a column `model` puts several models side by side.

    Of the answered pairs where there are any, else of all.
    """
    corners = corners[corners["pairs"] == corners["pairs"].iloc[0]]
    models = corners if "model" in corners else corners.assign(model="")
    names = {corner: f"{question} question, {thought} thought" for corner, (question, thought) in CORNERS.items()}
    long = models.assign(corner=models["corner"].map(names)).melt(
        ["model", "corner", "n"],
        [f"answer_{answer}" for answer in CORNER_COLOURS],
        var_name="answer",
        value_name="share",
    )
    long["answer"] = long["answer"].str.removeprefix("answer_")
    long["from"] = long.groupby(["model", "corner"])["share"].cumsum() - long["share"]
    long = long.assign(to=long["from"] + long["share"], middle=long["from"] + long["share"] / 2)
    long["label"] = long["share"].map(lambda share: f"{share:.0%}" if share >= 0.15 else "")
    base = alt.Chart(long).encode(y=alt.Y("corner:N", sort=list(names.values()), title=None))
    bars = base.mark_bar().encode(
        x=alt.X(
            "from:Q", title="share of pairs", axis=alt.Axis(format="%", tickCount=3), scale=alt.Scale(domain=[0, 1])
        ),
        x2="to:Q",
        color=alt.Color("answer:N", title="answer", scale=scale_of(CORNER_COLOURS), legend=below(3, "left")),
        tooltip=[
            *(["model"] if "model" in corners else []),
            "corner",
            "answer",
            *numbers("share", form=".1%"),
            "n",
        ],
    )
    ink = alt.condition(alt.datum.answer == "other", alt.value("#222"), alt.value("white"))
    text = base.mark_text(fontSize=10).encode(x="middle:Q", text="label:N", color=ink)
    width = 200 if models["model"].nunique() == 1 else 150
    chart: Any = (bars + text).properties(width=width, height=24 * long["corner"].nunique())
    if "model" in corners:
        header = alt.Header(title=None, labelFontWeight="bold", labelFontSize=12)
        chart = chart.facet(column=alt.Column("model:N", header=header, sort=list(models["model"].unique())))
    title = "Four corners: the answer of a question with another question's thought"
    return dress(chart, heading(title, f"{corners['pairs'].iloc[0]}: {about_pooled(corners)}", width=WIDTH + 20))
