"""One batch of pairs: its questions read once, its cells run block after block, and what they gave as rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from codi_tracing.patching.answer_metrics import ANSWER_METRICS, EDIT_METRICS, WHOLE_ANSWER
from codi_tracing.patching.engine.means import Means
from codi_tracing.patching.engine.partition import blocks_of, jobs_of, steps_of
from codi_tracing.patching.engine.readout import FINITE, Readout, read_answer, read_step
from codi_tracing.patching.engine.table_rows import placed, read_answers, rows_of
from codi_tracing.patching.engine.visibility import beginning, with_sight
from codi_tracing.patching.engine.writes import Given, edits_of, no_sizes, single_pass_edits
from codi_tracing.patching.interventions.cells import Cell, Write, readable
from codi_tracing.patching.interventions.edges import Edge
from codi_tracing.patching.interventions.sources import RUNS, Value
from codi_tracing.patching.metrics import EOT_METRICS, LOGIT_METRICS
from codi_tracing.patching.pairs.donors import Donor
from codi_tracing.patching.pairs.tokenized import TokenizedPair
from codi_tracing.traces.loop.answer import Forced, Script
from codi_tracing.traces.loop.rows import Rows
from codi_tracing.traces.loop.single_pass import single_pass_length, start_single_passes
from codi_tracing.traces.loop.thought import CellBlock, Run, runs_of, start_blocks
from codi_tracing.traces.loop.tokens import encode, texts
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.remote.session import PendingResult, deployment_of


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
    remote: bool | str | None

    @property
    def on_answers(self) -> list[str]:
        return [name for name in self.metrics if name in ANSWER_METRICS]

    @property
    def unpatched(self) -> int:
        """How many unpatched runs each block begins with: clean, corrupted, and the draws of unrelated donors."""
        return len(RUNS) - 1 + self.draws


@dataclass
class Pace:
    """How many cells run at once, from here on, and how often memory ran out and halved it."""

    cells: int
    halvings: int = 0


class Running(NamedTuple):
    """A batch that was begun: which cells each of its blocks has, and the sessions that run them."""

    parts: list[list[int]]
    started: list[PendingResult]


Tell = Callable[[str], None]  # hears how many jobs are in which state


def nobody(states: str) -> None:
    """Tell nobody."""


class Batch(NamedTuple):
    """What one batch of pairs gave: rows with the columns of `tabulate.ORDER`, and what befell on the way."""

    rows: pd.DataFrame
    failed: tuple[tuple[str, str], ...] = ()  # pair_id and reason of pairs without rows
    halvings: int = 0  # how often memory ran out, and fewer cells were run at once


def questions_of(
    model: CodiModel, batch: Sequence[TokenizedPair], donors: Sequence[Sequence[Donor]], plan: Plan
) -> Rows:
    """The questions of a row, the pair's two and its donors', each read by an unpatched run."""
    questions = [
        [p.pair.clean.question, p.pair.corrupted.question]
        + [drawn[i].question if i < len(drawn) else p.pair.clean.question for i in range(plan.draws)]
        for p, drawn in zip(batch, donors, strict=True)
    ]
    return encode(model, questions, range(plan.unpatched))


def script_of(batch: Sequence[TokenizedPair], plan: Plan) -> Script:
    """What is forced: what both answers share, and on branches the rest of each where it is scored."""
    trunk, start = torch.tensor([p.forced for p in batch]), bool(set(EOT_METRICS) & set(plan.metrics))
    if plan.protocol == "single_pass":
        return Script(trunk)
    if not set(WHOLE_ANSWER) & set(plan.metrics):
        return Script(trunk, start=start)
    branches = []
    for side in range(2):
        tails = [p.tails[side] for p in batch]
        longest = max(map(len, tails))
        branches.append(torch.tensor([[*tail, *[-1] * (longest - len(tail))] for tail in tails]))
    return Script(trunk, tuple(branches), batch[0].shared, start)


def run_batch(
    model: CodiModel,
    batch: Sequence[TokenizedPair],
    donors: Sequence[Sequence[Donor]],
    cells: Sequence[Cell],
    plan: Plan,
    pace: Pace,
    begun: Running | None = None,
    tell: Tell = nobody,
) -> Batch:
    """All cells of a batch of pairs. Where memory runs out, half as many cells run at once, then half as many pairs.

    `begun` is what was sent ahead of this batch; `tell` hears where what is sent stands. Raises MemoryError where one
    cell of one pair does not fit.
    """
    before = pace.halvings
    while True:
        try:
            running = start_cells(model, batch, donors, cells, plan, pace.cells) if begun is None else begun
            found = collect(model, batch, donors, cells, plan, running, tell)
            return found._replace(halvings=pace.halvings - before)
        except (MemoryError, RuntimeError) as error:
            begun = None
            if not out_of_memory(error):
                raise
        # The failed forward's tensors hang on the error, which is gone by here.
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        pace.halvings += 1
        if pace.cells > 1:
            pace.cells = ceil(min(pace.cells, len(cells)) / 2)
        elif len(batch) > 1:
            half = ceil(len(batch) / 2)
            parts = [
                run_batch(model, batch[part], donors[part], cells, plan, pace)
                for part in (slice(half), slice(half, None))
            ]
            rows = pd.concat([part.rows for part in parts], ignore_index=True)
            return Batch(rows, (*parts[0].failed, *parts[1].failed), pace.halvings - before)
        else:
            raise MemoryError(
                f"pair {batch[0].pair.pair_id}: one cell of one pair does not fit into memory; use a lower precision "
                "(dtype) or a larger device"
            )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(sign in str(error) for sign in ("can't allocate memory", "out of memory", "not enough memory"))


def start_cells(
    model: CodiModel,
    batch: Sequence[TokenizedPair],
    donors: Sequence[Sequence[Donor]],
    cells: Sequence[Cell],
    plan: Plan,
    at_once: int,
) -> Running:
    """Begin all cells of a batch of pairs, block after block, those that begin at like steps together.

    Here it is one session, which is over then; on a deployment as many jobs as `remote.cells_per_job` makes of it.
    """
    parts = blocks_of(model, cells, at_once)
    read, steps = questions_of(model, batch, donors, plan), steps_of(model, cells)
    makers = [partial(block_of, model, tuple(batch), [cells[i] for i in part], plan, steps) for part in parts]
    new = plan.max_new_tokens if plan.on_answers else 0
    begin: Callable[..., PendingResult] = partial(start_blocks, n_latents=steps)
    if plan.protocol == "single_pass":
        begin = start_single_passes
    place = deployment_of(model, plan.remote)
    jobs = jobs_of(makers, at_once, None if place is None else place.cells_per_job)
    started = [begin(model, read, job, max_new_tokens=new, remote=plan.remote) for job in jobs]
    return Running(parts, started)


def collect(
    model: CodiModel,
    batch: Sequence[TokenizedPair],
    donors: Sequence[Sequence[Donor]],
    cells: Sequence[Cell],
    plan: Plan,
    running: Running,
    tell: Tell = nobody,
) -> Batch:
    """Wait for what was begun, and put its rows together."""
    while waiting := [one.state for one in running.started if not one.ready()]:
        tell(", ".join(f"{count} {state.lower()}" for state, count in Counter(waiting).items()))
    parts, runs = running.parts, [run for one in running.started for run in runs_of(one.result())]
    frames = []
    for part, done in zip(parts, runs, strict=True):
        for frame in frames_of(model, batch, donors, [cells[i] for i in part], done, plan):
            frames.append(frame.assign(cell=frame["cell"].map(dict(enumerate(part)))))
    rows = placed(pd.concat(frames, ignore_index=True), batch, [*plan.metrics, *plan.step_metrics])
    finite = [done.measured[FINITE] for done in runs]
    each_once = torch.cat([finite[0], *(block[:, plan.unpatched :] for block in finite[1:])], 1)
    failed = not_finite(batch, each_once, str(model.dtype).removeprefix("torch."))
    return Batch(rows[~rows["pair_id"].isin([pair for pair, _ in failed])], failed)


def not_finite(batch: Sequence[TokenizedPair], finite: Tensor, dtype: str) -> tuple[tuple[str, str], ...]:
    """The pairs of which some run's logits overflowed or are no numbers (`finite[pair, run]`), each with the reason."""
    bad = (~finite).sum(1).tolist()
    return tuple(
        (str(p.pair.pair_id), f"the logits of {count} of its {finite.shape[1]} runs are not finite in {dtype}")
        for p, count in zip(batch, bad, strict=True)
        if count
    )


