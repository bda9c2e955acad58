"""Effects by layer × step, the sites that differ from an unrelated donor, and sites where no write has an effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.captions import about_measure, about_pooled, site_nouns, what_where
from codi_tracing.analysis.figures.marks import effect_colour, numbers, reach_of, tips
from codi_tracing.analysis.figures.style import WIDTH, dress, heading
from codi_tracing.analysis.rows import (
    from_other_run,
    has_unrelated,
    main_protocol,
    plain,
    sites_have_unrelated,
    without,
)
from codi_tracing.analysis.statistics.effects import by_site, effect, specific
from codi_tracing.analysis.statistics.inference import ALPHA
from codi_tracing.analysis.statistics.measures import THREE_ANSWERS, TRANSFER, measured
from codi_tracing.analysis.statistics.sites import site_statistics
from codi_tracing.configs.vocabulary import FEWEST_CLUSTERS, SEGMENTS, SITE_KINDS

ROUNDING = 2e-5  # rounding of a metric in single precision: 1e-5 of each of two logits, and less of a probability
MARK = "×"
LEAST_REACH = 0.2  # end of the colours, so that transfer of hardly anything is pale
MOST_HEIGHT, LEAST_ROW = 1000, 12  # pixels: of a panel, and of a row with room for numbers


def heatmap(table: pd.DataFrame, metric: str = TRANSFER) -> Any:
    """Transfer by layer × step of a table of cells: `heatmap_chart(heatmap_data(table, metric))`."""
    return heatmap_chart(heatmap_data(table, metric))


def heatmap_data(
    table: pd.DataFrame,
    metric: str = TRANSFER,
    tested: Callable[[str], pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """Every site in every direction (`site_statistics`), and the whole thought's effect, the ceiling.

    Transfer is specific and tested if an unrelated donor was swept. On another metric effects are plain, and the
    unrelated donor's stand beside them. `inert`: no run of any pair changed there by more than rounding, which is the
    largest change by a run's own thought if that is larger. `tested` returns a direction's `site_statistics`, if they
    are already known.
    """
    table = without(main_protocol(table), "knockout", "n_latents", "read_step", "step_set")
    rows = measured(table, metric)
    own = effect(rows[rows["source"] == "self"])["numerator"].abs().max()
    test = tested or (lambda direction: site_statistics(table, metric, direction))
    parts = [test(direction) for direction in rows["direction"].unique()]
    is_specific = all(part["specific"].all() for part in parts)
    if metric != TRANSFER and sites_have_unrelated(rows):
        parts.append(by_site(effect(rows[~rows["kind"].isin(SEGMENTS)]), source="unrelated"))
    whole = plain(rows[rows["kind"] == "thought"])
    if from_other_run(whole).any():
        has_control = is_specific and has_unrelated(whole)
        parts.append(by_site(specific(whole) if has_control else effect(whole)))
    sites = pd.concat(parts, ignore_index=True).drop(columns=["exploratory", "below"])
    rounding = max(ROUNDING, 0.0 if pd.isna(own) else own)
    return sites.assign(inert=sites["moved"] <= rounding, specific=is_specific)


def heatmap_chart(sites: pd.DataFrame) -> Any:
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
    specific = bool(cells.get("specific", pd.Series(False)).fillna(False).all())
    heads, tested = cells["head"].notna(), "p_fwer" in cells and bool(cells["p_fwer"].notna().any())
    inert = cells["inert"].eq(True) if "inert" in cells else pd.Series(False, cells.index)
    cells = cells.assign(
        layers=pd.Series(_span(cells, "layer"), cells.index) + cells["head"].map(".{}".format).where(heads, ""),
        steps=_span(cells, "step"),
        written=cells["source"].where(~from_other_run(cells), "other run"),
        frozen=("frozen: " + cells["freeze"]).fillna("nothing frozen" if cells["freeze"].notna().any() else ""),
        label=cells["effect"]
        .map(lambda value: "" if pd.isna(value) else f"{value:z.2f}".replace("-", "−"))
        .mask(inert, MARK),
        shown=cells["p_fwer"].le(ALPHA).map({True: "yes", False: "no"}) if tested else "yes",
    )
    reach = max(reach_of(cells["effect"]), LEAST_REACH)
    apart = ["edit"] if "edit" in cells else []
    groups: list[tuple[Any, pd.DataFrame]] = list(cells.groupby(["kind", "written", "frozen", *apart, "direction"]))
    groups.sort(key=lambda group: (list(SITE_KINDS).index(group[0][0]), group[0][2].startswith("frozen"), group[0][1:]))
    panels = [_panel(panel, key, reach) for key, panel in groups]
    across = cells["direction"].nunique()
    chart = panels[0] if len(panels) == 1 else alt.concat(*panels, columns=across if across > 1 else 3)
    directions = " / ".join(what_where(direction) for direction in cells["direction"].unique())
    top = "; ".join(f"{row.direction} {row.effect:z.2f}" for row in sites[sites["kind"] == "thought"].itertuples())
    frozen = ", ".join(cells["freeze"].dropna().unique())
    metric = str(sites["metric"].iloc[0])
    noun = ("specific " if specific else "") + ("transfer" if metric == TRANSFER else "effect")
    faint = "Faint: not told apart from an unrelated donor (p > 0.05, family-wise over each direction)"
    untested = ""
    if "p_fwer" in cells and metric == TRANSFER:
        few = cells["clusters"].max() < FEWEST_CLUSTERS
        untested = "Nothing is tested: " + ("too few clusters" if few else "no unrelated donor was swept")
    return dress(
        chart,
        heading(
            f"{noun.capitalize()} by layer and step: {site_nouns(cells, ', ')}",
            f"Written: {directions}" + (f"; frozen at the host's values: {frozen}" if frozen else ""),
            about_measure(metric)
            + (", less an unrelated donor's" if specific else "")
            + (f"; ceiling: {top}" if top else ""),
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
    tooltip += numbers(*(answer for answer in THREE_ANSWERS if answer in panel), form=".0%")
    cells = base.mark_rect().encode(
        color=effect_colour(reach, "transfer" if panel["metric"].iloc[0] == TRANSFER else "effect"),
        tooltip=tooltip,
        opacity=alt.condition(shown, alt.value(1.0), alt.value(0.3)),
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
