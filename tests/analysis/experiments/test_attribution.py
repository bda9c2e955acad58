"""Estimates against exact effects: pooled as the sweep chose them, with the top, the random checks and the misses."""

import pandas as pd
import pytest

from codi_tracing.analysis.experiments.attribution import attribution_agreement, attribution_chart, attribution_data
from codi_tracing.analysis.table import COLUMNS, check_table


def row(pair, patched, metric="logit_difference_estimate", direction="denoising", gap=1.0, **where) -> dict:
    """One run's logit difference, whose references are 0 (corrupted) and the gap (clean), estimated or exact."""
    place = {"kind": "resid", "layer": 1, "step": 2} | where
    return dict.fromkeys(COLUMNS) | {
        "pair_id": str(pair), "cluster_id": str(pair), "protocol": "latent_loop", "direction": direction,
        "source": {"denoising": "clean", "noising": "corrupted"}[direction], "metric": metric, "patched": patched,
        "clean": gap, "corrupted": 0.0, "layer_last": place["layer"], "step_last": place["step"], **place,
    }  # fmt: skip


def table(rows) -> pd.DataFrame:
    return check_table(pd.DataFrame(rows))


def exact(pair, patched, **more) -> dict:
    return row(pair, patched, "logit_difference", **more)


def places(effects, pairs=2) -> list[dict]:
    """A place for each (estimate, exact effect or None), at layer 0, 1 and so on, the same in every pair."""
    rows = []
    for layer, (estimate, effect) in enumerate(effects):
        rows += [row(pair, estimate, layer=layer) for pair in range(pairs)]
        rows += [exact(pair, effect, layer=layer) for pair in range(pairs) if effect is not None]
    return rows


# By |estimate|: three verified at the top, a place not verified, and below it two random checks.
MIXED = [(0.9, 0.8), (-0.6, -0.1), (0.5, 0.4), (0.3, None), (0.2, 0.05), (0.1, 0.6), (0.05, None)]


def test_effects_are_pooled_over_pairs_and_not_averaged():
    rows = [row(0, 1.0, gap=1.0), row(1, 0.0, gap=3.0), exact(0, 0.5, gap=1.0), exact(1, 1.5, gap=3.0)]
    found = attribution_data(table(rows)).iloc[0]
    assert (found["estimate"], found["exact"]) == (pytest.approx(0.25), pytest.approx(0.5))
    assert (found["n"], found["clusters"]) == (2, 2)


def test_both_directions_add_up_and_do_not_cancel():
    rows = [line for kind in (row, exact) for line in (kind(0, 0.6), kind(0, 0.8, direction="noising"))]
    found = attribution_data(table(rows)).iloc[0]
    assert found["estimate"] == pytest.approx((0.6 + 0.2) / 2)  # noising leaves 0.8 of 1: an effect of 0.2


