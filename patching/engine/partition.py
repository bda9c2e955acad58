"""What a block of cells takes, estimated before the model runs, and how many cells and pairs run together. No torch.

A forward of many cells is fast where its matrix products are large and its attention is small: products grow with
pairs × cells, but each cell's queries are compared with every entry of its row, other cells' among them, so that time
and memory of a row grow with the square of its cells. So many pairs stand in a batch, and few cells in a row.

>>> llama = Shape(n_layers=16, d_model=2048, d_mlp=8192, kv_width=512, n_heads=32, vocab=128256, bytes_each=2)
>>> work = Work(pairs=66, questions=3, tokens=70, cells=240, steps=6, answer=6, new_tokens=12)
>>> sizes = choose(llama, work, memory=8.0)
>>> sizes.pairs_per_batch, sizes.cells_per_forward, sizes.gib < 8
(16, 60, True)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any, NamedTuple, TypeVar

from codi_tracing.patching.answer_metrics import ANSWER_METRICS, WHOLE_ANSWER
from codi_tracing.patching.interventions.cells import Cell
from codi_tracing.patching.interventions.sites import Sized, first_step
from codi_tracing.patching.pairs.tokenized import TokenizedPair

GIB = 2**30
MEMORY = 8.0  # GiB that a forward may take beside the weights
PAIRS = 16  # in a batch, where memory allows
CELLS = 64  # in a row, at most: beyond, attention to other cells' entries costs more than larger products save
UNPATCHED = 3  # runs that every block begins with


class Shape(NamedTuple):
    """The sizes of a model that decide what a forward takes."""

    n_layers: int
    d_model: int
    d_mlp: int
    kv_width: int  # key heads × head width
    n_heads: int
    vocab: int
    bytes_each: int  # of a number in the model's precision

    @property
    def block_products(self) -> int:
        """Multiplications of one token in the linear layers of all blocks (a gated MLP)."""
        return self.n_layers * (2 * self.d_model * (self.d_model + self.kv_width) + 3 * self.d_model * self.d_mlp)


class Work(NamedTuple):
    """What is to be run: pairs, questions in a row and their tokens, cells of a pair, and how long each goes on."""

    pairs: int
    questions: int
    tokens: int  # of the longest question, BoT included
    cells: int
    steps: int
    answer: int  # tokens fed from EoT on, of all branches
    new_tokens: int = 0  # decoded


class Sizes(NamedTuple):
    """How many pairs make a batch, how many cells run in a forward, and what that is estimated to take."""

    pairs_per_batch: int
    cells_per_forward: int
    gib: float | None  # where it was estimated


def shape_of(config: Any, bytes_each: int) -> Shape:
    """The shape that a Hugging Face config describes."""
    d_model, heads = config.hidden_size, config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or d_model // heads
    return Shape(
        n_layers=config.num_hidden_layers,
        d_model=d_model,
        d_mlp=getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * d_model,
        kv_width=head_width * (getattr(config, "num_key_value_heads", None) or heads),
        n_heads=heads,
        vocab=config.vocab_size,
        bytes_each=bytes_each,
    )


def block_bytes(shape: Shape, work: Work, pairs: int, cells: int) -> int:
    """The most that one block of `cells` of so many pairs holds at once, beside the weights.

    Its cache, the masks of the answer's forward (of the question's, if that is longer), that forward's activations, and
    the logits with what metrics make of them in fp32. Attention is assumed not to store its scores.
    """
    runs = pairs * (cells + UNPATCHED)
    asked = work.questions * work.tokens
    answered = (cells + UNPATCHED) * work.answer
    entries = asked + (cells + UNPATCHED) * (work.steps + work.new_tokens) + answered
    queries = max(asked, answered)
    cache = pairs * entries * 2 * shape.kv_width * shape.bytes_each
    masks = pairs * queries * entries * (1 + shape.bytes_each)
    active = pairs * queries * shape.bytes_each * (3 * shape.d_mlp + 8 * shape.d_model)
    read = work.answer if work.new_tokens else 2
    logits = runs * shape.vocab * (read * shape.bytes_each + 6 * 4)
    return (shape.n_layers + 2) * cache + max(masks + active, logits)


def choose(
    shape: Shape, work: Work, memory: float, cells_per_forward: int | None = None, pairs_per_batch: int | None = None
) -> Sizes:
    """Sizes whose estimate is within `memory` GiB; what is given is kept. Depends on nothing but its arguments.

    Cells are divided evenly among the fewest blocks. Where not even one cell of one pair fits, that is chosen all the
    same: the estimate may be too high.
    """

    def fits(pairs: int, cells: int) -> bool:
        return block_bytes(shape, work, pairs, cells) <= memory * GIB

    pairs = pairs_per_batch or min(PAIRS, work.pairs)
    cells = cells_per_forward or min(CELLS, work.cells)
    while not fits(pairs, cells):
        if cells_per_forward is None and cells > 1 and (cells > 8 or pairs == 1 or pairs_per_batch):
            cells = ceil(cells / 2)
        elif pairs_per_batch is None and pairs > 1:
            pairs = ceil(pairs / 2)
        else:
            break
    if cells_per_forward is None:
        cells = ceil(work.cells / ceil(work.cells / cells))
    return Sizes(pairs, cells, round(block_bytes(shape, work, pairs, cells) / GIB, 2))


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
) -> Work:
    """The size of a sweep. `unpatched` runs begin every block; `opening` tokens end a thought: EoT, and maybe EOS."""
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
