"""Word problems: the text states the program, and the tokenizer knows every word."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from codi_tracing.patching.pair_making.arithmetic import draw_pair
from codi_tracing.traces.training.word_problems import (
    build_tokenizer,
    chain_text,
    draw_problem,
    draw_problems,
    results,
)
from tests.support.arithmetic import read_back


@given(st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_the_chain_agrees_with_the_english_text(seed):
    problem = draw_problem(random.Random(seed))
    values = read_back(problem.question)
    assert list(problem.values) == values[1:]
    assert problem.chain[-1].endswith(f"={problem.answer}")
    assert chain_text(problem).count("<<") == len(problem.values)


@given(st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_a_pair_changes_one_number_and_the_answer_and_no_token_count(seed):
    clean, corrupted, place = draw_pair(random.Random(seed))
    words = zip(clean.question.split(), corrupted.question.split(), strict=True)
    assert sum(a != b for a, b in words) == 1
    assert clean.answer != corrupted.answer
    assert clean.values[: max(place - 1, 0)] == corrupted.values[: max(place - 1, 0)]


def test_every_word_and_number_is_one_known_token():
    tokenizer = build_tokenizer()
    for problem in draw_problems(0, 300):
        text = f"{problem.question} {chain_text(problem)} The answer is: {problem.answer}"
        assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
    assert all(len(tokenizer(str(n), add_special_tokens=False)["input_ids"]) == 1 for n in range(100))
    assert (
        tokenizer.decode(tokenizer("The answer is: 18")["input_ids"], skip_special_tokens=True) == "The answer is: 18"
    )


def test_more_than_half_of_the_chains_cannot_be_composed_while_reading():
    problems = draw_problems(1, 2000)
    assert sum(not p.story.in_order for p in problems) > len(problems) / 2


def test_the_bare_results_end_in_the_answer_and_fit_into_six_steps():
    for problem in draw_problems(2, 200):
        assert results(problem)[-1] == problem.answer
        assert len(results(problem)) <= 6


def test_a_seed_gives_the_same_problems_again():
    assert [p.question for p in draw_problems(7, 20)] == [p.question for p in draw_problems(7, 20)]
