"""The single pass over placeholders against one plain forward, whose pads are overwritten by hooks."""

import re

import pandas as pd
import pytest

from codi_tracing.patching.engine.sweep import sweep_cells
from codi_tracing.patching.interventions.cells import Cell, make_cells
from codi_tracing.patching.interventions.edges import edge
from codi_tracing.patching.interventions.sites import BOT, QUESTION, THOUGHT, Site, layerwise, resid
from codi_tracing.patching.interventions.sources import itself, mean, other, step_mean, unrelated, zero
from codi_tracing.patching.metrics import max_logit_change
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.traces.text import last_number
from tests.support.plain import difference, hosts, patched, single_pass_alone, writes_of

EXACT = 1e-5
SITES = [
    Site("resid", 0, 0),
    Site("resid", 1, 1, 3, 3),
    Site("resid", 0, 1, 1, 2),
    Site("attn", 1, 1, 2, 2),
    Site("attn"),
    Site("mlp", 0, 0, 4, 4),
    Site("head", 1, 1, 2, 2, 3),
    Site("head", 0, 2, None, None, 1),
]
SINGLE_PASS = {"protocol": "single_pass"}


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_every_write_at_the_pads_equals_one_forward_with_hooks(both, pairs, direction):
    ready, _ = tokenize_pairs(both, pairs[2:3])
    metrics = ["logit_difference", "logit_difference_at_eot"]
    table = sweep_cells(both, ready, make_cells(SITES, [other], [direction]), metrics=metrics, **SINGLE_PASS)
    assert set(table["protocol"]) == {"single_pass"}
    for p in ready:
        host, donor = hosts(p, direction)
        theirs = single_pass_alone(both, donor, p.forced)
        for site in SITES:
            alone = single_pass_alone(both, host, p.forced, writes_of(both, site, theirs))
            keys = {"kind": site.kind, "layer": site.layer, "step": site.step, "head": site.head}
            assert patched(table, p, **keys) == pytest.approx(difference(p, alone), abs=EXACT), site
            at_eot = float(alone.all_logits[0, p.clean_token] - alone.all_logits[0, p.corrupted_token])
            assert patched(table, p, metrics[1], **keys) == pytest.approx(at_eot, abs=EXACT), site


def test_the_references_of_the_single_pass_are_its_own_unpatched_runs(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:3])
    table = sweep_cells(
        both, ready, make_cells([THOUGHT], [other], ["noising"]), metrics=["logit_difference"], **SINGLE_PASS
    )
    for p, row in zip(ready, table.itertuples(), strict=True):
        for found, side in ((row.clean, p.pair.clean), (row.corrupted, p.pair.corrupted)):
            assert found == pytest.approx(difference(p, single_pass_alone(both, side.question, p.forced)), abs=EXACT)


def test_a_write_at_the_last_layer_changes_nothing_at_any_pad_to_the_last_bit(both, pairs):
    """Beside the same cell unwritten; its host is another cell of the forward, and may round otherwise."""
    ready, _ = tokenize_pairs(both, pairs[:4])
    last = both.n_layers - 1
    sites = [*(resid(last, step) for step in range(both.n_latents)), resid(last), Site("mlp", last, last)]
    options = {"metrics": ["logit_difference", "kl_to_clean", max_logit_change], **SINGLE_PASS}
    written, unwritten = (
        sweep_cells(both, ready, make_cells(sites, [source]), **options) for source in (other, itself)
    )
    assert (written["patched"] - unwritten["patched"] == 0.0).all()
    assert written.loc[written["metric"] == "max_logit_change", "patched"].max() <= EXACT


def test_every_earlier_layer_changes_something_at_every_pad(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:2])
    sites = [resid(layer, step) for layer in range(both.n_layers - 1) for step in range(both.n_latents)]
    table = sweep_cells(both, ready, make_cells(sites, [other], ["noising"]), metrics=[max_logit_change], **SINGLE_PASS)
    assert table["patched"].min() > EXACT


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_an_exchanged_thought_is_surgery_on_the_cache_of_the_pads(both, pairs, direction):
    ready, _ = tokenize_pairs(both, pairs[2:3])
    table = sweep_cells(
        both, ready, make_cells([THOUGHT], [other], [direction]), metrics=["logit_difference", "answer"],
        max_new_tokens=6, **SINGLE_PASS,
    )  # fmt: skip
    for p in ready:
        host, donor = hosts(p, direction)
        theirs = single_pass_alone(both, donor, p.forced)
        alone = single_pass_alone(both, host, p.forced, pads_of=theirs, decode=6)
        assert patched(table, p) == pytest.approx(difference(p, alone), abs=EXACT)
        said = last_number(both.tokenizer.decode(alone.said, skip_special_tokens=True))
        assert patched(table, p, "answer") == pytest.approx(said, nan_ok=True)
        assert difference(p, alone) != pytest.approx(difference(p, single_pass_alone(both, host, p.forced)), abs=EXACT)


