"""The tutorials: what is saved is what their scripts say, runs as it stands, and shows on any machine."""

import re
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest

from codi_tracing.analysis.notebooks.execute import SECONDS, execute, read, saved, scripts
from tests.support.places import ROOT

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
every = pytest.mark.parametrize("script", scripts(), ids=lambda script: script.stem)


def kept(script: Path) -> nbformat.NotebookNode:
    return nbformat.read(saved(script), as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """What a notebook says in words and tables, its pictures' descriptions left out."""
    shown = [output for output in outputs(notebook) if "image/png" not in output.get("data", {})]
    return [output.get("text") or output["data"]["text/plain"] for output in shown]


def test_there_are_four():
    assert [script.stem for script in scripts()] == [
        "01_one_pair",
        "02_the_grid",
        "03_your_own_intervention",
        "04_real_checkpoint",
    ]


@every
def test_a_saved_notebook_has_its_script_s_cells(script):
    def cells(notebook):
        return [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells]

    assert cells(kept(script)) == cells(read(script)), "run `make notebooks`"


@every
def test_a_notebook_runs_and_says_what_its_saved_copy_says(script, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))  # else a published checkpoint that lies there would be converted
    start = time.monotonic()
    fresh, was = texts(execute(read(script))), texts(kept(script))
    seconds = time.monotonic() - start
    # Whoever has a published checkpoint, or GSM8K, in the repository reads more than the saved copy could tell.
    same = [(new, old) for new, old in zip(fresh, was, strict=True) if not old.startswith("SKIPPED")]
    assert seconds < SECONDS or [old for old in was if old not in fresh and old.startswith("SKIPPED")]
    for new, old in same:
        assert NUMBER.sub("#", new).split() == NUMBER.sub("#", old).split()
        numbers = (np.array(NUMBER.findall(text), float) for text in (new, old))
        np.testing.assert_allclose(*numbers, rtol=0.02, atol=0.02)  # other processors round otherwise


@every
def test_a_saved_notebook_shows_pictures_and_no_errors_or_warnings(script):
    shown = outputs(kept(script))
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert not [output for output in shown if output.output_type == "error" or output.get("name") == "stderr"]
    code = [cell for cell in kept(script).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


@every
def test_a_saved_notebook_does_not_tell_where_it_was_made(script):
    text = saved(script).read_text(encoding="utf-8")
    places = (str(ROOT), str(Path.home()), "/home/", "/root/", "/tmp/", "/Users/", "site-packages")
    assert [place for place in places if place in text and len(place) > 2] == []
    assert set(kept(script).metadata) == {"jupytext", "kernelspec", "language_info"}
    assert not any("execution" in cell.metadata for cell in kept(script).cells)  # when it ran
