"""Every figure of a report: its section, the runs that have it, its data and its chart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pandas as pd

from codi_tracing.analysis.experiments.ablation import ablation_chart, ablation_data, ablation_sentence, flip_data
from codi_tracing.analysis.experiments.attribution import attribution_agreement, attribution_chart, attribution_data
from codi_tracing.analysis.experiments.early_stop import early_stop_chart, early_stop_data, early_stop_sentence
from codi_tracing.analysis.experiments.influence import influence_chart, influence_data, influence_sentence
from codi_tracing.analysis.experiments.iterative import iterative_chart, iterative_data, iterative_sentence
from codi_tracing.analysis.experiments.knockout import knockout_chart, knockout_data, knockout_sentence
from codi_tracing.analysis.experiments.matched import (
    matched_chart,
    matched_control,
    matched_data,
    matched_sentence,
)
from codi_tracing.analysis.experiments.original import original_chart, original_data, original_sentence
from codi_tracing.analysis.experiments.shapley import (
    shapley_chart,
    shapley_data,
    shapley_interaction_data,
    shapley_sentence,
)
from codi_tracing.analysis.figures.corners import corners_chart
from codi_tracing.analysis.figures.directions import directions_chart
from codi_tracing.analysis.figures.heatmap import heatmap_chart, heatmap_data
from codi_tracing.analysis.figures.layers import layers_chart, layers_data
from codi_tracing.analysis.figures.original import (
    critical_layers_chart,
    kl_by_layer_chart,
    kl_by_layer_data,
    layer_similarity_chart,
    layer_similarity_data,
    pairs_by_layer_chart,
    pairs_by_layer_data,
)
from codi_tracing.analysis.figures.pairs import pairs_chart, pairs_data
from codi_tracing.analysis.figures.steps import steps_chart, steps_data
from codi_tracing.analysis.rows import layerwise_rows
from codi_tracing.analysis.statistics.directions import both_directions, direction_agreement
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
    return name == "sweep" and not layerwise_rows(table).empty


def has_original_cells(name: str, table: pd.DataFrame) -> bool:
    """Whether the run has what the original experiment's figures show."""
    return name in ("sweep", "original") and not layerwise_rows(table).empty


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


def pairs_of_top_site(results: Results) -> pd.DataFrame:
    """The pairs of the site with the largest transfer."""
    direction = results.first_direction
    largest = results.site_statistics(direction).sort_values("effect").iloc[-1]
    site = {str(key): value for key, value in largest.items()}
    return pairs_data(results.main_table, site, direction=direction)


