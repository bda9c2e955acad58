"""A pair under a model's tokenizer: its token counts, the forced prefix, and where the two answers differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from codi_tracing.patching.answer_metrics import Keys
from codi_tracing.patching.pairs.pair import Pair, Side, format_number, in_clusters
from codi_tracing.patching.pairs.validity import is_same_question, text_faults
from codi_tracing.traces.text import clean_text, last_number

if TYPE_CHECKING:
    from codi_tracing.traces.loop.tokens import TextEncoder


class TokenizedPair(NamedTuple):
    """A pair's token count, the answer tokens that are forced, and the rest of each answer with EOS."""

    rank: int  # its index in the list of pairs
    pair: Pair
    tokens: int  # of the clean question, and of the corrupted one in a usable pair
    forced: tuple[int, ...]  # the answer prefix and what both answers share
    tails: tuple[tuple[int, ...], tuple[int, ...]]  # clean, corrupted
    shared: int = 0  # how many of the forced tokens belong to the answers, not to the prefix
    hybrid: float = math.nan  # see `Keys`
    corrupted_tokens: int | None = None  # of the corrupted question, where it was tokenised
    faults: tuple[str, ...] = ()  # why the pair is not usable
    readable: bool = True  # whether the model can be asked both questions

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
    """The pairs that are usable under the model's tokenizer, and the excluded ones, each with its reason."""
    tokenized = [tokenize_pair(model, pair, rank) for rank, pair in enumerate(in_clusters(pairs))]
    excluded = [(p.pair, f"pair {p.pair.pair_id}: {p.faults[0]}") for p in tokenized if p.faults]
    return [p for p in tokenized if not p.faults], excluded


def tokenize_pair(model: TextEncoder, pair: Pair, rank: int = 0) -> TokenizedPair:
    """Tokenise both questions and both answers once, and collect every fault of text and tokens."""
    from codi_tracing.traces.loop.tokens import answer_ids, positions_needed, question_ids
    from codi_tracing.traces.model.tokenizer import unknown_words

    eos = model.tokenizer.eos_token_id
    clean, corrupted = (question_ids(model, side.question) for side in pair.sides.values())
    a, b = ([*answer_ids(model, f" {format_number(side.answer)}"), eos] for side in pair.sides.values())
    differ = _common_length(a, b)
    # Llama 3 gives the blank before a number a token of its own, GPT-2 does not.
    prefix = max(_common_length(a, b, answer_ids(model, text)) for text in ("", " "))
    longest_question, longest_answer = max(len(clean), len(corrupted)), max(len(a), len(b))
    spare = model.n_positions - positions_needed(model, longest_question, longest_answer)

    faults = text_faults(pair)
    sides = [f"{clean_text(side.question)} {format_number(side.answer)}" for side in pair.sides.values()]
    if unknown := [word for text in sides for word in unknown_words(model.tokenizer, text)]:
        faults.append(f"this checkpoint's tokenizer does not know its {unknown[0]!r}")
    if spare < 0:
        faults.append(f"its question, thought and answer are {-spare} positions longer than the model can read")
    if len(clean) != len(corrupted):
        faults.append(f"its questions have {len(clean)} and {len(corrupted)} tokens, expected equal counts")
    if differ == min(len(a), len(b)) and not unknown and pair.clean.answer != pair.corrupted.answer:
        answers = f"{format_number(pair.clean.answer)} and {format_number(pair.corrupted.answer)}"
        faults.append(f"its answers {answers} are the same to this checkpoint's tokenizer")
    if clean == corrupted and not unknown and not is_same_question(pair):
        faults.append("its questions are the same to this checkpoint's tokenizer")
    if not unknown:
        answers_read = zip(pair.sides.values(), (a, b), strict=True)
        faults += [fault for side, ids in answers_read if (fault := _misread(model, side, ids))]
    return TokenizedPair(
        rank, pair, len(clean), tuple(a[:differ]), (tuple(a[differ:]), tuple(b[differ:])), differ - prefix,
        corrupted_tokens=len(corrupted), faults=tuple(faults), readable=not unknown and spare >= 0,
    )  # fmt: skip


def _misread(model: TextEncoder, side: Side, ids: Sequence[int]) -> str | None:
    """A fault where the answer's tokens, decoded as a model's are, are read as another number than the key."""
    read = last_number(model.tokenizer.decode(ids[:-1], skip_special_tokens=True))  # without EOS
    key = format_number(side.answer)
    if read == side.answer or last_number(key) != side.answer:
        return None  # a key that no text gives is a fault of its own
    number = "no number" if math.isnan(read) else format_number(read)
    return f"its answer {key} is read back as {number} from this checkpoint's tokenizer; drop the pair"


def _common_length(*sequences: Sequence[int]) -> int:
    """How many tokens all sequences begin with."""
    return sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(*sequences, strict=False)))
