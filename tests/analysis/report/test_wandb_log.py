"""Tracking: what the real client writes offline, and that its failures are never the run's."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from codi_tracing.analysis.report.wandb_log import default_name, track
from codi_tracing.analysis.report.write import write_report
from tests.support.places import ROOT
from tests.support.run_folders import make_run, prepared
from tests.support.tables import experiment
from tests.support.waiting import wait_until

BLOCK = 32768


def records(path: Path) -> list:
    """The records of a .wandb file: LevelDB's log format, behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, place, found, whole = path.read_bytes(), 7, [], b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        if place + 7 + length > len(content):
            break  # the client is still writing it
        part = content[place + 7 : place + 7 + length]
        place += 7 + length
        whole = whole + part if kind in (3, 4) else part
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(wandb_internal_pb2.Record())
            found[-1].ParseFromString(whole)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(
        tmp_path_factory.mktemp("tracked") / "run", experiment(layers=(0.2, 0.9), pairs=4), prepared(4),
        created="2026-11-23T10:20:30+00:00", experiment="sweep",
    )  # fmt: skip
    write_report(folder)
    assert track(folder, "offline") == "sweep_20261123_102030"
    return folder


@pytest.fixture(scope="module")
def written(run):
    (path,) = (run / "wandb").glob("offline-run-*/*.wandb")
    wait_until(lambda: of_kind(records(path), "exit"), "the client to finish its log")  # a moment after finish()
    return records(path)


def of_kind(written, kind: str) -> list:
    return [getattr(record, kind) for record in written if record.WhichOneof("record_type") == kind]


def items(entries) -> list[tuple[str, object]]:
    """Keys, nested ones with slashes, and values."""
    return [(entry.key or "/".join(entry.nested_key), json.loads(entry.value_json)) for entry in entries]


def test_the_project_and_the_name_are_the_original_experiments(written):
    about = of_kind(written, "run")[0]
    assert (about.project, about.display_name) == ("cot-exploration", "sweep_20261123_102030")
    config = {entry.key: json.loads(entry.value_json) for entry in about.config.update}
    assert config["protocol"] == "latent_loop"


def test_one_table_the_figures_and_a_handful_of_numbers_are_written(run, written):
    logged = {key: value for history in of_kind(written, "history") for key, value in items(history.item)}
    kinds = {key.removesuffix("/_type"): value for key, value in logged.items() if key.endswith("/_type")}
    assert [key for key, kind in kinds.items() if kind == "table-file"] == ["sites"]
    names = {path.stem for path in (run / "charts" / "aggregate").glob("*.png")}
    assert {key for key, kind in kinds.items() if kind == "image-file"} == {f"figures/{name}" for name in names}
    said = dict(pair for update in of_kind(written, "summary") for pair in items(update.update))
    assert said["verdict"] == "undecided"  # of four pairs
    assert said["transfer/denoising/layer_1"] == pytest.approx(0.9, abs=0.15)
    assert said["denoising/effect"] == pytest.approx(0.9, abs=0.15)  # the ceiling
    assert (said["pairs"], said["answered_pairs"], said["clusters"]) == (4, 4, 4)
    assert len([key for key in said if key.startswith("transfer/")]) == 2 * 2
    assert len({key.partition("/")[0] for key in said}) < 20
    (table,) = (run / "wandb").rglob("*.table.json")
    sites = json.loads(table.read_text())
    assert len(sites["data"]) == 2 * 2  # two layers in both directions
    assert {"kind", "layer", "effect", "low", "high", "n"} <= set(sites["columns"])


def test_nothing_names_this_machine(written):
    assert {about.host for about in of_kind(written, "run")} == {"unnamed"}
    words = {word for record in written for word in re.findall(r"[\w.-]+", str(record))}
    assert socket.gethostname() not in words


def test_a_run_without_a_time_is_called_by_its_experiment():
    assert default_name({"experiment": "matched"}) == "matched"


def told(run: Path, mode: str, before: str = "", **environment: str) -> subprocess.CompletedProcess:
    """What the command line does with a finished run."""
    code = f"{before}\nfrom pathlib import Path\nfrom codi_tracing.cli.run import log_to_wandb\n"
    code += f"log_to_wandb(Path({str(run)!r}), {mode!r}, 'p', None)"
    bare = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, stdin=subprocess.DEVNULL,
        env=bare | environment, timeout=120,
    )  # fmt: skip


def test_a_client_that_is_not_installed_is_named_and_the_run_is_whole(run):
    done = told(run, "offline", "import sys; sys.modules['wandb'] = None")
    assert done.returncode == 0
    assert done.stderr.startswith('codi: tracking: is not installed; pip install "codi-tracing[tracking]"')
    assert done.stderr.count("\n") == 1


def test_without_a_key_nothing_is_asked_at_the_keyboard(run, tmp_path):
    done = told(run, "online", HOME=str(tmp_path))
    assert done.returncode == 0
    assert "codi: tracking: found no key; `wandb login`, set WANDB_API_KEY" in done.stderr


def test_a_damaged_folder_costs_the_tracking_and_not_the_run(tmp_path):
    folder = make_run(tmp_path / "run", experiment(pairs=2), prepared(2))
    (folder / "cells.parquet").write_bytes(b"half")
    done = told(folder, "offline")
    assert done.returncode == 0
    assert "is not a whole Parquet file" in done.stderr
    assert "the run itself is complete" in done.stderr
