"""Effects, intervals, critical sites and the corners, on tables whose truth is known."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from codi_tracing.analysis.statistics.ceiling import ceiling
from codi_tracing.analysis.statistics.corners import corners, decomposition
from codi_tracing.analysis.statistics.effects import by_site, effect, pooled, recovery, specific
from codi_tracing.analysis.statistics.inference import ratio_interval, step_down
from codi_tracing.analysis.statistics.sites import critical
from codi_tracing.analysis.statistics.verdict import verdict
from codi_tracing.analysis.table import COLUMNS, check_table

OTHER = {"denoising": "clean", "noising": "corrupted"}


def cell(pair, direction, source, site, metric, patched, clean, corrupted, layer=None, cluster=None) -> dict:
    """One row of a table."""
    return dict.fromkeys(COLUMNS) | {
        "pair_id": str(pair),
        "cluster_id": f"cluster {pair if cluster is None else cluster}",
        "protocol": "latent_loop",
        "direction": direction,
        "source": source,
        "source_pair": "99" if source == "unrelated" else str(pair),
        "draw": 0 if source == "unrelated" else None,
        "kind": site,
        "layer": layer,
        "layer_last": layer,
        "metric": metric,
        "patched": patched,
        "clean": clean,
        "corrupted": corrupted,
    }


def experiment(layers=(0.8, 0.0), thought=(0.9, 0.9), unrelated=0.3, loses=1.0, pairs=40, noise=0.1, seed=0, size=1):
    """A sweep with known effects: of each layer, of the whole thought in both directions, and of unrelated donors.

    An unrelated thought takes their answer from a share `loses` of the pairs; `size` pairs share a cluster.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for pair in range(pairs):
        clean, corrupted = rng.uniform(2, 6), -rng.uniform(2, 6)
        for direction, whole in zip(OTHER, thought, strict=True):
            host, donor = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
            own = "corrupted" if direction == "denoising" else "clean"
            sites = [("resid", layer, OTHER[direction], true) for layer, true in enumerate(layers)]
            sites += [("resid", layer, "unrelated", unrelated) for layer in range(len(layers))]
            sites += [("thought", None, OTHER[direction], whole), ("thought", None, "unrelated", unrelated)]
            for site, layer, source, true in [*sites, ("thought", None, "self", 0.0)]:
                moved = true + (noise * rng.standard_normal() if source != "self" else 0)
                patched = host + moved * (donor - host)
                where = {"layer": layer, "cluster": pair // size}
                rows.append(cell(pair, direction, source, site, "logit_difference", patched, clean, corrupted, **where))
                for metric in ("kl_from_corrupted", "rms_logit_difference"):  # how far from the corrupted run
                    runs = (abs(patched - corrupted), clean - corrupted, 0.0)
                    rows.append(cell(pair, direction, source, site, metric, *runs, **where))
                changed = (float(patched * host < 0), float(host != clean), float(host != corrupted))
                rows.append(cell(pair, direction, source, site, "prediction_change", *changed, **where))
                answer = "clean" if patched > 0 else "corrupted"
                if source == "unrelated":
                    answer = "other" if pair < loses * pairs else own
                for key in ("clean", "corrupted"):
                    runs = (float(answer == key), float(key == "clean"), float(key == "corrupted"))
                    rows.append(cell(pair, direction, source, site, f"answer_is_{key}", *runs, **where))
    return check_table(pd.DataFrame(rows))


def test_an_effect_is_zero_at_the_host_and_one_at_the_donor_in_both_directions():
    rows = [
        cell(0, "denoising", "clean", "resid", "logit_difference", -2.0, 4.0, -2.0),
        cell(1, "denoising", "clean", "resid", "logit_difference", 4.0, 4.0, -2.0),
        cell(2, "noising", "corrupted", "resid", "logit_difference", 4.0, 4.0, -2.0),
        cell(3, "noising", "corrupted", "resid", "logit_difference", -2.0, 4.0, -2.0),
        cell(4, "denoising", "unrelated", "resid", "logit_difference", 1.0, 4.0, -2.0),
        cell(5, "denoising", "clean", "resid", "logit_difference", 1.0, 3.0, 3.0),
    ]
    table = check_table(pd.DataFrame(rows))
    before = table.copy()
    np.testing.assert_allclose(effect(table)["effect"], [0, 1, 0, 1, 0.5, np.nan])
    np.testing.assert_allclose(recovery(table)["recovery"], [0, 1, 1, 0, 0.5, np.nan])
    pd.testing.assert_frame_equal(table, before)


def test_recovery_is_the_effect_when_denoising_and_its_complement_when_noising():
    both = recovery(effect(experiment().query("metric == 'logit_difference'")))
    denoising = both["direction"] == "denoising"
    np.testing.assert_allclose(both.loc[denoising, "recovery"], both.loc[denoising, "effect"])
    np.testing.assert_allclose(both.loc[~denoising, "recovery"], 1 - both.loc[~denoising, "effect"])


def test_pooled_recovery_is_the_pooled_effect_when_denoising_and_its_complement_when_noising():
    table = experiment().query("metric == 'logit_difference' and kind == 'resid'")
    by = ["direction", "source", "layer"]
    moved, recovered = (pooled(of(table), by).set_index(by) for of in (effect, recovery))
    np.testing.assert_allclose(recovered.loc["denoising", "effect"], moved.loc["denoising", "effect"])
    np.testing.assert_allclose(recovered.loc["noising", "effect"], 1 - moved.loc["noising", "effect"])
    np.testing.assert_allclose(recovered.loc["noising", "low"], 1 - moved.loc["noising", "high"], atol=0.01)


def test_groups_pooled_at_once_are_each_what_it_is_alone():
    effects = effect(experiment().query("metric == 'logit_difference'"))
    lost = (
        (effects["kind"] == "resid") & (effects["layer"] == 0) & (effects["cluster_id"] < effects["cluster_id"].max())
    )
    effects.loc[lost, "numerator"] = np.nan  # so that this group has one cluster, the others many
    by = ["direction", "source", "kind", "layer"]
    together = pooled(effects, by)
    alone = [pooled(part, by) for _, part in effects.groupby(by, dropna=False)]
    assert together["clusters"].nunique() > 1
    pd.testing.assert_frame_equal(together, pd.concat(alone, ignore_index=True))


def test_pooling_weighs_a_pair_by_the_gap_between_its_runs():
    rows = [  # effects 0.5 of a gap of 8 and 1.0 of a gap of 2
        cell(0, "denoising", "clean", "resid", "logit_difference", 0.0, 4.0, -4.0),
        cell(1, "denoising", "clean", "resid", "logit_difference", 1.0, 1.0, -1.0),
    ]
    found = pooled(effect(check_table(pd.DataFrame(rows))), ["metric"]).iloc[0]
    assert found["effect"] == pytest.approx((4 + 2) / (8 + 2))
    assert found["mean"] == pytest.approx(0.75)
    assert (found["n"], found["clusters"]) == (2, 2)


def test_pooling_finds_the_truth_where_the_mean_of_ratios_does_not():
    rng = np.random.default_rng(1)
    gap = rng.uniform(0.02, 8, 4_000)  # some pairs' runs nearly agree
    frame = pd.DataFrame(
        {"pair_id": range(4_000), "numerator": 0.8 * gap + rng.standard_normal(4_000), "denominator": gap}
    )
    found = pooled(frame.assign(cluster_id=frame["pair_id"], all="all"), ["all"]).iloc[0]
    assert abs(found["effect"] - 0.8) < 0.02
    assert found["low"] < 0.8 < found["high"]
    assert abs(found["mean"] - 0.8) > 5 * abs(found["effect"] - 0.8)


def test_the_interval_agrees_with_scipys_bootstrap_of_the_same_ratio():
    rng = np.random.default_rng(2)
    below = rng.uniform(2, 6, 60)
    above = 0.6 * below + rng.standard_normal(60)
    ours = ratio_interval(above, below, resamples=10_000)
    scipys = stats.bootstrap(
        (above, below), lambda a, b: a.sum() / b.sum(), paired=True, vectorized=False, method="percentile", rng=rng
    ).confidence_interval
    np.testing.assert_allclose(ours, scipys, atol=0.01)


def test_an_interval_covers_the_truth_about_nineteen_times_in_twenty():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        below = rng.uniform(2, 6, 50)
        low, high = ratio_interval(0.5 * below + rng.standard_normal(50), below, resamples=500)
        covered += low < 0.5 < high
    assert 0.90 < covered / 300 < 0.98


def test_pairs_of_one_cluster_count_once():
    alone = experiment(pairs=40, noise=0.3)
    copies = [alone] + [alone.assign(pair_id=alone["pair_id"] + f" copy {i}") for i in range(3)]
    together = pd.concat(copies, ignore_index=True)  # every cluster now holds four equal pairs
    once, fourfold = ceiling(alone), ceiling(together)
    assert (fourfold.n, fourfold.clusters) == (160, 40)
    np.testing.assert_allclose(fourfold[:3], once[:3])


def test_one_cluster_has_no_interval():
    found = ceiling(experiment(pairs=3, size=3))
    assert found.clusters == 1
    assert np.isnan([found.low, found.high]).all()


def test_rows_without_a_value_are_not_pooled_to_nothing():
    rows = effect(experiment(pairs=3)).assign(numerator=np.nan)
    with pytest.raises(ValueError, match="has a value in all three runs, so there is nothing to pool"):
        pooled(rows, ["direction"])


def test_a_specific_effect_is_what_remains_after_an_unrelated_donor():
    table = experiment(layers=(0.8, 0.3), unrelated=0.3, noise=0)
    rows = specific(table[table["metric"] == "logit_difference"])
    by_layer = pooled(rows[rows["kind"] == "resid"], ["direction", "layer"])
    np.testing.assert_allclose(by_layer["effect"], [0.5, 0, 0.5, 0], atol=1e-12)


def test_draws_of_an_unrelated_donor_are_averaged():
    table = experiment(noise=0).query("metric == 'logit_difference'")
    drawn = table[table["source"] == "unrelated"]
    again = drawn.assign(draw=1, patched=drawn["patched"] + 1)
    one, two = specific(table), specific(pd.concat([table, again]))
    np.testing.assert_allclose(one["numerator"] - two["numerator"], 0.5)  # the mean of a draw and one a unit above it


def test_a_sweep_without_unrelated_donors_has_no_specific_effect():
    table = experiment()
    with pytest.raises(ValueError, match="no rows of source 'unrelated', so specific effects are undefined"):
        specific(table[table["source"] != "unrelated"])


def test_the_step_down_takes_the_largest_t_over_all_sign_flips():
    rng = np.random.default_rng(4)
    sums = rng.standard_normal((9, 4)) + np.array([1.2, 0.5, 0, 0])
    flips = np.array(list(itertools.product([1, -1], repeat=9)))

    def t(values):  # the studentised mean, over clusters
        return np.abs(stats.ttest_1samp(values, 0, axis=0).statistic)

    observed = t(sums)
    null = np.array([t(flip[:, None] * sums) for flip in flips])
    order = np.argsort(-observed)
    exact, floor = np.empty(4), 0.0
    for i, site in enumerate(order):
        floor = max(floor, (null[:, order[i:]].max(1) >= observed[site] - 1e-9).mean())
        exact[site] = floor
    np.testing.assert_allclose(step_down(sums, draws=40_000), exact, atol=0.01)


def test_a_single_site_has_the_p_of_a_sign_flip_test():
    sums = np.random.default_rng(5).standard_normal((12, 1)) + 0.4
    scipys = stats.permutation_test((sums[:, 0],), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert step_down(sums, draws=40_000)[0] == pytest.approx(scipys, abs=0.01)


def test_under_the_null_a_family_is_wrong_about_one_time_in_twenty():
    rng = np.random.default_rng(6)
    wrong = 0
    for i in range(300):
        shared = rng.standard_normal((25, 1))  # neighbouring layers move together
        wrong += step_down(shared + rng.standard_normal((25, 8)), draws=300, seed=i).min() <= 0.05
    assert 0.02 < wrong / 300 < 0.09


def test_a_site_where_nothing_changes_is_never_significant():
    sums = np.column_stack([np.zeros(10), np.ones(10)])
    np.testing.assert_allclose(step_down(sums, draws=20_000), [1, 2 / 2**10], atol=2e-3)


def test_a_layer_is_critical_where_it_does_more_than_an_unrelated_donor():
    ranked = critical(experiment(layers=(0.3, 0.8, 0.3), unrelated=0.3))
    assert ranked["layer"].iloc[0] == 1
    assert ranked["critical"].tolist() == [True, False, False]
    assert ranked["effect"].iloc[0] == pytest.approx(0.5, abs=0.05)
    assert (ranked["rank_low"].iloc[0], ranked["rank_high"].iloc[0]) == (1, 1)
    assert ranked["rank_high"].iloc[1] == 3  # the other two cannot be told apart


def test_no_layer_is_critical_under_a_low_ceiling():
    ranked = critical(experiment(layers=(0.3, 0.8), thought=(0.2, 0.9)))
    assert ranked["p_fwer"].iloc[0] <= 0.05
    assert not ranked["critical"].any()


def test_a_significant_trifle_is_not_critical():
    ranked = critical(experiment(layers=(0.31, 0.30), unrelated=0.29, noise=0.001))
    assert (ranked["p_fwer"] <= 0.05).all()
    assert not ranked["critical"].any()


def test_a_ceiling_needs_the_whole_thought():
    table = experiment()
    with pytest.raises(ValueError, match="no rows of site 'thought', source 'clean', direction 'denoising'"):
        ceiling(table[table["kind"] != "thought"])


def test_the_corners_of_a_pair_are_its_two_runs_and_their_exchanged_thoughts():
    rows = []
    for direction, source, patched in [("denoising", "clean", 3.0), ("noising", "corrupted", -1.0)]:
        rows.append(cell(0, direction, source, "thought", "logit_difference", patched, 4.0, -4.0))
    table = check_table(pd.DataFrame(rows))
    y = corners(table).set_index("corner")["logit_difference"]
    assert y.to_dict() == {"cc": 4.0, "xc": 3.0, "cx": -1.0, "xx": -4.0}
    parts = decomposition(table).set_index("contrast")["effect"]
    expected = {"xc − xx": 7, "cc − cx": 5, "cx − xx": 3, "cc − xc": 1, "cc − xc − cx + xx": -2}
    assert parts.to_dict() == pytest.approx({name: value / 8 for name, value in expected.items()})


def test_the_indirect_parts_are_the_two_ceilings_and_each_route_completes_the_other():
    table = experiment(thought=(0.9, 0.4))
    parts = decomposition(table).set_index("contrast")["effect"]
    assert parts["xc − xx"] == pytest.approx(ceiling(table, "denoising").effect)
    assert parts["cc − cx"] == pytest.approx(ceiling(table, "noising").effect)
    assert parts["xc − xx"] + parts["cc − xc"] == pytest.approx(1)
    assert parts["cc − cx"] + parts["cx − xx"] == pytest.approx(1)
    assert parts["cc − cx"] - parts["xc − xx"] == pytest.approx(parts["cc − xc − cx + xx"])


def test_the_answers_of_a_corner_are_shares_of_the_same_pairs():
    found = corners(experiment(thought=(0.95, 0.95), loses=0.25)).set_index("corner")
    answers = found[["answer_clean", "answer_corrupted", "answer_other"]]
    np.testing.assert_allclose(answers.sum(axis=1), 1)
    assert answers.loc["cc"].tolist() == [1, 0, 0]
    assert answers.loc["xc"].tolist() == [1, 0, 0]
    assert answers.loc["cx"].tolist() == [0, 1, 0]
    assert answers.loc["cu"].tolist() == [0.75, 0, 0.25]
    assert answers.loc["xu"].tolist() == [0, 0.75, 0.25]


@pytest.mark.parametrize(
    ("thought", "loses", "label"),
    [
        ((0.1, 0.1), 0.1, "unused"),
        ((0.1, 0.1), 0.9, "necessary, not sufficient"),
        ((0.1, 0.9), 0.1, "necessary, not sufficient"),
        ((0.9, 0.1), 0.9, "redundant with the question"),
        ((0.9, 0.9), 0.9, "the answer passes through the thought"),
    ],
)
def test_the_verdict_is_read_from_the_corners(thought, loses, label):
    found = verdict(experiment(thought=thought, loses=loses))
    assert found.label == label
    assert f"{found.denoising.effect:.2f}" in found.sentence
    assert f"takes {loses:.0%} of runs' answers (n = 40 pairs" in found.sentence


def test_without_unrelated_donors_an_unused_thought_cannot_be_told_from_a_necessary_one():
    table = experiment(thought=(0.1, 0.1))
    assert verdict(table[table["source"] != "unrelated"]).label == "undecided"


def test_where_harm_is_not_known_the_verdict_says_why():
    table = experiment(thought=(0.1, 0.1))
    assert "no unrelated thought was tried" in verdict(table[table["source"] != "unrelated"]).sentence
    keys = table["metric"].str.startswith("answer_is_")
    never_right = table.assign(**{run: table[run].where(~keys, 0.0) for run in ("patched", "clean", "corrupted")})
    assert "no unpatched run gives its key, so none can lose it" in verdict(never_right).sentence


def test_a_verdict_needs_both_directions_and_runs_that_differ():
    table = experiment()
    one = verdict(table[table["direction"] == "denoising"])
    assert one.label == "undecided"
    assert "direction 'noising'" in one.sentence
    swapped = table.assign(clean=table["corrupted"], corrupted=table["clean"])
    assert verdict(swapped).label == "undecided"  # the clean run prefers the corrupted answer


def test_by_site_keeps_places_apart_and_never_mixes_sources():
    sites = by_site(effect(experiment(layers=(0.8, 0.2), noise=0)), direction="denoising", metric="logit_difference")
    assert sites["source"].unique().tolist() == ["clean"]
    assert sites[["kind", "layer"]].values.tolist() == [["resid", 0], ["resid", 1], ["thought", pd.NA]]
    np.testing.assert_allclose(sites["effect"], [0.8, 0.2, 0.9])
    own = by_site(effect(experiment()), source="self")
    np.testing.assert_allclose(own["effect"], 0, atol=1e-12)
    with pytest.raises(ValueError, match=r"no rows of metric 'kl'.*it has metric answer_is_clean"):
        by_site(effect(experiment()), metric="kl")
