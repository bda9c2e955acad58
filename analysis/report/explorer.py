"""The linked view of a report: effects by place, every pair at the chosen place, and one pair at every place.

The charts are Altair's, empty; `explorer.js` fills them with what is chosen. The values of all pairs are in the page
once, as arrays of 32-bit numbers, so that a thousand pairs stay small, and no limit on a chart's rows is touched.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from codi_tracing.analysis.figures.style import BLUE, GREY, WIDTH, dress, heading
from codi_tracing.analysis.io.html import paragraph, script_value, section
from codi_tracing.analysis.labels import what_where
from codi_tracing.analysis.rows import from_other_run, has_unrelated, main_protocol
from codi_tracing.analysis.statistics.effects import pooled, specific_or_plain
from codi_tracing.analysis.statistics.sites import critical
from codi_tracing.analysis.table import SITE_KEYS
from codi_tracing.configs.vocabulary import SEGMENTS, SITE_KINDS

METRIC = "logit_difference"
MOST_VALUES = 800_000  # of 4 bytes, of which the page takes 5.3: with Vega and the pairs' texts, under 10 MB
ELSEWHERE = ("knockout", "n_latents", "read_step")  # rows that have these are of another experiment than one of places
PLACE = ["direction", *SITE_KEYS]


def explorer(table: pd.DataFrame, prepared: Sequence[Mapping[str, Any]], low_ceiling: float) -> dict[str, Any] | None:
    """What the linked view shows: pairs, places with pooled effects, and each pair's values at each place.

    None where no run of the table is patched with its pair's other run and read by the logit difference. Kinds of
    sites whose values do not fit the page are named in `left_out`.
    """
    rows = main_protocol(table)
    rows = rows[rows[list(ELSEWHERE)].isna().all(axis=1)]
    known = [pair for pair in prepared if (rows["pair_id"] == str(pair["pair_id"])).any()]
    ids = [str(pair["pair_id"]) for pair in known]
    rows = rows[rows["pair_id"].isin(ids)]
    read = rows[(rows["metric"] == METRIC) & rows[["patched", "clean", "corrupted"]].notna().all(axis=1)]
    written = read[from_other_run(read)]
    if written.empty:
        return None
    places = written[PLACE].drop_duplicates(ignore_index=True)
    panels = places[["kind", "freeze"]].drop_duplicates(ignore_index=True)
    room = MOST_VALUES // (2 * len(ids))  # the other run's and the unrelated donor's
    sizes = places.groupby(["kind", "freeze"], dropna=False, sort=False).size().sort_values(kind="stable")
    kept = sizes[sizes.cumsum() <= room].reset_index()[["kind", "freeze"]]
    left_out = [panel_name(row) for row in panels.merge(kept, how="left", indicator=True).to_dict("records")
                if row["_merge"] == "left_only"]  # fmt: skip
    places = places.merge(kept, on=["kind", "freeze"])
    answers, decoded = dictionary(at_places(rows[(rows["metric"] == "answer") & from_other_run(rows)], places, ids))
    return {
        "pairs": [pair_of(pair, read, rows) for pair in known],
        "places": places_of(places, table, low_ceiling),
        "directions": {name: what_where(name) for name in places["direction"].unique()},
        "other": encoded(at_places(written, places, ids)),
        "unrelated": encoded(at_places(read[read["source"] == "unrelated"], places, ids)),
        "answers": answers,
        "decoded": decoded,
        "left_out": left_out,
    }


def at_places(rows: pd.DataFrame, places: pd.DataFrame, ids: Sequence[str]) -> NDArray[np.float32]:
    """`[place, pair]`: a metric in the patched run, draws averaged; NaN where it was not swept."""
    numbered = rows.merge(places.assign(place=range(len(places))), on=PLACE)
    wide = numbered.pivot_table(index="place", columns="pair_id", values="patched", aggfunc="mean")
    return wide.reindex(index=range(len(places)), columns=list(ids)).to_numpy(np.float32)


def dictionary(numbers: NDArray[np.float32]) -> tuple[list[float | None], str]:
    """Numbers of which few differ, as a list of those, the first of them null, and each one's place in it."""
    known, numbered = np.unique(numbers[np.isfinite(numbers)], return_inverse=True)
    places = np.zeros(numbers.shape, "<u4")
    places[np.isfinite(numbers)] = numbered + 1
    return [None, *known.tolist()], base64.b64encode(places.astype("<u4").tobytes()).decode()


