"""The original experiment's four figures: KL by layer, pairs × layers, critical layers, similarity of layers."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from codi_tracing.analysis.captions import about_pooled, site_name, site_nouns, what_where
from codi_tracing.analysis.figures.marks import TRANSFER_TITLE, layer_axis, numbers, scale_of, tips
from codi_tracing.analysis.figures.style import BLUE, GREY, WIDTH, dress, heading
from codi_tracing.analysis.rows import SERIES, layerwise_rows
from codi_tracing.analysis.statistics.ceiling import LOW_CEILING, Estimate
from codi_tracing.analysis.statistics.effects import pooled_means

WHERE = "The clean run's residual stream of one layer, at all latent steps, written into the corrupted run"
CRITICAL_COLOURS = {"critical": BLUE, "not critical": "#BBBBBB"}
MOST_ROWS = 4_500  # Altair refuses more than 5,000


def kl_by_layer_data(table: pd.DataFrame) -> pd.DataFrame:
    """Mean KL(patched ‖ corrupted) by layer in nats, with its 95 % interval over clusters."""
    rows = _kl_rows(table)
    return pooled_means(rows, rows["patched"], [*SERIES, "layer"])


def kl_by_layer_chart(data: pd.DataFrame) -> Any:
    """How far each layer's patch disturbs the corrupted run (no recovery)."""
    base = alt.Chart(data).encode(x=layer_axis(data["layer"]))
    area = base.mark_area(opacity=0.2, color=BLUE).encode(
        y=alt.Y("low:Q", title="mean KL(patched || corrupted), nats"), y2="high:Q"
    )
    line = base.mark_line(color=BLUE, point=alt.OverlayMarkDef(color=BLUE, size=36)).encode(
        y="effect:Q", tooltip=tips("layer")
    )
    return dress(
        (area + line).properties(width=WIDTH, height=220),
        heading("Disturbance of the corrupted run by layer", f"{WHERE}; band: 95% over clusters", about_pooled(data)),
    )


