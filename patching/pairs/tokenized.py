"""A pair under a model's tokenizer: its token counts, the forced prefix, and where the two answers differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from codi_tracing.patching.answer_metrics import Keys
from codi_tracing.patching.pairs.pair import Pair, format_number
from codi_tracing.patching.pairs.validity import is_one_question, text_faults

if TYPE_CHECKING:
    from codi_tracing.traces.loop.tokens import TextEncoder


class TokenizedPair(NamedTuple):
    """A pair under a tokenizer: what both answers share (forced), the rest of each with EOS, and how they differ."""

    rank: int  # its place in the list of pairs
    pair: Pair
    tokens: int
    forced: tuple[int, ...]
    tails: tuple[tuple[int, ...], tuple[int, ...]]  # clean, corrupted
    shared: int = 0  # how many of the forced tokens are the answers' own, and not the prefix's
    hybrid: float = math.nan

    @property
    def clean_token(self) -> int:
        """The clean answer's token where the two differ."""
        return self.tails[0][0]

    @property
    def corrupted_token(self) -> int:
        return self.tails[1][0]

    @property
    def keys(self) -> Keys:
        return Keys(self.pair.clean.answer, self.pair.corrupted.answer, self.hybrid)


def tokenize_pairs(model: TextEncoder, pairs: Sequence[Pair]) -> tuple[list[TokenizedPair], list[tuple[Pair, str]]]:
    """Tokenise both sides of each pair; what cannot be a contrast under this tokenizer comes back with its reason."""
    ready, excluded = [], []
    for index, pair in enumerate(pairs):
        tokens = tokenise(model, pair)
        if faults := [*text_faults(pair), *token_faults(pair, tokens)]:
            excluded.append((pair, f"pair {pair.pair_id}: {faults[0]}"))
            continue
        assert tokens.differ is not None
        (clean, corrupted), differ = tokens.answers, tokens.differ
        tails = tuple(clean[differ:]), tuple(corrupted[differ:])
        shared = max(0, differ - tokens.prefix)
        ready.append(TokenizedPair(index, pair, len(tokens.questions[0]), tuple(clean[:differ]), tails, shared))
    return ready, excluded


class Tokens(NamedTuple):
    """A pair under a tokenizer: both questions, both answers (after the answer prefix, with it, and with EOS)."""

    questions: tuple[list[int], list[int]]
    answers: tuple[list[int], list[int]]
    differ: int | None  # the place of the first token at which the answers differ
    prefix: int  # tokens before the answers' own: the prefix and what the tokenizer puts after it
    unknown: bool  # whether a word of them is unknown
    spare: int  # positions that the model has left after question, thought and answer

    @property
    def readable(self) -> bool:
        """Whether the model can be asked both questions."""
        return not self.unknown and self.spare >= 0


def tokenise(model: TextEncoder, pair: Pair) -> Tokens:
    """Both questions and both answers in the model's tokens."""
    from codi_tracing.traces.loop.tokens import answer_ids, positions_needed, question_ids

    eos, unknown = model.tokenizer.eos_token_id, model.tokenizer.unk_token_id
    clean, corrupted = (question_ids(model, side.question) for side in (pair.clean, pair.corrupted))
    a, b = ([*answer_ids(model, f" {format_number(s.answer)}"), eos] for s in (pair.clean, pair.corrupted))
    differ = next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    # Llama 3 gives the blank before a number a token of its own, GPT-2 does not.
    prefix = max(_common(a, b, answer_ids(model, text)) for text in ("", " "))
    known = unknown is None or unknown not in (*clean, *corrupted, *a, *b)
    spare = model.n_positions - positions_needed(model, max(map(len, (clean, corrupted))), max(len(a), len(b)))
    return Tokens((clean, corrupted), (a, b), differ, prefix, not known, spare)


def token_faults(pair: Pair, tokens: Tokens) -> list[str]:
    """Why two sides that are a contrast as texts are none under a tokenizer."""
    faults = []
    clean, corrupted = tokens.questions
    if tokens.unknown:
        faults.append("it has words that this checkpoint's tokenizer does not know")
    if tokens.spare < 0:
        faults.append(f"its question, thought and answer are {-tokens.spare} positions longer than the model can read")
    if len(clean) != len(corrupted):
        faults.append(f"its questions have {len(clean)} and {len(corrupted)} tokens, wanted equal counts")
    if tokens.differ is None and not tokens.unknown and pair.clean.answer != pair.corrupted.answer:
        answers = f"{format_number(pair.clean.answer)} and {format_number(pair.corrupted.answer)}"
        faults.append(f"its answers {answers} are the same to this checkpoint's tokenizer")
    if clean == corrupted and not tokens.unknown and not is_one_question(pair):
        faults.append("its questions are the same to this checkpoint's tokenizer")
    return faults


def _common(*sequences: Sequence[int]) -> int:
    """How many tokens all sequences begin with."""
    return next(
        (i for i, ids in enumerate(zip(*sequences, strict=False)) if len(set(ids)) > 1), min(map(len, sequences))
    )
