"""Every ready-made experiment on a random model: the rows that it promises, and the identities that they must keep."""

from pathlib import Path

import numpy as np
import pytest

from codi_tracing.analysis.experiments.matched import matched_data
from codi_tracing.analysis.rows import from_other_run
from codi_tracing.analysis.statistics.effects import effect
from codi_tracing.analysis.table import check_table
from codi_tracing.configs.schema import RunConfig
from codi_tracing.patching.pairs.pair import load_pairs
from codi_tracing.patching.pairs.selection import select_pairs
from codi_tracing.patching.runs.recipes import RECIPES, RunExecutor, run_recipe
from codi_tracing.traces.model.loading import load_codi

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "patching" / "data" / "arithmetic_pairs.json"
EXACT = 1e-5


@pytest.fixture(scope="module")
def rows(model, pairs, pairs_file):
    """The table of an experiment, run once each on four pairs."""
    done = {}

    def run(experiment, **keys):
        if experiment not in done:
            config = RunConfig(
                name="test", checkpoint="model", pairs={"file": pairs_file, "limit": 4}, experiment=experiment, **keys
            )
            done[experiment] = check_table(run_recipe(RunExecutor(model, select_pairs(model, pairs, config), config)))
        return done[experiment]

    return run


def logit_differences(table, **where):
    """The patched values of some rows by pair and direction, and the host's."""
    chosen = table[table["metric"] == "logit_difference"]
    for column, value in where.items():
        chosen = chosen[chosen[column].isna() if value is None else chosen[column] == value]
    host = chosen["clean"].where(chosen["direction"] == "noising", chosen["corrupted"])
    return chosen.assign(host=host).set_index(["pair_id", "direction"]).sort_index()


@pytest.mark.parametrize("experiment", sorted(set(RECIPES) - {"matched"}))  # a random model knows no answer
def test_every_experiment_has_the_corners_and_a_self_patch_in_its_table(rows, experiment):
    thoughts = logit_differences(
        rows(experiment), kind="thought", n_latents=None, knockout=None, protocol="latent_loop"
    )
    assert set(thoughts["source"]) == {"clean", "corrupted", "unrelated", "self"}
    own = thoughts[thoughts["source"] == "self"]
    np.testing.assert_allclose(own["patched"], own["host"], atol=EXACT)


def test_stopping_after_all_steps_is_the_run_as_trained_and_earlier_is_not(rows, model):
    table = rows("early_stop")
    stops = logit_differences(table, source="self", knockout=None)
    by_steps = stops.dropna(subset="n_latents")
    assert sorted(by_steps["n_latents"].unique()) == list(range(model.n_latents + 3))
    change = (by_steps["patched"] - by_steps["host"]).abs().groupby(by_steps["n_latents"]).max()
    assert change[model.n_latents] <= EXACT
    assert change.drop(model.n_latents).min() > EXACT


def test_an_early_stop_is_swept_with_and_without_the_question_and_beside_resampled_steps(rows, model):
    table = rows("early_stop")
    assert set(table["knockout"].dropna()) == {"answer-question"}
    rest = table[(table["kind"] == "kv") & (table["source"] == "unrelated")]
    assert sorted(rest["step"].unique()) == list(range(model.n_latents))
    assert (rest["step_last"] == model.n_latents - 1).all()


def test_influence_is_read_at_every_later_step_and_at_no_other(rows, model):
    table = rows("influence")
    read = table[table["metric"] == "projection"]
    found = set(zip(read["step"], read["read_step"], strict=True))
    assert found == {(i, j) for j in range(model.n_latents) for i in range(j)}
    assert set(read["freeze"].fillna("total")) == {"total", "between"}


def test_the_effect_on_the_next_step_is_direct(rows):
    read = rows("influence").query("metric == 'projection' and read_step == step + 1")
    total, direct = (
        read[read["freeze"].isna() if held is None else read["freeze"] == held]
        .set_index(["pair_id", "direction", "source", "step"])["patched"]
        .sort_index()
        for held in (None, "between")
    )  # nothing lies between a step and the next
    np.testing.assert_allclose(total, direct, atol=1e-4)


def test_the_longest_prefix_equals_all_steps_at_once(rows, model, pairs, pairs_file):
    from codi_tracing.patching.engine.sweep import sweep
    from codi_tracing.patching.interventions.sites import Site

    table = rows("iterative")
    end = table[table["step_last"].eq(model.n_latents - 1) & table["freeze"].isna() & from_other_run(table)]
    end = logit_differences(end, read_step=None)
    at_once = sweep(model, pairs[:4], [Site("resid")], metrics=["logit_difference"])
    at_once = at_once[from_other_run(at_once)].set_index(["pair_id", "direction"]).sort_index()
    np.testing.assert_allclose(end["patched"], at_once["patched"], atol=EXACT)


