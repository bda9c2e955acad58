"""The many-cells engine against one run at a time, and the identities that hold in any model."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from codi_tracing.patching.engine.sweep import sweep, sweep_cells
from codi_tracing.patching.interventions.cells import make_cells
from codi_tracing.patching.interventions.edges import edge
from codi_tracing.patching.interventions.sites import THOUGHT, Site, layerwise, resid, sitewise
from codi_tracing.patching.interventions.sources import itself, noise, other, step_mean, unrelated
from codi_tracing.patching.metrics import max_logit_change
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.traces.loop.tokens import question_ids

EXACT = 1e-5
LOGIT_METRICS = ["logit_difference", "kl_from_corrupted", "kl_to_clean", "rms_logit_difference", "prediction_change"]


@torch.no_grad()
def one_run(model, question: str, forced, writes=None, exchange=None):
    """One question alone in plain PyTorch, with forward hooks that write `writes[layer, step]`; gives logits at the
    last forced token, the residual of every place, and the cache after the thought. `exchange` is another run's cache
    whose entries of the six steps replace this run's before the answer."""
    causal_lm = model.lm._module
    embed, here, resid_of = causal_lm.get_input_embeddings(), {"step": None}, {}

    def hook(layer):
        def at_output(module, inputs, output):
            place = (layer, here["step"])
            if here["step"] is not None:
                if writes and place in writes:
                    output = writes[place].expand_as(output).clone()
                resid_of[place] = output.clone()
                return output

        return at_output

    handles = [block.register_forward_hook(hook(i)) for i, block in enumerate(causal_lm.model.layers)]
    try:
        ids = torch.tensor([question_ids(model, question)])
        out = causal_lm.model(inputs_embeds=torch.cat([embed(ids), model.bot[None, None]], 1), use_cache=True)
        for step in range(model.n_latents):
            here["step"] = step
            latent = model.project(out.last_hidden_state[:, -1:])
            out = causal_lm.model(inputs_embeds=latent, past_key_values=out.past_key_values, use_cache=True)
        here["step"] = None
        cache = copy.deepcopy(out.past_key_values)
        if exchange is not None:
            for mine, theirs in zip(out.past_key_values.layers, exchange.layers, strict=True):
                mine.keys[:, :, -model.n_latents :] = theirs.keys[:, :, -model.n_latents :]
                mine.values[:, :, -model.n_latents :] = theirs.values[:, :, -model.n_latents :]
        prefix = torch.cat([model.eot[None, None], embed(torch.tensor([list(forced)]))], 1)
        logits = causal_lm(inputs_embeds=prefix, past_key_values=out.past_key_values).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    return logits, resid_of, cache


def patched_value(table: pd.DataFrame, pair_id, site: Site, direction: str, metric: str = "logit_difference") -> float:
    chosen = table[
        (table["pair_id"] == str(pair_id)) & (table["direction"] == direction) & (table["metric"] == metric)
        & (table["kind"] == site.kind) & (table["source"].isin(["clean", "corrupted"]))
    ]  # fmt: skip
    for column in ("layer", "step"):
        wanted = getattr(site, column)
        chosen = chosen[chosen[column].isna() if wanted is None else chosen[column] == wanted]
    assert len(chosen) == 1
    return float(chosen["patched"].iloc[0])


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_a_batched_sweep_equals_one_hooked_run_at_a_time(model, pairs, direction):
    sites = [*layerwise(model), resid(1, 0), resid(0, 4), Site("resid", None, None, 2, 3), THOUGHT]
    table = sweep(model, pairs[:4], sites, [other], [direction], ["logit_difference"])
    for ready in tokenize_pairs(model, pairs[:4])[0]:
        sides = (ready.pair.corrupted, ready.pair.clean)
        host, donor = sides if direction == "denoising" else sides[::-1]
        _, theirs, cache = one_run(model, donor.question, ready.forced)
        for site in sites:
            if site.kind == "thought":
                logits, _, _ = one_run(model, host.question, ready.forced, exchange=cache)
            else:
                writes = {place: theirs[place] for place in site.places(model)}
                logits, _, _ = one_run(model, host.question, ready.forced, writes)
            alone = float(logits[ready.clean_token] - logits[ready.corrupted_token])
            assert patched_value(table, ready.pair.pair_id, site, direction) == pytest.approx(alone, abs=EXACT)


def test_the_references_are_the_unpatched_runs(model, pairs):
    table = sweep(model, pairs[:3], [THOUGHT], [other], metrics=["logit_difference"])
    for ready in tokenize_pairs(model, pairs[:3])[0]:
        rows = table[table["pair_id"] == str(ready.pair.pair_id)]
        for column, side in (("clean", ready.pair.clean), ("corrupted", ready.pair.corrupted)):
            logits, _, _ = one_run(model, side.question, ready.forced)
            alone = float(logits[ready.clean_token] - logits[ready.corrupted_token])
            np.testing.assert_allclose(rows[column], alone, atol=EXACT)


def test_patching_a_run_with_itself_changes_nothing_at_every_site(model, pairs):
    table = sweep(model, pairs, [*sitewise(model), *layerwise(model), THOUGHT], [itself], metrics=[max_logit_change])
    assert len(table) == len(pairs) * 2 * (3 * 6 + 3 + 1)
    assert table["patched"].max() <= EXACT


