"""The floor: how long the job's matrix products alone take at the rate that this machine multiplies at."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tests.bench.job import Job, steps_of
from tests.bench.timing import median, seconds


class Work(NamedTuple):
    """Floating-point operations of a job, by what they are spent on."""

    question: float
    thought: float
    answer: float
    attention: float
    lm_head: float

    @property
    def total(self) -> float:
        return sum(self)


def work_of(job: Job, late: bool = False) -> Work:
    """Count the products: both questions of a pair once, then every cell's steps, EoT and forced tokens.

    With `late`, a cell takes no step before the first one that it is written at. Of attention's scores and sums only
    those count that a query may really see.
    """
    config, plain = job.plain.causal_lm.config, job.plain
    block = 2 * sum(p.numel() for layer in plain.decoder.layers for p in layer.parameters() if p.ndim == 2)
    project = 2 * sum(p.numel() for p in plain.project.parameters() if p.ndim == 2)
    score = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    head = 2 * plain.causal_lm.lm_head.weight.numel()
    question = thought = answer = attention = 0.0
    for ready in job.ready:
        read, answer_tokens = ready.tokens + 1, 1 + len(ready.forced)
        question += 2 * (read * block + project)
        attention += score * 2 * read * (read + 1) / 2
        for site in job.sites:
            steps = range(min(steps_of(job, site)) if late else 0, plain.n_latents)
            thought += len(steps) * block + sum(step < plain.n_latents - 1 for step in steps) * project
            answer += answer_tokens * block
            seen = sum(read + step + 1 for step in steps)
            seen += sum(read + plain.n_latents + token + 1 for token in range(answer_tokens))
            attention += score * seen
    return Work(question, thought, answer, attention, head * job.cells)


def rate_of(job: Job, tokens: int, repeats: int = 20) -> float:
    """Floating-point operations a second of tokens × d_model × d_mlp products, the median of several."""
    config, like = job.plain.causal_lm.config, job.plain.bot
    wide, narrow = config.intermediate_size, config.hidden_size
    tokens_, weight = torch.randn(tokens, narrow).to(like), torch.randn(narrow, wide).to(like)
    with torch.inference_mode():
        torch.mm(tokens_, weight)
        taken = median(seconds(lambda: torch.mm(tokens_, weight), job.device)[0] for _ in range(repeats))
    return 2 * tokens * narrow * wide / taken
