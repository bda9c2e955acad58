"""Matched donors as pairs that a sweep can patch: the host is the corrupted side, its donor the clean side.

So denoising writes the donor's thought into the host. `answer_is_clean` then means the donor's answer,
`answer_is_corrupted` the host's, and `answer_is_hybrid` the host's remaining operations on the donor's intermediate.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from codi_tracing.patching.pair_making.arithmetic import arithmetic_pool
from codi_tracing.patching.pair_making.matching import Match, coverage, find_matches
from codi_tracing.patching.pairs.donors import Donor, assign_donors
from codi_tracing.patching.pairs.pair import Pair, Side
from codi_tracing.patching.pairs.tokenized import TokenizedPair, tokenize_pair
from codi_tracing.traces.evaluate import answers
from codi_tracing.traces.loop.tokens import TextEncoder, question_ids
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.text import last_number

SAME = {True: "same", False: "different"}


class MatchedPairs(NamedTuple):
    """Matched pairs to patch, each with an unrelated donor if there is one, and counts of matches found and used."""

    ready: list[TokenizedPair]
    donors: list[tuple[Donor, ...]]
    counts: dict[str, int]


class MatchPool(NamedTuple):
    """Questions with their clusters and token counts, and all matches among them."""

    questions: list[tuple[str, Side]]
    tokens: list[int]
    matches: list[Match]


def matched_pairs(
    model: CodiModel,
    everyone: Sequence[TokenizedPair],
    seed: int,
    most: int,
    extra_problems: int = 0,
    max_new_tokens: int = 12,
) -> MatchedPairs:
    """At most `most` matches for each intermediate and corner, of questions that the model answers with their keys.

    Donors come from the questions of all usable pairs and of `extra_problems` new arithmetic problems. Raises
    ValueError where there is no match.
    """
    pool = build_pool(model, everyone, seed, extra_problems)
    drawn = draw_per_corner(pool.matches, most, seed)
    pairs = tokenize_matches(model, everyone, answered_matches(model, drawn, max_new_tokens))
    if not pairs:
        raise ValueError(f"the model answers none of {len(pool.matches)} matched pairs rightly, so none can be patched")
    counts = {f"found {corner_name(*key)}": n for key, n in coverage(pool.matches).items()}
    counts |= Counter(f"used {p.pair.edit}" for p in pairs)
    return MatchedPairs(pairs, matched_donors(pool, pairs, seed), counts)


def possible_matched_pairs(
    model: TextEncoder, everyone: Sequence[TokenizedPair], seed: int, most: int, extra_problems: int = 0
) -> tuple[list[TokenizedPair], list[tuple[Donor, ...]]]:
    """The matched pairs from which `matched_pairs` keeps those that the model answers, and their unrelated donors."""
    pool = build_pool(model, everyone, seed, extra_problems)
    pairs = tokenize_matches(model, everyone, draw_per_corner(pool.matches, most, seed))
    return pairs, matched_donors(pool, pairs, seed)


def build_pool(model: TextEncoder, everyone: Sequence[TokenizedPair], seed: int, extra_problems: int) -> MatchPool:
    """Both questions of every pair, new problems of four steps, and all matches. ValueError where there is none."""
    sides = [(p.pair.cluster_id, side) for p in everyone for side in p.pair.sides.values()]
    questions = [*sides, *arithmetic_pool(extra_problems, seed, steps=(4,))]
    tokens = [len(question_ids(model, side.question)) for _, side in questions]
    matches = find_matches(questions, tokens, seed)
    if not matches:
        raise ValueError(
            f"none of {len(questions)} questions has a matched donor of equal length; give pairs with annotated chains "
            "of two steps or more, or for models of arithmetic problems set extra_problems"
        )
    return MatchPool(questions, tokens, matches)


def draw_per_corner(matches: Sequence[Match], most: int, seed: int) -> list[Match]:
    """At most `most` seeded matches of each intermediate and corner."""
    groups: dict[tuple[int, bool, bool], list[Match]] = defaultdict(list)
    for match in matches:
        groups[match.j, match.same_intermediate, match.same_answer].append(match)
    return [
        match
        for key, group in sorted(groups.items())
        for match in random.Random(f"{seed}:{key}").sample(group, min(most, len(group)))
    ]


def answered_matches(model: CodiModel, matches: Sequence[Match], max_new_tokens: int) -> list[Match]:
    """The matches whose host and donor the model answers with their keys; in others the answers mean nothing."""
    sides = {side.question: side for match in matches for side in (match.host, match.donor)}
    texts = answers(model, list(sides), max_new_tokens=max_new_tokens)
    right = {q for (q, side), text in zip(sides.items(), texts, strict=True) if last_number(text) == side.answer}
    return [match for match in matches if {match.host.question, match.donor.question} <= right]


def tokenize_matches(
    model: TextEncoder, everyone: Sequence[TokenizedPair], matches: Sequence[Match]
) -> list[TokenizedPair]:
    """The matches that the model can read, as pairs ranked behind `everyone`."""
    first_rank = 1 + max(p.rank for p in everyone)
    pairs = []
    for rank, match in enumerate(matches, first_rank):
        edit = corner_name(match.j, match.same_intermediate, match.same_answer)
        pair = Pair(match.pair_id, match.cluster, clean=match.donor, corrupted=match.host, edit=edit)
        p = tokenize_pair(model, pair, rank)
        if match.donor.answer != match.host.answer and p.faults:
            continue
        # Only the prefix is forced: what donor and host share of their answers, the hybrid need not share.
        prefix = len(p.forced) - p.shared
        clean, corrupted = ((*p.forced[prefix:], *tail) for tail in p.tails)
        pairs.append(
            p._replace(forced=p.forced[:prefix], tails=(clean, corrupted), shared=0, hybrid=match.hybrid, faults=())
        )
    return pairs


def matched_donors(pool: MatchPool, pairs: Sequence[TokenizedPair], seed: int) -> list[tuple[Donor, ...]]:
    """For each match an unrelated question of equal length, another cluster, and none of the three answers."""
    by_length: dict[int, list[tuple[str, Donor]]] = defaultdict(list)
    for index, ((cluster, side), count) in enumerate(zip(pool.questions, pool.tokens, strict=True)):
        by_length[count].append((cluster, Donor(f"question {index}", side.question, side.answer)))
    return assign_donors(pairs, by_length, [p.keys for p in pairs], seed)


def corner_name(j: int, same_intermediate: bool, same_answer: bool) -> str:
    """A matched pair's edit, as `0:different:same`: the intermediate's index, if its value and the answer agree."""
    return f"{j}:{SAME[same_intermediate]}:{SAME[same_answer]}"
