"""Question files as public data sets have them, at the command line: read, or refused with advice that holds."""

import json
import shlex

import pytest

from codi_tracing.patching.pairs.pair import load_pairs
from tests.support.command_line import codi
from tests.support.question_files import FILES


@pytest.fixture(autouse=True, params=FILES)
def file(request, tmp_path, monkeypatch):
    """The name of a file in the current folder; how many of its questions are usable, and whether they have a chain."""
    monkeypatch.chdir(tmp_path)
    text, usable, has_chain = FILES[request.param]
    (tmp_path / request.param).write_text(text, encoding="utf-8")
    return request.param, usable, has_chain


def test_check_advises_make_where_pairs_can_be_made_and_each_command_accepts_the_advice_of_the_one_before(file):
    name, usable, has_chain = file
    refused = codi("pairs", "check", name)
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    assert refused.stderr.startswith(f"codi: {name}: holds questions, not pairs of questions")
    assert ("make pairs of them with `codi pairs make" in refused.stderr) == has_chain
    if not has_chain:
        assert "no annotated solutions" in refused.stderr
        made = codi("pairs", "make", name, "--out", "pairs.json")
        assert made.exit_code == 2
        assert made.stderr.startswith(f"codi: none of {usable} questions yields a pair: no annotated chain ({usable})")
        return
    make = shlex.split(refused.stderr.split("`")[1])
    made = codi(*make[1:])
    assert made.exit_code == 0, made.output
    assert f"questions read         {usable:>5}".split() == made.stdout.splitlines()[1].split()
    check = shlex.split(made.stdout.splitlines()[-1].partition("look at them with: ")[2])
    checked = codi(*check[1:])
    assert (checked.exit_code, checked.stderr) == (0, "")
    (pair, *_) = load_pairs(check[-1])
    assert pair.clean.chain
    assert pair.corrupted.chain != pair.clean.chain


def test_eval_answers_the_usable_questions_and_says_how_many_lines_are_left_out(file, random_checkpoint):
    name, usable, _ = file
    words = ("eval", random_checkpoint, "--data", name, "--steps", 6, "--device", "cpu", "--max-new-tokens", 4)
    done = codi(*words, "--out", "answers.jsonl")
    assert done.exit_code == 0, done.output
    assert f"0/{usable}" in done.stdout
    with open("answers.jsonl", encoding="utf-8") as lines:
        assert len({json.loads(line)["line"] for line in lines}) == usable
    if name.startswith("gsm_hard"):
        left = "2 of 7 records left out: line 6: its answer 'none' is no number"
        assert done.stdout.startswith(left)
        assert "line 7: its answer 100000000000000000001 has more digits than a number holds" in done.stdout
    else:
        assert "left out" not in done.stdout


@pytest.mark.parametrize("file", ["gsm_hard.jsonl", "svamp.csv"], indirect=True)
def test_lens_reads_the_usable_questions_too(file, random_checkpoint):
    name, usable, _ = file
    done = codi("lens", random_checkpoint, "--data", name, "--device", "cpu", "--out", "seen")
    assert done.exit_code == 0, done.output
    assert f"of {usable} questions correctly" in done.stdout
    assert ("2 of 7 records left out" in done.stdout) == name.startswith("gsm_hard")
