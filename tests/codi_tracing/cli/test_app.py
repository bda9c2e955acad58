"""The command line as a whole: help teaches, errors are one sentence with an exit code."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from codi_tracing.cli.app import aligned, from_here
from codi_tracing.patching.runs.lock import lock_folder
from codi_tracing.traces.training.word_problems import chain_text, draw_problems
from tests.support.command_line import codi, refused


def test_help_shows_what_to_type():
    printed = subprocess.run(
        [sys.executable, "-m", "codi_tracing", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for command in ("codi run tiny", "codi pairs check", "codi ask", "codi check", "codi report"):
        assert command in printed
    codes = "Exit codes: 0 done, 1 an invariant failed or a training diverged, 2 bad input, 130 interrupted."
    assert codes in " ".join(printed.split())


@pytest.mark.parametrize(
    "words",
    ["run", "plan", "merge", "report", "check", "train", "ask", "convert", "eval", "pairs check", "pairs make"],
)
def test_every_command_says_what_it_is_for(codi, words):
    printed = codi(*words.split(), "--help")
    assert printed.exit_code == 0
    assert len(printed.stdout.splitlines()[2].split()) > 3


def test_a_folder_that_is_no_run_is_one_sentence(codi):
    assert "expected the folder of a finished run" in refused(codi("report", "."))


def test_a_file_that_may_not_be_read_is_one_sentence(codi, monkeypatch):
    def forbidden(path, kind, **instead):
        raise PermissionError(13, "Permission denied", "config.toml")

    monkeypatch.setattr("codi_tracing.configs.load.load_config", forbidden)
    assert refused(codi("run", "config.toml")) == "codi: config.toml: Permission denied"


def test_a_bug_keeps_its_traceback(codi, monkeypatch):
    def broken(path, kind, **instead):
        raise ZeroDivisionError

    monkeypatch.setattr("codi_tracing.configs.load.load_config", broken)
    assert isinstance(codi("run", "config.toml").exception, ZeroDivisionError)


def test_an_interruption_is_printed_and_has_its_exit_code(codi, monkeypatch):
    def interrupted(path, kind, **instead):
        raise KeyboardInterrupt

    monkeypatch.setattr("codi_tracing.configs.load.load_config", interrupted)
    result = codi("run", "config.toml")
    assert (result.exit_code, result.stderr[:17]) == (130, "codi: interrupted")


def test_columns_are_aligned_and_numbers_stand_to_the_right():
    assert aligned([["layer", "what"], ["0", "a"], ["11", "bc"]]) == "layer  what\n    0  a\n   11  bc"


@pytest.mark.parametrize("words", ["pairs check pairs.json", "run tiny", "report a", "eval thought --data a --out b"])
def test_a_command_in_a_folder_that_was_removed_is_one_sentence(words, codi, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert refused(codi(*words.split())).startswith(
        "codi: the current folder no longer exists; change to one that does"
    )
    assert codi("--help").exit_code == 0


def test_a_sentence_in_the_root_folder_keeps_its_paths_and_addresses(codi, monkeypatch):
    monkeypatch.chdir("/")
    assert from_here("/tmp/a.json: see https://ndif.us") == "/tmp/a.json: see https://ndif.us"
    assert "no_such_folder/manifest.json: no such file" in refused(codi("report", "no_such_folder"))


def test_a_folder_that_may_not_be_written_is_one_sentence(codi, monkeypatch, tmp_path):
    def forbidden(path, *_, **__):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("codi_tracing.cli.checkpoints.write_lines", forbidden)
    (tmp_path / "q.jsonl").write_text('{"question": "How many?", "answer": 1}')
    line = refused(codi("eval", "thought", "--data", "q.jsonl", "--out", "a.jsonl"))
    assert line == "codi: a.jsonl: Read-only file system"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A folder with the inputs of every command that writes where it is told."""
    monkeypatch.chdir(tmp_path)
    lines = [{"question": p.question, "answer": f"{chain_text(p)}\n#### {p.answer}"} for p in draw_problems(1, 12)]
    (tmp_path / "questions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "out"),
    [
        (("pairs", "make", "questions.jsonl", "--out"), "pairs.json"),
        (("pairs", "make", "questions.jsonl", "--out"), "pairs.jsonl"),
        (("eval", "thought", "--data", "questions.jsonl", "--limit", 1, "--steps", 6, "--out"), "answers.jsonl"),
    ],
)
def test_a_command_replaces_a_file_only_when_asked_and_follows_no_link(written, words, out):
    path, notes = written / out, written / "notes.md"
    path.write_text("mine")
    assert f"{out}: exists already; --fresh replaces it, or choose another with --out" in refused(codi(*words, out))
    assert path.read_text() == "mine"
    path.unlink()
    notes.write_text("mine too")
    path.symlink_to(notes)
    assert "exists already" in refused(codi(*words, out))
    assert codi(*words, out, "--fresh").exit_code == 0
    assert notes.read_text() == "mine too"
    assert not path.is_symlink()
    assert "mine" not in path.read_text()
    assert path.stat().st_size > 50
    assert [name for name in os.listdir(written) if name.startswith(".")] == []


def test_a_lens_replaces_another_only_when_asked(written):
    words = ("lens", "thought", "--limit", 1, "--out", "lens")
    assert codi(*words).exit_code == 0
    before = {path: path.read_bytes() for path in (written / "lens").rglob("*") if path.is_file()}
    assert "lens: holds a lens already; --fresh replaces it, or choose another with --out" in refused(codi(*words))
    assert {path: path.read_bytes() for path in (written / "lens").rglob("*") if path.is_file()} == before
    assert codi(*words, "--fresh").exit_code == 0


def test_a_folder_that_another_process_writes_is_refused_to_each_command_that_writes_one(
    written, finished_report, tmp_path
):
    shaped = "[architecture]\n[optimiser]\nsteps = 1\nbatch = 1\nlr = 0.1\n"
    (tmp_path / "train.toml").write_text(f'out = "trained"\n{shaped}')
    run = shutil.copytree(finished_report, tmp_path / "run")
    commands = {
        run: ("report", run),
        written / "lens": ("lens", "thought", "--out", written / "lens", "--fresh", "--limit", 1),
        tmp_path / "trained": ("train", tmp_path / "train.toml"),
    }
    for folder, words in commands.items():
        folder.mkdir(exist_ok=True)
        with lock_folder(folder):
            assert f"another process (pid {os.getpid()}) is writing this folder" in refused(codi(*words))
