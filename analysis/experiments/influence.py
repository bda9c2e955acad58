"""Influence among latent steps: the effect of writing step i on the hidden state at the end of step j."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.captions import about_pooled, both_ways, metric_noun, one_site
from codi_tracing.analysis.figures.marks import reach_of, step_matrix
from codi_tracing.analysis.figures.style import WIDTH, dress, heading
from codi_tracing.analysis.rows import OTHER_RUN, UNRELATED, from_other_run, from_run, one_of, without
from codi_tracing.analysis.statistics.ceiling import estimate_of
from codi_tracing.analysis.statistics.effects import effect, pooled
from codi_tracing.configs.vocabulary import SEGMENTS

EFFECT_ROUTES = ("total", "direct")
READ_METRICS = {
    "projection": "the state's position between the two runs",
    "distance_to_clean": "distance to the clean run's state",
    "kl_to_clean": "KL(clean || patched) of the state's lens",
}


def influence_data(table: pd.DataFrame, metric: str = "projection") -> pd.DataFrame:
    """Pooled effect of writing `step` on `metric` at `read_step`, by direction and `route`, `total` or `direct`.

    Direct: the steps between the two are frozen at the host's values. `donor` is the pair's other run or an unrelated
    one, whose state also lies somewhere between the two runs: its effect is the control, and is not subtracted.
    """
    rows = without(table, "layer", "head", "step_set", "knockout", "n_latents")
    rows = rows[~rows["kind"].isin(SEGMENTS) & one_of(rows, "step") & (rows["metric"] == metric)]
    rows = rows[(rows["step"] < rows["read_step"]).fillna(False)]
    total, direct = rows[rows["freeze"].isna()], rows[rows["freeze"] == "between"]
    if not (from_other_run(total).any() or from_other_run(direct).any()):
        raise ValueError(
            f"the table has no rows of one written step read at a later step with metric {metric!r}; "
            "run configs/influence.toml"
        )
    if len(direct):
        # No step lies between neighbours, so their direct effect is the total one.
        neighbours = total[total["read_step"] == total["step"] + 1]
        swept = pd.MultiIndex.from_frame(direct[["step", "read_step"]])
        missing = ~pd.MultiIndex.from_frame(neighbours[["step", "read_step"]]).isin(swept)
        direct = pd.concat([direct, neighbours[missing].assign(freeze="between")])
    keys = ["protocol", "kind", "direction", "metric", "donor", "step", "read_step"]
    parts = [
        pooled(effect(from_run(part)), keys).assign(route=route)
        for route, part in zip(EFFECT_ROUTES, (total, direct), strict=True)
        if len(part)
    ]
    return pd.concat(parts, ignore_index=True)


def influence_sentence(data: pd.DataFrame) -> str:
    """The strongest influence of one step on a later one, its control, and how much of it is direct."""
    rows = data[(data["direction"] == min(data["direction"])) & data["effect"].notna()]
    moved = rows[(rows["route"] == "total") & (rows["donor"] == OTHER_RUN)]
    if moved.empty:
        raise ValueError("no total effect of one step on a later one is defined, so none is named")
    top = moved.iloc[int(moved["effect"].argmax())]

    def same(donor: str, route: str) -> str:
        there = rows[(rows["donor"] == donor) & (rows["route"] == route)]
        there = there[(there["step"] == top["step"]) & (there["read_step"] == top["read_step"])]
        return "" if there.empty else str(estimate_of(there.iloc[0]))

    parts = [f"an unrelated run's step moves it by {text}" for text in [same(UNRELATED, "total")] if text]
    if top["read_step"] > top["step"] + 1:
        parts += [f"directly, with the steps between frozen, {text}" for text in [same(OTHER_RUN, "direct")] if text]
    beside = f"; {'; '.join(parts)}" if parts else ""
    estimate = estimate_of(top)
    return (
        f"Step {top['step']} moves step {top['read_step']} most, by {estimate} of the way to the partner's state "
        f"({top['direction']}, {estimate.sample}; the largest of {len(moved)}, so a little too large){beside}."
    )


def influence_chart(data: pd.DataFrame) -> Any:
    """Written step × read step: total and direct side by side, directions below one another."""
    reach = reach_of(data["effect"])
    lines: list[list[Any]] = []
    for (direction, donor), rows in data.groupby(["direction", "donor"], sort=False):
        panels = []
        for route in EFFECT_ROUTES:
            panel = rows[rows["route"] == route]
            if len(panel):
                cells = step_matrix(panel, "read_step", "step", reach, ("read step j", "written step i"))
                panels.append(cells.properties(title=f"{direction}, {route}, {donor}"))
        lines.append(panels)
    metric, direct = str(data["metric"].iloc[0]), (data["route"] == "direct").any()
    return dress(
        alt.vconcat(*(alt.hconcat(*panels) for panels in lines)),
        heading(
            "Influence of one latent step's state on a later step's",
            f"Written: {one_site(data)} of step i, all layers, {both_ways(data)}",
            f"Read: final hidden state of step j; effect on {READ_METRICS.get(metric, metric_noun(metric))}, pooled "
            "(0: host, 1: partner)"
            + (". Direct: the steps between i and j frozen at the host's values" if direct else ""),
            about_pooled(data) + "; 95% intervals over clusters in the tooltips",
            width=max(WIDTH * max(map(len, lines)), 420),
        ),
    )
