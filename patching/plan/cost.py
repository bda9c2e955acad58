"""What a batch of pairs costs: products of its forwards, bytes that its request holds and that come back. No torch.

A floating-point operation is one multiplication or one addition of a matrix product, two for each multiplication.
Attention counts every query against every entry of its row, seen or masked, for so it is computed. Norms, activations,
softmax and metrics are not counted. `tests/patching/plan/test_count.py` compares with PyTorch's own counter, product by product.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from codi_tracing.patching.answer_metrics import ANSWER_METRICS, WHOLE_ANSWER
from codi_tracing.patching.engine.model_size import Anatomy
from codi_tracing.patching.interventions.cells import Cell
from codi_tracing.patching.interventions.sites import Sized, first_step
from codi_tracing.patching.pairs.tokenized import TokenizedPair

# Bytes of a request beside its tensors, fitted to nnsight 0.8.1's serialisation (within a tenth; tests/patching/plan/test_count.py):
# our own source, the tree of modules, cells, and pairs with their texts.
OF_A_REQUEST, OF_A_LAYER, OF_A_CELL, OF_A_PAIR, OF_A_TOKEN = 185_000, 18_000, 55, 500, 10
OF_A_RESULT, OF_A_TENSOR = 1_000, 250  # of what comes back, beside its numbers
LARGEST, FAILED, INLINE = 256 * 2**20, 520_000_000, 8 * 2**20  # bytes measured on ndif 0.1.2: requests, a result inline
INTEGER, NUMBER, FLAG = 8, 4, 1  # bytes of a token or an index, a measurement, a truth value


class Products(NamedTuple):
    """Floating-point operations by phase; decoding is the most that it can take. `attention` is a part of the rest."""

    question: int = 0
    thought: int = 0
    answer: int = 0
    decoding: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        return self.question + self.thought + self.answer + self.decoding

    def plus(self, other: Products) -> Products:
        return Products(*map(sum, zip(self, other, strict=True)))

    def times(self, factor: int) -> Products:
        return Products(*(factor * value for value in self))


class Multiplications:
    """Multiplications of a model, LoRA merged into its linear layers or apart."""

    def __init__(self, model: Anatomy, apart: bool) -> None:
        self.model = model
        self.per_token = model.n_layers * model.block_products + apart * model.lora_numbers
        self.head, self.project = model.d_model * model.vocab, model.project_products

    def attention(self, queries: int, entries: int) -> int:
        """Scores and sums of so many queries in all layers."""
        return 2 * self.model.n_layers * queries * entries * self.model.attended

    def question(self, asked: int, segments: int) -> tuple[int, int]:
        """All multiplications of reading a row's questions, and those of attention."""
        seen = self.attention(asked, asked)
        return asked * self.per_token + segments * self.project + seen, seen

    def loop(self, layout: Layout, block: Block, reads: Reads) -> Products:
        """A block's latent steps, its answer and its decoding, in one row: multiplications."""
        entries, thought, seen = layout.asked, 0, 0
        for thinking in block.begun:
            entries += thinking
            attended = self.attention(thinking, entries)
            thought += thinking * (self.per_token + self.project + bool(reads.step_metrics) * self.head) + attended
            seen += attended
        answered = self.answered(layout, block, reads, entries, layout.told.fed)
        return answered.plus(Products(thought=thought, attention=seen))

    def single_pass(self, layout: Layout, block: Block, reads: Reads) -> Products:
        """The same of the single pass over placeholders, all of which is called answer."""
        return self.answered(layout, block, reads, layout.asked, self.model.n_latents + layout.told.fed)

    def answered(self, layout: Layout, block: Block, reads: Reads, entries: int, fed: int) -> Products:
        """What is forced after so many entries, and the most that decoding adds."""
        runs = layout.segments + block.cells
        entries += runs * fed
        attended = self.attention(runs * fed, entries)
        answer = runs * (fed * self.per_token + layout.told.read * self.head) + attended
        decoding = 0
        for _ in range(reads.new_tokens - 1):
            entries += runs
            decoding += runs * (self.per_token + self.head) + self.attention(runs, entries)
        return Products(answer=answer, decoding=decoding, attention=attended)


