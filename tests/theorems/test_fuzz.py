"""Every reader on damaged files: it loads them or raises our own error with one sentence, and nothing else.

`CODI_FUZZ=10` tries ten times as many inputs, drawn afresh; `-s` shows how many of each were refused.
"""

import io
import json
import shutil
import tomllib

import pandas as pd
import pytest
from hypothesis import strategies as st

from codi_tracing.analysis.io.html import render
from codi_tracing.analysis.io.run_folder import read_checks, read_manifest, read_prepared
from codi_tracing.analysis.report.conclusions import mark
from codi_tracing.analysis.report.finished_run import FinishedRun
from codi_tracing.analysis.report.sections import report_values
from codi_tracing.analysis.statistics.results import Results
from codi_tracing.configs.load import KEYS, ConfigError, load_config, shipped_configs
from codi_tracing.configs.schema import RunConfig
from codi_tracing.configs.train_schema import TrainConfig
from codi_tracing.patching.pairs.json_records import PairsError
from codi_tracing.patching.pairs.pair import as_json, load_pairs, pairs_from_records, write_pairs
from codi_tracing.traces.gsm8k import DataError, read_problems
from codi_tracing.traces.model.checkpoint import (
    CARD,
    TENSORS,
    CheckpointError,
    base_location,
    read_card,
    read_projection,
    read_tensors,
)
from tests.support.mutations import (
    NASTY_TEXT,
    fuzz,
    mutated_bytes,
    mutated_folder,
    mutated_json,
    mutated_jsonl,
    mutated_safetensors,
    mutated_toml,
    odd_values,
)
from tests.support.pair_records import PAIRS, PROBLEMS
from tests.support.question_files import FILES
from tests.support.run_folders import SMALL_FILES, make_run
from tests.support.tables import experiment, one_row


def outcome(read, *kinds, about=None):
    """`loaded` or `refused`: an error must be of exactly these kinds and one readable sentence about that file."""
    raised = None
    try:
        read()
    except kinds as error:
        raised = error
    if raised is None:
        return "loaded"
    message = str(raised)
    assert type(raised) in kinds, repr(raised)[:500]
    assert about is None or message.startswith(str(about)), message[:500]
    assert 10 < len(message.removeprefix(str(about))) < 6_000, f"{len(message)} characters: {message[:500]}"
    message.encode()  # it can be printed
    return "refused"


def of_both(seen):
    """Some inputs were loaded and some refused."""
    assert min(seen["loaded"], seen["refused"]) > seen.total() / 200, seen
    return seen


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_pairs_load_or_are_refused_with_a_pairs_error(tmp_path, ending):
    path, again = tmp_path / f"pairs.{ending}", tmp_path / "again.json"

    def read(data):
        path.write_bytes(data)
        loaded = []
        result = outcome(lambda: loaded.extend(load_pairs(path)), PairsError, about=path)
        if loaded:  # loaded pairs are written and read back unchanged
            write_pairs(loaded, again)
            assert load_pairs(again) == loaded
        return result

    strategy = mutated_json(PAIRS) if ending == "json" else mutated_jsonl(PAIRS) | mutated_json(PAIRS)
    of_both(fuzz(f"pairs, {ending}", strategy, read, 600))


def test_parsed_records_are_pairs_or_are_refused_with_a_pairs_error():
    def read(records):
        return outcome(lambda: [as_json(pair) for pair in pairs_from_records(records)], PairsError)

    fuzz("parsed records", odd_values, read, 300)


@pytest.mark.parametrize("kind", [RunConfig, TrainConfig])
def test_configs_load_or_are_refused_with_a_config_error(tmp_path, kind):
    path = tmp_path / "config.toml"
    shipped = [tomllib.loads(path.read_text(encoding="utf-8")) for path in shipped_configs().values()]
    seeds = [values for values in shipped if ("optimiser" in values) == (kind is TrainConfig)]

    def read(data):
        path.write_bytes(data)
        return outcome(lambda: load_config(path, kind), ConfigError, about=path)

    of_both(fuzz(f"{kind.__name__} files", mutated_toml(seeds), read, 600))


