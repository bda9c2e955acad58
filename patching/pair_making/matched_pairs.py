"""Matched donors as pairs that a sweep can patch: the host stands on the corrupted side, its donor on the clean side.

So denoising writes the donor's thought into the host, `answer_is_clean` says that the donor's answer was given,
`answer_is_corrupted` the host's, and `answer_is_hybrid` the host's remaining operations on the donor's intermediate.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from codi_tracing.patching.pair_making.arithmetic import arithmetic_pool
from codi_tracing.patching.pair_making.matching import Match, coverage, find_matches
from codi_tracing.patching.pairs.donors import Donor
from codi_tracing.patching.pairs.pair import Pair, Side
from codi_tracing.patching.pairs.tokenized import TokenizedPair, token_faults, tokenise
from codi_tracing.traces.evaluate import answers
from codi_tracing.traces.loop.tokens import TextEncoder, question_ids
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.text import last_number

Question = tuple[str, Side]  # a cluster, and a question of it


class Matched(NamedTuple):
    """Matches ready to be patched, an unrelated donor for each (where there is one), and what became of the rest."""

    ready: list[TokenizedPair]
    donors: list[tuple[Donor, ...]]
    counts: dict[str, int]


def matched_pairs(
    model: CodiModel,
    ready: Sequence[TokenizedPair],
    seed: int,
    most: int,
    extra_problems: int = 0,
    max_new_tokens: int = 12,
) -> Matched:
    """At most `most` matches for each intermediate and corner, both questions answered right by the model.

    Donors come from the questions of all usable pairs and, with `extra_problems`, from so many new arithmetic problems. Raises
    ValueError where no match is found.
    """
    pool, tokens, found = matches_of(model, ready, seed, extra_problems)
    kept = right(model, drawn(found, most, seed), max_new_tokens)
    known = prepared(model, ready, kept)
    if not known:
        raise ValueError(f"the model answers none of {len(found)} matched pairs rightly, so none can be patched")
    return Matched(known, controls(known, pool, tokens, seed), counted(found, known))


def candidates(
    model: TextEncoder, ready: Sequence[TokenizedPair], seed: int, most: int, extra_problems: int = 0
) -> tuple[list[TokenizedPair], list[tuple[Donor, ...]]]:
    """The same before the model is asked, with their donors: what `matched_pairs` chooses from."""
    pool, tokens, found = matches_of(model, ready, seed, extra_problems)
    known = prepared(model, ready, drawn(found, most, seed))
    return known, controls(known, pool, tokens, seed)


def matches_of(
    model: TextEncoder, ready: Sequence[TokenizedPair], seed: int, extra_problems: int
) -> tuple[list[Question], list[int], list[Match]]:
    """The questions, their token counts and all matches among them. Raises ValueError where there is none."""
    pool = pool_of(ready, seed, extra_problems)
    tokens = [len(question_ids(model, side.question)) for _, side in pool]
    found = find_matches(pool, tokens, seed)
    if not found:
        raise ValueError(
            f"none of {len(pool)} questions has a matched donor of equal length; give pairs with annotated chains of "
            "two steps or more, or for models of arithmetic problems set extra_problems"
        )
    return pool, tokens, found


def prepared(model: TextEncoder, ready: Sequence[TokenizedPair], kept: Sequence[Match]) -> list[TokenizedPair]:
    """Matches as pairs that stand behind those that they were made of."""
    after = 1 + max(p.rank for p in ready)
    pairs = [as_prepared(model, rank, match) for rank, match in enumerate(kept, after)]
    return [pair for pair in pairs if pair is not None]


def pool_of(ready: Sequence[TokenizedPair], seed: int, extra_problems: int) -> list[Question]:
    """Both questions of every pair, and fresh problems of four steps, all of one length, where asked for."""
    sides = [(p.pair.cluster_id, side) for p in ready for side in (p.pair.clean, p.pair.corrupted)]
    return [*sides, *arithmetic_pool(extra_problems, seed, steps=(4,))]


def drawn(matches: Sequence[Match], most: int, seed: int) -> list[Match]:
    """At most so many of each intermediate and corner, drawn with the seed."""
    groups: dict[tuple[int, bool, bool], list[Match]] = defaultdict(list)
    for match in matches:
        groups[match.j, match.same_intermediate, match.same_answer].append(match)
    return [
        match
        for key, group in sorted(groups.items())
        for match in random.Random(f"{seed}:{key}").sample(group, min(most, len(group)))
    ]


def right(model: CodiModel, matches: Sequence[Match], max_new_tokens: int) -> list[Match]:
    """Those whose host and donor the model answers with their keys: of others, no answer could be told apart."""
    questions = list(dict.fromkeys(side.question for match in matches for side in (match.host, match.donor)))
    said = dict(zip(questions, answers(model, questions, max_new_tokens=max_new_tokens), strict=True))

    def knows(side: Side) -> bool:
        return last_number(said[side.question]) == side.answer

    return [match for match in matches if knows(match.host) and knows(match.donor)]


def as_prepared(model: TextEncoder, rank: int, match: Match) -> TokenizedPair | None:
    """A match as a pair under the model's tokenizer; `None` where the model cannot read it."""
    words = {True: "same", False: "different"}
    kind = f"{match.j}:{words[match.same_intermediate]}:{words[match.same_answer]}"
    pair = Pair(match.pair_id, match.cluster, clean=match.donor, corrupted=match.host, edit=kind)
    tokens = tokenise(model, pair)
    if match.donor.answer != match.host.answer and token_faults(pair, tokens):
        return None
    (clean, corrupted), prefix = tokens.answers, tokens.prefix
    tails = tuple(clean[prefix:]), tuple(corrupted[prefix:])
    return TokenizedPair(rank, pair, len(tokens.questions[0]), tuple(clean[:prefix]), tails, hybrid=match.hybrid)


def controls(
    ready: Sequence[TokenizedPair], pool: Sequence[Question], tokens: Sequence[int], seed: int
) -> list[tuple[Donor, ...]]:
    """For each match an unrelated question of equal length, another cluster, and none of the three answers."""
    by_length: dict[int, list[tuple[int, str, Side]]] = defaultdict(list)
    for place, ((cluster, side), count) in enumerate(zip(pool, tokens, strict=True)):
        by_length[count].append((place, cluster, side))
    donors: list[tuple[Donor, ...]] = []
    for prepared in ready:
        taken, fit = set(prepared.keys), by_length[prepared.tokens]
        others = [item for item in fit if item[1] != prepared.pair.cluster_id and item[2].answer not in taken]
        rng = random.Random(f"{seed}:{prepared.pair.pair_id}")
        chosen = [rng.choice(others)] if others else []
        donors.append(tuple(Donor(f"question {place}", side.question, side.answer) for place, _, side in chosen))
    return donors


def counted(found: Sequence[Match], used: Sequence[TokenizedPair]) -> dict[str, int]:
    """How many matches there are of each kind, `<j>:<intermediate>:<answer>`, and how many are patched."""
    words = {True: "same", False: "different"}
    counts = {f"found {j}:{words[i]}:{words[a]}": n for (j, i, a), n in coverage(found).items()}
    for prepared in used:
        counts[f"used {prepared.pair.edit}"] = counts.get(f"used {prepared.pair.edit}", 0) + 1
    return counts