def products_of(model: Anatomy, layout: Layout, blocks: Sequence[Block], reads: Reads, apart: bool) -> Products:
    """Floating-point operations of a batch whose blocks share one reading of the questions."""
    counter = Multiplications(model, apart)
    question, seen = counter.question(layout.asked, layout.segments)
    found = Products(question=question, attention=seen)
    for block in blocks:
        count = counter.loop if reads.protocol == "latent_loop" else counter.single_pass
        found = found.plus(count(layout, block, reads))
    return found.times(2 * layout.rows)


def gradient_products(model: Anatomy, layout: Layout, steps: int) -> Products:
    """The most that estimating a batch takes: forward, then backward, which is counted with the answer.

    LoRA is merged and no parameter wants a gradient, so that the backward pass has as many products as the forward one,
    and attention's twice.
    """
    counter, both = Multiplications(model, apart=False), Block(0, (layout.segments,) * steps)
    question, seen = counter.question(layout.asked, layout.segments)
    forward = counter.loop(layout, both, Reads((), (), "latent_loop", 0))
    backward = forward.thought + forward.answer + forward.attention
    found = forward._replace(answer=forward.answer + backward, attention=3 * forward.attention)
    return found.plus(Products(question=question, attention=seen)).times(2 * layout.rows)


def forwards_of(blocks: Sequence[Block], reads: Reads) -> tuple[int, int]:
    """Forwards of a batch that decode nothing, and the most that decode."""
    each = (len(blocks[0].begun) if reads.protocol == "latent_loop" else 0) + 1
    return 1 + len(blocks) * each, len(blocks) * max(0, reads.new_tokens - 1)


def bytes_sent(model: Anatomy, layout: Layout, blocks: Sequence[Block], mean_kinds: Sequence[str]) -> int:
    """What a request holds, uncompressed: projection, BoT and EoT, tokens, means, pairs and cells, and our source.

    Masks, noise and what each cell sees are made where the model runs; nothing of the base or of LoRA is sent.
    """
    d, each = model.d_model, model.bytes_each
    held = (model.project_numbers + 2 * d) * each
    held += sum((1 if kind == "latent" else model.n_layers) * model.n_latents * d * each for kind in mean_kinds)
    held += layout.rows * (layout.asked * (INTEGER + FLAG) + OF_A_PAIR + OF_A_TOKEN * layout.width)
    return held + OF_A_REQUEST + OF_A_LAYER * model.n_layers + OF_A_CELL * sum(block.cells for block in blocks)


def bytes_returned(layout: Layout, blocks: Sequence[Block], reads: Reads) -> int:
    """What comes back, uncompressed: three numbers a cell and metric, whether its logits are finite, and its tokens."""
    held = OF_A_RESULT
    for block in blocks:
        runs = layout.segments + block.cells
        held += layout.rows * (3 * NUMBER * reads.on_logits * block.cells + FLAG * runs)
        held += OF_A_TENSOR * (reads.on_logits + 1)
        if reads.new_tokens:
            longest = max(layout.told.trunk, reads.new_tokens) + 1
            held += layout.rows * runs * longest * INTEGER + OF_A_TENSOR
        if reads.protocol == "latent_loop":
            thinking = sum(begun - layout.segments for begun in block.begun)
            held += len(reads.step_metrics) * (layout.rows * 3 * NUMBER * thinking + OF_A_TENSOR * len(block.begun))
    return held


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
    firsts = sorted(first_step(model, cell.site, cell.knockouts) for cell in cells)
    return Block(len(cells), tuple(unpatched + bisect_right(firsts, step) for step in range(steps)))


def layout_of(batch: Sequence[TokenizedPair], segments: int, reads: Reads, opening: int) -> Layout:
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
