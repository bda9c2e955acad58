"""The lens: the tokens that each latent state decodes to, and what the thought and the answer attend to.

A state is read by the logit lens (nostalgebraist, 2020): through the final norm and the LM head. After the last layer
this is exact, and is what CODI's authors decode, before the projection. It shows no causal effect: for that, patch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from codi_tracing.traces.loop.rows import Rows
from codi_tracing.traces.loop.thought import Edits, run
from codi_tracing.traces.loop.tokens import answer_ids, encode, opening_ids, texts
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.model.tokenizer import unknown_words
from codi_tracing.traces.text import clean_text, last_number

NUMBER_TOKEN = re.compile(r"\s*(-?[0-9]+(?:\.[0-9]+)?)\s*")


class Lens(NamedTuple):
    """The lens of some questions: position 0 is BoT, 1 the first latent step; layer 0 is the input."""

    tokens: Int[Tensor, "question position layer top"]
    probabilities: Float[Tensor, "question position layer top"]
    entropy: Float[Tensor, "question position layer"]  # nats
    ranks: Int[Tensor, "question value position layer"]  # 1 is the likeliest token; 0: no token is that number
    value_probabilities: Float[Tensor, "question value position layer"]
    answers: list[str]


class Attention(NamedTuple):
    """Attention weights by group of keys: mean over heads, sum over the group's tokens; a query's sum to 1."""

    queries: tuple[str, ...]
    groups: tuple[str, ...]
    weights: Float[Tensor, "question query layer group"]
    counts: Int[Tensor, "question query group"]  # tokens of the group that the query sees


class Asked(NamedTuple):
    """The answer to one question, and the likeliest tokens of each latent step's final state."""

    answer_text: str
    answer: float
    steps: list[list[str]]


def number_of(text: str) -> float | None:
    """The number of a decoded token, ignoring blanks; None for other text, also for words like `six`."""
    match = NUMBER_TOKEN.fullmatch(text)
    return None if match is None else float(match[1])


def number_tokens(model: CodiModel) -> dict[float, list[int]]:
    """Every number that is one token, with its tokens: ` 12` and `12` are both 12."""
    words = model.tokenizer.batch_decode([[token] for token in range(len(model.tokenizer))])
    tokens: dict[float, list[int]] = {}
    for token, word in enumerate(words):
        if (number := number_of(word)) is not None:
            tokens.setdefault(number, []).append(token)
    return tokens


@torch.no_grad()
def logit_lens(
    model: CodiModel,
    questions: Sequence[str],
    values: Sequence[Sequence[float]] = (),
    *,
    top: int = 10,
    numbers: Mapping[float, Sequence[int]] | None = None,
    max_new_tokens: int = 12,
    remote: bool | str | None = None,
) -> Lens:
    """Read BoT and every latent step at every layer; rank the numbers `values[question]`, equally many per question.

    A number's rank is that of its likeliest token, its probability the sum over its tokens. All questions share one
    forward. `numbers`, from `number_tokens`, saves reading the vocabulary again.
    """
    values = values or [()] * len(questions)
    check_questions(questions)
    if len(values) != len(questions) or len(set(map(len, values))) > 1:
        counts = ", ".join(map(str, map(len, values)))
        raise ValueError(f"values has {counts} numbers for {len(questions)} questions, expected equal counts")
    if not 1 <= top <= len(model.tokenizer):
        raise ValueError(f"top is {top}, expected 1 to {len(model.tokenizer)}, the size of the vocabulary")
    ids = value_ids(number_tokens(model) if numbers is None and any(values) else numbers or {}, values)
    rows, prefix = encode(model, [[question] for question in questions]), torch.tensor([answer_ids(model)])
    reader = LensReader(model, ids.to(model.device), top, rows.bot_column)
    edits = Edits(blocks=(reader.step,), question=reader.question)
    done = run(model, rows, prefix.repeat(len(questions), 1), edits=edits, max_new_tokens=max_new_tokens, remote=remote)
    states = [torch.cat(parts, 1) for parts in zip(*done.saved.question, *done.saved.steps, strict=True)]
    tokens, probabilities, entropy, ranks, shares = (
        part.unflatten(1, (1 + model.n_latents, 1 + model.n_layers)) for part in states
    )
    answers = [""] * len(questions) if done.tokens is None else texts(model, done.tokens)[0]
    return Lens(tokens, probabilities, entropy, ranks.movedim(-1, 1), shares.movedim(-1, 1), answers)


