"""Contrasts: which pairs are usable, for which metrics and why not, and what a file of pairs holds."""

import json
from pathlib import Path

import pytest

from codi_tracing.patching.pairs.pair import Pair, Side, load_pairs, pairs_from_records
from codi_tracing.patching.pairs.summary import changed_number, describe, summary_rows, verdict_rows
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.patching.pairs.validity import Change, changes, split_usable
from codi_tracing.patching.pairs.verdicts import NEED_RIGHT_ANSWERS, NOT_USABLE, SOME_METRICS, USABLE, judge
from tests.support.pair_records import both, record
from tests.support.places import ORIGINAL

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def thought():
    from codi_tracing.traces.model.loading import load_codi

    return load_codi(ROOT / "traces" / "embedded" / "thought", device="cpu")


@pytest.fixture(scope="module")
def shipped():
    return load_pairs(ROOT / "patching" / "data" / "arithmetic_pairs.json")


def pair(clean="Ann had 7 pens.", corrupted="Ann had 8 pens.", answers=(7, 8), pair_id=0, **extra):
    return Pair(pair_id, "0", Side(clean, answers[0], extra=extra), Side(corrupted, answers[1], extra=extra))


def verdict(*args, model=None, **kwargs):
    return judge([pair(*args, **kwargs)], model)[0]


def test_a_pair_that_is_no_contrast_is_excluded_with_its_reason():
    same_question = [record(3), record(3, "corrupted", question=f" {record(3)['question']}".replace("had", "had "))]
    usable, excluded = split_usable(pairs_from_records([*both(12, answer=13), *both(1), *same_question]))
    assert [pair.pair_id for pair in usable] == [1]
    assert [reason for _, reason in excluded] == [
        "pair 12: both answers are 13, so their logit difference is always 0; drop the pair",
        "pair 3: both questions are the same, so there is nothing to exchange; drop the pair",
    ]


def test_a_changed_numeral_is_found_with_its_place_its_characters_and_by_how_much():
    clean = "Sell 3 of 1,200.50  eggs."
    (change,) = changes(clean, "Sell 3 of 900 eggs.")
    assert change == Change(10, 18, "1,200.50", "900", 1, -300.5)
    assert clean[change.start : change.end] == change.clean
    assert changes("2.5 l", "2.6 l")[0].difference == 0.1


def test_several_changed_numerals_are_several_changes():
    assert [(c.place, c.difference) for c in changes("1 and 2 and 9", "2 and 1 and 9")] == [(0, 1), (1, -1)]


def test_where_more_than_numbers_differs_the_changed_words_are_found():
    clean = "Ann bought 7 red pens on Monday."
    first, second = changes(clean, "Ann sold 8 red pens on Tuesday morning.")
    assert first == Change(4, 12, "bought 7", "sold 8")
    assert (second.clean, second.corrupted) == ("Monday.", "Tuesday morning.")
    assert clean[second.start : second.end] == "Monday."


def test_words_that_only_one_question_has_are_a_change_of_no_width():
    (change,) = changes("Ann had pens.", "Ann had 7 pens.")
    assert (change.clean, change.corrupted, change.start) == ("", "7", change.end)
    (change,) = changes("How many?", "How many? Say it.")
    assert (change.start, change.end, change.corrupted) == (9, 9, "Say it.")


def test_white_space_alone_is_no_change_but_is_noted():
    assert changes("Ann  had\n7.", "Ann had 7.") == ()
    assert verdict("Ann had\n7.", "Ann had 7.").notes[0] == "its questions differ in white space alone"


def test_a_numeral_that_changed_is_found_with_its_place_and_two_are_not_one():
    def change(clean, corrupted):
        return changed_number(pair(clean, corrupted))

    assert change("9 of 1,200.", "9 of 1,300.") == {"place": 1, "clean": "1,200", "corrupted": "1,300"}
    assert change("Ann has 1.5.", "Ann has 2.5.") == {"place": 0, "clean": "1.5", "corrupted": "2.5"}
    assert change("1 and 2", "2 and 1") is None
    assert change("1 and 2", "1") is None


def test_every_reason_is_given_at_once():
    found = verdict("Ann had 7.", "Ann had 7.", (7, 7))
    assert (found.verdict, found.metrics, len(found.reasons)) == (NOT_USABLE, (), 2)


