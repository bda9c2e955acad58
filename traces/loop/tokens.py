"""Tokenise questions and answers for a model, and count their positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from codi_tracing.traces.loop.rows import Rows
from codi_tracing.traces.model.checkpoint import Card
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.text import clean_text


class TextEncoder(Protocol):
    """The attributes that turn text into tokens: of a model, or of a checkpoint without its weights."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def card(self) -> Card: ...
    @property
    def n_latents(self) -> int: ...
    @property
    def n_positions(self) -> int: ...


def question_ids(model: TextEncoder, question: str) -> list[int]:
    """Token ids of a question: BOS once, where the tokenizer adds it, and EOS only if the checkpoint wants it."""
    tokenizer, text = model.tokenizer, clean_text(question)
    ids, bos, eos = tokenizer(text)["input_ids"], tokenizer.bos_token_id, tokenizer.eos_token_id
    if ids[-1:] == [eos] or ids[:2] == [bos, bos]:
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = own if ids[:1] != [bos] or own[:1] == [bos] else [bos, *own]
    return ids if model.card.remove_eos else [*ids, eos]


def opening_ids(model: TextEncoder) -> list[int]:
    """The tokens that end a thought: a placeholder for EoT, and EOS if the checkpoint's questions end in EOS."""
    return [0] if model.card.remove_eos else [0, model.tokenizer.eos_token_id]


def answer_ids(model: TextEncoder, text: str = "") -> list[int]:
    """Token ids of the answer prefix with `text` after it, no special tokens."""
    return model.tokenizer(f"{model.card.answer_prefix}{text}", add_special_tokens=False)["input_ids"]


def positions_needed(model: TextEncoder, question: int, answer: int, n_latents: int | None = None) -> int:
    """Positions of a run: `question` tokens, BoT, the thought, EoT (and EOS), `answer` tokens."""
    steps = model.n_latents if n_latents is None else n_latents
    return question + 1 + steps + len(opening_ids(model)) + answer


def encode(model: CodiModel, rows: Sequence[Sequence[str]], reads: Sequence[int] = (0,)) -> Rows:
    """Tokenise `rows[row][segment]`, pad on the left and put a placeholder for BoT last."""
    ids = [[[*question_ids(model, question), 0] for question in row] for row in rows]
    width = max(len(question) for row in ids for question in row)
    padded = [[[0] * (width - len(q)) + q for q in row] for row in ids]
    lengths = torch.tensor([[len(q) for q in row] for row in ids])
    valid = torch.arange(width) >= width - lengths[..., None]
    tokens, read = torch.tensor(padded), torch.tensor(list(reads))
    return Rows(tokens.to(model.device), valid.to(model.device), read.to(model.device))


def texts(model: CodiModel, tokens: Int[Tensor, "row cell token"]) -> list[list[str]]:
    """Decoded text of each cell of each row, up to EOS: `texts[cell][row]`."""
    eos = model.tokenizer.eos_token_id
    ended = [[ids[: ids.index(eos)] if eos in ids else ids for ids in cells] for cells in tokens.tolist()]
    decoded = [model.tokenizer.batch_decode(cells, skip_special_tokens=True) for cells in ended]
    return [list(column) for column in zip(*decoded, strict=True)]
