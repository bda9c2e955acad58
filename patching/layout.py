"""How a batch of pairs is laid out in forwards: blocks of cells, and how long everything is. No torch.

It mirrors `traces.thought`, `traces.answer` and `traces.placeholder`, which run it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from patching.cells import Cell, Prepared
from patching.readings import ANSWER_METRICS, WHOLE_ANSWER
from patching.sites import Sized, first_step


class Block(NamedTuple):
    """Cells that run together beside the unpatched runs, and how many think at each latent step, those among them."""

    cells: int
    begun: tuple[int, ...]


class Reads(NamedTuple):
    """What a sweep reads of its runs."""

    metrics: tuple[str, ...]
    step_metrics: tuple[str, ...]
    protocol: str
    most_tokens: int

    @property
    def at_eot(self) -> bool:
        return any(name.endswith("_at_eot") for name in self.metrics)

    @property
    def whole_answers(self) -> bool:
        return bool(set(WHOLE_ANSWER) & set(self.metrics))

    @property
    def new_tokens(self) -> int:
        """How many tokens are decoded, at most."""
        return self.most_tokens if set(ANSWER_METRICS) & set(self.metrics) else 0

    @property
    def on_logits(self) -> int:
        """Metrics that come back as numbers; those of answers come back as tokens."""
        return len([name for name in self.metrics if name not in ANSWER_METRICS])


class Told(NamedTuple):
    """What is forced on a cell of a batch."""

    trunk: int  # tokens that both answers share
    branches: int  # tokens of both answers' rests, where whole answers are scored
    fed: int  # all tokens of a cell's answer: opening, trunk, branches
    read: int  # of them, whose logits are computed


class Layout(NamedTuple):
    """A batch: rows, the questions in a row and their width, and what is forced."""

    rows: int
    segments: int
    width: int  # of the longest question, BoT included
    told: Told

    @property
    def asked(self) -> int:
        """Tokens of a row's questions, padding included."""
        return self.segments * self.width


def block_of(model: Sized, cells: Sequence[Cell], unpatched: int, steps: int) -> Block:
    """How a block of cells runs through so many steps."""
    firsts = sorted(first_step(model, cell.site, cell.cuts) for cell in cells)
    return Block(len(cells), tuple(unpatched + bisect_right(firsts, step) for step in range(steps)))


def layout_of(batch: Sequence[Prepared], segments: int, reads: Reads, opening: int) -> Layout:
    """How long everything is in a batch; unrelated donors are as long as their pairs."""
    trunk, shared = len(batch[0].forced), batch[0].shared
    loop = reads.protocol == "latent_loop"
    rests = [max(len(p.tails[side]) for p in batch) - 1 for side in range(2)] if reads.whole_answers and loop else []
    fed = opening + trunk + sum(rests)
    if reads.new_tokens and loop:
        read = fed - opening + 1
    else:
        start = reads.at_eot if loop else 1
        read = start + 1 + (shared + sum(rests) if rests else 0)
    return Layout(len(batch), segments, max(p.tokens for p in batch) + 1, Told(trunk, sum(rests), fed, read))
