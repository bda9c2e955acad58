"""Greedy answers to many questions with any number of latent steps, and their accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from codi_tracing.traces.gsm8k import GsmProblem
from codi_tracing.traces.loop.thought import run
from codi_tracing.traces.loop.tokens import answer_ids, encode, positions_needed, question_ids, texts
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.text import last_number


class ScoredAnswer(NamedTuple):
    """The answer to one question after `steps` latent steps."""

    line: int
    steps: int
    text: str
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
    """The greedy answer to each question, as text, answer prefix included.

    `n_latents` stops the thought early or extends it; the default is as in training. Questions of similar length are
    answered together; no answer depends on the rest of its batch. Raises ValueError, before anything runs, if a
    question is longer than the model can read.
    """
    lengths = [len(question_ids(model, question)) for question in questions]
    steps = model.n_latents if n_latents is None else n_latents
    if lengths and (longest := positions_needed(model, max(lengths), 0, steps)) > model.n_positions:
        which = f"question {lengths.index(max(lengths)) + 1} with its thought needs {longest} positions"
        raise ValueError(f"{which}, the model has {model.n_positions}; leave it out")
    order = sorted(range(len(questions)), key=lengths.__getitem__)
    prefix = answer_ids(model)  # forced for speed; each answer keeps what greedy decoding reproduces of it
    if lengths and positions_needed(model, max(lengths), len(prefix), steps) > model.n_positions:
        prefix = []
    decoded = [""] * len(questions)
    with tqdm(total=len(questions), desc=f"{steps} steps", unit="question", disable=None if progress else True) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = encode(model, [[questions[index]] for index in batch])
            forced = torch.tensor([prefix] * len(batch), dtype=torch.long)
            done = run(model, rows, forced, max_new_tokens=max_new_tokens, n_latents=steps)
            assert done.tokens is not None
            for index, text in zip(batch, texts(model, done.tokens)[0], strict=True):
                decoded[index] = text
            bar.update(len(batch))
    return decoded


def score(model: CodiModel, problems: Sequence[GsmProblem], n_latents: int, **options: Any) -> list[ScoredAnswer]:
    """Answer and compare with the keys; an answer is correct if its last number is the key, as upstream."""
    decoded = answers(model, [problem.question for problem in problems], n_latents=n_latents, **options)
    return [
        ScoredAnswer(problem.line, n_latents, text, problem.answer, last_number(text) == problem.answer)
        for problem, text in zip(problems, decoded, strict=True)
    ]
