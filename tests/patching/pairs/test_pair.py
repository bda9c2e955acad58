"""Pairs are read as they were written, and every fault of a file is named at once."""

import csv
import json
import re
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codi_tracing.patching.pairs.json_records import PairsError
from codi_tracing.patching.pairs.pair import (
    Pair,
    Side,
    format_number,
    load_pairs,
    pairs_from_records,
    plain_number,
    write_pairs,
)
from codi_tracing.patching.pairs.validity import text_faults
from codi_tracing.traces.text import LARGEST, last_number, read_number
from tests.support.pair_records import both, pair_record, record

SHARED = Path(__file__).parents[4] / "shared" / "data"
SHIPPED = Path(__file__).parents[3] / "patching" / "data" / "arithmetic_pairs.json"
ORIGINAL, GSM8K = SHARED / "gsm8k_pairs_66.json", SHARED / "gsm8k_test.jsonl"


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


def test_pairs_keep_the_order_of_their_first_sides():
    clean, corrupted = [[record(i, variant) for i in (5, 2, 9)] for variant in ("clean", "corrupted")]
    assert [pair.pair_id for pair in pairs_from_records([*clean, *reversed(corrupted)])] == [5, 2, 9]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"answer": "18 or 19"},
            "record 0 (pair 0): 'answer' is \"18 or 19\", expected a number of at most about 16 digits",
        ),
        (
            {"answer": 10**16 + 1},
            "record 0 (pair 0): 'answer' is 10000000000000001, expected a number of at most about 16 digits",
        ),
        ({"answer": True}, "record 0 (pair 0): 'answer' is true, expected a number of at most about 16 digits"),
        ({"answer": float("nan")}, "record 0 (pair 0): 'answer' is NaN, expected a number of at most about 16 digits"),
        ({"answer": None}, "record 0 (pair 0): 'answer' is null, expected a number of at most about 16 digits"),
        ({"question": 7}, "record 0 (pair 0): 'question' is 7, expected text"),
        ({"question": "  "}, "record 0 (pair 0): 'question' is \"  \", expected text"),
        ({"variant": "cleen"}, "record 0 (pair 0): 'variant' is \"cleen\", expected 'clean' or 'corrupted'"),
        ({"pair_id": 1.5}, "record 0: 'pair_id' is 1.5, expected a whole number or a name"),
        ({"reasoning_steps": -1}, "record 0 (pair 0): 'reasoning_steps' is -1, expected a whole number or nothing"),
        ({"chain": "7+5=12"}, "record 0 (pair 0): 'chain' is \"7+5=12\", expected a list of texts like '7+5=12'"),
        ({"cluster_id": []}, "record 0 (pair 0): 'cluster_id' is [], expected a name or a whole number"),
    ],
)
def test_a_wrong_field_is_named_with_the_expected_value(changes, problem):
    clean, corrupted = both()
    assert problem in problems([{**clean, **changes}, corrupted])


def test_a_missing_field_is_named():
    clean, corrupted = both()
    del clean["answer"]
    assert problems([clean, corrupted]) == ["record 0 (pair 0): 'answer' is missing"]


def test_a_missing_side_and_a_repeated_side_are_named():
    assert problems([record(4)]) == ["pair 4: its corrupted side is missing; add a record with variant 'corrupted'"]
    repeated = "pair 4: its clean side occurs 2 times (records 0 and 2), expected once; drop one"
    assert problems([*both(4), record(4)]) == [repeated]


def test_two_sides_of_different_clusters_are_refused():
    clean, corrupted = record(cluster_id="a"), record(variant="corrupted", cluster_id="b")
    assert problems([clean, corrupted]) == ["pair 0: its sides have the cluster_ids 'a' and 'b', expected one"]


