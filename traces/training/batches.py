"""Training batches of word problems, and the curriculum of their chains' lengths."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from codi_tracing.traces.training.word_problems import WordProblem, chain_text, draw_problem, results

IGNORED = -100  # the label that cross-entropy skips
PLACEHOLDER = 0  # any known token: BoT or EoT replaces it, or it is padding, which no token sees and no label counts
ANSWER_PREFIX = "The answer is:"
LONGEST_CHAIN = 4  # steps


class WrittenAnswer(NamedTuple):
    """The tokens of the answer prefix and a number after it."""

    ids: list[int]
    colon: int  # index of the prefix's last token, at which the student is distilled, as upstream
    first: int  # index of the first token with a digit of the number


def write_answer(tokenizer: Any, number: int) -> WrittenAnswer:
    """Tokenise `The answer is: 18` as a whole, and tell its tokens apart by the characters they stand for.

    The blank may belong to the number's token (GPT-2), be a token of its own (Llama 3), or be none.
    """
    encoded = tokenizer(f"{ANSWER_PREFIX} {number}", add_special_tokens=False, return_offsets_mapping=True)
    spans, end = encoded["offset_mapping"], len(ANSWER_PREFIX)
    colon = max(index for index, (start, _) in enumerate(spans) if start < end)
    if spans[colon][1] > end + 1:
        token = tokenizer.convert_ids_to_tokens(encoded["input_ids"][colon])
        raise ValueError(
            f"the base's tokenizer writes the end of {ANSWER_PREFIX!r} and the number as one token, {token!r}; "
            "expected a token that ends before the number, at which to distil"
        )
    first = next(index for index, (_, stop) in enumerate(spans) if stop > end + 1)
    return WrittenAnswer(encoded["input_ids"], colon, first)


@dataclass
class TrainingBatch:
    """Token ids of one batch, padded on the left in questions, which end in a placeholder for BoT, else on the right.

    Labels are the tokens themselves, and `IGNORED` where nothing is to be predicted.
    """

    question: Tensor  # [pair, token]
    question_mask: Tensor  # [pair, token]
    answer: Tensor  # [pair, 1 + answer token]: a placeholder for EoT, the prefix, the number, EOS
    answer_labels: Tensor
    answer_colon: Tensor  # [pair]: index of the prefix's last token
    teacher: Tensor  # [pair, token]: question, written chain and answer
    teacher_mask: Tensor
    teacher_labels: Tensor  # of chain and answer
    teacher_colon: Tensor  # [pair]: index of the prefix's last token
    steps: Tensor  # [pair, latent step]: first token of the step's intermediate result


class BatchSampler:
    """Draws batches of new problems without end."""

    def __init__(self, tokenizer: Any, n_latents: int, seed: int, terse: float = 0.0):
        self.tokenizer, self.n_latents, self.terse, self.rng = tokenizer, n_latents, terse, random.Random(seed)
        self.written = cache(lambda number: write_answer(tokenizer, number))

    def ids(self, text: str, special: bool = False) -> list[int]:
        return self.tokenizer(text, add_special_tokens=special)["input_ids"]

    def batch(self, size: int, longest: int = LONGEST_CHAIN) -> TrainingBatch:
        """A batch of `size` new problems with chains of at most `longest` steps."""
        problems: list[WordProblem] = []
        while len(problems) < size:
            problem = draw_problem(self.rng)
            if len(problem.values) <= longest:
                problems.append(problem)
        return self.encode(problems)

    def encode(self, problems: list[WordProblem]) -> TrainingBatch:
        questions = [self.ids(p.question, special=True) for p in problems]
        written = [self.written(p.answer) for p in problems]
        answers = [[*w.ids, self.tokenizer.eos_token_id] for w in written]
        untold = [q + self.ids(self._chain(p)) for q, p in zip(questions, problems, strict=True)]
        width = max(map(len, questions))
        teacher, teacher_mask = padded([u + a for u, a in zip(untold, answers, strict=True)])
        answer, answer_mask = padded([[PLACEHOLDER, *a] for a in answers])
        asked = torch.tensor([[len(q)] for q in questions])
        return TrainingBatch(
            question=torch.tensor([[PLACEHOLDER] * (width - len(q)) + [*q, PLACEHOLDER] for q in questions]),
            question_mask=(torch.arange(width + 1) >= width - asked).long(),
            answer=answer,
            answer_labels=answer.where(answer_mask.bool() & (torch.arange(answer.shape[1]) > 0), IGNORED),
            answer_colon=torch.tensor([1 + w.colon for w in written]),
            teacher=teacher,
            teacher_mask=teacher_mask,
            teacher_labels=teacher.where(teacher_mask.bool() & (torch.arange(teacher.shape[1]) >= asked), IGNORED),
            teacher_colon=torch.tensor([len(u) + w.colon for u, w in zip(untold, written, strict=True)]),
            steps=torch.tensor([self._step_targets(p) for p in problems]),
        )

    def _chain(self, problem: WordProblem) -> str:
        """The written chain, or in a share `terse` of the problems its bare results."""
        return " ".join(map(str, results(problem))) if self.rng.random() < self.terse else chain_text(problem)

    def _step_targets(self, problem: WordProblem) -> list[int]:
        """The token that each step's output should decode to: the results in turn, then EOS.

        Of a result it is the first token with a digit, as an answer writes it: with the blank where the token has it.
        """
        written = map(self.written, results(problem))
        targets = [w.ids[w.first] for w in written] + [self.tokenizer.eos_token_id] * self.n_latents
        return targets[: self.n_latents]


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows of token ids, padded on the right, and their mask."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PLACEHOLDER] * (longest - len(row)) for row in rows])
    return ids, (torch.arange(longest) < torch.tensor([[len(row)] for row in rows])).long()


def longest_chain(progress: float, curriculum: float) -> int:
    """The longest chain to draw: two steps in the first half of the curriculum, three in the second, then four."""
    return 2 if progress < curriculum / 2 else 3 if progress < curriculum else LONGEST_CHAIN