@pytest.mark.parametrize("kind", [RunConfig, TrainConfig])
def test_any_value_of_any_key_is_taken_or_refused_with_a_config_error(tmp_path, kind):
    path = tmp_path / "config.toml"
    least = {
        RunConfig: 'name = "a"\ncheckpoint = "b"\npairs.file = "c"',
        TrainConfig: 'out = "a"\n[architecture]\n[optimiser]\nsteps = 1\nbatch = 1\nlr = 0.1',
    }
    path.write_text(least[kind])

    def read(given):
        return outcome(lambda: load_config(path, kind, **given), ConfigError, about=path)

    keys = st.sampled_from(sorted([*KEYS[kind], "pairs__file", "pairs__limit", "optimiser__lr", "codi__start"]))
    known = st.dictionaries(keys, odd_values | st.dictionaries(st.text(max_size=5), odd_values), min_size=1, max_size=3)
    fuzz(f"{kind.__name__} values", known, read, 500)


def test_gsm8ks_lines_load_or_are_refused_with_a_data_error(tmp_path):
    path = tmp_path / "test.jsonl"

    def read(data):
        path.write_bytes(data)
        loaded = []
        result = outcome(lambda: loaded.extend(read_problems(path).problems), DataError, about=path)
        for problem in loaded:
            json.dumps(problem, allow_nan=False, ensure_ascii=False).encode()
        return result

    of_both(fuzz("GSM8K", mutated_jsonl([PROBLEMS]), read, 1_000))
    of_both(fuzz("public forms", mutated_bytes([text.encode() for text, *_ in FILES.values()], most=9), read, 1_000))


def test_public_question_files_are_refused_as_pairs_with_a_pairs_error(tmp_path):
    def read(data):
        (tmp_path / "pairs.csv").write_bytes(data)
        return outcome(lambda: load_pairs(tmp_path / "pairs.csv"), PairsError, about=tmp_path / "pairs.csv")

    seeds = [text.encode() for text, *_ in FILES.values()] + [b"pair_id,variant,question,answer\n1,clean,a?,$5\n"]
    assert fuzz("public forms as pairs", mutated_bytes(seeds), read, 300)["refused"] > 100


