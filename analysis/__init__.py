"""From the table of cells to numbers, charts and a report. Imports nothing else of the project, and never torch."""

from analysis.ablation import ablation_curve, ablations
from analysis.charts import corner_bars, heatmap, layer_curve, layer_effects
from analysis.effects import by_site, effect, pooled, recovery, specific
from analysis.legacy import aggregate_statistics, patching_results
from analysis.original import critical_layers, kl_by_layer, layer_similarity, mean_kl, pairs_by_layer
from analysis.pair_charts import pair_chart
from analysis.report import write_report
from analysis.summary import ceiling, corners, critical, decomposition, verdict
from analysis.table import check_table, read_table, write_table

__all__ = [
    "ablation_curve",
    "ablations",
    "aggregate_statistics",
    "by_site",
    "ceiling",
    "check_table",
    "corner_bars",
    "corners",
    "critical",
    "critical_layers",
    "decomposition",
    "effect",
    "heatmap",
    "kl_by_layer",
    "layer_curve",
    "layer_effects",
    "layer_similarity",
    "mean_kl",
    "pair_chart",
    "pairs_by_layer",
    "patching_results",
    "pooled",
    "read_table",
    "recovery",
    "specific",
    "verdict",
    "write_report",
    "write_table",
]
