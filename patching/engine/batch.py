"""One batch of pairs: encode its questions once, run its cells block by block, and return rows."""

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
from codi_tracing.patching.engine.batch_store import BatchResult
from codi_tracing.patching.engine.means import Means
from codi_tracing.patching.engine.partition import blocks_of, jobs_of, steps_of
from codi_tracing.patching.engine.readout import FINITE, Readout, read_answer, read_step
from codi_tracing.patching.engine.table_rows import read_answers, rows_of, with_order
from codi_tracing.patching.engine.visibility import with_first_steps, with_sight
from codi_tracing.patching.engine.writes import EditNorms, ValueInputs, edits_of, single_pass_edits
from codi_tracing.patching.interventions.cells import Cell, CellWrite, readable
from codi_tracing.patching.interventions.edges import Edge
from codi_tracing.patching.interventions.sources import RUNS
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
class SweepSettings:
    """What all blocks of a sweep share; `sweep_cells` documents the options."""

    metrics: dict[str, Any]  # name -> a function of `Reading`, or the name itself for built-in metrics
    step_metrics: dict[str, Callable]
    draws: int  # of unrelated donors; 0 without such cells
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
        """Number of unpatched runs at the start of each block: clean, corrupted, and the draws of unrelated donors."""
        return len(RUNS) - 1 + self.draws


@dataclass
class ForwardSize:
    """How many cells run in one forward, and how often memory ran out and halved that."""

    cells: int
    halvings: int = 0


class StartedBatch(NamedTuple):
    """A batch whose sessions were started: the cells of each block, and the sessions."""

    blocks: list[list[int]]
    sessions: list[PendingResult]


def no_progress(states: str) -> None:
    """Show no job states."""


def questions_of(
    model: CodiModel, batch: Sequence[TokenizedPair], donors: Sequence[Sequence[Donor]], settings: SweepSettings
) -> Rows:
    """Each pair's two questions and its donors', each encoded for one unpatched run."""
    questions = [
        [p.pair.clean.question, p.pair.corrupted.question]
        + [drawn[i].question if i < len(drawn) else p.pair.clean.question for i in range(settings.draws)]
        for p, drawn in zip(batch, donors, strict=True)
    ]
    return encode(model, questions, range(settings.unpatched))


def script_of(batch: Sequence[TokenizedPair], settings: SweepSettings) -> Script:
    """The forced tokens: what both answers share, and one branch per answer if whole answers are scored."""
    trunk, start = torch.tensor([p.forced for p in batch]), bool(set(EOT_METRICS) & set(settings.metrics))
    if settings.protocol == "single_pass":
        return Script(trunk)
    if not set(WHOLE_ANSWER) & set(settings.metrics):
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
    settings: SweepSettings,
    forward: ForwardSize,
    started: StartedBatch | None = None,
    progress: Callable[[str], None] = no_progress,
) -> BatchResult:
    """All cells of a batch of pairs; if memory runs out, half as many cells run at once, then half as many pairs.

    `started` is the batch if its sessions already run; `progress` hears the states of remote jobs. Raises MemoryError
    if one cell of one pair does not fit.
    """
    before = forward.halvings
    while True:
        try:
            started = started or start_cells(model, batch, donors, cells, settings, forward.cells)
            result = collect(model, batch, donors, cells, settings, started, progress)
            return result._replace(halvings=forward.halvings - before)
        except (MemoryError, RuntimeError) as error:
            started = None
            if not out_of_memory(error):
                raise
        # Outside the handler: the error holds the failed forward's tensors.
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        forward.halvings += 1
        if forward.cells > 1:
            forward.cells = ceil(min(forward.cells, len(cells)) / 2)
        elif len(batch) > 1:
            half = ceil(len(batch) / 2)
            parts = [
                run_batch(model, batch[part], donors[part], cells, settings, forward)
                for part in (slice(half), slice(half, None))
            ]
            rows = pd.concat([part.rows for part in parts], ignore_index=True)
            return BatchResult(rows, (*parts[0].failed, *parts[1].failed), forward.halvings - before)
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
    settings: SweepSettings,
    at_once: int,
) -> StartedBatch:
    """Start all cells of a batch of pairs: one session here, on a deployment jobs of `remote.cells_per_job` cells."""
    blocks = blocks_of(model, cells, at_once)
    questions, steps = questions_of(model, batch, donors, settings), steps_of(model, cells)
    makers = [partial(block_of, model, tuple(batch), [cells[i] for i in block], settings, steps) for block in blocks]
    new = settings.max_new_tokens if settings.on_answers else 0
    begin: Callable[..., PendingResult] = partial(start_blocks, n_latents=steps)
    if settings.protocol == "single_pass":
        begin = start_single_passes
    place = deployment_of(model, settings.remote)
    jobs = jobs_of(makers, at_once, None if place is None else place.cells_per_job)
    return StartedBatch(
        blocks, [begin(model, questions, job, max_new_tokens=new, remote=settings.remote) for job in jobs]
    )


