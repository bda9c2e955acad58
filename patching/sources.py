"""Where the written values come from: each source names the run of the row that is the donor, given the host.

Every forward holds three unpatched runs of a pair: `clean`, `corrupted` and `unrelated`, a run of another pair's
question of the same token count, so that positions agree. The unrelated donor is the control: writing *anything* into
a run disturbs it, and only what the pair's own other run does beyond that is specific.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from patching.pairs import Pair

RUNS = ("clean", "corrupted", "unrelated")  # a run's index is its segment and its cell
HOSTS = {"denoising": "corrupted", "noising": "clean"}


def other(host: str) -> str:
    """The pair's other run: clean values into the corrupted run, corrupted values into the clean one."""
    return "clean" if host == "corrupted" else "corrupted"


def itself(host: str) -> str:
    """The host's own run: writing it changes nothing, at every site."""
    return host


def unrelated(host: str) -> str:
    """A run of an unrelated pair: the zero line of a chart."""
    return "unrelated"


def source_name(source, host: str) -> str:
    """The name in the table: `clean`, `corrupted`, `unrelated`, or `self`."""
    donor = source(host)
    return "self" if donor == host else donor


class Donor(NamedTuple):
    """An unrelated question and what it is the answer to."""

    pair_id: str
    question: str
    answer: float


def draw_unrelated(pairs: Sequence[Pair], tokens: Sequence[int], seed: int) -> list[Donor | None]:
    """For each pair a seeded donor of equal token count, another cluster and another answer; `None` where none is."""
    same_length = defaultdict(list)
    for pair, count in zip(pairs, tokens, strict=True):
        same_length[count].append(pair)
    donors: list[Donor | None] = []
    for pair, count in zip(pairs, tokens, strict=True):
        answers = {pair.clean.answer, pair.corrupted.answer}
        fit = [p for p in same_length[count] if p.cluster_id != pair.cluster_id and p.clean.answer not in answers]
        chosen = random.Random(f"{seed}:{pair.pair_id}").choice(fit) if fit else None
        donors.append(Donor(str(chosen.pair_id), chosen.clean.question, chosen.clean.answer) if chosen else None)
    return donors
