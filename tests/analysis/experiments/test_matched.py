"""Matched pairs: shares by hand, answers that coincide counted once, and the verdict."""

import pandas as pd
import pytest

from codi_tracing.analysis.experiments.matched import (
    matched_chart,
    matched_control,
    matched_data,
    matched_sentence,
)
from codi_tracing.analysis.rows import QUESTION_HIDDEN
from codi_tracing.analysis.table import COLUMNS, check_table

METRIC_OF = {"host": "answer_is_corrupted", "donor": "answer_is_clean", "hybrid": "answer_is_hybrid"}
BOTH_DIFFER = "0:different:different"


def run(pair, given, step=0, step_last=None, edit=BOTH_DIFFER, source="clean", draw=None, before=("host",), **more):
    """One patched run's three rows; `given` and `before` name all answers that the run's number is equal to."""
    given = (given,) if isinstance(given, str) else given
    place = {"kind": "resid", "step": step, "step_last": step if step_last is None else step_last}
    return [
        dict.fromkeys(COLUMNS) | {
            "pair_id": str(pair), "cluster_id": str(pair), "protocol": "latent_loop", "direction": "denoising",
            "source": source, "draw": draw, "edit": edit, "metric": metric, "patched": float(whose in given),
            "clean": float(whose == "donor"), "corrupted": float(whose in before), **place, **more,
        }
        for whose, metric in METRIC_OF.items()
    ]  # fmt: skip


def table(*runs) -> pd.DataFrame:
    rows = pd.DataFrame([row for rows in runs for row in rows])
    return check_table(rows)


def share(shares, answer, written="prefix", step=0, **where):
    rows = shares[(shares["answer"] == answer) & (shares["written"] == written)]
    rows = rows[rows["step"].isna() if step is None else rows["step"] == step]
    for name, value in where.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def hybrid_then_donor(pairs=20, steps=6, early="hybrid", late="donor", edit=BOTH_DIFFER, **more):
    """Prefixes give `early` up to step 2, `late` after; a step alone leaves the host as it is."""
    runs = [run(pair, early if k < 3 else late, 0, k, edit=edit, **more) for pair in range(pairs) for k in range(steps)]
    return [*runs, *(run(pair, "host", k, edit=edit, **more) for pair in range(pairs) for k in range(1, steps))]


def test_shares_are_those_of_runs_and_sum_to_one():
    given = ["host", "host", "donor", "hybrid", ()]
    shares = matched_data(table(*(run(pair, answer, 0, 3) for pair, answer in enumerate(given * 2))))
    found = {answer: share(shares, answer, step=3)["share"] for answer in ("host", "donor", "hybrid", "other")}
    assert found == pytest.approx({"host": 0.4, "donor": 0.2, "hybrid": 0.2, "other": 0.2})
    row = share(shares, "host", step=3)
    assert row["low"] < 0.4 < row["high"]
    assert (row["n"], row["clusters"]) == (10, 10)


def test_step_zero_is_both_a_step_and_a_prefix_and_a_later_step_alone_is_no_prefix():
    shares = matched_data(table(*(run(pair, "donor", step) for pair in range(2) for step in (0, 1))))
    patched = shares[shares["written"] != "nothing"]
    found = {(written, int(step)) for written, step in zip(patched["written"], patched["step"], strict=True)}
    assert found == {("prefix", 0), ("one step", 0), ("one step", 1)}


def test_one_answer_of_host_and_donor_is_counted_once():
    runs = [run(pair, ("host", "donor"), edit="0:different:same") for pair in range(3)]
    shares = matched_data(table(*runs, run(3, "hybrid", edit="0:different:same")))
    assert share(shares, "host = donor")["share"] == 0.75
    assert share(shares, "hybrid")["share"] == 0.25
    assert not set(shares["answer"]) & {"host", "donor"}


def test_a_hybrid_of_the_same_intermediate_is_the_hosts_answer():
    runs = [run(pair, ("host", "hybrid"), edit="0:same:different") for pair in range(3)]
    shares = matched_data(table(*runs, run(3, "donor", edit="0:same:different")))
    assert share(shares, "host")["share"] == 0.75
    assert "hybrid" not in set(shares["answer"])


def test_a_hybrid_equal_to_the_donors_answer_counts_as_the_donors():
    shares = matched_data(table(run(0, ("donor", "hybrid")), run(1, "hybrid")))
    assert share(shares, "donor")["share"] == share(shares, "hybrid")["share"] == 0.5


def test_the_base_rate_is_the_share_of_unpatched_hosts():
    runs = [
        run(pair, "donor", 0, k, before=("hybrid",) if pair == 0 else ("host",)) for pair in range(4) for k in (0, 1)
    ]
    row = share(matched_data(table(*runs)), "hybrid", "nothing", None)
    assert (row["share"], row["n"]) == (0.25, 4)


def test_draws_of_unrelated_donors_are_averaged_and_kept_apart_from_the_true_donor():
    unrelated = [run(0, answer, source="unrelated", draw=draw) for draw, answer in enumerate(["donor", "host"])]
    shares = matched_data(table(run(0, "donor"), run(1, "donor"), *unrelated))
    assert share(shares, "donor", source="clean")["share"] == 1
    assert share(shares, "donor", source="unrelated")[["share", "n"]].tolist() == [0.5, 1]


