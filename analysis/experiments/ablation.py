"""Ablation: how many runs still give their key, and how many change their answer, after a step or layer is replaced."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.captions import about_pooled
from codi_tracing.analysis.figures.marks import column_of, numbers, scale_of, share_axis
from codi_tracing.analysis.figures.style import BLUE, GREEN, GREY, ORANGE, WIDTH, dress, heading
from codi_tracing.analysis.rows import host_value, one_of, plain, right_hosts, without
from codi_tracing.analysis.statistics.ceiling import estimate_of
from codi_tracing.analysis.statistics.effects import pooled_shares
from codi_tracing.analysis.statistics.verdict import percent
from codi_tracing.configs.vocabulary import SITE_KINDS

REPLACEMENTS = {  # the words and colour of each source; the unrelated run is the control in distribution
    "zero": ("zero", ORANGE),
    "mean": ("mean", BLUE),
    "step_mean": ("mean of the step", "#56B4E9"),
    "noise": ("noise of equal norm", GREEN),
    "moments": ("noise, same moments", "#CC79A7"),
    "unrelated": ("unrelated run (resampled)", GREY),
}
PANEL_WIDTH = 260  # pixels, so that two stand side by side on a printed page
ABLATION_KEYS = ["protocol", "kind", "by", "place", "source"]
REPLACED_WHERE = {"step": "latent step replaced, all layers", "layer": "layer replaced, all steps"}


def ablation_data(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of runs with one step (all layers) or one layer (all steps) replaced, by source, with its interval.

    `effect` is the share of runs, both hosts together, that give their key; `by` is `step` or `layer`, `place` its
    number. Only runs that give their key unpatched count. Several draws of one source are averaged.
    """
    rows = right_hosts(_replaced(table))
    if rows.empty:
        raise ValueError(
            "the table has no answers of runs with one step or layer replaced; sweep sources like zero or mean, the "
            "metrics answer_is_clean and answer_is_corrupted, on a model that answers correctly"
        )
    return pooled_shares(rows, rows["patched"], ABLATION_KEYS)


def flip_data(table: pd.DataFrame) -> pd.DataFrame:
    """Flip rate of the same runs: `effect` is the share whose greedy answer differs from the unpatched one.

    All runs count, right or wrong. A text without a number is an answer of its own.
    """
    rows = _replaced(table)
    rows = rows[rows["metric"] == "answer"]
    if rows.empty:
        raise ValueError(
            "the table has no decoded answers of runs with one step or layer replaced; run configs/ablation.toml with "
            "the metric answer"
        )
    before, after = host_value(rows), rows["patched"]
    same = (before == after) | (before.isna() & after.isna())
    return pooled_shares(rows, (~same).astype(float), ABLATION_KEYS)


def ablation_sentence(accuracy: pd.DataFrame) -> str:
    """For each replacement, the step and the layer without which fewest runs give their key."""
    said = []
    for (by, source), rows in accuracy.groupby(["by", "source"], sort=False):
        worst = rows.iloc[int(rows["effect"].argmin())]
        share = estimate_of(worst)
        said.append(f"{by} {worst['place']} by {REPLACEMENTS[str(source)][0]}: {percent(share)}")
    return (
        "Of the runs that are right unpatched, fewest still give their key with "
        f"{'; '.join(said)} ({share.sample}; each is the least of its row, so a little too small)."
    )


def ablation_chart(accuracy: pd.DataFrame, flips: pd.DataFrame | None = None) -> Any:
    """Accuracy by replaced step and layer, a colour for each source; with `flip_data`, flip rates in a second row."""
    parts = [accuracy] if flips is None else [accuracy, flips]
    sources = set(pd.concat(parts)["source"])
    colours = dict(words for source, words in REPLACEMENTS.items() if source in sources)
    rows = [_panels(accuracy, "runs that give their key", colours)]
    whole = "both questions of each pair; whiskers: 95% over clusters"
    title, lines = "Accuracy", [f"Runs that are right unpatched, {whole}", about_pooled(accuracy)]
    if flips is not None:
        rows.append(_panels(flips, "runs whose answer changes", colours))
        title = "Accuracy and flip rate"
        lines = [f"Accuracy: runs that are right unpatched; {about_pooled(accuracy)}",
                 f"Changed answers: all runs; {about_pooled(flips)}", whole.capitalize()]  # fmt: skip
    across = [
        row[0] if len(row) == 1 else alt.hconcat(*row).resolve_scale(y="shared", xOffset="independent") for row in rows
    ]
    return dress(
        column_of(across),
        heading(
            f"{title} with one step, or one layer, of the thought replaced",
            *lines,
            width=max((PANEL_WIDTH + 50) * len(rows[0]), WIDTH),
        ),
    )


def _replaced(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with one step replaced at all layers, or one layer at all steps, with `by` and `place`."""
    rows = without(plain(table), "head")
    rows = rows[rows["source"].isin(list(REPLACEMENTS))]
    step = one_of(rows, "step") & rows["layer"].isna()
    layer = one_of(rows, "layer") & rows["step"].isna()
    rows = rows.assign(by=step.map({True: "step", False: "layer"}), place=rows["step"].fillna(rows["layer"]))
    return rows[step | layer]


def _panels(shares: pd.DataFrame, axis: str, colours: dict[str, str]) -> list[Any]:
    """Shares of runs, a panel for each kind of site and for steps or layers."""
    shown = shares.assign(written=shares["source"].map({source: words for source, (words, _) in REPLACEMENTS.items()}))
    colour = alt.Color("written:N", title=None, scale=scale_of(colours), legend=alt.Legend(orient="bottom", columns=3))
    tooltip = ["written", "place", *numbers("effect", "low", "high", form=".1%"), "n"]
    panels = []
    for (kind, by), panel in shown.groupby(["kind", "by"], sort=False):
        x = alt.X("place:O", title=REPLACED_WHERE[str(by)], axis=alt.Axis(labelAngle=0),
                  scale=alt.Scale(paddingInner=0.25))  # fmt: skip
        base = alt.Chart(panel).encode(x=x, xOffset=alt.XOffset("written:N", sort=list(colours)), color=colour)
        points = base.mark_point(filled=True, size=45, opacity=1).encode(y=share_axis(axis), tooltip=tooltip)
        whiskers = base.mark_rule(strokeWidth=1.5).encode(y="low:Q", y2="high:Q")
        chart = whiskers + points
        panels.append(chart.properties(width=PANEL_WIDTH, height=170, title=SITE_KINDS[str(kind)].noun))
    return panels