def test_the_top_is_the_longest_run_of_ranks_that_are_all_verified():
    found = attribution_data(table(places(MIXED)))
    assert found["layer"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert found["rank"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert found["chosen"].fillna("").tolist() == ["top", "top", "top", "", "random", "random", ""]
    assert found["exact"].isna().tolist() == [False, False, False, True, False, False, True]


def test_a_miss_is_a_random_site_stronger_than_half_of_the_top():
    found = attribution_agreement(attribution_data(table(places(MIXED))))
    assert found.bar == pytest.approx(0.4)  # the median of 0.8, 0.1 and 0.4
    assert found.misses == ("residual stream, layer 5, step 2",)
    assert (found.checks, found.n, found.same_sign) == (2, 5, 1.0)


def test_the_rank_correlation_is_spearmans_of_signed_effects():
    found = attribution_agreement(attribution_data(table(places(MIXED))))
    # Ranks of the estimates 5 1 4 3 2, of the exact effects 5 1 3 2 4: 1 − 6 · (0 + 0 + 1 + 1 + 4) / (5 · 24)
    assert found.rank_correlation == pytest.approx(0.7)


def test_a_wrong_sign_counts_against_the_estimates():
    found = attribution_agreement(attribution_data(table(places([(0.9, 0.8), (0.5, -0.4), (0.0, 0.0), (0.1, 0.2)]))))
    assert found.same_sign == 0.75


def test_without_the_largest_estimate_verified_misses_cannot_be_counted():
    found = attribution_agreement(attribution_data(table(places([(0.9, None), (0.5, 0.4), (0.3, 0.3)]))))
    assert (found.misses, found.checks) == ((), 2)
    assert "misses cannot be counted" in str(found)


def test_sites_differ_by_kind_and_head_and_latents_have_no_layer():
    sites = [
        {"kind": "latent", "layer": None}, {"kind": "kv"}, {"kind": "head", "head": 0}, {"kind": "head", "head": 1},
    ]  # fmt: skip
    rows = [kind(pair, 0.5, **site) for kind in (row, exact) for pair in range(2) for site in sites]
    found = attribution_data(table(rows))
    assert len(found) == 4
    assert (found["chosen"] == "top").all()
    assert sorted(found["head"].dropna()) == [0, 1]


def test_windows_frozen_routes_and_unrelated_donors_are_left_out_and_the_table_is_not_changed():
    others = [{"layer_last": 3}, {"step_last": 4}, {"freeze": "R"}, {"source": "unrelated", "draw": 0}]
    mixed = table([*places(MIXED), *(exact(0, 9.0, layer=0, **other) for other in others)])
    before = mixed.copy(deep=True)
    pd.testing.assert_frame_equal(attribution_data(mixed), attribution_data(table(places(MIXED))))
    pd.testing.assert_frame_equal(mixed, before)


def test_a_table_without_estimates_or_exact_effects_says_what_to_run():
    whole = table(places(MIXED))
    for metric, words in (("logit_difference_estimate", "no estimates"), ("logit_difference", "no exact effects")):
        with pytest.raises(ValueError, match=f"{words} of single sites .*; run configs/attribution.toml"):
            attribution_data(whole[whole["metric"] != metric])
    with pytest.raises(ValueError, match="no estimated site has an exact effect"):
        attribution_data(table([row(0, 0.5, layer=0), exact(0, 0.5, layer=1)]))


def test_the_figure_draws_verified_sites_alone_and_names_their_number():
    spec = attribution_chart(attribution_data(table(places(MIXED)))).to_dict()
    heading = " ".join(spec["title"]["subtitle"])
    assert "Spearman's rho 0.70 over n = 5 sites" in heading
    assert "1 of 2 random sites had a larger effect than the top sites' median" in heading
    assert "residual stream, layer 5, step 2" in heading
    assert "5 of 7 estimated sites verified; n = 2 pairs, 2 clusters (no intervals: 8 are needed)" in heading
    drawn = [point["place"] for points in spec["datasets"].values() for point in points if "place" in point]
    assert sorted(set(drawn)) == [f"residual stream, layer {layer}, step 2" for layer in (0, 1, 2, 4, 5)]


def test_each_axis_has_its_own_range_and_the_dashed_line_lies_within_both():
    tenth = [
        line | {"patched": line["patched"] / 10} if "estimate" in line["metric"] else line for line in places(MIXED)
    ]
    spec = attribution_chart(attribution_data(table(tenth))).to_dict()
    ends = next([p["at"] for p in points] for points in spec["datasets"].values() if "at" in points[0])
    domains = {
        axis: layer["encoding"][axis]["scale"]["domain"]
        for layer in spec["layer"]
        for axis in ("x", "y")
        if "scale" in layer["encoding"][axis]
    }
    assert domains["x"][1] - domains["x"][0] < (domains["y"][1] - domains["y"][0]) / 3
    for low, high in domains.values():
        assert low <= min(ends) < max(ends) <= high
