"""The four corners: a question's answer with its own and with another question's thought.

Y(question, thought) is the logit difference with a run's question and a run's thought: `cc` and `xx` are the two
unpatched runs, `xc` writes the clean thought into the corrupted run, `cx` the corrupted thought into the clean run;
`cu` and `xu` write the thought of an unrelated question.
"""

from __future__ import annotations

import pandas as pd

from codi_tracing.analysis.statistics.ceiling import thought_rows
from codi_tracing.analysis.statistics.effects import pooled, pooled_shares
from codi_tracing.configs.vocabulary import DIRECTIONS

CORNERS = {
    "cc": ("clean", "clean"),
    "xc": ("corrupted", "clean"),
    "cx": ("clean", "corrupted"),
    "xx": ("corrupted", "corrupted"),
    "cu": ("clean", "unrelated"),
    "xu": ("corrupted", "unrelated"),
}
CORNER_METRICS = ["logit_difference", "answer_is_clean", "answer_is_corrupted"]


def corners(table: pd.DataFrame) -> pd.DataFrame:
    """One row per corner: mean logit difference with interval, and the shares of clean, corrupted and other answers.

    The two unpatched corners are always there, the others if they were swept.
    """
    runs = _corner_runs(table)
    runs = runs[runs["metric"].isin(CORNER_METRICS)]
    corner = ["protocol", "question", "thought"]
    means = pooled_shares(runs, runs["value"], [*corner, "metric"])
    rows = (
        means.pivot(index=corner, columns="metric", values="effect")
        .reindex(columns=CORNER_METRICS)
        .join(means[means["metric"] == "logit_difference"].set_index(corner)[["low", "high"]])
        .join(means.groupby(corner)[["n", "clusters"]].max())
        .rename(columns={"answer_is_clean": "answer_clean", "answer_is_corrupted": "answer_corrupted"})
        .reset_index()
    )
    names = {runs: name for name, runs in CORNERS.items()}
    named = rows.assign(
        corner=[names[runs] for runs in zip(rows["question"], rows["thought"], strict=True)],
        answer_other=1 - rows["answer_clean"] - rows["answer_corrupted"],
    )
    return named.sort_values("corner", key=lambda corner: corner.map(list(CORNERS).index), ignore_index=True)


def decomposition(table: pd.DataFrame, metric: str = "logit_difference") -> pd.DataFrame:
    """The contributions of thought and question as parts of cc − xx, pooled with intervals.

    Indirect (through the thought): xc − xx and cc − cx. Direct (past it): cx − xx and cc − xc. Interaction:
    cc − xc − cx + xx, zero if the two routes add up.
    """
    runs = _corner_runs(table)
    y = runs[runs["metric"] == metric].pivot_table(
        index=["pair_id", "cluster_id"], columns=["question", "thought"], values="value"
    )
    four = ("cc", "xc", "cx", "xx")
    if missing := [name for name in four if CORNERS[name] not in y]:
        raise ValueError(f"corner {missing[0]} is missing for metric {metric!r}; sweep 'thought' in both directions")
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
    order = [contrast for _, contrast in parts]
    return pooled(pd.concat(frames), ["part", "contrast"]).sort_values(
        "contrast", key=lambda names: names.map(order.index), ignore_index=True
    )


def _corner_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Every run of the corners: the patched `thought` rows, and the two unpatched runs of each."""
    rows = thought_rows(table)
    if rows.empty:
        raise ValueError("the table has no rows of site 'thought', so it has no corners; sweep that site too")
    host = rows["direction"].map({name: direction.host for name, direction in DIRECTIONS.items()})
    columns = ["protocol", "pair_id", "cluster_id", "metric", "question", "thought", "value"]
    patched = rows.assign(question=host, thought=rows["source"], value=rows["patched"])[columns]
    patched = patched[patched["thought"].isin(["clean", "corrupted", "unrelated"])]
    one = rows.drop_duplicates(["protocol", "pair_id", "metric"])
    unpatched = [one.assign(question=run, thought=run, value=one[run])[columns] for run in ("clean", "corrupted")]
    return pd.concat([patched, *unpatched], ignore_index=True)