@pytest.mark.parametrize(
    ("changed", "note"),
    [
        ({"answers": (7, 9)}, "its clean answer 7 stands in its question"),
        ({"answers": (2.5, 9)}, "its clean answer 2.5 is no whole number"),
        (
            {"clean": "Ann  had 7.", "corrupted": "Ann  had 8."},
            "both questions have double spaces, which are collapsed",
        ),
        ({"corrupted": "Ann had  8 pens."}, "its corrupted question has double spaces, which are collapsed"),
        ({"clean": "Ann had 7, Ben 9."}, "its questions differ in 2 places"),
    ],
)
def test_a_note_does_not_change_the_verdict(changed, note):
    found = verdict(**{"corrupted": "Ann had 8, Ben 8." if "Ben" in str(changed) else "Ann had 8 pens.", **changed})
    assert found.verdict == USABLE
    assert note in found.notes


def test_an_answer_with_a_thousands_comma_is_recognised_as_copied():
    assert "its clean answer 1200 stands in its question" in verdict("Of 1,200.", "Of 1,300.", (1200, 5)).notes


def test_the_files_flags_are_never_believed(thought, shipped):
    """The shipped checkpoint answers all shipped pairs; asked for other keys, it is wrong whatever a flag says."""
    right = shipped[0]
    assert right.clean.extra["baseline_correct"] is True
    wrong = Pair("wrong", "0", Side(right.clean.question, 1, extra={"baseline_correct": True}), right.corrupted)
    (found,) = judge([wrong], thought)
    assert found.verdict == SOME_METRICS
    assert set(NEED_RIGHT_ANSWERS).isdisjoint(found.metrics)
    assert {"logit_difference", "kl_to_clean", "answer"} <= set(found.metrics)
    assert found.answered == {"clean": right.clean.answer, "corrupted": right.corrupted.answer}
    assert found.correct == {"clean": False, "corrupted": True}
    assert found.reasons == (f"its clean question is answered {right.clean.answer:.0f}, wanted 1",)
    assert "the file's baseline_correct says otherwise of its clean question" in found.notes


def test_the_shipped_checkpoint_answers_both_sides_of_every_shipped_pair(thought, shipped):
    found = describe(shipped, judge(shipped, thought))
    assert (found["pairs"], found["usable"], found["measured"], found["both_correct"]) == (66, 66, 66, 66)
    assert found["wrong_clean"] == found["wrong_corrupted"] == found["unequal_tokens"] == found["not_asked"] == []
    assert found["verdicts"] == {USABLE: 66, SOME_METRICS: 0, NOT_USABLE: 0}


def odd_pairs(pairs):
    """Pairs that are no contrast, each for another reason, among some that are."""
    good, other = pairs[:2]
    question, answer = good.clean.question, good.clean.answer
    return [
        good,
        pair(question, f"{question} {question}", (answer, answer + 1), "longer"),
        pair(question, good.corrupted.question, (answer, answer), "equal answers"),
        pair(question, f" {question}", (answer, answer + 1), "equal questions"),
        pair(question, question.replace(".", " . "), (answer, answer + 1), "equal tokens"),
        pair("Zebras?", "Zebus?", (7, 8), "unknown words"),
        pair("Zebras?", "Zebras and zebus?", (7, 7), "everything"),
        other,
    ]


def test_what_is_judged_usable_under_a_model_is_what_the_sweep_takes(model, pairs):
    mixed = odd_pairs(pairs)
    verdicts = judge(mixed, model)
    usable = [found.pair_id for found in verdicts if found.verdict != NOT_USABLE]
    ready, excluded = tokenize_pairs(model, mixed)
    assert usable == [p.pair.pair_id for p in ready] == [pairs[0].pair_id, pairs[1].pair_id]
    first = {found.pair_id: f"pair {found.pair_id}: {found.reasons[0]}" for found in verdicts if found.reasons}
    assert [reason for _, reason in excluded] == [first[pair.pair_id] for pair, _ in excluded]
    kept, left = split_usable(mixed)
    ready, more = tokenize_pairs(model, kept)
    assert usable == [p.pair.pair_id for p in ready]
    assert {p.pair_id for p, _ in (*left, *more)} == {p.pair_id for p, _ in excluded}


def test_each_reason_under_a_tokenizer_is_a_sentence(model, pairs):
    reasons = {found.pair_id: found.reasons for found in judge(odd_pairs(pairs), model)}
    assert reasons["longer"][0].startswith("its questions have ")
    assert reasons["equal tokens"] == ("its questions are the same to this checkpoint's tokenizer",)
    assert reasons["unknown words"] == ("it has words that this checkpoint's tokenizer does not know",)
    assert len(reasons["everything"]) == 3


