"""Questions and answers in a model's tokens, and how many positions they take."""

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


class Reader(Protocol):
    """What it takes to turn text into tokens: a model, or a checkpoint of which no weight is loaded."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def card(self) -> Card: ...
    @property
    def n_latents(self) -> int: ...
    @property
    def n_positions(self) -> int: ...


def question_ids(model: Reader, question: str) -> list[int]:
    """Token ids of a question with the tokenizer's own special tokens, and EOS where the checkpoint wants it."""
    ids = model.tokenizer(clean_text(question))["input_ids"]
    return ids if model.card.remove_eos else [*ids, model.tokenizer.eos_token_id]


def opening_ids(model: Reader) -> list[int]:
    """What ends a thought: a placeholder for EoT, and EOS where the checkpoint's questions end in EOS too."""
    return [0] if model.card.remove_eos else [0, model.tokenizer.eos_token_id]


def answer_ids(model: Reader, text: str = "") -> list[int]:
    """Token ids of the answer prefix with `text` after it, no special tokens."""
    return model.tokenizer(f"{model.card.answer_prefix}{text}", add_special_tokens=False)["input_ids"]


def positions_needed(model: Reader, question: int, answer: int, n_latents: int | None = None) -> int:
    """How many positions a run takes: so many question tokens, BoT, the thought, EoT, and so many answer tokens."""
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
    knockout = [[said[: said.index(eos)] if eos in said else said for said in cells] for cells in tokens.tolist()]
    decoded = [model.tokenizer.batch_decode(cells, skip_special_tokens=True) for cells in knockout]
    return [list(column) for column in zip(*decoded, strict=True)]
