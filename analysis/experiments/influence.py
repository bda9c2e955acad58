"""Influence among latent steps: what writing step i does to the hidden state that step j ends with."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.figures.marks import tips
from codi_tracing.analysis.figures.style import WIDTH, dress, heading
from codi_tracing.analysis.labels import about_pooled, metric_noun, one_site, what_where
from codi_tracing.analysis.rows import from_other_run
from codi_tracing.analysis.statistics.effects import effect, pooled, specific
from codi_tracing.analysis.table import SEGMENTS

ROUTES = ("total", "direct")
READINGS = {
    "projection": "the state's place between the two runs",
    "distance_to_clean": "distance to the clean run's state",
    "kl_to_clean": "KL(clean || patched) of the state's lens",
}


def influences(table: pd.DataFrame, metric: str = "projection") -> pd.DataFrame:
    """Pooled effect of writing `step` on `metric` at `read_step`, by direction and `route`, `total` or `direct`.

    Direct holds the steps between the two at the host's values. Where a route was swept with unrelated donors, their
    effect is taken off (column `specific`).
    """
    places = table[["layer", "head", "step_set", "knockout", "n_latents"]].isna().all(axis=1)
    written = places & ~table["kind"].isin(SEGMENTS) & (table["step"] == table["step_last"]).fillna(False)
    rows = table[written & (table["metric"] == metric) & (table["step"] < table["read_step"]).fillna(False)]
    routes = {"total": rows[rows["freeze"].isna()], "direct": rows[rows["freeze"] == "between"]}
    if not any(from_other_run(part).any() for part in routes.values()):
        raise ValueError(
            f"the table has no rows of one written step read at a later step with metric {metric!r}; "
            "run configs/influence.toml"
        )
    total = routes["total"]
    held = routes["direct"][["step", "read_step"]].drop_duplicates().itertuples(index=False, name=None)
    # Between neighbours there is nothing to hold, so that their direct effect is the total one.
    neighbours = total[total["read_step"] == total["step"] + 1]
    known = set(held)
    missing = [pair not in known for pair in zip(neighbours["step"], neighbours["read_step"], strict=True)]
    if known:
        routes["direct"] = pd.concat([routes["direct"], neighbours[missing].assign(freeze="between")])
    keys = ["protocol", "kind", "direction", "metric", "step", "read_step"]
    parts = []
    for route, part in routes.items():
        control = bool((part["source"] == "unrelated").any())
        moved = specific(part) if control else effect(part)
        parts.append(pooled(moved[from_other_run(moved)], keys).assign(route=route, specific=control))
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def influence_matrix(found: pd.DataFrame) -> Any:
    """Written step × read step from `influences`: total and direct side by side, directions below one another."""
    reach = max(float(found["effect"].abs().max()), 0.05)  # so that rounding has no colour
    wanted = [(direction, route) for direction in found["direction"].unique() for route in ROUTES]
    lines: dict[str, list[Any]] = {}
    for direction, route in wanted:
        panel = found[(found["direction"] == direction) & (found["route"] == route)]
        if len(panel):
            cells = step_cells(panel, "read_step", "step", reach, ("read step j", "written step i"))
            lines.setdefault(str(direction), []).append(cells.properties(title=f"{direction}, {route}"))
    chart = alt.vconcat(*(alt.hconcat(*panels) for panels in lines.values()))
    metric, held = str(found["metric"].iloc[0]), (found["route"] == "direct").any()
    zeros = {True: "0: as an unrelated donor", False: "0: host, 1: donor"}
    zero = ", ".join(zeros[flag] for flag in sorted(found["specific"].unique(), reverse=True))
    return dress(
        chart,
        heading(
            "Influence of one latent step's state on a later step's",
            f"Written: {one_site(found)} of step i, all layers, {both_ways(list(lines))}",
            f"Read: final hidden state of step j; effect on {READINGS.get(metric, metric_noun(metric))}, pooled "
            f"({zero})" + (". Direct: the steps between i and j held at the host's" if held else ""),
            about_pooled(found) + "; 95% intervals over clusters in the tooltips",
            width=max(WIDTH * max(map(len, lines.values())), 420),
        ),
    )


def both_ways(directions: list[str]) -> str:
    """The directions in words, for a heading: that of the first, and whether there is the other."""
    return what_where(directions[0]) + (", and the reverse" if len(directions) > 1 else "")


def step_cells(panel: pd.DataFrame, x: str, y: str, reach: float, titles: tuple[str, str]) -> alt.LayerChart:
    """A matrix of steps with its effects written in: colours from −reach to reach, cells without a row left empty."""
    columns, rows = (sorted(panel[name].unique()) for name in (x, y))
    base = alt.Chart(panel).encode(
        x=alt.X(f"{x}:O", title=titles[0], scale=alt.Scale(domain=columns), axis=alt.Axis(labelAngle=0)),
        y=alt.Y(f"{y}:O", title=titles[1], scale=alt.Scale(domain=rows)),
    )
    colour = alt.Color(
        "effect:Q",
        title="effect",
        scale=alt.Scale(scheme="blueorange", domain=[-reach, reach], domainMid=0),
        legend=alt.Legend(values=[-reach, 0, reach], format=".2f"),
    )
    ink = alt.condition(abs(alt.datum.effect) > 0.75 * reach, alt.value("white"), alt.value("#222"))
    cells = base.mark_rect().encode(color=colour, tooltip=tips(y, x))
    numbers = base.mark_text(fontSize=10).encode(text=alt.Text("effect:Q", format=".2f"), color=ink)
    return (cells + numbers).properties(width=44 * len(columns), height=30 * len(rows))
