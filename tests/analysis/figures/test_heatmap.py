"""The tested heatmap: what is faint, what is crossed out, and what stands beside what."""

import json

import numpy as np
import pandas as pd
import pytest

from codi_tracing.analysis.figures.heatmap import MARK, heatmap, heatmap_chart, heatmap_data
from codi_tracing.analysis.report.methods import methods
from codi_tracing.analysis.statistics.effects import by_site, effect
from codi_tracing.analysis.statistics.measures import measured
from codi_tracing.analysis.statistics.sites import critical
from codi_tracing.analysis.table import check_table
from tests.support.charts import drawn, words
from tests.support.tables import as_transfer, cell, experiment


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return experiment(layers=(0.2, 0.9, 0.5), pairs=12)


def make_cells(last: float = 0.0, pairs: int = 30, unrelated: bool = True) -> pd.DataFrame:
    """Two layers × two steps: a large effect, one as an unrelated donor's, a small one, and at the end `last`."""
    rng = np.random.default_rng(0)
    effects = {(0, 0): 0.8, (0, 1): 0.3, (1, 0): 0.6, (1, 1): last}
    rows = []
    for pair in range(pairs):
        clean, corrupted = rng.uniform(2, 6), -rng.uniform(2, 6)
        for direction, donor in (("denoising", "clean"), ("noising", "corrupted")):
            host, other = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
            for (layer, step), true in effects.items():
                for source, mean in ((donor, true), *([("unrelated", min(true, 0.3))] if unrelated else [])):
                    moved = mean + (0.05 * rng.standard_normal() if mean else 0.0)
                    value = host + moved * (other - host)
                    row = cell(pair, direction, source, "resid", "logit_difference", value, clean, corrupted, layer)
                    rows.append(row | {"step": step, "step_last": step})
            whole = host + 0.9 * (other - host)
            rows.append(cell(pair, direction, donor, "thought", "logit_difference", whole, clean, corrupted))
            if unrelated:
                rows.append(cell(pair, direction, "unrelated", "thought", "logit_difference", host, clean, corrupted))
            rows.append(cell(pair, direction, "self", "thought", "logit_difference", host, clean, corrupted))
    return as_transfer(check_table(pd.DataFrame(rows)))


def cells(spec: dict) -> pd.DataFrame:
    values = [value for part in spec["datasets"].values() for value in part]
    return pd.DataFrame(values).set_index(["direction", "layers", "steps"]).sort_index()


def test_sites_like_an_unrelated_donor_are_faint_and_sites_without_any_change_are_crossed_out():
    spec = drawn(heatmap_chart(heatmap_data(make_cells())))
    found = cells(spec).loc["denoising"]
    assert found["shown"].to_dict() == {("0", "0"): "yes", ("0", "1"): "no", ("1", "0"): "yes", ("1", "1"): "no"}
    assert found["label"][("1", "1")] == MARK
    assert (found["label"] == MARK).sum() == 1
    assert "Faint: not told apart from an unrelated donor" in words(spec)
    assert "×: no run changed" in words(spec)
    assert spec["concat"][0]["layer"][0]["encoding"]["opacity"]["condition"]["test"] == "(datum.shown === 'yes')"


def test_a_small_effect_at_the_last_site_is_not_taken_for_none():
    found = heatmap_data(make_cells(last=0.002))
    assert not found["inert"].any()
    assert MARK not in set(cells(drawn(heatmap_chart(found)))["label"])


def test_in_half_precision_a_change_as_large_as_a_self_patchs_is_rounding():
    table = make_cells(last=0.0)
    noisy = table.assign(patched=table["patched"] + 0.01 * (-1.0) ** np.arange(len(table)))
    found = heatmap_data(noisy).set_index(["direction", "layer", "step"])
    assert found["inert"].sum() == 2
    assert found.loc[("noising", 1, 1), "inert"]


def test_the_tests_of_the_heatmap_are_those_of_the_critical_sites():
    table = make_cells()
    ours = heatmap_data(table).query("direction == 'denoising' and kind == 'resid'").set_index(["layer", "step"])
    theirs = critical(table).set_index(["layer", "step"])
    for name in ("effect", "low", "high", "p_fwer"):
        np.testing.assert_allclose(ours[name], theirs.loc[ours.index, name])


def test_without_an_unrelated_donor_no_site_is_faint_and_the_heading_says_why():
    spec = drawn(heatmap_chart(heatmap_data(make_cells(unrelated=False))))
    assert set(cells(spec)["shown"]) == {"yes"}
    assert "Nothing is tested: no unrelated donor was swept" in words(spec)
    assert words(spec).startswith("Transfer by layer and step: residual stream")


def test_the_whole_thought_in_the_heading_is_the_ceiling_on_the_same_scale():
    assert "ceiling: denoising 0.90; noising 0.90" in words(drawn(heatmap_chart(heatmap_data(make_cells()))))


