"""How a sweep is divided: pairs into batches, a batch's cells into blocks, by what they are alone. No torch.

A run divides by these functions, and so does the plan of one, which therefore says what the run will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from patching.budget import Work
from patching.cells import Cell, Prepared
from patching.readings import ANSWER_METRICS, WHOLE_ANSWER
from patching.sites import Sized, first_step

Drawn = TypeVar("Drawn")  # what goes with each pair
Block = TypeVar("Block")


def steps_of(model: Sized, cells: Sequence[Cell]) -> int:
    """How many latent steps the cells take: as many as the longest of them."""
    return max(model.n_latents, *(cell.n_latents or 0 for cell in cells))


def draws_of(cells: Sequence[Cell]) -> int:
    """How many unrelated donors the cells want."""
    return max((cell.draw + 1 for cell in cells if cell.donor == "unrelated"), default=0)


def work_of(
    model: Sized,
    ready: Sequence[Prepared],
    cells: Sequence[Cell],
    unpatched: int,
    metrics: Sequence[str],
    max_new_tokens: int,
    opening: int,
) -> Work:
    """What is to be run. `unpatched` runs begin every block; `opening` tokens end a thought: EoT, and maybe EOS."""
    script = [(len(p.forced), max(map(len, p.tails)) - 1) for p in ready]
    branches = 2 if set(WHOLE_ANSWER) & set(metrics) else 0
    return Work(
        pairs=len(ready),
        questions=unpatched,
        tokens=max(p.tokens for p in ready) + 1,
        cells=len(cells),
        steps=steps_of(model, cells),
        answer=opening + max(forced + branches * tail for forced, tail in script),
        new_tokens=max_new_tokens if set(ANSWER_METRICS) & set(metrics) else 0,
    )


def batches(
    ready: Sequence[Prepared], donors: Sequence[Drawn], size: int
) -> Iterator[tuple[list[Prepared], list[Drawn]]]:
    """Batches of pairs with equally many forced tokens, questions of like length together (less padding)."""

    def forced(prepared: Prepared) -> tuple[int, int]:
        return len(prepared.forced), prepared.shared

    paired = sorted(zip(ready, donors, strict=True), key=lambda item: (forced(item[0]), item[0].tokens, item[0].rank))
    start = 0
    while start < len(paired):
        same = [item for item in paired[start : start + size] if forced(item[0]) == forced(paired[start][0])]
        start += len(same)
        yield [item[0] for item in same], [item[1] for item in same]


def blocks_of(model: Sized, cells: Sequence[Cell], at_once: int) -> list[list[int]]:
    """Which cells run together: those that begin at like steps, so many at once."""
    order = sorted(range(len(cells)), key=lambda i: first_step(model, cells[i].site, cells[i].cuts))
    return [order[start : start + at_once] for start in range(0, len(order), at_once)]


def jobs_of(blocks: Sequence[Block], at_once: int, cells_per_job: int | None) -> list[Sequence[Block]]:
    """Which blocks of a batch are one job: as many as have at most so many cells, but one at least; all of them without
    a limit."""
    each = len(blocks) if cells_per_job is None else max(1, cells_per_job // at_once)
    return [blocks[start : start + each] for start in range(0, len(blocks), each)]
