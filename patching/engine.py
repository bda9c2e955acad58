"""The sweep: pairs × directions × sources × sites -> the table. The only loop over pairs.

All cells of a pair run together over one uncopied question, in blocks of bounded size (see `traces.thought`). The first
cells of every block are the unpatched clean, corrupted and unrelated runs: hosts, donors and references at once, so a
patch is a copy between cells of the same forward, and a cell is compared with unpatched runs of its own block.
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
from patching.readout import Readout, read_answer, read_step
from patching.sites import Site, layerwise
from patching.sources import HOSTS, RUNS, Donor, Value, draw_unrelated, other, unrelated
from patching.tabulate import in_order, placed, read_answers, readable, rows_of
from patching.writing import Given, Write, edits_of, no_sizes, single_pass_edits, with_sight
from traces.answer import Forced, Script
from traces.model import CodiModel
from traces.placeholder import run_single_pass, single_pass_length
from traces.rows import Rows
from traces.thought import run
from traces.tokens import encode, positions_needed, texts


@dataclass(frozen=True)
class Plan:
    """What every block of a sweep has in common; `sweep_cells` says what the options mean."""

    metrics: dict[str, Any]  # by name; a function of `Reading`, or the name itself for those that we have
    step_metrics: dict[str, Callable]
    draws: int
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
        """How many unpatched runs each block begins with."""
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
    draws = 1 + max(cell.draw for cell in cells)
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
    donors = donors or draw_unrelated([p.pair for p in ready], [p.tokens for p in ready], seed, draws)
    cut = list(batches(ready, donors, pairs_per_batch))
    found = []
    with tqdm(total=len(ready), unit="pair", desc=f"{len(cells)} cells a pair", disable=not progress) as bar:
        for place, (batch, drawn) in enumerate(cut):
            kept = keep(place, len(cut), partial(run_batch, model, batch, drawn, cells, plan))
            found += [] if kept is None else [kept.rows]
            bar.update(len(batch))
    return in_order(pd.concat(found, ignore_index=True)) if found else empty_table()


def run_batch(
    model: CodiModel, batch: Sequence[Prepared], donors: Sequence[Sequence[Donor]], cells: Sequence[Cell], plan: Plan
) -> Batch:
    """All cells of a batch of pairs, block after block."""
    frames = []
    for start in range(0, len(cells), plan.cells_per_forward):
        found = run_block(model, batch, donors, cells[start : start + plan.cells_per_forward], plan)
        frames += [frame.assign(cell=frame["cell"] + start) for frame in found]
    return Batch(placed(pd.concat(frames, ignore_index=True), batch, [*plan.metrics, *plan.step_metrics]))


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


def lay_out(
    model: CodiModel, batch: Sequence[Prepared], donors: Sequence[Sequence[Donor]], cells: Sequence[Cell], plan: Plan
) -> Rows:
    """The questions of a row, the pair's two and its donors', and the cells, unpatched runs first."""
    questions = [
        [p.pair.clean.question, p.pair.corrupted.question]
        + [drawn[i].question if i < len(drawn) else p.pair.clean.question for i in range(plan.draws)]
        for p, drawn in zip(batch, donors, strict=True)
    ]
    return encode(model, questions, [*range(plan.unpatched), *(RUNS.index(cell.host) for cell in cells)])


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


def run_block(
    model: CodiModel,
    batch: Sequence[Prepared],
    donors: Sequence[Sequence[Donor]],
    cells: Sequence[Cell],
    plan: Plan,
) -> list[pd.DataFrame]:
    """One session: the cells of one block on one batch of pairs, measured; the answer's rows, then each step's."""
    first = plan.unpatched
    writes = [
        Write(
            first + index, RUNS.index(cell.host), cell.donor_cell, cell.site, cell.freeze,
            cell.source if isinstance(cell.source, Value) else None, cell.draw, cell.cuts, cell.n_latents,
        )
        for index, cell in enumerate(cells)
    ]  # fmt: skip
    rows = lay_out(model, batch, donors, cells, plan)
    given = Given(plan.means, tuple(f"{plan.seed}:{p.pair.pair_id}" for p in batch))
    about = readout_of(model, batch, cells, plan)
    sizes = no_sizes(rows) if about.of_edits else None

    def measure(forced: Forced) -> dict[str, Tensor]:
        return read_answer(about, forced, sizes)

    def measure_step(hidden: Tensor, logits: Tensor, step: int) -> dict[str, Tensor]:
        return read_step(about, hidden, logits)

    options: dict[str, Any] = {
        "measure": measure,
        "max_new_tokens": plan.max_new_tokens if plan.on_answers else 0,
        "remote": plan.remote,
    }
    if plan.protocol == "placeholder":
        script = script_of(batch, plan)
        edits = single_pass_edits(model, rows, writes, given, sizes, single_pass_length(model, script))
        done = run_single_pass(model, with_sight(model, rows, writes), script, edits=edits, **options)
    else:
        steps = steps_of(model, cells)
        edits = edits_of(model, rows, writes, given, sizes)
        if plan.step_metrics:
            edits = replace(edits, read=measure_step)
        done = run(
            model, with_sight(model, rows, writes, steps, plan.always), script_of(batch, plan),
            edits=edits, n_latents=steps, **options,
        )  # fmt: skip
    values = {name: value.double().cpu().numpy() for name, value in done.measured.items()}
    if done.tokens is not None:
        values |= read_answers(batch, texts(model, done.tokens), plan.on_answers, plan.unpatched)
    frames = [rows_of(batch, donors, cells, values, plan.protocol)] if values else []
    for step, found in enumerate(done.at_steps if plan.step_metrics else ()):
        if kept := readable(model, cells, step):
            values = {name: value[:, :, kept].double().cpu().numpy() for name, value in found.items()}
            frame = rows_of(batch, donors, [cells[i] for i in kept], values, plan.protocol, step)
            frames.append(frame.assign(cell=frame["cell"].map(dict(enumerate(kept)))))
    return frames


def readout_of(model: CodiModel, batch: Sequence[Prepared], cells: Sequence[Cell], plan: Plan) -> Readout:
    """What the block's traces need to know to measure."""
    named = (*EOT_METRICS, *ANSWER_METRICS, *EDIT_METRICS)
    return Readout(
        unpatched=plan.unpatched,
        hosts=torch.tensor([RUNS.index(cell.host) for cell in cells], device=model.device),
        clean_token=torch.tensor([[[p.clean_token]] for p in batch], device=model.device),
        corrupted_token=torch.tensor([[[p.corrupted_token]] for p in batch], device=model.device),
        on_logits={name: LOGIT_METRICS.get(name, metric) for name, metric in plan.metrics.items() if name not in named},
        at_eot={name: EOT_METRICS[name] for name in plan.metrics if name in EOT_METRICS},
        at_steps=plan.step_metrics,
        of_edits=tuple(name for name in plan.metrics if name in EDIT_METRICS),
    )
