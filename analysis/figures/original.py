"""The original experiment's four figures: KL by layer, pairs × layers, critical layers, and how alike layers are."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from codi_tracing.analysis.figures.marks import layer_axis, scale_of, tips
from codi_tracing.analysis.figures.style import BLUE, GREY, WIDTH, dress, heading
from codi_tracing.analysis.labels import NOUNS, about, about_pooled, metric_noun, place_name, what_where
from codi_tracing.analysis.rows import SERIES, layerwise
from codi_tracing.analysis.statistics.effects import pooled
from codi_tracing.analysis.statistics.verdict import LOW_CEILING

WHERE = "The clean run's residual stream of one layer, at all latent steps, written into the corrupted run"
VERDICTS = {"critical": BLUE, "not critical": "#BBBBBB"}
MOST_ROWS = 4_500  # Altair refuses more than 5,000


def original_cells(table: pd.DataFrame, metric: str = "kl_from_corrupted") -> pd.DataFrame:
    """The original experiment's cells of one metric: clean into corrupted, one layer's residual at all steps."""
    rows = layerwise(table)
    rows = rows[(rows["direction"] == "denoising") & (rows["source"] == "clean") & (rows["metric"] == metric)]
    if rows.empty:
        raise ValueError(
            f"the table has no denoising rows of one layer's residual with metric {metric!r}; sweep them too"
        )
    return rows


def kl_profile(table: pd.DataFrame) -> pd.DataFrame:
    """`[pair, layer]`: KL(patched ‖ corrupted) in nats of every pair and layer; 0 is no disturbance."""
    return original_cells(table).pivot(index="pair_id", columns="layer", values="patched").rename(columns=int)


def mean_kl(table: pd.DataFrame) -> pd.DataFrame:
    """Mean KL(patched ‖ corrupted) by layer in nats, with its 95 % interval over clusters."""
    rows = original_cells(table)
    return pooled(rows.assign(numerator=rows["patched"], denominator=1.0), [*SERIES, "layer"])


def kl_by_layer(table: pd.DataFrame) -> alt.LayerChart:
    """The original experiment's figure: how far each layer's patch disturbs the corrupted run (no recovery)."""
    means = mean_kl(table)
    base = alt.Chart(means).encode(x=layer_axis(means["layer"]))
    band = base.mark_area(opacity=0.2, color=BLUE).encode(
        y=alt.Y("low:Q", title="mean KL(patched || corrupted), nats"), y2="high:Q"
    )
    line = base.mark_line(color=BLUE, point=alt.OverlayMarkDef(color=BLUE, size=36)).encode(
        y="effect:Q", tooltip=tips("layer")
    )
    return dress(
        (band + line).properties(width=WIDTH, height=220),
        heading("Disturbance of the corrupted run by layer", f"{WHERE}; band: 95% over clusters", about_pooled(means)),
    )


def pairs_by_layer(table: pd.DataFrame) -> alt.Chart:
    """KL(patched ‖ corrupted) of every pair and layer, pairs from least to most disturbed."""
    profile = kl_profile(table)
    pairs, layers = profile.shape
    together = -(-pairs * layers // MOST_ROWS)  # so many pairs share a row of a large table
    rank = profile.mean(axis=1).rank(method="first").sub(1).astype(int)
    shown = profile.groupby((rank // together).rename("row")).mean()
    long = shown.reset_index().melt("row", var_name="layer", value_name="kl")
    if together == 1:
        names = rank.sort_values().index
        long["pair"] = names[long["row"]]
    else:
        long["pair"] = [f"{together} pairs, row {row}" for row in long["row"]]
    unlabelled = alt.Axis(labels=False, ticks=False)
    chart = (
        alt.Chart(long)
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("row:O", title="pairs, the most disturbed on top", sort="descending", axis=unlabelled),
            color=alt.Color("kl:Q", title="KL, nats", scale=alt.Scale(scheme="viridis", type="sqrt", domainMin=0)),
            tooltip=["pair:N", "layer:O", alt.Tooltip("kl:Q", format=".4g")],
        )
    )
    each = "a row is one pair" if together == 1 else f"a row is the mean of {together} pairs"
    return dress(
        chart.properties(width=WIDTH - 50, height=min(max(6 * len(shown), 60), 420)),
        heading(
            "KL(patched || corrupted) of every pair and layer",
            f"{WHERE}; {each}; colours by square root",
            about(original_cells(table)),
        ),
    )


def critical_layers(ranked: pd.DataFrame, top: int = 10, *, low_ceiling: float = LOW_CEILING) -> alt.LayerChart:
    """The largest specific effects, from `critical`, with intervals; critical only where the ceiling allows it.

    `low_ceiling` is the one that they were ranked with.
    """
    tested = bool(ranked["specific"].all())
    shown = ranked.head(top)
    several = shown["kind"].nunique() > 1
    names = [place_name(row, several) for row in shown.to_dict("records")]
    shown = shown.assign(place=names, verdict=np.where(shown["critical"], "critical", "not critical"))
    y = alt.Y("place:N", sort=names, title=None)
    base = alt.Chart(shown).encode(y=y)
    bars = base.mark_bar(height={"band": 0.7}).encode(
        x=alt.X(
            "effect:Q",
            title="specific effect (0: no more than an unrelated donor)" if tested else "effect (0 host, 1 donor)",
        ),
        color=alt.Color(
            "verdict:N",
            title=None,
            scale=scale_of({word: colour for word, colour in VERDICTS.items() if (shown["verdict"] == word).any()}),
            legend=alt.Legend(orient="bottom"),
        ),
        tooltip=tips("place", "rank", "rank_low", "rank_high", "p_fwer"),
    )
    whiskers = base.mark_rule(color="#222", strokeWidth=1.5).encode(x="low:Q", x2="high:Q")
    zero = alt.Chart(pd.DataFrame({"x": [0]})).mark_rule(color=GREY).encode(x="x:Q")
    direction, limit = ranked["direction"].iloc[0], ranked["ceiling"].iloc[0]
    any_critical = bool(ranked["critical"].any())
    places = "layers" if ranked["step"].isna().all() else "sites"
    words = f"Critical {places}, by specific effect" if any_critical else "Specific effects, the largest first"
    words = words if tested else "Effects, the largest first (no unrelated donor was swept, so no p-values)"
    why = f"ceiling {limit:z.2f}" + (", which is low: no layer may be called critical" if limit < low_ceiling else "")
    kinds = " and ".join(NOUNS[kind] for kind in ranked["kind"].unique())
    steps = " at all latent steps" if ranked["step"].isna().all() else ""
    return dress(
        (bars + zero + whiskers).properties(width=WIDTH - 60, height=24 * len(shown)),
        heading(
            words,
            f"Written: {kinds}{steps}, {what_where(direction)}",
            f"On {metric_noun(ranked['metric'].iloc[0])}, pooled; whiskers: 95% over clusters; {why}",
            *(
                ["Critical: p at most 0.05, family-wise, and the interval above 5% of the ceiling"]
                if any_critical
                else []
            ),
            about_pooled(ranked),
        ),
    )


def layer_similarity(table: pd.DataFrame) -> alt.LayerChart:
    """Layer × layer correlation of KL(patched ‖ corrupted) over pairs: 1 where both disturb the same pairs alike."""
    profile = kl_profile(table)
    if len(profile) < 3:
        raise ValueError(f"a correlation over pairs needs at least 3 pairs, found {len(profile)}")
    long = profile.corr().rename_axis(index="a").reset_index().melt("a", var_name="b", value_name="r")
    base = alt.Chart(long).encode(
        x=alt.X("a:O", title="layer", axis=alt.Axis(labelAngle=0)), y=alt.Y("b:O", title="layer", sort="descending")
    )
    marks = base.mark_rect().encode(
        color=alt.Color("r:Q", title="correlation", scale=alt.Scale(scheme="blueorange", domain=[-1, 1], domainMid=0)),
        tooltip=["a:O", "b:O", alt.Tooltip("r:Q", format=".3f")],
    )
    layers = profile.shape[1]
    side = min(layers * 44, WIDTH - 70)
    chart = alt.layer(marks)
    if layers <= 8:  # more would not fit their cells
        ink = alt.condition(abs(alt.datum.r) > 0.6, alt.value("white"), alt.value("#222"))
        chart += base.mark_text(fontSize=11).encode(text=alt.Text("r:Q", format=".2f"), color=ink)
    return dress(
        chart.properties(width=side, height=side),
        heading(
            "Which layers disturb the same pairs",
            f"Pearson correlation over pairs of KL(patched || corrupted). {WHERE}",
            about(original_cells(table)),
        ),
    )