def test_on_the_logit_difference_the_control_stands_in_panels_of_its_own_and_nothing_is_tested():
    sites = heatmap_data(make_cells(), "logit_difference")
    own = sites[(sites["source"] == "clean") & (sites["kind"] == "resid")].set_index(["layer", "step"])["effect"]
    assert own[0, 0] == pytest.approx(0.8, abs=0.02)  # plain, whatever the control does
    spec = drawn(heatmap_chart(sites))
    assert [panel["title"] for panel in spec["concat"]][:2] == [
        "residual stream, denoising, other run", "residual stream, noising, other run"
    ]  # fmt: skip
    assert "residual stream, denoising, unrelated" in [panel["title"] for panel in spec["concat"]]
    assert "Faint" not in words(spec)
    json.dumps(spec, allow_nan=False)
    assert words(spec).startswith("Effect by layer and step")


def test_the_tooltip_has_interval_counts_and_p():
    spec = drawn(heatmap_chart(heatmap_data(make_cells())))
    tips = {tip["field"] for tip in spec["concat"][0]["layer"][0]["encoding"]["tooltip"]}
    assert {"effect", "low", "high", "n", "clusters", "p_fwer"} <= tips


def test_frozen_routes_and_kinds_of_site_have_rows_of_their_own_and_directions_columns():
    table = make_cells()
    frozen = table[table["kind"] == "resid"].assign(freeze="R")
    spec = drawn(heatmap_chart(heatmap_data(pd.concat([table, frozen, frozen.assign(kind="mlp")]))))
    assert spec["columns"] == 2
    assert [panel["title"] for panel in spec["concat"]][::2] == [
        "residual stream, denoising, other run, nothing frozen",
        "residual stream, denoising, other run, frozen: R",
        "MLP output, denoising, other run, frozen: R",
    ]


def test_untested_effects_are_not_faint():
    spec = drawn(heatmap_chart(by_site(effect(measured(experiment(layers=(0.8, 0.3)))), direction="denoising")))
    assert "Faint" not in words(spec)
    with pytest.raises(ValueError, match="no rows of metric 'mood'"):
        heatmap_data(make_cells(), metric="mood")


def test_a_panel_of_very_many_rows_stays_on_a_page_and_leaves_its_numbers_out():
    sites = by_site(effect(measured(make_cells())), direction="denoising")
    one = sites[(sites["kind"] == "resid")].head(1)
    many = pd.concat([one.assign(kind="head", layer=i // 32, layer_last=i // 32, head=i % 32) for i in range(512)])
    few, tall = (drawn(heatmap_chart(places.astype({"head": "Int64"}))) for places in (many.head(8), many))
    assert few["height"] == 8 * 22
    assert tall["height"] <= 1000
    assert [layer["mark"]["type"] for layer in few["layer"]] == ["rect", "text"]
    assert [layer["mark"]["type"] for layer in tall["layer"]] == ["rect"]


def test_effects_are_plain_where_the_whole_thought_alone_has_an_unrelated_donor():
    table = experiment(layers=(0.9, 0.5), pairs=12)
    without = table[(table["kind"] == "thought") | (table["source"] != "unrelated")]
    assert (without["source"] == "unrelated").any()
    said = words(drawn(heatmap_chart(heatmap_data(without))))
    assert said.startswith("Transfer by layer and step: residual stream")
    assert "0 the host's answer, 1 the partner's" in said
    text = " ".join(methods({}, without))
    assert "their transfer has no control, and no p-values" in text


def test_a_heatmap_of_specific_transfer_says_so(table):
    plain = heatmap_chart(by_site(effect(measured(table)), direction="denoising"))
    assert words(drawn(plain)).startswith("Transfer by layer and step")
    beyond = heatmap_chart(heatmap_data(table))
    assert words(drawn(beyond)).startswith("Specific transfer by layer and step: residual stream")
    assert "less an unrelated donor's" in words(drawn(beyond))


def test_diverging_colours_are_centred_on_zero(table):
    spec = drawn(heatmap_chart(by_site(effect(measured(table)), direction="noising")))
    low, high = spec["layer"][0]["encoding"]["color"]["scale"]["domain"]
    assert low == -high
    assert spec["layer"][0]["encoding"]["color"]["scale"]["domainMid"] == 0


def test_a_heatmap_names_windows_and_all_steps(table):
    sites = by_site(effect(measured(table)), direction="denoising")
    window = sites[sites["layer"] == 0].assign(layer_last=2, step=1, step_last=1)
    spec = drawn(heatmap_chart(pd.concat([sites, window])))
    places = {(value["layers"], value["steps"]) for value in next(iter(spec["datasets"].values()))}
    assert places == {("0", "all"), ("1", "all"), ("2", "all"), ("0–2", "1")}


def test_one_call_draws_the_heatmap_of_a_table():
    table = make_cells()
    assert drawn(heatmap(table)) == drawn(heatmap_chart(heatmap_data(table)))


def test_a_heatmap_needs_a_layer_or_a_step(table):
    with pytest.raises(ValueError, match="no site with a layer or a step to draw"):
        heatmap_chart(by_site(effect(measured(table[table["kind"] == "thought"]))))
