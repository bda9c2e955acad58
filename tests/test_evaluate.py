"""Greedy answers in batches: the same, in order, however the questions are batched."""

from traces.evaluate import answers
from traces.thought import record


def test_answers_stand_in_the_order_of_the_questions_and_do_not_depend_on_their_batch(model, problems):
    questions = [problem.question for problem in problems]
    said = answers(model, questions, max_new_tokens=12)
    assert said == [record(model, [question], max_new_tokens=12).answers[0] for question in questions]
    assert answers(model, questions, batch_size=4, max_new_tokens=12) == said


def test_no_questions_have_no_answers(model):
    assert answers(model, []) == []


def test_another_number_of_latent_steps_is_another_thought(model, problems):
    questions = [problem.question for problem in problems]
    assert answers(model, questions, n_latents=0) != answers(model, questions)
