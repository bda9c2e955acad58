"""What the answer loses when a place is replaced: the share of runs that give their key, by what was written."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from analysis.effects import pooled
from analysis.style import BLUE, GREEN, GREY, NOUNS, ORANGE, WIDTH, about_pooled, dress, heading

# What replaces a value, and its colour; the unrelated run is the control in distribution.
REPLACED = {
    "zero": ORANGE,
    "mean": BLUE,
    "step_mean": "#56B4E9",
    "noise": GREEN,
    "moments": "#CC79A7",
    "unrelated": GREY,
}
NAMES = {"step_mean": "mean of the step", "noise": "noise as long", "moments": "noise, same moments",
         "unrelated": "unrelated run"}  # fmt: skip
OWN_KEY = {"denoising": "answer_is_corrupted", "noising": "answer_is_clean"}  # the host's


def ablations(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of runs written at one step (all layers) or one layer (all steps), by source, with its interval.

    `effect` is the share of runs, both hosts together, that give their key; `by` is `step` or `layer`, `place` which.
    Runs that do not give their key unpatched are left out.
    """
    rows = table[table["source"].isin(list(REPLACED)) & table["freeze"].isna() & table["head"].isna()]
    step = rows["step"].notna() & (rows["step"] == rows["step_last"]) & rows["layer"].isna()
    layer = rows["layer"].notna() & (rows["layer"] == rows["layer_last"]) & rows["step"].isna()
    rows = rows.assign(by=step.map({True: "step", False: "layer"}), place=rows["step"].fillna(rows["layer"]))
    rows = rows[(step | layer) & (rows["metric"] == rows["direction"].map(OWN_KEY))]
    unpatched = rows["clean"].where(rows["direction"] == "noising", rows["corrupted"])
    rows = rows[unpatched == 1]
    if rows.empty:
        raise ValueError(
            "the table has no answers of runs with one step or layer replaced; sweep sources like zero or mean, the "
            "metrics answer_is_clean and answer_is_corrupted, on a model that answers correctly"
        )
    keys = ["protocol", "site", "by", "place", "source"]
    return pooled(rows.assign(numerator=rows["patched"], denominator=1.0), keys)


def ablation_curve(ablated: pd.DataFrame) -> Any:
    """Accuracy by the step, and by the layer, that was replaced, from `ablations`: one line for each replacement."""
    shown = ablated.assign(written=ablated["source"].map(lambda name: NAMES.get(name, name)))
    names = [NAMES.get(name, name) for name in REPLACED if name in set(ablated["source"])]
    colours = [REPLACED[name] for name in REPLACED if name in set(ablated["source"])]
    colour = alt.Color("written:N", title=None, scale=alt.Scale(domain=names, range=colours),
                       legend=alt.Legend(orient="bottom", columns=3))  # fmt: skip
    panels = []
    for (site, by), panel in shown.groupby(["site", "by"], sort=False):
        title = {"step": "latent step replaced, all layers", "layer": "layer replaced, all steps"}[str(by)]
        x = alt.X("place:O", title=title, axis=alt.Axis(labelAngle=0), scale=alt.Scale(paddingInner=0.25))
        base = alt.Chart(panel).encode(x=x, xOffset=alt.XOffset("written:N", sort=names), color=colour)
        y = alt.Y("effect:Q", title="runs that give their key", axis=alt.Axis(format="%"),
                  scale=alt.Scale(domain=[0, 1]))  # fmt: skip
        tips = [
            "written",
            "place",
            *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("effect", "low", "high")),
            "n",
        ]
        points = base.mark_point(filled=True, size=45, opacity=1).encode(y=y, tooltip=tips)
        whiskers = base.mark_rule(strokeWidth=1.5).encode(y="low:Q", y2="high:Q")
        panels.append((whiskers + points).properties(width=WIDTH, height=200, title=NOUNS[str(site)]))
    chart = panels[0] if len(panels) == 1 else alt.hconcat(*panels).resolve_scale(y="shared", xOffset="independent")
    return dress(
        chart,
        heading(
            "Accuracy with one step, or one layer, of the thought replaced",
            "Runs that are right unpatched, both questions of each pair; whiskers: 95% over clusters",
            about_pooled(ablated),
            width=WIDTH * len(panels),
        ),
    )
