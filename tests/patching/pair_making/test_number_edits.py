"""A changed question has the answer that is written beside it, and what is not certain is refused."""

from fractions import Fraction

import pytest

from codi_tracing.patching.pair_making.gsm8k_chains import write_step
from codi_tracing.patching.pair_making.number_edits import (
    EditError,
    editable_numerals,
    new_values,
    number_edits,
    trace_operands,
)
from codi_tracing.patching.pair_making.number_words import may_derive
from codi_tracing.patching.pair_making.word_edits import word_edits
from codi_tracing.traces.gsm8k import GsmProblem


def problem(question: str, *chain: str) -> GsmProblem:
    solution = "\n".join(f"<<{step}>>" for step in chain)
    answer = chain[-1].partition("=")[2] if chain else "0"
    return GsmProblem(1, question, f"{solution}\n#### {answer}", float(answer))


def all_number_edits(traced):
    """Every well-posed change of one number."""
    return [
        edit
        for numeral, step in editable_numerals(traced)
        for edit in number_edits(traced, numeral, step, new_values(int(numeral.value)))
    ]


def changes(question: str, *chain: str) -> dict[str, list[str]]:
    """The corrupted chain of every change, by the changed question."""
    traced = trace_operands(problem(question, *chain))
    return {e.question: [*map(write_step, e.chain)] for e in (*all_number_edits(traced), *word_edits(traced))}


def numbers(question: str, *chain: str) -> set[str]:
    """The numbers that may be changed."""
    traced = trace_operands(problem(question, *chain))
    return {question[numeral.start : numeral.end] for numeral, _ in editable_numerals(traced)}


def test_everything_that_follows_from_a_number_is_computed_again():
    found = changes("Ann has 16 eggs. She eats 3 and sells the rest for $5 each.", "16-3=13", "13*5=65")
    assert found["Ann has 20 eggs. She eats 3 and sells the rest for $5 each."] == ["20-3=17", "17*5=85"]
    assert found["Ann has 16 eggs. She eats 4 and sells the rest for $5 each."] == ["16-4=12", "12*5=60"]
    assert found["Ann has 16 eggs. She eats 3 and sells the rest for $7 each."] == ["16-3=13", "13*7=91"]


def test_the_edit_is_named_by_whether_the_first_step_uses_the_number():
    traced = trace_operands(
        problem("Ann has 16 eggs. She eats 3 and sells the rest for $5 each.", "16-3=13", "13*5=65")
    )
    assert {(edit.clean, edit.name, edit.step) for edit in all_number_edits(traced)} == {
        ("16", "first_operand", 0), ("3", "first_operand", 0), ("5", "later_operand", 1),
    }  # fmt: skip


def test_a_percentage_is_changed_wherever_the_chain_has_its_hundredth():
    found = changes("40 cars came. 20% of them were red. How many were red?", "40*.20=8")
    assert found["40 cars came. 30% of them were red. How many were red?"] == ["40*0.3=12"]


def test_the_new_number_has_as_many_digits_and_is_not_in_the_problem_yet():
    assert set(new_values(30)) == set(range(10, 100)) - {30}
    assert {10_000, 40_000, 90_000} <= set(new_values(30_000))
    assert set(new_values(7)) == {2, 3, 4, 5, 6, 8, 9}
    assert new_values(99, deltas=(1, -1)) == [98]
    assert len(new_values(123_400)) <= 500
    for question in changes("Ann has 16 eggs and 25 nuts.", "16+25=41"):
        assert "41" not in question
        assert sorted(question.split()) != sorted("Ann has 25 eggs and 25 nuts.".split())


def test_a_number_keeps_its_written_form():
    assert "A house for $4,500, sold for $9,000." in changes("A house for $3,700, sold for $9,000.", "9000-3700=5300")


