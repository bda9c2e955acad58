"""A model may say anything: a decoded number of 39 or more digits costs a pair at most, in every command."""

import json
import shutil

import pandas as pd
import pytest

from codi_tracing.traces.evaluate import answers
from codi_tracing.traces.model.loading import load_codi
from codi_tracing.traces.text import last_number
from tests.support.command_line import codi, small_run

LONG = "9" * 40


@pytest.fixture(scope="module")
def talkative(random_checkpoint, pairs_file, tmp_path_factory):
    """The random model with a tokenizer in which nearly every number that no pair has stands for one of 40 digits."""
    folder = shutil.copytree(random_checkpoint, tmp_path_factory.mktemp("talkative") / "model")
    path = folder / "base" / "tokenizer.json"
    tokenizer, pairs = json.loads(path.read_text()), pairs_file.read_text()
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {
        f"{LONG}{index}" if word.isdecimal() and word not in pairs else word: index
        for word, index in vocabulary.items()
    }
    path.write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def strict(text):
    """The value of JSON that holds no NaN and no infinity."""

    def refused(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refused)


def test_the_model_says_numbers_of_40_digits(talkative, pairs):
    said = answers(load_codi(talkative, device="cpu"), [pair.clean.question for pair in pairs])
    assert sum(LONG in text for text in said) > 6
    assert all(not abs(last_number(text)) >= 1e38 for text in said)


@pytest.mark.parametrize("experiment", ["sweep", "early_stop", "influence"])
def test_a_run_ends_with_a_report_whose_files_hold_no_infinity(tmp_path, talkative, pairs_file, experiment):
    config = small_run(tmp_path, talkative, pairs_file)
    if experiment != "sweep":
        text = (tmp_path / config).read_text().replace('metrics = ["logit_difference"]\n', "")
        (tmp_path / config).write_text(f'experiment = "{experiment}"\n{text}')
    else:
        text = (tmp_path / config).read_text().replace('["logit_difference"]', '["answer", "logit_difference"]')
        (tmp_path / config).write_text(text)
    done = codi("run", config)
    assert done.exit_code == 0, done.output
    for path in (tmp_path / "runs" / "small").glob("*.json"):
        strict(path.read_text(encoding="utf-8"))
    table = pd.read_parquet(tmp_path / "runs" / "small" / "cells.parquet")
    assert table[["patched", "clean", "corrupted"]].abs().max().max() < 1e38
    assert not table["patched"].isna().all()


def test_every_other_command_that_reads_answers_writes_json_without_infinity(tmp_path, talkative, pairs_file):
    checked = codi("pairs", "check", pairs_file, "--checkpoint", talkative, "--device", "cpu", "--json")
    assert checked.exit_code == 0, checked.output
    assert strict(checked.stdout)["pairs"] == 12
    questions = [{"question": pair["question"], "answer": 7} for pair in json.loads(pairs_file.read_text())]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    data = ("--data", "questions.json", "--device", "cpu")
    assert codi("eval", talkative, *data, "--steps", 6, "--out", "answers.jsonl").exit_code == 0
    scored = [strict(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert any(LONG in answer["text"] for answer in scored)
    seen = codi("lens", talkative, *data, "--limit", 2)
    assert seen.exit_code == 0, seen.output
    for question in questions[:2]:
        asked = codi("ask", talkative, question["question"], "--device", "cpu")
        assert asked.exit_code == 0, asked.output
        assert "answer" in asked.stdout