def encoded(numbers: NDArray[np.float32]) -> str:
    """32-bit numbers, the first axis slowest, in base64."""
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode()


def pair_of(pair: Mapping[str, Any], read: pd.DataFrame, rows: pd.DataFrame) -> dict[str, Any]:
    """A pair's questions and keys, what its two unpatched runs say, and their logit differences."""
    pair_id = str(pair["pair_id"])
    own = read[read["pair_id"] == pair_id].iloc[0]
    said = rows[(rows["pair_id"] == pair_id) & (rows["metric"] == "answer")].head(1)
    sides = {
        side: {
            "question": pair[side]["question"],
            "key": str(pair[side]["answer"]),
            "said": number(said[side].iloc[0]) if len(said) else None,
            "read": number(own[side]),
        }
        for side in ("clean", "corrupted")
    }
    return {"id": pair_id, "edit": None if pd.isna(own["edit"]) else str(own["edit"]), **sides}


def number(value: float) -> float | None:
    """The same number as JSON has it."""
    return float(value) if isfinite(value) else None


def places_of(places: pd.DataFrame, table: pd.DataFrame, low_ceiling: float) -> list[dict[str, Any]]:
    """Each place with its labels and its pooled effect: specific where an unrelated donor was swept."""
    found = [tested(table, direction, low_ceiling) for direction in places["direction"].unique()]
    segments = main_protocol(table)
    segments = segments[
        (segments["metric"] == METRIC) & segments["kind"].isin(SEGMENTS) & segments[list(ELSEWHERE)].isna().all(axis=1)
    ]
    if not segments.empty:
        found.append(pooled_places(segments))
    effects = pd.concat([part for part in found if len(part)], ignore_index=True)
    if "p_fwer" not in effects:
        effects = effects.assign(p_fwer=np.nan, critical=False)
    known = places.merge(effects, on=PLACE, how="left")
    layers, steps = span(known, "layer"), span(known, "step")
    return [
        {
            "direction": row["direction"],
            "panel": panel_name(row),
            "layer": layers[i] + ("" if pd.isna(row["head"]) else f".{row['head']}"),
            "step": steps[i] if pd.isna(row["step_set"]) else str(row["step_set"]).replace("+", ", "),
            "order": [order(row, "layer"), order(row, "step")],
            **{name: number(float(row[name])) for name in ("effect", "low", "high", "p_fwer", "n", "clusters")},
            **{name: bool(row[name]) and not pd.isna(row[name]) for name in ("critical", "specific")},
        }
        for i, row in enumerate(known.to_dict("records"))
    ]


def tested(table: pd.DataFrame, direction: str, low_ceiling: float) -> pd.DataFrame:
    """The pooled effects of one direction with their family-wise p; without p where there is no ceiling to test by."""
    rows = main_protocol(table)
    rows = rows[(rows["metric"] == METRIC) & (rows["direction"] == direction) & ~rows["kind"].isin(SEGMENTS)]
    rows = rows.dropna(subset=["patched", "clean", "corrupted"])
    if not from_other_run(rows).any():
        return pd.DataFrame()
    try:
        return critical(table, METRIC, direction, low_ceiling=low_ceiling)
    except ValueError:
        return pooled_places(rows)


