"""The sweep: pairs × directions × sources × sites -> the table. The only loop over pairs.

A batch of pairs reads its questions once; all cells run over them, uncopied, in blocks of bounded size (see
`traces.thought`). The first cells of every block are the unpatched clean, corrupted and unrelated runs: hosts, donors
and references at once, so a patch is a copy between cells of the same forward, and a cell is compared with unpatched
runs of its own block. A cell begins at the step at which it is first written, and is its host until then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from analysis.table import empty_table
from patching.cells import (
    PROTOCOLS,
    Cell,
    Prepared,
    check_cells,
    check_single_pass,
    grid,
    prepare,
)
from patching.edges import Edge, check_edge
from patching.means import Means, record_means
from patching.metrics import (
    ANSWER_METRICS,
    DEFAULT_METRICS,
    EDIT_METRICS,
    EOT_METRICS,
    LENS_METRICS,
    LOGIT_METRICS,
    METRICS,
    STEP_METRICS,
    WHOLE_ANSWER,
)
from patching.pairs import Pair
from patching.readout import FINITE, Readout, read_answer, read_step
from patching.sites import Site, layerwise
from patching.sources import HOSTS, RUNS, Donor, Value, draw_unrelated, other, unrelated
from patching.tabulate import in_order, placed, read_answers, readable, rows_of
from patching.writing import (
    Given,
    Write,
    beginning,
    edits_of,
    first_step,
    no_sizes,
    single_pass_edits,
    with_sight,
)
from traces.answer import Forced, Script
from traces.model import CodiModel
from traces.placeholder import run_single_pass, single_pass_length
from traces.rows import Rows
from traces.thought import Block, Run, run_blocks
from traces.tokens import encode, positions_needed, texts


@dataclass(frozen=True)
class Plan:
    """What every block of a sweep has in common; `sweep_cells` says what the options mean."""

    metrics: dict[str, Any]  # by name; a function of `Reading`, or the name itself for those that we have
    step_metrics: dict[str, Callable]
    draws: int  # of unrelated donors; 0 where no cell has one
    means: Means
    seed: int
    max_new_tokens: int
    always: tuple[Edge, ...]
    protocol: str
    cells_per_forward: int
    remote: bool | str

    @property
    def on_answers(self) -> list[str]:
        return [name for name in self.metrics if name in ANSWER_METRICS]

    @property
    def unpatched(self) -> int:
        """How many unpatched runs each block begins with: clean, corrupted, and the draws of unrelated donors."""
        return len(RUNS) - 1 + self.draws


class Batch(NamedTuple):
    """What one batch of pairs gave: rows with the columns of `tabulate.ORDER`, and what befell on the way."""

    rows: pd.DataFrame
    failed: tuple[tuple[str, str], ...] = ()  # pair_id and reason of pairs without rows
    halvings: int = 0  # how often memory ran out, and fewer cells were run at once


# Called for each batch with its place, how many there are, and what computes it: saves what is new, gives back what was
# saved, and `None` where a batch is somebody else's.
Keep = Callable[[int, int, Callable[[], Batch]], Batch | None]


def nothing_kept(place: int, count: int, compute: Callable[[], Batch]) -> Batch | None:
    """Compute every batch, save none."""
    return compute()


def sweep(
    model: CodiModel,
    pairs: Sequence[Pair],
    sites: Sequence[Site] | None = None,
    sources: Sequence[Callable[[str], str] | Value] = (other, unrelated),
    directions: Sequence[str] = tuple(HOSTS),
    metrics: Sequence[Any] = DEFAULT_METRICS,
    freeze: Sequence[str] = (),
    draws: int = 1,
    cuts: Sequence[Edge] = (),
    **options: Any,
) -> pd.DataFrame:
    """Patch every site from every source in every direction: one row per pair × cell × metric.

    `sites` defaults to the original experiment's, one layer at all steps; `freeze` holds routes at the host's values
    (R, K_T, K_A), `cuts` are edges knocked out of the patched runs, a drawn source has so many `draws`. `options` are
    those of `sweep_cells`. Raises ValueError for a pair that is no contrast under the model's tokenizer, all of them
    named.
    """
    ready, excluded = prepare(model, pairs)
    if excluded:
        raise ValueError("; ".join(reason for _, reason in excluded))
    cells = grid(layerwise(model) if sites is None else sites, sources, directions, freeze, draws, cuts)
    return sweep_cells(model, ready, cells, metrics=metrics, **options)


def sweep_cells(
    model: CodiModel,
    ready: Sequence[Prepared],
    cells: Sequence[Cell],
    *,
    metrics: Sequence[Any] = DEFAULT_METRICS,
    step_metrics: Sequence[str] = (),
    donors: Sequence[Sequence[Donor]] | None = None,
    everyone: Sequence[Prepared] | None = None,
    seed: int = 0,
    always: Sequence[Edge] = (),
    protocol: str = "latent_loop",
    cells_per_forward: int = 64,
    pairs_per_batch: int = 8,
    max_new_tokens: int = 12,
    progress: bool = False,
    remote: bool | str = False,
    keep: Keep = nothing_kept,
) -> pd.DataFrame:
    """Run `cells` on prepared pairs; metrics are names or functions. Pairs without unrelated donor lack those rows.

    `step_metrics` are read at every latent step after the last one that a cell writes, and stand in rows with a
    `read_step`. Means are taken over `everyone`, which may be more pairs than those patched. `always` are edges cut in
    every run, the unpatched ones too. `protocol` `placeholder` is the original experiment's single pass. `keep` saves
    batch after batch, so that a sweep that was cut short goes on where it stopped.
    """
    if not ready or not cells:
        raise ValueError(f"nothing to sweep: {len(ready)} usable pairs and {len(cells)} cells")
    check_cells(model, cells)
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is unknown; use {' or '.join(PROTOCOLS)}")
    if protocol == "placeholder":
        check_single_pass(cells, metrics, step_metrics, always)
    if not metrics and not any(readable(model, cells, step) for step in range(model.n_latents if step_metrics else 0)):
        raise ValueError("nothing to measure: no metrics, and no latent step is read after what the cells write")
    for cut in always:
        check_edge(model, cut)
    check_room(model, ready, steps_of(model, cells))
    computed = sorted({cell.site.kind for cell in cells if isinstance(cell.source, Value)})
    averaged = [p.pair for p in everyone or ready]
    draws = max((cell.draw + 1 for cell in cells if cell.donor == "unrelated"), default=0)
    plan = Plan(
        metrics=known_metrics(metrics),
        step_metrics=known_step_metrics(step_metrics),
        draws=draws,
        means=record_means(model, averaged, computed, always=always) if computed else {},
        seed=seed,
        max_new_tokens=max_new_tokens,
        always=tuple(always),
        protocol=protocol,
        cells_per_forward=cells_per_forward,
        remote=remote,
    )
    donors = donors or draw_unrelated([p.pair for p in ready], [p.tokens for p in ready], seed, max(1, draws))
    divided = list(batches(ready, donors, pairs_per_batch))
    found = []
    with tqdm(total=len(ready), unit="pair", desc=f"{len(cells)} cells a pair", disable=not progress) as bar:
        for place, (batch, drawn) in enumerate(divided):
            kept = keep(place, len(divided), partial(run_batch, model, batch, drawn, cells, plan))
            found += [] if kept is None else [kept.rows]
            bar.update(len(batch))
    return in_order(pd.concat(found, ignore_index=True)) if found else empty_table()


def steps_of(model: CodiModel, cells: Sequence[Cell]) -> int:
    """How many latent steps the cells take: as many as the longest of them."""
    return max(model.n_latents, *(cell.n_latents or 0 for cell in cells))


def check_room(model: CodiModel, ready: Sequence[Prepared], steps: int) -> None:
    """Refuse, before anything runs, a pair that has no room for so many steps."""
    for p in ready:
        answer = len(p.forced) + max(map(len, p.tails)) - 1  # its EOS is scored, not fed
        need = positions_needed(model, p.tokens, answer, steps)
        if need > model.n_positions:
            raise ValueError(
                f"pair {p.pair.pair_id}: with {steps} latent steps it needs {need} positions, the model has "
                f"{model.n_positions}; take fewer steps or drop the pair"
            )


def known_metrics(metrics: Sequence[Any]) -> dict[str, Any]:
    """Metrics by name; ValueError for a name that is none."""
    chosen = {metric if isinstance(metric, str) else metric.__name__: metric for metric in metrics}
    if missing := [name for name, metric in chosen.items() if isinstance(metric, str) and name not in METRICS]:
        raise ValueError(f"metric {missing[0]!r} is unknown; use {', '.join(METRICS)} or a function")
    return chosen


def known_step_metrics(names: Sequence[str]) -> dict[str, Callable]:
    """The same of what is read at a latent step."""
    known = STEP_METRICS | {name: LOGIT_METRICS[name] for name in LENS_METRICS}
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"metric {missing[0]!r} cannot be read at a latent step; use {', '.join(known)}")
    return {name: known[name] for name in names}


def batches(
    ready: Sequence[Prepared], donors: Sequence[Sequence[Donor]], size: int
) -> Iterator[tuple[list[Prepared], list[Sequence[Donor]]]]:
    """Batches of pairs with equally many forced tokens, questions of like length together (less padding)."""

    def forced(prepared: Prepared) -> tuple[int, int]:
        return len(prepared.forced), prepared.shared

    paired = sorted(zip(ready, donors, strict=True), key=lambda item: (forced(item[0]), item[0].tokens, item[0].rank))
    while paired:
        same = [item for item in paired[:size] if forced(item[0]) == forced(paired[0][0])]
        paired = paired[len(same) :]
        yield [item[0] for item in same], [item[1] for item in same]


def questions_of(model: CodiModel, batch: Sequence[Prepared], donors: Sequence[Sequence[Donor]], plan: Plan) -> Rows:
    """The questions of a row, the pair's two and its donors', each read by an unpatched run."""
    questions = [
        [p.pair.clean.question, p.pair.corrupted.question]
        + [drawn[i].question if i < len(drawn) else p.pair.clean.question for i in range(plan.draws)]
        for p, drawn in zip(batch, donors, strict=True)
    ]
    return encode(model, questions, range(plan.unpatched))


def script_of(batch: Sequence[Prepared], plan: Plan) -> Script:
    """What is forced: what both answers share, and on branches the rest of each where it is scored."""
    trunk = torch.tensor([p.forced for p in batch])
    if not set(WHOLE_ANSWER) & set(plan.metrics):
        return Script(trunk)
    branches = []
    for side in range(2):
        tails = [p.tails[side] for p in batch]
        longest = max(map(len, tails))
        branches.append(torch.tensor([[*tail, *[-1] * (longest - len(tail))] for tail in tails]))
    return Script(trunk, tuple(branches), batch[0].shared)


def run_batch(
    model: CodiModel, batch: Sequence[Prepared], donors: Sequence[Sequence[Donor]], cells: Sequence[Cell], plan: Plan
) -> Batch:
    """All cells of a batch of pairs in one session, block after block, those that begin at like steps together."""
    order = sorted(range(len(cells)), key=lambda i: first_step(model, cells[i].site, cells[i].cuts))
    parts = [order[start : start + plan.cells_per_forward] for start in range(0, len(order), plan.cells_per_forward)]
    read, steps = questions_of(model, batch, donors, plan), steps_of(model, cells)
    blocks = [block_of(model, batch, read, [cells[i] for i in part], plan, steps) for part in parts]
    new = plan.max_new_tokens if plan.on_answers else 0
    if plan.protocol == "placeholder":
        runs = [
            run_single_pass(
                model, b.rows, b.script, edits=b.edits, measure=b.measure, max_new_tokens=new, remote=plan.remote
            )
            for b in blocks
        ]
    else:
        runs = run_blocks(model, blocks, max_new_tokens=new, n_latents=steps, remote=plan.remote)
    frames = []
    for part, done in zip(parts, runs, strict=True):
        for frame in frames_of(model, batch, donors, [cells[i] for i in part], done, plan):
            frames.append(frame.assign(cell=frame["cell"].map(dict(enumerate(part)))))
    return Batch(placed(pd.concat(frames, ignore_index=True), batch, [*plan.metrics, *plan.step_metrics]))


def block_of(
    model: CodiModel, batch: Sequence[Prepared], read: Rows, cells: Sequence[Cell], plan: Plan, steps: int
) -> Block:
    """One block of cells: how they stand beside the unpatched runs, what each is written, and what is measured."""
    first = plan.unpatched
    writes = [
        Write(
            first + index, RUNS.index(cell.host), cell.donor_cell, cell.site, cell.freeze,
            cell.source if isinstance(cell.source, Value) else None, cell.draw, cell.cuts, cell.n_latents,
        )
        for index, cell in enumerate(cells)
    ]  # fmt: skip
    hosts = torch.tensor([write.host for write in writes], device=model.device)
    rows = replace(read, reads=torch.cat([read.reads, hosts]))
    given = Given(plan.means, tuple(f"{plan.seed}:{p.pair.pair_id}" for p in batch))
    about, script = readout_of(model, batch, hosts, plan), script_of(batch, plan)
    sizes = no_sizes(rows) if about.of_edits else None

    def measure(forced: Forced) -> dict[str, Tensor]:
        return read_answer(about, forced, sizes)

    def measure_step(hidden: Tensor, logits: Tensor, step: int) -> dict[str, Tensor]:
        return read_step(about, hidden, logits)

    if plan.protocol == "placeholder":
        edits = single_pass_edits(model, rows, writes, given, sizes, single_pass_length(model, script))
        return Block(with_sight(model, rows, writes), script, edits, measure)
    rows = beginning(model, rows, writes)
    edits = edits_of(model, rows, writes, given, sizes)
    if plan.step_metrics:
        edits = replace(edits, read=measure_step)
    return Block(with_sight(model, rows, writes, steps, plan.always), script, edits, measure)


def frames_of(
    model: CodiModel,
    batch: Sequence[Prepared],
    donors: Sequence[Sequence[Donor]],
    cells: Sequence[Cell],
    done: Run,
    plan: Plan,
) -> list[pd.DataFrame]:
    """What a block measured as rows: the answer's, then each step's."""
    values = {name: value.double().cpu().numpy() for name, value in done.measured.items() if name != FINITE}
    if done.tokens is not None:
        values |= read_answers(batch, texts(model, done.tokens), plan.on_answers, plan.unpatched)
    frames = [rows_of(batch, donors, cells, values, plan.protocol)] if values else []
    for step, found in enumerate(done.at_steps if plan.step_metrics else ()):
        if kept := readable(model, cells, step):
            values = {name: value[:, :, kept].double().cpu().numpy() for name, value in found.items()}
            frame = rows_of(batch, donors, [cells[i] for i in kept], values, plan.protocol, step)
            frames.append(frame.assign(cell=frame["cell"].map(dict(enumerate(kept)))))
    return frames


def readout_of(model: CodiModel, batch: Sequence[Prepared], hosts: Tensor, plan: Plan) -> Readout:
    """What the block's traces need to know to measure."""
    named = (*EOT_METRICS, *ANSWER_METRICS, *EDIT_METRICS)
    return Readout(
        unpatched=plan.unpatched,
        hosts=hosts,
        clean_token=torch.tensor([[[p.clean_token]] for p in batch], device=model.device),
        corrupted_token=torch.tensor([[[p.corrupted_token]] for p in batch], device=model.device),
        on_logits={name: LOGIT_METRICS.get(name, metric) for name, metric in plan.metrics.items() if name not in named},
        at_eot={name: EOT_METRICS[name] for name in plan.metrics if name in EOT_METRICS},
        at_steps=plan.step_metrics,
        of_edits=tuple(name for name in plan.metrics if name in EDIT_METRICS),
    )
