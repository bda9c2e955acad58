"""Ctrl-C and the scheduler's SIGTERM: what has begun is finished and saved first."""

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

from codi_tracing.analysis.io.atomic import write_whole
from codi_tracing.analysis.table import COLUMNS, check_table
from codi_tracing.patching.engine.batch import Batch
from codi_tracing.patching.engine.partition import Sizes
from codi_tracing.patching.engine.sweep import Due, Keep
from codi_tracing.patching.engine.table_rows import ORDER
from codi_tracing.traces.remote.submitted_jobs import JobsPending

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and did so with everything saved; the message says how far it is."""


@contextmanager
def at_the_end(state: str) -> Iterator[None]:
    """Put off an interruption until the block has ended, then raise `Interrupted` with `state`; a second one acts now.

    Other threads than the main one cannot, and do nothing of this.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt("interrupted at once; the same command goes on after the last saved batch")
        asked.append(number)

    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    if asked:
        raise Interrupted(f"interrupted; {state}, the same command goes on from there")


FOLDER, FORMAT = "shards", 1


class ShardError(ValueError):
    """A shard that is not whole, or of another run."""


class FailedPairs(ValueError):
    """More pairs failed than the config allows."""


class Header(NamedTuple):
    """What a shard says of itself: the run, the sweep (stage) within it, the batch, and what befell it."""

    identity: str
    stage: int
    place: int  # of the batch among the stage's `of`
    of: int
    pairs: int  # of the whole stage
    cells: int
    sizes: Sizes
    suffix: str  # of the protocol: of another model's rows
    failed: tuple[tuple[str, str], ...]
    halvings: int


def seal(header: dict[str, Any], payload: bytes) -> bytes:
    """Header and payload behind their hash."""
    body = json.dumps({"format": FORMAT, **header}, ensure_ascii=False).encode() + b"\n" + payload
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def unseal(content: bytes, path: Path) -> tuple[dict[str, Any], bytes]:
    """The parts again. Raises `ShardError` for anything that is not exactly what was sealed."""
    told, _, body = content.partition(b"\n")
    if told != hashlib.sha256(body).hexdigest().encode():
        raise ShardError(f"{path}: is damaged or not whole, its hash is another")
    line, _, payload = body.partition(b"\n")
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        raise ShardError(f"{path}: is no shard, its header cannot be read") from None
    if not isinstance(header, dict) or header.pop("format", None) != FORMAT:
        raise ShardError(f"{path}: is a shard of another format, wanted format {FORMAT}")
    return header, payload


def write_shard(path: Path, header: Header, rows: pd.DataFrame) -> None:
    """Write a batch's rows, of the table's types, whole or not at all."""
    typed = check_table(rows[list(COLUMNS)]).assign(**{name: rows[name].astype(int) for name in ORDER})
    told = {**header._asdict(), "sizes": header.sizes._asdict()}
    write_whole(path, seal(told, typed.to_parquet(index=False)))
    sync_folder(path.parent)


def read_shard(path: Path) -> tuple[Header, pd.DataFrame]:
    """A batch's header and rows. Raises `ShardError` for a file that is none, or not whole."""
    told, payload = unseal(path.read_bytes(), path)
    try:
        failed = tuple((str(pair), str(reason)) for pair, reason in told["failed"])
        header = Header(**{**told, "sizes": Sizes(**told["sizes"]), "failed": failed})
        rows = pd.read_parquet(io.BytesIO(payload))
    except Exception as error:  # its hash is right, so that it was written by something else than this version
        raise ShardError(f"{path}: is no shard of a batch ({type(error).__name__})") from None
    if list(rows) != [*COLUMNS, *ORDER]:
        raise ShardError(f"{path}: its columns are another version's")
    return header, rows


def sync_folder(folder: Path) -> None:
    """Make what was renamed in a folder last; some file systems cannot."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@dataclass
class Shards:
    """The shards of one run, or of one slice of it: every `slices`-th batch, beginning with the `mine`-th (from 1)."""

    out: Path
    identity: str
    mine: int = 1
    slices: int = 1
    max_failed: float = 1.0
    begin: Callable[[str], None] = lambda name: None  # told which batch is about to be computed
    stages: int = 0
    set_aside: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.out / FOLDER).mkdir(exist_ok=True)
        for leftover in (self.out / FOLDER).glob(".*"):
            leftover.unlink()  # a temporary file of a process that was killed

    def stage(self, suffix: str = "") -> Keep:
        """What keeps the batches of the next sweep."""
        stage, failed = self.stages, dict[str, str]()
        self.stages += 1

        def path_of(due: Due) -> Path:
            return self.out / FOLDER / f"{stage:02d}-{due.place:05d}.shard"

        def mine(due: Due) -> bool:
            return due.place % self.slices == self.mine - 1

        def keep(due: Due, compute: Callable[[], Batch]) -> Batch | None:
            if not mine(due):
                return None
            path = path_of(due)
            if (saved := self._saved(path, stage, due)) is None:
                with at_the_end(f"{due.place + 1} of {due.of} batches of this sweep are saved"):
                    self.begin(path.stem)
                    try:
                        found = compute()
                    except JobsPending:
                        return None
                    finally:
                        self.begin("")
                    about = (due.place, due.of, due.pairs, due.cells, due.sizes)
                    header = Header(self.identity, stage, *about, suffix, found.failed, found.halvings)
                    write_shard(path, header, found.rows)
                saved = read_shard(path)
            header, rows = saved
            failed.update(header.failed)
            if len(failed) > self.max_failed * due.pairs:
                pair, reason = next(iter(failed.items()))
                raise FailedPairs(
                    f"{len(failed)} of {due.pairs} pairs failed, more than max_failed = {self.max_failed:g} allows; "
                    f"the first is pair {pair}: {reason}. What is finished is kept; raise max_failed to go on"
                )
            return Batch(rows, header.failed, header.halvings)

        keep.wants = lambda due: mine(due) and not path_of(due).exists()  # type: ignore[attr-defined]
        return keep

    def note(self, name: str, compute: Callable[[], Any]) -> Any:
        """Something that JSON can hold and that is dear to compute: computed once, and read ever after."""
        path = self.out / FOLDER / f"{name}.note"
        if path.is_file():
            try:
                header, payload = unseal(path.read_bytes(), path)
                if header == {"identity": self.identity, "note": name}:
                    return json.loads(payload)
                raise ShardError(f"{path}: is another run's")
            except ShardError as error:
                self._set_aside(path, error)
        write_whole(path, seal({"identity": self.identity, "note": name}, json.dumps(compute()).encode()))
        return json.loads(unseal(path.read_bytes(), path)[1])

    def forget(self, name: str) -> None:
        """Compute a note anew the next time."""
        (self.out / FOLDER / f"{name}.note").unlink(missing_ok=True)

    def _saved(self, path: Path, stage: int, due: Due) -> tuple[Header, pd.DataFrame] | None:
        """A batch that is there, whole and this run's."""
        if not path.exists():
            return None
        try:
            header, rows = read_shard(path)
            if (header.identity, header.stage, header.place, header.of) == (
                self.identity, stage, due.place, due.of
            ):  # fmt: skip
                return header, rows
            raise ShardError(f"{path}: belongs to another run or place")
        except ShardError as error:
            self._set_aside(path, error)
        return None

    def _set_aside(self, path: Path, error: ShardError) -> None:
        """Delete what cannot be believed, and say so."""
        self.set_aside.append(f"{path.name}: {str(error).removeprefix(f'{path}: ')}; computed again")
        print(f"codi: {error}; it is computed again", file=sys.stderr)
        path.unlink()
