"""Training batches of word problems, and the curriculum of their chains' lengths."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codi_tracing.traces.training.word_problems import EOS, WordProblem, chain_text, draw_problem, results

IGNORED = -100  # the label that cross-entropy skips
ANSWER_PREFIX = "The answer is:"
LONGEST_CHAIN = 4  # steps


@dataclass
class TrainingBatch:
    """Token ids of one batch; questions are padded on the left and end in a placeholder for BoT."""

    question: Tensor  # [pair, token]
    question_mask: Tensor  # [pair, token]
    answer: Tensor  # [pair, 1 + answer token]: a placeholder for EoT, the prefix, the number, EOS
    teacher: Tensor  # [pair, token]: question, written chain and answer, padded on the right
    teacher_mask: Tensor
    teacher_labels: Tensor  # next-token labels on chain and answer
    teacher_colon: Tensor  # [pair]: index of the token before the answer's number
    steps: Tensor  # [pair, latent step]: token of the step's intermediate result


class BatchSampler:
    """Draws batches of new problems without end."""

    def __init__(self, tokenizer: Any, n_latents: int, seed: int, terse: float = 0.0):
        self.tokenizer, self.n_latents, self.terse, self.rng = tokenizer, n_latents, terse, random.Random(seed)

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
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        questions = [self.ids(p.question, special=True) for p in problems]
        answers = [[*self.ids(f"{ANSWER_PREFIX} {p.answer}"), eos] for p in problems]
        chains = [self.ids(self._chain(p)) for p in problems]
        written = [q + c + a for q, c, a in zip(questions, chains, answers, strict=True)]
        width, longest = max(map(len, questions)), max(map(len, written))
        teacher = torch.tensor([w + [pad] * (longest - len(w)) for w in written])
        labels = teacher.clone()
        for row, (question, whole) in enumerate(zip(questions, written, strict=True)):
            labels[row, : len(question)] = IGNORED
            labels[row, len(whole) :] = IGNORED
        return TrainingBatch(
            question=torch.tensor([[pad] * (width - len(q)) + q + [pad] for q in questions]),
            question_mask=torch.tensor([[0] * (width - len(q)) + [1] * (len(q) + 1) for q in questions]),
            answer=torch.tensor([[pad, *a] for a in answers]),
            teacher=teacher,
            teacher_mask=(torch.arange(longest) < torch.tensor([[len(w)] for w in written])).long(),
            teacher_labels=labels,
            teacher_colon=torch.tensor([len(w) - 3 for w in written]),
            steps=torch.tensor([self._step_targets(p) for p in problems]),
        )

    def _chain(self, problem: WordProblem) -> str:
        """The written chain, or in a share `terse` of the problems its bare results."""
        return " ".join(map(str, results(problem))) if self.rng.random() < self.terse else chain_text(problem)

    def _step_targets(self, problem: WordProblem) -> list[int]:
        """The token that each step's output should decode to: the results in turn, then EOS."""
        targets = [*map(str, results(problem)), *[EOS] * self.n_latents][: self.n_latents]
        return list(self.tokenizer.convert_tokens_to_ids(targets))


def longest_chain(progress: float, curriculum: float) -> int:
    """The longest chain to draw: two steps in the first half of the curriculum, three in the second, then four."""
    return 2 if progress < curriculum / 2 else 3 if progress < curriculum else LONGEST_CHAIN