def pooled_places(rows: pd.DataFrame) -> pd.DataFrame:
    """Pooled effects, and whether they are specific, which those of places without an unrelated donor are not."""
    return pooled(specific_or_plain(rows), PLACE).assign(specific=has_unrelated(rows))


def panel_name(place: Mapping[Any, Any]) -> str:
    """A kind of site, and what is held while it is written."""
    noun = SITE_KINDS[place["kind"]].noun
    return noun if pd.isna(place["freeze"]) else f"{noun}, {place['freeze']} held"


def span(places: pd.DataFrame, what: str) -> list[str]:
    """A window's label: `3`, `0–3`, or `all`."""
    spans = zip(places[what], places[f"{what}_last"], strict=True)
    return ["all" if pd.isna(a) else str(a) if a == b or pd.isna(b) else f"{a}–{b}" for a, b in spans]


def order(place: Mapping[Any, Any], what: str) -> float:
    """Where a window stands among others: by its start, then its end, then its head; all of them come last."""
    first, last = place[what], place[f"{what}_last"]
    head = 0 if what == "step" or pd.isna(place["head"]) else place["head"] / 1e6
    return 1e6 if pd.isna(first) else float(first) + (0 if pd.isna(last) else float(last) / 1e3) + head


def overview_chart() -> Any:
    """Pooled effects by layer and step, the chosen place outlined; colours centred on 0."""
    return dress(
        places_chart(alt.Text("effect:Q", format=".2f"), ["shown:N", "interval:N", "p:N", "n:N"]),
        heading("Pooled over pairs", "Choose a cell: the pairs follow"),
    )


def own_chart() -> Any:
    """One pair's effects by layer and step; the number is the answer that is decoded under the patch."""
    return dress(
        places_chart(alt.Text("answer:N"), ["shown:N", "answer:N"]),
        heading("This pair alone", "Colour: its effect; number: the answer decoded under the patch", width=480),
    )


