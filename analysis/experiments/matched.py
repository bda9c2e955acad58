"""Matched pairs: whose answer a run gives once steps of its thought are a donor's: host's, donor's, or a hybrid.

The hybrid answer applies the host's remaining operations to the donor's intermediate. A run that gives it computed on
with the intermediate that was written; one that gives the donor's answer may have been handed the answer itself.
"""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.figures.marks import below, scale_of
from codi_tracing.analysis.figures.style import BLUE, GREEN, ORANGE, dress, heading
from codi_tracing.analysis.labels import about_pooled, one_site
from codi_tracing.analysis.statistics.effects import pooled
from codi_tracing.analysis.table import SEGMENTS

KIND = r"^(?P<intermediate>\d+):(?P<intermediate_is>same|different):(?P<answer_is>same|different)$"
METRICS = {"answer_is_corrupted": "host", "answer_is_clean": "donor", "answer_is_hybrid": "hybrid"}
HOST_IS_DONOR = "host = donor"
# The donor is the clean run and the host the corrupted one, in the colours of the four corners.
COLOURS = {"hybrid": GREEN, "donor": BLUE, "host": ORANGE, HOST_IS_DONOR: "#9DB7CC", "other": "#DDDDDD"}
WRITTEN = ("prefix", "one step", "nothing")
CORNER = ["intermediate", "intermediate_is", "answer_is"]
CORNERS = (("different", "different"), ("same", "different"), ("different", "same"), ("same", "same"))
PANEL = 178  # pixels, so that three stand side by side on a printed page
WORTH = 0.1  # an answer is carried if the interval of its share lies above this, and above its share in the controls
VERDICTS = {
    (True, True): "carries intermediates that the remaining steps compute on, and at its end the answer",
    (True, False): "carries intermediates that the remaining steps compute on",
    (False, True): "carries only the answer",
    (False, False): "carries neither",
}


def matched_shares(table: pd.DataFrame) -> pd.DataFrame:
    """The share of each answer by which intermediate, whether it and the answer match, and what was written up to k.

    `written` is `one step` (k alone), `prefix` (steps 0 to k) or `nothing` (the unpatched host, step empty: the base
    rate). Where the donor's answer is the host's, giving it counts once, as `host = donor`; where the hybrid answer is
    the host's or the donor's it counts as theirs. A hybrid answer that is undefined is never given. Draws of unrelated
    donors (`source`) are averaged. Shares lie between 0 and 1, their intervals (95 %) are over clusters.
    """
    runs = _with_base_rate(_runs(table))
    keys = ["protocol", "kind", "source", *CORNER, "written", "step"]
    given = runs.merge(pd.DataFrame({"answer": list(COLOURS)}), how="cross")
    given = given.assign(numerator=(given["given"] == given["answer"]).astype(float), denominator=1.0)
    shares = pooled(given, [*keys, "answer"])
    impossible = shares["answer"].map({"host": "same", "donor": "same", HOST_IS_DONOR: "different"})
    hybrid_is_host = (shares["answer"] == "hybrid") & (shares["intermediate_is"] == "same")
    shares = shares[(impossible != shares["answer_is"]) & ~hybrid_is_host]
    shares = shares.rename(columns={"effect": "share"}).drop(columns=["mean", "median"])
    return shares.sort_values([*keys, "answer"], kind="stable", ignore_index=True)


def matched_chart(shares: pd.DataFrame) -> Any:
    """Stacked shares by step, from `matched_shares`: the informative corner, by prefix and by step, over the others."""
    true = shares[shares["source"] == "clean"]
    bottom = [("prefix", corner, 56) for corner in CORNERS[1:]]
    rows = []
    for written, corner, height in [("prefix", CORNERS[0], 170), ("one step", CORNERS[0], 80), *bottom]:
        panels = [
            _panel(true, int(j), written, corner, height, first=not place)
            for place, j in enumerate(sorted(true["intermediate"].unique()))
        ]
        drawn = [panel for panel in panels if panel is not None]
        rows += [alt.hconcat(*drawn, spacing=22)] if drawn else []
    return dress(
        alt.vconcat(*rows, spacing=14),
        heading(
            "Whose answer a run gives once a donor's steps are written into its thought",
            f"Written: the donor's {one_site(true)} at all layers, of steps 0 to k or of step k alone",
            "Hybrid: the host's remaining operations on the donor's intermediate (numbered from 0, in the chain's "
            "order). Whiskers: 95% over clusters, for the lowest part",
            about_pooled(true) + "; counted over each panel",
            width=max((PANEL + 55) * true["intermediate"].nunique(), 400),
        ),
    )


