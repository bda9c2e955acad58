"""What the answer loses when a place is replaced: how many runs still give their key, and how many change at all."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.figures.style import BLUE, GREEN, GREY, ORANGE, WIDTH, dress, heading
from codi_tracing.analysis.labels import NOUNS, about_pooled
from codi_tracing.analysis.statistics.effects import pooled

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
         "unrelated": "unrelated run (resampled)"}  # fmt: skip
PANEL = 260  # pixels, so that two stand side by side on a printed page
OWN_KEY = {"denoising": "answer_is_corrupted", "noising": "answer_is_clean"}  # the host's
KEYS = ["protocol", "kind", "by", "place", "source"]
REPLACED_WHERE = {"step": "latent step replaced, all layers", "layer": "layer replaced, all steps"}


def ablations(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of runs written at one step (all layers) or one layer (all steps), by source, with its interval.

    `effect` is the share of runs, both hosts together, that give their key; `by` is `step` or `layer`, `place` which.
    Runs that do not give their key unpatched are left out. Several draws of one source are averaged.
    """
    rows = _replaced(table)
    rows = rows[rows["metric"] == rows["direction"].map(OWN_KEY)]
    rows = rows[_unpatched(rows) == 1]
    if rows.empty:
        raise ValueError(
            "the table has no answers of runs with one step or layer replaced; sweep sources like zero or mean, the "
            "metrics answer_is_clean and answer_is_corrupted, on a model that answers correctly"
        )
    return pooled(rows.assign(numerator=rows["patched"], denominator=1.0), KEYS)


def flips(table: pd.DataFrame) -> pd.DataFrame:
    """Flip rate of the same runs: `effect` is the share whose greedy answer is not the one that they give unpatched.

    All runs count, right or wrong. A text without a number is an answer of its own: it is the same only as another.
    """
    rows = _replaced(table)
    rows = rows[rows["metric"] == "answer"]
    if rows.empty:
        raise ValueError(
            "the table has no decoded answers of runs with one step or layer replaced; run configs/ablation.toml with "
            "the metric answer"
        )
    before, after = _unpatched(rows), rows["patched"]
    same = (before == after) | (before.isna() & after.isna())
    return pooled(rows.assign(numerator=(~same).astype(float), denominator=1.0), KEYS)


def ablation_curve(ablated: pd.DataFrame, flipped: pd.DataFrame | None = None) -> Any:
    """Accuracy by the step, and by the layer, that was replaced, from `ablations`: one line for each replacement.

    With `flips` of the same table, a second row of panels shows how many runs change their answer.
    """
    found = [ablated] if flipped is None else [ablated, flipped]
    sources = set(pd.concat(found)["source"])
    written = {NAMES.get(name, name): colour for name, colour in REPLACED.items() if name in sources}
    rows = [_panels(ablated, "runs that give their key", written)]
    whole = "both questions of each pair; whiskers: 95% over clusters"
    lines = [f"Runs that are right unpatched, {whole}", about_pooled(ablated)]
    if flipped is not None:
        rows.append(_panels(flipped, "runs whose answer changes", written))
        lines = [f"Accuracy: runs that are right unpatched; {about_pooled(ablated)}",
                 f"Changed answers: all runs; {about_pooled(flipped)}", whole.capitalize()]  # fmt: skip
    across = [row[0] if len(row) == 1 else _beside(row) for row in rows]
    title = "Accuracy" if flipped is None else "Accuracy and flip rate"
    return dress(
        across[0] if len(across) == 1 else alt.vconcat(*across),
        heading(
            f"{title} with one step, or one layer, of the thought replaced",
            *lines,
            width=max((PANEL + 50) * len(rows[0]), WIDTH),
        ),
    )


def _replaced(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of one step replaced at all layers, or of one layer at all steps, with `by` and `place`."""
    rows = table[table["source"].isin(list(REPLACED))]
    rows = rows[rows[["freeze", "head", "knockout", "n_latents", "step_set", "read_step"]].isna().all(axis=1)]
    step = rows["step"].notna() & (rows["step"] == rows["step_last"]) & rows["layer"].isna()
    layer = rows["layer"].notna() & (rows["layer"] == rows["layer_last"]) & rows["step"].isna()
    rows = rows.assign(by=step.map({True: "step", False: "layer"}), place=rows["step"].fillna(rows["layer"]))
    return rows[(step | layer).fillna(False)]


def _unpatched(rows: pd.DataFrame) -> pd.Series:
    """The metric's value in each row's host, as it runs unpatched."""
    return rows["clean"].where(rows["direction"] == "noising", rows["corrupted"])


def _panels(shares: pd.DataFrame, axis: str, written: dict[str, str]) -> list[Any]:
    """One panel for each site and for steps or layers: shares of runs, whose axis says which."""
    shown = shares.assign(written=shares["source"].map(lambda name: NAMES.get(name, name)))
    colour = alt.Color("written:N", title=None, scale=alt.Scale(domain=list(written), range=list(written.values())),
                       legend=alt.Legend(orient="bottom", columns=3))  # fmt: skip
    tips = ["written", "place", *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("effect", "low", "high")), "n"]
    y = alt.Y("effect:Q", title=axis, axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))
    panels = []
    for (site, by), panel in shown.groupby(["kind", "by"], sort=False):
        x = alt.X("place:O", title=REPLACED_WHERE[str(by)], axis=alt.Axis(labelAngle=0),
                  scale=alt.Scale(paddingInner=0.25))  # fmt: skip
        base = alt.Chart(panel).encode(x=x, xOffset=alt.XOffset("written:N", sort=list(written)), color=colour)
        points = base.mark_point(filled=True, size=45, opacity=1).encode(y=y, tooltip=tips)
        whiskers = base.mark_rule(strokeWidth=1.5).encode(y="low:Q", y2="high:Q")
        panels.append((whiskers + points).properties(width=PANEL, height=170, title=NOUNS[str(site)]))
    return panels


def _beside(panels: list[Any]) -> Any:
    """Panels in a row that share their y axis, each with its own places."""
    return alt.hconcat(*panels).resolve_scale(y="shared", xOffset="independent")
