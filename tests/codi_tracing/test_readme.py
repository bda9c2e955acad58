"""The README's commands and examples work as they are written."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from codi_tracing.cli.main import app
from codi_tracing.traces.training.word_problems import chain_text, draw_problems
from tests.support.upstream import write_upstream

ROOT = Path(__file__).parents[2]
NETWORK = "(needs the network)"  # in the section's heading
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))
SETUP = ("git clone", "make ")


def blocks(language, local=True):
    """The code blocks of a language, of sections that need no network or of those that do."""
    texts = [text for title, text in SECTIONS.items() if (NETWORK not in title) == local]
    return [block for text in texts for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)]


def commands():
    """The lines of the README's shell blocks, in order."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(SETUP)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The files that the README names, where it is run."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "patching/data"):
        shutil.copytree(ROOT / name, folder / name)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def run(line):
    words = shlex.split(line, comments=True)
    assert words[0] == "codi", line
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, f"{line}\n{done.output}"
    return done.stdout


def test_every_command_of_the_readme_that_needs_no_network_works_as_written(clone):
    run("codi run tiny")  # what `make demo` does
    printed = {line: run(line) for line in commands()}
    assert len(printed) >= 10
    assert any("answer  15" in text for text in printed.values())
    assert Path("runs/layerwise/report.html").is_file()


def test_the_demo_of_the_makefile_is_the_run_that_the_readme_reports_on():
    assert "codi run tiny" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_python_examples_of_the_readme_work_as_written(clone):
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert Path("transfer.html").stat().st_size > 10_000
    assert names["thought"].resid.shape[:3] == (4, names["model"].n_layers, names["model"].n_latents)
    assert (names["thought"].resid[:, 2, 3] == 0).all()


def test_commands_that_need_the_network_stand_under_a_heading_that_says_so():
    text = "".join(blocks("bash"))
    assert "hf download" not in text
    assert "zen-E/" not in text
    assert "hf download" in "".join(blocks("bash", local=False))


def test_the_same_commands_work_on_random_weights_and_a_generated_file_in_gsm8ks_format(clone):
    problems = draw_problems(seed=1, count=30)
    write_upstream(clone, "gpt2", [problem.question for problem in problems])
    lines = [{"question": p.question, "answer": f"{chain_text(p)}\n#### {p.answer}"} for p in problems]
    Path("data").mkdir()
    Path("data/gsm8k_test.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    commands = [line for block in blocks("bash", local=False) for line in block.splitlines()]
    local = [line.replace("zen-E/CODI-gpt2", "codi").replace("openai-community/gpt2", "base") for line in commands]
    for line in local:
        if line.startswith("codi run"):  # a random model answers no pair correctly, so the config's filter leaves none
            done = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
            assert "pairs passes the filter 'both_correct'" in done.stderr
            config = Path("configs/gsm8k_gpt2.toml").read_text(encoding="utf-8").replace("both_correct", "usable")
            Path("configs/usable.toml").write_text(config, encoding="utf-8")
            line = "codi run configs/usable.toml --limit 2 --out runs/usable"
        if not line.startswith("hf download"):
            run(line)
    assert Path("runs/usable/report.html").is_file()
    assert Path("runs/lens-codi-gpt2/lens.html").is_file()


def test_every_path_that_the_readme_links_to_exists():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
