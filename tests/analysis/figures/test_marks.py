"""All figures: what they draw is what was computed, and their headings say what it is."""

import altair as alt
import pandas as pd
import pytest

from codi_tracing.analysis.figures.corners import corners_chart
from codi_tracing.analysis.figures.directions import directions_chart
from codi_tracing.analysis.figures.heatmap import heatmap_chart, heatmap_data
from codi_tracing.analysis.figures.layers import LAYER_DASHES, layers_chart, layers_data
from codi_tracing.analysis.figures.original import (
    critical_layers_chart,
    kl_by_layer_chart,
    kl_by_layer_data,
    layer_similarity_chart,
    layer_similarity_data,
    pairs_by_layer_chart,
    pairs_by_layer_data,
)
from codi_tracing.analysis.figures.pairs import pair_chart, pair_data, pairs_chart, pairs_data
from codi_tracing.analysis.statistics.ceiling import ceiling
from codi_tracing.analysis.statistics.corners import corners
from codi_tracing.analysis.statistics.directions import both_directions
from codi_tracing.analysis.statistics.effects import by_site, effect
from codi_tracing.analysis.statistics.measures import measured
from codi_tracing.analysis.statistics.sites import critical
from tests.support.charts import drawn, words
from tests.support.tables import experiment


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return experiment(layers=(0.2, 0.9, 0.5), pairs=12)


def all_charts(table: pd.DataFrame) -> dict:
    return {
        "layers": layers_chart(layers_data(table)),
        "kl_by_layer": kl_by_layer_chart(kl_by_layer_data(table)),
        "pairs_by_layer": pairs_by_layer_chart(pairs_by_layer_data(table)),
        "critical_layers": critical_layers_chart(critical(table), ceiling(table)),
        "layer_similarity": layer_similarity_chart(layer_similarity_data(table)),
        "corners": corners_chart(corners(table)),
        "heatmap": heatmap_chart(by_site(effect(measured(table)), direction="denoising")),
        "pair_chart": pair_chart(pair_data(table, "3"), "How many eggs?"),
        "pairs": pairs_chart(pairs_data(table)),
        "directions": directions_chart(both_directions(table)),
    }


def test_every_chart_names_its_number_of_pairs_and_its_protocol(table):
    for name, chart in all_charts(table).items():
        said = words(drawn(chart))
        assert ("n = 1 pair" if name == "pair_chart" else "n = 12 pairs") in said
        assert "protocol latent_loop" in said


def test_drawing_changes_neither_the_table_nor_altairs_state(table):
    before, theme, transformer = table.copy(), alt.theme.active, alt.data_transformers.active
    all_charts(table)
    pd.testing.assert_frame_equal(table, before)
    assert (alt.theme.active, alt.data_transformers.active) == (theme, transformer)


def test_every_chart_of_a_thousand_pairs_holds_pooled_rows_and_no_pair_by_pair_table():
    many = experiment(layers=(0.2, 0.9, 0.5), pairs=1_000)
    for name, chart in (all_charts(many) | {"tested": heatmap_chart(heatmap_data(many))}).items():
        rows = sum(len(values) for values in drawn(chart)["datasets"].values())
        assert rows <= (5_000 if name == "pairs_by_layer" else 600), name


def test_curves_of_both_directions_are_visible_if_they_are_equal(table):
    for name in ("layers", "pair_chart"):
        widths = [part for part in parts(drawn(all_charts(table)[name]), "strokeWidth") if isinstance(part, dict)]
        assert widths
        for width in widths:
            assert width["condition"]["test"] == "(datum.direction === 'denoising')"
            assert width["condition"]["value"] > width["value"]


def test_the_lines_of_a_legend_are_longer_than_their_dashes(table):
    legends = [part["legend"] for part in parts(drawn(layers_chart(layers_data(table))), "strokeDash")]
    dashes = [sum(dash) for dash in LAYER_DASHES.values()]
    assert legends
    assert all(legend["symbolSize"] ** 0.5 > max(dashes) for legend in legends)


def parts(spec, name: str) -> list:
    """Every value that a name has, however deep in a specification."""
    if isinstance(spec, list):
        return [found for item in spec for found in parts(item, name)]
    if not isinstance(spec, dict):
        return []
    own = [spec[name]] if name in spec and not isinstance(spec[name], list) else []
    return own + [found for key, value in spec.items() if key not in ("datasets", name) for found in parts(value, name)]
