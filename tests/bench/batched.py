"""Many cells, one forward, by hooks in plain PyTorch: the reference for the engine's speed.

Pairs are rows. Both questions of a pair are read once and stand side by side in a cache that every block of cells goes
on from; the first two cells of a block are the pair's unpatched runs, and a patch is a copy from the clean one. A cell
exists from the step on at which it is first written: until then it is the corrupted run, and reads its entries. Nothing
of the cache is copied: it is written into a buffer, and the queries of the heads that share keys are put side by side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from codi_tracing.patching.pairs.tokenized import TokenizedPair
from codi_tracing.traces.loop.tokens import question_ids
from tests.bench.job import Job, Plain, steps_of

CLEAN, CORRUPTED = HOSTS = range(2)
GROUPED = "heads_that_share_keys_together"
ALIGNED = 16  # a mask's rows begin at multiples of so many numbers, or a GPU copies it in every layer


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any):
    """Attention of the heads that share keys in one, `[row, kv head, group × query, d]`; the mask is as long."""
    rows, heads, queries, width = query.shape
    if mask is None or mask.shape[2] == queries:
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    together = query.reshape(rows, key.shape[1], -1, width)
    out = torch.nn.functional.scaled_dot_product_attention(
        together, key, value, attn_mask=mask, scale=options["scaling"]
    )
    return out.view(rows, heads, queries, width).transpose(1, 2), None


AttentionInterface.register(GROUPED, attend)


@contextmanager
def grouped(plain: Plain) -> Iterator[None]:
    """Attend as above."""
    config = plain.causal_lm.config
    before, config._attn_implementation = config._attn_implementation, GROUPED
    try:
        yield
    finally:
        config._attn_implementation = before


class Buffer:
    """A cache that is written into room made before; transformers' layers need nothing of it but `update`."""

    def __init__(self, plain: Plain, rows: int, length: int):
        config, like = plain.causal_lm.config, plain.bot
        shape = config.num_hidden_layers, 2, rows, config.num_key_value_heads, length, config.head_dim
        self.entries, self.filled = like.new_empty(shape), [0] * config.num_hidden_layers

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any) -> tuple[Tensor, Tensor]:
        start, end = self.filled[layer], self.filled[layer] + keys.shape[2]
        own = self.entries[layer]
        own[0, :, :, start:end], own[1, :, :, start:end] = keys, values
        self.filled[layer] = end
        return own[0, :, :, :end], own[1, :, :, :end]

    def knockout(self, length: int) -> None:
        self.filled = [length] * len(self.filled)


class Questions(NamedTuple):
    """A batch of pairs, read: their cache, first latents and where they end."""

    batch: list[tuple[int, TokenizedPair]]
    valid: Tensor  # [pair, 2, width]
    position: Tensor  # [pair, 1], the one after BoT
    latent: Tensor  # [pair, 2, d_model]
    cache: Buffer


@dataclass(frozen=True)
class Block:
    """Cells that run together behind the two hosts, those that begin early first; nothing in it depends on a pair."""

    cells: list[int]
    running: list[int]  # how many at each step, hosts and all
    parents: list[Tensor]  # whose latent each of them is fed
    writes: dict[tuple[int, int], Tensor]  # by layer and step, the cells written
    sees: Tensor  # [cell, question], which of the two questions
    steps: Tensor  # [cell, entry], which entries of the thoughts

    @property
    def size(self) -> int:
        return len(self.cells) + len(HOSTS)


