"""Assemble a run folder's table and manifest from its batches, and merge the shards of a run. Needs no model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from codi_tracing.analysis.io.atomic import write_json, write_whole
from codi_tracing.analysis.io.run_folder import (
    CHECKS,
    MANIFEST,
    PREPARED,
    TABLE,
    file_hashes,
    read_checks,
    read_manifest,
    read_prepared,
)
from codi_tracing.analysis.io.summary_files import write_summary
from codi_tracing.analysis.io.table_file import write_table
from codi_tracing.analysis.statistics.results import Results
from codi_tracing.configs.files import LARGEST_TABLE, read_file, read_utf8
from codi_tracing.patching.engine.table_rows import in_order
from codi_tracing.patching.runs.batch_files import BatchFileError, BatchHeader, read_batch
from codi_tracing.patching.runs.identity import differences, versions_of_shards
from codi_tracing.patching.runs.run_folder import (
    BATCHES,
    check_format,
    empty_batches,
    locked,
    lost_files,
    open_run,
)


def finish(out: Path, about: dict[str, Any]) -> Path:
    """Assemble the table from the batches, write it and the manifest, then delete the batches.

    A shard keeps its batches, to be merged, and has no table.
    """
    if about["shard"] is not None:
        files = {"files": file_hashes(out, (CHECKS, PREPARED)), "batches": batch_names(out)}
        write_json(out / MANIFEST, {**about, **files, "finished": True})
        return out
    table, headers = assemble(out)
    failed = failures(headers)
    if table.empty:
        pair, reason = next(iter(failed.items()))
        raise ValueError(f"every pair failed, so there is no table; the first is pair {pair}: {reason}")
    write_table(table, out / TABLE)
    results = Results(table, about["config"]["low_ceiling"])
    write_summary(out, results.summary, results.all_sites())
    about = {
        **about,
        "data": {
            **about["data"],
            "used": about["data"]["used"] - len(set(failed) & pair_ids(out)),
            "failed": [{"pair_id": pair, "reason": reason} for pair, reason in failed.items()],
        },
        "forwards": forwards(headers),
        "out_of_memory": {"halvings": sum(header.halvings for header in headers)},
        "cells_per_pair": cells_per_pair(table),
        "files": file_hashes(out, (TABLE, CHECKS, PREPARED)),
    }
    write_json(out / MANIFEST, {**about, "finished": True})
    empty_batches(out)
    return out


def batch_names(out: Path) -> list[str]:
    """The names of a run's batches, each with the hash of its content."""
    return sorted(path.name for path in (out / BATCHES).glob("*.parquet"))


def pair_ids(out: Path) -> set[str]:
    """The ids of the run's pairs."""
    return {str(pair["pair_id"]) for pair in json.loads(read_utf8(out / PREPARED))}


def failures(headers: Sequence[BatchHeader]) -> dict[str, str]:
    """The pairs that failed in any sweep, each with its first reason."""
    reasons: dict[str, str] = {}
    for header in headers:
        for pair, reason in header.failed:
            reasons.setdefault(pair, reason)
    return reasons


def forwards(headers: Sequence[BatchHeader]) -> list[dict[str, Any]]:
    """For each sweep: its size, how it was divided, and the estimated memory of a forward."""
    first = {header.sweep: header for header in headers if header.batch == 0}
    return [
        {
            "pairs": header.pairs,
            "cells_per_pair": header.cells,
            "batches": header.of,
            "pairs_per_batch": header.sizes.pairs_per_batch,
            "cells_per_forward": header.sizes.cells_per_forward,
            "estimated_gib": header.sizes.gib,
        }
        for _, header in sorted(first.items())
    ]


def cells_per_pair(table: pd.DataFrame) -> int:
    """The most rows of one metric that a pair has."""
    return int(table.groupby(["pair_id", "metric"], sort=False).size().max())


def assemble(out: Path) -> tuple[pd.DataFrame, list[BatchHeader]]:
    """The table of a run folder from its batches, sorted by pairs and cells, and the batches' headers.

    Raises `BatchFileError` if one is damaged, missing, or of another run.
    """
    parts, headers = [], []
    for path in sorted((out / BATCHES).glob("*.parquet")):
        header, rows = read_batch(path)
        headers.append(header)
        order = {"model": header.suffix != "", "sweep": header.sweep}
        parts.append(rows.assign(protocol=rows["protocol"] + header.suffix, **order))
    check_complete(out / BATCHES, headers)
    table = pd.concat(parts, ignore_index=True)
    return in_order(table, ("model", "rank", "sweep", "metric_rank", "cell")), headers


