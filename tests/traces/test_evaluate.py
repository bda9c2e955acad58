"""Answers to many questions do not depend on how they are batched, and accuracy is what the keys say."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from codi_tracing.analysis.statistics.inference import share_intervals
from codi_tracing.cli.main import app
from codi_tracing.traces.evaluate import answers, score
from codi_tracing.traces.gsm8k import GsmProblem
from codi_tracing.traces.loop.recording import record
from codi_tracing.traces.loop.tokens import question_ids
from codi_tracing.traces.model.loading import load_codi
from codi_tracing.traces.text import last_number
from codi_tracing.traces.training.word_problems import draw_problems

THOUGHT = Path(__file__).parents[2] / "traces" / "embedded" / "thought"


@pytest.fixture(scope="module")
def thought():
    return load_codi(THOUGHT, device="cpu")


def test_answers_come_in_the_order_asked_however_they_are_batched(model, problems):
    questions = [problem.question for problem in problems]
    alone = [record(model, [question]).answers[0] for question in questions]
    for batch_size in (1, 4, 100):
        assert answers(model, questions, batch_size=batch_size, max_new_tokens=12) == alone


def test_the_shipped_model_answers_with_its_thought_and_not_without(thought):
    problems = [GsmProblem(i, p.question, "", float(p.answer)) for i, p in enumerate(draw_problems(seed=77, count=40))]
    with_thought, without = score(thought, problems, 6), score(thought, problems, 0)
    assert sum(item.correct for item in with_thought) >= 39
    assert sum(item.correct for item in without) <= 8
    assert [item.line for item in without] == list(range(40))


def test_an_answer_is_correct_if_its_last_number_is_the_key(thought):
    problem = draw_problems(seed=78, count=1)[0]
    right, wrong = (score(thought, [GsmProblem(1, problem.question, "", key)], 6)[0] for key in (problem.answer, -1.0))
    assert (right.correct, wrong.correct) == (True, False)
    assert last_number(right.text) == problem.answer


def test_a_question_longer_than_the_model_can_read_is_refused_before_anything_runs(model):
    long = " ".join(["Ann had 7 pens."] * 120)
    with pytest.raises(ValueError, match=r"question 2 with its thought needs 609 positions, the model has 512; leave"):
        answers(model, ["Ann had 7 pens.", long])


def test_a_question_that_fills_the_positions_ends_its_own_answer_and_no_others(model):
    room = model.n_positions - len(question_ids(model, "")) - 8  # BoT, six latents, EoT
    filling = " ".join(["pens"] * room)
    questions = ["Ann had 7 pens.", filling]
    together = answers(model, questions, max_new_tokens=12)
    assert together == [answers(model, [question], max_new_tokens=12)[0] for question in questions]
    assert len(together[1].split()) == 1  # what EoT says needs no further position
    assert len(together[0].split()) > 3


def test_no_questions_have_no_answers(model):
    assert answers(model, []) == []


@pytest.fixture
def codi(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problems = draw_problems(seed=79, count=10)
    lines = [json.dumps({"question": p.question, "answer": f"#### {p.answer}"}) for p in problems]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    return lambda *words: CliRunner().invoke(app, ["eval", str(THOUGHT), "--data", *map(str, words)])


def test_the_command_reports_accuracy_by_steps_with_its_interval_and_keeps_every_answer(codi):
    said = codi("data.jsonl", "--steps", 6, "--steps", 0, "--out", "said.jsonl", "--device", "cpu")
    assert said.exit_code == 0, said.output
    head, none, all_steps = said.stdout.splitlines()
    assert head.split() == ["steps", "accuracy", "95", "%", "interval", "correct"]
    assert none.split()[0] == "0"
    assert all_steps.split() == ["6", "100.0%", "[69.2%,", "100.0%]", "10/10", "as", "trained"]
    records = [json.loads(line) for line in Path("said.jsonl").read_text().splitlines()]
    assert len(records) == 20
    assert sum(record["correct"] for record in records if record["steps"] == 6) == 10


def test_the_interval_is_clopper_and_pearsons():
    low, high = share_intervals(1.0, 10)
    assert (low, high) == (pytest.approx(0.025 ** (1 / 10)), 1.0)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["data.jsonl", "--device", "warp"], "device 'warp' cannot"),
        (["data.jsonl", "--out", "data.jsonl"], "data.jsonl: expected another file than the data's"),
        (
            ["data.jsonl", "--out", "codi.json"],
            "codi.json: expected another file than the data's, with a name that ends in",
        ),
    ],
)
def test_bad_input_is_one_sentence(codi, words, sentence):
    said = codi(*words)
    assert (said.exit_code, said.stdout) == (2, "")
    assert sentence in said.stderr
