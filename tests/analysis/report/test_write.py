"""The report of a run folder: whole, offline, safe, and clear about what is missing."""

import json
import re

import pytest
from PIL import Image

from codi_tracing.analysis.io import images
from codi_tracing.analysis.io.written_files import PICTURES
from codi_tracing.analysis.report.methods import excluded
from codi_tracing.analysis.report.sections import flat_rows
from codi_tracing.analysis.report.write import file_stems, write_report
from tests.support.run_folders import ATTACK, make_run, prepared
from tests.support.tables import experiment

FILES = ("manifest.json", "cells.parquet", "checks.json", "prepared_pairs.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three pairs, one with a hostile question, and its report."""
    pairs = prepared(3)
    pairs[1]["clean"]["question"] = ATTACK
    folder = make_run(tmp_path_factory.mktemp("runs") / "tiny", experiment(layers=(0.2, 0.9, 0.5), pairs=3), pairs)
    seen = []
    assert write_report(folder, progress=lambda items: seen.extend(items) or items) == folder / "report.html"
    assert len(seen) == 3
    return folder


def test_pairs_of_several_kinds_get_a_curve_each(tmp_path):
    table = experiment(layers=(0.2, 0.9), pairs=4)
    table["edit"] = table["pair_id"].map(lambda pair: "later_operand" if pair == "0" else "first_operand")
    folder = make_run(tmp_path / "kinds", table, prepared(4))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "By kind of edit" in page
    assert (folder / "charts" / "aggregate" / "layer_curve_by_kind.png").stat().st_size > 500


def test_a_run_folder_holds_every_promised_file(run):
    names = ("corners", "layer_curve", "critical_layers", "kl_by_layer", "layer_similarity", "all_pairs_by_layer")
    for name in names:
        for ending in ("html", "png", "svg", "json"):
            assert (run / "charts" / "aggregate" / f"{name}.{ending}").stat().st_size > 500
    assert len(list((run / "charts" / "individual").iterdir())) == 6
    for path in run.rglob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    for path in run.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert not list(run.rglob(".*"))


def test_figures_can_go_to_a_folder_of_their_own_and_print_eight_centimetres_wide_at_300_dpi(run, tmp_path):
    table = experiment(layers=(0.2, 0.9, 0.5), pairs=3)
    folder = make_run(tmp_path / "printed", table, prepared(3))
    write_report(folder, figures=tmp_path / "figures")
    assert not (folder / "charts").exists()
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"corners", "layer_curve"} <= names
    with Image.open(tmp_path / "figures" / "layer_curve.png") as picture:
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        width = picture.size[0]
    drawn = float(re.search(r'width="([\d.]+)"', (tmp_path / "figures" / "layer_curve.svg").read_text())[1])
    assert width == pytest.approx(drawn * 945 / 330, rel=0.01)


def test_the_pages_fetch_nothing(run):
    for path in run.rglob("*.html"):
        text = path.read_text()
        assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
        assert "<link" not in text
        assert "default-src 'none'" in text


def test_text_from_pairs_and_manifest_is_never_markup(run):
    text = (run / "report.html").read_text()
    assert "alert('eggs')" not in re.sub(r"\\u003c/script>\\u003cscript>alert\('eggs'\)", "", text)
    assert "&lt;/script&gt;&lt;script&gt;alert(&#39;eggs&#39;)" in text
    assert text.count("</script>") == text.count("<script>") == 3


def test_the_report_and_the_summary_open_with_the_question_and_its_answer(tmp_path):
    folder = make_run(tmp_path / "run", experiment(pairs=12), prepared(12))
    text = write_report(folder, figures=False).read_text(encoding="utf-8")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["question"] == "Which layer, at all steps?"
    assert summary["answer"] == " ".join(summary["sentences"][1:])
    question, answer, figure, verdict, checks = (
        text.index(part)
        for part in (
            f"<h1>{summary['question']}</h1>", summary["answer"][:40], 'id="layer_curve"', "<h2>Verdict</h2>",
            "<h2>Checks</h2><details><summary>",
        )
    )  # fmt: skip
    assert question < answer < figure < verdict < checks


