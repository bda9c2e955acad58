"""Matched pairs: with a donor's steps in its thought, does a run give the host's, the donor's or a hybrid answer?

The hybrid answer applies the host's remaining operations to the donor's intermediate: later steps may do so, or the
answer phase, which still sees the host's question. The control tells the two apart: the same writes with the question
hidden from the answer, where the answer phase has no operations to apply (off-distribution: `matched_control`).
"""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from codi_tracing.analysis.captions import about_pooled, one_site
from codi_tracing.analysis.figures.marks import below, numbers, scale_of
from codi_tracing.analysis.figures.style import BLUE, GREEN, ORANGE, dress, heading
from codi_tracing.analysis.rows import QUESTION_HIDDEN, plain, without
from codi_tracing.analysis.statistics.ceiling import Estimate
from codi_tracing.analysis.statistics.effects import pooled_shares
from codi_tracing.analysis.statistics.verdict import percent, share_of
from codi_tracing.configs.vocabulary import FEWEST_CLUSTERS, SEGMENTS

MATCHED_EDIT = r"^(?P<intermediate>\d+):(?P<intermediate_is>same|different):(?P<answer_is>same|different)$"
WHOSE_METRICS = {"answer_is_corrupted": "host", "answer_is_clean": "donor", "answer_is_hybrid": "hybrid"}
HOST_IS_DONOR = "host = donor"
# The donor is the clean run and the host the corrupted one, in the colours of the four corners.
WHOSE_COLOURS = {"hybrid": GREEN, "donor": BLUE, "host": ORANGE, HOST_IS_DONOR: "#9DB7CC", "other": "#DDDDDD"}
MATCHED_BY = ["intermediate", "intermediate_is", "answer_is"]
MATCHES = (("different", "different"), ("same", "different"), ("different", "same"), ("same", "same"))
MATCHED_WIDTH = 178  # pixels, so that three stand side by side on a printed page
HALF = 0.5  # accuracy under the knockout from which the control can tell who computes
HYBRID = (
    "A hybrid answer: the remaining operations are applied to the donor's intermediate, by later steps or by the "
    "answer phase."
)
CARRIED_SHARE = 0.1  # an answer is carried if the interval of its share is above this, and above the controls' share
CARRIED = {
    (True, True): "carries the intermediate, and at its end the answer",
    (True, False): "carries the intermediate",
    (False, True): "carries only the answer",
    (False, False): "carries neither",
}


def matched_data(table: pd.DataFrame) -> pd.DataFrame:
    """The share of each answer by the number of the intermediate, whether it and the answer match, and `written`.

    `written` is `one step` (k alone), `prefix` (steps 0 to k) or `nothing` (the unpatched host, step empty: the base
    rate). If donor and host have the same answer it counts once, as `host = donor`; a hybrid answer that equals the
    host's or the donor's counts as theirs; an undefined hybrid answer is never given. Draws of unrelated donors
    (`source`) are averaged. Shares lie between 0 and 1, their intervals (95 %) are over clusters.
    """
    return _shares(_runs(plain(table)))


def matched_control(table: pd.DataFrame) -> tuple[pd.DataFrame, Estimate] | None:
    """The same shares with the question hidden from the answer, and the accuracy of unpatched hosts under it.

    Of pairs that differ in both, whose hosts are right with the question seen; None where it was not run.
    """
    hidden = table[table["knockout"] == QUESTION_HIDDEN]
    alone = hidden[(hidden["source"] == "self") & (hidden["metric"] == "answer_is_corrupted")]
    alone = alone[(alone["direction"] == "denoising") & (alone["corrupted"] == 1)]
    alone = alone[alone["edit"].str.endswith(":".join(MATCHES[0])).fillna(False).astype(bool)]
    if alone.empty:
        return None
    return _shares(_runs(plain(hidden.assign(knockout=None)))), share_of(alone, alone["patched"])


