"""A base's tokenizer, with every default of the library's decided here.

- A `tokenizer.json` may come with truncation and padding switched on: both are switched off. Questions are padded by
  `loop.tokens.encode`, on the left.
- Decoding changes no blanks ("clean-up" moves them before punctuation marks).
- An answer ends at the tokenizer's EOS alone, as in upstream's evaluation, not at further ids of a generation config.
- Special tokens in a question's text are read as such, as upstream's tokenizer reads them; BOS is never doubled
  (`loop.tokens.question_ids`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codi_tracing.traces.model.checkpoint import CheckpointError, base_location, find_checkpoint, read_card
from codi_tracing.traces.model.refusals import refusing


def open_tokenizer(base: str, revision: str | None = None, rows: int | None = None) -> Any:
    """A base's tokenizer; refused without EOS, or if it writes ids beyond the `rows` of the base's embedding."""
    from transformers import AutoTokenizer

    pinned = {"revision": revision} if revision else {}
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False, **pinned)
    if not tokenizer.is_fast:
        raise CheckpointError(f"{base}: has no tokenizer.json that the tokenizers library reads; add one")
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"{base}: its tokenizer has no EOS, at which answers end; set eos_token in its config")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.clean_up_tokenization_spaces = False
    ids = {} if rows is None else {index: token for token, index in tokenizer.get_vocab().items() if index >= rows}
    ids.pop(tokenizer.pad_token_id, None)  # padding is never seen
    if ids:
        raise CheckpointError(
            f"{base}: {len(ids)} tokens of its tokenizer lie beyond its embedding of {rows} rows, the first is "
            f"{ids[min(ids)]!r} ({min(ids)}); the tokenizer belongs to another base"
        )
    if tokenizer.pad_token_id is None or (rows is not None and tokenizer.pad_token_id >= rows):
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_of(checkpoint: str | Path) -> Any:
    """The tokenizer of a checkpoint folder, or of a shipped checkpoint by name."""
    folder = find_checkpoint(checkpoint)
    card = read_card(folder)
    base = base_location(folder, card)
    with refusing(f"{folder}: its base", base):
        return open_tokenizer(base, card.revision)


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """The parts of a text that the tokenizer does not know.

    A byte-level tokenizer knows every text; GPT-2's names one token as unknown, BOS and EOS.
    """
    if tokenizer.unk_token_id is None:
        return []
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    parts = (text[start:end] for start, end in read["offset_mapping"])
    pieces = zip(read["input_ids"], parts, strict=True)
    return [part for index, part in pieces if index == tokenizer.unk_token_id and part.strip() != tokenizer.unk_token]
