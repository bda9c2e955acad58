"""Where a sweep loads and saves its batches of pairs: the interface, and the store that keeps nothing. No torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from codi_tracing.patching.engine.partition import Sizes

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class BatchSpec:
    """One of the `of` batches of a sweep, with the sweep's numbers of pairs and cells, and how they are divided."""

    index: int
    of: int
    pairs: int
    cells: int
    sizes: Sizes


class BatchResult(NamedTuple):
    """The rows of one batch, with the columns of `table_rows.ORDER`, and what went wrong."""

    rows: pd.DataFrame
    failed: tuple[tuple[str, str], ...] = ()  # pair_id and reason of pairs without rows
    halvings: int = 0  # how often memory ran out and fewer cells ran at once


class BatchStore(Protocol):
    """Loads and saves the batches of one sweep."""

    @property
    def shard(self) -> tuple[int, int]:
        """(i, n), from 1: this process runs every n-th batch, beginning with the i-th."""

    def load(self, batch: BatchSpec) -> BatchResult | None:
        """The saved result, if there is one."""

    def computing(self, batch: BatchSpec) -> AbstractContextManager[None]:
        """Entered while a batch is computed and saved; absorbs `JobsPending`: a later run computes it."""

    def save(self, batch: BatchSpec, result: BatchResult) -> BatchResult:
        """Save a result, and return it as `load` would."""


class MemoryStore:
    """Keeps no batch, and warns of pairs that failed."""

    shard = (1, 1)

    def load(self, batch: BatchSpec) -> None:
        return None

    def computing(self, batch: BatchSpec) -> AbstractContextManager[None]:
        return nullcontext()

    def save(self, batch: BatchSpec, result: BatchResult) -> BatchResult:
        for pair, reason in result.failed:
            warnings.warn(f"pair {pair} has no rows: {reason}", stacklevel=6)  # in the caller of `sweep_cells`
        return result


def run_batches(
    batches: Sequence[BatchSpec], store: BatchStore, run: Callable[[Sequence[BatchSpec]], BatchResult]
) -> Iterator[tuple[BatchSpec, BatchResult]]:
    """The results of this process's batches: saved ones are loaded, missing ones run and saved.

    `run` gets the missing batches and returns the result of the first, so that it may start jobs of later ones.
    """
    shard, shards = store.shard
    missing = []
    for batch in batches[shard - 1 :: shards]:
        if (saved := store.load(batch)) is None:
            missing.append(batch)
        else:
            yield batch, saved
    for position, batch in enumerate(missing):
        result = None
        with store.computing(batch):
            result = store.save(batch, run(missing[position:]))
        if result is not None:
            yield batch, result