def check_complete(folder: Path, headers: list[BatchHeader]) -> None:
    """Refuse batches of several runs, and sweeps that lack a batch or have one twice."""
    if (runs := len({header.identity for header in headers})) != 1:
        raise BatchFileError(f"{folder}: holds batches of {runs} runs, expected one")
    for sweep in range(max(header.sweep for header in headers) + 1):
        of_sweep = [header for header in headers if header.sweep == sweep]
        of = of_sweep[0].of if of_sweep else 1
        batches = [header.batch for header in of_sweep]
        if missing := sorted(set(range(of)) - set(batches)):
            raise BatchFileError(f"{folder}: lacks batch {missing[0] + 1} of {of} of sweep {sweep + 1}")
        if len(batches) > of:
            raise BatchFileError(f"{folder}: holds {len(batches)} batches of sweep {sweep + 1}, expected {of}")


def merge_shards(folders: Sequence[Path], out: Path) -> Path:
    """Merge the shards of one run into `out`: the same table as that of the run in one piece.

    Raises ValueError for folders that are not finished shards of one run, and for repeated and missing shards. Where
    they ran under different versions, the manifest lists those of each.
    """
    if not folders:
        raise ValueError("no shard was named, expected the folders of all shards of one run")
    manifests = [(folder, shard_manifest(folder)) for folder in folders]
    first, about = manifests[0]
    given = check_shards(manifests)
    with locked(out):
        shards = [manifest for _, manifest in manifests]
        apart = ("files", "batches", "begun_under")
        about = {
            **{key: value for key, value in about.items() if key not in apart},
            **versions_of_shards(shards),
            "shard": None,
            "seconds": round(sum(shard.get("seconds", 0) for shard in shards), 1),
        }
        if open_run(out, about, force=True) is None:
            raise ValueError(f"{out}: holds this very run, finished; choose another with --out")
        (out / BATCHES).mkdir(exist_ok=True)
        for folder in given:
            for path in sorted((folder / BATCHES).glob("*.parquet")):
                if read_batch(path)[0].identity != about["identity"]:
                    raise BatchFileError(f"{path}: is of another run than its folder; run the shard again")
                write_whole(out / BATCHES / path.name, read_file(path, LARGEST_TABLE))
        write_json(out / CHECKS, read_checks(first))
        write_json(out / PREPARED, read_prepared(first))
        return finish(out, about)


def check_shards(manifests: Sequence[tuple[Path, dict[str, Any]]]) -> list[Path]:
    """The folders, if they hold every shard of one run, each once; ValueError otherwise."""
    (first, about), *others = manifests
    for folder, manifest in others:
        if manifest["identity"] != about["identity"]:
            difference = differences({**manifest, "shard": None}, {**about, "shard": None}, "changed between them")
            raise ValueError(f"{folder}: is of another run than {first} ({difference}); merge shards of one run")
        if manifest["files"][PREPARED] != about["files"][PREPARED]:
            raise ValueError(f"{folder}: its pairs are others than those of {first}; run one of the two with --fresh")
    count = int(about["shard"].partition("/")[2])
    given: dict[str, Path] = {}
    for folder, manifest in manifests:
        if (shard := manifest["shard"]) in given:
            raise ValueError(f"{folder}: is shard {shard}, as {given[shard]} is; name each shard once")
        given[shard] = folder
    if missing := [shard for shard in (f"{i}/{count}" for i in range(1, count + 1)) if shard not in given]:
        raise ValueError(f"shard {', '.join(missing)} is missing; run it: codi run CONFIG --shard {missing[0]}")
    if len(given) > count:
        odd = next(shard for shard in given if not shard.endswith(f"/{count}"))
        raise ValueError(f"{given[odd]}: is shard {odd}, but {first} is one of {count}; merge shards of one division")
    return list(given.values())


def shard_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished shard. Raises ValueError for any other folder."""
    manifest = read_manifest(folder)
    check_format(folder, manifest)
    shard = manifest.get("shard")
    if not isinstance(shard, str) or not re.fullmatch(r"[1-9][0-9]*/[1-9][0-9]*", shard):
        raise ValueError(f"{folder}: is no shard of a run, expected a folder that codi run --shard wrote")
    complete = {"identity", "identity_of", "data"} <= set(manifest)
    if not complete or (manifest.get("finished") and PREPARED not in (manifest.get("files") or ())):
        raise ValueError(f"{folder / MANIFEST}: is incomplete; run the shard again")
    if manifest.get("finished") is not True:
        raise ValueError(f"{folder}: shard {shard} is not finished; run it again, it goes on where it stopped")
    if lost := lost_files(folder, manifest):
        raise ValueError(f"{folder}: its {lost[0]} is missing; run shard {shard} again, which computes it again")
    return manifest
