"""Conclusions: the ceiling, the critical sites, the four corners, and the verdict that they allow.

Y(question, thought) is the logit difference with a run's question and a run's thought: `cc` and `xx` are the two
unpatched runs, `xc` writes the clean thought into the corrupted run, `cx` the corrupted thought into the clean run;
`cu` and `xu` write the thought of an unrelated question.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from codi_tracing.analysis.rows import OTHER_RUN, from_other_run, main_protocol, plain
from codi_tracing.analysis.statistics.effects import effect, pooled

LOW_CEILING = 0.5  # under it, the thought does not carry the edit
HARMFUL = 0.5  # share of runs from which an unrelated thought takes their answer
CORNERS = {
    "cc": ("clean", "clean"),
    "xc": ("corrupted", "clean"),
    "cx": ("clean", "corrupted"),
    "xx": ("corrupted", "corrupted"),
    "cu": ("clean", "unrelated"),
    "xu": ("corrupted", "unrelated"),
}


class Estimate(NamedTuple):
    """A pooled effect, its 95 % interval over clusters, and what it rests on."""

    effect: float
    low: float
    high: float
    n: int
    clusters: int

    def __str__(self) -> str:
        return f"{self.effect:z.2f} [{self.low:z.2f}, {self.high:z.2f}]"


class Verdict(NamedTuple):
    """What the corners say of the thought: a label, a sentence with the numbers, and the numbers."""

    label: str
    sentence: str
    denoising: Estimate | None
    noising: Estimate | None
    harm: float


def ceiling(table: pd.DataFrame, direction: str = "denoising", metric: str = "logit_difference") -> Estimate:
    """The effect of the whole thought of the pair's other run: what no site of it can be expected to exceed."""
    rows = thoughts(table)
    rows = rows[(rows["direction"] == direction) & (rows["metric"] == metric) & from_other_run(rows)]
    if rows.empty:
        wanted = f"site 'thought', source {OTHER_RUN.get(direction)!r}, direction {direction!r}, metric {metric!r}"
        raise ValueError(f"the table has no rows of {wanted}, so the ceiling is unknown; sweep them too")
    found = pooled(effect(rows), ["direction"]).iloc[0]
    effect_, low, high = (float(found[name]) for name in ("effect", "low", "high"))
    return Estimate(effect_, low, high, n=int(found["n"]), clusters=int(found["clusters"]))


