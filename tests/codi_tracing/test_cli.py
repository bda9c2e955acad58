"""The command line: each bad input is one sentence and exit code 2; --help is quick and teaches."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from codi_tracing.cli.app import aligned, app

ROOT = Path(__file__).parents[2]
GOOD = {"pair_id": 0, "question": "Ann had 7 pens. How many?"}
PAIR = [{**GOOD, "variant": "clean", "answer": 7}, {**GOOD, "variant": "corrupted", "answer": 8, "question": "8?"}]


@pytest.fixture
def codi(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def config(tmp_path):
    def write(text='name = "a"\ncheckpoint = "model"\npairs.file = "pairs.json"\n'):
        (tmp_path / "config.toml").write_text(text, encoding="utf-8")
        return "config.toml"

    return write


def refused(result) -> str:
    """The sentence of a refusal: exit code 2, one line on stderr, nothing on stdout."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    line, *rest = result.stderr.splitlines()
    assert rest == []
    assert line.startswith("codi: ")
    return line


def test_help_is_quick_and_shows_what_to_type():
    started = time.monotonic()
    said = subprocess.run(
        [sys.executable, "-m", "codi_tracing", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert time.monotonic() - started < 5  # 0.2 s, but for a busy machine
    for command in ("codi run configs/tiny.toml", "codi pairs check", "codi ask", "codi check", "codi report"):
        assert command in said
    assert "Exit codes: 0 done, 1 an invariant failed, 2 bad input, 130 interrupted." in said


@pytest.mark.parametrize(
    "words",
    ["run", "plan", "merge", "report", "check", "train", "card", "ask", "convert", "eval", "pairs check", "pairs make"],
)
def test_every_command_says_what_it_is_for(codi, words):
    said = codi(*words.split(), "--help")
    assert said.exit_code == 0
    assert len(said.stdout.splitlines()[2].split()) > 3


def test_a_missing_config_is_one_sentence(codi):
    assert refused(codi("run", "nope.toml")).startswith("codi: nope.toml: no such file; give a TOML config")


def test_an_unknown_key_is_one_sentence_with_the_nearest_key(codi, config):
    config('name = "a"\ncheckpoint = "model"\npairs.file = "pairs.json"\nlimt = 3')
    assert "unknown key 'limt', the nearest known key is 'pairs.limit'" in refused(codi("run", "config.toml"))


def test_a_wrong_option_is_named_as_it_was_typed(codi, config):
    said = refused(codi("run", config(), "--limit", "0", "--dtype", "fp16"))
    assert "--limit is 0, wanted 1 or more; --dtype is 'fp16', wanted 'auto'" in said


def test_a_config_for_another_command_is_one_sentence(codi, config):
    wanted = "config.toml: is a config for `codi run`, wanted one for `codi train`"
    assert refused(codi("train", config())) == f"codi: {wanted}"


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        (PAIR[:1], "pair 0: its corrupted side is missing"),
        ([*PAIR, PAIR[0]], "pair 0: its clean side occurs 2 times"),
        ([PAIR[0], {**PAIR[1], "answer": "8"}], "'answer' is \"8\", expected a number"),
        ([PAIR[0], {**PAIR[1], "answer": 7}], "both answers are 7, so their logit difference is always 0"),
        ([], "the list is empty"),
    ],
)
def test_bad_pairs_are_one_sentence_when_checked(codi, tmp_path, pairs, sentence):
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    result = codi("pairs", "check", "pairs.json")
    assert result.exit_code == 2
    assert result.stderr.startswith("codi: pairs.json: ")
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_bad_pairs_are_one_sentence_when_run(codi, config, tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps(PAIR[:1]))
    assert "pairs.json: pair 0: its corrupted side is missing" in refused(codi("run", config()))


def test_paths_on_the_command_line_are_relative_to_the_current_folder(codi, config, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / config()).rename(tmp_path / "deep" / "config.toml")
    assert refused(codi("run", "deep/config.toml")).startswith("codi: deep/pairs.json: no such file")
    said = refused(codi("run", "deep/config.toml", "--pairs", "mine.json"))
    assert said.startswith("codi: mine.json: no such file")


