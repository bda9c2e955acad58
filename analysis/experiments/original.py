"""The original experiment's two errors, each on its own: it ran no latent loop, and it read the wrong position.

Its single pass held pad tokens in the place of the thought, and it read the token after EoT, a formatting token that
nearly every answer shares. Both protocols are read at both positions, so that either error stands beside its mending.
In the single pass the last layer's output at the pads is read by nothing: its KL is 0 by construction, whatever the
model.
"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from codi_tracing.analysis.figures.marks import below, dashes_below, layer_axis, scale_of
from codi_tracing.analysis.figures.style import BLUE, ORANGE, dress, heading
from codi_tracing.analysis.labels import about_pooled
from codi_tracing.analysis.rows import from_other_run, layerwise
from codi_tracing.analysis.statistics.effects import effect, pooled

KL, EFFECT = "KL(patched || corrupted)", "effect on the logit difference"
NUMBER, EOT = "the answer's number", "EoT"
METRICS = {
    "kl_from_corrupted": (KL, NUMBER),
    "kl_from_corrupted_at_eot": (KL, EOT),
    "logit_difference": (EFFECT, NUMBER),
    "logit_difference_at_eot": (EFFECT, EOT),
}
PROTOCOLS = {"latent_loop": "latent loop", "single_pass": "single pass over pads"}
WRITTEN = ("other run", "unrelated run")
PANEL = 270  # pixels, so that two stand side by side on a printed page
SINGLE_PASS = PROTOCOLS["single_pass"]


def protocols(table: pd.DataFrame) -> pd.DataFrame:
    """One row per protocol × position read × layer × source: `value`, pooled, with its 95 % interval over clusters.

    `measure` says of what: the mean KL(patched || corrupted) in nats, 0 or above, 0 where the write changes nothing; or
    the effect on the logit difference (0 host, 1 donor). Written: the clean run's, or an unrelated run's, residual
    stream of one layer at all steps, into the corrupted run, as the original experiment did. `rounding` is how far the
    table's KLs fall below 0, which only rounding can do: a mean of no more than that is no evidence of any change.
    """
    rows = layerwise(table)
    rows = rows[(rows["direction"] == "denoising") & rows["metric"].isin(list(METRICS))]
    rows = rows[rows["protocol"].isin(list(PROTOCOLS)) & rows[["knockout", "n_latents", "step_set"]].isna().all(axis=1)]
    rows = rows[from_other_run(rows) | (rows["source"] == "unrelated")]
    for name in PROTOCOLS:
        for metric in ("kl_from_corrupted", "kl_from_corrupted_at_eot"):
            if not ((rows["protocol"] == name) & (rows["metric"] == metric)).any():
                raise ValueError(
                    f"the table has no denoising rows of one layer's residual with protocol {name} and metric "
                    f"{metric}; run configs/original.toml"
                )
    rows = effect(rows)
    is_kl = rows["metric"].str.startswith("kl")
    rows = rows.assign(
        numerator=rows["patched"].where(is_kl, rows["numerator"]),  # a KL has its own zero, and is not normalised
        denominator=rows["denominator"].mask(is_kl, 1.0),
        protocol=rows["protocol"].map(PROTOCOLS),
        measure=rows["metric"].map({metric: measure for metric, (measure, _) in METRICS.items()}),
        read_at=rows["metric"].map({metric: position for metric, (_, position) in METRICS.items()}),
        written=rows["source"].eq("unrelated").map({False: WRITTEN[0], True: WRITTEN[1]}),
    )
    found = pooled(rows, ["measure", "protocol", "read_at", "written", "layer"])
    rounding = max(0.0, -float(rows.loc[is_kl, "patched"].min()))
    return found.rename(columns={"effect": "value"}).drop(columns=["mean", "median"]).assign(rounding=rounding)


def protocol_curve(found: pd.DataFrame) -> Any:
    """Mean KL by layer on a log scale with a place for zero, from `protocols`: a panel per position read.

    What is not above rounding stands at the place for zero.
    Colours tell the loop from the single pass, so that no loop is the gap between two lines of a panel, and the wrong
    position that between two panels, which share their axis.
    """
    shown = found[found["measure"] == KL]
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
    shown = shown.assign(**{f"drawn_{name}": places for name, places in drawn.items()})
    panels = [_panel(shown[shown["read_at"] == position], position, zero, top) for position in (EOT, NUMBER)]
    return dress(
        alt.hconcat(*panels, spacing=30),
        heading(
            "The original procedure's two errors: no latent loop (colour), and the wrong position (panel)",
            "Written: one layer's residual stream at all latent steps, or at all pads, of another run into the "
            f"corrupted one. Mean {KL} in nats, log scale; dashed line: {at_zero}; bands: 95% over clusters",
            about_pooled(shown),
            width=PANEL * 2 + 90,
        ),
    )


def protocol_rows(found: pd.DataFrame) -> list[str]:
    """Lines of text, the first a heading: mean KL at the first and the last layer, by protocol and position read.

    Of the pair's other run, in nats; the first line after the heading is the original experiment's procedure.
    """
    shown = found[(found["measure"] == KL) & (found["written"] == WRITTEN[0])]
    first, last, rounding = int(shown["layer"].min()), int(shown["layer"].max()), float(shown["rounding"].max())
    cells: list[tuple[str, ...]] = [("protocol", "read at", f"mean KL, layer {first}", f"layer {last}")]
    for protocol in (SINGLE_PASS, PROTOCOLS["latent_loop"]):
        for position in (EOT, NUMBER):
            rows = shown[(shown["protocol"] == protocol) & (shown["read_at"] == position)].set_index("layer")["value"]
            cells.append(
                (protocol, position, *(_nats(float(rows.get(layer, np.nan)), rounding) for layer in (first, last)))
            )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def protocol_sentence(found: pd.DataFrame) -> str:
    """What each of the original's two errors does to its number: mean KL over layers, of the pair's other run."""
    shown = found[(found["measure"] == KL) & (found["written"] == WRITTEN[0])]
    means = shown.groupby(["protocol", "read_at"])["value"].mean()
    loop, rounding = PROTOCOLS["latent_loop"], float(shown["rounding"].max())
    one = {key: _nats(float(value), rounding) for key, value in means.items()}
    caution = f" Rounding moves a KL of this table by up to {rounding:.1e}." if rounding else ""
    return (
        f"Mean {KL} over layers, in nats. As the original experiment measured it (single pass, read at EoT): "
        f"{one[SINGLE_PASS, EOT]}. Only the position mended (read at the number): {one[SINGLE_PASS, NUMBER]}. Only the "
        f"loop mended (read at EoT): {one[loop, EOT]}. Both: {one[loop, NUMBER]}.{caution}"
    )


def _panel(shown: pd.DataFrame, position: str, zero: int, top: int) -> Any:
    """The curves read at one position; `zero` and `top` are the powers of ten that stand for 0 and end the axis."""
    colours = scale_of({PROTOCOLS["latent_loop"]: BLUE, SINGLE_PASS: ORANGE})
    dashes = alt.Scale(domain=list(WRITTEN), range=[[1, 0], [4, 2]])
    every = -(-(top - zero) // 9)
    ticks = [zero, *range(top, zero, -every)]
    power = "format(pow(10, datum.value), abs(datum.value) < 3 ? '~g' : '.0e')"
    label = f"datum.value == {zero} ? '0' : {power}"
    y = alt.Y("drawn_value:Q", title=f"mean {KL}, nats", axis=alt.Axis(values=ticks, labelExpr=label, minExtent=48),
              scale=alt.Scale(domain=[zero - (top - zero) / 10, top], nice=False))  # fmt: skip
    base = alt.Chart(shown).encode(
        x=layer_axis(shown["layer"]), color=alt.Color("protocol:N", title=None, scale=colours, legend=below(2))
    )
    dash = alt.StrokeDash("written:N", title="written", scale=dashes, legend=dashes_below(2, "left"))
    true = base.transform_filter(alt.datum.written == WRITTEN[0])
    band = true.mark_area(opacity=0.18).encode(y="drawn_low:Q", y2="drawn_high:Q")
    numbers = [alt.Tooltip(f"{name}:Q", format=".3~e") for name in ("value", "low", "high")]
    lines = base.mark_line(strokeWidth=2, clip=False).encode(y=y, strokeDash=dash)
    points = base.mark_point(filled=True, size=28, opacity=1).encode(
        y=y, tooltip=["protocol", "written", "layer", *numbers, "n"]
    )
    floor = alt.Chart(pd.DataFrame({"y": [zero]})).mark_rule(color="#999", strokeDash=[2, 2]).encode(y="y:Q")
    return (floor + band + lines + points + _structural(shown)).properties(
        width=PANEL, height=230, title=alt.TitleParams(f"read at {position}", fontSize=12, anchor="start")
    )


def _structural(shown: pd.DataFrame) -> alt.Chart:
    """Text at the single pass's last layer, which nothing reads: 0, or the number found where it is not."""
    single = shown[(shown["protocol"] == SINGLE_PASS) & (shown["written"] == WRITTEN[0])]
    last = single[single["layer"] == single["layer"].max()]
    value, rounding = float(last["value"].iloc[0]), float(last["rounding"].iloc[0])
    is_zero = value <= rounding
    says = "structural zero: nothing reads it" if is_zero else f"structurally 0, measured {_nats(value, rounding)}"
    return (
        alt.Chart(last.assign(says=says))
        .mark_text(align="right", baseline="top", dy=6, fontSize=11, color=ORANGE)
        .encode(x="layer:Q", y="drawn_value:Q", text="says:N")
    )


def _nats(value: float, rounding: float) -> str:
    """A KL at three digits, zero only where it is zero."""
    if np.isnan(value):
        return "not swept"
    if value and value <= rounding:
        return "0 within rounding"
    return "0" if value == 0 else f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.1e}"
