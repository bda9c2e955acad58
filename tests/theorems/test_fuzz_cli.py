"""The command line on damaged files: exit code 0, 1 or 2, and error sentences on stderr, never a traceback."""

import json
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.command_line import codi
from tests.support.mutations import as_json, fuzz, mutated_json, mutated_jsonl, mutated_toml
from tests.support.pair_records import PAIRS, PROBLEMS
from tests.support.places import ROOT
from tests.support.run_folders import SMALL_FILES, make_run
from tests.support.tables import experiment

CONFIG = {"name": "a", "checkpoint": "model", "pairs": {"file": "pairs.json", "limit": 3}, "kinds": ["resid", "mlp"]}


def outcome(*words, lines=1):
    """A command's outcome; its exit code must be 0, 1 or 2, and stderr must hold at most so many error sentences."""
    result = codi(*words)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)[:300]
    assert result.exit_code in (0, 1, 2), result.exit_code
    errors = result.stderr.split("\n")[:-1]
    assert len(errors) <= lines, errors[:3]
    assert all(line.startswith("codi: ") and len(line) < 6_000 and line.isprintable() for line in errors), errors[:3]
    assert bool(errors) == bool(result.exit_code)
    assert "Traceback" not in result.output
    return ("done", "stopped", "refused")[result.exit_code]


def here(path, data):
    Path(path).write_bytes(data)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with good inputs of every command, where no model is loaded."""

    def no_model(*_, **__):
        raise ValueError("model: reached, and not loaded in this test")

    monkeypatch.chdir(tmp_path)
    import_module("codi_tracing.patching.runs.experiment")  # while patched, it would keep `no_model` for later tests
    monkeypatch.setattr("codi_tracing.traces.model.loading.load_codi", no_model)
    here("pairs.json", as_json(PAIRS[0]))
    here("config.toml", b'name = "a"\ncheckpoint = "model"\npairs.file = "pairs.json"\n')
    return tmp_path


@pytest.fixture
def reading_only(monkeypatch):
    """`codi run` reads its files and stops, as after a failed invariant."""
    from codi_tracing.patching.pairs.pair import load_pairs
    from codi_tracing.patching.runs.experiment import InvariantError

    def stopped(config, out, **_):
        load_pairs(config.pairs.file)
        raise InvariantError("Everything was read.")

    monkeypatch.setattr("codi_tracing.patching.runs.experiment.run_experiment", stopped)


def test_run_takes_or_refuses_any_config(folder, reading_only):
    def read(data):
        here("config.toml", data)
        return outcome("run", "config.toml", "--pairs", "pairs.json")

    shipped = tomllib.loads((ROOT / "configs" / "sitewise.toml").read_text(encoding="utf-8"))
    seen = fuzz("codi run, configs", mutated_toml([CONFIG, shipped]), read, 150)
    assert min(seen["stopped"], seen["refused"]) > 5


def test_run_takes_or_refuses_any_pairs(folder, reading_only):
    def read(data):
        here("pairs.json", data)
        return outcome("run", "config.toml")

    seen = fuzz("codi run, pairs", mutated_json(PAIRS), read, 100)
    assert min(seen["stopped"], seen["refused"]) > 5


def test_train_takes_or_refuses_any_config(folder, monkeypatch):
    def stopped(settings, say, fresh):
        raise ValueError("read, and not trained in this test")

    monkeypatch.setattr("codi_tracing.traces.training.train.train", stopped)
    shipped = tomllib.loads((ROOT / "configs" / "train_base.toml").read_text(encoding="utf-8"))

    def read(data):
        here("config.toml", data)
        return outcome("train", "config.toml", "--out", "out")

    fuzz("codi train", mutated_toml([shipped]), read, 50)


def test_pairs_check_describes_or_refuses_any_file(folder):
    def read(data):
        here("pairs.json", data)
        plain = outcome("pairs", "check", "pairs.json", lines=21)
        result = codi("pairs", "check", "pairs.json", "--json")
        json.loads(result.stdout)
        return plain

    seen = fuzz("codi pairs check", mutated_json(PAIRS) | mutated_jsonl(PAIRS), read, 150)
    assert min(seen["done"], seen["refused"]) > 2


def test_pairs_make_makes_pairs_of_any_questions_or_refuses_them(folder):
    def read(data):
        here("questions.jsonl", data)
        return outcome("pairs", "make", "questions.jsonl", "--out", "made.json")

    fuzz("codi pairs make", mutated_jsonl([PROBLEMS]), read, 100)


def test_eval_and_check_refuse_any_data_before_they_load_a_model(folder):
    def read(data):
        here("data", data)
        return f"{outcome('eval', 'model', '--data', 'data')}, {outcome('check', 'model', '--pairs', 'data')}"

    fuzz("codi eval and check", mutated_jsonl([PROBLEMS]) | mutated_json(PAIRS), read, 100)


def test_report_shows_or_refuses_any_run(folder, monkeypatch):
    for module in ("write", "conclusions"):
        monkeypatch.setattr(f"codi_tracing.analysis.report.{module}.figures_of_run", lambda *_: ())
    monkeypatch.setattr("codi_tracing.analysis.report.write.vega_bundle", lambda: "")
    monkeypatch.setattr("codi_tracing.analysis.report.write.save_pairs", lambda *_: {})
    sides = {side: {"question": "9?", "answer": 1} for side in ("clean", "corrupted")}
    run = make_run(folder / "run", experiment(pairs=2), [{"pair_id": i, **sides} for i in (0, 1)])
    for name in SMALL_FILES:
        good = (run / name).read_bytes()

        def read(data, path=run / name):
            path.write_bytes(data)
            return outcome("report", "run")

        fuzz(f"codi report, {name}", mutated_json([json.loads(good)]), read, 15)
        (run / name).write_bytes(good)
