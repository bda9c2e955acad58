"""Chart of the four corners: which answer each question gives with each thought."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.figures.marks import below, scale_of
from codi_tracing.analysis.figures.style import BLUE, ORANGE, WIDTH, dress, heading
from codi_tracing.analysis.labels import about_pooled
from codi_tracing.analysis.statistics.verdict import CORNERS

READ = ["logit_difference", "low", "high"]  # a corner's mean, with its interval
ANSWERS = {"clean": BLUE, "corrupted": ORANGE, "other": "#BBBBBB"}


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
