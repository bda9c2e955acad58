"""A finished run folder, read once for everything that reports on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from codi_tracing.analysis.io.run_folder import TABLE, read_checks, read_manifest, read_prepared
from codi_tracing.analysis.io.table_file import read_table
from codi_tracing.analysis.statistics.ceiling import LOW_CEILING
from codi_tracing.analysis.statistics.results import Results


class FinishedRun(NamedTuple):
    """The files of a run folder, and the results of its table."""

    folder: Path
    manifest: dict[str, Any]
    checks: list[dict[str, Any]]
    pairs: list[dict[str, Any]]  # of prepared_pairs.json
    results: Results

    @property
    def experiment(self) -> str:
        return self.manifest.get("experiment") or "sweep"


def read_run(run: Path | str | FinishedRun) -> FinishedRun:
    """Read a run folder, unless it is read already; ValueError if it holds a shard or an unfinished run."""
    if isinstance(run, FinishedRun):
        return run
    folder = Path(run)
    manifest = read_manifest(folder)
    if part := manifest.get("shard"):
        raise ValueError(
            f"{folder}: is shard {part} of a run and has no table; merge the shards: codi merge RUN… --out DIR"
        )
    if manifest.get("finished") is False:
        raise ValueError(f"{folder}: this run was interrupted; run it again, it resumes where it stopped")
    table = read_table(folder / TABLE)
    if table.empty:
        raise ValueError(f"{folder / TABLE}: the table has no rows; run the sweep again")
    low_ceiling = (manifest.get("config") or {}).get("low_ceiling", LOW_CEILING)
    return FinishedRun(folder, manifest, read_checks(folder), read_prepared(folder), Results(table, low_ceiling))