def _shares(runs: pd.DataFrame) -> pd.DataFrame:
    """The shares of `matched_data` of these runs."""
    runs = _with_base_rate(runs)
    keys = ["protocol", "kind", "source", *MATCHED_BY, "written", "step"]
    given = runs.merge(pd.DataFrame({"answer": list(WHOSE_COLOURS)}), how="cross")
    shares = pooled_shares(given, (given["given"] == given["answer"]).astype(float), [*keys, "answer"])
    impossible = shares["answer"].map({"host": "same", "donor": "same", HOST_IS_DONOR: "different"})
    hybrid_is_host = (shares["answer"] == "hybrid") & (shares["intermediate_is"] == "same")
    shares = shares[(impossible != shares["answer_is"]) & ~hybrid_is_host]
    shares = shares.rename(columns={"effect": "share"}).drop(columns=["mean", "median"])
    return shares.sort_values([*keys, "answer"], kind="stable", ignore_index=True)


def matched_chart(shares: pd.DataFrame) -> Any:
    """Stacked shares by step: pairs that differ in both, by prefix and by step, above the other pairs."""
    true = shares[shares["source"] == "clean"]
    bottom = [("prefix", corner, 56) for corner in MATCHES[1:]]
    rows = []
    for written, corner, height in [("prefix", MATCHES[0], 170), ("one step", MATCHES[0], 80), *bottom]:
        panels = [
            _panel(true, int(j), written, corner, height, first=not column)
            for column, j in enumerate(sorted(true["intermediate"].unique()))
        ]
        drawn = [panel for panel in panels if panel is not None]
        rows += [alt.hconcat(*drawn, spacing=22)] if drawn else []
    return dress(
        alt.vconcat(*rows, spacing=14),
        heading(
            "Whose answer a run gives with a donor's steps written into its thought",
            f"Written: the donor's {one_site(true)} at all layers, of steps 0 to k or of step k alone",
            "Hybrid: the host's remaining operations on the donor's intermediate (numbered from 0, in the chain's "
            "order). Whiskers: 95% over clusters, for the lowest part",
            about_pooled(true) + "; counted over each panel",
            width=max((MATCHED_WIDTH + 55) * true["intermediate"].nunique(), 400),
        ),
    )


def matched_sentence(shares: pd.DataFrame, control: tuple[pd.DataFrame, Estimate] | None = None) -> str:
    """Of pairs that differ in both, by intermediate: peak hybrid share, the donor's share at the end, and a verdict.

    An answer is carried if its share's interval lies above 0.1, above its share in the unpatched host and, if unrelated
    donors were swept, above theirs with the same steps. The peak is the largest of all prefixes, so its interval is
    slightly too narrow.
    """
    corner = shares[(shares["intermediate_is"] == "different") & (shares["answer_is"] == "different")]
    prefixes = corner[(corner["written"] == "prefix") & (corner["source"] == "clean")]
    if prefixes.empty:
        raise ValueError(
            "no pairs differ in both intermediate and answer, so nothing can be told apart; run configs/matched.toml"
        )
    sentences = []
    for (protocol, j), rows in prefixes.groupby(["protocol", "intermediate"]):
        hybrids = rows[rows["answer"] == "hybrid"].sort_values("step")
        donors = rows[rows["answer"] == "donor"].sort_values("step")
        peak, end = hybrids.iloc[int(hybrids["share"].argmax())], donors.iloc[-1]
        other = corner[(corner["protocol"] == protocol) & (corner["intermediate"] == j)]
        carried = _carried(peak, other), _carried(end, other)
        few = peak["clusters"] < FEWEST_CLUSTERS
        verdict = f"cannot be judged from {peak['clusters']} clusters" if few else CARRIED[carried]
        sentences.append(
            f"Intermediate {j}: hybrid answers peak at {_share(peak)} with {_prefix(int(peak['step']))} written "
            f"(n = {peak['n']} pairs), and the donor's answer has {_share(end)} with {_prefix(int(end['step']))} "
            f"(n = {end['n']}): the thought {verdict}."
        )
        if carried[0] and not few:
            sentences.append(_who_computes(int(peak["intermediate"]), int(peak["step"]), control))
    return " ".join([HYBRID, *sentences])


