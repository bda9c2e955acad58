"""Greedy answers to many questions, with as many latent steps as one likes: what accuracy is measured with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from traces.gsm8k import Problem
from traces.model import CodiModel
from traces.thought import encode, last_number, question_ids, run, texts


class Scored(NamedTuple):
    """One question answered with so many latent steps."""

    line: int
    steps: int
    said: str
    key: float
    correct: bool


def answers(
    model: CodiModel,
    questions: Sequence[str],
    *,
    n_latents: int | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    progress: bool = False,
) -> list[str]:
    """The greedy answer to each question, as text: nothing is forced, the model says the prefix too.

    `n_latents` stops the thought early or lets it go on; the default is as the model was trained. Questions of like
    length are answered together; no answer depends on what else is in its batch.
    """
    order = sorted(range(len(questions)), key=lambda index: len(question_ids(model, questions[index])))
    said = [""] * len(questions)
    steps = model.n_latents if n_latents is None else n_latents
    with tqdm(total=len(questions), desc=f"{steps} steps", unit="question", disable=None if progress else True) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = encode(model, [[questions[index]] for index in batch])
            nothing = torch.zeros(len(batch), 0, dtype=torch.long)
            done = run(model, rows, nothing, max_new_tokens=max_new_tokens, n_latents=steps)
            assert done.tokens is not None
            for index, text in zip(batch, texts(model, done.tokens)[0], strict=True):
                said[index] = text
            bar.update(len(batch))
    return said


def score(model: CodiModel, problems: Sequence[Problem], n_latents: int, **options: Any) -> list[Scored]:
    """Answer and compare with the keys; a question is right where the last number said is its key, as upstream."""
    said = answers(model, [problem.question for problem in problems], n_latents=n_latents, **options)
    return [
        Scored(problem.line, n_latents, text, problem.answer, last_number(text) == problem.answer)
        for problem, text in zip(problems, said, strict=True)
    ]