def thoughts(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of whole thoughts exchanged, nothing else done to the run."""
    rows = plain(main_protocol(table))
    return rows[rows["kind"] == "thought"]


def _thoughts(table: pd.DataFrame) -> pd.DataFrame:
    """Every run of the corners: the patched `thought` rows, and the unpatched runs that they carry as references."""
    rows = thoughts(table)
    if rows.empty:
        raise ValueError("the table has no rows of site 'thought', so it has no corners; sweep that site too")
    host = rows["direction"].map({"denoising": "corrupted", "noising": "clean"})
    keep = ["protocol", "pair_id", "cluster_id", "metric", "question", "thought", "value"]
    patched = rows.assign(question=host, thought=rows["source"], value=rows["patched"])[keep]
    patched = patched[patched["thought"].isin(["clean", "corrupted", "unrelated"])]
    unpatched = rows.drop_duplicates(["protocol", "pair_id", "metric"])
    runs = [unpatched.assign(question=run, thought=run, value=unpatched[run])[keep] for run in ("clean", "corrupted")]
    return pd.concat([patched, *runs], ignore_index=True)


def corners(table: pd.DataFrame) -> pd.DataFrame:
    """One row per corner: mean logit difference with interval, and the shares of clean, corrupted and other answers.

    The two unpatched corners are always there, the others where they were swept.
    """
    runs = _thoughts(table)
    read = ["logit_difference", "answer_is_clean", "answer_is_corrupted"]
    runs = runs[runs["metric"].isin(read)].assign(numerator=lambda rows: rows["value"], denominator=1.0)
    place = ["protocol", "question", "thought"]
    means = pooled(runs, [*place, "metric"])
    rows = (
        means.pivot(index=place, columns="metric", values="effect")
        .reindex(columns=read)
        .join(means[means["metric"] == read[0]].set_index(place)[["low", "high"]])
        .join(means.groupby(place)[["n", "clusters"]].max())
        .rename(columns={"answer_is_clean": "answer_clean", "answer_is_corrupted": "answer_corrupted"})
        .reset_index()
    )
    names = {place: name for name, place in CORNERS.items()}
    named = rows.assign(
        corner=[names[place] for place in zip(rows["question"], rows["thought"], strict=True)],
        answer_other=1 - rows["answer_clean"] - rows["answer_corrupted"],
    )
    return named.sort_values("corner", key=lambda corner: corner.map(list(CORNERS).index), ignore_index=True)


def decomposition(table: pd.DataFrame, metric: str = "logit_difference") -> pd.DataFrame:
    """What the thought and the question each contribute, as parts of cc − xx, pooled with intervals.

    Indirect (through the thought): xc − xx and cc − cx. Direct (past it): cx − xx and cc − xc. Interaction:
    cc − xc − cx + xx, zero where the two routes add up.
    """
    runs = _thoughts(table)
    y = runs[runs["metric"] == metric].pivot_table(
        index=["pair_id", "cluster_id"], columns=["question", "thought"], values="value"
    )
    four = ("cc", "xc", "cx", "xx")
    if lacking := [name for name in four if CORNERS[name] not in y]:
        raise ValueError(f"corner {lacking[0]} is missing for metric {metric!r}; sweep 'thought' in both directions")
    cc, xc, cx, xx = (y[CORNERS[name]] for name in four)
    parts = {
        ("indirect", "xc − xx"): xc - xx,
        ("indirect", "cc − cx"): cc - cx,
        ("direct", "cx − xx"): cx - xx,
        ("direct", "cc − xc"): cc - xc,
        ("interaction", "cc − xc − cx + xx"): cc - xc - cx + xx,
    }
    frames = [
        pd.DataFrame({"part": part, "contrast": contrast, "numerator": values, "denominator": cc - xx}).reset_index()
        for (part, contrast), values in parts.items()
    ]
    order = {contrast: i for i, (_, contrast) in enumerate(parts)}
    return pooled(pd.concat(frames), ["part", "contrast"]).sort_values(
        "contrast", key=lambda names: names.map(order), ignore_index=True
    )


def harm(table: pd.DataFrame) -> float:
    """Share of runs, both directions together, that lose their own answer to an unrelated thought; NaN if not measured.

    Only runs that gave their answer unpatched are counted.
    """
    rows = thoughts(table)
    rows = rows[rows["source"] == "unrelated"]
    host = rows["direction"].map({"denoising": "corrupted", "noising": "clean"})
    rows = rows[rows["metric"] == "answer_is_" + host]
    unpatched = rows["clean"].where(rows["direction"] == "noising", rows["corrupted"])
    kept = rows.loc[unpatched == 1, "patched"]
    return float(1 - kept.mean())


def verdict(table: pd.DataFrame, low_ceiling: float = LOW_CEILING) -> Verdict:
    """Read the corners: unused; necessary, not sufficient; redundant with the question; or the answer passes through.

    A ceiling is low under `low_ceiling`; an unrelated thought is harmful where at least half of the runs lose their
    answer to it.
    """
    try:
        denoising, noising = (ceiling(table, direction) for direction in ("denoising", "noising"))
    except ValueError as error:
        return Verdict("undecided", f"Undecided: {error}.", None, None, harm(table))
    lost = harm(table)
    rows = thoughts(table)
    rows = rows[rows["metric"] == "logit_difference"]
    gap = (rows["clean"] - rows["corrupted"]).mean()
    numbers = (
        f"the clean thought moves the corrupted run {denoising} of the way to the clean run, the corrupted thought "
        f"moves the clean run {noising} of the way to the corrupted run, and "
        + _about_harm(rows, lost)
        + f" (n = {denoising.n} pairs, {denoising.clusters} clusters; 1 is all the way)."
    )
    # Where the unpatched runs do not tell the two answers apart, a share of their gap says nothing.
    label = _label(denoising.effect, noising.effect, lost, low_ceiling) if gap > 0 else "undecided"
    meaning = {
        "the answer passes through the thought": "The answer passes through the thought",
        "redundant with the question": "The thought is redundant with the question: it suffices, but is not needed",
        "necessary, not sufficient": "The thought is necessary but not sufficient: without it the answer is lost, yet "
        "it does not carry the difference between the two questions",
        "unused": "The thought is unused: the answer depends neither on which thought it reads nor on having its own",
        "undecided": "Undecided",
    }[label]
    return Verdict(label, f"{meaning}: {numbers}", denoising, noising, lost)


def _about_harm(exchanged: pd.DataFrame, lost: float) -> str:
    """What unrelated thoughts do to the answers, or why that is not known."""
    if not np.isnan(lost):
        return f"an unrelated thought takes {lost:.0%} of runs' answers"
    tried = (exchanged["source"] == "unrelated").any()
    return "no unpatched run gives its key, so none can lose it" if tried else "no unrelated thought was tried"


def _label(denoising: float, noising: float, lost: float, low: float) -> str:
    if np.isnan(denoising) or np.isnan(noising):
        return "undecided"
    if denoising >= low:
        return "the answer passes through the thought" if noising >= low else "redundant with the question"
    if noising >= low or lost >= HARMFUL:
        return "necessary, not sufficient"
    return "undecided" if np.isnan(lost) else "unused"
