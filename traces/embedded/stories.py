"""Draw the README's figure of two models: python traces/embedded/stories.py SITEWISE_A MATCHED_A SITEWISE_B MATCHED_B

The runs are those of configs/sitewise.toml and configs/matched.toml, with `--checkpoint` and `--out`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from codi_tracing.analysis.experiments.matched import WHOSE_COLOURS, matched_data
from codi_tracing.analysis.figures.corners import CORNER_COLOURS
from codi_tracing.analysis.figures.heatmap import heatmap_data
from codi_tracing.analysis.figures.marks import below, scale_of
from codi_tracing.analysis.figures.style import dress, heading
from codi_tracing.analysis.io.png_worker import PPI, SCALE
from codi_tracing.analysis.io.table_file import read_table
from codi_tracing.analysis.statistics.ceiling import LOW_CEILING, ceiling
from codi_tracing.analysis.statistics.corners import CORNERS, corners
from codi_tracing.analysis.statistics.inference import ALPHA

HERE = Path(__file__).parent
CARD = HERE / "card.json"
WIDE = 210  # pixels, so that two columns fill a printed page
ANSWER_COLOURS = {name: WHOSE_COLOURS[name] for name in ("hybrid", "donor", "host")} | {"other": "#8A8A8A"}
INTERMEDIATE = 1


def main(*runs: str) -> None:
    """A column per model: corners, layers × steps, and shares of answers by the last step written."""
    card = json.loads(CARD.read_text(encoding="utf-8"))
    columns: list = []
    for swept, matched in zip(map(Path, runs[::2]), map(Path, runs[1::2]), strict=True):
        names = {json.loads((run / "manifest.json").read_text())["model"]["checkpoint"] for run in (swept, matched)}
        if len(names) > 1:
            raise SystemExit(f"{swept} and {matched} are of different checkpoints: {', '.join(sorted(names))}")
        name = names.pop()
        accuracy = card[name]["accuracy_by_steps"]["6"]
        table, first = read_table(swept / "cells.parquet"), not columns
        shares = matched_data(read_table(matched / "cells.parquet"))
        parts = [
            corner_panel(corners(table), f"{name}: accuracy {accuracy:.1%}", first),
            site_panel(table, first),
            share_panel(shares),
        ]
        columns.append(alt.vconcat(*parts, spacing=22).resolve_scale(color="independent"))
    title = heading(
        "Same accuracy, different causal story",
        "Top: the answer of a question (q.) that reads another question's thought. Middle: clean values of one layer "
        "and step written into the corrupted run; specific transfer: the part of the clean answer's probability that "
        "they bring, less an unrelated donor's; faint: not told apart from it (p > 0.05, family-wise). Bottom: a "
        "donor's "
        f"steps 0 to k written (intermediate {INTERMEDIATE}; hybrid: the host's remaining operations on the donor's "
        "intermediate; dashed: hybrid answers by an unrelated donor; bars: 95% over clusters). Protocol latent_loop.",
        width=770,
    )
    spec = dress(alt.hconcat(*columns, spacing=30), title).to_dict()
    (HERE / "stories.png").write_bytes(vl_convert.vegalite_to_png(spec, ppi=PPI, scale=SCALE))


def corner_panel(shares: pd.DataFrame, title: str, named: bool) -> Any:
    """The shares of answers in each corner."""
    labels = {corner: f"{question} q., {thought} thought" for corner, (question, thought) in CORNERS.items()}
    long = shares.assign(corner=shares["corner"].map(labels)).melt(
        ["corner"], [f"answer_{answer}" for answer in CORNER_COLOURS], var_name="answer", value_name="share"
    )
    long["answer"] = long["answer"].str.removeprefix("answer_")
    return (
        alt.Chart(long)
        .mark_bar()
        .encode(
            y=alt.Y("corner:N", sort=list(labels.values()), title=None, axis=alt.Axis(labels=named, ticks=named)),
            x=alt.X("share:Q", title="share of pairs", axis=alt.Axis(format="%", tickCount=3)),
            color=alt.Color("answer:N", title="answer", scale=scale_of(CORNER_COLOURS), legend=below(3, "left")),
        )
        .properties(width=WIDE, height=alt.Step(19), title=panel_title(title, sample_size(shares), 13))
    )


def site_panel(table: pd.DataFrame, first: bool) -> Any:
    """Specific transfer by layer and step, on one colour scale for all models."""
    sites = heatmap_data(table)
    sites = sites[(sites["direction"] == "denoising") & (sites["kind"] == "resid") & sites["step"].notna()]
    sites = sites.assign(differs=sites["p_fwer"] <= ALPHA)
    top = ceiling(table)
    note = "" if top.low >= LOW_CEILING else ": low"
    base = alt.Chart(sites).encode(
        x=alt.X("step:O", title="latent step", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("layer:O", title="layer", sort="descending"),
    )
    scale = alt.Scale(scheme="blueorange", domain=[-1, 1], domainMid=0, clamp=True)
    legend = None if first else alt.Legend(orient="right", gradientLength=70, values=[-1, 0, 1], format=".1f")
    ink = alt.condition((abs(alt.datum.effect) > 0.6) & alt.datum.differs, alt.value("white"), alt.value("#222"))
    colour = alt.Color("effect:Q", title="transfer", scale=scale, legend=legend)
    cells = base.mark_rect().encode(color=colour, opacity=alt.condition("datum.differs", alt.value(1), alt.value(0.3)))
    words = base.mark_text(fontSize=10).encode(text=alt.Text("effect:Q", format=".2f"), color=ink)
    title = panel_title("Specific transfer, residual stream", f"ceiling {top}{note}; {sample_size(sites)}")
    return (cells + words).properties(width=WIDE, height=alt.Step(20), title=title)


def share_panel(shares: pd.DataFrame) -> Any:
    """The share of each answer by the last step written, and of the unrelated donor's hybrid answers."""
    apart = (shares["intermediate_is"] == "different") & (shares["answer_is"] == "different")
    rows = shares[apart & (shares["intermediate"] == INTERMEDIATE) & (shares["written"] == "prefix")]
    true = rows[(rows["source"] == "clean") & rows["answer"].isin(list(ANSWER_COLOURS))]
    control = rows[(rows["source"] == "unrelated") & (rows["answer"] == "hybrid")]
    colours = scale_of(ANSWER_COLOURS)
    x = alt.X("step:O", title="steps 0 to k written", axis=alt.Axis(labelAngle=0))
    y = alt.Y("share:Q", title="share of runs", axis=alt.Axis(format="%", tickCount=3), scale=alt.Scale(domain=[0, 1]))
    colour = alt.Color("answer:N", title="answer", scale=colours, legend=below(4, "left"))
    base = alt.Chart(true).encode(x=x, color=colour)
    lines = base.mark_line(strokeWidth=2, point=True).encode(y=y)
    bars = base.mark_rule(opacity=0.6).encode(y="low:Q", y2="high:Q")
    dashed = alt.Chart(control).mark_line(strokeDash=[4, 3], color=WHOSE_COLOURS["hybrid"]).encode(x=x, y=y)
    title = panel_title("Whose answer, once steps are a donor's", sample_size(true))
    return (dashed + bars + lines).properties(width=WIDE, height=120, title=title)


def sample_size(rows: pd.DataFrame) -> str:
    """The numbers of pairs and clusters in a panel."""
    return f"n = {rows['n'].max()} pairs, {rows['clusters'].max()} clusters"


def panel_title(text: str, below_it: str, size: int = 11) -> alt.TitleParams:
    """A panel's heading and a grey line under it."""
    return alt.TitleParams(
        text, subtitle=below_it, anchor="start", frame="group", fontSize=size, subtitleFontSize=11, subtitleColor="#555"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
