"""Pairs made from GSM8K: hundreds of them, every key computed twice, nothing lost without a reason."""

import json
import random
from fractions import Fraction
from pathlib import Path

import pytest
from typer.testing import CliRunner

from codi_tracing.cli.main import app
from codi_tracing.patching.pair_making.gsm8k import Funnel, choose_edits, equal_tokens, implausibility, pairs_from_gsm8k
from codi_tracing.patching.pair_making.number_edits import trace_operands
from codi_tracing.traces.gsm8k import GsmProblem, read_problems
from tests.support.arithmetic import pythons

GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k_test.jsonl"
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_file(), reason="GSM8K is not part of the project")
EGGS = "Ann has 16 eggs. She eats 3 and sells the rest for $5 each. How many dollars does she get?"
PROBLEMS = [
    GsmProblem(1, EGGS, "<<16-3=13>> <<13*5=65>>\n#### 65", 65.0),
    GsmProblem(2, "Ann has 20  nuts and Ben 6 more nuts than Ann. How many has Ben?", "<<20+6=26>>\n#### 26", 26.0),
    GsmProblem(3, "How many legs has a dog?", "Four.\n#### 4", 4.0),
]


@pytest.fixture(scope="module")
def made():
    return pairs_from_gsm8k(read_problems(GSM8K).problems, per_question=3)


@needs_gsm8k
def test_at_least_400_questions_of_gsm8k_yield_a_pair_and_the_funnel_adds_up(made):
    records, funnel = made
    assert funnel.read == 1319
    assert funnel.questions == len({record["cluster_id"] for record in records}) >= 400
    assert funnel.read == funnel.questions + funnel.lost.total()
    assert funnel.pairs == len(records) == len({record["pair_id"] for record in records})
    assert all(funnel.edits[edit] >= 20 for edit in ("first_operand", "later_operand", "operator_word"))


@needs_gsm8k
def test_an_independent_evaluator_agrees_on_every_step_and_every_answer(made):
    for record in made[0]:
        for side in (record["clean"], record["corrupted"]):
            for step in side["chain"]:
                left, _, right = step.partition("=")
                assert pythons(left) == Fraction(right), record["pair_id"]
            assert Fraction(str(side["answer"])) == Fraction(side["chain"][-1].rpartition("=")[2])
            assert side["reasoning_steps"] == len(side["chain"])


@needs_gsm8k
def test_the_clean_side_is_gsm8ks_own_question_and_key(made):
    problems = {str(problem.line): problem for problem in read_problems(GSM8K).problems}
    for record in made[0]:
        problem = problems[record["cluster_id"]]
        assert record["clean"]["answer"] == problem.answer
        assert record["clean"]["question"].split() == problem.question.split()


@needs_gsm8k
def test_the_sides_differ_in_the_edited_span_alone_and_in_their_answers(made):
    for record in made[0]:
        edit, clean, corrupted = record["change"], record["clean"]["question"], record["corrupted"]["question"]
        assert clean[edit["start"] : edit["end"]] == edit["clean"]
        assert clean[: edit["start"]] + edit["corrupted"] + clean[edit["end"] :] == corrupted
        assert record["clean"]["answer"] != record["corrupted"]["answer"]
        assert "  " not in clean
        if record["edit"] != "operator_word":
            assert len(edit["clean"]) == len(edit["corrupted"])


@needs_gsm8k
def test_results_are_whole_and_not_negative_wherever_they_were_before(made):
    for record in made[0]:
        for before, after in zip(record["clean"]["chain"], record["corrupted"]["chain"], strict=True):
            old, new = (Fraction(step.rpartition("=")[2]) for step in (before, after))
            assert old.denominator > 1 or new.denominator == 1
            assert old < 0 or new >= 0


@needs_gsm8k
def test_a_delta_of_one_changes_every_number_by_one():
    records, _ = pairs_from_gsm8k(
        read_problems(GSM8K).problems[:200], deltas=[1], edits=["first_operand", "later_operand"]
    )
    for record in records:
        old, new = (int(record["change"][side].replace(",", "")) for side in ("clean", "corrupted"))
        assert new - old == 1


