"""Question files in all public forms: every key is read as written, and a faulty record is left out and named alone."""

import json
import re
from pathlib import Path

import pytest

from codi_tracing.traces.gsm8k import DataError, read_problems

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k_test.jsonl"


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "data.jsonl").write_text(text, encoding="utf-8")
        return tmp_path / "data.jsonl"

    return write


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ('"so 9\\n#### 18"', 18), ('"#### 1,234"', 1234), ('"#### -3"', -3), ('"#### $2.50"', 2.5), ("7", 7),
        ('"12"', 12), ("1.5", 1.5), ('"#### \u22125"', -5), ('"#### -$18"', -18), ("2.0107e-06", 2.0107e-06),
        ("1e16", 1e16), ("0.1234567890123456", 0.1234567890123456), ('"#### 50%"', 50), ('"1/2"', 0.5), ("[21.0]", 21),
    ],
)  # fmt: skip
def test_the_key_is_the_number_after_the_hashes_or_the_bare_number(file, answer, key):
    (problem,) = read_problems(file(f'{{"question": "How many?", "answer": {answer}}}\n\n')).problems
    assert (problem.line, problem.question, problem.answer) == (1, "How many?", key)


def test_a_line_separator_within_a_text_ends_no_line(file):
    assert len(read_problems(file('{"question": "A\u2028B?", "answer": 1}')).problems) == 1


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "is not valid JSON"), ('{"question": 3, "answer": 1}', "its 'question' is no text"),
        ("3", "found a number, expected"),
        ('{"question": "A?"}', "found 'question', expected question and answer"),
        ('{"question": "A?", "answer": "none"}', "its answer 'none' is no number, expected a number, or a solution"),
        ('{"question": "A?", "answer": NaN}', "its answer nan is no number"), ("A?", "is not valid JSON"),
        ('{"question": "A?", "answer": [1, 2]}', "its answer a list is no number"),
        ('{"question": "A?", "answer": 1e38}', "its answer 1e.38 is too large"),
        ('{"question": "A?", "answer": "#### 1234567890123456789"}', "has more digits than a number holds"),
        ('{"question": "A?", "answer": 1, "answer": 2}', "an object has the key 'answer' twice; drop one"),
        (r'{"question": "\ud800?", "answer": 1}', "holds broken text"),
        ('{"clean": {}, "corrupted": {}}', "is a pair of questions, expected one question"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_used_is_left_out_and_named_alone(file, line, fault):
    good = json.dumps({"question": "How many?", "answer": 18})
    read = read_problems(file("\n".join([good, line, *[good] * 1317])))
    assert [problem.line for problem in read.problems] == [1, *range(3, 1320)]
    with pytest.raises(DataError, match=f"line 2: .*{fault}"):
        raise DataError(*read.faults)
    assert read.left_out.startswith("1 of 1319 records left out: line 2: ")
    with pytest.raises(DataError, match=f"data.jsonl: line 1: .*{fault}"):  # nothing is left
        read_problems(file(line))


def test_the_first_faults_are_named_and_the_rest_is_counted(file):
    with pytest.raises(DataError, match="line 1: .*; line 2: .*; line 4: .*; and 2 more$"):
        read_problems(file('{\n"a\n\nb\nc\nd'))


CHAIN = ["<<16-3=13>>", "<<13*5=65>>"]
FORMS = {
    "GSM8K": {"question": "Q?", "answer": f"{' '.join(CHAIN)}\n#### 65"},
    "Coconut": {"question": "Q?", "steps": CHAIN, "answer": "65"},
    "Coconut without brackets": {"question": "Q?", "steps": ["16-3=13", "13*5=65"], "answer": "65"},
    "GSM8k-Aug": {"question": "Q?", "cot": " ".join(CHAIN), "answer": "65"},
    "GSM8k-Aug, a list": {"question": "Q?", "cot": CHAIN, "answer": 65},
    "GSM-Hard": {"input": "Q?", "code": "return 65", "target": 65.0},
    "GSM-Hard as instructions": {"instruction": "Q?", "response": "65.0"},
    "MultiArith": {"sQuestion": "Q?", "lEquations": ["X=((16.0-3.0)*5.0)"], "lSolutions": [65.0]},
    "MultiArith, answers": {"question": "Q?", "final_ans": "65"},
    "SVAMP": {"Body": "Q", "Question": "?", "Equation": "( ( 16.0 - 3.0 ) * 5.0 )", "Answer": 65.0},
    "SVAMP joined": {"question_concat": "Q?", "Equation": "( ( 16.0 - 3.0 ) * 5.0 )", "Answer": "65.0"},
}


def chain_of(name):
    if name.startswith(("GSM-Hard", "MultiArith,")):
        return ""
    return " ".join(CHAIN) if name.startswith(("GSM8", "Coconut")) else "<<((16-3)*5)=65>>"


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("written", ["lines", "list"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_public_forms_are_read_from_jsonl_and_from_a_list(file, name, written, mark):
    records = [FORMS[name]] * 3
    text = "\n".join(map(json.dumps, records)) if written == "lines" else json.dumps(records, indent=2)
    read = read_problems(file(mark + text))
    assert (read.faults, len(read.problems)) == ([], 3)
    for problem in read.problems:
        assert (problem.question.replace(" ", ""), problem.answer) == ("Q?", 65)
        assert chain_of(name) in problem.solution
        assert ("<<" in problem.solution) == bool(chain_of(name))


def test_icots_lines_are_read(file):
    (problem,) = read_problems(file("16, less 3, by 5?||<<16-3=13>> <<13*5=65>> #### 65\n")).problems
    assert problem == (1, "16, less 3, by 5?", "<<16-3=13>> <<13*5=65>> #### 65", 65)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_csv_is_read_by_its_header(tmp_path, mark):
    rows = (
        ["ID", "Body", "Question", "Answer"],
        ["1", f'"A{mark} ""B"""', "C?", "8.0"],
        ["2", "A", "", "8.0"],
        ["3"] * 5,
    )
    (tmp_path / "svamp.csv").write_text("\n".join(map(mark.join, rows)), encoding="utf-8-sig")
    read = read_problems(tmp_path / "svamp.csv")
    assert [(p.line, p.question, p.answer) for p in read.problems] == [(2, f'A{mark} "B" C?', 8)]
    assert read.faults == [
        "line 4: has 5 cells, expected 4",
        "line 3: found 'ID, Body, Answer', expected question and answer, or another public form: see traces/gsm8k.py",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n1,2", "has the columns 'a, b', expected question, answer, or question, final_ans, …"),
        ("question,answer,answer\n1", "each once"),
    ],
)
def test_a_csv_with_other_columns_is_refused_with_their_names(tmp_path, text, sentence):
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_problems(tmp_path / "data.csv")


def test_an_unreadable_file_is_one_sentence(file, tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path, sentence in (
        (tmp_path, "is a folder"),
        (tmp_path / "no", "no such file"),
        (tmp_path / "bytes", "is not UTF-8 text (byte 0)"),
    ):
        with pytest.raises(DataError, match=re.escape(sentence)):
            read_problems(path)
    for text, sentence in (
        ("", "is empty"),
        ("[]", "no records"),
        ("[1", "is not valid JSON"),
        ("[\n1", "is not valid"),
    ):
        with pytest.raises(DataError, match=sentence):
            read_problems(file(text))


def test_one_broken_record_of_a_list_with_a_record_in_each_line_is_named_alone(file):
    good = json.dumps({"question": "How many?", "answer": 18})
    read = read_problems(file(f"[\n{good},\n{good[:-3]},\n{good}\n]\n"))
    assert [problem.line for problem in read.problems] == [2, 4]
    assert [fault[:25] for fault in read.faults] == ["line 3: is not valid JSON"]


@pytest.mark.skipif(not GSM8K.is_file(), reason="GSM8K is not part of the project")
def test_gsm8k_has_1319_test_questions_and_every_key_is_a_whole_number():
    problems, faults = read_problems(GSM8K)
    assert (len(problems), faults) == (1319, [])
    assert all(problem.answer.is_integer() for problem in problems)
    assert (problems[0].line, problems[0].answer) == (1, 18)