def _who_computes(j: int, step: int, control: tuple[pd.DataFrame, Estimate] | None) -> str:
    """Whether later steps or the answer phase apply the host's operations, as far as the control can tell."""
    if control is None:
        return "Which of the two was not tested (the question was not hidden from the answer)."
    shares, accuracy = control
    rows = shares[(shares[MATCHED_BY] == [j, *MATCHES[0]]).all(axis=1) & (shares["answer"] == "hybrid")]
    rows = rows[(rows["written"] == "prefix") & (rows["source"] == "clean") & (rows["step"] == step)]
    alone = f"unpatched hosts then answer {percent(accuracy)} correctly (n = {accuracy.n})"
    if rows.empty or not accuracy.low >= HALF:
        return f"The control cannot tell which: with the question hidden from the answer, {alone}."
    row = rows.iloc[0]
    hidden = f"with the question hidden from the answer they are {_share(row)} (n = {row['n']}), and {alone}"
    if row["low"] > CARRIED_SHARE:
        return f"Later steps compute on it: {hidden}."
    if row["high"] <= CARRIED_SHARE:
        return f"The answer phase applies the operations: {hidden}."
    return f"The control does not decide: {hidden}."


def _runs(table: pd.DataFrame) -> pd.DataFrame:
    """One row per patched run of matched pairs: its site, the answer `given`, and the host's own (`before`)."""
    rows = without(table, "layer", "head")
    rows = rows[~rows["kind"].isin(SEGMENTS) & (rows["direction"] == "denoising")]
    rows = rows[rows["metric"].isin(list(WHOSE_METRICS)) & rows["source"].isin(["clean", "unrelated"])]
    rows = rows[rows["step"].notna()]
    rows = rows[rows["edit"].str.match(MATCHED_EDIT).fillna(False).astype(bool)]
    swept = set(rows.loc[rows["source"] == "clean", "metric"])
    if missing := [metric for metric in WHOSE_METRICS if metric not in swept]:
        raise ValueError(f"the table has no rows of matched pairs with metric {missing[0]}; run configs/matched.toml")
    parts = rows["edit"].str.extract(MATCHED_EDIT).astype({"intermediate": "int64"})
    rows = rows.assign(**{name: parts[name] for name in MATCHED_BY})
    keys = ["protocol", "kind", "source", "draw", *MATCHED_BY, "cluster_id", "pair_id", "step", "step_last"]
    rows = rows.fillna({"draw": 0})  # a true donor has no draw, and NA would be lost from the index
    runs = rows.pivot(index=keys, columns="metric", values=["patched", "corrupted"])
    answers = pd.DataFrame({"given": _given(runs, "patched"), "before": _given(runs, "corrupted")}).reset_index()
    return answers.assign(given=_merged(answers, "given"), before=_merged(answers, "before"))


def _given(runs: pd.DataFrame, side: str) -> pd.Series:
    """Whose answer each run gives; the host's before the donor's before the hybrid if they are the same number."""
    given = pd.Series("other", index=runs.index)
    for metric, whose in reversed(WHOSE_METRICS.items()):
        given = given.mask(runs[(side, metric)] == 1, whose)
    return given


def _merged(runs: pd.DataFrame, column: str) -> pd.Series:
    """The answers, with host and donor as one if theirs are the same."""
    same = (runs["answer_is"] == "same") & runs[column].isin(["host", "donor"])
    hybrid_is_host = (runs["intermediate_is"] == "same") & (runs[column] == "hybrid")
    host = runs["answer_is"].map({"same": HOST_IS_DONOR, "different": "host"})
    return runs[column].mask(same | hybrid_is_host, host)


