"""Dumps of decoded latents, as upstream publishes them: read, and put into the lens's tables. No torch.

Upstream's `probe_latent_token.py` writes, for each question that it answers correctly,

    Question0...
    Janet's ducks lay 16 eggs per day. ...
    CoT=<<16-3-4=9>> <<9*2=18>>, Answer=18.0
    decoded 0th latent (top5): [' 13', '13', ' 12', ' 11', '12']

and so on: its 0th latent is BoT's state, its k-th that of latent step k - 1, all after the last layer.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from patching.chains import ANNOTATION
from patching.worked import Worked, look_for, solved
from traces.text import last_number

TITLE = r"^Question *\d+\.\.\.$"
QUESTION = re.compile(
    rf"^Question *(\d+)\.\.\.\n((?:(?!{TITLE}).)*?)\.\.\.\nCoT=([^\n]*), Answer=([^\n]*)$", re.MULTILINE | re.DOTALL
)
DECODED = re.compile(r"^decoded (\d+)th latent \(top\d+\): (\[.*\])$", re.MULTILINE)
BOT = -1  # the step of what BoT's own state says


class Said(NamedTuple):
    """A decoded token: `rank` 1 is the likeliest at that step; `step` -1 is BoT."""

    question_id: str
    step: int
    rank: int
    token: str


class DumpError(ValueError):
    """A file that is no dump of decoded latents."""


def read_dump(path: str | Path) -> tuple[list[Worked], list[Said]]:
    """A dump's questions with their solutions, and its likeliest tokens; `DumpError` where the file is none."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except IsADirectoryError:
        raise DumpError(f"{path}: is a folder, wanted a text file of decoded latents") from None
    except UnicodeDecodeError as error:
        raise DumpError(f"{path}: is not UTF-8 text (byte {error.start}); wanted a dump of decoded latents") from None
    blocks = list(QUESTION.finditer(text))
    ends = [*(block.start() for block in blocks[1:]), len(text)]
    worked: list[Worked] = []
    said: list[Said] = []
    for block, end in zip(blocks, ends, strict=False):
        question_id, question, solution, answer = block.groups()
        steps = ANNOTATION.findall(solution)
        worked.append(solved(question_id, question_id, question.strip(), steps, last_number(answer)))
        for decoded in DECODED.finditer(text, block.end(), end):
            said += decoded_tokens(f"{path}: question {question_id}", question_id, int(decoded[1]), decoded[2])
    if not said:
        raise DumpError(
            f'{path}: holds no decoded latents; wanted "CoT=<<16-3-4=9>> <<9*2=18>>, Answer=18.0" and lines as '
            "\"decoded 0th latent (top5): [' 13', '13']\" below it, as upstream's probe_latent_token.py writes them"
        )
    counts = Counter(each.question_id for each in worked)
    if twice := [question_id for question_id, count in counts.items() if count > 1]:
        raise DumpError(f"{path}: question {twice[0]} is there {counts[twice[0]]} times, wanted once; drop one")
    return worked, said


def decoded_tokens(place: str, question_id: str, latent: int, listed: str) -> list[Said]:
    """One line's tokens, as Python writes a list of texts."""
    try:
        tokens = ast.literal_eval(listed)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        tokens = None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise DumpError(f"{place}: latent {latent} is {listed[:80]!r}, wanted a list of texts in quotes")
    return [Said(question_id, latent + BOT, rank, token) for rank, token in enumerate(tokens, start=1)]


def dump_tables(worked: Sequence[Worked], said: Sequence[Said], seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The lens's `says` and `values` of a dump, which has no probabilities; what is looked for has no place yet.

    `analysis.match_tokens` finds it; `seed` draws whose intermediates are the chance level.
    """
    says = pd.DataFrame(said).assign(layer=0)  # the only one that is there
    about = [
        {"question_id": each.question_id, "cluster_id": each.cluster_id, "steps": each.steps, **one._asdict()}
        for each, sought in zip(worked, look_for(worked, seed), strict=True)
        for one in sought
    ]
    return says, pd.DataFrame(about).astype({"ordinal": "Int64"})
