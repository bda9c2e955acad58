"""Every figure of a report: in which section it stands, for which runs it is drawn, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pandas as pd

from codi_tracing.analysis.experiments.ablation import ablation_chart, ablation_data, flip_data
from codi_tracing.analysis.experiments.attribution import attribution_agreement, attribution_chart, attribution_data
from codi_tracing.analysis.experiments.early_stop import early_stop_chart, early_stop_data
from codi_tracing.analysis.experiments.influence import influence_chart, influence_data
from codi_tracing.analysis.experiments.iterative import iterative_chart, iterative_data
from codi_tracing.analysis.experiments.knockout import knockout_chart, knockout_data
from codi_tracing.analysis.experiments.matched import matched_chart, matched_data, matched_sentence
from codi_tracing.analysis.experiments.original import original_chart, original_data, original_sentence
from codi_tracing.analysis.experiments.shapley import shapley_chart, shapley_data, shapley_interaction_data
from codi_tracing.analysis.figures.corners import corners_chart
from codi_tracing.analysis.figures.directions import directions_chart, directions_data
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
from codi_tracing.analysis.rows import layerwise, main_protocol
from codi_tracing.analysis.statistics.corners import corners
from codi_tracing.analysis.statistics.directions import direction_agreement
from codi_tracing.analysis.statistics.sites import critical
from codi_tracing.configs.vocabulary import SEGMENTS

Table = pd.DataFrame


class Figure(NamedTuple):
    """One figure: `fits` says whether a run's experiment and table are of the kind that it shows."""

    section: str
    draw: Callable[[Table, float], Any]  # with the ceiling under which nothing is critical
    fits: Callable[[str, Table], bool]
    says: Callable[[Table], str] | None = None  # what it shows, in a sentence
    beside: bool = False  # whether it shows the controls of other protocols too, and not the run's own alone

    def rows(self, table: Table) -> Table:
        """The rows that it shows."""
        return table if self.beside else main_protocol(table)


def of(experiment: str) -> Callable[[str, Table], bool]:
    """Fits the runs of one experiment."""
    return lambda name, table: name == experiment


def has_layers(name: str, table: Table) -> bool:
    """Whether single layers were written at all steps, as the original experiment did."""
    return name == "sweep" and not layerwise(table).empty


def has_kinds(name: str, table: Table) -> bool:
    return has_layers(name, table) and table["edit"].nunique() > 1


def has_steps(name: str, table: Table) -> bool:
    """Whether layers were written at single steps, or some of them."""
    return name == "sweep" and bool((table["layer"].notna() & table["step"].notna()).any())


def has_places(name: str, table: Table) -> bool:
    """Whether a sweep wrote anything but whole segments."""
    return name == "sweep" and bool((~table["kind"].isin(SEGMENTS)).any())


def has_whole_steps(name: str, table: Table) -> bool:
    """Whether steps were written with all their layers."""
    return name == "sweep" and bool((table["step"].notna() & table["layer"].isna()).any())


def has_both(name: str, table: Table) -> bool:
    """Whether several layers or steps were written in both directions."""
    places = table[table["layer"].notna() | table["step"].notna()]
    several = len(places[["kind", "layer", "step", "head"]].drop_duplicates()) > 2
    return name == "sweep" and several and places["direction"].nunique() > 1


def has_replaced(name: str, table: Table) -> bool:
    """Whether something was replaced by a computed value; noise alone is a control, and drawn beside the layers."""
    return name == "sweep" and bool(table["source"].isin(["zero", "mean", "step_mean", "moments"]).any())


def has_knockouts(name: str, table: Table) -> bool:
    """Whether attention edges were knocked out."""
    return name == "sweep" and bool(table["knockout"].notna().any())


def first_direction(table: Table) -> str:
    """Denoising, where it was swept."""
    return min(table["direction"])


LAYERS, ORIGINAL = "How far one layer moves the answer", "The original experiment's figures"
FIGURES: dict[str, Figure] = {
    "corners": Figure("Verdict", lambda table, _: corners_chart(corners(table)), lambda name, table: True),
    "early_stop": Figure("Stopping early", lambda table, _: early_stop_chart(early_stop_data(table)), of("early_stop")),
    "influence": Figure(
        "Which step moves which", lambda table, _: influence_chart(influence_data(table)), of("influence")
    ),
    "iterative": Figure(
        "Steps written one after the other", lambda table, _: iterative_chart(iterative_data(table)), of("iterative")
    ),
    "matched": Figure(
        "Matched donors: intermediate against answer",
        lambda table, _: matched_chart(matched_data(table)),
        of("matched"),
        lambda table: matched_sentence(matched_data(table)),
    ),
    "original": Figure(
        "The single pass beside the loop",
        lambda table, _: original_chart(original_data(table)),
        of("original"),
        lambda table: original_sentence(original_data(table)),
        beside=True,
    ),
    "attribution": Figure(
        "Estimated and exact",
        lambda table, _: attribution_chart(attribution_data(table)),
        of("attribution"),
        lambda table: f"{attribution_agreement(attribution_data(table))}.",
    ),
    "shapley": Figure(
        "What each step contributes",
        lambda table, _: shapley_chart(
            shapley_data(table, direction=first_direction(table)),
            shapley_interaction_data(table, direction=first_direction(table)),
        ),
        of("shapley"),
    ),
    "layer_curve": Figure(LAYERS, lambda table, _: layers_chart(layers_data(table)), has_layers, beside=True),
    "critical_layers": Figure(
        LAYERS, lambda table, low: critical_layers_chart(critical(table, low_ceiling=low), low_ceiling=low), has_layers
    ),
    "layer_curve_by_kind": Figure(
        "By kind of edit",
        lambda table, _: layers_chart(layers_data(table, split="edit")),
        has_kinds,
        beside=True,
    ),
    "heatmap": Figure("Layer by step", lambda table, _: heatmap_chart(heatmap_data(table)), has_steps),
    "step_curve": Figure("Step by step", lambda table, _: steps_chart(steps_data(table)), has_whole_steps, beside=True),
    "pair_strip": Figure(
        "Pair by pair, at the site of the largest pooled effect",
        lambda table, _: pairs_chart(pairs_data(table, direction=first_direction(table))),
        has_places,
    ),
    "directions": Figure(
        "Denoising against noising",
        lambda table, _: directions_chart(directions_data(table)),
        has_both,
        lambda table: f"Over all pairs, {direction_agreement(table)}.",
    ),
    "ablation": Figure(
        "Replaced by zero, means and noise",
        lambda table, _: ablation_chart(ablation_data(table), flip_data(table)),
        has_replaced,
    ),
    "knockout": Figure("Edges cut", lambda table, _: knockout_chart(knockout_data(table)), has_knockouts),
    "kl_by_layer": Figure(ORIGINAL, lambda table, _: kl_by_layer_chart(kl_by_layer_data(table)), has_layers),
    "layer_similarity": Figure(
        ORIGINAL, lambda table, _: layer_similarity_chart(layer_similarity_data(table)), has_layers
    ),
    "all_pairs_by_layer": Figure(
        ORIGINAL, lambda table, _: pairs_by_layer_chart(pairs_by_layer_data(table)), has_layers
    ),
}


def fitting(experiment: str, table: Table) -> Iterator[tuple[str, Figure]]:
    """The figures that a run's report has, in order."""
    return ((name, figure) for name, figure in FIGURES.items() if figure.fits(experiment, table))