def ask(model: CodiModel, question: str, top: int = 5) -> Asked:
    """Answer one question, with the likeliest tokens after each latent step."""
    if unknown := unknown_words(model.tokenizer, clean_text(question)):
        words = ", ".join(map(repr, dict.fromkeys(unknown[:10])))
        raise ValueError(f"this checkpoint's tokenizer does not know {words}; use words and numbers that it knows")
    lens = logit_lens(model, [question], top=top)
    steps = [[model.tokenizer.decode([token]).strip() for token in step] for step in lens.tokens[0, 1:, -1].tolist()]
    return Asked(lens.answers[0], last_number(lens.answers[0]), steps)


def check_questions(questions: Sequence[str]) -> None:
    """Refuse a text, and an empty list."""
    if isinstance(questions, str) or not questions:
        actual = "a text" if isinstance(questions, str) else "no question"
        raise ValueError(f"questions is {actual}, expected a list of questions")


def value_ids(
    numbers: Mapping[float, Sequence[int]], values: Sequence[Sequence[float]]
) -> Int[Tensor, "question value token"]:
    """The tokens of each question's values, padded with -1; a number that is no token has only -1."""
    tokens_of = [[numbers.get(value, ()) for value in each] for each in values]
    width = max((len(tokens) for each in tokens_of for tokens in each), default=0) or 1
    filled = [[[*tokens, *[-1] * (width - len(tokens))] for tokens in each] for each in tokens_of]
    return torch.tensor(filled, dtype=torch.long).view(len(values), len(values[0]) if values else 0, width)


class LensReader:
    """The functions of `Edits` that read states inside the traces."""

    def __init__(self, model: CodiModel, ids: Tensor, top: int, bot: Tensor) -> None:
        self.model, self.ids, self.top, self.bot = model, ids, top, int(bot[0])

    def question(self, block: Any, layer: int) -> tuple[Tensor, ...]:
        """BoT's states; the input is the vector BoT, the same for every question."""
        fed = [self.model.bot.expand(len(self.ids), -1)] if layer == 0 else []
        return self.read(torch.stack([*fed, self.model.activation(block, "resid")[:, self.bot]], 1))

    def step(self, block: Any, layer: int, step: int) -> tuple[Tensor, ...]:
        """A latent step's states; the input is read before GPT-2 adds its positions."""
        fed = [self.model.decoder.inputs[1]["inputs_embeds"][:, 0]] if layer == 0 else []
        return self.read(torch.stack([*fed, self.model.activation(block, "resid")[:, 0]], 1))

    def read(self, states: Float[Tensor, "question layer d_model"]) -> tuple[Tensor, ...]:
        """Likeliest tokens, their probabilities, entropy, and each value's rank and probability."""
        logits = self.model.lm.lm_head(self.model.norm(states)).float()
        log_probs = logits.log_softmax(-1)
        best = log_probs.topk(self.top)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        ranks, shares = [], []
        for ids in self.ids.unbind(1):  # one value at a time, since the vocabulary is large
            exists = ids >= 0
            of_tokens = log_probs.gather(-1, ids.clamp(min=0)[:, None].expand(-1, states.shape[1], -1))
            of_tokens = of_tokens.masked_fill(~exists[:, None], float("-inf"))
            likeliest = of_tokens.amax(-1, keepdim=True)
            rank = (log_probs > likeliest).sum(-1) + 1
            ranks.append(rank.where(exists.any(-1, keepdim=True), 0))
            shares.append(of_tokens.exp().sum(-1))
        none = entropy.new_zeros(*entropy.shape, 0)
        ranked = torch.stack(ranks, -1) if ranks else none.long()
        return best.indices, best.values.exp(), entropy, ranked, torch.stack(shares, -1) if shares else none


