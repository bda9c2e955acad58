"""The explorer's three charts, empty: `explorer.js` fills them with the chosen sites and pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from codi_tracing.analysis.figures.style import BLUE, GREY, WIDTH, dress, heading


def overview_chart() -> Any:
    """Pooled transfer by layer and step, the chosen site outlined; colours centred on 0."""
    return dress(
        sites_chart(alt.Text("effect:Q", format=".2f"), ["shown:N", "interval:N", "p:N", "n:N"]),
        heading("Pooled over answered pairs", "Choose a cell: the pairs follow"),
    )


def own_chart() -> Any:
    """One pair's transfer by layer and step; the number is the answer that is decoded under the patch."""
    return dress(
        sites_chart(alt.Text("answer:N"), ["shown:N", "answer:N"]),
        heading("This pair alone", "Colour: its transfer; number: the answer decoded under the patch", width=480),
    )


def sites_chart(text: alt.Text, fields: Sequence[str]) -> Any:
    """A heatmap of layers × steps without rows (data `places`, signals `reach`, `chosen`); `fields` of the tooltip."""
    reach, chosen = alt.param(name="reach", value=1.0), alt.param(name="chosen", value=-1)
    base = alt.Chart(alt.NamedData("places")).encode(
        x=alt.X("step:O", sort=alt.EncodingSortField("step_order"), title="latent step", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("layer:O", sort=alt.EncodingSortField("layer_order", order="descending"), title="layer"),
    )
    scale = alt.Scale(
        scheme="blueorange", domain=[alt.ExprRef("-reach"), alt.ExprRef("reach")], domainMid=0, clamp=True
    )
    legend = alt.Legend(values=alt.ExprRef("[-reach, 0, reach]"), format=".2f")
    tooltip = [alt.Tooltip(name) for name in ("layer:N", "step:N", *fields)]
    ring = alt.condition("datum.place === chosen", alt.value("#000"), alt.value(None))
    cells = base.mark_rect(strokeWidth=2.5, cursor="pointer").encode(
        color=alt.Color("effect:Q", title="transfer", scale=scale, legend=legend), stroke=ring, tooltip=tooltip
    )
    ink = alt.condition("abs(datum.effect) > 0.6 * reach", alt.value("white"), alt.value("#222"))
    words = base.mark_text(fontSize=10, cursor="pointer").encode(text=text, color=ink, tooltip=tooltip)
    return (cells + words).add_params(reach, chosen).properties(width=alt.Step(44), height=alt.Step(22))


def strip_chart() -> Any:
    """Every pair at the chosen site: transfer of its other run and of an unrelated donor; outliers at the edge."""
    chosen, last = alt.param(name="chosen", value=-1), alt.param(name="last", value=1)
    donors = {"other run": BLUE, "unrelated donor": "#9A9A9A"}
    base = alt.Chart(alt.NamedData("strip")).encode(
        x=alt.X(
            "rank:Q",
            title="pairs, by transfer",
            axis=alt.Axis(labels=False, ticks=False, grid=False),
            scale=alt.Scale(domain=[0, alt.ExprRef("last")], padding=6),
        ),
        y=alt.Y(
            "shown:Q", title="transfer (0: host's answer, 1: partner's)", scale=alt.Scale(domain=[-1, 2], clamp=True)
        ),
    )
    is_chosen = "datum.pair === chosen"
    points = base.mark_point(filled=True, cursor="pointer").encode(
        color=alt.Color(
            "donor:N",
            title=None,
            scale=alt.Scale(domain=list(donors), range=list(donors.values())),
            legend=alt.Legend(orient="bottom"),
        ),
        size=alt.condition(is_chosen, alt.value(140), alt.value(28)),
        stroke=alt.condition(is_chosen, alt.value("#000"), alt.value(None)),
        opacity=alt.condition(is_chosen, alt.value(1), alt.value(0.75)),
        tooltip=[
            alt.Tooltip("name:N", title="pair"),
            "donor:N",
            alt.Tooltip("effect:Q", format=".3f", title="transfer"),
            "answer:N",
        ],
    )
    ends = alt.Chart(alt.InlineData([{"y": 0}, {"y": 1}])).mark_rule(color=GREY, strokeDash=[2, 2]).encode(y="y:Q")
    return dress(
        (ends + points).add_params(chosen, last).properties(width=WIDTH + 60, height=230),
        heading("Each pair at the chosen place", "Choose a point: its pair follows", width=WIDTH + 60),
    )


def explorer_specs() -> dict[str, Any]:
    """The three charts as Vega-Lite, by the ids of their elements."""
    charts = {"overview": overview_chart(), "strip": strip_chart(), "own": own_chart()}
    return {name: chart.to_dict() for name, chart in charts.items()}
