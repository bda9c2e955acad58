"""Two run folders compared on the same pairs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from codi_tracing.analysis.figures.comparison import comparison_data
from codi_tracing.analysis.io.run_folder import read_manifest
from codi_tracing.analysis.report.finished_run import read_run
from codi_tracing.analysis.statistics.measures import TRANSFER


def run_names(first: Path, second: Path) -> tuple[str, str]:
    """The names of two run folders: their checkpoints if these differ, else protocols, names or folders."""
    manifests = [read_manifest(run) for run in (first, second)]
    for name_of in (
        lambda manifest, _: Path(str((manifest.get("model") or {}).get("checkpoint") or "")).name,
        lambda manifest, _: str(manifest.get("protocol") or ""),
        lambda manifest, _: str(manifest.get("name") or ""),
        lambda _, run: run.resolve().name,
        lambda _, run: str(run),
    ):
        names = [name_of(manifest, run) for manifest, run in zip(manifests, (first, second), strict=True)]
        if all(names) and names[0] != names[1]:
            return names[0], names[1]
    raise ValueError(f"{first}: is compared with itself; name two runs")


def compare_runs(first: Path, second: Path, metric: str = TRANSFER) -> pd.DataFrame:
    """`comparison_data` of two finished run folders; ValueError if a pair of the same id has other questions."""
    runs = read_run(first), read_run(second)
    sides = [{str(pair["pair_id"]): pair for pair in run.pairs} for run in runs]
    for pair_id in sorted(sides[0].keys() & sides[1].keys()):
        for side in ("clean", "corrupted"):
            if sides[0][pair_id][side]["question"] != sides[1][pair_id][side]["question"]:
                raise ValueError(
                    f"pair {pair_id} has another {side} question in {second} than in {first}; "
                    "compare runs on one file of pairs"
                )
    return comparison_data(runs[0].results.table, runs[1].results.table, metric)