def test_all_faults_of_a_file_are_listed_at_once_in_one_line(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([*both(1), record(2), 3, record(4, answer="x"), record(4, "corrupted")]))
    with pytest.raises(PairsError) as error:
        load_pairs(path)
    assert len(error.value.problems) == 3
    assert str(error.value).startswith(f"{path}: record 3: found a number, expected an object with pair_id, variant")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty, expected pairs, a JSON list"),
        (b"[{]", "is not valid JSON (Expecting property name"),
        (b"{}", "found an object, expected a list of records"),
        (b"[]", "the list is empty, expected two records for each pair"),
        ("[]".encode("utf-16"), "is not UTF-8 text (byte 0), expected pairs, a JSON list or one pair a line; save it"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_file_that_holds_no_pairs_is_refused_in_a_sentence(tmp_path, content, problem):
    path = tmp_path / "pairs.json"
    path.write_bytes(content)
    with pytest.raises(PairsError, match=re.escape(f"{path}: {problem}")):
        load_pairs(path)


def test_a_missing_file_and_a_folder_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(
        PairsError, match=r"nope\.json: no such file; give a JSON list .*, or a shipped file: arithmetic"
    ):
        load_pairs(tmp_path / "nope.json")
    with pytest.raises(PairsError, match="is a folder, expected a file of pairs"):
        load_pairs(tmp_path)


def test_the_shipped_pairs_are_loaded_by_name_unless_a_file_has_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_pairs("arithmetic") == load_pairs(SHIPPED)
    assert len(load_pairs("arithmetic")) == 66
    (tmp_path / "arithmetic").write_text(json.dumps(both()))
    assert load_pairs("arithmetic") == pairs_from_records(both())
    with pytest.raises(PairsError, match="^geometry: no such file; give .* or a shipped file: arithmetic$"):
        load_pairs("geometry")


def test_a_byte_order_mark_changes_nothing(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(both()), encoding="utf-8-sig")
    assert load_pairs(path) == pairs_from_records(both())


@given(st.integers(-(10**9), 10**9))
def test_a_whole_answer_is_written_without_a_point(number):
    assert format_number(float(number)) == str(number)


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (2.5, "2.5"), (2.0107e-06, "0.0000020107"), (1e16, "10000000000000000"), (-0.0, "0"), (-1e23, f"-1{'0' * 23}"),
        (3, "3"), (numpy.float64(0.1), "0.1"),
    ],
)  # fmt: skip
def test_a_number_is_written_in_digits_and_never_with_an_exponent(number, written):
    assert format_number(number) == written


finite = st.floats(-LARGEST, LARGEST, exclude_min=True, exclude_max=True)


@given(finite | st.integers(-(10**37), 10**37).map(float))
def test_an_answer_as_it_is_written_is_read_back_as_the_key(number):
    assert last_number(f"The answer is: {format_number(number)}") == number
    assert read_number(format_number(number)) == read_number(plain_number(number)) == number


@given(st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: abs(number) < 1e300))
def test_a_key_is_read_back_or_the_pair_is_not_usable(number):
    clean, corrupted = Side("a?", number), Side("b?", 1.5 if number != 1.5 else 2.5)
    readable = last_number(format_number(number)) == number
    assert (text_faults(Pair(0, "0", clean, corrupted)) == []) == readable
    assert readable == (abs(number) < LARGEST)


def test_a_pair_of_our_own_form_keeps_every_field():
    change = {"place": 0, "start": 8, "end": 9, "clean": "7", "corrupted": "8", "step": 0}
    record = pair_record(cluster_id="12", edit="first_operand", change=change)
    record["clean"] |= {"reasoning_steps": 1, "chain": ["7+5=12"], "source": "test"}
    (pair,) = pairs_from_records([record])
    assert (pair.pair_id, pair.cluster_id, pair.edit, pair.extra) == ("12-0", "12", "first_operand", {"change": change})
    assert pair.clean == Side(record["clean"]["question"], 12.0, 1, ("7+5=12",), {"source": "test"})
    assert pair.corrupted == Side(record["corrupted"]["question"], 13.0)


