"""Read upstream's published dumps of decoded latents into the lens's tables. No torch.

For each question that the model answers correctly, upstream's `probe_latent_token.py` writes

    Question0...
    Janet's ducks lay 16 eggs per day. ...
    CoT=<<16-3-4=9>> <<9*2=18>>, Answer=18.0
    decoded 0th latent (top5): [' 13', '13', ' 12', ' 11', '12']

and so on. Its 0th latent is BoT's state, its k-th the state of latent step k - 1, all after the last layer.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from codi_tracing.configs.files import read_utf8
from codi_tracing.patching.lens.questions import SolvedQuestion, solved_question, target_numbers
from codi_tracing.patching.pair_making.gsm8k_chains import ANNOTATION
from codi_tracing.traces.text import last_number

TITLE = r"^Question *[0-9]+\.\.\.$"
QUESTION_BLOCK = re.compile(
    rf"^Question *([0-9]+)\.\.\.\n((?:(?!{TITLE}).)*?)\.\.\.\nCoT=([^\n]*), Answer=([^\n]*)$", re.MULTILINE | re.DOTALL
)
DECODED = re.compile(r"decoded ([0-9]{1,4})th latent \(top[0-9]+\): (\[.*\])\s*")
BOT_STEP = -1  # the step of BoT's own state


class DecodedToken(NamedTuple):
    """A token decoded at a step (-1 is BoT); `rank` 1 is the likeliest."""

    question_id: str
    step: int
    rank: int
    token: str


class DumpError(ValueError):
    """A file that is not a dump of decoded latents."""


def read_dump(path: str | Path) -> tuple[list[SolvedQuestion], list[DecodedToken]]:
    """A dump's questions with their solutions, and its decoded tokens; `DumpError` for any other file."""
    path = Path(path)
    try:
        text = read_utf8(path)
    except IsADirectoryError:
        raise DumpError(f"{path}: is a folder, expected a text file of decoded latents") from None
    except UnicodeDecodeError as error:
        raise DumpError(f"{path}: is not UTF-8 text (byte {error.start}); expected a dump of decoded latents") from None
    blocks = list(QUESTION_BLOCK.finditer(text))
    complete = {block[1] for block in blocks}
    for title in re.finditer(TITLE, text, re.MULTILINE):
        if (number := re.sub(r"[^0-9]", "", title[0])) not in complete:
            raise DumpError(
                f"{path}: question {number} has no line 'CoT=…, Answer=…'; complete it, or drop the question"
            )
    ends = [*(block.start() for block in blocks[1:]), len(text)]
    questions: list[SolvedQuestion] = []
    decoded: list[DecodedToken] = []
    for block, end in zip(blocks, ends, strict=False):
        question_id, question, solution, answer = block.groups()
        steps = ANNOTATION.findall(solution)
        questions.append(solved_question(question_id, question_id, question.strip(), steps, last_number(answer)))
        decoded += parse_latents(f"{path}: question {question_id}", question_id, text[block.end() : end])
    if not decoded:
        raise DumpError(
            f'{path}: holds no decoded latents; expected "CoT=<<16-3-4=9>> <<9*2=18>>, Answer=18.0" and lines as '
            "\"decoded 0th latent (top5): [' 13', '13']\" below it, as upstream's probe_latent_token.py writes them"
        )
    ((most_common, count),) = Counter(question.question_id for question in questions).most_common(1)
    if count > 1:
        raise DumpError(f"{path}: question {most_common} occurs {count} times, expected once; drop one")
    return questions, decoded


def parse_latents(where: str, question_id: str, text: str) -> list[DecodedToken]:
    """The decoded latents of one question; `DumpError` for a line that begins as one and cannot be parsed."""
    by_latent: dict[int, list[str]] = {}
    for line in text.splitlines():
        if not line.startswith("decoded ") or "attended" in line:  # lines on attended tokens decode nothing
            continue
        match = DECODED.fullmatch(line)
        tokens = parse_token_list(match[2]) if match else None
        if match is None or not tokens:
            example = "decoded 0th latent (top5): [' 13', '13', …]"
            raise DumpError(f"{where}: found {line[:80]!r}, expected a line as {example}")
        latent = int(match[1])
        if latent in by_latent:
            raise DumpError(f"{where}: latent {latent} occurs twice, expected once; drop one")
        by_latent[latent] = tokens
    return [
        DecodedToken(question_id, latent + BOT_STEP, rank, token)
        for latent, tokens in by_latent.items()
        for rank, token in enumerate(tokens, start=1)
    ]


def parse_token_list(text: str) -> list[str] | None:
    """A list of texts as Python writes it; None for anything else, broken characters included."""
    try:
        tokens = ast.literal_eval(text)
        valid = isinstance(tokens, list) and all(isinstance(t, str) and t.encode() is not None for t in tokens)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return tokens if valid else None


def dump_tables(
    questions: Sequence[SolvedQuestion], decoded: Sequence[DecodedToken], seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The lens's tables `says` and `values` of a dump, without probabilities, steps and ranks of the values.

    `codi_tracing.analysis.lens.statistics.match_tokens` finds the ranks; `seed` draws the chance level.
    """
    says = pd.DataFrame(decoded).assign(layer=0)  # a dump has only one
    values = [
        {"question_id": each.question_id, "cluster_id": each.cluster_id, "steps": each.steps, **target._asdict()}
        for each, targets in zip(questions, target_numbers(questions, seed), strict=True)
        for target in targets
    ]
    return says, pd.DataFrame(values).astype({"ordinal": "Int64"})
