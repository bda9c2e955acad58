"""How many pairs make a batch and how many cells run in one forward, from an estimate of a block's memory. No torch.

Large matrix products are fast, and grow with pairs × cells. But each cell's queries attend over every entry of their
row, other cells' included, so a row's time and memory grow with the square of its cells: many pairs, few cells a row.

>>> from codi_tracing.patching.engine.model_size import size_of_shape
>>> llama = size_of_shape("llama-3.2-1b-instruct")
>>> work = Workload(pairs=66, questions=3, tokens=70, cells=240, steps=6, answer=6, new_tokens=12)
>>> sizes = choose(llama, work, memory=8.0)
>>> sizes.pairs_per_batch, sizes.cells_per_forward, sizes.gib < 8
(16, 60, True)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import NamedTuple, TypeVar

from codi_tracing.patching.answer_metrics import ANSWER_METRICS, WHOLE_ANSWER
from codi_tracing.patching.engine.model_size import ModelSize
from codi_tracing.patching.interventions.cells import Cell
from codi_tracing.patching.interventions.sites import Sized, first_step
from codi_tracing.patching.pairs.tokenized import TokenizedPair

GIB = 2**30
MEMORY = 8.0  # GiB that a forward may take beside the weights
PAIRS = 16  # in a batch, where memory allows
CELLS = 64  # in a row, at most: beyond, attention to other cells' entries costs more than larger products save
UNPATCHED = 3  # runs that every block begins with


class Workload(NamedTuple):
    """A sweep's pairs and cells, and the lengths of a run."""

    pairs: int
    questions: int  # in a row
    tokens: int  # of the longest question, BoT included
    cells: int  # of a pair
    steps: int
    answer: int  # tokens fed from EoT on, of all branches
    new_tokens: int = 0  # decoded


class Sizes(NamedTuple):
    """How many pairs make a batch, how many cells run in a forward, and its estimated memory."""

    pairs_per_batch: int
    cells_per_forward: int
    gib: float | None  # None: not estimated


def block_bytes(size: ModelSize, work: Workload, pairs: int, cells: int) -> int:
    """Peak memory of one block of `cells` of so many pairs, beside the weights.

    The cache of all layers, and the larger of two: the longest forward's masks and activations, or the logits with the
    metrics' fp32 copies of them. Attention is assumed not to store its scores.
    """
    runs = cells + UNPATCHED
    asked, answered = work.questions * work.tokens, runs * work.answer
    entries = asked + runs * (work.steps + work.new_tokens) + answered
    queries = max(asked, answered)
    cache = entries * 2 * size.kv_width * size.number_bytes
    masks = queries * entries * (1 + size.number_bytes)
    activations = queries * size.number_bytes * (3 * size.d_mlp + 8 * size.d_model)
    read = work.answer if work.new_tokens else 2
    logits = runs * size.vocab * (read * size.number_bytes + 6 * 4)
    return pairs * ((size.n_layers + 2) * cache + max(masks + activations, logits))


def choose(
    size: ModelSize,
    work: Workload,
    memory: float,
    cells_per_forward: int | None = None,
    pairs_per_batch: int | None = None,
) -> Sizes:
    """The largest sizes whose estimate is within `memory` GiB; sizes that are given are kept.

    Cells are divided evenly among the fewest blocks. One cell of one pair is chosen even where it exceeds `memory`: the
    estimate may be too high.
    """
    pairs = pairs_per_batch or min(PAIRS, work.pairs)
    cells = cells_per_forward or min(CELLS, work.cells)
    while block_bytes(size, work, pairs, cells) > memory * GIB:
        if cells_per_forward is None and cells > 1 and (cells > 8 or pairs == 1 or pairs_per_batch):
            cells = ceil(cells / 2)
        elif pairs_per_batch is None and pairs > 1:
            pairs = ceil(pairs / 2)
        else:
            break
    if cells_per_forward is None:
        cells = ceil(work.cells / ceil(work.cells / cells))
    return Sizes(pairs, cells, round(block_bytes(size, work, pairs, cells) / GIB, 2))


PairDonors = TypeVar("PairDonors")
AnyBlock = TypeVar("AnyBlock")


def steps_of(model: Sized, cells: Sequence[Cell]) -> int:
    """The most latent steps that any cell takes."""
    return max(model.n_latents, *(cell.n_latents or 0 for cell in cells))


def draws_of(cells: Sequence[Cell]) -> int:
    """The number of unrelated donors that the cells use."""
    return max((cell.draw + 1 for cell in cells if cell.donor == "unrelated"), default=0)


def work_of(
    model: Sized,
    ready: Sequence[TokenizedPair],
    cells: Sequence[Cell],
    unpatched: int,
    metrics: Sequence[str],
    max_new_tokens: int,
    opening: int,
) -> Workload:
    """The size of a sweep. `unpatched` runs begin every block; `opening` tokens end a thought: EoT, and maybe EOS."""
    script = [(len(p.forced), max(map(len, p.tails)) - 1) for p in ready]
    branches = 2 if set(WHOLE_ANSWER) & set(metrics) else 0
    return Workload(
        pairs=len(ready),
        questions=unpatched,
        tokens=max(p.tokens for p in ready) + 1,
        cells=len(cells),
        steps=steps_of(model, cells),
        answer=opening + max(forced + branches * tail for forced, tail in script),
        new_tokens=max_new_tokens if set(ANSWER_METRICS) & set(metrics) else 0,
    )


def batches(
    ready: Sequence[TokenizedPair], donors: Sequence[PairDonors], size: int
) -> Iterator[tuple[list[TokenizedPair], list[PairDonors]]]:
    """Batches of pairs with equal numbers of forced tokens, sorted by question length (less padding)."""

    def forced(prepared: TokenizedPair) -> tuple[int, int]:
        return len(prepared.forced), prepared.shared

    paired = sorted(zip(ready, donors, strict=True), key=lambda item: (forced(item[0]), item[0].tokens, item[0].rank))
    start = 0
    while start < len(paired):
        same = [item for item in paired[start : start + size] if forced(item[0]) == forced(paired[start][0])]
        start += len(same)
        yield [item[0] for item in same], [item[1] for item in same]


def blocks_of(model: Sized, cells: Sequence[Cell], at_once: int) -> list[list[int]]:
    """Blocks of at most `at_once` cells, sorted by the step at which they begin."""
    order = sorted(range(len(cells)), key=lambda i: first_step(model, cells[i].site, cells[i].knockouts))
    return [order[start : start + at_once] for start in range(0, len(order), at_once)]


def jobs_of(blocks: Sequence[AnyBlock], at_once: int, cells_per_job: int | None) -> list[Sequence[AnyBlock]]:
    """The blocks of each remote job: at most `cells_per_job` cells, at least one block; without a limit one job."""
    each = len(blocks) if cells_per_job is None else max(1, cells_per_job // at_once)
    return [blocks[start : start + each] for start in range(0, len(blocks), each)]
