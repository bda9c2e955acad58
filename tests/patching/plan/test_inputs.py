"""A run is planned without weights or pairs, and every assumption is listed."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.support.planning import ROOT


@pytest.mark.parametrize(("name", "shape"), [("gsm8k_llama1b", "llama-3.2-1b-instruct"), ("gsm8k_gpt2", "gpt2")])
def test_a_run_is_planned_without_weights_pairs_or_torch(name, shape, tmp_path):
    (tmp_path / "deeper").mkdir()
    shutil.copy(ROOT / f"configs/{name}.toml", tmp_path / "deeper")
    code = f"import sys; sys.argv = ['codi', 'plan', 'deeper/{name}.toml']\nfrom codi_tracing.cli.main import main\n"
    code += "try:\n    main()\nexcept SystemExit as end:\n    print(end.code, *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert not done.stderr
    *lines, modules = done.stdout.splitlines()
    status, *loaded = modules.split()
    assert status == "0"
    assert not {"torch", "nnsight", "transformers", "pandas"} & set(loaded)
    text = "\n".join(lines)
    assert f"is missing: its name suggests the shape {shape} (change with --shape)" in text
    assert "The pairs file gsm8k_pairs.json is missing: 66 pairs are assumed (see --pairs)" in text
    assert "every question has 70 tokens" in text.replace("Every", "every")


def test_the_known_shape_of_a_missing_base_gives_the_sizes(folder, tmp_path, codi_plan):
    shutil.copytree(folder, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("base"))
    card = json.loads((folder / "codi.json").read_text())
    (tmp_path / "checkpoint/codi.json").write_text(json.dumps({**card, "base": "gpt2"}))
    done = codi_plan(ROOT / "configs/tiny.toml", "--checkpoint", "checkpoint")
    assert "- The sizes are those of the shape gpt2, because " in done.stdout
    assert "its base gpt2 is no folder here and not in the local Hugging Face cache" in done.stdout
    assert "66 pairs of arithmetic_pairs.json are a contrast as texts; no tokenizer has read them" in done.stdout
    (tmp_path / "checkpoint/codi.json").write_text(json.dumps({**card, "base": "base"}))
    done = codi_plan(ROOT / "configs/tiny.toml", "--checkpoint", "checkpoint")
    assert (done.exit_code, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--shape", "llama-9"), "shape 'llama-9' is unknown; use gpt2, llama-3.1-8b, llama-3.2-1b-instruct, llama"),
        (("--pairs", "-3"), "--pairs is -3, expected 1 to 1000000"),
        (("--tokens", "0"), "--tokens is 0, expected 1 to 1000000"),
        (("--tflops", "-1"), "--tflops is -1, expected a number above 0"),
        (("--limit", "-1"), "--limit is -1, expected 1 or more"),
        (("--shard", "3/2"), "--shard is '3/2', expected i/n"),
        (("--checkpoint", "somewhere"), "its name suggests no size; give --shape, one of gpt2, "),
        (("--shape", "gpt2", "--tokens", "2000"), "a pair needs 2014 positions, the model has 1024"),
    ],
)
def test_each_bad_input_is_one_sentence(words, sentence, codi_plan):
    done = codi_plan(ROOT / "configs/gsm8k_llama1b.toml", *words)
    assert done.exit_code == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert sentence in line


def test_a_training_and_shards_of_gradients_are_not_planned(codi_plan):
    assert "expected one for `codi run`" in codi_plan(ROOT / "configs/train_base.toml").stderr
    assert "cannot be run in shards" in codi_plan(ROOT / "configs/attribution.toml", "--shard", "1/2").stderr
