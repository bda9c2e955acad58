"""Tokenizers that write a number in every usual way, and random bases over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from codi_tracing.traces.training.word_problems import build_tokenizer, chain_text, draw_problems
from tests.support.upstream import byte_level_bpe, random_base


def digits() -> Any:
    """The shipped tokenizer's words, and a token for each digit, as in SmolLM2."""
    tokenizer = build_tokenizer()
    splits = [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return tokenizer


def merged_blank() -> Any:
    """A byte-level BPE without a pad token: the blank is part of the number's token, as in GPT-2."""
    return byte_level_bpe(_texts(), "llama")


def own_blank() -> Any:
    """A byte-level BPE that splits before each number: the blank is a token of its own, as in Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": ["<eos>"], "initial_alphabet": alphabet, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=400, **options)
    tokenizer.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


MULTI_TOKEN: dict[str, Callable[[], Any]] = {"digits": digits, "merged_blank": merged_blank, "own_blank": own_blank}


def write_base(folder: Path, tokenizer: Any, family: str = "llama") -> Path:
    """A random base of two layers and its tokenizer."""
    random_base(family, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _texts() -> list[str]:
    """Few problems, so that not every number gets a token of its own."""
    return [f"{p.question} {chain_text(p)} The answer is: {p.answer}" for p in draw_problems(3, 40)]
