"""Effects by layer × step: which differ from an unrelated donor's, and where no write can do anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.figures.marks import tips
from codi_tracing.analysis.figures.style import WIDTH, dress, heading
from codi_tracing.analysis.labels import NOUNS, about_pooled, metric_noun, what_where
from codi_tracing.analysis.rows import from_other_run, main_protocol, places_have_unrelated, plain
from codi_tracing.analysis.statistics.effects import by_site, effect
from codi_tracing.analysis.statistics.sites import ALPHA, site_statistics
from codi_tracing.analysis.table import SEGMENTS

NOTHING = 2e-5  # "changes nothing" of a logit difference, in single precision: 1e-5 of each of its two logits
MARK = "×"
MOST_HEIGHT, WORDS = 1000, 12  # pixels: of a panel, and of a row that has room for numbers


def site_effects(
    table: pd.DataFrame,
    metric: str = "logit_difference",
    tested: Callable[[str], pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """What `heatmap` draws: every site in every direction, tested, and the whole thought's plain effect, the ceiling.

    Effects are specific, with `p_fwer` over one direction's sites, where an unrelated donor was swept; else plain, p
    NaN. `inert`: no run of any pair changed there by more than rounding, or, in half precision, than twice what a run's
    own thought does that is written into it. `tested` gives a direction's `site_statistics`, if they are known already.
    """
    rows = main_protocol(table)
    rows = rows[
        rows[["knockout", "n_latents", "read_step", "step_set"]].isna().all(axis=1) & (rows["metric"] == metric)
    ]
    if rows.empty:
        raise ValueError(f"the table has no rows of metric {metric!r}; sweep it too")
    own = effect(rows[rows["source"] == "self"])["numerator"].abs().max()
    test = tested or (lambda direction: site_statistics(rows, metric, direction))
    parts = [test(direction) for direction in rows["direction"].unique()]
    whole = plain(rows[(rows["kind"] == "thought") & from_other_run(rows)])
    parts += [by_site(effect(whole), metric=metric)] if len(whole) else []
    sites = pd.concat(parts, ignore_index=True)
    return sites.assign(
        inert=sites["moved"] <= max(NOTHING, 0.0 if pd.isna(own) else own), specific=places_have_unrelated(rows)
    )


def heatmap(sites: pd.DataFrame, specific: bool | None = None) -> Any:
    """Effect by layer × step, from `site_effects` or `by_site`: colours centred on 0, a row of panels for each site.

    `site_effects` brings tests: sites that do not differ from an unrelated donor are faint. Where no run changed at all
    there is a cross: so it must be at the last layer's output of the last step, which is never fed back. `specific`
    says in the heading that effects are those beyond an unrelated donor's; left out, the column of that name says it.
    """
    places = sites[~sites["kind"].isin(SEGMENTS)]
    if places.empty:
        raise ValueError(
            "no site with a layer or a step to draw; a heatmap needs one of latent, resid, attn, mlp, head, kv"
        )
    if specific is None:
        specific = bool(places.get("specific", pd.Series(False)).fillna(False).all())
    heads, tested = places["head"].notna(), "p_fwer" in places and bool(places["p_fwer"].notna().any())
    inert = places["inert"].eq(True) if "inert" in places else pd.Series(False, places.index)
    places = places.assign(
        layers=pd.Series(_span(places, "layer"), places.index) + places["head"].map(".{}".format).where(heads, ""),
        steps=_span(places, "step"),
        written=places["source"].where(~from_other_run(places), "other run"),
        held=("held: " + places["freeze"]).fillna("nothing held" if places["freeze"].notna().any() else ""),
        label=places["effect"].map("{:z.2f}".format).str.replace("-", "−").mask(inert, MARK),
        shown=places["p_fwer"].le(ALPHA).map({True: "yes", False: "no"}) if tested else "yes",
    )
    reach = max(float(places["effect"].abs().max()), 0.05)  # so that rounding has no colour
    apart = ["edit"] if "edit" in places else []
    groups: list[tuple[Any, pd.DataFrame]] = list(places.groupby(["kind", "written", "held", *apart, "direction"]))
    groups.sort(key=lambda group: (list(NOUNS).index(group[0][0]), group[0][2].startswith("held"), group[0][1:]))
    panels = [_panel(panel, key, reach) for key, panel in groups]
    across = places["direction"].nunique()
    chart = panels[0] if len(panels) == 1 else alt.concat(*panels, columns=across if across > 1 else 3)
    directions = " / ".join(what_where(direction) for direction in places["direction"].unique())
    kinds = ", ".join(NOUNS[kind] for kind in places["kind"].unique())
    top = "; ".join(f"{row.direction} {row.effect:z.2f}" for row in sites[sites["kind"] == "thought"].itertuples())
    held = ", ".join(places["freeze"].dropna().unique())
    faint = "Faint: not told apart from an unrelated donor (p > 0.05, family-wise over each direction)"
    untested = "No unrelated donor was swept, so nothing is tested" if "p_fwer" in places else ""
    return dress(
        chart,
        heading(
            f"{'Specific effect' if specific else 'Effect'} by layer and step: {kinds}",
            f"Written: {directions}" + (f"; held at the host's values: {held}" if held else ""),
            f"On {metric_noun(sites['metric'].iloc[0])}, pooled ("
            + ("0: as an unrelated donor" if specific else "0 host, 1 donor")
            + ")"
            + (f"; ceiling (plain): {top}" if top else ""),
            *filter(None, [faint if tested else untested]),
            *([f"{MARK}: no run changed, as the last layer's output at the last step cannot"] if inert.any() else []),
            about_pooled(places),
            width=WIDTH * min(len(panels), max(across, 1)),
        ),
    )


def _panel(panel: pd.DataFrame, key: tuple, reach: float) -> Any:
    """One site in one direction."""
    site, *rest, direction = key
    layers, steps = (_in_order(panel, name) for name in ("layer", "step"))
    scale = alt.Scale(scheme="blueorange", domain=[-reach, reach], domainMid=0)
    legend = alt.Legend(values=[-reach, 0, reach], format=".2f")
    colour = alt.Color("effect:Q", title="effect", scale=scale, legend=legend)
    shown = alt.datum.shown == "yes"
    row = min(22, MOST_HEIGHT // len(layers)) or 1  # pixels; every head of a large model is many rows
    light = alt.condition((abs(alt.datum.effect) > 0.6 * reach) & shown, alt.value("white"), alt.value("#222"))
    names = alt.Axis(labelOverlap=True) if row < WORDS else alt.Axis()
    base = alt.Chart(panel).encode(
        x=alt.X("steps:O", sort=steps, title="latent step", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("layers:O", sort=layers[::-1], title="layer.head" if site == "head" else "layer", axis=names),
    )
    tooltip = [*tips("layers", "steps"), "clusters:Q"]
    tooltip += [alt.Tooltip("p_fwer:Q", format=".2g", title="p, family-wise")] if "p_fwer" in panel else []
    cells = base.mark_rect().encode(
        color=colour, tooltip=tooltip, opacity=alt.condition(shown, alt.value(1.0), alt.value(0.3))
    )
    text = base.mark_text(fontSize=10).encode(
        text="label:N", color=light, opacity=alt.condition(shown, alt.value(1.0), alt.value(0.75))
    )
    title = ", ".join(part for part in (NOUNS[str(site)], str(direction), *map(str, rest)) if part)
    size = {"width": max(44 * len(steps), 60), "height": row * len(layers), "title": title}
    return (cells + text if row >= WORDS else alt.layer(cells)).properties(**size)


def _span(sites: pd.DataFrame, what: str) -> list[str]:
    """A window's label: `3`, `0–3`, or `all`."""
    spans = zip(sites[what], sites[f"{what}_last"], strict=True)
    return ["all" if pd.isna(a) else str(a) if a == b or pd.isna(b) else f"{a}–{b}" for a, b in spans]


def _in_order(sites: pd.DataFrame, what: str) -> list[str]:
    """The labels of windows by where they start and end, `all` last."""
    ordered = sites.sort_values([what, f"{what}_last", "head"], na_position="last")
    return list(dict.fromkeys(ordered[f"{what}s"]))
