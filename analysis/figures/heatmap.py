"""Effects by layer × step, the sites that differ from an unrelated donor, and sites where no write has an effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.captions import about_pooled, metric_noun, site_nouns, what_where
from codi_tracing.analysis.figures.marks import effect_colour, reach_of, tips
from codi_tracing.analysis.figures.style import WIDTH, dress, heading
from codi_tracing.analysis.rows import from_other_run, main_protocol, plain, sites_have_unrelated, without
from codi_tracing.analysis.statistics.effects import by_site, effect
from codi_tracing.analysis.statistics.sites import ALPHA, site_statistics
from codi_tracing.configs.vocabulary import SEGMENTS, SITE_KINDS

ROUNDING = 2e-5  # rounding of a logit difference in single precision: 1e-5 of each of its two logits
MARK = "×"
MOST_HEIGHT, LEAST_ROW = 1000, 12  # pixels: of a panel, and of a row with room for numbers


def heatmap(table: pd.DataFrame, metric: str = "logit_difference") -> Any:
    """Effect by layer × step of a table of cells: `heatmap_chart(heatmap_data(table, metric))`."""
    return heatmap_chart(heatmap_data(table, metric))


def heatmap_data(
    table: pd.DataFrame,
    metric: str = "logit_difference",
    tested: Callable[[str], pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """Every site in every direction, tested, and the whole thought's plain effect, the ceiling.

    Effects are specific, with `p_fwer` over one direction's sites, if an unrelated donor was swept; else plain, p NaN.
    `inert`: no run of any pair changed there by more than rounding, which is the largest change by a run's own thought
    if that is larger. `tested` returns a direction's `site_statistics`, if they are already known.
    """
    rows = without(main_protocol(table), "knockout", "n_latents", "read_step", "step_set")
    rows = rows[rows["metric"] == metric]
    if rows.empty:
        raise ValueError(f"the table has no rows of metric {metric!r}; sweep it too")
    own = effect(rows[rows["source"] == "self"])["numerator"].abs().max()
    test = tested or (lambda direction: site_statistics(rows, metric, direction))
    parts = [test(direction) for direction in rows["direction"].unique()]
    whole = plain(rows[(rows["kind"] == "thought") & from_other_run(rows)])
    parts += [by_site(effect(whole), metric=metric)] if len(whole) else []
    sites = pd.concat(parts, ignore_index=True)
    rounding = max(ROUNDING, 0.0 if pd.isna(own) else own)
    return sites.assign(inert=sites["moved"] <= rounding, specific=sites_have_unrelated(rows))


def heatmap_chart(sites: pd.DataFrame, specific: bool | None = None) -> Any:
    """Effect by layer × step, from `heatmap_data` or `by_site`: colours centred on 0, a row of panels for each kind.

    With the tests of `heatmap_data`, sites that do not differ from an unrelated donor are faint. A cross marks sites
    where no run changed, such as the last layer's output at the last step, which is never fed back. `specific`: whether
    the effects are specific ones, by default the column of that name.
    """
    cells = sites[~sites["kind"].isin(SEGMENTS)]
    if cells.empty:
        raise ValueError(
            "no site with a layer or a step to draw; a heatmap needs one of latent, resid, attn, mlp, head, kv"
        )
    if specific is None:
        specific = bool(cells.get("specific", pd.Series(False)).fillna(False).all())
    heads, tested = cells["head"].notna(), "p_fwer" in cells and bool(cells["p_fwer"].notna().any())
    inert = cells["inert"].eq(True) if "inert" in cells else pd.Series(False, cells.index)
    cells = cells.assign(
        layers=pd.Series(_span(cells, "layer"), cells.index) + cells["head"].map(".{}".format).where(heads, ""),
        steps=_span(cells, "step"),
        written=cells["source"].where(~from_other_run(cells), "other run"),
        frozen=("frozen: " + cells["freeze"]).fillna("nothing frozen" if cells["freeze"].notna().any() else ""),
        label=cells["effect"].map("{:z.2f}".format).str.replace("-", "−").mask(inert, MARK),
        shown=cells["p_fwer"].le(ALPHA).map({True: "yes", False: "no"}) if tested else "yes",
    )
    reach = reach_of(cells["effect"])
    apart = ["edit"] if "edit" in cells else []
    groups: list[tuple[Any, pd.DataFrame]] = list(cells.groupby(["kind", "written", "frozen", *apart, "direction"]))
    groups.sort(key=lambda group: (list(SITE_KINDS).index(group[0][0]), group[0][2].startswith("frozen"), group[0][1:]))
    panels = [_panel(panel, key, reach) for key, panel in groups]
    across = cells["direction"].nunique()
    chart = panels[0] if len(panels) == 1 else alt.concat(*panels, columns=across if across > 1 else 3)
    directions = " / ".join(what_where(direction) for direction in cells["direction"].unique())
    top = "; ".join(f"{row.direction} {row.effect:z.2f}" for row in sites[sites["kind"] == "thought"].itertuples())
    frozen = ", ".join(cells["freeze"].dropna().unique())
    faint = "Faint: not told apart from an unrelated donor (p > 0.05, family-wise over each direction)"
    untested = "No unrelated donor was swept, so nothing is tested" if "p_fwer" in cells else ""
    return dress(
        chart,
        heading(
            f"{'Specific effect' if specific else 'Effect'} by layer and step: {site_nouns(cells, ', ')}",
            f"Written: {directions}" + (f"; frozen at the host's values: {frozen}" if frozen else ""),
            f"On {metric_noun(sites['metric'].iloc[0])}, pooled ("
            + ("0: as an unrelated donor" if specific else "0 host, 1 donor")
            + ")"
            + (f"; ceiling (plain): {top}" if top else ""),
            *filter(None, [faint if tested else untested]),
            *([f"{MARK}: no run changed, as the last layer's output at the last step cannot"] if inert.any() else []),
            about_pooled(cells),
            width=WIDTH * min(len(panels), max(across, 1)),
        ),
    )


def _panel(panel: pd.DataFrame, key: tuple, reach: float) -> Any:
    """One kind of site in one direction."""
    kind, *rest, direction = key
    layers, steps = (_in_order(panel, name) for name in ("layer", "step"))
    shown = alt.datum.shown == "yes"
    row = min(22, MOST_HEIGHT // len(layers)) or 1  # pixels; all heads of a large model are many rows
    light = alt.condition((abs(alt.datum.effect) > 0.6 * reach) & shown, alt.value("white"), alt.value("#222"))
    names = alt.Axis(labelOverlap=True) if row < LEAST_ROW else alt.Axis()
    base = alt.Chart(panel).encode(
        x=alt.X("steps:O", sort=steps, title="latent step", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("layers:O", sort=layers[::-1], title="layer.head" if kind == "head" else "layer", axis=names),
    )
    tooltip = [*tips("layers", "steps"), "clusters:Q"]
    tooltip += [alt.Tooltip("p_fwer:Q", format=".2g", title="p, family-wise")] if "p_fwer" in panel else []
    cells = base.mark_rect().encode(
        color=effect_colour(reach), tooltip=tooltip, opacity=alt.condition(shown, alt.value(1.0), alt.value(0.3))
    )
    text = base.mark_text(fontSize=10).encode(
        text="label:N", color=light, opacity=alt.condition(shown, alt.value(1.0), alt.value(0.75))
    )
    title = ", ".join(part for part in (SITE_KINDS[str(kind)].noun, str(direction), *map(str, rest)) if part)
    size = {"width": max(44 * len(steps), 60), "height": row * len(layers), "title": title}
    return (cells + text if row >= LEAST_ROW else alt.layer(cells)).properties(**size)


def _span(sites: pd.DataFrame, what: str) -> list[str]:
    """A window's label: `3`, `0–3`, or `all`."""
    spans = zip(sites[what], sites[f"{what}_last"], strict=True)
    return ["all" if pd.isna(a) else str(a) if a == b or pd.isna(b) else f"{a}–{b}" for a, b in spans]


def _in_order(sites: pd.DataFrame, what: str) -> list[str]:
    """The labels of windows sorted by first and last, `all` last."""
    ordered = sites.sort_values([what, f"{what}_last", "head"], na_position="last")
    return list(dict.fromkeys(ordered[f"{what}s"]))
