"""The checkpoints that are measured, and the pairs that they are asked."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import NamedTuple

import torch

from codi_tracing.patching.pairs.pair import Pair, Side, load_pairs
from codi_tracing.patching.pairs.tokenized import TokenizedPair, tokenize_pairs
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.model.loading import load_codi
from codi_tracing.traces.training.word_problems import WordProblem, build_tokenizer, draw_problem

ROOT = Path(__file__).parents[2]


class Shape(NamedTuple):
    """A random Llama with its LoRA."""

    d_model: int
    layers: int
    heads: int
    kv_heads: int
    d_mlp: int
    vocabulary: int
    rank: int
    spread: float  # standard deviation of the random weights


class Size(NamedTuple):
    """What is measured: a shape, or the shipped checkpoint where there is none."""

    name: str
    shape: Shape | None
    pairs: int
    tokens: int  # about so many a question
    tolerance: float  # of the variants' differences in fp32
    dtype: str


SIZES = {
    size.name: size
    for size in (
        Size("embedded", None, 66, 0, 1e-5, "float32"),
        Size("mid", Shape(512, 8, 8, 2, 1536, 16_384, 16, 0.035), 16, 60, 1e-4, "float32"),
        Size("1b", Shape(2048, 16, 32, 8, 8192, 128_256, 128, 0.02), 66, 60, 1e-4, "bfloat16"),
    )
}


def load(size: Size, folder: Path, device: str, dtype: str) -> CodiModel:
    """The size's checkpoint; a random one is written to `folder` first, where it is not there yet."""
    if size.shape is None:
        return load_codi(ROOT / "traces/embedded/thought", device, dtype)
    if not (folder / "codi.json").is_file():
        write_random(folder, size.shape, getattr(torch, size.dtype))
    return load_codi(folder, device, dtype)


def write_random(folder: Path, shape: Shape, dtype: torch.dtype, seed: int = 0) -> None:
    """Write a random CODI checkpoint of a shape: base, LoRA on all linear layers with B not zero, projection."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from codi_tracing.traces.model.checkpoint import Card, new_projection, write_checkpoint
    from codi_tracing.traces.model.families import FAMILIES

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()  # its words are the first of a larger vocabulary
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.d_model, intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.d_model // shape.heads, initializer_range=shape.spread, tie_word_embeddings=True,
        max_position_embeddings=512, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    base = LlamaForCausalLM(config).to(dtype).eval()
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    targets = list(FAMILIES["llama"].adapted)
    adapted = get_peft_model(base, LoraConfig(r=shape.rank, lora_alpha=shape.rank, target_modules=targets))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=shape.spread)
    width = shape.d_model
    card = Card(base="base", n_latents=6, dtype=str(dtype).removeprefix("torch."))
    write_checkpoint(folder, adapted, new_projection(width, width), torch.randn(width), torch.randn(width), card)


def pairs_of(size: Size, model: CodiModel, count: int | None = None, tokens: int | None = None) -> list[TokenizedPair]:
    """So many prepared pairs; made-up ones for a random checkpoint, whose questions have about `tokens` tokens."""
    count = count or size.pairs
    if size.shape is None:
        shipped = load_pairs(ROOT / "patching/data/arithmetic_pairs.json")
        return tokenize_pairs(model, shipped[:count])[0]
    return tokenize_pairs(model, made_up(count, tokens or size.tokens))[0]


def made_up(count: int, tokens: int, seed: int = 0) -> list[Pair]:
    """Pairs of about so many tokens a question: sentences of other problems, then a problem, one number changed."""
    rng, pairs = random.Random(seed), []
    while len(pairs) < count:
        clean = draw_problem(rng, 2 if tokens < 40 else None)
        if (corrupted := changed(rng, clean)) is None:
            continue
        before = filler(rng, tokens - words(clean.question) - 1)
        sides = [Side(" ".join([*before, p.question]), p.answer) for p in (clean, corrupted)]
        pairs.append(Pair(f"made-{len(pairs)}", str(len(pairs)), *sides))
    return pairs


def changed(rng: random.Random, problem: WordProblem) -> WordProblem | None:
    """The problem with one operand changed, or `None` where that gives no other answer within bounds."""
    place = rng.randrange(1, len(problem.numbers))
    other = problem.with_number(place, rng.randint(2, 19))
    return other if other.valid and other.answer != problem.answer else None


def filler(rng: random.Random, tokens: int) -> list[str]:
    """Whole sentences of random problems that take at most so many tokens."""
    sentences: list[str] = []
    while True:
        for sentence in re.split(r"(?<=[.?]) ", draw_problem(rng).question):
            if words(" ".join([*sentences, sentence])) > tokens:
                return sentences
            sentences.append(sentence)


def words(text: str) -> int:
    """How many tokens the project's word-level tokenizer makes of a text, without BOS."""
    return len(re.findall(r"\w+|[^\w\s]", text))
