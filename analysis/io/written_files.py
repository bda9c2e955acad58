"""The files that a report writes into a run folder, by name: a run that is replaced deletes these, and no others."""

from __future__ import annotations

from pathlib import Path

AGGREGATE, INDIVIDUAL = Path("charts", "aggregate"), Path("charts", "individual")
HEATMAPS, ORIGINAL_FOLDER = Path("individual_heatmaps"), Path("aggregate_analysis")  # the original experiment's folders
REPORT_FOLDERS = (AGGREGATE, INDIVIDUAL, AGGREGATE.parent, HEATMAPS, ORIGINAL_FOLDER)  # inner ones first
REPORT_FILES = ("report.html", "summary.json", "sites.csv", "patching_results.json", "aggregate_statistics.json")
FIGURE_SUFFIXES = (".html", ".png", ".svg", ".json")
FIGURE_NAMES = (
    "corners", "early_stop", "influence", "iterative", "matched", "original", "attribution", "shapley", "layer_curve",
    "critical_layers", "layer_curve_by_kind", "heatmap", "step_curve", "pair_strip", "directions", "ablation",
    "knockout", "layer_curve_graded", "step_curve_graded", "heatmap_graded", "kl_by_layer", "layer_similarity",
    "all_pairs_by_layer",
)  # fmt: skip
PICTURES = {  # a figure of the report: the original's picture
    "kl_by_layer": "aggregate_kl_by_layer",
    "all_pairs_by_layer": "heatmap_all_pairs_layers",
    "critical_layers": "critical_layers_bar_chart",
    "layer_similarity": "layer_similarity_analysis",
}


def written_by_report(run: Path) -> list[Path]:
    """The paths that a report of this run writes, whether they are there or not."""
    pairs = [path.stem for path in (run / INDIVIDUAL).glob("pair_*.json")]
    return [
        *(run / name for name in REPORT_FILES),
        *(run / AGGREGATE / f"{name}{suffix}" for name in FIGURE_NAMES for suffix in FIGURE_SUFFIXES),
        *(run / ORIGINAL_FOLDER / f"{name}.png" for name in PICTURES.values()),
        # The JSON last: a picture without it is a user's own.
        *(path for name in pairs for path in (run / HEATMAPS / f"{name}.png", run / INDIVIDUAL / f"{name}.png")),
        *(run / INDIVIDUAL / f"{name}.json" for name in pairs),
    ]
