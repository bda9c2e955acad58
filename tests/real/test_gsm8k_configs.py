"""The two shipped GSM8K configs run from upstream's output to the report, over real vocabularies."""

import json
import os
import shutil

import pandas as pd
import pytest

from codi_tracing.traces.evaluate import answers
from codi_tracing.traces.model.loading import load_codi
from codi_tracing.traces.text import last_number
from codi_tracing.traces.training.word_problems import chain_text, draw_problems
from tests.real.bases import write_real
from tests.support.command_line import codi
from tests.support.places import ROOT

CONFIGS = {"gpt2": ("gsm8k_gpt2", "codi-gpt2"), "llama3": ("gsm8k_llama1b", "codi-llama1b")}


def ran(*words):
    result = codi(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module", params=CONFIGS)
def project(request, tmp_path_factory):
    """A folder with a shipped config, the checkpoint that it names, and pairs made from a file in GSM8K's form.

    The random model says numbers; the keys of the pairs are replaced by what it answers, so that it answers them.
    """
    folder, (config, checkpoint) = tmp_path_factory.mktemp(request.param), CONFIGS[request.param]
    before = os.getcwd()
    os.chdir(folder)
    write_real(folder, request.param, [("" if request.param == "llama3" else " ") + str(n) for n in range(1, 13)])
    ran("convert", "codi", "--base", "base", "--alpha", 16, "--out", f"checkpoints/{checkpoint}")
    (folder / "data").mkdir()
    lines = [{"question": p.question, "answer": f"{chain_text(p)}\n#### {p.answer}"} for p in draw_problems(1, 60)]
    (folder / "data" / "gsm8k_test.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    ran(
        "pairs", "make", "data/gsm8k_test.jsonl", "--out", "data/made.json", "--checkpoint", f"checkpoints/{checkpoint}"
    )
    pairs = json.loads((folder / "data" / "made.json").read_text())
    model = load_codi(f"checkpoints/{checkpoint}", device="cpu", dtype="float32")
    sides = [side for pair in pairs for side in (pair["clean"], pair["corrupted"])]
    said = answers(model, [side["question"] for side in sides], max_new_tokens=32)
    for side, text in zip(sides, said, strict=True):
        side["answer"] = last_number(text)
    kept = [p for p in pairs if abs(p["clean"]["answer"] - p["corrupted"]["answer"]) > 0][:6]  # false for NaN
    (folder / "data" / "gsm8k_pairs.json").write_text(json.dumps(kept))
    (folder / "configs").mkdir()
    shutil.copy(ROOT / "configs" / f"{config}.toml", folder / "configs")
    yield folder, config, checkpoint, kept
    os.chdir(before)


def test_a_gsm8k_config_runs_to_its_report_on_the_pairs_that_the_model_answers(project):
    folder, config, checkpoint, kept = project
    assert len(kept) >= 3
    checked = json.loads(
        ran("pairs", "check", "data/gsm8k_pairs.json", "--checkpoint", f"checkpoints/{checkpoint}", "--json")
    )
    assert checked["both_correct"] == checked["usable"] == len(kept)
    printed = ran("run", f"configs/{config}.toml", "--device", "cpu")
    run = folder / "runs" / config
    assert (run / "report.html").is_file()
    table = pd.read_parquet(run / "cells.parquet")
    assert table["pair_id"].nunique() == len(kept)
    assert set(table["layer"].dropna()) == {0, 1}
    assert "Wrong" not in printed
    answer = table[table["metric"] == "answer"]
    assert answer[["clean", "corrupted"]].notna().all(axis=None)


def test_such_a_checkpoint_passes_every_check_and_answers_a_file(project):
    folder, _, checkpoint, _ = project
    assert "FAILED" not in ran(
        "check", f"checkpoints/{checkpoint}", "--pairs", "data/gsm8k_pairs.json", "--device", "cpu"
    )
    ran(
        "eval",
        f"checkpoints/{checkpoint}",
        "--data",
        "data/gsm8k_test.jsonl",
        "--limit",
        4,
        "--steps",
        6,
        "--out",
        "a.jsonl",
    )
    assert len((folder / "a.jsonl").read_text().splitlines()) == 4
    assert "nearest tokens" in ran("ask", f"checkpoints/{checkpoint}", "Ann had 3 pens. How many?")