def shapley_of_results(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    table, direction = results.main_table, results.first_direction
    return shapley_data(table, direction=direction), shapley_interaction_data(table, direction=direction)


GRADED = "Graded view: the logit difference, beside its control"
LAYERS, ORIGINAL = SWEEPS["layerwise"].section, "The original experiment's figures"
FIGURES: dict[str, Figure] = {
    "corners": Figure("Verdict", lambda name, table: True, lambda run: run.corners, corners_chart),
    "early_stop": of_experiment(
        "early_stop",
        lambda run: early_stop_data(run.main_table),
        early_stop_chart,
        lambda _, data: early_stop_sentence(data),
    ),
    "influence": of_experiment(
        "influence",
        lambda run: influence_data(run.main_table),
        influence_chart,
        lambda _, data: influence_sentence(data),
    ),
    "iterative": of_experiment(
        "iterative",
        lambda run: iterative_data(run.main_table),
        iterative_chart,
        lambda _, data: iterative_sentence(data),
    ),
    "matched": of_experiment(
        "matched",
        lambda run: matched_data(run.main_table),
        matched_chart,
        lambda run, data: matched_sentence(data, matched_control(run.main_table)),
    ),
    "original": of_experiment(
        "original", lambda run: original_data(run.table), original_chart, lambda _, data: original_sentence(data)
    ),
    "attribution": of_experiment(
        "attribution",
        lambda run: attribution_data(run.main_table),
        attribution_chart,
        lambda _, data: f"{attribution_agreement(data)}.",
    ),
    "shapley": of_experiment(
        "shapley", shapley_of_results, lambda data: shapley_chart(*data), lambda _, data: shapley_sentence(data[0])
    ),
    "layer_curve": Figure(LAYERS, has_layers, lambda run: layers_data(run.table), layers_chart),
    "critical_layers": Figure(
        LAYERS,
        has_original_cells,
        lambda run: (run.sites(), run.ceiling("denoising"), run.low_ceiling),
        lambda data: critical_layers_chart(data[0], data[1], low_ceiling=data[2]),
    ),
    "layer_curve_by_kind": Figure(
        "By kind of edit", has_edits, lambda run: layers_data(run.table, split="edit"), layers_chart
    ),
    "heatmap": Figure(
        SWEEPS["sitewise"].section,
        has_steps,
        lambda run: heatmap_data(run.main_table, tested=run.site_statistics),
        heatmap_chart,
    ),
    "step_curve": Figure(SWEEPS["stepwise"].section, has_whole_steps, lambda run: steps_data(run.table), steps_chart),
    "pair_strip": Figure(EXPERIMENTS["sweep"].section, has_sites, pairs_of_top_site, pairs_chart),
    "directions": Figure(
        "Denoising against noising",
        has_both_directions,
        lambda run: both_directions(run.main_table),
        directions_chart,
        lambda _, data: f"By specific transfer, {direction_agreement(data)}." if data["specific"].all() else "",
    ),
    "ablation": Figure(
        SWEEPS["ablation"].section,
        has_replaced,
        lambda run: (ablation_data(run.main_table), flip_data(run.main_table)),
        lambda data: ablation_chart(*data),
        lambda _, data: ablation_sentence(data[0]),
    ),
    "knockout": Figure(
        SWEEPS["knockout"].section,
        has_knockouts,
        lambda run: knockout_data(run.main_table),
        knockout_chart,
        lambda _, data: knockout_sentence(data),
    ),
    "layer_curve_graded": Figure(
        GRADED, has_layers, lambda run: layers_data(run.table, "logit_difference"), layers_chart
    ),
    "step_curve_graded": Figure(
        GRADED, has_whole_steps, lambda run: steps_data(run.table, "logit_difference"), steps_chart
    ),
    "heatmap_graded": Figure(
        GRADED,
        has_steps,
        lambda run: heatmap_data(
            run.main_table, "logit_difference", lambda direction: run.site_statistics(direction, "logit_difference")
        ),
        heatmap_chart,
    ),
    "kl_by_layer": Figure(
        ORIGINAL, has_original_cells, lambda run: kl_by_layer_data(run.main_table), kl_by_layer_chart
    ),
    "layer_similarity": Figure(
        ORIGINAL, has_original_cells, lambda run: layer_similarity_data(run.main_table), layer_similarity_chart
    ),
    "all_pairs_by_layer": Figure(
        ORIGINAL, has_original_cells, lambda run: pairs_by_layer_data(run.main_table), pairs_by_layer_chart
    ),
}


def figures_of_run(experiment: str, table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """The figures of a run's report, in order."""
    return ((name, figure) for name, figure in FIGURES.items() if figure.fits(experiment, table))


ASKED = {"ablation": has_replaced, "knockout": has_knockouts, "sitewise": has_steps, "layerwise": has_layers,
         "stepwise": has_whole_steps}  # fmt: skip


def question_and_answer(experiment: str, results: Results) -> tuple[str, str]:
    """What a run was asked, and the answer with its uncertainty, or why there is none."""
    asked = [name for name, fits in ASKED.items() if fits(experiment, results.table)]
    entry = SWEEPS[asked[0]] if asked else EXPERIMENTS.get(experiment)
    sentences: list[str] = []
    for name in [experiment, *asked]:
        if name in FIGURES and FIGURES[name].fits(experiment, results.table):
            try:
                sentences.append(FIGURES[name].text(results))
            except ValueError as error:
                sentences.append(f"Not answered: {error}.")
    if has_sites(experiment, results.table):
        sentences += results.summary["sentences"][1:]
    return entry.question if entry else "", " ".join(filter(None, sentences)) or results.verdict.sentence
