"""Statistics of the lens: how often known numbers are among a state's likeliest tokens; mean entropy and attention.

The tables are those of `codi lens`; patching/lens/tables.py lists their columns. Step -1 is BoT, layer -1 a step's
input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from codi_tracing.analysis.statistics.effects import Intervals, pooled
from codi_tracing.analysis.statistics.inference import cluster_share_intervals, ratio_intervals

TOP = 5  # a number among so many likeliest tokens counts as decoded, as in the CODI paper
NUMBER = r"\s*(-?[0-9]+(?:\.[0-9]+)?)\s*"
STATE = ["step", "layer"]


def match_tokens(says: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """Find numbers among decoded tokens: `values`, at every state of `says`, with the `rank` of the first equal token.

    Tokens are compared as numbers, without blanks: ` 12`, `12` and `12.0` are all 12, `twelve` is not. The rank is
    missing if no decoded token equals the number. For tokens from other programs; the tables of `codi lens` have every
    number's rank already.
    """
    check_columns(says, ["question_id", *STATE, "rank", "token"])
    check_columns(values, ["question_id", "value"])
    numbers = pd.to_numeric(says["token"].str.extract(f"^{NUMBER}$", expand=False))
    first = (
        says.assign(value=numbers)
        .dropna(subset="value")
        .groupby(["question_id", *STATE, "value"], as_index=False)["rank"]
        .min()
    )
    states = says[["question_id", *STATE]].drop_duplicates()
    at_states = values.drop(columns=[*STATE, "rank"], errors="ignore").merge(states, on="question_id")
    matched = at_states.merge(first, on=["question_id", *STATE, "value"], how="left")
    return matched.astype({"rank": "Int64"})


def decodable(values: pd.DataFrame, top: int = TOP, layer: int | None = None) -> pd.DataFrame:
    """Share of questions whose intermediates are among the `top` likeliest tokens of some latent, by number of steps.

    `measure` is `all of them` (a question counts if all its intermediates are decodable) or `each of them` (the share
    of its intermediates, mean over questions); `owner` `another` is the chance level, another question's intermediates.
    `layer` is the last by default. Shares with 95 % intervals over clusters. Questions whose solution has one
    step have no intermediates and are left out.
    """
    check_columns(values, ["question_id", "cluster_id", "steps", "owner", "role", "ordinal", "value", "layer", "rank"])
    rows = values[(values["role"] == "intermediate") & (values["layer"] == last_layer(values, layer))]
    if rows.empty:
        raise ValueError(
            "no question has a solution of two or more annotated steps, so there are no intermediates to find; "
            "give pairs with a chain, or GSM8K's annotated answers"
        )
    of_question = ["owner", "steps", "cluster_id", "question_id"]
    hit = (rows["rank"] <= top).fillna(False).astype(float)
    each = rows.assign(hit=hit).groupby([*of_question, "ordinal"])["hit"].max().groupby(level=of_question)
    shares = {"all of them": each.min(), "each of them": each.mean()}
    parts = [part.reset_index(name="numerator").assign(measure=name) for name, part in shares.items()]
    cases = pd.concat(parts, ignore_index=True).rename(columns={"question_id": "pair_id"}).assign(denominator=1.0)
    return mean_of(cases, ["measure", "owner", "steps"]).assign(top=top)


def number_first(says: pd.DataFrame) -> pd.Series:
    """By step (-1 is BoT): the share of questions whose likeliest token at that latent is a number."""
    check_columns(says, ["question_id", "step", "rank", "token"])
    first = says[says["rank"] == 1]
    return first["token"].str.fullmatch(NUMBER).astype(float).groupby(first["step"]).mean()


def decodable_overall(values: pd.DataFrame, top: int = TOP, layer: int | None = None) -> pd.DataFrame:
    """`decodable` over solutions of any length at once."""
    return decodable(values.assign(steps=0), top, layer).drop(columns="steps")


def number_shares(values: pd.DataFrame, top: int = TOP) -> pd.DataFrame:
    """Share of questions in which a number is among the `top` likeliest tokens, by layer and step, with median rank.

    `number` is `intermediate 1`, `intermediate 2`, …, `answer`, and `another's` for all intermediates of another
    question, the chance level. Numbers that are no single token are left out; `n` counts the others.
    """
    check_columns(values, ["question_id", "cluster_id", "owner", "role", "ordinal", *STATE, "rank"])
    refuse_empty(values)
    known = values.dropna(subset="rank")
    if known.empty:
        raise ValueError("the table has no number that is a single token, so none can be looked for")
    ordinal = "intermediate " + (known["ordinal"] + 1).astype("str")
    number = ordinal.where(known["role"] == "intermediate", "answer").where(known["owner"] == "own", "another's")
    cases = known.assign(
        number=number, numerator=(known["rank"] <= top).astype(float), denominator=1.0, pair_id=known["question_id"]
    )
    shares = mean_of(cases, ["number", *STATE]).assign(top=top)
    medians = cases.astype({"rank": float}).groupby(["number", *STATE])["rank"].median().rename("median_rank")
    return shares.merge(medians.reset_index(), on=["number", *STATE])


def mean_entropy(says: pd.DataFrame, clusters: pd.DataFrame) -> pd.DataFrame:
    """Mean entropy (nats) of the next token by layer and step, with its interval; `clusters` are the questions."""
    check_columns(says, ["question_id", *STATE, "rank", "entropy"])
    first = says[says["rank"] == 1].merge(clusters[["question_id", "cluster_id"]], on="question_id")
    cases = first.assign(numerator=first["entropy"], denominator=1.0, pair_id=first["question_id"])
    return mean_of(cases, STATE, ratio_intervals).rename(columns={"share": "entropy"})


def mean_attention(attention: pd.DataFrame, by_layer: bool = False) -> pd.DataFrame:
    """Mean attention from each query to each group of tokens, over questions, heads and layers, or layer by layer.

    `even` is the group's attention if every token that the query sees got the same.
    """
    check_columns(attention, ["question_id", "cluster_id", "query", "layer", "key", "weight", "tokens"])
    keys = ["query", "key", *(["layer"] if by_layer else [])]
    seen = attention.groupby(["question_id", "query", "layer"])["tokens"].transform("sum")
    cases = attention.assign(
        numerator=attention["weight"],
        denominator=1.0,
        pair_id=attention["question_id"],
        even=attention["tokens"] / seen,
    )
    means = cases.groupby(keys, as_index=False)["even"].mean()
    return mean_of(cases, keys).rename(columns={"share": "weight"}).merge(means, on=keys)


def mean_of(cases: pd.DataFrame, keys: Sequence[str], intervals: Intervals = cluster_share_intervals) -> pd.DataFrame:
    """Means over questions, by default of shares, with intervals over their clusters."""
    means = pooled(cases, list(keys), intervals=intervals)
    return means[[*keys, "effect", "low", "high", "n", "clusters"]].rename(columns={"effect": "share"})


def refuse_empty(values: pd.DataFrame) -> None:
    """ValueError where there is no number to look for."""
    if values.empty:
        raise ValueError("the table has no rows: there is no question, or none that is answered correctly")


def last_layer(values: pd.DataFrame, layer: int | None) -> int:
    """`layer`, which the table must have, or the last layer."""
    refuse_empty(values)
    layers = np.sort(values["layer"].unique())
    if layer is not None and layer not in layers:
        raise ValueError(f"layer {layer} is not in the table; it has {layers[0]} (what is fed) to {layers[-1]}")
    return int(layers[-1]) if layer is None else layer


def check_columns(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """ValueError where a column is missing."""
    if missing := [name for name in columns if name not in frame]:
        raise ValueError(
            f"the table lacks the column {missing[0]!r}; expected {', '.join(columns)}, as `codi lens` writes"
        )
