"""The sweep: pairs × directions × sources × sites -> the table. The only loop over pairs.

All cells of a pair run together over one uncopied question, in blocks of bounded size (see `traces.thought`). Cells 0,
1 and 2 of every block are the unpatched clean, corrupted and unrelated runs: hosts, donors and references at once, so a
patch is a copy between cells of the same forward, and a cell is compared with unpatched runs of its own block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from analysis.table import check_table
from patching.contrast import text_faults, token_faults, tokenise
from patching.means import record_means
from patching.metrics import ANSWER_METRICS, DEFAULT_METRICS, LOGIT_METRICS, METRICS, Reading, read_all
from patching.pairs import Pair
from patching.sites import INSIDE, ROUTES, Site, check_freeze, layerwise
from patching.sources import HOSTS, RUNS, Donor, Value, draw_unrelated, other, source_name, unrelated
from patching.writing import Given, Write, edits_of, with_sight
from traces.model import CodiModel
from traces.rows import Rows
from traces.thought import encode, last_number, run, texts

PROTOCOL = "latent_loop"


class Cell(NamedTuple):
    """One patched run of every pair: what is written where, into which run."""

    direction: str
    source: Callable[[str], str] | Value
    site: Site
    freeze: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        return HOSTS[self.direction]

    @property
    def donor(self) -> str:
        """The run that is copied; with a computed value, the one that it may look at."""
        return other(self.host) if isinstance(self.source, Value) else self.source(self.host)


class Prepared(NamedTuple):
    """A pair under a tokenizer: what both answers share (forced) and the tokens at which they differ."""

    rank: int  # its place in the list of pairs
    pair: Pair
    tokens: int
    forced: tuple[int, ...]
    clean_token: int
    corrupted_token: int


def grid(
    sites: Sequence[Site],
    sources: Sequence[Callable[[str], str] | Value] = (other, unrelated),
    directions: Sequence[str] = tuple(HOSTS),
    freeze: Sequence[str] = (),
) -> list[Cell]:
    """Every direction × source × site, the routes in `freeze` held at the host's values."""
    for direction in directions:
        if direction not in HOSTS:
            raise ValueError(f"direction {direction!r} is unknown; use {' or '.join(HOSTS)}")
    check_freeze(freeze)
    held = tuple(route for route in ROUTES if route in freeze)
    return [Cell(direction, source, site, held) for direction in directions for source in sources for site in sites]


def prepare(model: CodiModel, pairs: Sequence[Pair]) -> tuple[list[Prepared], list[tuple[Pair, str]]]:
    """Tokenise both sides of each pair; what cannot be a contrast under this tokenizer comes back with its reason."""
    ready, excluded = [], []
    for index, pair in enumerate(pairs):
        tokens = tokenise(model, pair)
        if faults := [*text_faults(pair), *token_faults(pair, tokens)]:
            excluded.append((pair, f"pair {pair.pair_id}: {faults[0]}"))
            continue
        assert tokens.differ is not None
        (clean, corrupted), differ = tokens.answers, tokens.differ
        length = len(tokens.questions[0])
        ready.append(Prepared(index, pair, length, tuple(clean[:differ]), clean[differ], corrupted[differ]))
    return ready, excluded


def sweep(
    model: CodiModel,
    pairs: Sequence[Pair],
    sites: Sequence[Site] | None = None,
    sources: Sequence[Callable[[str], str] | Value] = (other, unrelated),
    directions: Sequence[str] = tuple(HOSTS),
    metrics: Sequence[Any] = DEFAULT_METRICS,
    freeze: Sequence[str] = (),
    **options: Any,
) -> pd.DataFrame:
    """Patch every site from every source in every direction: one row per pair × cell × metric.

    `sites` defaults to the original experiment's, one layer at all steps; `freeze` holds routes at the host's values
    (R, K_T, K_A). `options` are those of `sweep_cells`. Raises
    ValueError for a pair that is no contrast under the model's tokenizer, all of them named.
    """
    ready, excluded = prepare(model, pairs)
    if excluded:
        raise ValueError("; ".join(reason for _, reason in excluded))
    cells = grid(layerwise(model) if sites is None else sites, sources, directions, freeze)
    return sweep_cells(model, ready, cells, metrics=metrics, **options)


