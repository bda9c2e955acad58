"""The lens from the command line: its tables, figures and page, and what is refused."""

import json
import shutil

import pandas as pd
import pytest
from typer.testing import CliRunner

from codi_tracing.analysis.report.lens_page import lens_sentences, read_lens, write_lens_report
from codi_tracing.cli.main import app
from codi_tracing.traces.training.word_problems import chain_text, draw_problems
from tests.support.dumps import DUMP
from tests.support.places import ROOT

FIGURES = {"thought", "decodable", "number_shares", "entropy", "attention", "attention_by_layer"}


def codi(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What the shipped thought says of five pairs."""
    folder = tmp_path_factory.mktemp("lens") / "out"
    result = codi("lens", ROOT / "traces" / "embedded" / "thought", "--limit", 5, "--question", "3 clean",
                  "--out", folder, "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder, result.output


@pytest.fixture
def folder(done, tmp_path):
    """A copy without hashes, as earlier versions wrote it, so that its tables may be edited."""
    folder = shutil.copytree(done[0], tmp_path / "lens")
    about = json.loads((folder / "lens.json").read_text())
    assert len(about.pop("files")) == 4
    (folder / "lens.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("name", ["says", "values", "attention", "questions"])
def test_a_table_of_which_one_value_was_changed_is_refused(done, tmp_path, name):
    folder = shutil.copytree(done[0], tmp_path / "lens")
    assert read_lens(folder)
    table = pd.read_parquet(folder / f"{name}.parquet")
    column = "answer" if name == "questions" else "step" if name != "attention" else "weight"
    table.loc[0, column] += 1
    table.to_parquet(folder / f"{name}.parquet", index=False)
    told = f"{name}.parquet: was edited, damaged or swapped: .* run codi lens again"
    with pytest.raises(ValueError, match=told):
        read_lens(folder)


def test_a_folder_whose_lens_json_another_program_wrote_is_refused(tmp_path):
    (tmp_path / "lens.json").write_text('{"name": "my optics"}')
    result = codi("lens", ROOT / "traces" / "embedded" / "thought", "--limit", 1, "--out", tmp_path)
    assert "its lens.json is not of codi lens; choose another folder with --out" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["lens.json"]


def test_the_command_says_how_many_thoughts_say_their_intermediates_and_the_chance_level(done):
    assert "answers 10 of 10 questions correctly" in done[1]
    assert "100% [clusters: 5, so no interval] have all of them among the 5 likeliest tokens" in done[1]
    assert "another question's intermediates are found in" in done[1]
    assert "not what it does" in done[1]


def test_every_figure_is_there_and_the_page_holds_them_all(done):
    assert {path.stem for path in (done[0] / "charts").glob("*.png")} == FIGURES
    page = (done[0] / "lens.html").read_text()
    assert all(f'<div id="{name}"></div>' in page for name in FIGURES)
    drawn = json.loads((done[0] / "charts" / "thought.json").read_text())
    assert any("answer" in line for line in drawn["title"]["subtitle"])
    about = json.loads((done[0] / "lens.json").read_text())
    assert about["data"]["questions"] == 10
    assert str(ROOT) not in json.dumps(about)


def test_the_page_is_drawn_again_from_the_tables_alone(folder):
    (folder / "lens.html").unlink()
    assert codi("report", folder).exit_code == 0
    assert (folder / "lens.html").is_file()


def test_numbers_that_are_no_single_token_are_counted(folder):
    table = pd.read_parquet(folder / "values.parquet")
    gone = table["question_id"].eq("0 clean") & table["role"].eq("answer")
    table.assign(rank=table["rank"].mask(gone)).to_parquet(folder / "values.parquet")
    assert any("1 numbers of those are no single token" in sentence for sentence in lens_sentences(read_lens(folder)))


def test_without_solutions_the_rest_is_shown_and_what_is_not_is_said(folder):
    table = pd.read_parquet(folder / "values.parquet")
    table[table["role"] == "answer"].to_parquet(folder / "values.parquet")
    page = write_lens_report(folder).read_text()
    assert "Not shown: no question has a solution of two or more annotated steps" in page
    assert '<div id="number_shares"></div>' in page


@pytest.mark.parametrize("name", ["lens.json", "says.parquet", "values.parquet", "attention.parquet"])
@pytest.mark.parametrize("content", [b"", b"{half"])
def test_a_damaged_folder_is_refused_in_a_sentence(folder, name, content):
    (folder / name).write_bytes(content)
    result = codi("report", folder)
    assert result.exit_code == 2
    assert "run codi lens again to write it" in result.output
    assert "Traceback" not in result.output


def test_an_interrupted_lens_has_no_report_and_can_be_run_again(folder, monkeypatch):
    thought = ROOT / "traces" / "embedded" / "thought"
    (folder / "lens.json").write_text('{"finished": false}')
    assert "this lens was interrupted; run codi lens again" in codi("report", folder).output
    assert codi("lens", thought, "--limit", 2, "--out", folder, "--device", "cpu").exit_code == 0
    assert "answers 4 of 4 questions" in codi("report", folder).output
    monkeypatch.setattr("codi_tracing.patching.lens.tables.write_whole", lambda *_: 1 / 0)
    broken = codi("lens", thought, "--limit", 3, "--out", folder, "--device", "cpu", "--fresh")
    assert broken.exit_code == 1  # it broke in the middle
    assert "this lens was interrupted" in codi("report", folder).output


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("questions", lambda table: table.head(0), "it has no rows"),
        ("says", lambda table: table.assign(rank="first"), "its column 'rank' holds no numbers"),
        ("says", lambda table: table.assign(question_id="other"), "its tables are of other questions"),
        ("questions", lambda table: pd.concat([table, table]), "or twice of one"),
    ],
)
def test_a_table_that_is_whole_and_wrong_is_refused_in_a_sentence(folder, name, change, sentence):
    change(pd.read_parquet(folder / f"{name}.parquet")).to_parquet(folder / f"{name}.parquet")
    result = codi("report", folder)
    assert result.exit_code == 2
    assert sentence in result.output


def test_a_lens_writes_its_figures_to_a_folder_of_choice(folder, tmp_path):
    assert codi("report", folder, "--figures", tmp_path / "figures").exit_code == 0
    assert {path.stem for path in (tmp_path / "figures").glob("*.svg")} == FIGURES


def test_one_question_has_no_interval_and_the_page_says_so(tmp_path):
    thought = ROOT / "traces" / "embedded" / "thought"
    result = codi("lens", thought, "--limit", 1, "--out", tmp_path / "one", "--device", "cpu")
    assert "100% [clusters: 1, so no interval]" in result.output
    assert "nan" not in result.output


def test_a_missing_table_and_one_without_a_column_are_named(folder):
    (folder / "says.parquet").unlink()
    assert "says.parquet: no such file" in codi("report", folder).output
    pd.DataFrame({"question_id": ["a"]}).to_parquet(folder / "says.parquet")
    assert "lacks the column 'step'" in codi("report", folder).output


def test_questions_and_folders_that_are_not_there_or_hold_other_things_are_refused(tmp_path):
    thought = ROOT / "traces" / "embedded" / "thought"
    assert (
        "--question is 'x'; the first of 10 is '0 clean'"
        in codi("lens", thought, "--limit", 5, "--question", "x", "--out", tmp_path / "new").output
    )
    (tmp_path / "mine.txt").write_text("mine")
    result = codi("lens", thought, "--limit", 5, "--out", tmp_path)
    assert result.exit_code == 2
    assert "holds files but no lens.json" in result.output
    assert codi("lens", thought, "--pairs", tmp_path / "none.json").exit_code == 2


def test_gsm8ks_form_is_read_too(tmp_path):
    (problem,) = draw_problems(seed=3, count=1)
    line = {"question": problem.question, "answer": f"{chain_text(problem)} #### {problem.answer}"}
    (tmp_path / "data.jsonl").write_text(json.dumps(line) + "\n")
    result = codi("lens", ROOT / "traces" / "embedded" / "thought", "--data", tmp_path / "data.jsonl",
                  "--out", tmp_path / "out", "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.output
    found = pd.read_parquet(tmp_path / "out" / "values.parquet")
    assert set(found.loc[found["role"] == "intermediate", "value"]) == {*map(float, problem.values[:-1])}
    assert "another" not in set(found["owner"])  # there is no other question


def test_where_no_question_is_answered_correctly_the_page_says_so(folder):
    table = pd.read_parquet(folder / "questions.parquet")
    table.assign(correct=False).to_parquet(folder / "questions.parquet")
    assert "none that is answered correctly" in write_lens_report(folder).read_text()


def test_a_published_dump_is_scored_beside_its_chance_level(tmp_path):
    (tmp_path / "dump.txt").write_text(DUMP, encoding="utf-8")
    result = codi("score", tmp_path / "dump.txt", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[1].split()[:4] == ["2", "its", "own", "intermediates"]
    assert "100.0%" in result.output.splitlines()[1]
    assert (tmp_path / "out" / "decodable.png").is_file()
    refused = codi("score", tmp_path / "dump.txt", "--top", 9)
    assert refused.exit_code == 2
    assert "--top can be 1 to 5, not 9" in refused.output
    assert "nan" not in result.output
    assert codi("score", tmp_path / "none.txt").exit_code == 2