def test_the_last_layer_at_the_last_step_cannot_matter(model, pairs):
    never_fed = resid(model.n_layers - 1, model.n_latents - 1)
    table = sweep(model, pairs, [never_fed], [other, unrelated], metrics=[max_logit_change])
    assert table["patched"].max() <= EXACT


def test_every_other_single_site_matters(model, pairs):
    table = sweep(model, pairs[:4], sitewise(model), [other], ["denoising"], [max_logit_change])
    never_fed = (table["layer"] == model.n_layers - 1) & (table["step"] == model.n_latents - 1)
    assert table.loc[~never_fed, "patched"].min() > EXACT


def test_the_size_of_blocks_and_batches_does_not_matter(model, pairs):
    options = {"metrics": [*LOGIT_METRICS, "answer"]}
    large = sweep(model, pairs, **options)
    small = sweep(model, pairs, **options, cells_per_forward=2, pairs_per_batch=1)
    pd.testing.assert_frame_equal(large, small, atol=EXACT, rtol=EXACT)


def test_a_serialised_sweep_equals_the_local_one(model, pairs):
    local = sweep(model, pairs[:2], metrics=LOGIT_METRICS)
    pd.testing.assert_frame_equal(local, sweep(model, pairs[:2], metrics=LOGIT_METRICS, remote="local"), atol=EXACT)


@pytest.mark.parametrize(
    "options",
    [
        {"knockouts": [edge("answer-3@1"), edge("4-1@0")], "metrics": ["logit_difference", "answer"]},
        {"metrics": ["logprob_clean", "js_to_clean", "edit_norm"]},
        {"metrics": ["logit_difference"], "step_metrics": ["projection", "kl_to_clean"]},
        {"metrics": ["logit_difference", "answer"], "protocol": "single_pass"},
        {"metrics": ["logit_difference"], "draws": 2, "sources": [unrelated, noise, step_mean]},
    ],
    ids=["knockouts", "whole answers and sizes", "steps", "single pass", "draws"],
)
def test_every_option_of_a_sweep_gives_the_same_serialised(model, pairs, options):
    sites = [resid(1, 2)] if "step_metrics" in options else [resid(1)]
    local = sweep(model, pairs[:2], sites, **options)
    pd.testing.assert_frame_equal(local, sweep(model, pairs[:2], sites, **options, remote="local"), atol=EXACT)


def test_kl_is_zero_from_a_run_to_itself_and_never_negative(model, pairs):
    table = sweep(model, pairs, metrics=["kl_from_corrupted", "kl_to_clean"])
    assert table[["patched", "clean", "corrupted"]].min().min() >= -1e-6
    assert table.loc[table["metric"] == "kl_from_corrupted", "corrupted"].abs().max() <= 1e-6
    assert table.loc[table["metric"] == "kl_to_clean", "clean"].abs().max() <= 1e-6


def test_a_users_metric_is_a_function(model, pairs):
    def entropy(reading):
        return torch.distributions.Categorical(logits=reading.patched).entropy()

    table = sweep(model, pairs[:2], [THOUGHT], [other], metrics=[entropy])
    assert set(table["metric"]) == {"entropy"}
    assert table["patched"].between(0, np.log(model.lm.config.vocab_size)).all()


def test_the_shared_start_of_both_answers_is_forced_and_metrics_are_read_where_they_differ(model, pairs):
    for ready in tokenize_pairs(model, pairs)[0]:
        forced = model.tokenizer.decode(list(ready.forced))
        assert forced == "The answer is:"
        assert model.tokenizer.decode([ready.clean_token]) == str(int(ready.pair.clean.answer))
        assert model.tokenizer.decode([ready.corrupted_token]) == str(int(ready.pair.corrupted.answer))


def test_a_pair_of_unequal_length_is_refused_with_its_counts(model, pairs):
    odd = pairs[0].clean.__class__(**{**vars(pairs[0].clean), "question": pairs[0].clean.question + " Ann had 2 pens."})
    pair = pairs[0].__class__(**{**vars(pairs[0]), "clean": odd})
    with pytest.raises(ValueError, match=r"pair 0: its questions have \d+ and \d+ tokens, expected equal counts"):
        sweep(model, [pair])


def test_an_unknown_metric_is_refused_with_the_known_ones(model, pairs):
    with pytest.raises(ValueError, match="metric 'kl' is unknown; use kl_from_corrupted"):
        sweep(model, pairs[:1], metrics=["kl"])


def test_a_layer_that_does_not_exist_is_refused_before_anything_runs(model, pairs):
    with pytest.raises(ValueError, match="layer 7-7 does not exist; this model has layers 0 to 2"):
        sweep(model, pairs[:1], [resid(7)])


def test_an_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="direction 'sideways' is unknown; use denoising or noising"):
        make_cells([THOUGHT], [other], ["sideways"])


def test_a_pair_without_an_unrelated_donor_has_no_unrelated_rows(model, pairs):
    ready, _ = tokenize_pairs(model, pairs[:2])
    table = sweep_cells(
        model, ready, make_cells([THOUGHT], [other, unrelated]), donors=[(), ()], metrics=["logit_difference"]
    )
    assert set(table["source"]) == {"clean", "corrupted"}
