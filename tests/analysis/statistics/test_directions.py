"""Agreement of denoising and noising."""

import pytest

from codi_tracing.analysis.statistics.directions import both_directions, direction_agreement
from codi_tracing.analysis.statistics.effects import by_site, specific
from codi_tracing.analysis.statistics.measures import measured
from tests.support.tables import experiment


def test_directions_that_order_layers_alike_agree_and_their_reverse_disagrees():
    table = experiment(layers=(0.9, 0.7, 0.5, 0.1), pairs=30, noise=0.01)
    found = direction_agreement(both_directions(table))
    assert found.spearman == pytest.approx(1)
    assert (found.sites, found.clusters) == (4, 30)
    assert "rank 4 sites alike by 1.00 (Spearman" in str(found)
    noising = (table["direction"] == "noising") & (table["kind"] == "resid")
    turned = table.assign(layer=table["layer"].mask(noising, 3 - table["layer"]))
    turned = turned.assign(layer_last=turned["layer"])
    assert direction_agreement(both_directions(turned)).spearman == pytest.approx(-1)


def test_effects_that_differ_by_rounding_alone_are_one_rank():
    table = experiment(layers=(0.9, 0.9, 0.1, 0.9), pairs=30, noise=0.0)
    rounding = 1e-5 * table["layer"].astype(float).fillna(0) * table["direction"].map({"denoising": 1, "noising": -1})
    found = direction_agreement(both_directions(table.assign(patched=table["patched"] + rounding)))
    assert found.spearman == pytest.approx(1)


def test_directions_without_a_common_site_are_refused():
    table = experiment(layers=(0.9, 0.5)).query("direction == 'denoising'")
    with pytest.raises(ValueError, match="no site was written in both directions"):
        both_directions(table)


def test_both_directions_stand_beside_each_other_as_they_stand_alone():
    table = experiment(layers=(0.9, 0.5, 0.1), pairs=30)
    both = both_directions(table).set_index("layer")
    alone = by_site(specific(measured(table)))
    for direction in ("denoising", "noising"):
        own = alone[(alone["direction"] == direction) & (alone["kind"] == "resid")].set_index("layer")
        for name in ("effect", "low", "high"):
            assert both[f"{name}_{direction}"].tolist() == pytest.approx(own[name].tolist())


def test_below_eight_clusters_ranks_are_not_compared():
    found = direction_agreement(both_directions(experiment(layers=(0.9, 0.7, 0.1), pairs=7)))
    assert "ranks of 3 sites in 7 clusters are not compared" in str(found)
