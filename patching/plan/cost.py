"""FLOPs and bytes of a job (a batch of pairs, or some of its cells), within 10 % and by simple formulas. No torch.

A FLOP is one addition or multiplication of a matrix product. Masked and padded positions count, because they are
computed; norms, activations, softmax and metrics do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from codi_tracing.patching.answer_metrics import ANSWER_METRICS, WHOLE_ANSWER
from codi_tracing.patching.engine.model_size import ModelSize
from codi_tracing.patching.interventions.cells import Cell
from codi_tracing.patching.interventions.sites import first_step
from codi_tracing.patching.pairs.tokenized import TokenizedPair

# Bytes that nnsight 0.8.1 adds to the tensors of a request (our source, the module tree, cells, texts) or of a result.
REQUEST_BYTES, LAYER_BYTES, CELL_BYTES, PAIR_BYTES, TOKEN_BYTES = 185_000, 18_000, 55, 500, 10
RESULT_BYTES, TENSOR_BYTES = 1_000, 250
REQUEST_LIMIT, FAILED_REQUEST, INLINE = (
    256 * 2**20,
    520_000_000,
    8 * 2**20,
)  # bytes measured on ndif 0.1.2: requests, a result inline


class Cost(NamedTuple):
    """Jobs, forwards, FLOPs by phase, and bytes before compression; decoding is an upper bound."""

    jobs: int
    forwards: int  # without decoding
    decoding_forwards: int
    question_flops: int
    thought_flops: int
    answer_flops: int
    decoding_flops: int
    bytes_sent: int
    bytes_returned: int
    largest_sent: int  # bytes of the largest request
    largest_returned: int

    @classmethod
    def total(cls, costs: Sequence[tuple[int, Cost]]) -> Cost:
        """The sum of costs, each with its number of jobs; the largest request and result are the largest of any job."""
        sums = [sum(count * cost[field] for count, cost in costs) for field in range(len(cls._fields) - 2)]
        largest = [max((cost[field] for _, cost in costs), default=0) for field in (-2, -1)]
        return cls(*sums, *largest)

    @property
    def flops(self) -> int:
        return self.question_flops + self.thought_flops + self.answer_flops + self.decoding_flops


class Measurements(NamedTuple):
    """What a sweep reads of its runs."""

    metrics: Sequence[str]
    step_metrics: Sequence[str]
    protocol: str
    max_new_tokens: int


class BatchShape(NamedTuple):
    """The lengths of a batch of pairs, and what is read."""

    pairs: int
    questions: int  # in a row: clean, corrupted, unrelated donors; as many unpatched runs begin every block
    question_tokens: int  # of the longest question, BoT included
    answer_tokens: int  # fed to each run: EoT, what both answers share, and both answers' rests where they are scored
    logits_read: int  # positions of them whose logits are computed
    new_tokens: int  # decoded at most
    logit_metrics: int  # metrics returned as numbers; answers are returned as tokens
    step_metrics: int

    @classmethod
    def of(cls, size: ModelSize, batch: Sequence[TokenizedPair], questions: int, measured: Measurements) -> BatchShape:
        """The lengths of a batch; unrelated donors are as long as their pairs."""
        metrics, loop = set(measured.metrics), measured.protocol == "latent_loop"
        whole = loop and bool(metrics & set(WHOLE_ANSWER))
        rests = sum(max(len(p.tails[side]) for p in batch) - 1 for side in range(2)) if whole else 0
        fed, new_tokens = len(batch[0].forced) + rests, measured.max_new_tokens if metrics & set(ANSWER_METRICS) else 0
        if loop and new_tokens:
            read = fed + 1
        else:
            at_eot = not loop or any(name.endswith("_at_eot") for name in metrics)
            read = 1 + at_eot + (batch[0].shared + rests if whole else 0)
        fed += size.opening + (0 if loop else size.n_latents)  # the single pass feeds placeholders with the answer
        tokens, logit_metrics = max(p.tokens for p in batch) + 1, len(metrics - set(ANSWER_METRICS))
        return cls(len(batch), questions, tokens, fed, read, new_tokens, logit_metrics, len(measured.step_metrics))


class BlockShape(NamedTuple):
    """Runs of a pair that share a forward (cells and unpatched runs), and their latent steps."""

    runs: int
    steps: int
    thought_tokens: int  # of all runs; a cell starts at the first step that it can change

    @classmethod
    def of(cls, size: ModelSize, cells: Sequence[Cell], questions: int, steps: int) -> BlockShape:
        """How a block of cells runs through so many steps (none in a single pass)."""
        cell_tokens = sum(max(0, steps - first_step(size, cell.site, cell.knockouts)) for cell in cells)
        return cls(questions + len(cells), steps, questions * steps + cell_tokens)


def phase_flops(
    size: ModelSize, parameters: int, tokens: int, before: int, forwards: int = 1, logits: int = 0
) -> int:  # fmt: skip
    """FLOPs of tokens that follow `before` others in a row, in one or several forwards.

    2 · tokens · parameters + 4 · layers · tokens · keys · heads · d_head + 2 · logits · d_model · vocab, with the mean
    number of keys: those before, and of its own phase those of its forward and of earlier ones.
    """
    keys = before + tokens * (forwards + 1) / (2 * max(1, forwards))
    attention = 4 * size.n_layers * tokens * keys * size.n_heads * size.d_head
    return 2 * tokens * parameters + round(attention) + 2 * logits * size.d_model * size.vocab


def bytes_sent(size: ModelSize, batch: BatchShape, cells: int, mean_kinds: int) -> int:
    """Projection, BoT, EoT and means in the model's precision, and fixed bytes for source, layers, pairs and cells.

    The server makes masks and noise itself, and holds base and LoRA.
    """
    vectors = 2 + mean_kinds * size.n_layers * size.n_latents
    tensors = (size.projection_parameters + vectors * size.d_model) * size.number_bytes
    pairs = batch.pairs * (PAIR_BYTES + TOKEN_BYTES * (batch.questions + 1) * batch.question_tokens)
    return tensors + pairs + REQUEST_BYTES + LAYER_BYTES * size.n_layers + CELL_BYTES * cells


def bytes_returned(batch: BatchShape, blocks: Sequence[BlockShape]) -> int:
    """Three fp32 numbers a cell and metric, one flag a run, eight bytes a decoded token."""
    total = RESULT_BYTES
    tokens = max(batch.answer_tokens, batch.new_tokens + 1) if batch.new_tokens else 0
    for block in blocks:
        numbers = batch.logit_metrics * (block.runs - batch.questions)
        numbers += batch.step_metrics * (block.thought_tokens - block.steps * batch.questions)
        total += batch.pairs * (12 * numbers + block.runs * (1 + 8 * tokens))
        total += TENSOR_BYTES * (batch.logit_metrics + 2 + batch.step_metrics * block.steps)
    return total


def job_cost(
    size: ModelSize, batch: BatchShape, blocks: Sequence[BlockShape], mean_kinds: int = 0, lora_apart: bool = False
) -> Cost:
    """The cost of a job that reads its questions once and then runs `blocks`."""
    layers = size.linear_parameters + lora_apart * size.lora_parameters
    projected, asked = layers + 2 * size.d_model * size.prj_dim, batch.questions * batch.question_tokens
    thought = answer = decoding = 0
    for block in blocks:
        steps_read = block.thought_tokens if batch.step_metrics else 0
        thought += phase_flops(size, projected, block.thought_tokens, asked, block.steps, steps_read)
        before, fed = asked + block.thought_tokens, block.runs * batch.answer_tokens
        answer += phase_flops(size, layers, fed, before, logits=block.runs * batch.logits_read)
        more = max(0, batch.new_tokens - 1)
        decoding += phase_flops(size, layers, block.runs * more, before + fed, more, block.runs * more)
    sent = bytes_sent(size, batch, sum(block.runs - batch.questions for block in blocks), mean_kinds)
    returned = bytes_returned(batch, blocks)
    return Cost(
        jobs=1,
        forwards=1 + sum(block.steps + 1 for block in blocks),
        decoding_forwards=len(blocks) * max(0, batch.new_tokens - 1),
        question_flops=batch.pairs * phase_flops(size, layers, asked, 0),
        thought_flops=batch.pairs * thought,
        answer_flops=batch.pairs * answer,
        decoding_flops=batch.pairs * decoding,
        bytes_sent=sent,
        bytes_returned=returned,
        largest_sent=sent,
        largest_returned=returned,
    )