@torch.no_grad()
def attention_of(model: CodiModel, questions: Sequence[str]) -> Attention:
    """Attention of every latent step, EoT and the last token before the answer, in one forward of all questions.

    The groups are the question's numbers (tokens of digits), its special tokens (attention sinks), its words, BoT, each
    latent step, EoT, and the forced beginning of the answer. The model runs in eager mode, the only one with weights.
    """
    check_questions(questions)
    rows = encode(model, [[question] for question in questions])
    opening, forced = len(opening_ids(model)), answer_beginning(model)
    members = key_groups(model, rows, opening, len(forced))
    at_eot, at_answer = 0, opening + len(forced) - 1

    def step(block: Any, layer: int, step: int) -> Tensor:
        return grouped(model.attention(block).output[1], members)

    def answer(block: Any, layer: int) -> Tensor:
        return grouped(model.attention(block).output[1][:, :, [at_eot, at_answer]], members)

    with eager(model):
        done = run(model, rows, torch.tensor([forced] * len(questions)), edits=Edits((step,), answer=answer))
    of_steps = torch.cat(done.saved.steps, 1).unflatten(1, (model.n_latents, model.n_layers))
    of_answer = torch.stack(done.saved.answer, 2)
    queries = (*(f"step {step}" for step in range(model.n_latents)), "EoT", "answer")
    groups = ("special", "numbers", "words", "BoT", *queries[:-1], "answer")
    seen = members.cumsum(1)[
        :, [*(rows.ids[0].numel() + step for step in range(model.n_latents)), -1 - len(forced), -1]
    ]
    return Attention(queries, groups, torch.cat([of_steps, of_answer], 1), seen.long())


def answer_beginning(model: CodiModel) -> list[int]:
    """The tokens that begin every answer: the prefix, and the blank if it is a token of its own."""
    one, two = (answer_ids(model, f" {digit}") for digit in (1, 2))
    return one[: next(i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b)]


def grouped(
    weights: Float[Tensor, "question head query key"], members: Float[Tensor, "question key group"]
) -> Float[Tensor, "question query group"]:
    """Attention weights by group of keys, mean over heads."""
    return weights.float().mean(1) @ members[:, : weights.shape[-1]]


def key_groups(model: CodiModel, rows: Rows, opening: int, forced: int) -> Float[Tensor, "question key group"]:
    """The group of each entry of the cache, one-hot; padding has none."""
    ids, special = rows.ids[:, 0], torch.tensor(model.tokenizer.all_special_ids, device=rows.ids.device)
    digits = torch.tensor(sorted(token for each in number_tokens(model).values() for token in each)).to(ids)
    of_question = torch.full_like(ids, 2)
    of_question[torch.isin(ids, digits)] = 1
    of_question[torch.isin(ids, special)] = 0
    of_question[:, -1] = 3
    later = [*range(4, 4 + model.n_latents), *[4 + model.n_latents] * opening, *[5 + model.n_latents] * forced]
    group = torch.cat([of_question, torch.tensor(later).to(ids).expand(len(ids), -1)], 1)
    here = torch.cat([rows.valid[:, 0], rows.valid.new_ones(len(ids), len(later))], 1)
    return torch.nn.functional.one_hot(group, 6 + model.n_latents).float() * here[..., None]


@contextmanager
def eager(model: CodiModel) -> Iterator[None]:
    """Run the model's attention in eager mode, which returns its weights."""
    before = model.lm.config._attn_implementation
    model.lm._module.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.lm._module.set_attn_implementation(before)
