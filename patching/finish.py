"""From the shards of all batches to a finished run folder. No model is needed for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.table import write_table
from patching.shards import FOLDER, Header, assemble
from patching.store import MANIFEST, TABLE, write_json


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