def test_a_pair_with_unknown_words_is_not_asked(model):
    (found,) = judge([pair("Zebras?", "Zebus?")], model)
    assert (found.answered, found.correct) == (None, None)
    assert found.tokens is not None


def test_answers_are_read_at_the_first_token_in_which_they_differ(model, pairs):
    def read_at(*answers):
        (found,) = judge([pair(pairs[0].clean.question, pairs[0].corrupted.question, answers)], model)
        return found.read_at, [note for note in found.notes if "share" in note]

    assert read_at(7, 8) == (1, [])
    note = "its answers share their first token, so they are read at answer token 2"
    assert read_at(-7, -8) == (2, [note])
    assert read_at(7, 7) == (None, [])


def test_a_blank_that_is_a_token_of_its_own_is_no_token_of_the_answer(model, pairs, monkeypatch):
    """As Llama 3 writes " 18": a blank, then the number."""

    def spaced(model, text=""):
        return [1, 2, *([3] if text.startswith(" ") else []), *map(ord, text.strip())]

    monkeypatch.setattr("codi_tracing.traces.loop.tokens.answer_ids", spaced)
    from codi_tracing.patching.pairs.tokenized import tokenise

    tokens = tokenise(model, pair(pairs[0].clean.question, pairs[0].corrupted.question, (143, 1430)))
    assert (tokens.prefix, tokens.differ) == (3, 6)  # 143 and EOS against 1430


def test_a_description_counts_what_the_file_holds():
    found = describe(pairs_from_records([*both(0, reasoning_steps=2, edit="first"), *both(1, answer=5)]))
    assert (found["pairs"], found["usable"], found["equal_answers"]) == (2, 1, [1])
    assert found["reasoning_steps"] == {"2": 2, "unknown": 2}
    assert found["kinds"] == {"first": 1, "unnamed": 1}
    assert found["answer_difference"] == {"min": 0, "median": 0.5, "max": 1}
    assert found["question_words"] == {"min": 10, "median": 10, "max": 10}
    assert found["changed_number"][0] == {"pair_id": 0, "place": 0, "clean": "7", "corrupted": "8"}
    assert found["copied_answers"] == [1]
    assert found["same_first_token"] is None
    assert [each["verdict"] for each in found["each"]] == [USABLE, NOT_USABLE]


def test_a_description_is_json_under_a_model_too(model, pairs):
    mixed = odd_pairs(pairs)
    found = describe(mixed, judge(mixed, model))
    assert json.loads(json.dumps(found, allow_nan=False))["each"][0]["pair_id"] == pairs[0].pair_id
    assert set(found["unequal_tokens"]) == {"longer", "everything"}
    assert found["not_asked"] == ["unknown words", "everything"]
    assert found["measured"] == len(mixed) - 2
    assert all(len(row) == 2 for row in summary_rows(found))


def test_the_worst_pairs_are_listed_first(model, pairs):
    each = describe(odd_pairs(pairs), judge(odd_pairs(pairs), model))["each"]
    order = [row[1] for row in verdict_rows(each)[1:]]
    assert order == sorted(order, key=(NOT_USABLE, SOME_METRICS, USABLE).index)


@pytest.mark.skipif(
    not ORIGINAL.is_file(), reason="the original experiment's pairs have no licence, so are not shipped"
)
def test_nine_of_the_original_66_pairs_have_equal_answers_and_all_change_their_first_numeral_alone():
    found = describe(load_pairs(ORIGINAL))
    assert (found["pairs"], found["usable"], len(found["equal_answers"])) == (66, 57, 9)
    assert [change["place"] for change in found["changed_number"]] == [0] * 66


def test_a_pair_longer_than_the_model_can_read_is_named_and_neither_asked_nor_run(model):
    long = " ".join(["Ann had 7 pens."] * 120)
    pair = Pair("long", "0", Side(f"{long} 7", 7), Side(f"{long} 8", 8))
    (verdict,) = judge([pair], model)
    assert verdict.verdict == NOT_USABLE
    assert "positions longer than the model can read" in verdict.reasons[0]
    assert verdict.answered is None
    assert tokenize_pairs(model, [pair])[0] == []
