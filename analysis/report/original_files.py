"""The original experiment's files and pictures, from its cells: denoising, one layer's residual stream, all steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from codi_tracing.analysis.io.atomic import write_json, write_whole
from codi_tracing.analysis.io.written_files import AGGREGATE, HEATMAPS, INDIVIDUAL, ORIGINAL_FOLDER, PICTURES
from codi_tracing.analysis.rows import layerwise_rows, main_protocol
from codi_tracing.analysis.statistics.results import Results
from codi_tracing.configs.files import read_file

METRIC_KEYS = {  # the table's metric: the original file's key
    "kl_from_corrupted": "kl_divergence",
    "rms_logit_difference": "l2_difference",
    "prediction_change": "prediction_change_rate",
}


def patching_results(table: pd.DataFrame, prepared: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`patching_results.json`: an object per pair, its questions and answers, and three metrics of each layer."""
    pairs = {str(pair["pair_id"]): pair for pair in prepared}
    cells = original_rows(table).pivot(index=["pair_id", "layer"], columns="metric", values="patched")
    rows = cells.reindex(columns=list(METRIC_KEYS)).rename(columns=METRIC_KEYS).reset_index()
    layers: dict[str, list[dict[str, Any]]] = {}
    for row in rows.sort_values("layer").to_dict("records"):
        numbers = {key: _number(row[key]) for key in METRIC_KEYS.values()}
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


def aggregate_statistics(results: Results) -> dict[str, Any]:
    """`aggregate_statistics.json`: mean and standard deviation of KL over pairs by layer, and the five largest means.

    The file calls those five critical, as the original did; of each, `critical_by_transfer` says whether the statistics
    call it critical (null where no layer was tested).
    """
    table = results.table
    rows = original_rows(table)
    by_layer = rows[rows["metric"] == "kl_from_corrupted"].groupby("layer")["patched"]
    means, deviations = by_layer.mean(), by_layer.std(ddof=0)  # the original divided by n
    top = means.dropna().sort_values(ascending=False, kind="stable").head(5)
    try:
        sites = results.sites("denoising")
        tested = {
            row["layer"]: bool(row["critical"]) for row in layerwise_rows(sites[sites["specific"]]).to_dict("records")
        }
    except ValueError:
        tested = {}
    return {
        "layer_kl_means": {str(layer): _number(mean) for layer, mean in means.items()},
        "layer_kl_stds": {str(layer): _number(deviation) for layer, deviation in deviations.items()},
        "critical_layers": [
            {"layer": int(str(layer)), "kl": float(kl), "critical_by_transfer": tested.get(layer)}
            for layer, kl in top.items()
        ],
    }


def write_original_files(run: Path, results: Results, prepared: Sequence[Mapping[str, Any]]) -> None:
    """Write both JSON files into a run folder; NaN becomes null."""
    write_json(run / "patching_results.json", patching_results(results.table, prepared))
    write_json(run / "aggregate_statistics.json", aggregate_statistics(results))


def write_original_pictures(run: Path) -> None:
    """Copy the report's pictures to the original's names: `individual_heatmaps/`, and four in `aggregate_analysis/`."""
    drawn = [path.with_suffix(".png") for path in (run / INDIVIDUAL).glob("pair_*.json")]
    pairs = [(path, run / HEATMAPS / path.name) for path in drawn]
    aggregate = [
        (run / AGGREGATE / f"{name}.png", run / ORIGINAL_FOLDER / f"{original}.png")
        for name, original in PICTURES.items()
    ]
    for picture, copy in [*pairs, *aggregate]:
        if picture.is_file():  # a figure that the table does not allow is not drawn
            copy.parent.mkdir(exist_ok=True)
            write_whole(copy, read_file(picture))


def original_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The original experiment's cells of all metrics, clean into corrupted; empty if there are none."""
    rows = layerwise_rows(main_protocol(table))
    return rows[(rows["direction"] == "denoising") & (rows["source"] == "clean")]


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
