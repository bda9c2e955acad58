"""The variants side by side: which there are, and whether they give the same numbers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tests.bench.alone import HOOKS, HOOKS_CACHED, NNSIGHT, Alone
from tests.bench.batched import batched
from tests.bench.job import Found, Job, sample
from tests.bench.ours import swept, values_of
from tests.bench.timing import Numbers, Timed, alone, whole


@dataclass(frozen=True)
class Blocks:
    """How many pairs and cells run at once: by hooks, and what the sweep is told (nothing: its own choice)."""

    pairs: int = 16
    cells: int = 128
    ours: tuple[tuple[str, Any], ...] = ()


def grid_variants(job: Job, chosen: list[tuple[int, int]], blocks: Blocks) -> list[Timed]:
    """The grid without decoding: (a), (a'), (b), (c) and (d)."""

    def one(name: str, what: str, variant: Alone) -> Timed:
        return Timed(name, what, lambda: alone(job, variant, chosen), len(chosen))

    def hooks() -> tuple[float, Numbers]:
        return whole(job, lambda: batched(job, blocks.pairs, blocks.cells), lambda values: [values])

    def sweep() -> tuple[float, Numbers]:
        return whole(job, lambda: swept(job, **dict(blocks.ours)), lambda table: [values_of(job, table)])

    return [
        one("a", "hooks, one cell at a time", HOOKS),
        one("a'", "hooks, one at a time, question kept", HOOKS_CACHED),
        one("b", "nnsight, one cell at a time", NNSIGHT),
        Timed("c", "hooks, batched as ours", hooks, job.cells),
        Timed("d", "ours", sweep, job.cells),
    ]


def decoding_variants(job: Job, chosen: list[tuple[int, int]], blocks: Blocks) -> list[Timed]:
    """The grid with greedy decoding: (a) and (d)."""

    def sweep() -> tuple[float, Numbers]:
        return whole(
            job,
            lambda: swept(job, True, **dict(blocks.ours)),
            lambda table: [values_of(job, table), values_of(job, table, "answer")],
        )

    return [
        Timed("a", "hooks, one cell at a time", lambda: alone(job, HOOKS, chosen, True), len(chosen)),
        Timed("d", "ours", sweep, job.cells),
    ]


def some_cells(job: Job, cells: int) -> list[tuple[int, int]]:
    """The cells that the slow variants run: ten of each of as many pairs as that takes."""
    return sample(job, max(1, cells // 10), cells)


def differences(variants: list[Timed]) -> dict[str, float]:
    """The largest difference of any two variants' numbers, over the cells that both have run."""
    return {
        f"{one.name}~{two.name}": max(
            abs(one.numbers[place].difference - two.numbers[place].difference)
            for place in one.numbers.keys() & two.numbers.keys()
        )
        for one, two in combinations(variants, 2)
    }


def largest(variants: list[Timed]) -> float:
    """The largest of all numbers, which rounding is relative to."""
    return max(abs(found.difference) for variant in variants for found in variant.numbers.values())


def other_answers(variants: list[Timed]) -> int:
    """In how many cells two variants decode different numbers; none is none, whoever says it."""

    def said(found: Found) -> str:
        return repr(found.answer)

    return sum(
        said(one.numbers[place]) != said(two.numbers[place])
        for one, two in combinations(variants, 2)
        for place in one.numbers.keys() & two.numbers.keys()
    )


def spread(numbers: Numbers) -> float:
    """How far the cells of a pair lie apart, the mean over pairs: what the differences are small against."""
    pairs: dict[int, list[float]] = {}
    for (pair, _), found in numbers.items():
        pairs.setdefault(pair, []).append(found.difference)
    return sum(max(values) - min(values) for values in pairs.values()) / len(pairs)
