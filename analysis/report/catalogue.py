"""Every figure of a report: in which section it stands, for which runs it is drawn, and how."""

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
from codi_tracing.analysis.rows import layerwise, main_protocol
from codi_tracing.analysis.statistics.sites import critical
from codi_tracing.analysis.statistics.verdict import corners
from codi_tracing.analysis.table import SEGMENTS

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
    "corners": Figure("Verdict", lambda table, _: corner_bars(corners(table)), lambda name, table: True),
    "early_stop": Figure("Stopping early", lambda table, _: early_stop_curve(early_stops(table)), of("early_stop")),
    "influence": Figure(
        "Which step moves which", lambda table, _: influence_matrix(influences(table)), of("influence")
    ),
    "iterative": Figure(
        "Steps written one after the other", lambda table, _: iteration_curve(iterations(table)), of("iterative")
    ),
    "matched": Figure(
        "Matched donors: intermediate against answer",
        lambda table, _: matched_chart(matched_shares(table)),
        of("matched"),
        lambda table: matched_sentence(matched_shares(table)),
    ),
    "original": Figure(
        "The single pass beside the loop",
        lambda table, _: protocol_curve(protocols(table)),
        of("original"),
        lambda table: protocol_sentence(protocols(table)),
        beside=True,
    ),
    "attribution": Figure(
        "Estimated and exact",
        lambda table, _: attribution_scatter(attributions(table)),
        of("attribution"),
        lambda table: f"{agreement(attributions(table))}.",
    ),
    "shapley": Figure(
        "What each step contributes",
        lambda table, _: shapley_bars(
            shapley_values(table, direction=first_direction(table)),
            shapley_interactions(table, direction=first_direction(table)),
        ),
        of("shapley"),
    ),
    "layer_curve": Figure(LAYERS, lambda table, _: layer_curve(layer_effects(table)), has_layers, beside=True),
    "critical_layers": Figure(
        LAYERS, lambda table, low: critical_layers(critical(table, low_ceiling=low), low_ceiling=low), has_layers
    ),
    "layer_curve_by_kind": Figure(
        "By kind of edit",
        lambda table, _: layer_curve(layer_effects(table, split="edit")),
        has_kinds,
        beside=True,
    ),
    "heatmap": Figure("Layer by step", lambda table, _: heatmap(site_effects(table)), has_steps),
    "step_curve": Figure(
        "Step by step", lambda table, _: step_curve(step_effects(table)), has_whole_steps, beside=True
    ),
    "pair_strip": Figure(
        "Pair by pair, at the site of the largest pooled effect",
        lambda table, _: pair_strip(site_pairs(table, direction=first_direction(table))),
        has_places,
    ),
    "directions": Figure(
        "Denoising against noising",
        lambda table, _: directions_chart(both_directions(table)),
        has_both,
        lambda table: f"Over all pairs, {direction_agreement(table)}.",
    ),
    "ablation": Figure(
        "Replaced by zero, means and noise",
        lambda table, _: ablation_curve(ablations(table), flips(table)),
        has_replaced,
    ),
    "knockout": Figure("Edges cut", lambda table, _: knockout_bars(knockout_data(table)), has_knockouts),
    "kl_by_layer": Figure(ORIGINAL, lambda table, _: kl_by_layer(table), has_layers),
    "layer_similarity": Figure(ORIGINAL, lambda table, _: layer_similarity(table), has_layers),
    "all_pairs_by_layer": Figure(ORIGINAL, lambda table, _: pairs_by_layer(table), has_layers),
}


def fitting(experiment: str, table: Table) -> Iterator[tuple[str, Figure]]:
    """The figures that a run's report has, in order."""
    return ((name, figure) for name, figure in FIGURES.items() if figure.fits(experiment, table))
