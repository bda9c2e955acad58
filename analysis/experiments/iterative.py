"""Iterative patching: the effect of writing the steps 0 to k on the answer and on the next step."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.captions import about_pooled, both_ways, one_site
from codi_tracing.analysis.figures.marks import (
    band,
    colour_by_direction,
    dash_by,
    direction_lines,
    direction_points,
    tips,
    whole_axis,
    zero_line,
)
from codi_tracing.analysis.figures.style import WIDTH, dress, heading
from codi_tracing.analysis.rows import OTHER_RUN, UNRELATED, from_run, without
from codi_tracing.analysis.statistics.ceiling import estimate_of
from codi_tracing.analysis.statistics.effects import effect, pooled
from codi_tracing.analysis.statistics.measures import TRANSFER, measured
from codi_tracing.configs.vocabulary import SEGMENTS

READS = {"answer": "the answer (transfer)", "next": "final state of step k + 1 (projection)"}
LINES = {  # what is written, and whether R is frozen: words of a line, and its dash
    (OTHER_RUN, "free"): ("other run", [1, 0]),
    (OTHER_RUN, "R frozen"): ("other run, R frozen (next latent is the host's)", [5, 3]),
    (UNRELATED, "free"): ("unrelated donor", [1, 2]),
}


def iterative_data(table: pd.DataFrame) -> pd.DataFrame:
    """Pooled effect of writing the steps 0 to `end`, by direction, `written`, `route` and `reads`.

    `reads` is `answer`, the transfer, or `next`, the position between host and donor of the state of step
    end + 1, which the run computes itself. With `R frozen` the next latent is the host's: only the cache carries.
    """
    has_answers = table["metric"].str.startswith("probability").any()
    answers = [measured(table)] if has_answers else []
    rows = pd.concat([*answers, table[table["metric"] == "projection"]], ignore_index=True)
    rows = without(rows, "layer", "head", "step_set", "knockout", "n_latents")
    rows = rows[~rows["kind"].isin(SEGMENTS) & (rows["step"] == 0).fillna(False) & rows["step_last"].notna()]
    rows = from_run(rows[rows["freeze"].isna() | (rows["freeze"] == "R")])
    answer = (rows["metric"] == TRANSFER) & rows["read_step"].isna()
    following = (rows["metric"] == "projection") & (rows["read_step"] == rows["step_last"] + 1).fillna(False)
    rows = rows.assign(
        reads=following.map({True: "next", False: "answer"}),
        written=rows["donor"],
        route=rows["freeze"].isna().map({True: "free", False: "R frozen"}),
        end=rows["step_last"],
    )[answer | following]
    if rows["end"].nunique() < 2:  # one step alone is no growing prefix
        raise ValueError(
            "the table has no rows that write steps 0 to k, for several k, read at the answer or at "
            "step k + 1; run configs/iterative.toml"
        )
    return pooled(effect(rows), ["protocol", "kind", "direction", "metric", "reads", "written", "route", "end"])


def iterative_sentence(data: pd.DataFrame) -> str:
    """How far the prefixes carry the answer, beside the control and the cache alone, and the next step's own state."""
    rows = data[data["direction"] == min(data["direction"])]
    free = (rows["written"] == OTHER_RUN) & (rows["route"] == "free")
    lines = {
        "writing them from the partner's run transfers the answer by": rows[free & (rows["reads"] == "answer")],
        "an unrelated donor's by": rows[(rows["written"] == UNRELATED) & (rows["reads"] == "answer")],
        "through the cache alone (the next latent is the host's)": rows[
            (rows["route"] == "R frozen") & (rows["reads"] == "answer")
        ],
        "the step after them, which the run computes itself, is then moved by": rows[free & (rows["reads"] == "next")],
    }
    said = [f"{words} {_at_ends(line)}" for words, line in lines.items() if len(line)]
    if not said:
        raise ValueError("no effect of a prefix of steps is defined, so none is named")
    size = estimate_of(rows.iloc[0]).sample
    return f"Of the steps 0 to k, {'; '.join(said)} ({rows['direction'].iloc[0]}, {size}; 0: host, 1: partner)."


def _at_ends(line: pd.DataFrame) -> str:
    """The effects of the shortest and the longest prefix, and the first that reaches half of the longest's."""
    line = line.dropna(subset="effect").sort_values("end")
    if line.empty:
        return "an undefined amount"
    first, last = line.iloc[0], line.iloc[-1]
    if len(line) == 1:
        return f"{estimate_of(last)} at k = {last['end']}"
    half = line[line["effect"] >= last["effect"] / 2].iloc[0]["end"]
    halfway = f", half of it from k = {half}" if last["low"] > 0 else ""
    return f"{estimate_of(first)} at k = {first['end']} and {estimate_of(last)} at k = {last['end']}{halfway}"


def iterative_chart(data: pd.DataFrame) -> Any:
    """Effect by last step written: at the answer, and at the step after the prefix."""
    names = {line: words for line, (words, _) in LINES.items()}
    lines = [names.get(line) for line in zip(data["written"], data["route"], strict=True)]
    shown = data.assign(series=pd.Series(lines, data.index, dtype="str")).dropna(subset="series")
    panels = [_panel(shown, reads) for reads in READS if reads in set(shown["reads"])]
    return dress(
        alt.hconcat(*panels).resolve_scale(y="shared"),
        heading(
            "Effect of writing the latent steps 0 to k",
            f"Written: {one_site(shown)}, all layers, {both_ways(shown)}",
            "At the answer: transfer on answered pairs; bands: 95% over clusters",
            about_pooled(shown),
            width=max(WIDTH * len(panels), 420),
        ),
    )


def _panel(shown: pd.DataFrame, reads: str) -> alt.LayerChart:
    """The lines of one reading; the axis and the legend are those of all."""
    x = whole_axis("end", int(shown["end"].max()), "last step written, k")
    base = alt.Chart(shown[shown["reads"] == reads]).encode(x=x, color=colour_by_direction())
    y = alt.Y("effect:Q", title="effect (0: host, 1: partner)")
    lines = direction_lines(base, y, dash_by("series", dict(LINES.values()), shown["series"]))
    points = direction_points(base, y, tips("direction", "series", "end"))
    chart = zero_line() + band(base, 0.12, detail="series:N") + lines + points
    return chart.properties(width=WIDTH, height=230, title=READS[reads])
