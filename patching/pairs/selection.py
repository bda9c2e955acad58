"""Select the pairs of a file that a run patches: usable ones, the filter, the limit. Every excluded pair is named."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.pairs.donors import Donor, draw_unrelated
from codi_tracing.patching.pairs.pair import Pair, format_number
from codi_tracing.patching.pairs.tokenized import TokenizedPair, tokenize_pairs
from codi_tracing.patching.pairs.validity import text_faults
from codi_tracing.traces.evaluate import answers
from codi_tracing.traces.loop.tokens import TextEncoder
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.text import last_number


class Selection(NamedTuple):
    """The pairs to patch with their unrelated donors, all that pass the filter, the excluded with reasons, counts."""

    ready: list[TokenizedPair]
    everyone: list[TokenizedPair]
    donors: list[tuple[Donor, ...]]
    excluded: list[tuple[Pair, str]]
    counts: dict[str, int]


Cached = Callable[[str, Callable[[], Any]], Any]  # (name, compute): the stored result of that name, else computes it


def compute_anew(name: str, compute: Callable[[], Any]) -> Any:
    """No cache: compute every time."""
    return compute()


def select_pairs(
    model: CodiModel, read: Sequence[Pair], config: RunConfig, progress: bool = False, cached: Cached = compute_anew
) -> Selection:
    """Filter a file's pairs and draw those of a run. Raises ValueError where none is left, or too few are usable.

    Donors and means come from all pairs that pass the filter; the limit limits the pairs that are patched. `cached`
    stores the model's answers, which the filter `both_correct` reads.
    """
    chosen = config.pairs
    everyone, excluded = usable_pairs(model, read, config)
    counts = {"read": len(read), "usable": len(everyone)}
    if chosen.filter == "both_correct":
        everyone, wrong = both_correct(model, everyone, config.max_new_tokens, progress, cached)
        excluded += wrong
        counts["both_correct"] = len(everyone)
    if not everyone:
        raise ValueError(
            f"{chosen.file}: none of its {len(read)} pairs passes the filter {chosen.filter!r}; "
            f"for instance {excluded[-1][1]}"
        )
    donors = draw_unrelated(everyone, config.seed, config.draws)
    kept = limited(len(everyone), chosen.limit, chosen.seed)
    return Selection([everyone[i] for i in kept], everyone, [donors[i] for i in kept], excluded, counts)


def usable_pairs(
    model: TextEncoder, read: Sequence[Pair], config: RunConfig
) -> tuple[list[TokenizedPair], list[tuple[Pair, str]]]:
    """The usable pairs under a tokenizer, and the excluded. Raises ValueError where the tokenizer excludes too many."""
    usable, excluded = tokenize_pairs(model, read)
    by_tokenizer = [reason for pair, reason in excluded if not text_faults(pair)]
    tokenized = len(usable) + len(by_tokenizer)
    if usable and len(by_tokenizer) > config.max_failed * tokenized:
        raise ValueError(
            f"{config.pairs.file}: {len(by_tokenizer)} of {tokenized} pairs are not usable under this tokenizer, more "
            f"than max_failed = {config.max_failed:g} allows; the first reason is: {by_tokenizer[0]}"
        )
    return usable, excluded


def limited(count: int, limit: int | None, seed: int | None) -> list[int]:
    """Ascending indices of `count` pairs: the first `limit`, or with a seed that many drawn at random."""
    if limit is None or limit >= count:
        return list(range(count))
    return list(range(limit)) if seed is None else sorted(random.Random(seed).sample(range(count), limit))


def both_correct(
    model: CodiModel,
    tokenized: Sequence[TokenizedPair],
    max_new_tokens: int,
    progress: bool = False,
    cached: Cached = compute_anew,
) -> tuple[list[TokenizedPair], list[tuple[Pair, str]]]:
    """The pairs whose two questions this model answers with their keys, and the others, each with its answers."""
    questions = [side.question for p in tokenized for side in p.pair.sides.values()]
    texts = iter(
        cached("both_correct", lambda: answers(model, questions, max_new_tokens=max_new_tokens, progress=progress))
    )
    right, wrong = [], []
    for p in tokenized:
        faults = [
            f"the {variant} question is answered {text.strip()!r}, its key is {format_number(side.answer)}"
            for (variant, side), text in zip(p.pair.sides.items(), [next(texts), next(texts)], strict=True)
            if last_number(text) != side.answer
        ]
        if faults:
            wrong.append((p.pair, f"pair {p.pair.pair_id}: {' and '.join(faults)}"))
        else:
            right.append(p)
    return right, wrong
