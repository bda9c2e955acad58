"""The explorer of a report: effects by site, every pair at the chosen site, and one pair at every site.

This module makes its data; `explorer_charts.py` its charts, `templates/explorer.html` its markup, `explorer.js` what
happens at a click. The values of all pairs are in the page once, as arrays of 32-bit numbers: a thousand pairs stay
small, and no limit on a chart's rows is reached.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from codi_tracing.analysis.rows import from_other_run, has_unrelated
from codi_tracing.analysis.statistics.effects import effect, pooled, specific
from codi_tracing.analysis.statistics.measures import measured
from codi_tracing.analysis.statistics.results import Results
from codi_tracing.analysis.table import SITE_KEYS
from codi_tracing.configs.vocabulary import DIRECTIONS, SEGMENTS, SITE_KINDS

RUN_COLUMNS = ["patched", "clean", "corrupted"]
POOLED = ("effect", "low", "high", "p_fwer", "n", "clusters")
MOST_VALUES = 800_000  # of 4 bytes, 5.3 in base64: with Vega and the pairs' texts, the page stays under 10 MB
NO_SITE = ("knockout", "n_latents", "read_step")  # rows with these are of experiments that do not compare sites
PLACE = ["direction", *SITE_KEYS]


def explorer_data(results: Results, prepared: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The explorer's data: pairs, places (direction and site) with pooled effects, each pair's values at each place.

    The values are probabilities of the partner's answer, of which the page computes each pair's transfer; the pooled
    effects are of the answered pairs. None if no run is patched with its pair's other run and read so. `left_out` names
    kinds of sites whose values do not fit the page.
    """
    rows = results.main_table
    rows = rows[rows[list(NO_SITE)].isna().all(axis=1)]
    swept = set(rows["pair_id"])
    pairs = [pair for pair in prepared if str(pair["pair_id"]) in swept]
    ids = [str(pair["pair_id"]) for pair in pairs]
    rows = rows[rows["pair_id"].isin(ids)]
    try:
        read = measured(rows, answered=False).dropna(subset=RUN_COLUMNS)
    except ValueError:  # without the probabilities of the answers
        return None
    written = read[from_other_run(read)]
    if written.empty:
        return None
    places = written[PLACE].drop_duplicates(ignore_index=True)
    panels = places[["kind", "freeze"]].drop_duplicates(ignore_index=True)
    room = MOST_VALUES // (2 * len(ids))  # the other run's and the unrelated donor's
    sizes = places.groupby(["kind", "freeze"], dropna=False, sort=False).size().sort_values(kind="stable")
    fitting = sizes[sizes.cumsum() <= room].reset_index()[["kind", "freeze"]]
    marked = panels.merge(fitting, how="left", indicator=True)
    places = places.merge(fitting, on=["kind", "freeze"])
    answers, decoded = dictionary(at_places(rows[(rows["metric"] == "answer") & from_other_run(rows)], places, ids))
    unpatched = rows.drop_duplicates(["pair_id", "metric"])[["pair_id", "metric", "edit", "clean", "corrupted"]]
    own = {str(pair_id): part.set_index("metric") for pair_id, part in unpatched.groupby("pair_id")}
    return {
        "pairs": [pair_of(pair, own[pair_id]) for pair, pair_id in zip(pairs, ids, strict=True)],
        "places": places_of(places, results),
        "directions": {name: DIRECTIONS[name].phrase for name in places["direction"].unique()},
        "other": encoded(at_places(written, places, ids)),
        "unrelated": encoded(at_places(read[read["source"] == "unrelated"], places, ids)),
        "answers": answers,
        "decoded": decoded,
        "left_out": [panel_name(row) for row in marked[marked["_merge"] == "left_only"].to_dict("records")],
    }


def at_places(rows: pd.DataFrame, places: pd.DataFrame, ids: Sequence[str]) -> NDArray[np.float64]:
    """`[place, pair]`: a metric in the patched run, draws averaged; NaN where it was not swept."""
    numbered = rows.merge(places.assign(place=range(len(places))), on=PLACE)
    wide = numbered.pivot_table(index="place", columns="pair_id", values="patched", aggfunc="mean")
    return wide.reindex(index=range(len(places)), columns=list(ids)).to_numpy(np.float64)


