"""The README's commands and examples work as they are written."""

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from codi_tracing.cli.main import app

ROOT = Path(__file__).parents[2]
NETWORK = "(needs the network)"  # in the section's heading; tests/theorems/test_published.py runs its local equivalents
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
    assert Path("effect.html").stat().st_size > 10_000
    assert names["thought"].resid.shape[:3] == (4, names["model"].n_layers, names["model"].n_latents)
    assert (names["thought"].resid[:, 2, 3] == 0).all()


def test_commands_that_need_the_network_stand_under_a_heading_that_says_so():
    text = "".join(blocks("bash"))
    assert "hf download" not in text
    assert "zen-E/" not in text
    assert "hf download" in "".join(blocks("bash", local=False))


def test_every_path_that_the_readme_links_to_exists():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