def places_chart(text: alt.Text, says: Sequence[str]) -> Any:
    """A heatmap of places, to be filled: rows of the data `places`, signals `reach` and `chosen`.

    `says` are fields of the tooltip.
    """
    reach, chosen = alt.param(name="reach", value=1.0), alt.param(name="chosen", value=-1)
    base = alt.Chart(alt.NamedData("places")).encode(
        x=alt.X("step:O", sort=alt.EncodingSortField("step_order"), title="latent step", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("layer:O", sort=alt.EncodingSortField("layer_order", order="descending"), title="layer"),
    )
    scale = alt.Scale(
        scheme="blueorange", domain=[alt.ExprRef("-reach"), alt.ExprRef("reach")], domainMid=0, clamp=True
    )
    legend = alt.Legend(values=alt.ExprRef("[-reach, 0, reach]"), format=".2f")
    tooltip = [alt.Tooltip(name) for name in ("layer:N", "step:N", *says)]
    ring = alt.condition("datum.place === chosen", alt.value("#000"), alt.value(None))
    cells = base.mark_rect(strokeWidth=2.5, cursor="pointer").encode(
        color=alt.Color("effect:Q", title="effect", scale=scale, legend=legend), stroke=ring, tooltip=tooltip
    )
    ink = alt.condition("abs(datum.effect) > 0.6 * reach", alt.value("white"), alt.value("#222"))
    words = base.mark_text(fontSize=10, cursor="pointer").encode(text=text, color=ink, tooltip=tooltip)
    return (cells + words).add_params(reach, chosen).properties(width=alt.Step(44), height=alt.Step(22))


def strip_chart() -> Any:
    """Every pair at the chosen place: written from its other run, and from an unrelated one; outliers at the edge."""
    chosen, last = alt.param(name="chosen", value=-1), alt.param(name="last", value=1)
    donors = {"other run": BLUE, "unrelated donor": "#9A9A9A"}
    base = alt.Chart(alt.NamedData("strip")).encode(
        x=alt.X(
            "rank:Q",
            title="pairs, by effect",
            axis=alt.Axis(labels=False, ticks=False, grid=False),
            scale=alt.Scale(domain=[0, alt.ExprRef("last")], padding=6),
        ),
        y=alt.Y("shown:Q", title="effect (0 host, 1 donor)", scale=alt.Scale(domain=[-1, 2], clamp=True)),
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
        tooltip=[alt.Tooltip("name:N", title="pair"), "donor:N", alt.Tooltip("effect:Q", format=".3f"), "answer:N"],
    )
    ends = alt.Chart(alt.InlineData([{"y": 0}, {"y": 1}])).mark_rule(color=GREY, strokeDash=[2, 2]).encode(y="y:Q")
    return dress(
        (ends + points).add_params(chosen, last).properties(width=WIDTH + 60, height=230),
        heading("Each pair at the chosen place", "Choose a point: its pair follows", width=WIDTH + 60),
    )


def explorer_specs() -> dict[str, Any]:
    """The three charts of the linked view as Vega-Lite, by the ids that they are drawn into."""
    charts = {"overview": overview_chart(), "strip": strip_chart(), "own": own_chart()}
    return {name: chart.to_dict() for name, chart in charts.items()}


def explorer_section(found: Mapping[str, Any]) -> str:
    """The linked view's part of the page: native controls, the places of its charts, the pair, and the table of all."""
    controls = [
        f'<label>{escape(label)} <select id="{name}"></select></label>'
        for name, label in (("direction", "Write"), ("panel", "site"), ("layer", "layer"), ("step", "latent step"))
    ]
    facts = [
        f'<dt>{label}</dt><dd id="{name}"></dd>'
        for name, label in (
            ("clean-question", "clean question"),
            ("clean-answer", ""),
            ("corrupted-question", "corrupted question"),
            ("corrupted-answer", ""),
            ("patched-answer", "answer under the patch"),
        )
    ]
    heads = [
        f'<th><button type="button" data-sort="{name}">{label}</button></th>'
        for name, label in (
            ("pair", "pair"),
            *([("edit", "edit")] if any(pair["edit"] for pair in found["pairs"]) else []),
            ("question", "clean question"),
            ("clean", "clean key"),
            ("corrupted", "corrupted key"),
            ("decoded", "under the patch"),
            ("effect", "effect"),
            ("unrelated", "of unrelated"),
        )
    ]
    missing = found["left_out"]
    return section(
        "Explore",
        paragraph(
            "Choose a place, by the lists or by a click on its cell, and see every pair there; choose a pair, by its "
            "point, its row or the list, and see it at every place."
        ),
        paragraph(f"Too large for this page, and only in cells.parquet: {', '.join(missing)}.", "quiet")
        if missing
        else "",
        f'<div class="controls">{"".join(controls)}</div><p id="chosen" aria-live="polite"></p>',
        '<div class="figures"><div id="overview"></div><div id="strip"></div></div>',
        '<h3 id="pair-name"></h3><div class="controls"><label>Pair <select id="pair"></select></label></div>',
        f'<dl>{"".join(facts)}</dl><div class="figures"><div id="own"></div></div>',
        '<div class="controls"><label>Search <input id="search" type="search"></label> <span id="found"></span>',
        '<button type="button" id="save-places">Save pooled effects (CSV)</button>',
        '<button type="button" id="save-values">Save all pairs (CSV)</button>',
        '<button type="button" id="save-specs">Save the figures\' Vega-Lite (JSON)</button></div>',
        f'<div class="rows" tabindex="0"><table id="pairs"><thead><tr>{"".join(heads)}</tr></thead><tbody></tbody>'
        "</table></div>",
    )


def explorer_script(found: Mapping[str, Any]) -> str:
    """What makes the linked view work; it expects `specs`, the page's other figures."""
    code = Path(__file__).with_name("explorer.js").read_text(encoding="utf-8")
    return f"{code}\nexplore({script_value(found)}, {script_value(explorer_specs())}, specs);"