def lay_out(job: Job, cells: Sequence[int]) -> Block:
    """Say when each cell begins, and what it sees."""
    device, n = job.device, job.plain.n_latents
    first = [0, 0, *(min(steps_of(job, job.sites[cell])) for cell in cells)]
    running = [sum(begin <= step for begin in first) for step in range(n)]
    parents = [[cell if cell < before else CORRUPTED for cell in range(now)]
               for before, now in zip([len(HOSTS), *running], running, strict=False)]  # fmt: skip
    writes: dict[tuple[int, int], list[int]] = {}
    for row, cell in enumerate(cells, len(HOSTS)):
        site = job.sites[cell]
        for step in steps_of(job, site):
            writes.setdefault((site.layer, step), []).append(row)
    entry = [[cell if cell < now else CORRUPTED for cell in range(len(first))] for now in running]
    steps = [torch.nn.functional.one_hot(torch.tensor(e), now) for e, now in zip(entry, running, strict=True)]
    return Block(
        list(cells),
        running,
        [torch.tensor(parent, device=device) for parent in parents],
        {site: torch.tensor(into, device=device) for site, into in writes.items()},
        (torch.arange(len(first))[:, None] == 0).eq(torch.tensor([True, False])).to(device),
        torch.cat(steps, 1).bool().to(device),
    )


