"""The original experiment's result files, filled from its own cells: denoising, one layer's residual, all steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from codi_tracing.analysis.io.atomic import write_whole
from codi_tracing.analysis.rows import layerwise, main_protocol

METRICS = {  # the table's metric: the original file's key
    "kl_from_corrupted": "kl_divergence",
    "rms_logit_difference": "l2_difference",
    "prediction_change": "prediction_change_rate",
}


def patching_results(table: pd.DataFrame, prepared: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`patching_results.json`: an object per pair, its questions and answers, and three metrics of each layer."""
    pairs = {str(pair["pair_id"]): pair for pair in prepared}
    cells = _cells(table).pivot(index=["pair_id", "layer"], columns="metric", values="patched")
    rows = cells.reindex(columns=list(METRICS)).rename(columns=METRICS).reset_index()
    layers: dict[str, list[dict[str, Any]]] = {}
    for row in rows.sort_values("layer").to_dict("records"):
        numbers = {key: _number(row[key]) for key in METRICS.values()}
        layers.setdefault(row["pair_id"], []).append({"layer": int(row["layer"]), **numbers})
    if unknown := sorted(set(layers) - set(pairs)):
        raise ValueError(
            f"prepared_pairs.json has no pair {unknown[0]}, which cells.parquet holds; they are of different runs"
        )
    return [
        {
            "pair_id": pair["pair_id"],
            "clean_question": pair["clean"]["question"],
            "corrupted_question": pair["corrupted"]["question"],
            "clean_answer": pair["clean"]["answer"],
            "corrupted_answer": pair["corrupted"]["answer"],
            "layer_results": layers[pair_id],
        }
        for pair_id, pair in pairs.items()
        if pair_id in layers
    ]


def aggregate_statistics(table: pd.DataFrame) -> dict[str, Any]:
    """`aggregate_statistics.json`: mean and standard deviation of KL over pairs by layer, and the five largest means.

    The file calls those five critical, as it always did; what may be called so is decided by `summary.critical`.
    """
    rows = _cells(table)
    by_layer = rows[rows["metric"] == "kl_from_corrupted"].groupby("layer")["patched"]
    means, deviations = by_layer.mean(), by_layer.std(ddof=0)  # the original divided by n
    top = means.dropna().sort_values(ascending=False, kind="stable").head(5)
    return {
        "layer_kl_means": {str(layer): _number(mean) for layer, mean in means.items()},
        "layer_kl_stds": {str(layer): _number(deviation) for layer, deviation in deviations.items()},
        "critical_layers": [{"layer": int(str(layer)), "kl": float(kl)} for layer, kl in top.items()],
    }


def write_legacy(run: Path, table: pd.DataFrame, prepared: Sequence[Mapping[str, Any]]) -> None:
    """Write both files into a run folder; NaN becomes null."""
    write_json(run / "patching_results.json", patching_results(table, prepared))
    write_json(run / "aggregate_statistics.json", aggregate_statistics(table))


def write_json(path: Path, value: Any) -> None:
    """Write JSON that any parser reads."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    """The original experiment's cells, of all metrics; none where another experiment was run."""
    rows = layerwise(main_protocol(table))
    return rows[(rows["direction"] == "denoising") & (rows["source"] == "clean")]


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
