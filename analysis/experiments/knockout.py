"""Knocked-out attention edges: how many runs still give their key when the answer, or a step, no longer sees something.

A cut edge leaves nothing in its place, so these runs are off the distribution that the model was trained on.
"""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.experiments.ablation import OWN_KEY
from codi_tracing.analysis.figures.style import BLUE, WIDTH, dress, heading
from codi_tracing.analysis.labels import about_pooled
from codi_tracing.analysis.statistics.effects import pooled

ENDS = {"answer": "the answer", "question": "the question", "bot": "BoT", "eot": "EoT"}


def knockout_data(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of otherwise unpatched runs by the edge that is cut, of runs that are right unpatched, with interval.

    `effect` is the share of runs, both hosts together, that give their key.
    """
    rows = table[table["knockout"].notna() & table["n_latents"].isna() & (table["source"] == "self")]
    rows = rows[rows["metric"] == rows["direction"].map(OWN_KEY)]
    rows = rows[rows["clean"].where(rows["direction"] == "noising", rows["corrupted"]) == 1]
    if rows.empty:
        raise ValueError(
            "the table has no answers of runs with a cut edge that are right unpatched; name cuts in a config, and the "
            "metrics answer_is_clean and answer_is_corrupted"
        )
    shares = pooled(rows.assign(numerator=rows["patched"], denominator=1.0), ["protocol", "knockout"])
    order = {knockout: place for place, knockout in enumerate(dict.fromkeys(rows["knockout"]))}
    return shares.sort_values("knockout", key=lambda knockouts: knockouts.map(order), ignore_index=True)


def edge_name(knockout: str) -> str:
    """`answer-question` in words: who no longer sees what, and where."""
    edges = []
    for one in knockout.split():
        edge, _, layer = one.partition("@")
        reader, _, read = edge.partition("-")
        reader, read = (f"step {end}" if end.isdigit() else ENDS.get(end, end) for end in (reader, read))
        edges.append(f"{reader} not seeing {read}" + (f" in layer {layer}" if layer else ""))
    return " and ".join(edges)


def knockout_bars(found: pd.DataFrame) -> Any:
    """Accuracy by cut edge, from `knockouts`, in the order of the config."""
    shown = found.assign(edge=found["knockout"].map(edge_name))
    base = alt.Chart(shown).encode(y=alt.Y("edge:N", sort=list(shown["edge"]), title=None))
    share = alt.Scale(domain=[0, 1])
    x = alt.X("effect:Q", title="runs that give their own key", axis=alt.Axis(format="%"), scale=share)
    tips = ["edge", *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("effect", "low", "high")), "n"]
    bars = base.mark_bar(color=BLUE, height=14).encode(x=x.stack(None), tooltip=tips)
    whiskers = base.mark_rule(strokeWidth=1.5).encode(x="low:Q", x2="high:Q")
    return dress(
        (bars + whiskers).properties(width=WIDTH - 110, height=26 * len(shown)),
        heading(
            "Accuracy with an attention edge cut",
            "Nothing else is patched. Off-distribution: nothing stands in the place of what is hidden",
            "Runs that are right unpatched, both questions of each pair; whiskers: 95% over clusters",
            about_pooled(found),
            width=WIDTH + 20,
        ),
    )
