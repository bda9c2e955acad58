"""Question files in GSM8K's form and in those of other public data, with the number that is each answer. No torch.

A GSM8K record has a `question` and an `answer`, whose last line is `#### 18`; an answer may also be a bare number.
`FORMS` lists the field names of the others: Coconut, GSM8k-Aug, MultiArith, SVAMP, GSM-Hard. iCoT's lines are read too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from codi_tracing.traces.records import FileRecord, json_type, parse_records, read_text
from codi_tracing.traces.text import LARGEST, read_number

# Calculations of SVAMP, MultiArith and Coconut without brackets: ( 8.0 - 3.0 ), X=(7.0*(6.0+2.0)), 16-3=13.
EQUATION = re.compile(r"(?:[Xx] ?= ?)?([-\d.\s()+*/]+)(=\s*-?[\d.]+)?")


class QuestionForm(NamedTuple):
    """The fields of a public question file: of the question's parts, of the answer, and of its calculations."""

    question: tuple[str, ...]
    answer: str
    chain: tuple[str, ...] = ()

    @property
    def required(self) -> tuple[str, ...]:
        return (*self.question, self.answer)


FORMS = (
    QuestionForm(("question",), "answer", ("steps", "cot")),  # GSM8K, Coconut, GSM8k-Aug, iCoT
    QuestionForm(("question",), "final_ans"),  # MultiArith
    QuestionForm(("sQuestion",), "lSolutions", ("lEquations",)),  # MultiArith
    QuestionForm(("question_concat",), "Answer", ("Equation",)),  # SVAMP
    QuestionForm(("Body", "Question"), "Answer", ("Equation",)),  # SVAMP
    QuestionForm(("Question",), "Answer", ("Equation",)),
    QuestionForm(("input",), "target"),  # GSM-Hard
    QuestionForm(("instruction",), "response"),  # GSM-Hard
)
QUESTION_COLUMNS = tuple(form.required for form in FORMS)


class GsmProblem(NamedTuple):
    """A question, its worked solution as the file has it, and the number that is its key."""

    line: int  # from 1; of a JSON list the record, from 0
    question: str
    solution: str
    answer: float


class QuestionFile(NamedTuple):
    """The usable questions of a file, and why each of the others is not, a sentence each."""

    problems: list[GsmProblem]
    faults: list[str]

    @property
    def left_out(self) -> str:
        """How many records are not used, and the first reasons; empty where all are."""
        count = f"{len(self.faults)} of {len(self.faults) + len(self.problems)} records left out"
        return f"{count}: {first_faults(self.faults)}" if self.faults else ""


class DataError(ValueError):
    """A file without a usable question; the message names its first faults and counts the rest."""


def read_problems(path: str | Path) -> QuestionFile:
    """Read a file of questions and answers: JSONL, a JSON list, CSV or iCoT's lines.

    A record that cannot be used is left out and named; raises `DataError` where none is left.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file; give a file of questions and answers, as GSM8K's test.jsonl")
    problems: list[GsmProblem] = []
    try:
        text = read_text(path, "questions and answers, as GSM8K's test.jsonl")
        records, faults = parse_records(text, QUESTION_COLUMNS, path.suffix)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    for record in records:
        try:
            problems.append(problem_of(record))
        except DataError as fault:
            faults.append(f"{record.position}: {fault}")
    if not problems:
        raise DataError(f"{path}: {first_faults(faults) or 'holds no records, expected questions and answers'}")
    return QuestionFile(problems, faults)


def first_faults(faults: Sequence[str], most: int = 3) -> str:
    """The first faults, and how many more there are."""
    more = f"; and {len(faults) - most} more" if len(faults) > most else ""
    return "; ".join(faults[:most]) + more


def form_of(value: Any) -> QuestionForm | None:
    """The form of a question's record, the first that fits; None for anything else."""
    return next((form for form in FORMS if isinstance(value, dict) and set(form.required) <= set(value)), None)


def problem_of(record: FileRecord) -> GsmProblem:
    """The problem of one record; raises `DataError` with its fault."""
    value, form = record.value, form_of(record.value)
    if form is None:
        if isinstance(value, dict) and {"clean", "corrupted"} & set(value):
            raise DataError("is a pair of questions, expected one question; `codi pairs check` reads pairs")
        found = f"{', '.join(map(str, value))!r:.100}" if isinstance(value, dict) else json_type(value)
        raise DataError(f"found {found}, expected question and answer, or another public form: see traces/gsm8k.py")
    parts = [value[name] for name in form.question]
    if not all(isinstance(part, str) and part.strip() for part in parts):
        raise DataError(f"its {' and '.join(map(repr, form.question))} is no text")
    given = value[form.answer]
    given = given[0] if isinstance(given, list) and len(given) == 1 else given
    key = given.rpartition("####")[2].strip() if isinstance(given, str) else given
    try:
        answer = read_number(key)
        if abs(answer) >= LARGEST:
            raise ValueError("is too large")
    except ValueError as error:
        shown = f"{key!r:.60}" if isinstance(key, str | int | float) else json_type(key)
        expected = "expected a number, or a solution that ends in '#### 18'"
        raise DataError(f"its answer {shown} {error}, {expected}") from None
    chain = next((value[name] for name in form.chain if value.get(name)), None)
    solution = str(given) if chain is None else f"{annotated_chain(chain, answer)}\n#### {given}"
    question = " ".join(map(str.strip, parts)) if len(parts) > 1 else parts[0]
    try:
        f"{question}{solution}".encode()
    except UnicodeEncodeError:
        raise DataError("holds broken text (half of a surrogate pair)") from None
    return GsmProblem(record.number, question, solution, answer)


def annotated_chain(chain: Any, answer: float) -> str:
    """The calculations of a solution as GSM8K annotates them: <<16-3=13>> <<13*5=65>>."""
    return " ".join(annotated(str(part), answer) for part in (chain if isinstance(chain, list) else [chain]))


def annotated(text: str, answer: float) -> str:
    """A calculation without brackets as an annotation, `( 8.0 - 3.0 )` as `<<(8-3)=5>>`; any other text unchanged."""
    match = EQUATION.fullmatch(text.strip())
    if match is None:
        return text
    calculation = re.sub(r"(?<![0-9.])([0-9]+)\.0+(?![0-9])", r"\1", "".join(match[1].split()))
    return f"<<{calculation}{match[2] or f'={int(answer) if answer.is_integer() else answer}'}>>"
