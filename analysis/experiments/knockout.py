"""Attention knockouts: how many runs still give their key when the answer, or a step, cannot attend to something.

Nothing replaces a removed edge, so these runs are outside the model's training distribution.
"""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.captions import about_pooled
from codi_tracing.analysis.figures.marks import numbers
from codi_tracing.analysis.figures.style import BLUE, WIDTH, dress, heading
from codi_tracing.analysis.rows import right_hosts
from codi_tracing.analysis.statistics.ceiling import estimate_of
from codi_tracing.analysis.statistics.effects import pooled_shares
from codi_tracing.analysis.statistics.verdict import percent

EDGE_ENDS = {"answer": "the answer", "question": "the question", "bot": "BoT", "eot": "EoT"}


def knockout_data(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of otherwise unpatched runs by knockout, of runs that are right unpatched, with its interval.

    `effect` is the share of runs, both hosts together, that give their key.
    """
    rows = right_hosts(table[table["knockout"].notna() & table["n_latents"].isna() & (table["source"] == "self")])
    if rows.empty:
        raise ValueError(
            "the table has no answers of runs with a knockout that are right unpatched; name knockouts in a config, "
            "and the metrics answer_is_clean and answer_is_corrupted"
        )
    order = list(dict.fromkeys(rows["knockout"]))
    shares = pooled_shares(rows, rows["patched"], ["protocol", "knockout"])
    return shares.sort_values("knockout", key=lambda knockouts: knockouts.map(order.index), ignore_index=True)


def edge_name(knockout: str) -> str:
    """`answer-question` in words: the position that cannot attend, to what, and in which layer."""
    edges = []
    for one in knockout.split():
        edge, _, layer = one.partition("@")
        reader, _, read = edge.partition("-")
        reader, read = (f"step {end}" if end.isdigit() else EDGE_ENDS.get(end, end) for end in (reader, read))
        edges.append(f"{reader} not seeing {read}" + (f" in layer {layer}" if layer else ""))
    return " and ".join(edges)


def knockout_sentence(data: pd.DataFrame) -> str:
    """How many runs still give their key, knockout by knockout."""
    shares = [(edge_name(row["knockout"]), estimate_of(row)) for row in data.to_dict("records")]
    listed = "; ".join(f"with {edge}, {percent(share)}" for edge, share in shares[:8])
    more = f"; and {len(shares) - 8} more knockouts" if len(shares) > 8 else ""
    return f"Of the runs that are right unpatched, still give their key: {listed}{more} ({shares[0][1].sample})."


def knockout_chart(data: pd.DataFrame) -> Any:
    """Accuracy by knockout, in the order of the config."""
    shown = data.assign(edge=data["knockout"].map(edge_name))
    base = alt.Chart(shown).encode(y=alt.Y("edge:N", sort=list(shown["edge"]), title=None))
    share = alt.Scale(domain=[0, 1])
    x = alt.X("effect:Q", title="runs that give their own key", axis=alt.Axis(format="%"), scale=share)
    tooltip = ["edge", *numbers("effect", "low", "high", form=".1%"), "n"]
    bars = base.mark_bar(color=BLUE, height=14).encode(x=x.stack(None), tooltip=tooltip)
    whiskers = base.mark_rule(strokeWidth=1.5).encode(x="low:Q", x2="high:Q")
    return dress(
        (bars + whiskers).properties(width=WIDTH - 110, height=26 * len(shown)),
        heading(
            "Accuracy with an attention edge knocked out",
            "Nothing else is patched. Off-distribution: nothing replaces the hidden positions",
            "Runs that are right unpatched, both questions of each pair; whiskers: 95% over clusters",
            about_pooled(data),
            width=WIDTH + 20,
        ),
    )