def block_of(
    model: CodiModel, batch: Sequence[TokenizedPair], cells: Sequence[Cell], plan: Plan, steps: int, read: Rows
) -> CellBlock:
    """One block of cells: how they stand beside the unpatched runs, what each is written, and what is measured.

    Called inside the session, where the model is: what is sent there is the cells, and not their tensors.
    """
    first = plan.unpatched
    writes = [
        Write(
            first + index, RUNS.index(cell.host), cell.donor_cell, cell.site, cell.freeze,
            cell.source if isinstance(cell.source, Value) else None, cell.draw, cell.knockouts, cell.n_latents,
        )
        for index, cell in enumerate(cells)
    ]  # fmt: skip
    hosts = torch.tensor([write.host for write in writes], device=model.device)
    rows = replace(read, reads=torch.cat([read.reads, hosts]))
    given = Given(plan.means, tuple(f"{plan.seed}:{p.pair.pair_id}" for p in batch))
    about, script = readout_of(model, batch, hosts, plan), script_of(batch, plan).to(model.device)
    sizes = no_sizes(rows) if about.of_edits else None

    def measure(forced: Forced) -> dict[str, Tensor]:
        return read_answer(about, forced, sizes)

    def measure_step(hidden: Tensor, logits: Tensor, step: int) -> dict[str, Tensor]:
        return read_step(about, hidden, logits)

    if plan.protocol == "single_pass":
        edits = single_pass_edits(model, rows, writes, given, sizes, single_pass_length(model, script))
        return CellBlock(with_sight(model, rows, writes), script, edits, measure)
    rows = beginning(model, rows, writes)
    edits = edits_of(model, rows, writes, given, sizes)
    if plan.step_metrics:
        edits = replace(edits, read=measure_step)
    return CellBlock(with_sight(model, rows, writes, steps, plan.always), script, edits, measure)


def frames_of(
    model: CodiModel,
    batch: Sequence[TokenizedPair],
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


def readout_of(model: CodiModel, batch: Sequence[TokenizedPair], hosts: Tensor, plan: Plan) -> Readout:
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
