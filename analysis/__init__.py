"""From the table of cells to numbers, charts and a report. Imports nothing else of the project, and never torch."""

from analysis.ablation import ablation_curve, ablations, flips
from analysis.attention_charts import attention_by_layer, attention_map
from analysis.attribution import agreement, attribution_scatter, attributions
from analysis.charts import corner_bars, layer_curve, layer_effects
from analysis.compare import compare, compare_runs, comparison_chart
from analysis.directions import both_directions, direction_agreement, directions_chart
from analysis.early_stop import early_stop_curve, early_stops
from analysis.effects import by_site, effect, pooled, recovery, specific
from analysis.export import save_figures
from analysis.heatmaps import heatmap, site_effects
from analysis.influence import influence_matrix, influences
from analysis.iterative import iteration_curve, iterations
from analysis.knockout import knockout_bars, knockouts
from analysis.legacy import aggregate_statistics, patching_results
from analysis.lens import attended, decodable, match_tokens, said_where, uncertainty
from analysis.lens_charts import decodable_bars, entropy_heatmap, lens_grid, said_heatmaps
from analysis.lens_page import read_lens, write_lens_report
from analysis.matched import matched_chart, matched_sentence, matched_shares
from analysis.null import null_contrast
from analysis.original import critical_layers, kl_by_layer, layer_similarity, mean_kl, pairs_by_layer
from analysis.pair_charts import pair_chart
from analysis.pair_strip import pair_strip, site_pairs
from analysis.placeholder import protocol_curve, protocol_rows, protocols
from analysis.ranking import rank_differences, top_sites, winner
from analysis.report import write_report
from analysis.shapley import shapley_bars, shapley_interactions, shapley_values
from analysis.steps import step_curve, step_effects
from analysis.summary import ceiling, corners, critical, decomposition, verdict
from analysis.table import check_table, read_table, write_table

__all__ = [
    "ablation_curve",
    "ablations",
    "aggregate_statistics",
    "agreement",
    "attended",
    "attention_by_layer",
    "attention_map",
    "attribution_scatter",
    "attributions",
    "both_directions",
    "by_site",
    "ceiling",
    "check_table",
    "compare",
    "compare_runs",
    "comparison_chart",
    "corner_bars",
    "corners",
    "critical",
    "critical_layers",
    "decodable",
    "decodable_bars",
    "decomposition",
    "direction_agreement",
    "directions_chart",
    "early_stop_curve",
    "early_stops",
    "effect",
    "entropy_heatmap",
    "flips",
    "heatmap",
    "influence_matrix",
    "influences",
    "iteration_curve",
    "iterations",
    "kl_by_layer",
    "knockout_bars",
    "knockouts",
    "layer_curve",
    "layer_effects",
    "layer_similarity",
    "lens_grid",
    "match_tokens",
    "matched_chart",
    "matched_sentence",
    "matched_shares",
    "mean_kl",
    "null_contrast",
    "pair_chart",
    "pair_strip",
    "pairs_by_layer",
    "patching_results",
    "pooled",
    "protocol_curve",
    "protocol_rows",
    "protocols",
    "rank_differences",
    "read_lens",
    "read_table",
    "recovery",
    "said_heatmaps",
    "said_where",
    "save_figures",
    "shapley_bars",
    "shapley_interactions",
    "shapley_values",
    "site_effects",
    "site_pairs",
    "specific",
    "step_curve",
    "step_effects",
    "top_sites",
    "uncertainty",
    "verdict",
    "winner",
    "write_lens_report",
    "write_report",
    "write_table",
]
