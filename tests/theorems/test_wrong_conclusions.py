"""Conclusions that the data do not support, each tried on a built table: what is printed instead."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from codi_tracing.analysis.statistics.results import Results
from codi_tracing.patching.engine.sweep import sweep
from codi_tracing.patching.interventions.sites import THOUGHT, layerwise, sitewise
from codi_tracing.patching.interventions.sources import other, unrelated
from codi_tracing.patching.pairs.pair import load_pairs
from codi_tracing.traces.model.loading import load_codi
from tests.support.tables import outcomes

PAIRS = 60


def table(sites: dict, whole="p" * PAIRS, **options) -> pd.DataFrame:
    """A table of whole thoughts and layers; an unrelated donor destroys every answer."""
    writes = {(None, "other"): whole, (None, "unrelated"): "o" * PAIRS}
    for layer, outcome in sites.items():
        writes |= {(layer, "other"): outcome, (layer, "unrelated"): "o" * PAIRS}
    return outcomes(writes, **options)


def test_a_few_strong_pairs_are_not_called_a_layer_that_carries_the_answer():
    """Three of sixty pairs transfer all: significant or not, the site's shares are printed, and no layer is named."""
    found = Results(table({0: "ppp" + "h" * 57, 1: "h" * 60}))
    assert found.largest.site is None
    assert found.sites()["partner"].max() == pytest.approx(0.05)
    assert not found.sites()["critical"].any()


def test_one_cluster_of_many_pairs_does_not_decide():
    """Thirty of sixty pairs share a question and all carry; the other thirty do not: thirty-one clusters, not sixty."""
    clusters = [0] * 30 + [*range(1, 31)]
    found = Results(table({}, whole="p" * 30 + "h" * 30, clusters=clusters))
    assert found.verdict.label == "undecided"
    assert "n = 60 pairs in 31 clusters" in found.verdict.sentence
    low, high = found.verdict.denoising[1:3]
    assert high - low > 0.6  # half of all pairs is one case


def test_a_write_that_breaks_and_a_write_that_carries_are_told_apart_where_their_logit_effects_are_equal():
    """Half of the pairs get the partner's answer at layer 0; at layer 1 every answer is destroyed."""
    found = Results(table({0: "p" * 30 + "h" * 30, 1: "o" * 60}))
    sites = found.sites().set_index("layer")
    assert sites["critical"].to_dict() == {0: True, 1: False}
    assert sites.loc[1, ["partner", "another"]].tolist() == [0, 1]
    assert found.largest.site["layer"] == 0


def test_pairs_that_the_model_answers_wrongly_do_not_enter_the_headline():
    """Unanswered pairs that follow the thought stand in a row of their own."""
    right = [True] * 20 + [False] * 40
    found = Results(table({}, whole="h" * 20 + "p" * 40, right=right))
    assert found.verdict.denoising.effect == pytest.approx(0)
    assert found.verdict.denoising.n == 20
    rows = found.corners[found.corners["corner"] == "xc"].set_index("pairs")["answer_clean"]
    assert rows.iloc[0] == 0
    assert rows.iloc[1] == pytest.approx(40 / 60)


def test_a_donor_that_brings_the_partners_answer_by_chance_is_subtracted():
    """Answers of one digit: an unrelated thought gives the partner's answer in a fifth of the pairs."""
    rng = np.random.default_rng(0)
    chance = rng.choice(list("poooo"), PAIRS)
    writes = {(None, "other"): "p" * PAIRS, (None, "unrelated"): chance}
    writes |= {(0, "other"): rng.choice(list("poooo"), PAIRS), (0, "unrelated"): rng.choice(list("poooo"), PAIRS)}
    found = Results(outcomes(writes))
    assert not found.sites()["critical"].any()
    assert found.verdict.denoising.effect < 0.9  # what chance brings is no part of the ceiling


