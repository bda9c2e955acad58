"""Charts: what they draw is what was computed, and they say what it is."""

import altair as alt
import numpy as np
import pandas as pd
import pytest

from codi_tracing.analysis.figures.corners import corners_chart
from codi_tracing.analysis.figures.directions import directions_chart, directions_data
from codi_tracing.analysis.figures.heatmap import heatmap_chart, heatmap_data
from codi_tracing.analysis.figures.layers import DASHES, layers_chart, layers_data
from codi_tracing.analysis.figures.original import (
    critical_layers_chart,
    kl_by_layer_chart,
    kl_by_layer_data,
    layer_similarity_chart,
    pairs_by_layer_chart,
)
from codi_tracing.analysis.figures.pairs import pair_chart, pair_specs, pairs_chart, pairs_data
from codi_tracing.analysis.statistics.corners import corners
from codi_tracing.analysis.statistics.effects import by_site, effect, specific
from codi_tracing.analysis.statistics.sites import critical
from tests.analysis.statistics.test_verdict import experiment


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return experiment(layers=(0.2, 0.9, 0.5), pairs=12)


def drawn(chart: alt.TopLevelMixin) -> dict:
    """The chart's Vega-Lite, checked against its schema."""
    return chart.to_dict()


def words(spec: dict) -> str:
    """All that a chart's heading says."""
    return " ".join([*spec["title"]["text"], *spec["title"]["subtitle"]])


def all_charts(table: pd.DataFrame) -> dict:
    return {
        "layer_curve": layers_chart(layers_data(table)),
        "kl_by_layer": kl_by_layer_chart(table),
        "pairs_by_layer": pairs_by_layer_chart(table),
        "critical_layers": critical_layers_chart(critical(table)),
        "layer_similarity": layer_similarity_chart(table),
        "corner_bars": corners_chart(corners(table)),
        "heatmap": heatmap_chart(by_site(effect(table), direction="denoising", metric="logit_difference")),
        "pair_chart": pair_chart(table, "3", "How many eggs?"),
        "pair_strip": pairs_chart(pairs_data(table)),
        "directions": directions_chart(directions_data(table)),
    }


def test_every_chart_says_how_many_pairs_of_which_protocol_it_rests_on(table):
    for name, chart in all_charts(table).items():
        said = words(drawn(chart))
        assert ("n = 1 pair" if name == "pair_chart" else "n = 12 pairs") in said
        assert "protocol latent_loop" in said


def test_drawing_changes_neither_the_table_nor_altairs_state(table):
    before, theme, transformer = table.copy(), alt.theme.active, alt.data_transformers.active
    all_charts(table)
    pd.testing.assert_frame_equal(table, before)
    assert (alt.theme.active, alt.data_transformers.active) == (theme, transformer)


def test_the_layer_curve_lies_between_the_unrelated_donor_and_the_ceiling(table):
    rows = layers_data(table).set_index(["written", "direction", "layer"])["effect"].sort_index()
    assert rows["one layer", "denoising", 1] == pytest.approx(0.9, abs=0.1)
    assert rows["one layer, unrelated donor", "noising"].mean() == pytest.approx(0.3, abs=0.1)
    ceilings = rows["whole thought (ceiling)", "denoising"]
    assert ceilings.nunique() == 1
    assert ceilings.index.tolist() == [0, 1, 2]


def by_kind(table: pd.DataFrame) -> pd.DataFrame:
    """The same table, a third of whose pairs change an operator word and the others a number."""
    return table.assign(kind=table["pair_id"].map(lambda pair: "operator_word" if int(pair) % 3 == 0 else "operand"))


def test_split_by_kind_each_panel_is_the_curve_of_its_own_pairs(table):
    split = layers_data(by_kind(table), split="edit")
    alone = layers_data(table[table["pair_id"].map(int) % 3 == 0])
    part = split[split["edit"] == "operator_word"].reset_index(drop=True)
    pd.testing.assert_frame_equal(part[alone.columns], alone, check_dtype=False)
    titles = [panel["title"] for panel in drawn(layers_chart(split))["hconcat"]]
    assert titles == ["operand (n = 8)", "operator word (n = 4)"]
    assert len(heatmap_chart(by_site(effect(by_kind(table)), direction="denoising", split="edit")).concat) == 2


def test_a_heatmap_of_specific_effects_says_so(table):
    assert words(drawn(heatmap_chart(by_site(effect(table), direction="denoising")))).startswith(
        "Effect by layer and step"
    )
    beyond = heatmap_chart(by_site(specific(table), direction="denoising"), specific=True)
    assert words(drawn(beyond)).startswith("Specific effect by layer and step: residual stream")
    assert "(0: as an unrelated donor)" in words(drawn(beyond))


def test_a_table_without_kinds_cannot_be_split_by_them(table):
    with pytest.raises(ValueError, match="no pair has the field 'edit', so there is nothing to split by"):
        layers_data(table, split="edit")
    with pytest.raises(ValueError, match="the table has no column 'mood' to split by; it has pair_id"):
        by_site(effect(table), split="mood")


def test_the_kl_curve_is_the_mean_over_pairs_and_its_band_holds_it(table):
    means = kl_by_layer_data(table).set_index("layer")
    cells = table.query("metric == 'kl_from_corrupted' and kind == 'resid' and source == 'clean'")
    np.testing.assert_allclose(means["effect"], cells.groupby("layer")["patched"].mean())
    assert ((means["low"] < means["effect"]) & (means["effect"] < means["high"])).all()


