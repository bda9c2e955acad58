"""Every site, with every route held or open, on both families: the engine against one hooked run at a time."""

import itertools
import re

import pandas as pd
import pytest
import torch

from codi_tracing.configs.vocabulary import ROUTES, SEGMENTS
from codi_tracing.patching.engine.sweep import sweep
from codi_tracing.patching.engine.writes import normal
from codi_tracing.patching.interventions.sites import BOT, QUESTION, THOUGHT, Site, sitewise
from codi_tracing.patching.interventions.sources import (
    Value,
    Values,
    itself,
    mean,
    moments,
    noise,
    other,
    steer,
    step_mean,
    unrelated,
    zero,
)
from codi_tracing.patching.metrics import max_logit_change
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from tests.support.plain import run_alone, writes_of

EXACT = 1e-5
SITES = [
    Site("latent", None, None, 2, 2),
    Site("latent", None, None, 0, 1),
    Site("resid", 1, 1, 3, 3),
    Site("resid", 0, 1, 1, 2),
    Site("attn", 1, 1, 2, 2),
    Site("attn"),
    Site("mlp", 0, 0, 4, 4),
    Site("head", 1, 1, 2, 2, 3),
    Site("head", 0, 2, None, None, 1),
    Site("kv", 1, 1, 2, 2),
    Site("kv", 2, 2),
    Site("kv", None, None, 3, 4),
    THOUGHT,
    QUESTION,
    BOT,
]
FREEZES = [frozen for size in range(4) for frozen in itertools.combinations(ROUTES, size)]


def alone(model, ready, site, direction, freeze=()):
    """The logit difference of one hooked run."""
    sides = (ready.pair.corrupted, ready.pair.clean)
    host, donor = (side.question for side in (sides if direction == "denoising" else sides[::-1]))
    mine, theirs = run_alone(model, host, ready.forced), run_alone(model, donor, ready.forced)
    knockouts = {site.kind: theirs} if site.kind in SEGMENTS else {}
    done = run_alone(
        model, host, ready.forced, writes_of(model, site, theirs), freeze=freeze, host=mine, knockouts=knockouts
    )  # fmt: skip
    return float(done.logits[ready.clean_token] - done.logits[ready.corrupted_token])


def patched(table, ready, site, direction):
    """The same from the table."""
    chosen = table[(table["pair_id"] == str(ready.pair.pair_id)) & (table["direction"] == direction)]
    for column in ("layer", "step", "head"):
        wanted = getattr(site, column)
        chosen = chosen[chosen[column].isna() if wanted is None else chosen[column] == wanted]
    (value,) = chosen.loc[chosen["kind"] == site.kind, "patched"]
    return value


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_every_site_equals_one_hooked_run_at_a_time(both, pairs, direction):
    table = sweep(both, pairs[:3], SITES, [other], [direction], ["logit_difference"])
    for ready in tokenize_pairs(both, pairs[:3])[0]:
        for site in SITES:
            assert patched(table, ready, site, direction) == pytest.approx(
                alone(both, ready, site, direction), abs=EXACT
            ), site


@pytest.mark.parametrize("freeze", FREEZES, ids="+".join)
def test_every_frozen_route_equals_one_hooked_run_at_a_time(both, pairs, freeze):
    sites = [site for site in SITES if site.kind not in SEGMENTS]
    table = sweep(both, pairs[:1], sites, [other], ["noising"], ["logit_difference"], freeze=freeze)
    (ready,) = tokenize_pairs(both, pairs[:1])[0]
    for site in sites:
        assert patched(table, ready, site, "noising") == pytest.approx(
            alone(both, ready, site, "noising", freeze), abs=EXACT
        ), site


PLACES = [
    Site("latent", None, None, 2, 2),
    Site("resid", 1, 1, 3, 3),
    Site("attn", 1, 1, 0, 0),
    Site("mlp", 0, 0, 4, 4),
    Site("head", 1, 1, 2, 2, 3),
]


def stood(model, site, done):
    """What stood at a single place of a hooked run."""
    if site.kind == "latent":
        return done.latents[site.step]
    width = model.head_width
    part = slice(None) if site.head is None else slice(site.head * width, (site.head + 1) * width)
    return done.values[site.kind, site.layer, site.step][part]


@pytest.mark.parametrize("value", [zero, mean, step_mean, noise, moments], ids=lambda value: value.name)
def test_every_computed_value_equals_one_hooked_run_at_a_time(both, pairs, value):
    everyone = tokenize_pairs(both, pairs[:4])[0]
    runs = [
        [run_alone(both, side.question, p.forced) for side in (p.pair.clean, p.pair.corrupted)] for p in everyone
    ]  # fmt: skip
    table = sweep(both, pairs[:4], PLACES, [value], ["noising"], ["logit_difference"])
    assert set(table["source"]) == {value.name}
    for ready, (host, other_run) in list(zip(everyone, runs, strict=True))[:2]:
        for site in PLACES:
            at_steps = [site._replace(step=step, step_last=step) for step in range(both.n_latents)]
            means = torch.stack([
                torch.stack([stood(both, place, done) for pair in runs for done in pair]).mean(0) for place in at_steps
            ])  # fmt: skip
            own = stood(both, site, host)[None]
            place = (site.kind, site.layer or 0, site.step, site.head)
            drawn = normal([f"0:{ready.pair.pair_id}"], place, own.shape[-1])
            values = Values(own, own, stood(both, site, other_run)[None], means.mean(0), means[site.step], drawn)
            written = value.write(values)[0]
            if site.head is not None:
                whole = torch.zeros(both.n_heads * both.head_width)
                whole[site.head * both.head_width : (site.head + 1) * both.head_width] = written
                written = whole
            key = ("latent", None, site.step, None) if site.kind == "latent" else (*place[:3], site.head)
            done = run_alone(both, ready.pair.clean.question, ready.forced, {key: written})
            alone_ = float(done.logits[ready.clean_token] - done.logits[ready.corrupted_token])
            assert patched(table, ready, site, "noising") == pytest.approx(alone_, abs=EXACT), site


