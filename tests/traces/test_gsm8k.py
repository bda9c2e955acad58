"""Files in GSM8K's form: every key is read as written, and every fault is named with its line."""

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
        ('"12"', 12), ("1.5", 1.5),
    ],
)  # fmt: skip
def test_the_key_is_the_number_after_the_hashes_or_the_bare_number(file, answer, key):
    (problem,) = read_problems(file(f'{{"question": "How many?", "answer": {answer}}}\n\n'))
    assert (problem.line, problem.question, problem.answer) == (1, "How many?", key)


def test_a_line_separator_within_a_text_ends_no_line(file):
    assert len(read_problems(file('{"question": "A\u2028B?", "answer": 1}'))) == 1


def test_faults_are_named_with_their_lines_and_the_rest_is_counted(file):
    lines = ["{", '{"question": 3}', '{"question": "A?"}', '{"question": "A?", "answer": "none"}', "[]"]
    with pytest.raises(DataError) as error:
        read_problems(file("\n".join(lines)))
    assert "line 1 is not JSON; line 2 has no 'question' in text; line 3 has no 'answer'" in str(error.value)
    assert str(error.value).endswith("; and 2 more lines")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (r'{"question": "\ud800?", "answer": 1}', "line 1 holds broken text"),
        ('{"question": "A?", "answer": "#### 1234567890123456789"}', "has more than 15 digits, which no number holds"),
    ],
)
def test_text_and_numbers_that_cannot_be_represented_are_faults(file, line, sentence):
    with pytest.raises(DataError, match=sentence):
        read_problems(file(line))


def test_an_unreadable_file_is_one_sentence(file, tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path, sentence in (
        (tmp_path, "is a folder"), (tmp_path / "no", "no such file"), (file(""), "is empty"),
        (tmp_path / "bytes", "is not UTF-8 text (byte 0)"),
    ):  # fmt: skip
        with pytest.raises(DataError) as error:
            read_problems(path)
        assert sentence in str(error.value)


@pytest.mark.skipif(not GSM8K.is_file(), reason="GSM8K is not part of the project")
def test_gsm8k_has_1319_test_questions_and_every_key_is_a_whole_number():
    problems = read_problems(GSM8K)
    assert len(problems) == 1319
    assert all(problem.answer.is_integer() for problem in problems)
    assert (problems[0].line, problems[0].answer) == (1, 18)