def _with_base_rate(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs by `written`: step 0 is one step and a prefix; unpatched, each pair counts once."""
    one, prefix = runs[runs["step"] == runs["step_last"]], runs[runs["step"] == 0]
    own = runs[runs["source"] == "clean"].drop_duplicates(["protocol", "kind", *MATCHED_BY, "pair_id"])
    empty = pd.Series(pd.NA, index=own.index, dtype="Int64")
    parts: list[pd.DataFrame] = [
        prefix.assign(written="prefix", step=prefix["step_last"]),
        one.assign(written="one step"),
        own.assign(written="nothing", step=empty, given=own["before"]),
    ]
    return pd.concat(parts, ignore_index=True).astype({"step": "Int64"})


def _panel(shares: pd.DataFrame, j: int, written: str, corner: tuple[str, str], height: int, first: bool) -> Any:
    """Stacked shares of one intermediate, by step; None if the table has no such pairs."""
    rows = shares[(shares[MATCHED_BY] == [j, *corner]).all(axis=1) & shares["written"].isin([written, "nothing"])]
    if not (rows["written"] == written).any():
        return None
    rows = rows.assign(order=rows["answer"].map(list(WHOSE_COLOURS).index)).sort_values(["written", "step", "order"])
    to = rows.groupby(["written", "step"], dropna=False)["share"].cumsum()
    lowest = rows["order"] == rows.groupby(["written", "step"], dropna=False)["order"].transform("min")
    rows = rows.assign(to=to, start=to - rows["share"], k=_labels(rows), lowest=lowest)
    order = list(dict.fromkeys(rows.sort_values("step", na_position="first")["k"]))
    what = "steps 0–k written" if written == "prefix" else "step k written"
    where = [f"{corner[0]} intermediate,", f"{corner[1]} answer; n = {rows['n'].max()}"]
    given = set(shares["answer"])
    colours = scale_of({answer: colour for answer, colour in WHOSE_COLOURS.items() if answer in given})
    y_axis = alt.Axis(format="%", tickCount=2 if height < 100 else 5)
    base = alt.Chart(rows).encode(x=alt.X("k:N", sort=order, title=None, axis=alt.Axis(labelAngle=0)))
    bars = base.mark_bar().encode(
        y=alt.Y("start:Q", title="share of runs" if first else None, axis=y_axis, scale=alt.Scale(domain=[0, 1])),
        y2="to:Q",
        color=alt.Color("answer:N", title="answer", scale=colours, legend=below(5, "left")),
        tooltip=["answer", "k", *numbers("share", "low", "high", form=".1%"), "n"],
    )
    whiskers = base.transform_filter(alt.datum.lowest).mark_rule(color="#222").encode(y="low:Q", y2="high:Q")
    title = alt.TitleParams([f"Intermediate {j}: {what}", *where], fontSize=11, anchor="start", fontWeight="normal")
    return (bars + whiskers).properties(width=MATCHED_WIDTH, height=height, title=title)


def _labels(rows: pd.DataFrame) -> list[str]:
    """The written steps, as labels of an axis."""
    spans = zip(rows["written"], rows["step"], strict=True)
    return ["none" if pd.isna(k) else f"0–{k}" if written == "prefix" and k else str(k) for written, k in spans]


def _carried(row: pd.Series, corner: pd.DataFrame) -> bool:
    """Whether a share's interval lies above CARRIED_SHARE, and above the controls' shares of the same answer."""
    own = corner["written"] == "nothing"
    same = (corner["written"] == row["written"]) & (corner["step"] == row["step"])
    unrelated = (corner["source"] == "unrelated") & same.fillna(False)
    controls = corner[(own | unrelated) & (corner["answer"] == row["answer"])]["share"]
    return bool(row["low"] > max(CARRIED_SHARE, controls.max()))


def _share(row: pd.Series) -> str:
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:.0%}, {row['high']:.0%}]"
    return f"{row['share']:.0%}{interval}"


def _prefix(k: int) -> str:
    return f"steps 0–{k}" if k else "step 0"
