"""codi check, ask, train: what is refused."""

import json

from codi_tracing.traces.training.word_problems import build_tokenizer
from tests.support.command_line import PAIR, refused
from tests.support.tokenizers import write_base


def test_a_config_for_another_command_is_one_sentence(codi, config):
    wanted = "config.toml: is a config for `codi run`, expected one for `codi train`"
    assert refused(codi("train", config())) == f"codi: {wanted}"


def test_a_folder_that_is_no_checkpoint_is_one_sentence(codi, tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps(PAIR))
    assert "no codi.json in it" in refused(codi("check", ".", "--pairs", "pairs.json"))
    assert "model: no such folder" in refused(codi("ask", "model", "How many?"))


def test_an_empty_question_is_one_sentence(codi):
    assert refused(codi("ask", "model", " ")) == "codi: the question is empty; put one in quotes"


def test_training_without_its_base_is_one_sentence(codi, config):
    text = 'out = "a"\nbase = "b"\n[codi]\n[optimiser]\nsteps = 1\nbatch = 1\nlr = 1e-3\n'
    assert refused(codi("train", config(text))).startswith("codi: b: holds no base model; train it first")


def test_a_training_that_diverges_is_one_sentence_with_its_exit_code(codi, config, tmp_path):
    write_base(tmp_path / "b", build_tokenizer())
    text = 'out = "a"\nbase = "b"\n[codi]\nrank = 2\nprj_dim = 8\n[optimiser]\nsteps = 4\nbatch = 2\nlr = 1e30\n'
    result = codi("train", config(text))
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("codi: ")]
    assert "expected finite numbers; lower optimiser.lr, which is 1e+30" in line
    assert not list((tmp_path / "a").iterdir())