def matched_sentence(shares: pd.DataFrame) -> str:
    """What the informative corner shows of each intermediate: peak hybrid share, the donor's at the end, a verdict.

    An answer is carried where its share's interval lies above WORTH (0.1), and above its share in the unpatched host
    and, where unrelated donors were swept, in theirs at the same place. The peak is chosen among all prefixes, so that
    its interval is a little narrow.
    """
    corner = shares[(shares["intermediate_is"] == "different") & (shares["answer_is"] == "different")]
    prefixes = corner[(corner["written"] == "prefix") & (corner["source"] == "clean")]
    if prefixes.empty:
        raise ValueError(
            "no pairs differ in both intermediate and answer, so nothing can be told apart; run configs/matched.toml"
        )
    said = []
    for (protocol, j), rows in prefixes.groupby(["protocol", "intermediate"]):
        hybrids = rows[rows["answer"] == "hybrid"].sort_values("step")
        donors = rows[rows["answer"] == "donor"].sort_values("step")
        peak, end = hybrids.iloc[int(hybrids["share"].argmax())], donors.iloc[-1]
        other = corner[(corner["protocol"] == protocol) & (corner["intermediate"] == j)]
        carried = _carried(peak, other), _carried(end, other)
        verdict = VERDICTS[carried] if peak["clusters"] > 1 else "cannot be judged from one cluster"
        said.append(
            f"Intermediate {j}: hybrid answers peak at {_share(peak)} with {_prefix(int(peak['step']))} written, and "
            f"the donor's answer has {_share(end)} with {_prefix(int(end['step']))} (n = {peak['n']} pairs): "
            f"the thought {verdict}."
        )
    return " ".join(said)


def _runs(table: pd.DataFrame) -> pd.DataFrame:
    """One row per patched run of matched pairs: where it was written, the answer it `given`s, and the host's own."""
    rows = table[
        ~table["kind"].isin(SEGMENTS) & (table["direction"] == "denoising") & table["metric"].isin(list(METRICS))
    ]
    rows = rows[rows["source"].isin(["clean", "unrelated"]) & rows["step"].notna()]
    rows = rows[rows[["layer", "step_set", "head", "freeze", "knockout", "n_latents", "read_step"]].isna().all(axis=1)]
    rows = rows[rows["edit"].str.match(KIND).fillna(False).astype(bool)]
    found = set(rows.loc[rows["source"] == "clean", "metric"])
    if missing := [metric for metric in METRICS if metric not in found]:
        raise ValueError(f"the table has no rows of matched pairs with metric {missing[0]}; run configs/matched.toml")
    parts = rows["edit"].str.extract(KIND).astype({"intermediate": "int64"})
    rows = rows.assign(**{name: parts[name] for name in CORNER})
    keys = ["protocol", "kind", "source", "draw", *CORNER, "cluster_id", "pair_id", "step", "step_last"]
    rows = rows.fillna({"draw": 0})  # a true donor has no draw, and would be lost from the index
    runs = rows.pivot(index=keys, columns="metric", values=["patched", "corrupted"])
    answers = pd.DataFrame({"given": _given(runs, "patched"), "before": _given(runs, "corrupted")}).reset_index()
    return answers.assign(given=_merged(answers, "given"), before=_merged(answers, "before"))


def _given(runs: pd.DataFrame, side: str) -> pd.Series:
    """Whose answer each run gives: the host's before the donor's before the hybrid, where they are one number."""
    given = pd.Series("other", index=runs.index)
    for metric, whose in reversed(METRICS.items()):
        given = given.mask(runs[(side, metric)] == 1, whose)
    return given