def test_the_original_experiment_has_both_protocols_and_both_positions_of_reading(rows, model):
    table = rows("original")
    assert set(table["protocol"]) == {"latent_loop", "single_pass"}
    metrics = {"kl_from_corrupted", "logit_difference", "kl_from_corrupted_at_eot", "logit_difference_at_eot"}
    assert metrics <= set(table["metric"])
    last = table[(table["layer"] == model.n_layers - 1) & (table["metric"] == "logit_difference")]
    change = effect(last)["numerator"].abs().groupby(last["protocol"]).max()
    assert change["single_pass"] <= EXACT < change["latent_loop"]


def test_estimates_cover_every_site_and_some_are_verified(rows, model):
    table = rows("attribution")
    estimated = table[table["metric"] == "logit_difference_estimate"]
    places = ["kind", "layer", "step", "head"]
    layers, steps, heads = model.n_layers, model.n_latents, model.n_heads
    assert len(estimated[places].drop_duplicates()) == steps + layers * steps * (4 + heads)
    exact = table[(table["metric"] == "logit_difference") & (table["kind"] != "thought")]
    assert len(exact[places].drop_duplicates()) == 2 * 20


@pytest.fixture(scope="module")
def thought():
    return load_codi(ROOT / "traces" / "embedded" / "thought", device="cpu")


def test_the_shipped_thought_computes_on_a_donors_intermediate_and_then_gives_the_donors_answer(thought):
    pairs = load_pairs(SHIPPED)
    config = RunConfig(
        name="test", checkpoint="thought", pairs={"file": SHIPPED, "limit": 6}, experiment="matched", extra_problems=300
    )
    executor = RunExecutor(thought, select_pairs(thought, pairs, config), config)
    table = run_recipe(executor)
    shares = matched_data(table).query("source == 'clean' and written == 'prefix' and intermediate == 2")
    told_apart = shares.query("intermediate_is == 'different' and answer_is == 'different'")
    by_step = told_apart.set_index(["answer", "step"])["share"]
    assert by_step["hybrid", 3] >= 0.8
    assert by_step["donor", 3] <= 0.2
    assert by_step["donor", 5] == 1.0
    assert executor.notes["matches"]["used 2:different:different"] == 6


def test_a_model_that_knows_no_answer_has_no_matched_pairs(model, pairs, pairs_file):
    config = RunConfig(name="test", checkpoint="model", pairs={"file": pairs_file}, experiment="matched")
    with pytest.raises(ValueError, match=r"the model answers none of \d+ matched pairs rightly"):
        run_recipe(RunExecutor(model, select_pairs(model, pairs, config), config))


def test_every_subset_of_steps_is_in_both_games(rows, model):
    table = rows("shapley")
    games = table[table["step_set"].notna()]
    assert games["step_set"].nunique() == 2**model.n_latents - 2
    assert set(games["freeze"].fillna("total")) == {"total", "K_T"}
    assert {"logit_difference", "probability_clean", "gives_clean"} <= set(games["metric"])
    counts = games.groupby(["pair_id", "direction", "freeze", "metric"], dropna=False).size()
    assert set(counts) == {2**model.n_latents - 2}


def test_a_knockout_is_a_cell_of_its_own_in_a_sweep(model, pairs, pairs_file):
    config = RunConfig(
        name="test", checkpoint="model", pairs={"file": pairs_file, "limit": 2}, knockouts=["answer-question", "3-1@0"],
        directions=["denoising"], metrics=["logit_difference"],
    )  # fmt: skip
    table = run_recipe(RunExecutor(model, select_pairs(model, pairs, config), config))
    knockout = table[table["knockout"].notna()]
    assert sorted(knockout["knockout"].unique()) == ["3-1@0", "answer-question"]
    assert (knockout["source"] == "self").all()
    assert (knockout["patched"] - knockout["corrupted"]).abs().max() > EXACT


def test_default_sources_that_cannot_be_written_are_left_out_and_named_ones_refused(model, pairs, pairs_file):
    about = {"name": "test", "checkpoint": "model", "pairs": {"file": pairs_file, "limit": 2}, "kinds": ["kv"]}
    config = RunConfig(**about, metrics=["logit_difference"])
    table = run_recipe(RunExecutor(model, select_pairs(model, pairs, config), config))
    assert "noise" not in set(table["source"])
    config = RunConfig(**about, sources=["noise"])
    with pytest.raises(ValueError, match="source 'noise' cannot be written at 'kv'; use it at latent, resid"):
        run_recipe(RunExecutor(model, select_pairs(model, pairs, config), config))


def test_a_single_pass_reads_what_it_can_by_default_and_refuses_what_was_asked_for(model, pairs, pairs_file):
    about = {
        "name": "test",
        "checkpoint": "model",
        "pairs": {"file": pairs_file, "limit": 2},
        "protocol": "single_pass",
    }
    config = RunConfig(**about)
    table = run_recipe(RunExecutor(model, select_pairs(model, pairs, config), config))
    assert "gives_clean" in set(table["metric"])
    assert "probability_clean" not in set(table["metric"])
    asked = RunConfig(**about, metrics=["logit_difference", "probability_clean"])
    with pytest.raises(
        ValueError, match="protocol 'single_pass' scores no whole answers; drop the metric 'probability_"
    ):
        run_recipe(RunExecutor(model, select_pairs(model, pairs, asked), asked))