def test_kinds_of_site_are_kept_apart_and_a_chart_shows_one():
    shares = matched_data(table(run(0, "donor"), run(0, "host", kind="kv")))
    assert set(shares["kind"]) == {"resid", "kv"}
    with pytest.raises(ValueError, match=r"several kinds of site \(.*\); draw one at a time"):
        matched_chart(shares)


def test_other_sites_and_frozen_runs_are_left_out_and_the_table_is_not_changed():
    kept = table(run(0, "donor"), run(1, "donor"))
    mixed = table(
        run(0, "donor"), run(1, "donor"), run(0, "host", freeze="R"), run(0, "host", layer=1, layer_last=1),
    )  # fmt: skip
    before = mixed.copy(deep=True)
    pd.testing.assert_frame_equal(matched_data(mixed), matched_data(kept))
    pd.testing.assert_frame_equal(mixed, before)


def test_a_table_without_matched_pairs_says_what_to_run():
    unmatched = table(run(0, "donor", edit="numbers"))
    with pytest.raises(ValueError, match="no rows of matched pairs .*; run configs/matched.toml"):
        matched_data(unmatched)
    whole = table(run(0, "donor"))
    with pytest.raises(ValueError, match="answer_is_hybrid; run configs/matched.toml"):
        matched_data(whole[whole["metric"] != "answer_is_hybrid"])


@pytest.mark.parametrize(
    ("early", "late", "words"),
    [
        ("hybrid", "donor", "carries the intermediate, and at its end the answer"),
        ("hybrid", "other", "carries the intermediate"),
        ("host", "donor", "carries only the answer"),
        ("host", "host", "carries neither"),
    ],
)
def test_the_verdict_follows_hybrids_and_the_donors_answer(early, late, words):
    sentence = matched_sentence(matched_data(table(*hybrid_then_donor(early=early, late=late))))
    assert f": the thought {words}." in sentence
    assert "later steps or by the answer phase" in sentence
    assert ("was not tested" in sentence) == (early == "hybrid")


def test_the_sentence_names_the_peak_where_it_is_and_the_end():
    runs = [run(pair, "hybrid" if k == 1 and pair < 15 else "donor", 0, k) for pair in range(20) for k in range(6)]
    sentence = matched_sentence(matched_data(table(*runs)))
    assert "hybrid answers peak at 75% [" in sentence
    assert "with steps 0–1 written" in sentence
    assert "the donor's answer has 100% [83%, 100%] with steps 0–5 (n = 20)" in sentence


def test_hybrids_as_frequent_with_an_unrelated_donor_are_not_carried():
    true = hybrid_then_donor(late="host")
    unrelated = hybrid_then_donor(late="host", source="unrelated", draw=0)
    assert "carries neither" in matched_sentence(matched_data(table(*true, *unrelated)))


def test_pairs_with_a_common_intermediate_or_answer_allow_no_verdict():
    shares = matched_data(table(run(0, "host", edit="0:same:different"), run(1, "host", edit="0:same:different")))
    with pytest.raises(ValueError, match="differ in both intermediate and answer"):
        matched_sentence(shares)


def test_seven_clusters_allow_no_verdict():
    sentence = matched_sentence(matched_data(table(*(run(pair, "donor") for pair in range(7)))))
    assert "cannot be judged from 7 clusters" in sentence
    assert "[" not in sentence


def hidden(early, right=20, pairs=20):
    """The control: the same prefixes with the question hidden from the answer; `right` hosts keep their answer."""
    written = hybrid_then_donor(pairs, early=early, knockout=QUESTION_HIDDEN)
    alone = [
        run(pair, "host" if pair < right else "other", source="self", knockout=QUESTION_HIDDEN) for pair in range(pairs)
    ]
    whole = [[row | {"kind": "thought", "step": None, "step_last": None} for row in rows] for rows in alone]
    return [*written, *whole]


@pytest.mark.parametrize(
    ("early", "right", "words"),
    [
        ("hybrid", 20, "Later steps compute on it: with the question hidden from the answer they are 100% [83%, 100%]"),
        ("host", 20, "The control does not decide: with the question hidden from the answer they are 0% [0%, 17%]"),
        ("hybrid", 2, "The control cannot tell which: with the question hidden from the answer, unpatched hosts then"),
    ],
)
def test_the_control_tells_later_steps_from_the_answer_phase(early, right, words):
    whole = table(*hybrid_then_donor(), *hidden(early, right))
    sentence = matched_sentence(matched_data(whole), matched_control(whole))
    assert words in sentence
    assert "(n = 20)" in sentence
    pd.testing.assert_frame_equal(matched_data(whole), matched_data(table(*hybrid_then_donor())))


def test_with_many_pairs_hybrids_that_vanish_are_the_answer_phases():
    whole = table(*hybrid_then_donor(60), *hidden("host", 60, 60))
    assert "The answer phase applies the operations: " in matched_sentence(matched_data(whole), matched_control(whole))
    assert matched_control(table(*hybrid_then_donor())) is None


def test_the_chart_has_a_column_for_each_intermediate_and_says_its_n():
    second = hybrid_then_donor(edit="1:different:different")
    second = [[row | {"pair_id": f"b{row['pair_id']}"} for row in rows] for rows in second]
    spec = matched_chart(matched_data(table(*hybrid_then_donor(), *second))).to_dict()
    assert [len(row["hconcat"]) for row in spec["vconcat"]] == [2, 2]
    assert "n = 20 pairs, 20 clusters; protocol latent_loop" in " ".join(spec["title"]["subtitle"])