def _merged(runs: pd.DataFrame, column: str) -> pd.Series:
    """Host's and donor's answer as one where they are the same."""
    same = (runs["answer_is"] == "same") & runs[column].isin(["host", "donor"])
    hybrid_is_host = (runs["intermediate_is"] == "same") & (runs[column] == "hybrid")
    host = runs["answer_is"].map({"same": HOST_IS_DONOR, "different": "host"})
    return runs[column].mask(same | hybrid_is_host, host)


def _with_base_rate(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs by what was written: step 0 is one step and a prefix; with nothing written each pair counts once."""
    one, prefix = runs[runs["step"] == runs["step_last"]], runs[runs["step"] == 0]
    own = runs[runs["source"] == "clean"].drop_duplicates(["protocol", "kind", *CORNER, "pair_id"])
    empty = pd.Series(pd.NA, index=own.index, dtype="Int64")
    parts: list[pd.DataFrame] = [
        prefix.assign(written="prefix", step=prefix["step_last"]),
        one.assign(written="one step"),
        own.assign(written="nothing", step=empty, given=own["before"]),
    ]
    return pd.concat(parts, ignore_index=True).astype({"step": "Int64"})


def _panel(shares: pd.DataFrame, j: int, written: str, corner: tuple[str, str], height: int, first: bool) -> Any:
    """Stacked shares of one intermediate in one corner, by step; None where the table has no such pairs."""
    rows = shares[(shares[CORNER] == [j, *corner]).all(axis=1) & shares["written"].isin([written, "nothing"])]
    if not (rows["written"] == written).any():
        return None
    rows = rows.assign(order=rows["answer"].map(list(COLOURS).index)).sort_values(["written", "step", "order"])
    to = rows.groupby(["written", "step"], dropna=False)["share"].cumsum()
    lowest = rows["order"] == rows.groupby(["written", "step"], dropna=False)["order"].transform("min")
    rows = rows.assign(to=to, start=to - rows["share"], k=_labels(rows), lowest=lowest)
    order = list(dict.fromkeys(rows.sort_values("step", na_position="first")["k"]))
    what = "steps 0–k written" if written == "prefix" else "step k written"
    where = [f"{corner[0]} intermediate,", f"{corner[1]} answer; n = {rows['n'].max()}"]
    given = set(shares["answer"])
    colours = scale_of({answer: colour for answer, colour in COLOURS.items() if answer in given})
    y_axis = alt.Axis(format="%", tickCount=2 if height < 100 else 5)
    base = alt.Chart(rows).encode(x=alt.X("k:N", sort=order, title=None, axis=alt.Axis(labelAngle=0)))
    bars = base.mark_bar().encode(
        y=alt.Y("start:Q", title="share of runs" if first else None, axis=y_axis, scale=alt.Scale(domain=[0, 1])),
        y2="to:Q",
        color=alt.Color("answer:N", title="answer", scale=colours, legend=below(5, "left")),
        tooltip=["answer", "k", *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("share", "low", "high")), "n"],
    )
    whiskers = base.transform_filter(alt.datum.lowest).mark_rule(color="#222").encode(y="low:Q", y2="high:Q")
    title = alt.TitleParams([f"Intermediate {j}: {what}", *where], fontSize=11, anchor="start", fontWeight="normal")
    return (bars + whiskers).properties(width=PANEL, height=height, title=title)


def _labels(rows: pd.DataFrame) -> list[str]:
    """Which steps were written, as an axis names them."""
    spans = zip(rows["written"], rows["step"], strict=True)
    return ["none" if pd.isna(k) else f"0–{k}" if written == "prefix" and k else str(k) for written, k in spans]


def _carried(found: pd.Series, corner: pd.DataFrame) -> bool:
    """Whether a share's interval lies above WORTH, and above what the controls show of the same answer."""
    own = corner["written"] == "nothing"
    unrelated = (
        (corner["source"] == "unrelated") & (corner["written"] == found["written"]) & (corner["step"] == found["step"])
    )
    controls = corner[(own | unrelated.fillna(False)) & (corner["answer"] == found["answer"])]["share"]
    return bool(found["low"] > max(WORTH, controls.max()))


def _share(found: pd.Series) -> str:
    return f"{found['share']:.0%} [{found['low']:.0%}, {found['high']:.0%}]"


def _prefix(k: int) -> str:
    return f"steps 0–{k}" if k else "step 0"
