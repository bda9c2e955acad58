"""Knockouts: counted against the host's own key, named in words, and marked as off-distribution."""

import json

import pandas as pd
import pytest

from codi_tracing.analysis.experiments.knockout import edge_name, knockout_chart, knockout_data, knockout_sentence
from codi_tracing.analysis.table import COLUMNS, check_table


def knockout_runs(kept: dict[str, list[int]]) -> pd.DataFrame:
    """Runs by knockout, one per pair and direction; 1 where the host still gives its key. All are right unpatched."""
    rows = []
    for knockout, answers in kept.items():
        for pair, right in enumerate(answers):
            for direction, metric in (("denoising", "answer_is_corrupted"), ("noising", "answer_is_clean")):
                about = {"pair_id": str(pair), "cluster_id": str(pair), "protocol": "latent_loop", "kind": "thought"}
                run = {
                    "direction": direction,
                    "source": "self",
                    "knockout": knockout,
                    "metric": metric,
                    "patched": right,
                }
                rows.append({**about, **run, "clean": float(metric == "answer_is_clean"),
                             "corrupted": float(metric == "answer_is_corrupted")})  # fmt: skip
    return check_table(pd.DataFrame(rows).reindex(columns=list(COLUMNS)))


def test_accuracy_is_the_share_of_hosts_that_keep_their_own_key_in_the_order_of_the_sweep():
    found = knockout_data(knockout_runs({"answer-question": [1, 1, 0, 1], "4-1": [0, 0, 0, 0]}))
    assert found["knockout"].tolist() == ["answer-question", "4-1"]
    assert found["effect"].tolist() == [0.75, 0.0]
    assert found["n"].tolist() == [4, 4]


def test_runs_that_are_wrong_unpatched_do_not_count():
    table = knockout_runs({"answer-3": [1, 0, 0, 1]})
    wrong = table["pair_id"].isin(["1", "2"])
    found = knockout_data(
        table.assign(clean=table["clean"].where(~wrong, 0), corrupted=table["corrupted"].where(~wrong, 0))
    )
    assert found["effect"].tolist() == [1.0]
    assert found["n"].tolist() == [2]


def test_edges_are_named_in_words():
    assert edge_name("answer-question") == "the answer not seeing the question"
    assert edge_name("4-1@2 answer-bot") == "step 4 not seeing step 1 in layer 2 and the answer not seeing BoT"


def test_the_figure_says_that_knockouts_are_off_distribution():
    spec = json.dumps(knockout_chart(knockout_data(knockout_runs({"answer-question": [1, 0]}))).to_dict())
    assert "Off-distribution" in spec
    assert "the answer not seeing the question" in spec


def test_a_table_without_knockouts_is_refused_in_a_sentence():
    table = knockout_runs({"answer-3": [1]})
    with pytest.raises(ValueError, match="no answers of runs with a knockout"):
        knockout_data(table.assign(knockout=None))


def test_the_sentence_says_how_many_still_give_their_key_with_each_knockout():
    said = knockout_sentence(knockout_data(knockout_runs({"answer-question": [1, 1, 0, 1], "4-1": [0, 0, 0, 0]})))
    assert said == (
        "Of the runs that are right unpatched, still give their key: with the answer not seeing the question, 75 %; "
        "with step 4 not seeing step 1, 0 % (n = 4 pairs in 4 clusters)."
    )