def pairs_by_layer_data(table: pd.DataFrame) -> pd.DataFrame:
    """`kl` by layer and `row`, a pair or the mean of similar pairs of a large table, from least to most disturbed."""
    rows = _kl_rows(table)
    profile = _kl_profile(rows)
    pairs, layers = profile.shape
    together = -(-pairs * layers // MOST_ROWS)  # pairs per row
    rank = profile.mean(axis=1).rank(method="first").sub(1).astype(int)
    shown = profile.groupby((rank // together).rename("row")).mean()
    long = shown.reset_index().melt("row", var_name="layer", value_name="kl")
    if together == 1:
        names = rank.sort_values().index
        long["pair"] = names[long["row"]]
    else:
        long["pair"] = [f"{together} pairs, row {row}" for row in long["row"]]
    return long.assign(pairs_per_row=together, **_counts(rows))


def pairs_by_layer_chart(data: pd.DataFrame) -> Any:
    """KL(patched ‖ corrupted) of every pair and layer, from `pairs_by_layer_data`."""
    together = data["pairs_per_row"].iloc[0]
    unlabelled = alt.Axis(labels=False, ticks=False)
    chart = (
        alt.Chart(data[["row", "layer", "kl", "pair"]])
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("row:O", title="pairs, the most disturbed on top", sort="descending", axis=unlabelled),
            color=alt.Color("kl:Q", title="KL, nats", scale=alt.Scale(scheme="viridis", type="sqrt", domainMin=0)),
            tooltip=["pair:N", "layer:O", *numbers("kl", form=".4g")],
        )
    )
    each = "a row is one pair" if together == 1 else f"a row is the mean of {together} pairs"
    return dress(
        chart.properties(width=WIDTH - 50, height=min(max(6 * data["row"].nunique(), 60), 420)),
        heading(
            "KL(patched || corrupted) of every pair and layer",
            f"{WHERE}; {each}; colours by square root",
            about_pooled(data),
        ),
    )


def critical_layers_chart(
    ranked: pd.DataFrame, ceiling: Estimate, top: int = 10, *, low_ceiling: float = LOW_CEILING
) -> Any:
    """The sites of largest specific transfer, from `critical`, under the ceiling `ceiling`."""
    tested = bool(ranked["specific"].all())
    shown = ranked.head(top)
    names = [site_name(row, shown["kind"].nunique() > 1) for row in shown.to_dict("records")]
    shown = shown.assign(place=names, verdict=np.where(shown["critical"], "critical", "not critical"))
    colours = scale_of({word: colour for word, colour in CRITICAL_COLOURS.items() if word in set(shown["verdict"])})
    base = alt.Chart(shown).encode(y=alt.Y("place:N", sort=names, title=None))
    bars = base.mark_bar(height={"band": 0.7}).encode(
        x=alt.X(
            "effect:Q", title="specific transfer (0: no more than an unrelated donor)" if tested else TRANSFER_TITLE
        ),
        color=alt.Color("verdict:N", title=None, scale=colours, legend=alt.Legend(orient="bottom")),
        tooltip=tips("place", "rank_low", "rank_high", "p_fwer"),
    )
    whiskers = base.mark_rule(color="#222", strokeWidth=1.5).encode(x="low:Q", x2="high:Q")
    zero = alt.Chart(pd.DataFrame({"x": [0]})).mark_rule(color=GREY).encode(x="x:Q")
    any_critical = bool(ranked["critical"].any())
    all_steps = ranked["step"].isna().all()
    words = f"Critical {'layers' if all_steps else 'sites'}, by specific transfer"
    words = words if any_critical else "Specific transfer, the largest first"
    words = words if tested else "Transfer, the largest first (no unrelated donor was swept, so no p-values)"
    low = "; the ceiling is low: none may be called critical" if not ceiling.low >= low_ceiling else ""
    rule = "Critical: p at most 0.05, family-wise, and the interval above 5% of the ceiling"
    return dress(
        (bars + zero + whiskers).properties(width=WIDTH - 60, height=24 * len(shown)),
        heading(
            words,
            f"Written: {site_nouns(ranked)}{' at all latent steps' if all_steps else ''}, "
            f"{what_where(ranked['direction'].iloc[0])}",
            f"On answered pairs; whiskers: 95% over clusters; ceiling {ceiling}{low}",
            *([rule] if any_critical else []),
            about_pooled(ranked),
        ),
    )


def layer_similarity_data(table: pd.DataFrame) -> pd.DataFrame:
    """Correlation `r` over pairs of the KL(patched ‖ corrupted) of layers `a` and `b`."""
    rows = _kl_rows(table)
    profile = _kl_profile(rows)
    if len(profile) < 3:
        raise ValueError(f"a correlation over pairs needs at least 3 pairs, found {len(profile)}")
    long = profile.corr().rename_axis(index="a").reset_index().melt("a", var_name="b", value_name="r")
    return long.assign(**_counts(rows))


def layer_similarity_chart(data: pd.DataFrame) -> Any:
    """Layer × layer correlations, from `layer_similarity_data`: 1 if both layers disturb the same pairs alike."""
    base = alt.Chart(data[["a", "b", "r"]]).encode(
        x=alt.X("a:O", title="layer", axis=alt.Axis(labelAngle=0)), y=alt.Y("b:O", title="layer", sort="descending")
    )
    marks = base.mark_rect().encode(
        color=alt.Color("r:Q", title="correlation", scale=alt.Scale(scheme="blueorange", domain=[-1, 1], domainMid=0)),
        tooltip=["a:O", "b:O", *numbers("r")],
    )
    layers = data["a"].nunique()
    side = min(layers * 44, WIDTH - 70)
    chart = alt.layer(marks)
    if layers <= 8:  # numbers of more layers would not fit their cells
        ink = alt.condition(abs(alt.datum.r) > 0.6, alt.value("white"), alt.value("#222"))
        chart += base.mark_text(fontSize=11).encode(text=alt.Text("r:Q", format=".2f"), color=ink)
    return dress(
        chart.properties(width=side, height=side),
        heading(
            "Which layers disturb the same pairs",
            f"Pearson correlation over pairs of KL(patched || corrupted). {WHERE}",
            about_pooled(data),
        ),
    )


def _kl_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The original experiment's KL: clean into corrupted, one layer's residual at all steps."""
    rows, metric = layerwise_rows(table), "kl_from_corrupted"
    rows = rows[(rows["direction"] == "denoising") & (rows["source"] == "clean") & (rows["metric"] == metric)]
    if rows.empty:
        raise ValueError(
            f"the table has no denoising rows of one layer's residual with metric {metric!r}; sweep them too"
        )
    return rows


def _kl_profile(rows: pd.DataFrame) -> pd.DataFrame:
    """`[pair, layer]`: KL(patched ‖ corrupted) in nats; 0 is no disturbance."""
    return rows.pivot(index="pair_id", columns="layer", values="patched").rename(columns=int)


def _counts(rows: pd.DataFrame) -> dict[str, Any]:
    """The numbers of pairs and clusters, and the protocols, as columns for the heading."""
    protocols = ", ".join(sorted(rows["protocol"].unique()))
    return {"n": rows["pair_id"].nunique(), "clusters": rows["cluster_id"].nunique(), "protocol": protocols}
