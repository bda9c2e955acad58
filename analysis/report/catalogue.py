"""Every figure of a report: its section, the runs that have it, its data and its chart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pandas as pd

from codi_tracing.analysis.experiments.ablation import ablation_curve, ablations, flips
from codi_tracing.analysis.experiments.attribution import agreement, attribution_scatter, attributions
from codi_tracing.analysis.experiments.early_stop import early_stop_curve, early_stops
from codi_tracing.analysis.experiments.influence import influence_matrix, influences
from codi_tracing.analysis.experiments.iterative import iteration_curve, iterations
from codi_tracing.analysis.experiments.knockout import knockout_bars, knockout_data
from codi_tracing.analysis.experiments.matched import matched_chart, matched_sentence, matched_shares
from codi_tracing.analysis.experiments.original import protocol_curve, protocol_sentence, protocols
from codi_tracing.analysis.experiments.shapley import shapley_bars, shapley_interactions, shapley_values
from codi_tracing.analysis.figures.corners import corner_bars
from codi_tracing.analysis.figures.directions import both_directions, direction_agreement, directions_chart
from codi_tracing.analysis.figures.heatmap import heatmap, site_effects
from codi_tracing.analysis.figures.layers import layer_curve, layer_effects
from codi_tracing.analysis.figures.original import critical_layers, kl_by_layer, layer_similarity, pairs_by_layer
from codi_tracing.analysis.figures.pairs import pair_strip, site_pairs
from codi_tracing.analysis.figures.steps import step_curve, step_effects
from codi_tracing.analysis.rows import layerwise
from codi_tracing.analysis.statistics.results import Results
from codi_tracing.configs.vocabulary import EXPERIMENTS, SEGMENTS, SWEEPS


class Figure(NamedTuple):
    """One figure of a report. `fits` takes the run's experiment and table; `data` may be any value for `chart`."""

    section: str
    fits: Callable[[str, pd.DataFrame], bool]
    data: Callable[[Results], Any]
    chart: Callable[[Any], Any]
    sentence: Callable[[Results, Any], str] | None = None  # of the results and the data

    def text(self, results: Results) -> str:
        """The figure's sentence, or none."""
        return self.sentence(results, results.once(self.data)) if self.sentence else ""


def of_experiment(
    name: str,
    data: Callable[[Results], Any],
    chart: Callable[[Any], Any],
    sentence: Callable[[Results, Any], str] | None = None,
) -> Figure:
    """The figure of the runs of one experiment."""
    return Figure(EXPERIMENTS[name].section, lambda run, table: run == name, data, chart, sentence)


def has_layers(name: str, table: pd.DataFrame) -> bool:
    """Whether single layers were written at all steps."""
    return name == "sweep" and not layerwise(table).empty


def has_original_cells(name: str, table: pd.DataFrame) -> bool:
    """Whether the run has what the original experiment's figures show."""
    return name in ("sweep", "original") and not layerwise(table).empty


def has_edits(name: str, table: pd.DataFrame) -> bool:
    return has_layers(name, table) and table["edit"].nunique() > 1


def has_steps(name: str, table: pd.DataFrame) -> bool:
    """Whether layers were written at single steps, or some of them."""
    return name == "sweep" and bool((table["layer"].notna() & table["step"].notna()).any())


def has_sites(name: str, table: pd.DataFrame) -> bool:
    """Whether a sweep wrote more than whole segments."""
    return name == "sweep" and bool((~table["kind"].isin(SEGMENTS)).any())


def has_whole_steps(name: str, table: pd.DataFrame) -> bool:
    """Whether steps were written with all their layers."""
    return name == "sweep" and bool((table["step"].notna() & table["layer"].isna()).any())


def has_both_directions(name: str, table: pd.DataFrame) -> bool:
    """Whether several layers or steps were written in both directions."""
    sites = table[table["layer"].notna() | table["step"].notna()]
    several = len(sites[["kind", "layer", "step", "head"]].drop_duplicates()) > 2
    return name == "sweep" and several and sites["direction"].nunique() > 1


