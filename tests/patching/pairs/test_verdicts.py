"""Verdicts on pairs: usable, with which metrics, and why not; a model's answers are measured."""

import pytest

from codi_tracing.patching.pairs.pair import Pair, Side
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.patching.pairs.validity import split_usable
from codi_tracing.patching.pairs.verdicts import NEED_RIGHT_ANSWERS, NOT_USABLE, SOME_METRICS, USABLE, judge


def pair(clean="Ann had 7 pens.", corrupted="Ann had 8 pens.", answers=(7, 8), pair_id=0, **extra):
    return Pair(pair_id, "0", Side(clean, answers[0], extra=extra), Side(corrupted, answers[1], extra=extra))


def verdict(*args, model=None, **kwargs):
    return judge([pair(*args, **kwargs)], model)[0]


def odd_pairs(pairs):
    """Pairs that are not usable, each for another reason, among some that are."""
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


def test_a_difference_in_white_space_alone_is_noted():
    assert verdict("Ann had\n7.", "Ann had 7.").notes[0] == "its questions differ in white space alone"


def test_an_answer_with_a_thousands_comma_is_recognised_as_copied():
    assert "its clean answer 1200 stands in its question" in verdict("Of 1,200.", "Of 1,300.", (1200, 5)).notes


def test_a_wrong_key_is_noticed_against_the_files_flag(thought, shipped):
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
    assert found.reasons == (f"its clean question is answered {right.clean.answer:.0f}, expected 1",)
    assert "the file's baseline_correct says otherwise of its clean question" in found.notes


def test_the_pairs_judged_usable_under_a_model_are_those_that_a_sweep_takes(model, pairs):
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
    assert reasons["unknown words"] == ("this checkpoint's tokenizer does not know its 'Zebras'",)
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


def test_a_pair_longer_than_the_model_can_read_is_named_and_neither_asked_nor_run(model):
    long = " ".join(["Ann had 7 pens."] * 120)
    pair = Pair("long", "0", Side(f"{long} 7", 7), Side(f"{long} 8", 8))
    (verdict,) = judge([pair], model)
    assert verdict.verdict == NOT_USABLE
    assert "positions longer than the model can read" in verdict.reasons[0]
    assert verdict.answered is None
    assert tokenize_pairs(model, [pair])[0] == []