def test_both_forms_give_the_same_pairs_and_may_stand_in_one_file():
    ours, originals = pairs_from_records([pair_record(0, edit="a"), *both(1, edit="a")])
    assert (ours.clean, ours.corrupted, ours.edit) == (originals.clean, originals.corrupted, originals.edit)
    assert [ours.pair_id, originals.pair_id] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"corrupted": 7}, "its corrupted side is a number, expected an object with question and answer"),
        ({"variant": "clean"}, "it is a pair and one side of a pair at once ('variant' and 'clean' or 'corrupted'), "
                               "expected one form"),
        ({"edit": 3}, "'edit' is 3, expected a name or nothing"),
        ({"clean": {"question": "?", "answer": "x"}},
         "clean side: 'answer' is \"x\", expected a number of at most about 16 digits"),
        ({"clean": {"answer": 7}}, "clean side: 'question' is missing"),
        ({"score": float("nan")}, "\"score\" holds NaN or broken text, which JSON cannot; write null"),
        ({"clean": {"question": "\ud800", "answer": 7}}, "clean side: 'question' is \"?\", expected text"),
    ],
)  # fmt: skip
def test_a_fault_of_a_pair_of_our_own_form_is_one_sentence(changes, problem):
    assert problems([pair_record(**changes)]) == [f"record 0 (pair 12-0): {problem}"]


def test_a_missing_side_of_our_own_form_and_a_repeated_pair_are_one_sentence_each():
    half = pair_record()
    del half["corrupted"]
    missing = "its corrupted side is missing; add an object 'corrupted' with question and answer"
    assert problems([half]) == [f"record 0 (pair 12-0): {missing}"]
    again = "pair 12-0: it occurs 3 times (records 0, 1 and 2), expected once; drop one"
    assert problems([pair_record(), *both("12-0")]) == [again]


def test_two_sides_of_different_edits_are_refused():
    sides = record(edit="a"), record(variant="corrupted", edit="b")
    assert problems(list(sides)) == ["pair 0: its sides have the edits 'a' and 'b', expected one"]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.json"])
@pytest.mark.parametrize(
    "records", [[pair_record()], [pair_record(1), pair_record(2)], both(), [*both(5), pair_record("x")]]
)
def test_jsonl_is_read_as_the_list_of_its_lines(tmp_path, name, records):
    (tmp_path / name).write_text("\n".join(map(json.dumps, records)) + "\n\n")
    assert load_pairs(tmp_path / name) == pairs_from_records(records)


def test_a_list_is_read_from_a_file_of_any_name(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(both(), indent=2))
    assert load_pairs(tmp_path / "pairs.jsonl") == pairs_from_records(both())


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path):
    records = both(note="a\u2028b")
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert load_pairs(tmp_path / "pairs.jsonl") == pairs_from_records(records)


def test_every_fault_of_a_half_written_jsonl_file_names_its_line(tmp_path):
    path = tmp_path / "pairs.jsonl"
    clean, corrupted = (json.dumps(record(answer="x")), json.dumps(record(variant="corrupted")))
    path.write_text(f"{clean}\n\n{corrupted}\n3\n{json.dumps(pair_record())[:40]}")
    with pytest.raises(PairsError) as error:
        load_pairs(path)
    half_line, answer, number = error.value.problems
    assert half_line.startswith("line 5: is not valid JSON (")
    assert answer == "line 1 (pair 0): 'answer' is \"x\", expected a number of at most about 16 digits"
    assert number.startswith("line 4: found a number, expected an object with pair_id, variant, question, answer")


@pytest.mark.parametrize("text", ["{line}\n{line}\n", "{line}", "[{line}, {line}]"])
def test_a_file_of_questions_is_refused_as_no_file_of_pairs(tmp_path, text):
    path = tmp_path / "test.jsonl"
    path.write_text(text.replace("{line}", json.dumps({"question": "16, less 3?", "answer": "<<16-3=13>> #### 13"})))
    advice = f"make pairs of them with `codi pairs make {path} --out {tmp_path / 'test_pairs.json'}`"
    with pytest.raises(PairsError, match=re.escape(f"holds questions, not pairs of questions; {advice}")):
        load_pairs(path)


def test_no_pairs_are_advised_of_questions_without_calculations(tmp_path):
    (tmp_path / "test.csv").write_text("question,answer\nHow many?,18\n")
    with pytest.raises(PairsError, match="and no annotated solutions") as error:
        load_pairs(tmp_path / "test.csv")
    assert "codi pairs make" not in str(error.value)


