"""Effects by latent step: of one step, of all up to it, of all from it on, with frozen routes, and before training.

An early step has more of the run after it than a late one, so a single step's effect falls with the step even in a
model of random weights. Hence its curve is drawn with its controls, if the table has them: frozen routes (with R and
K_T frozen, equally much of the run comes after every step), prefixes, suffixes and the re-initialised model.
"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from codi_tracing.analysis.captions import BOTH_WAYS, about_measure, about_pooled
from codi_tracing.analysis.figures.marks import (
    band,
    colour_by_direction,
    column_of,
    dash_by,
    direction_lines,
    direction_points,
    effect_title,
    numbers,
    zero_line,
)
from codi_tracing.analysis.figures.style import GREY, WIDTH, dress, heading
from codi_tracing.analysis.rows import OTHER_RUN, UNRELATED, from_other_run, from_run, one_of, without
from codi_tracing.analysis.statistics.effects import effect, oriented, pooled
from codi_tracing.analysis.statistics.measures import TRANSFER, measured
from codi_tracing.configs.vocabulary import SEGMENTS, SITE_KINDS

WINDOWS = {"one step": "step k alone", "prefix": "steps 0 to k", "suffix": "steps k to the last"}
UNTRAINED = "other run, re-initialised model"
DONOR_DASHES = {OTHER_RUN: [1, 0], UNRELATED: [4, 2], UNTRAINED: [8, 2, 1, 2]}
STEP_KEYS = ["protocol", "direction", "metric", "kind", "frozen", "donor", "window", "step"]


def steps_data(table: pd.DataFrame, metric: str = TRANSFER) -> pd.DataFrame:
    """Pooled effects of whole steps, all layers at once, by direction, kind, `frozen` routes, `donor`, `window`, step.

    `window` is `one step`, `prefix` (steps 0 to `step`) or `suffix` (`step` to the last); a single step that is also a
    prefix or a suffix is a row of each. `ceiling` is the whole thought's effect, NaN if it was not swept.
    """
    rows = effect(measured(table, metric))
    rows = without(rows, "head", "knockout", "n_latents", "read_step", "step_set")
    whole = pooled(rows[(rows["kind"] == "thought") & from_other_run(rows)], ["protocol", "direction"])
    rows = rows[~rows["kind"].isin(SEGMENTS) & rows["layer"].isna() & rows["step"].notna()]
    if rows.empty:
        raise ValueError("the table has no rows of whole steps; run configs/stepwise.toml")
    rows = from_run(rows)
    blank = rows["protocol"].str.endswith("_reinitialised")
    rows = rows.assign(donor=rows["donor"].mask(blank, UNTRAINED), frozen=rows["freeze"].fillna("none"))
    rows = rows[~(blank & (rows["source"] == "unrelated"))]
    if metric != TRANSFER:
        untrained = rows["donor"] == UNTRAINED
        rows = pd.concat([rows[~untrained], oriented(rows[untrained])])
    single = one_of(rows, "step")
    ends = {"prefix": rows["step"] == 0, "suffix": rows["step_last"] == rows["step_last"].max()}
    parts = [rows[single].assign(window="one step")]
    for window, chosen in ends.items():
        if (chosen & ~single).any():  # otherwise only single steps happen to fit
            at = "step_last" if window == "prefix" else "step"
            parts.append(rows[chosen].assign(window=window, step=rows.loc[chosen, at]))
    tops = whole[["protocol", "direction", "effect"]].rename(columns={"effect": "ceiling"})
    data = pooled(pd.concat(parts), STEP_KEYS).merge(tops, on=["protocol", "direction"], how="left")
    # A model that gives no pair's answers has no transfer.
    return data[~((data["donor"] == UNTRAINED) & data["effect"].isna())].reset_index(drop=True)


def steps_chart(data: pd.DataFrame) -> Any:
    """Effect by step: a column of panels for each window, a row for each kind of site and frozen routes."""
    data = data.assign(trained=data["donor"] != UNTRAINED)
    windows = [name for name in WINDOWS if (data["window"] == name).any()]
    banded = data.loc[data["trained"], ["low", "high", "ceiling"]].to_numpy(float)
    ends = np.concatenate([data["effect"].to_numpy(float), banded.ravel()])
    if not np.isfinite(ends).any():
        raise ValueError("no step has an effect, so there is nothing to draw")
    scale = alt.Scale(domain=[min(float(np.nanmin(ends)), 0.0), float(np.nanmax(ends))], nice=True)
    rows = []
    for (_, kind, frozen), part in data.assign(order=data["frozen"] != "none").groupby(["order", "kind", "frozen"]):
        words = SITE_KINDS[str(kind)].noun + ("" if frozen == "none" else f", {frozen} frozen")
        panels = [_panel(part[part["window"] == name], f"{words}: {WINDOWS[name]}", scale) for name in windows]
        rows.append(alt.hconcat(*panels))
    alone = data["frozen"].nunique() < 2 and windows == ["one step"] and data["trained"].all()
    caution = (
        "nothing in this table measures how much of the slope comes from that (configs/stepwise.toml does)"
        if alone
        else "compare frozen routes, where all steps have equally much, and the model before training"
    )
    return dress(
        column_of(rows),
        heading(
            "What whole latent steps carry, all layers at once",
            BOTH_WAYS,
            f"{about_measure(data['metric'].iloc[0])}; bands: 95% over clusters; grey: whole thought",
            f"Early steps have more of the run after them: {caution}",
            about_pooled(data[data["trained"]]),
            width=(WIDTH - 60) * len(windows),
        ),
    )


def _panel(part: pd.DataFrame, title: str, scale: alt.Scale) -> Any:
    """One window's curves."""
    x = alt.X("step:O", title="latent step k", axis=alt.Axis(labelAngle=0))
    base = alt.Chart(part).encode(x=x, color=colour_by_direction())
    y = alt.Y("effect:Q", title=effect_title(part["metric"].iloc[0]), axis=alt.Axis(tickCount=5), scale=scale)
    tooltip = ["direction", "donor", "step", *numbers("effect", "low", "high"), "n:Q", "clusters:Q"]
    lines = direction_lines(base, y, dash_by("donor", DONOR_DASHES, part["donor"]), tooltip)
    own = band(base.transform_filter(alt.datum.donor == OTHER_RUN), 0.18)
    faint = band(base.transform_filter(alt.datum.donor == UNRELATED), 0.08)
    tops = part.loc[part["trained"], ["direction", "ceiling"]].drop_duplicates().dropna()
    rules = (
        alt.Chart(tops).mark_rule(color=GREY, strokeDash=[2, 2]).encode(y="ceiling:Q", tooltip=["direction", "ceiling"])
    )
    size = alt.TitleParams(title, fontSize=11, anchor="start", fontWeight="normal")
    chart = zero_line() + faint + own + rules + lines + direction_points(base, y)
    return chart.properties(width=190, height=170, title=size)
