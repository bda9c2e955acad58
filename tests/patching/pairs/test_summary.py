"""The summary of a pairs file: counts, ids, and a verdict for each pair."""

import json

import pytest

from codi_tracing.patching.pairs.pair import load_pairs, pairs_from_records
from codi_tracing.patching.pairs.summary import changed_number, summarise_pairs, summary_rows, verdict_rows
from codi_tracing.patching.pairs.verdicts import NOT_USABLE, SOME_METRICS, USABLE, judge
from tests.patching.pairs.test_verdicts import odd_pairs, verdict
from tests.support.pair_records import both
from tests.support.places import ORIGINAL


def test_the_one_changed_numeral_is_given_with_its_index_and_two_are_none():
    def change(clean, corrupted):
        return changed_number(verdict(clean, corrupted))

    assert change("9 of 1,200.", "9 of 1,300.") == {"numeral": 1, "clean": "1,200", "corrupted": "1,300"}
    assert change("Ann has 1.5.", "Ann has 2.5.") == {"numeral": 0, "clean": "1.5", "corrupted": "2.5"}
    assert change("1 and 2", "2 and 1") is None
    assert change("1 and 2", "1") is None


def test_the_shipped_checkpoint_answers_both_sides_of_every_shipped_pair(thought, shipped):
    found = summarise_pairs(shipped, judge(shipped, thought))
    assert (found["pairs"], found["usable"], found["measured"], found["both_correct"]) == (66, 66, 66, 66)
    assert found["wrong_clean"] == found["wrong_corrupted"] == found["unequal_tokens"] == found["not_asked"] == []
    assert found["verdicts"] == {USABLE: 66, SOME_METRICS: 0, NOT_USABLE: 0}


def test_a_summary_counts_pairs_steps_and_edits():
    found = summarise_pairs(pairs_from_records([*both(0, reasoning_steps=2, edit="first"), *both(1, answer=5)]))
    assert (found["pairs"], found["usable"], found["equal_answers"]) == (2, 1, [1])
    assert found["reasoning_steps"] == {"2": 2, "unknown": 2}
    assert found["edits"] == {"first": 1, "unnamed": 1}
    assert found["answer_difference"] == {"min": 0, "median": 0.5, "max": 1}
    assert found["question_words"] == {"min": 10, "median": 10, "max": 10}
    assert found["changed_number"][0] == {"pair_id": 0, "numeral": 0, "clean": "7", "corrupted": "8"}
    assert found["copied_answers"] == [1]
    assert found["same_first_token"] is None
    assert [each["verdict"] for each in found["each"]] == [USABLE, NOT_USABLE]


def test_a_summary_is_json_under_a_model_too(model, pairs):
    mixed = odd_pairs(pairs)
    found = summarise_pairs(mixed, judge(mixed, model))
    assert json.loads(json.dumps(found, allow_nan=False))["each"][0]["pair_id"] == pairs[0].pair_id
    assert set(found["unequal_tokens"]) == {"longer", "everything"}
    assert found["not_asked"] == ["unknown words", "everything"]
    assert found["measured"] == len(mixed) - 2
    assert all(len(row) == 2 for row in summary_rows(found))


def test_the_worst_pairs_are_listed_first(model, pairs):
    each = summarise_pairs(odd_pairs(pairs), judge(odd_pairs(pairs), model))["each"]
    order = [row[1] for row in verdict_rows(each)[1:]]
    assert order == sorted(order, key=(NOT_USABLE, SOME_METRICS, USABLE).index)


@pytest.mark.skipif(
    not ORIGINAL.is_file(), reason="the original experiment's pairs have no licence, so are not shipped"
)
def test_nine_of_the_original_66_pairs_have_equal_answers_and_all_change_their_first_numeral_alone():
    found = summarise_pairs(load_pairs(ORIGINAL))
    assert (found["pairs"], found["usable"], len(found["equal_answers"])) == (66, 57, 9)
    assert [change["numeral"] for change in found["changed_number"]] == [0] * 66