def test_choices_follow_from_the_seed_and_the_question_alone():
    records, funnel = pairs_from_gsm8k(PROBLEMS)
    assert (records, funnel) == pairs_from_gsm8k(PROBLEMS)
    assert pairs_from_gsm8k(PROBLEMS[:1])[0] == records[:1]
    assert any(pairs_from_gsm8k(PROBLEMS, seed=seed)[0] != records for seed in (1, 2, 3))


def test_the_pairs_of_a_question_share_a_cluster_and_change_different_places_first():
    records, _ = pairs_from_gsm8k(PROBLEMS[:1], per_question=3)
    assert [record["pair_id"] for record in records] == ["1-0", "1-1", "1-2"]
    assert {record["cluster_id"] for record in records} == {"1"}
    assert len({record["change"]["start"] for record in records}) == 3


def test_near_values_are_chosen_before_far_ones_and_round_ones_before_others():
    assert sorted([95, 90, 25, 30], key=lambda new: implausibility(20, new)) == [30, 25, 90, 95]
    chosen = choose_edits(trace_operands(PROBLEMS[0]), 12, random.Random(0))
    eggs = [int(edit.corrupted) for edit in chosen if edit.clean == "16"]
    assert len(eggs) == 4
    assert all(8 <= new <= 24 for new in eggs)


def test_the_funnel_names_every_loss():
    _, funnel = pairs_from_gsm8k(PROBLEMS)
    assert funnel.lines() == [
        ("questions read", "3"), ("- no annotated chain", "1"), ("questions with a pair", "2"), ("pairs written", "2"),
        *[(f"  {edit}", str(count)) for edit, count in sorted(funnel.edits.items())],
    ]  # fmt: skip
    assert Funnel().pairs == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"edits": ["number"]}, "edit 'number' is unknown; use first_operand, later_operand, operator_word"),
        ({"deltas": [0]}, "a delta of 0 changes nothing"),
        ({"deltas": [1000]}, "none of 3 questions yields a pair"),
    ],
)
def test_impossible_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        pairs_from_gsm8k(PROBLEMS, **{"edits": ["first_operand"], **options})


def test_under_a_tokenizer_only_changes_that_keep_the_token_count_are_made(random_checkpoint):
    same_length = equal_tokens(str(random_checkpoint))  # its tokenizer has one token for a word, known or not
    assert same_length("20 nuts", "30 nuts")
    assert not same_length("20 nuts", "30 big nuts")
    with pytest.raises(ValueError, match="no change keeps the token count"):
        pairs_from_gsm8k(PROBLEMS, same_length=lambda a, b: False)


def write(path, problems):
    lines = [json.dumps({"question": p.question, "answer": p.solution}) for p in problems]
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("name", ["pairs.json", "deep/er/pairs.jsonl"])
def test_the_command_prints_the_funnel_and_writes_pairs(tmp_path, name):
    write(tmp_path / "gsm8k.jsonl", PROBLEMS)
    words = ["pairs", "make", str(tmp_path / "gsm8k.jsonl"), "--out", str(tmp_path / name), "--per-question", "2"]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    assert "questions with a pair      2" in said.stdout
    text = (tmp_path / name).read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)
    assert records == pairs_from_gsm8k(PROBLEMS, per_question=2)[0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["bad.jsonl"], "bad.jsonl: line 1: is not valid JSON"),
        (["gsm8k.jsonl", "--delta", "0"], "a delta of 0 changes nothing"),
        (["gsm8k.jsonl", "--edit", "x"], "edit 'x' is unknown"),
        (["gsm8k.jsonl", "--checkpoint", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "gsm8k.jsonl", PROBLEMS)
    (tmp_path / "bad.jsonl").write_text("{")
    said = CliRunner().invoke(app, ["pairs", "make", *words, "--out", "pairs.json"])
    assert said.exit_code == 2
    assert said.stderr.startswith("codi: ")
    assert sentence in said.stderr
    assert not (tmp_path / "pairs.json").exists()


def test_the_source_file_and_a_folder_are_never_replaced(tmp_path):
    source = tmp_path / "gsm8k.json"
    write(source, PROBLEMS)
    before = source.read_bytes()
    for out, sentence in ((source, "is the file of the questions"), (tmp_path, "is no regular file")):
        said = CliRunner().invoke(app, ["pairs", "make", str(source), "--out", str(out)])
        assert (said.exit_code, source.read_bytes()) == (2, before)
        assert sentence in said.stderr
