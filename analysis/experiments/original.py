"""The original experiment's two errors, each on its own: it ran no latent loop, and it read the wrong position.

Its single pass has pad tokens in place of the thought, and it read the token after EoT, a formatting token that nearly
every answer shares. Both protocols are read at both positions, so that each error is measured alone. In the single pass
nothing reads the last layer's output at the pads: its KL is 0 by construction, for any model.
"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from codi_tracing.analysis.captions import about_pooled
from codi_tracing.analysis.figures.marks import below, dashes_below, layer_axis, numbers, scale_of
from codi_tracing.analysis.figures.style import BLUE, ORANGE, dress, heading
from codi_tracing.analysis.rows import OTHER_RUN, UNRELATED, from_run, layerwise_rows
from codi_tracing.analysis.statistics.effects import effect, pooled

DISTURBANCE, MOVED = "KL(patched || corrupted)", "effect on the logit difference"
READ_AT_NUMBER, READ_AT_EOT = "the answer's number", "EoT"
MEASURED = {
    "kl_from_corrupted": (DISTURBANCE, READ_AT_NUMBER),
    "kl_from_corrupted_at_eot": (DISTURBANCE, READ_AT_EOT),
    "logit_difference": (MOVED, READ_AT_NUMBER),
    "logit_difference_at_eot": (MOVED, READ_AT_EOT),
}
LOOP, SINGLE_PASS = "latent loop", "single pass over pads"
PROTOCOL_NAMES = {"latent_loop": LOOP, "single_pass": SINGLE_PASS}
PROTOCOL_WIDTH = 270  # pixels, so that two stand side by side on a printed page


def original_data(table: pd.DataFrame) -> pd.DataFrame:
    """One row per protocol × position read × layer × source: `value`, pooled, with its 95 % interval over clusters.

    `measure`: the mean KL(patched || corrupted) in nats, 0 if the write changes nothing; or the effect on the logit
    difference (0 host, 1 donor). Written: the clean or an unrelated run's residual stream of one layer at all steps,
    into the corrupted run, as in the original experiment. `rounding` is the largest amount by which a KL of the table
    is below 0, which only rounding can cause: a mean up to that is no evidence of a change.
    """
    rows = layerwise_rows(table)
    rows = rows[(rows["direction"] == "denoising") & rows["metric"].isin(list(MEASURED))]
    rows = from_run(rows[rows["protocol"].isin(list(PROTOCOL_NAMES))])
    for name in PROTOCOL_NAMES:
        for metric in ("kl_from_corrupted", "kl_from_corrupted_at_eot"):
            if not ((rows["protocol"] == name) & (rows["metric"] == metric)).any():
                raise ValueError(
                    f"the table has no denoising rows of one layer's residual with protocol {name} and metric "
                    f"{metric}; run configs/original.toml"
                )
    rows = effect(rows)
    is_kl = rows["metric"].str.startswith("kl")
    rows = rows.assign(
        numerator=rows["patched"].where(is_kl, rows["numerator"]),  # a KL is not normalised
        denominator=rows["denominator"].mask(is_kl, 1.0),
        protocol=rows["protocol"].map(PROTOCOL_NAMES),
        measure=rows["metric"].map({metric: measure for metric, (measure, _) in MEASURED.items()}),
        read_at=rows["metric"].map({metric: position for metric, (_, position) in MEASURED.items()}),
        written=rows["donor"],
    )
    values = pooled(rows, ["measure", "protocol", "read_at", "written", "layer"])
    rounding = max(0.0, -float(rows.loc[is_kl, "patched"].min()))
    return values.rename(columns={"effect": "value"}).drop(columns=["mean", "median"]).assign(rounding=rounding)


def original_chart(data: pd.DataFrame) -> Any:
    """Mean KL by layer on a log scale with a tick for zero: a panel for each position, a colour for each protocol.

    Values within rounding are drawn at the zero tick.
    """
    shown = data[data["measure"] == DISTURBANCE]
    values, rounding = shown["value"].to_numpy(), float(shown["rounding"].max())
    if not (values > rounding).any():
        raise ValueError(
            "every mean KL is 0 within rounding, so there is nothing to draw; see whether the sweep wrote anything"
        )
    zero = int(np.floor(np.log10(rounding or values[values > 0].min() / 10)))
    top = int(np.ceil(np.log10(np.nanmax(shown[["value", "high"]].to_numpy()))))
    drawn = {
        name: np.log10(shown[name].clip(lower=10.0**zero)).where(~(shown[name] <= rounding), zero)
        for name in ("value", "low", "high")
    }
    at_zero = f"0 within rounding (up to {rounding:.1e})" if rounding else "0"
    shown = shown.assign(**{f"drawn_{name}": logs for name, logs in drawn.items()})
    panels = [
        _panel(shown[shown["read_at"] == position], position, zero, top) for position in (READ_AT_EOT, READ_AT_NUMBER)
    ]
    return dress(
        alt.hconcat(*panels, spacing=30),
        heading(
            "The original procedure's two errors: no latent loop (colour), and the wrong position (panel)",
            "Written: one layer's residual stream at all latent steps, or at all pads, of another run into the "
            f"corrupted one. Mean {DISTURBANCE} in nats, log scale; dashed line: {at_zero}; bands: 95% over clusters",
            about_pooled(shown),
            width=PROTOCOL_WIDTH * 2 + 90,
        ),
    )


def original_sentence(data: pd.DataFrame) -> str:
    """The effect of each of the original's two errors on its number: mean KL over layers, of the pair's other run."""
    shown = data[(data["measure"] == DISTURBANCE) & (data["written"] == OTHER_RUN)]
    rounding = float(shown["rounding"].max())
    means = shown.groupby(["protocol", "read_at"])["value"].mean()
    nats = {key: _nats(float(value), rounding) for key, value in means.items()}
    caution = f" Rounding moves a KL of this table by up to {rounding:.1e}." if rounding else ""
    return (
        f"Mean {DISTURBANCE} over layers, in nats. As the original experiment measured it (single pass, read at EoT): "
        f"{nats[SINGLE_PASS, READ_AT_EOT]}. Only the position corrected (read at the number): "
        f"{nats[SINGLE_PASS, READ_AT_NUMBER]}. Only the loop corrected (read at EoT): {nats[LOOP, READ_AT_EOT]}. Both: "
        f"{nats[LOOP, READ_AT_NUMBER]}.{caution}"
    )


def _panel(shown: pd.DataFrame, position: str, zero: int, top: int) -> Any:
    """The curves read at one position; `zero` and `top` are the powers of ten of the zero tick and the axis' end."""
    colours = scale_of({LOOP: BLUE, SINGLE_PASS: ORANGE})
    dashes = scale_of({OTHER_RUN: [1, 0], UNRELATED: [4, 2]})
    every = -(-(top - zero) // 9)
    ticks = [zero, *range(top, zero, -every)]
    power = "format(pow(10, datum.value), abs(datum.value) < 3 ? '~g' : '.0e')"
    label = f"datum.value == {zero} ? '0' : {power}"
    axis = alt.Axis(values=ticks, labelExpr=label, minExtent=48)
    scale = alt.Scale(domain=[zero - (top - zero) / 10, top], nice=False)
    y = alt.Y("drawn_value:Q", title=f"mean {DISTURBANCE}, nats", axis=axis, scale=scale)
    base = alt.Chart(shown).encode(
        x=layer_axis(shown["layer"]), color=alt.Color("protocol:N", title=None, scale=colours, legend=below(2))
    )
    dash = alt.StrokeDash("written:N", title="written", scale=dashes, legend=dashes_below(2, "left"))
    true = base.transform_filter(alt.datum.written == OTHER_RUN)
    band = true.mark_area(opacity=0.18).encode(y="drawn_low:Q", y2="drawn_high:Q")
    lines = base.mark_line(strokeWidth=2, clip=False).encode(y=y, strokeDash=dash)
    points = base.mark_point(filled=True, size=28, opacity=1).encode(
        y=y, tooltip=["protocol", "written", "layer", *numbers("value", "low", "high", form=".3~e"), "n"]
    )
    floor = alt.Chart(pd.DataFrame({"y": [zero]})).mark_rule(color="#999", strokeDash=[2, 2]).encode(y="y:Q")
    return (floor + band + lines + points + _structural(shown)).properties(
        width=PROTOCOL_WIDTH, height=230, title=alt.TitleParams(f"read at {position}", fontSize=12, anchor="start")
    )


def _structural(shown: pd.DataFrame) -> alt.Chart:
    """Text at the single pass's last layer, which nothing reads: structural zero, or the measured number."""
    single = shown[(shown["protocol"] == SINGLE_PASS) & (shown["written"] == OTHER_RUN)]
    last = single[single["layer"] == single["layer"].max()]
    value, rounding = float(last["value"].iloc[0]), float(last["rounding"].iloc[0])
    is_zero = value <= rounding
    text = "structural zero: nothing reads it" if is_zero else f"structurally 0, measured {_nats(value, rounding)}"
    return (
        alt.Chart(last.assign(text=text))
        .mark_text(align="right", baseline="top", dy=6, fontSize=11, color=ORANGE)
        .encode(x="layer:Q", y="drawn_value:Q", text="text:N")
    )


def _nats(value: float, rounding: float) -> str:
    """A KL with three digits; 0 only if it is 0."""
    if np.isnan(value):
        return "not swept"
    if value and value <= rounding:
        return "0 within rounding"
    return "0" if value == 0 else f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.1e}"