def blocks_of(job: Job, size: int) -> list[Block]:
    """The grid in blocks of at most `size` cells, those that begin at one step together."""
    order = sorted(range(len(job.sites)), key=lambda cell: min(steps_of(job, job.sites[cell])))
    count = -(-len(order) // size)
    size = -(-len(order) // count)
    return [lay_out(job, order[start : start + size]) for start in range(0, len(order), size)]


def batches_of(job: Job, size: int) -> list[list[tuple[int, TokenizedPair]]]:
    """Pairs with equally many forced tokens, questions of like length together."""
    batches: list[list[tuple[int, TokenizedPair]]] = []
    for pair, ready in sorted(enumerate(job.ready), key=lambda item: (len(item[1].forced), item[1].tokens)):
        if not batches or len(batches[-1]) == size or len(batches[-1][0][1].forced) != len(ready.forced):
            batches.append([])
        batches[-1].append((pair, ready))
    return batches


def read_questions(job: Job, batch: list[tuple[int, TokenizedPair]], room: int) -> Questions:
    """Read both questions of every pair, each a row of its own; then lay their entries side by side."""
    plain, device = job.plain, job.device
    ids = [[*question_ids(job.model, side.question), 0] for _, p in batch for side in (p.pair.clean, p.pair.corrupted)]
    width = max(map(len, ids))
    padded = torch.tensor([[0] * (width - len(row)) + row for row in ids]).to(device)
    lengths = torch.tensor([len(row) for row in ids]).to(device)
    columns = torch.arange(width, device=device)
    valid, mask = columns >= width - lengths[:, None], None
    if min(map(len, ids)) < width:
        causal = columns[:, None] >= columns
        mask = (causal & (valid[:, None] | (columns[:, None] == columns)))[:, None]
    embeds = plain.embed(padded)
    embeds[:, -1] = plain.bot
    positions = (columns - (width - lengths[:, None])).clamp(min=0)
    whole = Buffer(plain, len(ids), width)
    out = plain.decoder(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=whole, use_cache=True
    )
    latent = plain.project(out.last_hidden_state[:, -1]).unflatten(0, (-1, 2))
    beside = Buffer(plain, len(batch), 2 * width + room)
    for side in HOSTS:
        beside.entries[..., side * width : (side + 1) * width, :] = whole.entries[:, :, side::2]
    beside.knockout(2 * width)
    return Questions(batch, valid.unflatten(0, (-1, 2)), lengths[::2, None], latent, beside)


def mask_of(plain: Plain, seen: Tensor) -> Tensor:
    """The additive mask of what is seen, `[row, query, key]`, once for each head of a group."""
    config, (rows, queries, keys) = plain.causal_lm.config, seen.shape
    group = config.num_attention_heads // config.num_key_value_heads
    room = plain.bot.new_empty(rows, 1, group, queries, -(-keys // ALIGNED) * ALIGNED)[..., :keys]
    room.copy_(torch.where(seen, 0.0, float("-inf"))[:, None, None])
    return room.flatten(2, 3) if group == 1 else room.view(rows, 1, group * queries, keys)


def run_block(job: Job, questions: Questions, block: Block, now: list) -> Tensor:
    """One block on one batch: logit differences, `[pair, cell]`, hosts first."""
    plain, rows = job.plain, len(questions.batch)
    questions.cache.knockout(questions.valid[0].numel())
    of_questions = (questions.valid[:, None] & block.sees[None, :, :, None]).flatten(2)
    seen = torch.cat([of_questions, block.steps.expand(rows, -1, -1)], -1)
    latent, keys = questions.latent, of_questions.shape[-1]
    for step, count in enumerate(block.running):
        keys += count
        now[:] = [block.writes, step]
        out = plain.decoder(
            inputs_embeds=latent[:, block.parents[step]], attention_mask=mask_of(plain, seen[:, :count, :keys]),
            position_ids=(questions.position + step).expand(-1, count), past_key_values=questions.cache,
            use_cache=True,
        )  # fmt: skip
        if step < plain.n_latents - 1:
            latent = plain.project(out.last_hidden_state)
    now[:] = [{}, -1]
    return answer(job, questions, block, seen)


def answer(job: Job, questions: Questions, block: Block, seen: Tensor) -> Tensor:
    """EoT and the forced tokens of every cell in one forward, the LM head behind the last of each."""
    plain, batch, device = job.plain, questions.batch, job.device
    forced = torch.tensor([ready.forced for _, ready in batch]).to(device)
    inputs = torch.cat([plain.eot.expand(len(batch), 1, -1), plain.embed(forced)], 1)
    length, cells = inputs.shape[1], block.size
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    one = torch.eye(cells, dtype=torch.bool, device=device)
    own = (one[:, None, :, None] & causal[:, None]).reshape(cells * length, -1).expand(len(batch), -1, -1)
    position = questions.position + plain.n_latents + torch.arange(length, device=device)
    hidden = plain.decoder(
        inputs_embeds=inputs.repeat(1, cells, 1), position_ids=position.repeat(1, cells),
        attention_mask=mask_of(plain, torch.cat([seen.repeat_interleave(length, 1), own], -1)),
        past_key_values=questions.cache, use_cache=True,
    ).last_hidden_state.unflatten(1, (cells, length))  # fmt: skip
    logits = plain.causal_lm.lm_head(hidden[:, :, -1])
    tokens = torch.tensor([[ready.clean_token, ready.corrupted_token] for _, ready in batch]).to(device)
    clean, corrupted = logits.gather(-1, tokens[:, None].expand(-1, cells, -1)).float().unbind(-1)
    return clean - corrupted


@torch.inference_mode()
def batched(job: Job, pairs_per_batch: int, cells_per_block: int) -> Tensor:
    """The whole grid's logit differences, `[pair, cell]`."""
    blocks = blocks_of(job, cells_per_block)
    measured: list[tuple[list[int], list[int], Tensor]] = []
    now: list = [{}, -1]

    def hook(layer: int):
        def copy(module: Any, args: Any, out: Tensor) -> None:
            writes, step = now
            if (into := writes.get((layer, step))) is not None:
                out[:, into] = out[:, :1].clone()  # the clean run's

        return copy

    handles = [block.register_forward_hook(hook(layer)) for layer, block in enumerate(job.plain.decoder.layers)]
    try:
        with grouped(job.plain):
            for batch in batches_of(job, pairs_per_batch):
                longest = 1 + len(batch[0][1].forced)
                room = max(sum(block.running) + block.size * longest for block in blocks)
                questions = read_questions(job, batch, room)
                for block in blocks:
                    measured.append(([pair for pair, _ in batch], block.cells, run_block(job, questions, block, now)))
    finally:
        for handle in handles:
            handle.remove()
    values = torch.empty(len(job.ready), len(job.sites), dtype=torch.float64)
    for rows, columns, differences in measured:
        values[torch.tensor(rows)[:, None], torch.tensor(columns)] = differences[:, len(HOSTS) :].double().cpu()
    return values
