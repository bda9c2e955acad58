"""Attribution patching against finite differences of one hooked run at a time, on both families in float64."""

import dataclasses

import pandas as pd
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from codi_tracing.analysis.statistics.effects import effect
from codi_tracing.analysis.table import check_table
from codi_tracing.configs.vocabulary import BLOCK_KINDS, GRID_KINDS
from codi_tracing.patching.engine.attribution import ESTIMATED, attribute, to_verify
from codi_tracing.patching.engine.sweep import sweep
from codi_tracing.patching.interventions.sites import Site, single_sites
from codi_tracing.patching.interventions.sources import other
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.traces.loop.thought import run
from codi_tracing.traces.loop.tokens import encode
from codi_tracing.traces.model.loading import load_codi
from tests.support.checkpoints import write_random_checkpoint
from tests.support.plain import run_alone, writes_of

PLACE = ["pair_id", "direction", "source", "kind", "layer", "step", "head"]


def norm_as_it_comes(self, x):
    """Llama's norm without its own rounding to fp32, which finite differences would see."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def both(request, tmp_path_factory):
    """A random model of each family, in float64."""
    folder = write_random_checkpoint(tmp_path_factory.mktemp("both"), family=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaRMSNorm, "forward", norm_as_it_comes)  # before nnsight takes hold of it
        model = load_codi(folder, device="cpu")
        model.lm._module.double()
        parts = {"project": model.project.double(), "bot": model.bot.double(), "eot": model.eot.double()}
        yield dataclasses.replace(model, **parts)


def runs_of(model, ready, direction):
    """The host's and the donor's run, and the host's question."""
    sides = (ready.pair.corrupted, ready.pair.clean)
    host, donor = (side.question for side in (sides if direction == "denoising" else sides[::-1]))
    return run_alone(model, host, ready.forced), run_alone(model, donor, ready.forced), host


def between(mine, theirs, share):
    """The host's value, so much of the way to the donor's."""
    if isinstance(mine, tuple):
        return tuple(between(a, b, share) for a, b in zip(mine, theirs, strict=True))
    return mine + share * (theirs - mine)


def exact_change(model, ready, site, share, mine, theirs, question):
    """How one hooked run's logit difference changes when a place goes so much of the way to the donor's value."""
    own, donor = (writes_of(model, site, done) for done in (mine, theirs))
    writes = {place: between(own[place], donor[place], share) for place in own}
    logits = run_alone(model, question, ready.forced, writes).logits - mine.logits
    return float(logits[ready.clean_token] - logits[ready.corrupted_token])


def estimated_change(table, ready, site, direction):
    """The same from the table, to first order and all the way."""
    chosen = effect(table[(table["pair_id"] == str(ready.pair.pair_id)) & (table["direction"] == direction)])
    for column in ("layer", "step", "head"):
        wanted = getattr(site, column)
        chosen = chosen[chosen[column].isna() if wanted is None else chosen[column] == wanted]
    (value,) = chosen.loc[chosen["kind"] == site.kind, "numerator"]
    return value


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("kind", GRID_KINDS)
def test_an_estimate_is_the_derivative_of_one_hooked_run_towards_the_donor(both, pairs, kind, direction):
    (ready,) = tokenize_pairs(both, pairs[1:2])[0]
    table = attribute(both, [ready], [kind], [direction])
    runs = runs_of(both, ready, direction)
    sites = single_sites(both, [kind])
    sizes = []
    for site in sites[:: {"latent": 1, "head": 7}.get(kind, 2)]:
        above, below = (exact_change(both, ready, site, share, *runs) for share in (1e-3, -1e-3))
        slope = (above - below) / 2e-3
        assert estimated_change(table, ready, site, direction) == pytest.approx(slope, rel=1e-4, abs=1e-8), site
        sizes.append(abs(slope))
    assert max(sizes) > 1e-5


@pytest.mark.parametrize("kind", GRID_KINDS)
def test_the_estimate_of_a_small_edit_errs_to_second_order(both, pairs, kind):
    (ready,) = tokenize_pairs(both, pairs[:1])[0]
    table = attribute(both, [ready], [kind], ["noising"])
    runs = runs_of(both, ready, "noising")
    site = max(single_sites(both, [kind]), key=lambda place: abs(estimated_change(table, ready, place, "noising")))
    slope = estimated_change(table, ready, site, "noising")
    errors = [exact_change(both, ready, site, share, *runs) - share * slope for share in (0.04, 0.02)]
    assert errors[0] == pytest.approx(4 * errors[1], rel=0.1)
    assert abs(errors[1]) < 0.1 * abs(0.02 * slope)


@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_the_last_layer_at_the_last_step_is_estimated_to_change_exactly_nothing(both, pairs, kind):
    table = effect(attribute(both, tokenize_pairs(both, pairs[:4])[0], [kind]))
    never_fed = (table["layer"] == both.n_layers - 1) & (table["step"] == both.n_latents - 1)
    assert never_fed.any()
    assert (table.loc[never_fed, "numerator"] == 0).all()
    assert (table.loc[~never_fed, "numerator"] != 0).all()


def test_pairs_of_different_lengths_are_estimated_together_as_one_at_a_time(both, pairs):
    ready = tokenize_pairs(both, pairs)[0]
    assert len({p.tokens for p in ready}) > 1
    one, many = (effect(attribute(both, ready, pairs_per_batch=size)) for size in (1, len(ready)))
    pd.testing.assert_frame_equal(one, many, atol=1e-6, rtol=1e-4)
    assert (one["numerator"] - many["numerator"]).abs().max() < 1e-9