def test_a_large_table_is_drawn_by_means_of_like_pairs(table):
    many = pd.concat([table.assign(pair_id=table["pair_id"] + f"/{i}") for i in range(400)])
    spec = drawn(pairs_by_layer_chart(many))
    values = next(iter(spec["datasets"].values()))
    assert len(values) <= 5_000
    assert "a row is the mean of 4 pairs" in words(spec)
    cells = many.query("metric == 'kl_from_corrupted' and kind == 'resid' and source == 'clean'")
    assert np.mean([value["kl"] for value in values]) == pytest.approx(cells["patched"].mean(), rel=1e-6)


def test_every_chart_of_a_thousand_pairs_holds_what_was_pooled_and_no_pair_by_pair_table():
    many = experiment(layers=(0.2, 0.9, 0.5), pairs=1_000)
    for name, chart in (all_charts(many) | {"tested": heatmap_chart(heatmap_data(many))}).items():
        held = sum(len(values) for values in drawn(chart)["datasets"].values())
        assert held <= (5_000 if name == "pairs_by_layer" else 600), name


def test_the_word_critical_needs_a_ceiling_that_is_not_low(table):
    assert "Critical layers" in words(drawn(critical_layers_chart(critical(table))))
    low = words(drawn(critical_layers_chart(critical(experiment(layers=(0.2, 0.9), thought=(0.1, 0.1))))))
    assert "Specific effects, the largest first" in low
    assert "no layer may be called critical" in low


def test_diverging_colours_are_centred_on_zero(table):
    spec = drawn(heatmap_chart(by_site(effect(table), metric="logit_difference", direction="noising")))
    low, high = spec["layer"][0]["encoding"]["color"]["scale"]["domain"]
    assert low == -high
    assert spec["layer"][0]["encoding"]["color"]["scale"]["domainMid"] == 0


def test_a_heatmap_names_windows_and_all_steps(table):
    sites = by_site(effect(table), direction="denoising")
    window = sites[sites["layer"] == 0].assign(layer_last=2, step=1, step_last=1)
    spec = drawn(heatmap_chart(pd.concat([sites, window])))
    places = {(value["layers"], value["steps"]) for value in next(iter(spec["datasets"].values()))}
    assert places == {("0", "all"), ("1", "all"), ("2", "all"), ("0–2", "1")}


def test_layers_that_disturb_the_same_pairs_correlate(table):
    spec = drawn(layer_similarity_chart(table))
    values = pd.DataFrame(next(iter(spec["datasets"].values()))).pivot(index="a", columns="b", values="r")
    np.testing.assert_allclose(np.diag(values), 1)
    np.testing.assert_allclose(values, values.T)
    with pytest.raises(ValueError, match="needs at least 3 pairs, found 2"):
        layer_similarity_chart(table[table["pair_id"].isin(["0", "1"])])


def test_models_stand_side_by_side_and_each_corner_adds_up(table):
    two = pd.concat(
        [corners(table).assign(model="thought"), corners(experiment(thought=(0, 0))).assign(model="bypass")]
    )
    spec = drawn(corners_chart(two))
    values = pd.DataFrame(next(iter(spec["datasets"].values())))
    assert spec["facet"]["column"]["sort"] == ["thought", "bypass"]
    np.testing.assert_allclose(values.groupby(["model", "corner"])["share"].sum(), 1)


def test_a_pairs_chart_is_the_same_alone_and_in_the_series_of_all_pairs(table):
    specs = dict(pair_specs(table, {"3": "How many eggs?"}))
    assert list(specs) == [str(pair) for pair in range(12)]
    alone = drawn(pair_chart(table, "3", "How many eggs?"))
    assert {**specs["3"], "$schema": None} == {**alone, "$schema": None}
    with pytest.raises(ValueError, match="pair 77: the table has no rows"):
        pair_chart(table, "77")


def test_what_cannot_be_drawn_is_said_in_a_sentence(table):
    with pytest.raises(ValueError, match="no denoising rows of one layer's residual with metric 'kl_from_corrupted'"):
        kl_by_layer_chart(table[table["metric"] == "logit_difference"])
    with pytest.raises(ValueError, match="no rows of one layer's residual"):
        layers_data(table[table["kind"] == "thought"])
    with pytest.raises(ValueError, match="no site with a layer or a step to draw"):
        heatmap_chart(by_site(effect(table[table["kind"] == "thought"])))
    with pytest.raises(ValueError, match="the corners have no answers"):
        corners_chart(corners(table[table["metric"] == "logit_difference"]))


def test_curves_of_both_directions_are_seen_where_they_are_equal(table):
    for name in ("layer_curve", "pair_chart"):
        widths = [part for part in parts(drawn(all_charts(table)[name]), "strokeWidth") if isinstance(part, dict)]
        assert widths
        for width in widths:
            assert width["condition"]["test"] == "(datum.direction === 'denoising')"
            assert width["condition"]["value"] > width["value"]


def test_the_lines_of_a_legend_are_longer_than_their_dashes(table):
    legends = [part["legend"] for part in parts(drawn(layers_chart(layers_data(table))), "strokeDash")]
    dashes = [sum(dash) for dash in DASHES]
    assert legends
    assert all(legend["symbolSize"] ** 0.5 > max(dashes) for legend in legends)


def test_a_low_ceiling_is_the_one_that_the_layers_were_ranked_with(table):
    low = critical_layers_chart(critical(table, low_ceiling=0.99), low_ceiling=0.99)
    assert "which is low: no layer may be called critical" in words(drawn(low))
    assert "which is low" not in words(drawn(critical_layers_chart(critical(table))))


def parts(spec, name: str) -> list:
    """Every value that a name has, however deep in a specification."""
    if isinstance(spec, list):
        return [found for item in spec for found in parts(item, name)]
    if not isinstance(spec, dict):
        return []
    own = [spec[name]] if name in spec and not isinstance(spec[name], list) else []
    return own + [found for key, value in spec.items() if key not in ("datasets", name) for found in parts(value, name)]