def sweep_cells(
    model: CodiModel,
    ready: Sequence[Prepared],
    cells: Sequence[Cell],
    *,
    metrics: Sequence[Any] = DEFAULT_METRICS,
    donors: Sequence[Donor | None] | None = None,
    everyone: Sequence[Prepared] | None = None,
    seed: int = 0,
    cells_per_forward: int = 64,
    pairs_per_batch: int = 8,
    max_new_tokens: int = 12,
    progress: bool = False,
    remote: bool | str = False,
) -> pd.DataFrame:
    """Run `cells` on prepared pairs; metrics are names or functions. Pairs without unrelated donor lack those rows.

    Means are taken over `everyone`, which may be more pairs than those patched.
    """
    if not ready or not cells:
        raise ValueError(f"nothing to sweep: {len(ready)} usable pairs and {len(cells)} cells")
    chosen = {metric if isinstance(metric, str) else metric.__name__: metric for metric in metrics}
    if missing := [name for name, metric in chosen.items() if isinstance(metric, str) and name not in METRICS]:
        raise ValueError(f"metric {missing[0]!r} is unknown; use {', '.join(METRICS)} or a function")
    if len(set(cells)) < len(cells):
        again = next(cell for i, cell in enumerate(cells) if cell in cells[:i])
        raise ValueError(f"{again.direction} of {again.site} occurs twice in the sweep; name each site once")
    for cell in cells:  # before anything runs
        cell.site.places(model)  # refuses layers and steps that do not exist
        if isinstance(cell.source, Value) and cell.site.kind not in (*INSIDE, "latent"):
            kinds = ", ".join(("latent", *INSIDE))
            raise ValueError(f"source {cell.source.name!r} cannot be written at {cell.site.kind!r}; use it at {kinds}")
    computed = {cell.site.kind for cell in cells if isinstance(cell.source, Value)}
    means = record_means(model, [p.pair for p in everyone or ready], sorted(computed)) if computed else {}
    donors = donors or draw_unrelated([p.pair for p in ready], [p.tokens for p in ready], seed)
    frames = []
    with tqdm(total=len(ready), unit="pair", desc=f"{len(cells)} cells a pair", disable=not progress) as bar:
        for batch, drawn in batches(ready, donors, pairs_per_batch):
            for start in range(0, len(cells), cells_per_forward):
                block = cells[start : start + cells_per_forward]
                given = Given(means, tuple(f"{seed}:{p.pair.pair_id}" for p in batch))
                frame = run_block(model, batch, drawn, block, chosen, max_new_tokens, remote, given)
                frames.append(frame.assign(cell=frame["cell"] + start))
            bar.update(len(batch))
    place = {str(p.pair.pair_id): p.rank for p in ready} | {name: i for i, name in enumerate(chosen)}
    table = pd.concat(frames, ignore_index=True)
    order = table[["pair_id", "metric"]].apply(lambda names: names.map(place)).assign(cell=table["cell"])
    return check_table(
        table.loc[order.sort_values([*order], kind="stable").index].drop(columns="cell").reset_index(drop=True)
    )


def batches(ready: Sequence[Prepared], donors: Sequence[Donor | None], size: int) -> Iterator[tuple[list, list]]:
    """Batches of pairs with equally many forced tokens, questions of like length together (less padding)."""
    paired = sorted(
        zip(ready, donors, strict=True), key=lambda item: (len(item[0].forced), item[0].tokens, item[0].rank)
    )
    while paired:
        same = [item for item in paired[:size] if len(item[0].forced) == len(paired[0][0].forced)]
        paired = paired[len(same) :]
        yield [item[0] for item in same], [item[1] for item in same]


def lay_out(model: CodiModel, batch: Sequence[Prepared], donors: Sequence[Donor | None], cells: Sequence[Cell]) -> Rows:
    """Three questions a row, and the cells, unpatched runs first."""
    questions = [
        [p.pair.clean.question, p.pair.corrupted.question, donor.question if donor else p.pair.clean.question]
        for p, donor in zip(batch, donors, strict=True)
    ]
    return encode(model, questions, [*range(len(RUNS)), *(RUNS.index(cell.host) for cell in cells)])


