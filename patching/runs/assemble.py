"""From finished batches to the run folder's table and manifest; shards of one run are merged. No model is needed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from codi_tracing.analysis.io.atomic import write_json, write_whole
from codi_tracing.analysis.io.run_folder import read_manifest
from codi_tracing.analysis.io.table_file import write_table
from codi_tracing.patching.engine.table_rows import in_order
from codi_tracing.patching.runs.batch_files import FOLDER, Header, ShardError, read_shard
from codi_tracing.patching.runs.run_folder import MANIFEST, TABLE, differences, locked, open_run


def finish(out: Path, about: dict[str, Any]) -> Path:
    """Put the table together from the shards, write it and the manifest, and only then let the shards go.

    A slice keeps its shards, which are what it has to give, and has no table.
    """
    if about["slice"] is not None:
        write_json(out / MANIFEST, {**about, "finished": True})
        return out
    table, headers = assemble(out)
    failed = failures(headers)
    if table.empty:
        pair, reason = next(iter(failed.items()))
        raise ValueError(f"every pair failed, so there is no table; the first is pair {pair}: {reason}")
    write_table(table, out / TABLE)
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
    }
    write_json(out / MANIFEST, {**about, "finished": True})
    shutil.rmtree(out / FOLDER)
    return out


def pair_ids(out: Path) -> set[str]:
    """The pairs that the run was to patch."""
    return {str(pair["pair_id"]) for pair in json.loads((out / "prepared_pairs.json").read_text(encoding="utf-8"))}


def failures(headers: Sequence[Header]) -> dict[str, str]:
    """The pairs that failed in any sweep, each with its first reason."""
    found: dict[str, str] = {}
    for header in headers:
        for pair, reason in header.failed:
            found.setdefault(pair, reason)
    return found


def forwards(headers: Sequence[Header]) -> list[dict[str, Any]]:
    """Of each sweep, how many cells there were, how they were divided, and what a forward was estimated to take."""
    first = {header.stage: header for header in headers if header.place == 0}
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


def shards_in(out: Path) -> Iterator[tuple[Header, pd.DataFrame]]:
    """Every shard of a run folder, stage by stage and batch by batch."""
    for path in sorted((out / FOLDER).glob("*.shard")):
        yield read_shard(path)


def assemble(out: Path) -> tuple[pd.DataFrame, list[Header]]:
    """The table of a run folder from its shards alone, in the order of pairs and cells, and the shards' headers.

    Raises `ShardError` where one is damaged, foreign or missing.
    """
    parts, headers = [], []
    for header, rows in shards_in(out):
        headers.append(header)
        order = (header.suffix != "", header.stage)
        parts.append(rows.assign(protocol=rows["protocol"] + header.suffix, model=order[0], stage=order[1]))
    check_complete(out, headers)
    table = pd.concat(parts, ignore_index=True)
    return in_order(table, ("model", "rank", "stage", "place", "cell")), headers


def check_complete(out: Path, headers: list[Header]) -> None:
    """Refuse shards of several runs, and stages that lack a batch."""
    if len({header.identity for header in headers}) != 1:
        raise ShardError(f"{out / FOLDER}: holds shards of {len({h.identity for h in headers})} runs, wanted one")
    for stage in range(max(header.stage for header in headers) + 1):
        of_stage = [header for header in headers if header.stage == stage]
        wanted = of_stage[0].of if of_stage else 1
        if missing := sorted(set(range(wanted)) - {header.place for header in of_stage}):
            raise ShardError(f"{out / FOLDER}: lacks batch {missing[0] + 1} of {wanted} of sweep {stage + 1}")


def merge_slices(folders: Sequence[Path], out: Path) -> Path:
    """Join the slices of one run into `out`: the very table of the run in one piece.

    Raises ValueError for folders that are no finished slices of one run, for slices that are given twice, and for
    those that are missing.
    """
    if not folders:
        raise ValueError("no slice was named, wanted the folders of all slices of one run")
    manifests = [(folder, slice_manifest(folder)) for folder in folders]
    (first, about), *others = manifests
    for folder, manifest in others:
        if manifest["identity"] != about["identity"]:
            told = differences({**manifest, "slice": None}, {**about, "slice": None})
            raise ValueError(f"{folder}: is of another run than {first} ({told}); merge slices of one run")
    count = int(about["slice"].partition("/")[2])
    given: dict[str, Path] = {}
    for folder, manifest in manifests:
        if (part := manifest["slice"]) in given:
            raise ValueError(f"{folder}: is slice {part}, as {given[part]} is; name each slice once")
        given[part] = folder
    if missing := [part for part in (f"{i}/{count}" for i in range(1, count + 1)) if part not in given]:
        raise ValueError(f"slice {', '.join(missing)} is missing; run it: codi run CONFIG --shard {missing[0]}")
    if len(given) > count:
        odd = next(part for part in given if not part.endswith(f"/{count}"))
        raise ValueError(f"{given[odd]}: is slice {odd}, but {first} is one of {count}; merge slices of one division")
    with locked(out):
        about = {**about, "slice": None, "seconds": round(sum(m.get("seconds", 0) for _, m in manifests), 1)}
        if open_run(out, about, fresh=False) is None:
            raise ValueError(f"{out}: holds this very run, finished; choose another with --out")
        (out / FOLDER).mkdir(exist_ok=True)
        for folder in given.values():
            for path in sorted((folder / FOLDER).glob("*.shard")):
                header, _ = read_shard(path)
                if header.identity != about["identity"]:
                    raise ShardError(f"{path}: is of another run than its folder; run the slice again")
                write_whole(out / FOLDER / path.name, path.read_bytes())
        for name in ("checks.json", "prepared_pairs.json"):
            write_whole(out / name, (first / name).read_bytes())
        return finish(out, about)


def slice_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished slice. Raises ValueError for what is none."""
    manifest = read_manifest(folder)
    part = manifest.get("slice")
    if not isinstance(part, str) or not re.fullmatch(r"[1-9][0-9]*/[1-9][0-9]*", part):
        raise ValueError(f"{folder}: is no slice of a run, wanted a folder that codi run --shard wrote")
    if not {"identity", "identity_of", "data"} <= set(manifest):
        raise ValueError(f"{folder / MANIFEST}: is another version's; run the slice again")
    if manifest.get("finished") is not True:
        raise ValueError(f"{folder}: slice {part} is not finished; run it again, it goes on where it stopped")
    return manifest