@pytest.mark.parametrize(("written", "key"), [("18", 18), ("$1,200", 1200), ("\u22122.5", -2.5), ("1/2", 0.5)])
def test_an_answer_may_be_text(written, key):
    (pair,) = pairs_from_records([record(answer=written), record(variant="corrupted")])
    assert pair.clean.answer == key


def test_pairs_are_read_from_a_csv(tmp_path):
    rows = [["pair_id", "variant", "question", "answer", "reasoning_steps", "note"]]
    rows += [[f"{i}", side, f'{side}, "{i}"?', f"1,{i}00", "2", ""] for i in (1, 2) for side in ("clean", "corrupted")]
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    one, two = load_pairs(tmp_path / "pairs.csv")
    assert (one.pair_id, one.clean) == ("1", Side('clean, "1"?', 1100.0, 2))
    assert two.corrupted.answer == 1200


@pytest.mark.parametrize("name", ["pairs.json", "pairs.jsonl"])
def test_a_key_that_a_record_has_twice_is_a_fault_of_that_record(tmp_path, name):
    clean, corrupted = map(json.dumps, both())
    twice = f'{{"answer": 1, {clean[1:]}'
    lines = [twice, corrupted, '{"x": {"a": 1, "a": 2}}']
    text = "\n".join(lines) if name.endswith("l") else f"[{', '.join(lines)}]"
    (tmp_path / name).write_text(text)
    with pytest.raises(PairsError) as error:
        load_pairs(tmp_path / name)
    first, second, missing = error.value.problems
    position = ("line 1", "line 3") if name.endswith("l") else ("record 0", "record 2")
    assert first == f"{position[0]}: an object has the key 'answer' twice; drop one"
    assert second == f"{position[1]}: an object has the key 'a' twice; drop one"
    assert missing.startswith("pair 0: its clean side is missing")


@pytest.mark.skipif(not GSM8K.is_file(), reason="the data set is not shipped")
def test_gsm8k_itself_is_one_sentence():
    with pytest.raises(PairsError) as error:
        load_pairs(GSM8K)
    assert len(error.value.problems) == 1


def test_a_message_names_twenty_faults_and_counts_the_others():
    with pytest.raises(PairsError) as error:
        pairs_from_records([3] * 50)
    assert len(error.value.problems) == 50
    assert str(error.value).endswith("; and 30 more problems")


def test_written_pairs_have_one_object_a_pair_with_both_sides(tmp_path):
    records = both(reasoning_steps=1)
    write_pairs(pairs_from_records(records), tmp_path / "prepared_pairs.json")
    sides = {r["variant"]: {key: r[key] for key in ("question", "answer", "reasoning_steps")} for r in records}
    written = json.loads((tmp_path / "prepared_pairs.json").read_text())
    assert written == [{"pair_id": 0, "cluster_id": "0", **sides}]


names = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
extras = st.dictionaries(names, st.none() | st.booleans() | st.integers() | names | st.lists(names))
sides = st.builds(
    Side,
    names,
    st.integers(-(10**9), 10**9).map(float) | st.floats(-1e6, 1e6),
    st.none() | st.integers(0, 9),
    st.lists(names).map(tuple),
    extras.map(lambda extra: {f"x_{name}": value for name, value in extra.items()}),
)


@given(st.integers(0) | names, names, sides, sides, st.none() | names, extras)
def test_written_pairs_are_read_back_unchanged(tmp_path_factory, pair_id, cluster, clean, corrupted, edit, extra):
    pair = Pair(pair_id, cluster, clean, corrupted, edit, {f"x_{name}": value for name, value in extra.items()})
    path = tmp_path_factory.getbasetemp() / "prepared_pairs.json"
    write_pairs([pair], path)
    assert load_pairs(path) == [pair]


@pytest.mark.skipif(
    not ORIGINAL.is_file(), reason="the original experiment's pairs have no licence, so are not shipped"
)
def test_the_original_pairs_survive_the_round_trip_with_every_field(tmp_path):
    pairs = load_pairs(ORIGINAL)
    assert len(pairs) == 66
    assert set(pairs[0].clean.extra) == {"baseline_correct", "ablated_correct", "needs_cot"}
    write_pairs(pairs, tmp_path / "prepared_pairs.json")
    assert load_pairs(tmp_path / "prepared_pairs.json") == pairs