def test_equal_layers_are_not_ranked_by_their_order_in_the_table():
    found = Results(table({layer: "p" * 45 + "h" * 15 for layer in range(6)}))
    sites = found.sites()
    assert (sites["rank_low"] == 1).all()
    assert (sites["rank_high"] == 6).all()
    assert "any of 6 may be it" in found.largest.sentence


@pytest.fixture(scope="module")
def shipped():
    """Every layer × step, every layer, and the whole thought, of both shipped models on the 66 shipped pairs."""
    tables = {}
    for name in ("thought", "bypass"):
        model = load_codi(name, device="cpu")
        sites = [*sitewise(model), *layerwise(model), THOUGHT]
        tables[name] = sweep(model, load_pairs("arithmetic"), sites, [other, unrelated])
    return tables


def one_layer_at_all_steps(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["step"].isna()]


def test_transfer_by_step_is_the_share_of_answers_carried_and_the_control_is_flat(shipped):
    """As recomputed independently: 0.06, 0.15, 0.26, 0.59, 0.56, 0.73 at layers 0 and 1, the control about 0."""
    sites = Results(shipped["thought"]).site_statistics("denoising")
    steps = sites[sites["step"].notna()].set_index(["layer", "step"])
    for layer in (0, 1):
        np.testing.assert_allclose(steps.loc[layer]["plain"], [0.06, 0.15, 0.26, 0.59, 0.56, 0.73], atol=0.005)
        np.testing.assert_allclose(steps.loc[layer]["partner"], steps.loc[layer]["plain"], atol=0.01)
    assert steps["control"].abs().max() < 0.05
    layers = sites[sites["step"].isna()].set_index("layer")["plain"]
    np.testing.assert_allclose(layers, [1, 1, 0.65, 1], atol=0.005)


def test_layer_two_is_critical_and_step_zero_of_layer_three_is_not_below_zero(shipped):
    """On a subtracted logit difference the first was "not critical", the second "significantly below zero"."""
    found = Results(shipped["thought"])
    layers = Results(one_layer_at_all_steps(shipped["thought"])).sites().set_index("layer")
    assert layers["critical"].to_dict() == dict.fromkeys(range(4), True)
    assert not found.sites()["below"].any()


def test_no_layer_of_a_thought_that_carries_nothing_is_the_largest(shipped):
    found = Results(one_layer_at_all_steps(shipped["bypass"]))
    assert found.verdict.label == "needed, not carried"
    assert found.summary["largest"] is None
    assert found.summary["critical"] == []


@pytest.mark.parametrize("carrying", [30, 32])
def test_pairs_of_two_models_in_one_table_are_partly_carried(shipped, carrying):
    thought, bypass = shipped["thought"], shipped["bypass"]
    follow = thought["pair_id"].unique()[:carrying]
    mixed = pd.concat(
        [thought[thought["pair_id"].isin(follow)], bypass[~bypass["pair_id"].isin(follow)]], ignore_index=True
    )
    found = Results(one_layer_at_all_steps(mixed)).verdict
    assert found.label == "partly carried"
    assert f"thought in {100 * carrying / 66:.0f} % [" in found.sentence


def test_an_untrained_model_is_undecided_with_the_reason(model, pairs):
    found = Results(sweep(model, pairs, [THOUGHT], [other, unrelated])).summary
    assert found["verdict"]["label"] == "undecided"
    assert "Undecided, because" in found["sentences"][0]
    assert found["critical"] == []


@pytest.mark.parametrize("latents", [1, 3])
def test_a_model_run_with_a_wrong_number_of_latents_is_undecided(latents):
    """Converted so, a checkpoint answers hardly anything; its thought was called carried, or unused."""
    trained = load_codi("thought", device="cpu")
    wrong = replace(trained, card=replace(trained.card, n_latents=latents))
    found = Results(sweep(wrong, load_pairs("arithmetic")[:30], [THOUGHT], [other, unrelated])).verdict
    assert found.label == "undecided"
    assert found.accuracy.effect <= 0.1
