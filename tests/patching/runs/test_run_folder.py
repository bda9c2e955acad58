"""A run folder is recognised by its manifest, and replacing a run deletes only what was written by it."""

import json
import os
import shutil

import pytest

from codi_tracing.analysis.io.atomic import open_temporary
from codi_tracing.patching.runs.run_folder import locked, open_run

ABOUT = {"identity": "0" * 64, "identity_of": {}, "shard": None, "created": "", "versions": {}, "format": 3}
USERS = (
    "notes.md", "figures/mine.png", "src/run.py", "batches/README", "batches/.hidden", "charts/mine.html",
    "charts/aggregate/layer_curve_talk.png", "charts/individual/pair_3_annotated.png", "charts/slides.key",
    "individual_heatmaps/pair_3_annotated.png", "aggregate_analysis/mine.png", ".git/config", "wandb/log",
    "report.html.old",
)  # fmt: skip


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(finished_report, tmp_path):
    """A finished run with its report, left-overs of killed processes, and a user's files."""
    folder = shutil.copytree(finished_report, tmp_path / "run")
    digest = "a" * 64
    for name in (batch := f"batches/00-00000.{digest}.parquet", f"batches/checks.{digest}.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("left")
    for name in ("cells.parquet", "manifest.json", "manifest.json", batch, "charts/aggregate/corners.svg"):
        os.close(open_temporary(folder / name)[1])  # a second one of the same file gets another name
    for name in USERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    return folder


def test_a_fresh_run_deletes_every_file_of_the_old_one_and_no_other(run):
    with locked(run):
        assert open_run(run, ABOUT, fresh=True) == ABOUT
    assert files(run) - {".lock"} == {*USERS, "manifest.json"}
    assert all((run / name).read_text() == "mine" for name in USERS)
    assert json.loads((run / "manifest.json").read_text()) == {**ABOUT, "finished": False}


def test_a_fresh_run_leaves_no_folder_of_the_old_one_where_a_user_has_no_files(finished_report, tmp_path):
    folder = shutil.copytree(finished_report, tmp_path / "run")
    open_run(folder, ABOUT, fresh=True)
    assert {path.name for path in folder.iterdir()} - {".lock"} == {"manifest.json"}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    "content", ['{"name": "my web app"}', '{"name": "app", "identity": "me"}', "[]", "{}", "{ // comments\n}", ""]
)
def test_a_folder_whose_manifest_another_program_wrote_is_refused_and_left_as_it_was(tmp_path, content, fresh):
    (tmp_path / "src").mkdir()
    for name, text in {"manifest.json": content, "src/app.js": "precious", "report.html": "precious"}.items():
        (tmp_path / name).write_text(text)
    told = "its manifest.json is not of a run .*; choose another with --out"
    with pytest.raises(ValueError, match=told), locked(tmp_path):
        open_run(tmp_path, ABOUT, fresh=fresh)
    assert files(tmp_path) == {"manifest.json", "src/app.js", "report.html"}
    assert (tmp_path / "manifest.json").read_text() == content


def test_a_lock_of_another_program_is_not_written(tmp_path):
    for name in (".lock", "package.json"):
        (tmp_path / name).write_text("theirs")
    with pytest.raises(ValueError, match=r"holds files but is not a run folder \(package.json"), locked(tmp_path):
        pytest.fail("taken for a run's")
    assert (tmp_path / ".lock").read_text() == "theirs"


def test_a_run_whose_manifest_is_damaged_is_replaced_only_with_fresh(run):
    with locked(run):
        (run / "manifest.json").write_text("{half")
        with pytest.raises(ValueError, match="its manifest.json is damaged .* use --fresh to replace it"):
            open_run(run, ABOUT)
        assert open_run(run, ABOUT, fresh=True) == ABOUT
    assert files(run) - {".lock"} == {*USERS, "manifest.json"}


@pytest.mark.parametrize("lost", ["cells.parquet", "checks.json", "prepared_pairs.json"])
def test_a_finished_run_that_lost_a_file_is_named_and_no_longer_finished(run, lost, capsys):
    about = {key: json.loads((run / "manifest.json").read_text())[key] for key in ABOUT}
    assert open_run(run, about) is None
    (run / lost).unlink()
    assert open_run(run, about) is not None
    assert f"{lost} is missing; it is computed again" in capsys.readouterr().err
    assert json.loads((run / "manifest.json").read_text())["finished"] is False


def test_a_folder_with_only_what_a_killed_process_left_is_taken_as_empty(tmp_path):
    (tmp_path / ".lock").write_text("1\n")
    for _ in range(2):
        os.close(open_temporary(tmp_path / "manifest.json")[1])
    with locked(tmp_path):
        assert open_run(tmp_path, ABOUT, fresh=False) == ABOUT
