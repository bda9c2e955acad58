"""What a model answers when nothing is patched: greedy answers to many questions, in batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm

from traces.model import CodiModel
from traces.thought import answer_ids, encode, question_ids, run, texts


def answers(
    model: CodiModel,
    questions: Sequence[str],
    *,
    n_latents: int | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 32,
    progress: bool = False,
) -> list[str]:
    """The greedy text of each question's answer, in the questions' order; `n_latents` stops early or goes on."""
    lengths = [len(question_ids(model, question)) for question in questions]
    order = sorted(range(len(questions)), key=lambda index: lengths[index])  # like lengths together: less padding
    said = [""] * len(questions)
    prefix = torch.tensor([answer_ids(model)])  # its logits are not used: decoding starts after EoT
    with tqdm(total=len(questions), unit="question", desc="answers", disable=None if progress else True) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = encode(model, [[questions[index]] for index in batch])
            forced = prefix.expand(len(batch), -1)
            done = run(model, rows, forced, max_new_tokens=max_new_tokens, n_latents=n_latents)
            assert done.tokens is not None
            for index, text in zip(batch, texts(model, done.tokens)[0], strict=True):
                said[index] = text
            bar.update(len(batch))
    return said
