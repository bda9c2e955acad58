"""Pairs: what is read is what was written, and every fault of a file is named at once."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patching.pairs import (
    Pair,
    PairsError,
    Side,
    changed_number,
    describe,
    format_number,
    load_pairs,
    pairs_from_records,
    split_usable,
    write_prepared,
)

ORIGINAL = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_pairs_66.json"


def record(pair_id=0, variant="clean", **changes):
    number = 7 if variant == "clean" else 8
    question = f"Ann had {number} pens. Ann bought 5 pens. How many?"
    return {"pair_id": pair_id, "variant": variant, "question": question, "answer": number + 5, **changes}


def both(pair_id=0, **changes):
    return [record(pair_id, variant, **changes) for variant in ("clean", "corrupted")]


def problems(records):
    with pytest.raises(PairsError) as error:
        pairs_from_records(records)
    return list(error.value.problems)


def test_both_sides_chain_cluster_and_every_further_field_are_kept():
    chain = {"chain": ["7+5=12"], "reasoning_steps": 1, "cluster_id": "buying", "needs_cot": True}
    (pair,) = pairs_from_records(both(3, **chain))
    assert (pair.pair_id, pair.cluster_id) == (3, "buying")
    assert pair.clean == Side(record()["question"], 12.0, 1, ("7+5=12",), {"needs_cot": True})
    assert pair.corrupted.answer == 13


def test_a_pair_is_its_own_cluster_unless_it_names_one():
    assert pairs_from_records(both(3))[0].cluster_id == "3"


def test_pairs_keep_the_order_in_which_they_first_appear_however_their_sides_are_mixed():
    clean, corrupted = [[record(i, variant) for i in (5, 2, 9)] for variant in ("clean", "corrupted")]
    assert [pair.pair_id for pair in pairs_from_records([*clean, *reversed(corrupted)])] == [5, 2, 9]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"answer": "18"}, "record 0 (pair 0): 'answer' is \"18\", wanted a number, without quotes"),
        ({"answer": True}, "record 0 (pair 0): 'answer' is true, wanted a number, without quotes"),
        ({"answer": float("nan")}, "record 0 (pair 0): 'answer' is NaN, wanted a number, without quotes"),
        ({"answer": None}, "record 0 (pair 0): 'answer' is null, wanted a number, without quotes"),
        ({"question": 7}, "record 0 (pair 0): 'question' is 7, wanted text"),
        ({"question": "  "}, "record 0 (pair 0): 'question' is \"  \", wanted text"),
        ({"variant": "cleen"}, "record 0 (pair 0): 'variant' is \"cleen\", wanted 'clean' or 'corrupted'"),
        ({"pair_id": 1.5}, "record 0: 'pair_id' is 1.5, wanted a whole number or a name"),
        ({"reasoning_steps": -1}, "record 0 (pair 0): 'reasoning_steps' is -1, wanted a whole number or nothing"),
        ({"chain": "7+5=12"}, "record 0 (pair 0): 'chain' is \"7+5=12\", wanted a list of texts like '7+5=12'"),
        ({"cluster_id": []}, "record 0 (pair 0): 'cluster_id' is [], wanted a name or a whole number"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_wanted(changes, problem):
    clean, corrupted = both()
    assert problem in problems([{**clean, **changes}, corrupted])


def test_a_missing_field_is_named():
    clean, corrupted = both()
    del clean["answer"]
    assert problems([clean, corrupted]) == ["record 0 (pair 0): 'answer' is missing"]


def test_a_missing_side_and_a_repeated_side_are_named():
    assert problems([record(4)]) == ["pair 4: its corrupted side is missing; add a record with variant 'corrupted'"]
    repeated = "pair 4: its clean side is there 2 times (records 0 and 2), wanted once; drop one"
    assert problems([*both(4), record(4)]) == [repeated]


def test_two_sides_of_different_clusters_are_refused():
    clean, corrupted = record(cluster_id="a"), record(variant="corrupted", cluster_id="b")
    assert problems([clean, corrupted]) == ["pair 0: its sides have the cluster_ids 'a' and 'b', wanted one"]


def test_all_faults_of_a_file_are_listed_at_once_in_one_line(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([*both(1), record(2), 3, record(4, answer="x"), record(4, "corrupted")]))
    with pytest.raises(PairsError) as error:
        load_pairs(path)
    assert len(error.value.problems) == 3
    assert str(error.value).startswith(f"{path}: record 3: found a number, wanted an object with pair_id, variant")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty, wanted a JSON list"),
        (b"[{]", "is not valid JSON (Expecting property name"),
        (b"{}", "found an object, wanted a list of records"),
        (b"[]", "the list is empty, wanted two records for each pair"),
        ("[]".encode("utf-16"), "is not UTF-8 text (byte 0), wanted JSON; save it as UTF-8"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_file_that_holds_no_pairs_is_refused_in_a_sentence(tmp_path, content, problem):
    path = tmp_path / "pairs.json"
    path.write_bytes(content)
    with pytest.raises(PairsError, match=re.escape(f"{path}: {problem}")):
        load_pairs(path)


def test_a_missing_file_and_a_folder_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(PairsError, match=r"nope\.json: no such file; give a JSON list"):
        load_pairs(tmp_path / "nope.json")
    with pytest.raises(PairsError, match="is a folder, wanted a JSON file of pairs"):
        load_pairs(tmp_path)


def test_a_byte_order_mark_changes_nothing(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(both()), encoding="utf-8-sig")
    assert load_pairs(path) == pairs_from_records(both())


def test_a_pair_that_is_no_contrast_is_excluded_with_its_reason():
    same_question = [record(3), record(3, "corrupted", question=record(3)["question"])]
    usable, excluded = split_usable(pairs_from_records([*both(12, answer=13), *both(1), *same_question]))
    assert [pair.pair_id for pair in usable] == [1]
    assert [reason for _, reason in excluded] == [
        "pair 12: both answers are 13, so their logit difference is always 0; drop the pair",
        "pair 3: both questions are the same, so there is nothing to exchange; drop the pair",
    ]


@given(st.integers(-(10**9), 10**9))
def test_a_whole_answer_is_written_without_a_point(number):
    assert format_number(float(number)) == str(number)


def test_a_fraction_is_written_as_it_is():
    assert format_number(2.5) == "2.5"


def test_prepared_pairs_have_the_original_experiments_form(tmp_path):
    records = both(reasoning_steps=1)
    write_prepared(pairs_from_records(records), tmp_path / "prepared_pairs.json")
    sides = {r["variant"]: {key: r[key] for key in ("question", "answer", "reasoning_steps")} for r in records}
    assert json.loads((tmp_path / "prepared_pairs.json").read_text()) == [{"pair_id": 0, **sides}]


def test_a_numeral_that_changed_is_found_with_its_place_and_two_are_not_one():
    def change(clean, corrupted):
        return changed_number(Pair(0, "0", Side(clean, 1), Side(corrupted, 2)))

    assert change("9 of 1,200.", "9 of 1,300.") == {"place": 1, "clean": "1,200", "corrupted": "1,300"}
    assert change("Ann has 1.5.", "Ann has 2.5.") == {"place": 0, "clean": "1.5", "corrupted": "2.5"}
    assert change("1 and 2", "2 and 1") is None
    assert change("1 and 2", "1") is None


def test_a_description_counts_what_the_file_holds():
    found = describe(pairs_from_records([*both(0, reasoning_steps=2), *both(1, answer=5)]))
    assert (found["pairs"], found["usable"], found["equal_answers"]) == (2, 1, [1])
    assert found["reasoning_steps"] == {"2": 2, "unknown": 2}
    assert found["answer_difference"] == {"min": 0, "median": 0.5, "max": 1}
    assert found["question_words"] == {"min": 10, "median": 10, "max": 10}
    assert found["changed_number"][0] == {"pair_id": 0, "place": 0, "clean": "7", "corrupted": "8"}


@pytest.mark.skipif(
    not ORIGINAL.is_file(), reason="the original experiment's pairs have no licence, so are not shipped"
)
def test_nine_of_the_original_66_pairs_have_equal_answers_and_all_change_their_first_numeral_alone():
    found = describe(load_pairs(ORIGINAL))
    assert (found["pairs"], found["usable"], len(found["equal_answers"])) == (66, 57, 9)
    assert [change["place"] for change in found["changed_number"]] == [0] * 66