def test_steering_adds_a_vector_and_with_coefficient_zero_changes_nothing(both, pairs):
    push = torch.randn(both.d_model, generator=torch.Generator().manual_seed(1))
    sources = [steer(push, 0.0, "nothing"), steer(push, 2.0, "push")]
    table = sweep(both, pairs[:3], PLACES[:4], sources, metrics=[max_logit_change])
    by_source = table.groupby("source")["patched"]
    assert by_source.max()["nothing"] <= EXACT
    assert by_source.max()["push"] > 10 * EXACT


def test_noise_has_the_norm_of_the_other_runs_value_and_is_the_same_in_any_batch(both, pairs):
    seen = []
    look = Value("look", lambda v: seen.append((noise.write(v).norm(dim=-1), v.other.norm(dim=-1))) or v.own)
    sweep(both, pairs[:3], PLACES[:1], [look], ["noising"], [max_logit_change])
    for lengths, wanted in seen:
        torch.testing.assert_close(lengths, wanted)
    options = {"sources": [noise, moments], "metrics": ["logit_difference"]}
    one, many = (sweep(both, pairs[:5], PLACES, **options, pairs_per_batch=size) for size in (1, 5))
    pd.testing.assert_frame_equal(one, many, atol=EXACT, rtol=0)


def test_a_computed_value_is_refused_for_cache_entries(model, pairs):
    with pytest.raises(ValueError, match="source 'zero' cannot be written at 'kv'; use it at latent, resid, attn, mlp"):
        sweep(model, pairs[:1], [Site("kv", 1, 1)], [zero])


def test_with_all_routes_frozen_nothing_changes(both, pairs):
    sites = [site for site in SITES if site.kind not in SEGMENTS]
    table = sweep(both, pairs, sites, [other, unrelated], metrics=[max_logit_change], freeze=tuple(ROUTES))
    assert table["patched"].max() <= EXACT
    assert set(table["freeze"]) == {"R+K_T+K_A"}


def test_a_self_patch_changes_nothing_at_every_site(both, pairs):
    table = sweep(both, pairs[:4], SITES, [itself], metrics=[max_logit_change])
    assert table["patched"].max() <= EXACT


@pytest.mark.parametrize("kind", ["resid", "attn", "mlp"])
def test_the_last_layer_at_the_last_step_changes_nothing(both, pairs, kind):
    last = Site(kind, both.n_layers - 1, both.n_layers - 1, both.n_latents - 1, both.n_latents - 1)
    table = sweep(both, pairs[:4], [last], [other, unrelated], metrics=[max_logit_change])
    assert table["patched"].max() <= EXACT


@pytest.mark.parametrize("kind", ["resid", "attn", "mlp", "kv"])
def test_every_other_site_changes_something(both, pairs, kind):
    table = sweep(both, pairs[:3], sitewise(both, kind), [other], ["denoising"], [max_logit_change])
    fed = (table["layer"] < both.n_layers - 1) | (table["step"] < both.n_latents - 1)
    always = kind == "kv"  # the answer reads every entry
    assert table.loc[fed | always, "patched"].min() > EXACT


@pytest.mark.parametrize("route", ROUTES)
def test_each_route_carries_something_of_an_early_edit(both, pairs, route):
    site = Site("latent", None, None, 0, 0)
    others = [name for name in ROUTES if name != route]
    alone_open = sweep(both, pairs[:3], [site], [other], metrics=[max_logit_change], freeze=others)
    assert alone_open["patched"].max() > EXACT


def test_the_last_layers_residual_is_the_next_latent_after_norm_and_projection(both, pairs):
    layer = both.n_layers - 1
    sites = [Site("resid", layer, layer, 2, 2), Site("latent", None, None, 3, 3)]
    table = sweep(both, pairs[:3], sites[:1], [other], metrics=["logit_difference"], freeze=["K_T", "K_A"])
    fed = sweep(both, pairs[:3], sites[1:], [other], metrics=["logit_difference"])
    assert table["patched"].tolist() == pytest.approx(fed["patched"].tolist(), abs=EXACT)


@pytest.mark.parametrize(
    ("site", "sentence"),
    [
        (Site("neuron"), "site 'neuron' is unknown; use latent, resid, attn, mlp, head, kv, thought, question, bot"),
        (Site("thought", step=1), "site 'thought' is a whole segment of the cache; it has no layer, step or head"),
        (Site("latent", 1), "site 'latent' is what is fed before the first layer; it has steps, but no layer"),
        (Site("head", 1), "site 'head' names one head; found head None"),
        (Site("mlp", 1, head=0), "site 'mlp' has no head; found head 0"),
        (Site("head", 1, head=4), "head 4-4 does not exist; this model has heads 0 to 3"),
        (Site("attn", 1, step=6), "step 6-6 does not exist; this model has steps 0 to 5"),
    ],
)
def test_an_unknown_site_is_refused_with_the_known_ones(model, pairs, site, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        sweep(model, pairs[:1], [site])


@pytest.mark.parametrize(
    ("freeze", "sentence"),
    [(["K"], "freeze 'K' is unknown; use R, K_T, K_A"), (["R", "R"], "freeze names a route twice (R, R)")],
)
def test_an_unknown_route_is_refused(model, pairs, freeze, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        sweep(model, pairs[:1], freeze=freeze)
