"""From upstream's weights and GSM8K's file to a report, by the README's commands, on random checkpoints."""

import json
from pathlib import Path

import pytest

from codi_tracing.analysis.io.table_file import read_table
from codi_tracing.traces.gsm8k import read_problems
from tests.support import command_line
from tests.support.places import GSM8K
from tests.support.upstream import write_upstream

CONFIG = """
name = "gsm8k"
checkpoint = "checkpoint"
device = "cpu"
max_new_tokens = 6
[pairs]
file = "pairs.jsonl"
filter = "{filter}"
limit = 6
seed = 1
"""


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    """A converted random checkpoint with its own byte-level tokenizer, and pairs made from GSM8K."""
    if not GSM8K.is_file():
        pytest.skip("GSM8K is not part of the project")
    folder = tmp_path_factory.mktemp(request.param)
    write_upstream(folder, request.param, [problem.question for problem in read_problems(GSM8K).problems])
    for words in (
        ["convert", folder / "codi", "--base", folder / "base", "--alpha", 16, "--out", folder / "checkpoint"],
        ["pairs", "make", GSM8K, "--out", folder / "pairs.jsonl", "--checkpoint", folder / "checkpoint"],
    ):
        done = command_line.codi(*words)
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def codi(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return command_line.codi


def test_hundreds_of_questions_yield_a_pair_of_equal_token_counts(codi, folder):
    done = codi("pairs", "check", "pairs.jsonl", "--json")
    summary = json.loads(done.stdout)
    assert summary["usable"] == summary["pairs"] > 400
    assert summary["edits"]["operator_word"] >= 1


def test_the_experiment_runs_on_these_pairs_and_lists_every_excluded_one(codi, folder):
    Path("config.toml").write_text(CONFIG.format(filter="usable"))
    done = codi("run", "config.toml")
    assert done.exit_code == 0, done.output
    assert "5 of 5 invariants hold." in done.stdout
    data = json.loads(Path("runs/gsm8k/manifest.json").read_text())["data"]
    assert data["read"] == data["usable"] + len(data["excluded"])
    assert data["read"] > 400
    assert (data["used"], data["filter"]) == (6, "usable")
    table = read_table("runs/gsm8k/cells.parquet")
    assert table["pair_id"].nunique() == 6
    assert set(table["edit"].dropna()) <= {"first_operand", "later_operand", "operator_word"}
    assert "pairs used" in Path("runs/gsm8k/report.html").read_text(encoding="utf-8")
    prepared = json.loads(Path("runs/gsm8k/prepared_pairs.json").read_text())
    assert all({"edit", "change", "cluster_id"} <= set(pair) for pair in prepared)


def test_a_random_model_answers_no_pair_correctly_and_the_run_is_refused(codi, folder):
    Path("correct.toml").write_text(CONFIG.format(filter="both_correct"))
    lines = Path("pairs.jsonl").read_text().splitlines()[:5]
    Path("few.jsonl").write_text("\n".join(lines))
    done = codi("run", "correct.toml", "--pairs", "few.jsonl", "--out", "runs/correct")
    assert done.exit_code == 2
    assert "few.jsonl: none of its 5 pairs passes the filter 'both_correct'; for instance pair" in done.stderr


def test_accuracy_is_measured_on_the_file_of_gsm8k(codi, folder):
    done = codi("eval", "checkpoint", "--data", GSM8K, "--limit", 4, "--steps", 6, "--max-new-tokens", 4)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1].endswith("as trained")