def test_results_stay_whole_and_positive_and_the_answer_changes():
    found = changes("12 nuts for 4 children. How many each?", "12/4=3")
    assert {question for question in found if question.startswith("12 ")} == {
        "12 nuts for 2 children. How many each?", "12 nuts for 6 children. How many each?",
    }  # fmt: skip
    assert not any("Ann eats 9" in q for q in changes("Ann has 8 nuts. Ann eats 3.", "8-3=5"))


@pytest.mark.parametrize(
    ("question", "chain", "number"),
    [
        ("Ann has 5 nuts, Ben has 5 figs and 9 dates.", ["5+5=10", "10+9=19"], "5"),  # stands there twice
        ("Ann has five nuts, Ben has 5 and 9 figs.", ["5+9=14"], "5"),  # and once as a word
        ("Ann has 7 nuts a week and 9 figs.", ["7+9=16"], "7"),  # a week has 7 days
        ("Ann has 4 nuts and 9 figs, 5 fewer dates.", ["4+9=13", "9-5=4", "13+4=17"], "4"),  # is a result, too
        ("A family of 6 (2 adults and 4 kids) has 9 cakes.", ["9*4=36"], "4"),  # said twice
        ("Of the cars 40% are red and 60% are blue, 50 in all.", ["50*.40=20"], "40"),  # said twice
        ("In 2:30 hours Ann walks 9 miles.", ["9*2=18"], "2"),  # part of a time
        ("1/4 of 20 nuts and 9 figs.", ["20/4=5", "5+9=14"], "4"),  # part of a fraction
    ],
)
def test_a_number_that_is_not_alone_in_what_it_means_is_left(question, chain, number):
    assert number not in {edit.clean for edit in all_number_edits(trace_operands(problem(question, *chain)))}


def test_a_result_that_the_chain_works_out_and_never_uses_may_not_change():
    found = changes("Ann has 8 nuts, and 25 figs in 3 bags.", "8+1=9", "25*3=75")
    assert "Ann has 8 nuts, and 35 figs in 3 bags." in found
    assert all(question.startswith("Ann has 8 nuts") for question in found)


def test_a_constant_that_may_have_been_worked_out_from_the_number_forbids_the_change():
    question = "Ann walks to school with 8 friends, who have 3 nuts each; Ann too. It is 100 m away."
    with pytest.raises(EditError, match="an operand comes from nowhere"):
        trace_operands(problem(question, "9*3=27"))
    assert may_derive(Fraction(9), Fraction(8))
    assert may_derive(Fraction(8, 10), Fraction(20))
    assert not may_derive(Fraction(100), Fraction(7))


@pytest.mark.parametrize(
    ("chain", "reason"),
    [
        ([], "no annotated chain"),
        (["10/3=3.33"], "a step is not exact arithmetic"),
        (["16-17=-1", "16+3=19"], "an operand comes from nowhere"),
    ],
)
def test_a_question_that_cannot_be_traced_is_refused_with_its_reason(chain, reason):
    with pytest.raises(EditError, match=reason):
        trace_operands(problem("Ann has 16 eggs. She eats 3.", *chain))


def test_a_chain_that_ends_in_another_number_than_the_key_is_refused():
    with pytest.raises(EditError, match="the chain does not end in the answer"):
        trace_operands(GsmProblem(1, "16 and 3?", "<<16-3=13>>\n#### 14", 14.0))


def test_a_question_with_too_many_or_too_long_numbers_is_refused_at_once():
    with pytest.raises(EditError, match="nothing can be changed"):
        trace_operands(problem("Ann has 16 eggs" + " and 5" * 60, "16+5=21"))
    with pytest.raises(EditError, match="nothing can be changed"):
        trace_operands(problem(f"Ann has 16 eggs and {'9' * 5000} nuts", "16+1=17"))
    with pytest.raises(EditError, match="no annotated chain"):
        trace_operands(GsmProblem(1, "16 eggs?", "<<16+1=17\n#### 17", 17.0))