def dictionary(numbers: NDArray[np.float64]) -> tuple[list[float | None], str]:
    """The distinct numbers, null first, and each number's index among them, in base64."""
    known, numbered = np.unique(numbers[np.isfinite(numbers)], return_inverse=True)
    places = np.zeros(numbers.shape, "<u4")
    places[np.isfinite(numbers)] = numbered + 1
    return [None, *known.tolist()], base64.b64encode(places.astype("<u4").tobytes()).decode()


def encoded(numbers: NDArray[np.float64]) -> str:
    """As 32-bit numbers, the first axis slowest, in base64."""
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode()


def pair_of(pair: Mapping[str, Any], own: pd.DataFrame) -> dict[str, Any]:
    """A pair's questions and keys, and its unpatched runs' answers and probabilities of both answers (`own`)."""
    sides = {
        side: {
            "question": pair[side]["question"],
            "key": f"{Decimal(str(key)):f}" if isinstance(key := pair[side]["answer"], float) else str(key),
            "answer": number(own[side].get("answer", np.nan)),
            **{name: number(own[side].get(name, np.nan)) for name in ("probability_clean", "probability_corrupted")},
        }
        for side in ("clean", "corrupted")
    }
    edit = own["edit"].iloc[0]
    return {"id": str(pair["pair_id"]), "edit": None if pd.isna(edit) else str(edit), **sides}


def number(value: float) -> float | None:
    """The number, or None where JSON has none."""
    return float(value) if isfinite(value) else None


def places_of(places: pd.DataFrame, results: Results) -> list[dict[str, Any]]:
    """Each place with its labels and its pooled transfer: specific where an unrelated donor was swept."""
    parts = []
    for direction in places["direction"].unique():
        for pool in (results.sites, lambda direction: pooled_segments(results, direction)):
            try:
                parts.append(pool(direction))
            except ValueError:  # no such site in this direction
                continue
    effects = pd.concat([pd.DataFrame(columns=[*PLACE, *POOLED, "critical", "specific"]), *parts], ignore_index=True)
    effects = effects.astype({name: places[name].dtype for name in PLACE})
    known = places.merge(effects, on=PLACE, how="left")
    layers, steps = span(known, "layer"), span(known, "step")
    return [
        {
            "direction": row["direction"],
            "panel": panel_name(row),
            "layer": layers[i] + ("" if pd.isna(row["head"]) else f".{row['head']}"),
            "step": steps[i] if pd.isna(row["step_set"]) else str(row["step_set"]).replace("+", ", "),
            "order": [order(row, "layer"), order(row, "step")],
            **{name: number(float(row[name])) for name in POOLED},
            **{name: not pd.isna(row[name]) and bool(row[name]) for name in ("critical", "specific")},
        }
        for i, row in enumerate(known.to_dict("records"))
    ]


def pooled_segments(results: Results, direction: str) -> pd.DataFrame:
    """The pooled transfer of whole segments, which are not ranked."""
    rows = measured(results.main_table)
    rows = rows[rows["kind"].isin(SEGMENTS) & rows[list(NO_SITE)].isna().all(axis=1) & (rows["direction"] == direction)]
    is_specific = has_unrelated(rows)
    effects = specific(rows, results.controls) if is_specific else effect(rows[from_other_run(rows)])
    return pooled(effects, PLACE).assign(specific=is_specific)


def panel_name(place: Mapping[Any, Any]) -> str:
    """A kind of site, and the routes that are frozen while it is written."""
    noun = SITE_KINDS[place["kind"]].noun
    return noun if pd.isna(place["freeze"]) else f"{noun}, {place['freeze']} frozen"


def span(places: pd.DataFrame, what: str) -> list[str]:
    """A window's label: `3`, `0–3`, or `all`."""
    spans = zip(places[what], places[f"{what}_last"], strict=True)
    return ["all" if pd.isna(a) else str(a) if a == b or pd.isna(b) else f"{a}–{b}" for a, b in spans]


def order(place: Mapping[Any, Any], what: str) -> float:
    """A window's rank among others: by its start, then its end, then its head; all layers or steps come last."""
    first, last = place[what], place[f"{what}_last"]
    head = 0 if what == "step" or pd.isna(place["head"]) else place["head"] / 1e6
    return 1e6 if pd.isna(first) else float(first) + (0 if pd.isna(last) else float(last) / 1e3) + head