def run_block(model, batch, donors, cells, metrics, max_new_tokens, remote, given) -> pd.DataFrame:
    """One session: the cells of one block on one batch of pairs, measured."""
    first = len(RUNS)
    device = model.device
    hosts = torch.tensor([RUNS.index(cell.host) for cell in cells], device=device)
    clean_token = torch.tensor([[[p.clean_token]] for p in batch], device=device)
    corrupted_token = torch.tensor([[[p.corrupted_token]] for p in batch], device=device)
    on_logits = {n: LOGIT_METRICS.get(n, m) for n, m in metrics.items() if n not in ANSWER_METRICS}

    def measure(logits: Tensor) -> dict[str, Tensor]:
        clean, corrupted = logits[:, 0:1], logits[:, 1:2]
        reading = Reading(logits[:, first:], logits[:, hosts], clean, corrupted, clean_token, corrupted_token)
        return read_all(on_logits, reading)

    decoded = [name for name in metrics if name in ANSWER_METRICS]
    writes = [
        Write(
            first + index,
            RUNS.index(cell.host),
            RUNS.index(cell.donor),
            cell.site,
            cell.freeze,
            cell.source if isinstance(cell.source, Value) else None,
        )
        for index, cell in enumerate(cells)
    ]
    rows = lay_out(model, batch, donors, cells)
    done = run(
        model, with_sight(model, rows, writes), torch.tensor([p.forced for p in batch]),
        edits=edits_of(model, rows, writes, given), measure=measure, max_new_tokens=max_new_tokens if decoded else 0,
        remote=remote,
    )  # fmt: skip
    values = {name: value.double().cpu().numpy() for name, value in done.measured.items()}
    if done.tokens is not None:
        values |= read_answers(batch, texts(model, done.tokens), decoded)
    return rows_of(batch, donors, cells, values)


def read_answers(batch: Sequence[Prepared], said: list[list[str]], metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """Answer metrics of the decoded texts `said[cell][pair]`, as `[3, pair, cell]`: patched, clean, corrupted."""
    numbers = np.array([[last_number(text) for text in cell] for cell in said])  # [cell, pair]
    patched = numbers[len(RUNS) :]
    runs = (patched, np.broadcast_to(numbers[0], patched.shape), np.broadcast_to(numbers[1], patched.shape))
    keys = [(p.pair.clean.answer, p.pair.corrupted.answer) for p in batch]
    return {
        name: np.array(
            [[[ANSWER_METRICS[name](v, *keys[i]) for v in r[:, i]] for i in range(len(batch))] for r in runs]
        )
        for name in metrics
    }


def rows_of(batch, donors, cells: Sequence[Cell], values: dict[str, np.ndarray]) -> pd.DataFrame:
    """The block's rows; those of an unrelated source are left out where the pair has no unrelated donor."""
    about_cells = pd.DataFrame(
        {
            "cell": index,
            "protocol": PROTOCOL,
            "direction": cell.direction,
            "source": source_name(cell.source, cell.host),
            "draw": 0 if cell.donor == "unrelated" or getattr(cell.source, "drawn", False) else None,
            "site": cell.site.kind,
            "layer": cell.site.layer,
            "layer_last": cell.site.layer if cell.site.layer_last is None else cell.site.layer_last,
            "step": cell.site.step,
            "step_last": cell.site.step if cell.site.step_last is None else cell.site.step_last,
            "step_set": None,
            "head": cell.site.head,
            "cut": None,
            "n_latents": None,
            "freeze": "+".join(cell.freeze) or None,
            "read_step": None,
        }
        for index, cell in enumerate(cells)
    )
    pairs = pd.DataFrame(
        {
            "pair_id": str(prepared.pair.pair_id),
            "cluster_id": prepared.pair.cluster_id,
            "kind": prepared.pair.kind,
            "donor_pair": donor.pair_id if donor else None,
        }
        for prepared, donor in zip(batch, donors, strict=True)
    )
    metrics = pd.DataFrame({"metric": list(values)})
    frame = metrics.merge(pairs, how="cross").merge(about_cells, how="cross")
    patched, clean, corrupted = np.stack(list(values.values()), 1).reshape(3, -1)
    frame = frame.assign(patched=patched, clean=clean, corrupted=corrupted)
    drawn = frame["source"] == "unrelated"
    frame["source_pair"] = frame["donor_pair"].where(drawn, frame["pair_id"])
    return frame[~drawn | frame["donor_pair"].notna()].drop(columns="donor_pair")