@pytest.fixture(scope="module")
def checkpoint(random_checkpoint, tmp_path_factory):
    """A copy to damage, and its files."""
    folder = shutil.copytree(random_checkpoint, tmp_path_factory.mktemp("damaged") / "model")
    return folder, {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_checkpoints_card_is_read_or_refused_with_a_checkpoint_error(checkpoint):
    folder, files = checkpoint

    def read(data):
        (folder / CARD).write_bytes(data)
        return outcome(lambda: base_location(folder, read_card(folder)), CheckpointError, about=folder)

    try:
        of_both(fuzz("codi.json", mutated_json([json.loads(files[CARD])]), read, 1_000))
    finally:
        (folder / CARD).write_bytes(files[CARD])


def test_a_checkpoints_tensors_are_read_or_refused_with_a_checkpoint_error(checkpoint):
    folder, files = checkpoint
    path = folder / TENSORS

    def read(data):
        path.write_bytes(data)
        outcome(lambda: read_tensors(path), CheckpointError, about=path)
        return outcome(lambda: read_projection(folder, 32), CheckpointError, about=path)

    try:
        of_both(fuzz("codi.safetensors", mutated_safetensors(files[TENSORS]), read, 500))
    finally:
        path.write_bytes(files[TENSORS])


def test_a_whole_checkpoint_loads_or_is_refused_with_a_checkpoint_error(checkpoint):
    from codi_tracing.traces.model.loading import load_codi

    folder, files = checkpoint

    def read(changes):
        for name, data in changes.items():
            if data is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(data)
        try:
            return outcome(lambda: load_codi(folder, device="cpu"), CheckpointError)
        finally:
            for name in changes:
                (folder / name).write_bytes(files[name])

    of_both(fuzz("whole checkpoints", mutated_folder(files), read, 120))


def parquet(table):
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


@st.composite
def mutated_tables(draw):
    """A table with a column of other values or another type, without a column, or with a renamed one."""
    table = pd.concat([one_row(), one_row(pair_id="8", layer=None, patched=None)], ignore_index=True)
    name = draw(st.sampled_from(sorted(table)))
    match draw(st.sampled_from(["values", "values", "values", "type", "drop", "rename", "rows", "add"])):
        case "drop":
            table = table.drop(columns=name)
        case "rename":
            table = table.rename(columns={name: draw(st.sampled_from([*NASTY_TEXT[:3], "pair_ids", "0"]))})
        case "rows":
            table = table.iloc[: draw(st.integers(0, 1))] if draw(st.booleans()) else pd.concat([table, table])
        case "add":
            table[draw(st.text("abc", min_size=1))] = 1
        case "type":
            kind = draw(st.sampled_from(["category", "datetime64[ns]", "timedelta64[ns]", "bool", "Float32", "bytes"]))
            table[name] = pd.Series([None, None]).astype(object) if kind == "bytes" else pd.Series([0, 1]).astype(kind)
        case _:
            one = draw(
                st.sampled_from(
                    [0, -1, 0.5, 2**62, 1e308, float("inf"), float("nan"), True, None, b"\xff", [1], {"a": 1}]
                )
                | st.text(max_size=8)
                | st.sampled_from([text for text in NASTY_TEXT if "\ud800" not in text and "\udc80" not in text])
            )
            table[name] = pd.Series([one, one], index=table.index)
    return parquet(table)


def test_a_table_is_read_or_refused_with_a_sentence(tmp_path):
    from codi_tracing.analysis.io.table_file import read_table

    path = tmp_path / "cells.parquet"
    good = parquet(pd.concat([one_row(), one_row(pair_id="8", layer=None, layer_last=None)]))

    def read(data):
        path.write_bytes(data)
        return outcome(lambda: read_table(path), ValueError, about=path)

    of_both(fuzz("tables, by byte", mutated_bytes([good, parquet(pd.DataFrame({"x": [1]}))]), read, 600))
    of_both(fuzz("tables, by column", mutated_tables(), read, 200))


@pytest.fixture
def run(tmp_path):
    """A run folder of two pairs."""
    pairs = [
        {"pair_id": i, **{side: {"question": "9?", "answer": i} for side in ("clean", "corrupted")}} for i in (0, 1)
    ]
    return make_run(tmp_path / "run", experiment(pairs=2), pairs, experiment="sweep", config={"low_ceiling": 0.5})


@pytest.mark.parametrize("name", SMALL_FILES)
def test_the_small_files_of_a_run_are_shown_on_a_page_or_refused_with_a_sentence(run, name):
    results, seed = Results(one_row()), json.loads((run / name).read_text())

    def show(data):
        shown = FinishedRun(run, read_manifest(run), read_checks(run), read_prepared(run), results)
        [mark(check) for check in shown.checks]
        render("report.html", **report_values(shown, []), explorer=None, specs={}, bundle="").encode()

    def read(data):
        (run / name).write_bytes(data)
        return outcome(lambda: show(data), ValueError, about=run)

    of_both(fuzz(name, mutated_json([seed]), read, 500))


@pytest.mark.parametrize("name", [*SMALL_FILES, "cells.parquet"])
def test_a_damaged_run_gives_a_complete_report_or_an_error_sentence(run, name, monkeypatch):
    from codi_tracing.analysis.report import conclusions
    from codi_tracing.analysis.report import write as report

    for module in ("write", "conclusions"):  # the figures have tests of their own
        monkeypatch.setattr(f"codi_tracing.analysis.report.{module}.figures_of_run", lambda *_: ())
    monkeypatch.setattr("codi_tracing.analysis.io.images.vl_convert.javascript_bundle", lambda *_: "")
    good = (run / name).read_bytes()
    strategy = mutated_bytes([good]) if name == "cells.parquet" else mutated_json([json.loads(good)])

    def read(data):
        (run / name).write_bytes(data)
        result = outcome(lambda: report.write_report(run, figures=False), ValueError, about=run)
        if result == "loaded":
            assert list(conclusions.conclusions(run))
        return result

    fuzz(f"reports with another {name}", strategy, read, 15)
