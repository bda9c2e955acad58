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

from codi_tracing.patching.lens.questions import Worked, look_for, solved
from codi_tracing.patching.pair_making.chains import ANNOTATION
from codi_tracing.traces.text import last_number

TITLE = r"^Question *[0-9]+\.\.\.$"
QUESTION = re.compile(
    rf"^Question *([0-9]+)\.\.\.\n((?:(?!{TITLE}).)*?)\.\.\.\nCoT=([^\n]*), Answer=([^\n]*)$", re.MULTILINE | re.DOTALL
)
DECODED = re.compile(r"decoded ([0-9]{1,4})th latent \(top[0-9]+\): (\[.*\])\s*")
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
    known = {block[1] for block in blocks}
    for title in re.finditer(TITLE, text, re.MULTILINE):
        if (number := re.sub(r"[^0-9]", "", title[0])) not in known:
            raise DumpError(
                f"{path}: question {number} has no line 'CoT=…, Answer=…'; complete it, or drop the question"
            )
    ends = [*(block.start() for block in blocks[1:]), len(text)]
    worked: list[Worked] = []
    said: list[Said] = []
    for block, end in zip(blocks, ends, strict=False):
        question_id, question, solution, answer = block.groups()
        steps = ANNOTATION.findall(solution)
        worked.append(solved(question_id, question_id, question.strip(), steps, last_number(answer)))
        said += latents_of(f"{path}: question {question_id}", question_id, text[block.end() : end])
    if not said:
        raise DumpError(
            f'{path}: holds no decoded latents; wanted "CoT=<<16-3-4=9>> <<9*2=18>>, Answer=18.0" and lines as '
            "\"decoded 0th latent (top5): [' 13', '13']\" below it, as upstream's probe_latent_token.py writes them"
        )
    counts = Counter(each.question_id for each in worked)
    if twice := [question_id for question_id, count in counts.items() if count > 1]:
        raise DumpError(f"{path}: question {twice[0]} is there {counts[twice[0]]} times, wanted once; drop one")
    return worked, said


def latents_of(place: str, question_id: str, text: str) -> list[Said]:
    """The decoded latents of one question; `DumpError` for a line that begins as one and is none."""
    found: dict[int, list[str]] = {}
    for line in text.splitlines():
        if not line.startswith("decoded ") or "attended" in line:  # what is attended to is no decoding
            continue
        decoded = DECODED.fullmatch(line)
        tokens = None if decoded is None else texts_of(decoded[2])
        if decoded is None or not tokens:
            wanted = "decoded 0th latent (top5): [' 13', '13', …]"
            raise DumpError(f"{place}: found {line[:80]!r}, wanted a line as {wanted}")
        latent = int(decoded[1])
        if latent in found:
            raise DumpError(f"{place}: latent {latent} is there twice, wanted once; drop one")
        found[latent] = tokens
    return [
        Said(question_id, latent + BOT, rank, token)
        for latent, tokens in found.items()
        for rank, token in enumerate(tokens, start=1)
    ]


def texts_of(listed: str) -> list[str] | None:
    """A list of texts as Python writes it; None for anything else, broken characters among it."""
    try:
        tokens = ast.literal_eval(listed)
        fine = isinstance(tokens, list) and all(
            isinstance(token, str) and token.encode() is not None for token in tokens
        )
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return tokens if fine else None


def dump_tables(worked: Sequence[Worked], said: Sequence[Said], seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The lens's `says` and `values` of a dump, which has no probabilities; what is looked for has no place yet.

    `codi_tracing.analysis.lens.statistics.match_tokens` finds it; `seed` draws whose intermediates are the chance level.
    """
    says = pd.DataFrame(said).assign(layer=0)  # the only one that is there
    about = [
        {"question_id": each.question_id, "cluster_id": each.cluster_id, "steps": each.steps, **one._asdict()}
        for each, sought in zip(worked, look_for(worked, seed), strict=True)
        for one in sought
    ]
    return says, pd.DataFrame(about).astype({"ordinal": "Int64"})
