"""Which pairs of a file a run patches: contrasts, the filter, the limit. Every pair left out is named."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.pairs.donors import Donor, draw_unrelated
from codi_tracing.patching.pairs.pair import Pair, format_number
from codi_tracing.patching.pairs.tokenized import TokenizedPair, tokenize_pairs
from codi_tracing.patching.pairs.validity import split_usable
from codi_tracing.traces.evaluate import answers
from codi_tracing.traces.loop.tokens import TextEncoder
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.text import last_number


class Selection(NamedTuple):
    """The pairs to patch with their unrelated donors, all that pass, those left out with their reasons, the counts."""

    ready: list[TokenizedPair]
    everyone: list[TokenizedPair]
    donors: list[tuple[Donor, ...]]
    excluded: list[tuple[Pair, str]]
    counts: dict[str, int]


Note = Callable[[str, Callable[[], Any]], Any]  # computes what has a name once, or gives what was computed before


def not_noted(name: str, compute: Callable[[], Any]) -> Any:
    """Compute it anew."""
    return compute()


def select(
    model: CodiModel, read: Sequence[Pair], config: RunConfig, progress: bool = False, note: Note = not_noted
) -> Selection:
    """Filter and draw the pairs of a run. Raises ValueError where none is left, or too many have no equal tokens.

    Donors and means come from all pairs that pass the filter; the limit limits the pairs that are patched. `note`
    keeps what the model said, which the filter `both_correct` asks for.
    """
    chosen = config.pairs
    ready, excluded = contrasts(model, read, config)
    counts = {"read": len(read), "usable": len(ready)}
    if chosen.filter == "both_correct":
        ready, wrong = both_correct(model, ready, config.max_new_tokens, progress, note)
        excluded += wrong
        counts["both_correct"] = len(ready)
    if not ready:
        raise ValueError(
            f"{chosen.file}: none of its {len(read)} pairs passes the filter {chosen.filter!r}; "
            f"for instance {excluded[-1][1]}"
        )
    donors = draw_unrelated([p.pair for p in ready], [p.tokens for p in ready], config.seed, config.draws)
    kept = draw(len(ready), chosen.limit, chosen.seed)
    return Selection([ready[i] for i in kept], ready, [donors[i] for i in kept], excluded, counts)


def contrasts(
    model: TextEncoder, read: Sequence[Pair], config: RunConfig
) -> tuple[list[TokenizedPair], list[tuple[Pair, str]]]:
    """The pairs that are a contrast under a tokenizer, and the others. Raises ValueError where these are too many."""
    usable, excluded = split_usable(read)
    ready, more = tokenize_pairs(model, usable)
    if ready and len(more) > config.max_failed * len(usable):
        raise ValueError(
            f"{config.pairs.file}: {len(more)} of {len(usable)} pairs are no contrast under this tokenizer, more than "
            f"max_failed = {config.max_failed:g} allows; the first reason is: {more[0][1]}"
        )
    return ready, [*excluded, *more]


def draw(count: int, limit: int | None, seed: int | None) -> list[int]:
    """Which of `count` pairs, in their order: the first `limit`, or with a seed that many drawn at random."""
    if limit is None or limit >= count:
        return list(range(count))
    return list(range(limit)) if seed is None else sorted(random.Random(seed).sample(range(count), limit))


def both_correct(
    model: CodiModel,
    ready: Sequence[TokenizedPair],
    max_new_tokens: int,
    progress: bool = False,
    note: Note = not_noted,
) -> tuple[list[TokenizedPair], list[tuple[Pair, str]]]:
    """The pairs whose two questions this model answers with their keys, and the others, each with what it said."""
    questions = [side.question for p in ready for side in (p.pair.clean, p.pair.corrupted)]
    said = note("both_correct", lambda: answers(model, questions, max_new_tokens=max_new_tokens, progress=progress))
    right, wrong = [], []
    for index, prepared in enumerate(ready):
        pair = prepared.pair
        faults = [
            f"the {name} question is answered {text.strip()!r}, its key is {format_number(side.answer)}"
            for name, side, text in zip(
                ("clean", "corrupted"), (pair.clean, pair.corrupted), said[2 * index : 2 * index + 2], strict=True
            )
            if last_number(text) != side.answer
        ]
        if faults:
            wrong.append((pair, f"pair {pair.pair_id}: {' and '.join(faults)}"))
        else:
            right.append(prepared)
    return right, wrong
