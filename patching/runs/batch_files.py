"""The batches of a run on disk, so that an interrupted run resumes: Parquet files, each with its SHA-256 in its name.

`batches/00-00003.<hash>.parquet` is the fourth batch of the first sweep. Its Parquet metadata hold the `BatchHeader`. A
file whose content does not match its name, or that belongs to another run, is deleted, reported and computed again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from codi_tracing.analysis.io.atomic import write_whole
from codi_tracing.analysis.io.table_file import parse_parquet
from codi_tracing.analysis.table import COLUMNS, check_table
from codi_tracing.configs.files import LARGEST_TABLE, read_file
from codi_tracing.patching.engine.batch_store import BatchResult, BatchSpec
from codi_tracing.patching.engine.partition import Sizes
from codi_tracing.patching.engine.table_rows import ROW_ORDER
from codi_tracing.patching.runs.run_folder import BATCHES, empty_batches
from codi_tracing.traces.remote.submitted_jobs import JobsPending

HEADER_KEY = b"codi_tracing"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The run was interrupted after everything was saved; the message says how far it is."""


class BatchFileError(ValueError):
    """A batch file that is damaged, missing, or of another run."""


class FailedPairs(ValueError):
    """More pairs failed than the config allows."""


class BatchHeader(NamedTuple):
    """What a batch file records beside its rows."""

    identity: str  # of the run
    sweep: int  # its index in the run
    batch: int  # its index among the sweep's `of`
    of: int
    pairs: int  # of the whole sweep
    cells: int
    sizes: Sizes
    suffix: str  # of the protocol, for rows of another model
    failed: tuple[tuple[str, str], ...]
    halvings: int


@contextmanager
def deferred_interrupt(state: str) -> Iterator[None]:
    """Defer Ctrl-C and SIGTERM to the end of the block, then raise `Interrupted` with `state`; a second one acts now.

    Only the main thread can; in others this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt("interrupted at once; the same command goes on after the last saved batch")
        received.append(number)

    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    if received:
        raise Interrupted(f"interrupted; {state}, the same command goes on from there")


def write_hashed(folder: Path, stem: str, suffix: str, content: bytes) -> Path:
    """Write a file with its SHA-256 in its name, whole or not at all."""
    path = write_whole(folder / f"{stem}.{hashlib.sha256(content).hexdigest()}.{suffix}", content)
    with suppress(OSError):  # make the rename durable; some file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    return path


def read_hashed(path: Path) -> bytes:
    """The content of a file that matches the SHA-256 in its name. Raises `BatchFileError` for any other."""
    content = read_file(path, LARGEST_TABLE)
    if path.name.split(".")[1:2] != [hashlib.sha256(content).hexdigest()]:
        raise BatchFileError(f"{path}: is damaged or incomplete: its content does not match the hash in its name")
    return content


def write_batch(folder: Path, header: BatchHeader, rows: pd.DataFrame) -> Path:
    """Write a batch's rows, with the table's types, as a Parquet file."""
    typed = check_table(rows[list(COLUMNS)]).assign(**{name: rows[name].astype(int) for name in ROW_ORDER})
    table = pa.Table.from_pandas(typed, preserve_index=False)
    about = json.dumps({**header._asdict(), "sizes": header.sizes._asdict()}, ensure_ascii=False)
    table = table.replace_schema_metadata({**table.schema.metadata, HEADER_KEY: about.encode()})
    content = io.BytesIO()
    pq.write_table(table, content)
    return write_hashed(folder, f"{header.sweep:02d}-{header.batch:05d}", "parquet", content.getvalue())


def read_batch(path: Path) -> tuple[BatchHeader, pd.DataFrame]:
    """A batch's header and rows. Raises `BatchFileError` for a file that is damaged or of another version."""
    content = read_hashed(path)
    try:
        about = json.loads(pq.read_schema(io.BytesIO(content)).metadata[HEADER_KEY])
        failed = tuple((str(pair), str(reason)) for pair, reason in about["failed"])
        header = BatchHeader(**{**about, "sizes": Sizes(**about["sizes"]), "failed": failed})
        rows = parse_parquet(content)
    except Exception as error:  # the hash matches, so this is no damage but another writer
        raise BatchFileError(f"{path}: is not a batch of this version ({type(error).__name__})") from None
    if list(rows) != [*COLUMNS, *ROW_ORDER]:
        raise BatchFileError(f"{path}: has the columns of another version")
    return header, rows