def test_greedy_answers_of_unpatched_runs_equal_token_by_token_decoding(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:4])
    table = sweep_cells(
        both, ready, make_cells([resid(1)], [itself], ["noising"]), metrics=["answer"], max_new_tokens=8, **SINGLE_PASS
    )
    for p in ready:
        for column, side in (("patched", p.pair.clean), ("clean", p.pair.clean), ("corrupted", p.pair.corrupted)):
            alone = single_pass_alone(both, side.question, p.forced, decode=8)
            said = last_number(both.tokenizer.decode(alone.said, skip_special_tokens=True))
            (found,) = table.loc[table["pair_id"] == str(p.pair.pair_id), column]
            assert found == pytest.approx(said, nan_ok=True)


def test_a_pass_written_with_its_own_values_is_unchanged(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:3])
    table = sweep_cells(both, ready, make_cells([*SITES, THOUGHT], [itself]), metrics=[max_logit_change], **SINGLE_PASS)
    assert table["patched"].max() <= EXACT


def test_zero_is_written_at_the_pads_as_by_hooks(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:2])
    sites = [Site("resid", 1, 1, 3, 3), Site("mlp", 0, 0, 4, 4), Site("attn", 1, 1, 2, 2)]
    table = sweep_cells(
        both, ready, make_cells(sites, [zero], ["noising"]), metrics=["logit_difference"], **SINGLE_PASS
    )
    for p in ready:
        for site in sites:
            writes = {(site.kind, site.layer, site.step, None): 0.0}
            alone = single_pass_alone(both, p.pair.clean.question, p.forced, writes)
            assert patched(table, p, kind=site.kind) == pytest.approx(difference(p, alone), abs=EXACT), site


def test_blocks_and_batches_do_not_matter_to_the_single_pass(both, pairs):
    ready, _ = tokenize_pairs(both, pairs)
    cells = make_cells([resid(1), resid(0, 2), THOUGHT], [other, unrelated], ["denoising"])
    options = {"metrics": ["logit_difference", "answer", "edit_norm"], "max_new_tokens": 4, **SINGLE_PASS}
    large = sweep_cells(both, ready, cells, **options)
    small = sweep_cells(both, ready, cells, **options, cells_per_forward=1, pairs_per_batch=1)
    assert "unrelated" in set(large["source"])
    pd.testing.assert_frame_equal(large, small, atol=EXACT, rtol=0)


def test_the_single_pass_is_not_the_loop(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:2])
    cells = make_cells(layerwise(both), [other], ["noising"])
    loop, single = (
        sweep_cells(both, ready, cells, metrics=["logit_difference"], protocol=name)
        for name in ("latent_loop", "single_pass")
    )
    assert (loop["clean"] - single["clean"]).abs().min() > EXACT


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        (Cell("noising", other, Site("kv", 1, 1)), "protocol 'single_pass' has no site 'kv'; use resid, attn, mlp"),
        (Cell("noising", other, Site("latent", step=1)), "protocol 'single_pass' has no site 'latent'"),
        (Cell("noising", mean, resid(1)), "has no means, which are those of the loop; use another source"),
        (Cell("noising", step_mean, resid(1)), "has no means, which are those of the loop; use another source"),
        (Cell("noising", other, QUESTION), "protocol 'single_pass' has no site 'question'"),
        (Cell("noising", other, BOT), "protocol 'single_pass' has no site 'bot'"),
        (Cell("noising", other, resid(1), ("R",)), "runs no loop: freeze, cut edges and n_latents have no meaning"),
        (Cell("noising", other, resid(1), ("between",)), "runs no loop: freeze, cut edges and n_latents"),
        (Cell("noising", other, resid(1), knockouts=(edge("4-1"),)), "runs no loop: freeze, cut edges and n_latents"),
        (Cell("noising", other, THOUGHT, n_latents=2), "runs no loop: freeze, cut edges and n_latents have no meaning"),
    ],
)  # fmt: skip
def test_what_needs_the_loop_is_refused(model, pairs, cell, sentence):
    ready, _ = tokenize_pairs(model, pairs[:1])
    with pytest.raises(ValueError, match=re.escape(sentence)):
        sweep_cells(model, ready, [cell], **SINGLE_PASS)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"always": [edge("4-1")]}, "runs no loop: edges cut always and step metrics have no meaning in it"),
        ({"step_metrics": ["entropy"]}, "runs no loop: edges cut always and step metrics have no meaning in it"),
        ({"metrics": ["logprob_clean"]}, "scores no whole answers; drop the metric 'logprob_clean'"),
        ({"protocol": "loop"}, "protocol 'loop' is unknown; use latent_loop or single_pass"),
    ],
)
def test_options_that_the_single_pass_would_have_to_ignore_are_refused(model, pairs, options, sentence):
    ready, _ = tokenize_pairs(model, pairs[:1])
    with pytest.raises(ValueError, match=re.escape(sentence)):
        sweep_cells(model, ready, make_cells([resid(1)], [other]), **(SINGLE_PASS | options))