def collect(
    model: CodiModel,
    batch: Sequence[TokenizedPair],
    donors: Sequence[Sequence[Donor]],
    cells: Sequence[Cell],
    settings: SweepSettings,
    started: StartedBatch,
    progress: Callable[[str], None],
) -> BatchResult:
    """Wait for the sessions of a batch, and build its rows."""
    while waiting := [session.state for session in started.sessions if not session.ready()]:
        progress(", ".join(f"{count} {state.lower()}" for state, count in Counter(waiting).items()))
    runs = [run for session in started.sessions for run in runs_of(session.result())]
    frames = []
    for block, done in zip(started.blocks, runs, strict=True):
        for frame in frames_of(model, batch, donors, [cells[i] for i in block], done, settings):
            frames.append(frame.assign(cell=frame["cell"].map(dict(enumerate(block)))))
    rows = with_order(pd.concat(frames, ignore_index=True), batch, [*settings.metrics, *settings.step_metrics])
    finite = [done.measured[FINITE] for done in runs]
    once = torch.cat([finite[0], *(block[:, settings.unpatched :] for block in finite[1:])], 1)
    failed = not_finite(batch, once, str(model.dtype).removeprefix("torch."))
    return BatchResult(rows[~rows["pair_id"].isin([pair for pair, _ in failed])], failed)


def not_finite(batch: Sequence[TokenizedPair], finite: Tensor, dtype: str) -> tuple[tuple[str, str], ...]:
    """Pairs with a run whose logits are infinite or NaN (`finite[pair, run]` is false), each with the reason."""
    bad = (~finite).sum(1).tolist()
    return tuple(
        (str(p.pair.pair_id), f"the logits of {count} of its {finite.shape[1]} runs are not finite in {dtype}")
        for p, count in zip(batch, bad, strict=True)
        if count
    )


def block_of(
    model: CodiModel,
    batch: Sequence[TokenizedPair],
    cells: Sequence[Cell],
    settings: SweepSettings,
    steps: int,
    questions: Rows,
) -> CellBlock:
    """One block of cells: its rows, forced tokens, edits and measurements.

    Called inside the session, where the model is, so that a remote job receives cells and not tensors.
    """
    first = settings.unpatched
    writes = [CellWrite(first + i, RUNS.index(cell.host), cell.donor_run, cell) for i, cell in enumerate(cells)]
    hosts = torch.tensor([write.host for write in writes], device=model.device)
    rows = replace(questions, reads=torch.cat([questions.reads, hosts]))
    inputs = ValueInputs(settings.means, tuple(f"{settings.seed}:{p.pair.pair_id}" for p in batch))
    readout, script = readout_of(model, batch, hosts, settings), script_of(batch, settings).to(model.device)
    norms = EditNorms.zeros(rows) if readout.of_edits else None

    def measure(forced: Forced) -> dict[str, Tensor]:
        return read_answer(readout, forced, norms)

    def measure_step(hidden: Tensor, logits: Tensor, step: int) -> dict[str, Tensor]:
        return read_step(readout, hidden, logits)

    if settings.protocol == "single_pass":
        edits = single_pass_edits(model, rows, writes, inputs, norms, single_pass_length(model, script))
        return CellBlock(with_sight(model, rows, writes), script, edits, measure)
    rows = with_first_steps(model, rows, writes)
    edits = edits_of(model, rows, writes, inputs, norms)
    if settings.step_metrics:
        edits = replace(edits, read=measure_step)
    return CellBlock(with_sight(model, rows, writes, steps, settings.always), script, edits, measure)


def frames_of(
    model: CodiModel,
    batch: Sequence[TokenizedPair],
    donors: Sequence[Sequence[Donor]],
    cells: Sequence[Cell],
    done: Run,
    settings: SweepSettings,
) -> list[pd.DataFrame]:
    """A block's measurements as rows: the answer's, then each step's."""
    values = {name: value.double().cpu().numpy() for name, value in done.measured.items() if name != FINITE}
    if done.tokens is not None:
        values |= read_answers(batch, texts(model, done.tokens), settings.on_answers, settings.unpatched)
    frames = [rows_of(batch, donors, cells, values, settings.protocol)] if values else []
    for step, measured in enumerate(done.at_steps if settings.step_metrics else ()):
        if chosen := readable(model, cells, step):
            values = {name: value[:, :, chosen].double().cpu().numpy() for name, value in measured.items()}
            frame = rows_of(batch, donors, [cells[i] for i in chosen], values, settings.protocol, step)
            frames.append(frame.assign(cell=frame["cell"].map(dict(enumerate(chosen)))))
    return frames


def readout_of(model: CodiModel, batch: Sequence[TokenizedPair], hosts: Tensor, settings: SweepSettings) -> Readout:
    """What a block's traces measure."""
    others = (*EOT_METRICS, *ANSWER_METRICS, *EDIT_METRICS)
    return Readout(
        unpatched=settings.unpatched,
        hosts=hosts,
        clean_token=torch.tensor([[[p.clean_token]] for p in batch], device=model.device),
        corrupted_token=torch.tensor([[[p.corrupted_token]] for p in batch], device=model.device),
        on_logits={
            name: LOGIT_METRICS.get(name, metric) for name, metric in settings.metrics.items() if name not in others
        },
        at_eot={name: EOT_METRICS[name] for name in settings.metrics if name in EOT_METRICS},
        at_steps=settings.step_metrics,
        of_edits=tuple(name for name in settings.metrics if name in EDIT_METRICS),
    )