def test_a_kind_is_estimated_the_same_alone_as_beside_the_others(both, pairs):
    ready = tokenize_pairs(both, pairs[:3])[0]
    whole = attribute(both, ready)
    for kind in GRID_KINDS:
        alone = attribute(both, ready, [kind])
        part = whole[whole["kind"] == kind].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, part, atol=1e-9, rtol=0)


def test_the_table_has_the_rows_and_the_unpatched_runs_of_an_exact_sweep(both, pairs):
    ready = tokenize_pairs(both, pairs[:4])[0]
    estimates = attribute(both, ready)
    exact = sweep(both, pairs[:4], single_sites(both, GRID_KINDS), [other], metrics=["logit_difference"])
    pd.testing.assert_frame_equal(estimates[PLACE], exact[PLACE])
    for side in ("clean", "corrupted"):
        assert (estimates[side] - exact[side]).abs().max() < 1e-5
    check_table(pd.concat([estimates, exact], ignore_index=True))
    assert set(estimates["metric"]) == {ESTIMATED}


def test_estimating_leaves_no_gradient_behind_and_no_parameter_changed(both, pairs):
    parameters = [*both.lm._module.parameters(), *both.project.parameters(), both.bot, both.eot]
    before = [parameter.detach().clone() for parameter in parameters]
    attribute(both, tokenize_pairs(both, pairs[:2])[0])
    for parameter, was in zip(parameters, before, strict=True):
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert torch.equal(parameter, was)
    done = run(both, encode(both, [[pairs[0].clean.question]]), torch.zeros(1, 0, dtype=torch.long))
    assert not done.forced.at_read.requires_grad
    assert torch.is_grad_enabled()


def test_a_model_in_bfloat16_is_estimated_much_as_in_float32(random_checkpoint, pairs):
    found = []
    for dtype in ("bfloat16", "float32"):
        model = load_codi(random_checkpoint, device="cpu", dtype=dtype)
        found.append(effect(attribute(model, tokenize_pairs(model, pairs[:4])[0]))["numerator"])
    assert found[0].corr(found[1]) > 0.9


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kinds": ["thought"]}, "site 'thought' has no estimate; use latent, resid, attn, mlp, head, kv"),
        ({"directions": ["back"]}, "direction 'back' is unknown; use denoising or noising"),
        ({"kinds": []}, "nothing to estimate: 1 usable pairs, 0 kinds of site and 2 directions"),
    ],
)
def test_sites_without_an_estimate_are_refused(model, pairs, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        attribute(model, tokenize_pairs(model, pairs[:1])[0], **options)


def estimates_of(sizes):
    """A table of one pair in both directions with these effects by step."""
    rows = []
    for direction, host, gap in (("denoising", -1.0, 2.0), ("noising", 1.0, -2.0)):
        for step, size in enumerate(sizes):
            rows.append({"metric": ESTIMATED, "direction": direction, "kind": "resid", "step": step, "step_last": step})
            rows[-1] |= {"layer": 1, "layer_last": 1, "head": None, "patched": host + size * gap}
            rows[-1] |= {"clean": 1.0, "corrupted": -1.0}
    table = pd.DataFrame(rows)
    return table.astype({name: "Int64" for name in ("layer", "layer_last", "step", "step_last", "head")})


def test_the_largest_estimates_of_either_sign_are_verified_and_as_many_others_drawn():
    sizes = [0.1, -0.9, 0.3, 0.0, 0.5, -0.2]
    chosen = to_verify(estimates_of(sizes), 2, seed=0)
    assert chosen[:2] == [Site("resid", 1, 1, 1, 1), Site("resid", 1, 1, 4, 4)]
    assert len(set(chosen)) == 4
    assert chosen == to_verify(estimates_of(sizes), 2, seed=0)
    drawn = {site for seed in range(20) for site in to_verify(estimates_of(sizes), 2, seed)[2:]}
    assert {site.step for site in drawn} == {0, 2, 3, 5}
    assert len(to_verify(estimates_of(sizes), 4, seed=0)) == len(to_verify(estimates_of(sizes), 9, seed=0)) == 6


def test_a_site_whose_directions_cancel_is_chosen_after_one_where_they_agree():
    table = estimates_of([0.9, 0.2])
    noised = (table["direction"] == "noising") & (table["step"] == 0)
    table.loc[noised, "patched"] = 1.0 + 0.9 * 2.0  # an effect of -0.9
    assert to_verify(table, 1, seed=0)[0].step == 1


def test_the_chosen_sites_can_be_swept_exactly(model, pairs):
    ready = tokenize_pairs(model, pairs[:3])[0]
    chosen = to_verify(attribute(model, ready), 3, seed=1)
    exact = sweep(model, pairs[:3], chosen, [other], metrics=["logit_difference"])
    assert len(exact) == len(chosen) * 3 * 2


def test_choosing_no_site_or_without_estimates_is_refused():
    table = estimates_of([0.1])
    with pytest.raises(ValueError, match="top 0 chooses no site; use 1 or more"):
        to_verify(table, 0, seed=0)
    with pytest.raises(ValueError, match="no rows of metric 'logit_difference_estimate'"):
        to_verify(table.assign(metric="logit_difference"), 1, seed=0)