def test_the_report_leads_with_the_verdict_then_the_checks(run):
    text = (run / "report.html").read_text()
    order = [
        "<h2>Verdict",
        "Undecided, because of the answered pairs with a control (n = 3), 3 clusters are fewer",
        "<h2>Checks",
        "Nothing changes.",
        "Only 40%",
        "<h2>Pairs left out",
        "<h2>Def",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert "<td>2</td><td>both answers are 13</td><td>7, 8</td>" in text


def test_reasons_that_differ_in_their_own_numbers_and_answers_alone_count_together():
    reasons = [f"pair {i}: the clean question is answered 'It is {i}', its key is {i + 1}" for i in range(30)]
    left_out = [{"pair_id": i, "reason": reason} for i, reason in enumerate([*reasons, "pair 30: too long"])]
    [(_, rows)] = excluded({"excluded": left_out})
    assert rows[0][:2] == (30, "the clean question is answered …, its key is …")
    assert rows[0][2].startswith("0, 1, 2,")
    assert rows[0][2].endswith("18, 19 and 10 more, see manifest.json")
    assert rows[1:] == [(1, "too long", "30")]


def test_a_report_can_be_written_without_figure_files(run, tmp_path):
    folder = make_run(tmp_path / "plain", experiment(pairs=3), prepared(3))
    write_report(folder, figures=False)
    assert not (folder / "charts").exists()
    assert '"layer_curve": {' in (folder / "report.html").read_text()


def test_a_figure_that_cannot_be_drawn_loses_neither_the_page_nor_the_others(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "plain", experiment(pairs=3), prepared(3))
    drawn = images.svg_of

    def fails_once(spec):
        monkeypatch.setattr(images, "svg_of", drawn)
        raise ValueError("no such font")

    monkeypatch.setattr(images, "svg_of", fails_once)
    with pytest.warns(UserWarning, match="^a figure was not drawn as a file; corners: no such font$"):
        page = write_report(folder)
    assert '"layer_curve": {' in page.read_text()
    pictures = {path.stem for path in (folder / "charts" / "aggregate").glob("*.png")}
    assert pictures == {path.stem for path in (folder / "charts" / "aggregate").glob("*.json")} - {"corners"}


def test_what_a_sweep_did_not_measure_is_named_in_its_place(tmp_path):
    table = experiment(pairs=3).query("metric == 'logit_difference' and source != 'unrelated'")
    folder = make_run(tmp_path / "small", table, prepared(3), model=None, data=None)
    text = write_report(folder, figures=False).read_text()
    assert "Undecided, because the table has no rows of metric &#39;answer_is_clean&#39;; sweep it too" in text
    assert "Not shown: the table has no rows of metric &#39;probability_clean&#39;" in text
    assert "Not shown: the table has no rows of metric &#39;gives_clean&#39;" in text
    assert json.loads((folder / "summary.json").read_text())["verdict"]["label"] == "undecided"
    assert json.loads((folder / "patching_results.json").read_text())[0]["layer_results"][0]["kl_divergence"] is None


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, name):
    folder = make_run(tmp_path / "run", experiment(pairs=2), prepared(2))
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
        write_report(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_half_written_file_is_named(tmp_path, name):
    folder = make_run(tmp_path / "run", experiment(pairs=2), prepared(2))
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{name}: is not whole|{name}: is not a whole"):
        write_report(folder)


def test_an_interrupted_run_has_no_report(tmp_path):
    folder = make_run(tmp_path / "run", experiment(pairs=2), prepared(2), finished=False)
    with pytest.raises(ValueError, match="was interrupted; run it again, it resumes where it stopped"):
        write_report(folder)


def test_files_of_the_wrong_form_are_refused(tmp_path):
    folder = make_run(tmp_path / "run", experiment(pairs=2), [{"pair_id": 0}, {"pair_id": 1}])
    with pytest.raises(ValueError, match=r"prepared_pairs.json: an entry is not of the form \{pair_id, clean"):
        write_report(folder)
    (folder / "checks.json").write_text("{}")
    with pytest.raises(ValueError, match=r"checks.json: holds a JSON dict, expected a list"):
        write_report(folder)


def test_file_names_are_plain_and_never_collide():
    stems = file_stems(["3", "../etc/passwd", "a/b", "a?b", "A_B", "鸭子", "x" * 300])
    assert stems["3"] == "pair_3"
    assert all(re.fullmatch(r"pair_[A-Za-z0-9._-]{1,90}", stem) for stem in stems.values())
    assert len({stem.lower() for stem in stems.values()}) == 7


def test_a_list_of_records_in_the_manifest_is_a_row_for_each():
    assert list(
        flat_rows({"forwards": [{"pairs": 66, "batches": 5}, {"pairs": 720, "batches": 45}], "seeds": [1, 2]})
    ) == [("forwards 1", "pairs 66, batches 5"), ("forwards 2", "pairs 720, batches 45"), ("seeds", "1, 2")]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: table.assign(patched=float("nan")),
        lambda table: table.assign(patched=table["patched"].where(table["kind"] == "thought")),
        lambda table: table.assign(clean=table["corrupted"]),
    ],
)
def test_a_table_without_a_single_effect_still_has_a_report_that_says_so(tmp_path, spoil, recwarn):
    text = write_report(make_run(tmp_path / "run", spoil(experiment(pairs=3)), prepared(3)), figures=False).read_text()
    assert "Not shown: " in text
    assert "not JSON compliant" not in text
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_a_file_in_the_place_of_a_folder_is_named(run, tmp_path):
    (file := tmp_path / "notes.txt").write_text("eggs")
    with pytest.raises(ValueError, match=r"notes.txt: is a file; expected a folder to write figures to"):
        write_report(run, figures=file)
    with pytest.raises(FileNotFoundError, match=r"notes.txt/manifest.json: no such file; expected the folder of a fin"):
        write_report(file)


def test_a_number_close_to_zero_has_no_sign(run):
    from codi_tracing.analysis.statistics.ceiling import Estimate

    assert str(Estimate(-0.001, -0.004, 0.002, 3, 3)) == "0.00 [0.00, 0.00]"
    assert not re.search(
        r"[-−]0\.00\b", re.sub(r"<script>.*?</script>", "", (run / "report.html").read_text(), flags=re.S)
    )


@pytest.mark.parametrize("name", ["sweep", "original"])
def test_a_run_of_single_layers_also_has_the_originals_pictures_by_name(tmp_path, name):
    table = experiment(layers=(0.2, 0.9), pairs=3)
    run = make_run(tmp_path / "run", table, prepared(3), experiment=name)
    write_report(run)
    for figure, original in PICTURES.items():
        picture = run / "aggregate_analysis" / f"{original}.png"
        assert picture.read_bytes() == (run / "charts" / "aggregate" / f"{figure}.png").read_bytes()
    assert {path.name for path in (run / "individual_heatmaps").iterdir()} == {f"pair_{i}.png" for i in range(3)}


def test_a_run_without_single_layers_has_none_of_the_originals_pictures(tmp_path):
    table = experiment(pairs=3).query("kind == 'thought'")
    run = make_run(tmp_path / "run", table, prepared(3))
    write_report(run)
    assert (run / "charts" / "aggregate" / "corners.png").is_file()
    assert not (run / "aggregate_analysis").exists()
    assert not (run / "individual_heatmaps").exists()
