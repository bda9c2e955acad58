"""codi pairs check: descriptions, verdicts and refusals."""

import json
from pathlib import Path

import pytest

from tests.support.command_line import PAIR, refused

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        (PAIR[:1], "pair 0: its corrupted side is missing"),
        ([*PAIR, PAIR[0]], "pair 0: its clean side occurs 2 times"),
        ([PAIR[0], {**PAIR[1], "answer": "eight"}], "'answer' is \"eight\", expected a number"),
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
