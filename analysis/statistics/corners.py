"""The four corners: a question's answer with its own and with another question's thought.

Y(question, thought) is read with a run's question and a run's thought: `cc` and `xx` are the two unpatched runs, `xc`
writes the clean thought into the corrupted run, `cx` the corrupted thought into the clean run; `cu` and `xu` write the
thought of an unrelated question.
"""

from __future__ import annotations

import pandas as pd

from codi_tracing.analysis.statistics.ceiling import thought_rows
from codi_tracing.analysis.statistics.effects import pooled
from codi_tracing.analysis.statistics.measures import answered_pairs, rows_of_metric, shares_of
from codi_tracing.configs.vocabulary import DIRECTIONS

CORNERS = {
    "cc": ("clean", "clean"),
    "xc": ("corrupted", "clean"),
    "cx": ("clean", "corrupted"),
    "xx": ("corrupted", "corrupted"),
    "cu": ("clean", "unrelated"),
    "xu": ("corrupted", "unrelated"),
}
CORNER_ANSWERS = ("clean", "corrupted", "other")
ROWS = {True: "answered pairs", False: "all pairs whose two runs answer differently"}


def corners(table: pd.DataFrame) -> pd.DataFrame:
    """The shares of the model's own clean, corrupted and other answers in each corner, with intervals.

    `pairs` is `answered pairs`, or all pairs whose two runs answer differently, as second rows where these are more.
    The two unpatched corners are always there, the others if they were swept. Columns `answer_clean`, `low_clean`, ….
    """
    parts = [_corner_shares(table, answered) for answered in (True, False)]
    if parts[0].empty and parts[1].empty:
        raise ValueError("no pair's two unpatched runs decode two different answers, so there are no corners")
    if len(parts[0]) and parts[0]["n"].max() == parts[1]["n"].max():
        parts = parts[:1]
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def _corner_shares(table: pd.DataFrame, answered: bool) -> pd.DataFrame:
    runs = _corner_runs(rows_of_metric(table, "gives_clean", "gives_corrupted"))
    runs = runs.pivot_table(
        index=["protocol", "pair_id", "cluster_id", "question", "thought", "draw"], columns="metric", values="value"
    ).dropna()
    runs.columns = ["clean", "corrupted"]
    runs = runs.reset_index()
    same = runs[(runs["clean"] == 1) & (runs["corrupted"] == 1)]["pair_id"].unique()
    chosen = runs["pair_id"].isin(answered_pairs(table)) if answered else ~runs["pair_id"].isin(same)
    if not chosen.any():
        return pd.DataFrame()
    runs = runs[chosen].assign(other=lambda kept: 1 - kept["clean"] - kept["corrupted"])
    shares = shares_of(runs, ["protocol", "question", "thought"], CORNER_ANSWERS)
    shares = shares.rename(columns={answer: f"answer_{answer}" for answer in CORNER_ANSWERS})
    corner_of = {pair: name for name, pair in CORNERS.items()}
    corner = [corner_of[both] for both in zip(shares["question"], shares["thought"], strict=True)]
    shares = shares.assign(corner=corner, pairs=ROWS[answered])
    return shares.sort_values("corner", key=lambda corner: corner.map(list(CORNERS).index), ignore_index=True)


def decomposition(table: pd.DataFrame, metric: str = "probability_clean") -> pd.DataFrame:
    """The contributions of thought and question to a metric as parts of cc − xx, of the answered pairs, with intervals.

    Indirect (through the thought): xc − xx and cc − cx. Direct (past it): cx − xx and cc − xc. Interaction:
    cc − xc − cx + xx, zero if the two routes add up. On the probability of the clean answer, xc − xx is the transfer of
    denoising and cc − cx the disruption of noising.
    """
    runs = _corner_runs(rows_of_metric(table[table["pair_id"].isin(answered_pairs(table))], metric))
    y = runs.pivot_table(index=["pair_id", "cluster_id"], columns=["question", "thought"], values="value")
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
    """Every run of the corners: the patched `thought` rows, and the two unpatched runs of each pair."""
    rows = thought_rows(table)
    if rows.empty:
        raise ValueError("the table has no rows of site 'thought', so it has no corners; sweep that site too")
    host = rows["direction"].map({name: direction.host for name, direction in DIRECTIONS.items()})
    columns = ["protocol", "pair_id", "cluster_id", "metric", "question", "thought", "draw", "value"]
    rows = rows.assign(draw=rows["draw"].fillna(0))
    patched = rows.assign(question=host, thought=rows["source"], value=rows["patched"])[columns]
    patched = patched[patched["thought"].isin(["clean", "corrupted", "unrelated"])]
    one = rows.drop_duplicates(["protocol", "pair_id", "metric"]).assign(draw=0)
    unpatched = [one.assign(question=run, thought=run, value=one[run])[columns] for run in ("clean", "corrupted")]
    return pd.concat([patched, *unpatched], ignore_index=True)
