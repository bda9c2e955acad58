"""Text faults of pairs, and where two questions differ."""

import json

from codi_tracing.patching.pairs.pair import pairs_from_records
from codi_tracing.patching.pairs.summary import summarise_pairs
from codi_tracing.patching.pairs.validity import Difference, question_differences, split_usable
from tests.support.pair_records import both, record


def test_a_pair_with_a_text_fault_is_excluded_with_its_reason():
    same_question = [record(3), record(3, "corrupted", question=f" {record(3)['question']}".replace("had", "had "))]
    usable, excluded = split_usable(pairs_from_records([*both(12, answer=13), *both(1), *same_question]))
    assert [pair.pair_id for pair in usable] == [1]
    assert [reason for _, reason in excluded] == [
        "pair 12: both answers are 13, so their logit difference is always 0; drop the pair",
        "pair 3: both questions are the same, so there is nothing to exchange; drop the pair",
    ]


def test_a_changed_numeral_has_its_index_its_characters_and_the_size_of_the_change():
    clean = "Sell 3 of 1,200.50  eggs."
    (change,) = question_differences(clean, "Sell 3 of 900 eggs.")
    assert change == Difference(10, 18, "1,200.50", "900", 1, -300.5)
    assert clean[change.start : change.end] == change.clean
    assert question_differences("2.5 l", "2.6 l")[0].difference == 0.1


def test_a_change_of_a_number_that_no_float_holds_has_no_size():
    (change,) = question_differences(f"{'9' * 400} eggs", "8 eggs")
    assert (change.numeral, change.difference) == (0, None)
    (described,) = summarise_pairs(
        pairs_from_records([record(0, question="8 eggs"), record(0, "corrupted", question=f"{'9' * 400} eggs")])
    )["each"]
    json.dumps(described, allow_nan=False)


def test_several_changed_numerals_are_several_question_differences():
    assert [(c.numeral, c.difference) for c in question_differences("1 and 2 and 9", "2 and 1 and 9")] == [
        (0, 1),
        (1, -1),
    ]


def test_where_more_than_numbers_differs_the_changed_words_are_given():
    clean = "Ann bought 7 red pens on Monday."
    first, second = question_differences(clean, "Ann sold 8 red pens on Tuesday morning.")
    assert first == Difference(4, 12, "bought 7", "sold 8")
    assert (second.clean, second.corrupted) == ("Monday.", "Tuesday morning.")
    assert clean[second.start : second.end] == "Monday."


def test_words_in_only_one_question_are_a_difference_of_no_width():
    (change,) = question_differences("Ann had pens.", "Ann had 7 pens.")
    assert (change.clean, change.corrupted, change.start) == ("", "7", change.end)
    (change,) = question_differences("How many?", "How many? Say it.")
    assert (change.start, change.end, change.corrupted) == (9, 9, "Say it.")


def test_white_space_alone_is_no_difference():
    assert question_differences("Ann  had\n7.", "Ann had 7.") == ()
