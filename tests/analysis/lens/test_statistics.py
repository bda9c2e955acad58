"""Shares of what is said: worked examples, against another implementation, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from codi_tracing.analysis.lens.statistics import (
    decodable,
    decodable_overall,
    match_tokens,
    mean_attention,
    mean_entropy,
    number_shares,
)


def value(question, index, step, rank, *, owner="own", role="intermediate", steps=3, layer=3, cluster=None):
    """A row of the lens's table of values."""
    return {
        "question_id": question, "cluster_id": cluster or question, "steps": steps, "owner": owner, "role": role,
        "ordinal": index, "value": 7.0, "step": step, "layer": layer, "rank": rank,
    }  # fmt: skip


def values(*rows) -> pd.DataFrame:
    return pd.DataFrame(rows).astype({"rank": "Int64", "ordinal": "Int64"})


@pytest.fixture
def three():
    """Of a: both said, in different steps; of b: one of two; of c: its only one, but no token."""
    return values(
        value("a", 0, 0, 9), value("a", 0, 1, 2), value("a", 1, 0, 5), value("a", 1, 1, 90),
        value("b", 0, 0, 1), value("b", 0, 1, 1), value("b", 1, 0, 6), value("b", 1, 1, 7),
        value("c", 0, 0, None, steps=2), value("c", 0, 1, None, steps=2),
        value("a", 0, 0, 1, owner="another"), value("a", 0, 0, 1, role="answer"), value("b", 0, 0, 1, layer=0),
    )  # fmt: skip


def test_all_of_a_questions_intermediates_must_be_said_somewhere_each_counts_by_itself(three):
    found = decodable(three, top=5).set_index(["measure", "owner", "steps"])
    assert found["share"].to_dict() == {
        ("all of them", "another", 3): 1.0, ("all of them", "own", 2): 0.0, ("all of them", "own", 3): 0.5,
        ("each of them", "another", 3): 1.0, ("each of them", "own", 2): 0.0, ("each of them", "own", 3): 0.75,
    }  # fmt: skip
    assert found.loc[("all of them", "own", 3), "n"] == 2


def test_more_tokens_say_no_less_and_other_layers_are_read_where_asked(three):
    shares = [
        decodable_overall(three, top).set_index(["measure", "owner"])["share"]["all of them", "own"]
        for top in (1, 5, 6)
    ]
    assert shares == [0.0, pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert decodable(three, 5, layer=0)["n"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="layer 9 is not in the table; it has 0 .* to 3"):
        decodable(three, 5, layer=9)


def test_intervals_of_independent_questions_are_those_of_a_bootstrap():
    rng = np.random.default_rng(0)
    hits = rng.random(60) < 0.3
    table = values(*(value(str(i), 0, 0, 1 if hit else 50, steps=2) for i, hit in enumerate(hits)))
    row = decodable_overall(table).query("measure == 'all of them'").iloc[0]
    expected = stats.bootstrap((hits.astype(float),), np.mean, n_resamples=9999, method="BCa", rng=1)
    assert row["share"] == hits.mean()
    assert row[["low", "high"]].tolist() == pytest.approx(list(expected.confidence_interval), abs=0.02)


def test_questions_of_one_cluster_are_no_independent_cases():
    apart = [value(str(i), 0, 0, 1 if i % 2 else 50, steps=2) for i in range(80)]
    together = [{**row, "cluster_id": str(i // 8)} for i, row in enumerate(apart)]
    narrow, wide = (decodable_overall(values(*rows)).iloc[0] for rows in (apart, together))
    assert narrow["high"] - narrow["low"] < 0.25
    assert wide["high"] - wide["low"] > 0.5  # as ten questions


def test_where_a_number_is_said_counts_by_place_and_leaves_out_what_is_no_token(three):
    found = number_shares(three, top=5).set_index(["number", "step", "layer"])
    assert found.loc[("intermediate 1", 0, 3), "share"] == 0.5
    assert found.loc[("intermediate 1", 0, 3), "median_rank"] == 5.0
    assert found.loc[("intermediate 2", 1, 3), "share"] == 0.0
    assert found.loc[("another's", 0, 3), "n"] == 1
    assert found["n"].max() == 2  # c's intermediate is no token


def test_only_whole_numbers_of_a_token_match_and_blanks_do_not_count():
    said = [" 7", "7.0", "07", "77", "seven", "-7", "7 7", "七"]
    says = pd.DataFrame(
        {"question_id": "a", "step": range(len(said)), "layer": 3, "rank": 1, "token": pd.array(said, dtype="str")}
    )
    found = match_tokens(says, pd.DataFrame({"question_id": ["a", "b"], "value": [7.0, 7.0]}))
    assert found.set_index("step")["rank"].notna().tolist() == [True, True, True, *[False] * 5]
    assert set(found["question_id"]) == {"a"}


def test_attention_is_averaged_over_layers_beside_what_even_spread_would_give():
    rows = [
        {"question_id": q, "cluster_id": q, "query": "EoT", "layer": layer, "key": key, "weight": w, "tokens": n}
        for q, shift in (("a", 0.0), ("b", 0.2))
        for layer in (0, 1)
        for key, w, n in (("words", 0.9 - shift - layer / 2, 3), ("BoT", 0.1 + shift + layer / 2, 1))
    ]
    found = mean_attention(pd.DataFrame(rows)).set_index("key")
    assert found["weight"].to_dict() == pytest.approx({"words": 0.55, "BoT": 0.45})
    assert found["even"].to_dict() == {"words": 0.75, "BoT": 0.25}
    by_layer = mean_attention(pd.DataFrame(rows), by_layer=True).set_index(["key", "layer"])["weight"]
    assert by_layer["BoT", 1] == pytest.approx(0.7)


def test_entropy_is_that_of_each_state_once_however_many_tokens_are_kept():
    says = pd.DataFrame(
        {"question_id": ["a", "a", "b"], "step": 0, "layer": 0, "rank": [1, 2, 1], "entropy": [1.0, 1.0, 2.0]}
    )
    found = mean_entropy(says, pd.DataFrame({"question_id": ["a", "b"], "cluster_id": ["a", "b"]}))
    assert found["entropy"].tolist() == [1.5]
    assert found["n"].tolist() == [2]


def test_a_table_without_a_column_and_solutions_without_intermediates_are_refused():
    with pytest.raises(ValueError, match="lacks the column 'steps'"):
        decodable(values(value("a", 0, 0, 1)).drop(columns="steps"))
    with pytest.raises(ValueError, match="no question has a solution of two or more annotated steps"):
        decodable(values(value("a", 0, 0, 1, role="answer")))