@dataclass
class BatchFiles:
    """The batch files of one run, or of shard i of n of it (`shard`, from 1)."""

    out: Path
    identity: str
    shard: tuple[int, int] = (1, 1)
    max_failed: float = 1.0
    name_jobs: Callable[[str], None] = lambda batch: None  # called with the batch whose jobs are started next
    sweeps: int = 0
    set_aside: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = self.out / BATCHES
        empty_batches(self.out, temporary_only=True)
        self.folder.mkdir(exist_ok=True)

    def next_sweep(self, suffix: str = "") -> SweepFiles:
        """The store of the run's next sweep; `suffix` marks the protocol of another model."""
        self.sweeps += 1
        return SweepFiles(self, self.sweeps - 1, suffix)

    def cached(self, name: str, compute: Callable[[], Any]) -> Any:
        """Cache an expensive result, a JSON value, in the run folder."""
        for path in sorted(self.folder.glob(f"{name}.*.json")):
            try:
                saved = json.loads(read_hashed(path))
                if saved["identity"] == self.identity:
                    return saved["value"]
                raise BatchFileError(f"{path}: belongs to another run")
            except BatchFileError as error:
                self.discard(path, error)
        saved = {"identity": self.identity, "value": compute()}
        path = write_hashed(self.folder, name, "json", json.dumps(saved).encode())
        return json.loads(read_file(path))["value"]

    def forget(self, name: str) -> None:
        """Delete a cached result."""
        for path in self.folder.glob(f"{name}.*.json"):
            path.unlink()

    def discard(self, path: Path, error: BatchFileError) -> None:
        """Delete an invalid file, and report it."""
        self.set_aside.append(f"{path.name}: {str(error).removeprefix(f'{path}: ')}; computed again")
        print(f"codi: {error}; it is computed again", file=sys.stderr)
        path.unlink()


@dataclass
class SweepFiles:
    """The batch files of one sweep: a `BatchStore`."""

    run: BatchFiles
    sweep: int
    suffix: str
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def shard(self) -> tuple[int, int]:
        return self.run.shard

    def load(self, batch: BatchSpec) -> BatchResult | None:
        expected, found = (self.run.identity, self.sweep, batch.index, batch.of), None
        for path in sorted(self.run.folder.glob(f"{self._stem(batch)}.*.parquet")):
            try:
                header, rows = read_batch(path)
                if (header.identity, header.sweep, header.batch, header.of) != expected:
                    raise BatchFileError(f"{path}: belongs to another run or batch")
                if found is not None:
                    raise BatchFileError(f"{path}: is a second file of its batch")
                found = header, rows
            except BatchFileError as error:
                self.run.discard(path, error)
        return None if found is None else self._checked(*found)

    @contextmanager
    def computing(self, batch: BatchSpec) -> Iterator[None]:
        saved = f"{batch.index + 1} of {batch.of} batches of this sweep are saved"
        with deferred_interrupt(saved), suppress(JobsPending):
            self.run.name_jobs(self._stem(batch))
            try:
                yield
            finally:
                self.run.name_jobs("")

    def save(self, batch: BatchSpec, result: BatchResult) -> BatchResult:
        header = BatchHeader(
            self.run.identity, self.sweep, batch.index, batch.of, batch.pairs, batch.cells, batch.sizes, self.suffix,
            result.failed, result.halvings,
        )  # fmt: skip
        return self._checked(*read_batch(write_batch(self.run.folder, header, result.rows)))

    def _stem(self, batch: BatchSpec) -> str:
        return f"{self.sweep:02d}-{batch.index:05d}"

    def _checked(self, header: BatchHeader, rows: pd.DataFrame) -> BatchResult:
        """The result of a batch. Raises `FailedPairs` if too many pairs of the sweep failed so far."""
        self.failed.update(header.failed)
        if len(self.failed) > self.run.max_failed * header.pairs:
            pair, reason = next(iter(self.failed.items()))
            raise FailedPairs(
                f"{len(self.failed)} of {header.pairs} pairs failed, more than max_failed = {self.run.max_failed:g} "
                f"allows; the first is pair {pair}: {reason}. What is finished is kept; raise max_failed to go on"
            )
        return BatchResult(rows, header.failed, header.halvings)
