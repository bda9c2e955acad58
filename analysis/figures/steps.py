"""Effects by latent step: of one step, of all up to it, of all from it on, with routes held, and before training.

An early step has more of the run after it than a late one, so a single step's effect falls with the step even in a
model of random weights. Hence its curve never stands alone: held routes (with R and K_T held, every step has equally
much after it), prefixes, suffixes and the re-initialised model stand beside it, as far as the table has them.
"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from codi_tracing.analysis.figures.marks import below, dashes_below, size_of_direction, width_of_direction
from codi_tracing.analysis.figures.style import DIRECTION_COLOURS, GREY, WIDTH, dress, heading
from codi_tracing.analysis.labels import BOTH_WAYS, NOUNS, about_pooled, metric_noun
from codi_tracing.analysis.rows import from_other_run
from codi_tracing.analysis.statistics.effects import effect, pooled
from codi_tracing.analysis.table import SEGMENTS

WINDOWS = {"one step": "step k alone", "prefix": "steps 0 to k", "suffix": "steps k to the last"}
OTHER, UNRELATED, UNTRAINED = "other run", "unrelated donor", "other run, re-initialised model"
DASHES = {OTHER: [1, 0], UNRELATED: [4, 2], UNTRAINED: [8, 2, 1, 2]}
KEYS = ["protocol", "direction", "metric", "kind", "held", "donor", "window", "step"]


def step_effects(table: pd.DataFrame, metric: str = "logit_difference") -> pd.DataFrame:
    """Pooled effects of whole steps, all layers at once, by direction, site, `held` routes, `donor`, `window` and step.

    `window` is `one step`, `prefix` (steps 0 to `step`) or `suffix` (`step` to the last); a single step that is also a
    prefix or a suffix is a row of each. `ceiling` is the whole thought's effect, NaN where it was not swept.
    """
    rows = effect(table[table["metric"] == metric])
    rows = rows[rows[["head", "knockout", "n_latents", "read_step", "step_set"]].isna().all(axis=1)]
    whole = pooled(rows[(rows["kind"] == "thought") & from_other_run(rows)], ["protocol", "direction"])
    rows = rows[~rows["kind"].isin(SEGMENTS) & rows["layer"].isna() & rows["step"].notna()]
    if rows.empty:
        raise ValueError("the table has no rows of whole steps; run configs/stepwise.toml")
    rows = rows[from_other_run(rows) | (rows["source"] == "unrelated")]
    blank = rows["protocol"].str.endswith("_reinitialised")
    donor = rows["source"].eq("unrelated").map({True: UNRELATED, False: OTHER}).mask(blank, UNTRAINED)
    rows = rows.assign(donor=donor, held=rows["freeze"].fillna("none"))[~(blank & (rows["source"] == "unrelated"))]
    single = rows["step"] == rows["step_last"]
    ends = {"prefix": rows["step"] == 0, "suffix": rows["step_last"] == rows["step_last"].max()}
    parts = [rows[single].assign(window="one step")]
    for window, chosen in ends.items():
        if (chosen & ~single).any():  # else single steps are of this form by chance
            at = "step_last" if window == "prefix" else "step"
            parts.append(rows[chosen].assign(window=window, step=rows.loc[chosen, at]))
    found = pooled(pd.concat(parts), KEYS)
    return found.merge(
        whole[["protocol", "direction", "effect"]].rename(columns={"effect": "ceiling"}),
        on=["protocol", "direction"],
        how="left",
    )


def step_curve(effects: pd.DataFrame) -> Any:
    """Effect by step, from `step_effects`: a column of panels for each window, a row for each site and held routes."""
    effects = effects.assign(trained=effects["donor"] != UNTRAINED)
    windows = [name for name in WINDOWS if (effects["window"] == name).any()]
    banded = effects.loc[effects["trained"], ["low", "high", "ceiling"]].to_numpy(float)
    ends = np.concatenate([effects["effect"].to_numpy(float), banded.ravel()])
    if not np.isfinite(ends).any():
        raise ValueError("no step has an effect, so there is nothing to draw")
    scale = alt.Scale(domain=[min(float(np.nanmin(ends)), 0.0), float(np.nanmax(ends))], nice=True)
    rows = []
    sides = effects.assign(order=effects["held"] != "none").groupby(["order", "kind", "held"])
    for (_, site, held), part in sides:
        words = NOUNS[str(site)] + ("" if held == "none" else f", {held} held")
        panels = [_panel(part[part["window"] == name], f"{words}: {WINDOWS[name]}", scale) for name in windows]
        rows.append(alt.hconcat(*panels))
    alone = effects["held"].nunique() < 2 and windows == ["one step"] and effects["trained"].all()
    caution = (
        "nothing in this table says how much of the slope that makes (configs/stepwise.toml measures it)"
        if alone
        else "compare held routes, where all steps have equally much, and the model before training"
    )
    main = effects[effects["trained"]]
    return dress(
        alt.vconcat(*rows) if len(rows) > 1 else rows[0],
        heading(
            "Effect of whole latent steps, all layers at once",
            BOTH_WAYS,
            f"On {metric_noun(effects['metric'].iloc[0])}, pooled; bands: 95% over clusters; grey: whole thought",
            f"Early steps have more of the run after them: {caution}",
            about_pooled(main),
            width=(WIDTH - 60) * len(windows),
        ),
    )


def _panel(part: pd.DataFrame, title: str, scale: alt.Scale) -> Any:
    """One window's curves."""
    names = [name for name in DASHES if (part["donor"] == name).any()]
    dash = alt.Scale(domain=names, range=[DASHES[name] for name in names])
    colours = alt.Scale(domain=list(DIRECTION_COLOURS), range=list(DIRECTION_COLOURS.values()))
    base = alt.Chart(part).encode(
        x=alt.X("step:O", title="latent step k", axis=alt.Axis(labelAngle=0)),
        color=alt.Color("direction:N", title=None, scale=colours, legend=below(2)),
    )
    y = alt.Y("effect:Q", title="effect (0 host, 1 donor)", axis=alt.Axis(tickCount=5), scale=scale)
    numbers = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("effect", "low", "high")]
    lines = base.mark_line().encode(
        y=y,
        strokeDash=alt.StrokeDash("donor:N", title=None, scale=dash, legend=dashes_below()),
        strokeWidth=width_of_direction(),
        tooltip=["direction", "donor", "step", *numbers, "n:Q", "clusters:Q"],
    )
    band = base.transform_filter(alt.datum.donor == OTHER).mark_area(opacity=0.18).encode(y="low:Q", y2="high:Q")
    faint = base.transform_filter(alt.datum.donor == UNRELATED).mark_area(opacity=0.08).encode(y="low:Q", y2="high:Q")
    points = base.mark_point(filled=True, opacity=1).encode(y=y, size=size_of_direction())
    tops = part.loc[part["trained"], ["direction", "ceiling"]].drop_duplicates().dropna()
    rules = (
        alt.Chart(tops).mark_rule(color=GREY, strokeDash=[2, 2]).encode(y="ceiling:Q", tooltip=["direction", "ceiling"])
    )
    zero = alt.Chart(pd.DataFrame({"y": [0]})).mark_rule(color="#999").encode(y="y:Q")
    size = alt.TitleParams(title, fontSize=11, anchor="start", fontWeight="normal")
    return (zero + faint + band + rules + lines + points).properties(width=190, height=170, title=size)