def has_replaced(name: str, table: pd.DataFrame) -> bool:
    """Whether values were replaced by zeros, means or moments; noise alone is a control in the layers' figure."""
    return name == "sweep" and bool(table["source"].isin(["zero", "mean", "step_mean", "moments"]).any())


def has_knockouts(name: str, table: pd.DataFrame) -> bool:
    """Whether attention edges were knocked out."""
    return name == "sweep" and bool(table["knockout"].notna().any())


def first_direction(results: Results) -> str:
    """Denoising, where it was swept."""
    return min(results.main_table["direction"])


def largest_site(results: Results) -> pd.DataFrame:
    """The pairs of the site with the largest effect."""
    direction = first_direction(results)
    largest = results.site_statistics(direction).sort_values("effect").iloc[-1]
    site = {str(key): value for key, value in largest.items()}
    return site_pairs(results.main_table, site, direction=direction)


def shapley_data(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    table, direction = results.main_table, first_direction(results)
    return shapley_values(table, direction=direction), shapley_interactions(table, direction=direction)


LAYERS, ORIGINAL = SWEEPS["layerwise"].section, "The original experiment's figures"
FIGURES: dict[str, Figure] = {
    "corners": Figure("Verdict", lambda name, table: True, lambda run: run.corners, corner_bars),
    "early_stop": of_experiment("early_stop", lambda run: early_stops(run.main_table), early_stop_curve),
    "influence": of_experiment("influence", lambda run: influences(run.main_table), influence_matrix),
    "iterative": of_experiment("iterative", lambda run: iterations(run.main_table), iteration_curve),
    "matched": of_experiment(
        "matched", lambda run: matched_shares(run.main_table), matched_chart, lambda _, data: matched_sentence(data)
    ),
    "original": of_experiment(
        "original", lambda run: protocols(run.table), protocol_curve, lambda _, data: protocol_sentence(data)
    ),
    "attribution": of_experiment(
        "attribution",
        lambda run: attributions(run.main_table),
        attribution_scatter,
        lambda _, data: f"{agreement(data)}.",
    ),
    "shapley": of_experiment("shapley", shapley_data, lambda data: shapley_bars(*data)),
    "layer_curve": Figure(LAYERS, has_layers, lambda run: layer_effects(run.table), layer_curve),
    "critical_layers": Figure(
        LAYERS,
        has_original_cells,
        lambda run: (run.sites(), run.low_ceiling),
        lambda data: critical_layers(data[0], low_ceiling=data[1]),
    ),
    "layer_curve_by_kind": Figure(
        "By kind of edit", has_edits, lambda run: layer_effects(run.table, split="edit"), layer_curve
    ),
    "heatmap": Figure(
        SWEEPS["sitewise"].section,
        has_steps,
        lambda run: site_effects(run.main_table, tested=run.site_statistics),
        heatmap,
    ),
    "step_curve": Figure(SWEEPS["stepwise"].section, has_whole_steps, lambda run: step_effects(run.table), step_curve),
    "pair_strip": Figure(EXPERIMENTS["sweep"].section, has_sites, largest_site, pair_strip),
    "directions": Figure(
        "Denoising against noising",
        has_both_directions,
        lambda run: both_directions(run.main_table),
        directions_chart,
        lambda run, _: f"Over all pairs, {direction_agreement(run.main_table)}.",
    ),
    "ablation": Figure(
        SWEEPS["ablation"].section,
        has_replaced,
        lambda run: (ablations(run.main_table), flips(run.main_table)),
        lambda data: ablation_curve(*data),
    ),
    "knockout": Figure(
        SWEEPS["knockout"].section, has_knockouts, lambda run: knockout_data(run.main_table), knockout_bars
    ),
    "kl_by_layer": Figure(ORIGINAL, has_original_cells, lambda run: run.main_table, kl_by_layer),
    "layer_similarity": Figure(ORIGINAL, has_original_cells, lambda run: run.main_table, layer_similarity),
    "all_pairs_by_layer": Figure(ORIGINAL, has_original_cells, lambda run: run.main_table, pairs_by_layer),
}


def figures_of_run(experiment: str, table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """The figures of a run's report, in order."""
    return ((name, figure) for name, figure in FIGURES.items() if figure.fits(experiment, table))