def test_pairs_check_describes_a_good_file_and_gives_it_as_json(codi, tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps(PAIR))
    result = codi("pairs", "check", "pairs.json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "1 in 1 clusters, 1 usable" in result.stdout
    assert json.loads(codi("pairs", "check", "pairs.json", "--json").stdout)["pairs"] == 1


def test_pairs_check_gives_problems_as_json_too(codi):
    result = codi("pairs", "check", "nope.json", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["problems"] == [
        "no such file; give a JSON list of clean and corrupted records, or a shipped file: arithmetic"
    ]


def test_pairs_check_names_the_first_of_many_unusable_pairs_and_lists_them_all(codi, tmp_path):
    same = [{**side, "pair_id": i, "answer": 7} for i in range(30) for side in PAIR]
    (tmp_path / "pairs.json").write_text(json.dumps(same))
    result = codi("pairs", "check", "pairs.json")
    sentence = "30 of 30 pairs are not usable; the first is pair 0: both answers are 7"
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert result.stderr.startswith(f"codi: pairs.json: {sentence}")
    heads, *lines, more = result.stdout.split("\n\n")[1].splitlines()
    assert heads.split()[:2] == ["pair", "verdict"]
    assert (len(lines), more) == (20, "… and 10 more pairs; --json lists all")
    found = json.loads(codi("pairs", "check", "pairs.json", "--json").stdout)
    assert (found["usable"], len(found["equal_answers"]), len(found["each"])) == (0, 30, 30)


def test_pairs_check_names_twenty_faults_of_a_file_and_counts_the_others(codi, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("oops\n" * 50)
    result = codi("pairs", "check", "pairs.jsonl")
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 21)
    assert result.stderr.endswith("codi: pairs.jsonl: … and 30 more problems; --json lists all\n")
    assert len(json.loads(codi("pairs", "check", "pairs.jsonl", "--json").stdout)["problems"]) == 50


def test_pairs_check_under_a_checkpoint_measures_both_sides(codi):
    thought, shipped = ROOT / "traces" / "embedded" / "thought", ROOT / "patching" / "data" / "arithmetic_pairs.json"
    result = codi("pairs", "check", shipped, "--checkpoint", thought, "--device", "cpu")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "both sides in 66 of 66 pairs asked" in result.stdout


def test_pairs_check_says_which_metrics_a_wrongly_answered_pair_lacks(codi, pairs_file, random_checkpoint):
    result = codi("pairs", "check", pairs_file, "--checkpoint", random_checkpoint, "--device", "cpu")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "12 usable with some metrics" in result.stdout
    assert "all but answer_is_clean and answer_is_corrupted" in result.stdout
    words = ["pairs", "check", pairs_file, "--checkpoint", random_checkpoint, "--device", "cpu", "--json"]
    found = json.loads(codi(*words).stdout)
    assert (found["usable"], found["both_correct"]) == (12, 0)
    assert len({*found["wrong_clean"], *found["wrong_corrupted"]}) == 12


@pytest.mark.parametrize("name", ["empty.json", "half.json", "binary.json", "folder", "nope.json"])
def test_pairs_check_says_in_one_sentence_that_a_file_holds_no_pairs(codi, tmp_path, name):
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "half.json").write_text(json.dumps(PAIR)[:90])
    (tmp_path / "binary.json").write_bytes(bytes(range(256)))
    (tmp_path / "folder").mkdir()
    assert refused(codi("pairs", "check", name)).startswith(f"codi: {name}: ")


def test_pairs_check_refuses_a_folder_that_is_no_checkpoint_in_one_sentence(codi, tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps(PAIR))
    assert "no codi.json in it" in refused(codi("pairs", "check", "pairs.json", "--checkpoint", "."))
    assert "no such folder" in refused(codi("pairs", "check", "pairs.json", "--checkpoint", "nope"))


def test_a_folder_that_is_no_checkpoint_is_one_sentence(codi, tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps(PAIR))
    assert "no codi.json in it" in refused(codi("check", ".", "--pairs", "pairs.json"))
    assert "model: no such folder" in refused(codi("ask", "model", "How many?"))


def test_a_folder_that_is_no_run_is_one_sentence(codi):
    assert "wanted the folder of a finished run" in refused(codi("report", "."))


def test_an_empty_question_is_one_sentence(codi):
    assert refused(codi("ask", "model", " ")) == "codi: the question is empty; put one in quotes"


def test_training_without_its_base_is_one_sentence(codi, config):
    text = 'out = "a"\nbase = "b"\n[codi]\n[optimiser]\nsteps = 1\nbatch = 1\nlr = 1e-3\n'
    assert refused(codi("train", config(text))).startswith("codi: b: no base model there; train it first")


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


def test_an_interruption_is_said_and_has_its_exit_code(codi, monkeypatch):
    def interrupted(path, kind, **instead):
        raise KeyboardInterrupt

    monkeypatch.setattr("codi_tracing.configs.load.load_config", interrupted)
    result = codi("run", "config.toml")
    assert (result.exit_code, result.stderr[:17]) == (130, "codi: interrupted")


def test_columns_are_aligned_and_numbers_stand_to_the_right():
    assert aligned([["layer", "what"], ["0", "a"], ["11", "bc"]]) == "layer  what\n    0  a\n   11  bc"


def test_a_run_prints_the_report_the_corners_the_verdict_and_the_largest_layers(
    codi, config, random_checkpoint, pairs_file
):
    config('name = "a"\ncheckpoint = "model"\npairs.file = "pairs.json"\nout = "runs/a"')
    result = codi("run", "config.toml", "--checkpoint", random_checkpoint, "--pairs", pairs_file, "--device", "cpu")
    assert result.exit_code == 0, result.output
    for part in (
        "Report: runs/a/report.html",
        "5 of 5 invariants hold.",
        "question   thought",
        "residual stream, layer 0",
    ):
        assert part in result.stdout
    assert Path("runs/a/report.html").is_file()
    again = codi("report", "runs/a")
    assert (again.exit_code, again.stdout) == (0, result.stdout)
    once_more = codi("run", "config.toml", "--checkpoint", random_checkpoint, "--pairs", pairs_file, "--device", "cpu")
    assert "runs/a holds this very run, finished; --fresh runs it again" in once_more.stderr
    refusal = refused(
        codi("run", "config.toml", "--checkpoint", random_checkpoint, "--pairs", pairs_file, "--limit", 3)
    )
    assert "runs/a: holds another run" in refusal


def test_an_invariant_that_fails_is_one_sentence_and_exit_code_1(codi, config, monkeypatch):
    from codi_tracing.patching.runs.experiment import InvariantError

    def broken(config, out, **options):
        raise InvariantError("Writing a run's own values changes a logit by 0.3 (allowed 1e-05).")

    monkeypatch.setattr("codi_tracing.patching.runs.experiment.run_experiment", broken)
    result = codi("run", config())
    assert result.exit_code == 1
    assert result.stderr == "codi: Writing a run's own values changes a logit by 0.3 (allowed 1e-05).\n"


def small_run(folder, checkpoint, pairs):
    """A config of a run that takes a moment."""
    text = f'name = "small"\ncheckpoint = "{checkpoint}"\npairs_per_batch = 2\nmetrics = ["logit_difference"]\n'
    (folder / "small.toml").write_text(f'{text}[pairs]\nfile = "{pairs}"\nlimit = 6\n', encoding="utf-8")
    return "small.toml"


def test_slices_are_run_into_folders_of_their_own_and_merged(codi, tmp_path, random_checkpoint, pairs_file):
    config = small_run(tmp_path, random_checkpoint, pairs_file)
    for part in ("1/2", "2/2"):
        done = codi("run", config, "--shard", part)
        assert done.exit_code == 0
        folder = f"runs/small.{part.replace('/', '-of-')}"
        assert done.stdout == f"slice {part} is in {folder}; when all are there: codi merge RUN… --out DIR\n"
    assert "holds this very run, finished" in codi("run", config, "--shard", "2/2").stderr
    told = refused(codi("report", "runs/small.1-of-2"))
    assert told.endswith("is slice 1/2 of a run and has no table; join the slices: codi merge RUN… --out DIR")
    told = refused(codi("merge", "runs/small.1-of-2", "--out", "runs/all"))
    assert told == "codi: slice 2/2 is missing; run it: codi run CONFIG --shard 2/2"
    merged = codi("merge", "runs/small.1-of-2", "runs/small.2-of-2", "--out", "runs/all")
    assert merged.exit_code == 0, merged.output
    assert "Report: runs/all/report.html" in merged.stdout
    assert codi("run", config, "--out", "runs/alone").exit_code == 0
    alone, joined = (tmp_path / "runs" / name / "cells.parquet" for name in ("alone", "all"))
    assert alone.read_bytes() == joined.read_bytes()


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b", "1/2/3", "-1/2", "1/0", "1/1000000"])
def test_a_slice_that_is_none_is_one_sentence(codi, tmp_path, random_checkpoint, pairs_file, part):
    config = small_run(tmp_path, random_checkpoint, pairs_file)
    told = refused(codi("run", config, f"--shard={part}"))
    assert told == f"codi: --shard is {part!r}, wanted i/n with i from 1 to n, as 2/8"


def test_a_run_that_is_interrupted_says_how_far_it_is_and_ends_with_130(
    codi, tmp_path, random_checkpoint, pairs_file, monkeypatch
):
    import os
    import signal

    from codi_tracing.patching.engine import sweep as engine

    config, run_batch, calls = small_run(tmp_path, random_checkpoint, pairs_file), engine.run_batch, []

    def interrupting(*args):
        calls.append(None)
        if len(calls) == 3:  # the first two are the checks'
            os.kill(os.getpid(), signal.SIGINT)
        return run_batch(*args)

    monkeypatch.setattr(engine, "run_batch", interrupting)
    done = codi("run", config)
    assert done.exit_code == 130
    assert done.stderr.endswith(
        "codi: interrupted; 1 of 3 batches of this sweep are saved, the same command goes on from there\n"
    )
    again = codi("run", config)
    assert again.exit_code == 0
    assert len(calls) == 5  # neither the checks nor the saved batch anew


def test_memory_that_runs_out_is_one_sentence(codi, tmp_path, random_checkpoint, pairs_file, monkeypatch):
    import torch

    from codi_tracing.patching.engine import batch

    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(batch, "start_cells", full)
    done = codi("run", small_run(tmp_path, random_checkpoint, pairs_file))
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("codi: pair ")
    assert "one cell of one pair does not fit into memory" in done.stderr
