"""Each metric against an independent implementation, and what its values mean."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch.distributions import Categorical, kl_divergence

from codi_tracing.configs.vocabulary import CONFIG_METRICS, METRICS
from codi_tracing.patching import metrics as m
from codi_tracing.patching.answer_metrics import (
    ANSWER_METRICS,
    EDIT_METRICS,
    LENS_METRICS,
    WHOLE_ANSWER,
    Keys,
    answer_is_clean,
    answer_is_corrupted,
)
from codi_tracing.patching.engine.sweep import sweep, sweep_cells
from codi_tracing.patching.interventions.cells import make_cells
from codi_tracing.patching.interventions.sites import BOT, QUESTION, THOUGHT, Site
from codi_tracing.patching.interventions.sources import itself, other, steer, zero
from codi_tracing.patching.pairs.tokenized import TokenizedPair, tokenize_pairs
from codi_tracing.traces.loop.tokens import answer_ids, positions_needed
from codi_tracing.traces.model.loading import load_codi
from tests.support.checkpoints import write_random_checkpoint
from tests.support.plain import hosts, patched, run_alone, writes_of

EXACT = 1e-5


@pytest.fixture
def reading():
    generator = torch.Generator().manual_seed(0)
    patched, hosts = torch.randn(2, 5, 11, generator=generator) * 3, torch.tensor([0, 1, 1, 0, 1])
    clean, corrupted = (torch.randn(2, 1, 11, generator=generator) * 3 for _ in range(2))
    tokens = torch.tensor([[[4]], [[7]]]), torch.tensor([[[1]], [[0]]])
    return m.Reading(patched, hosts, clean, corrupted, *tokens)


def test_kl_agrees_with_torch_distributions_in_both_directions(reading):
    patched, clean, corrupted = (Categorical(logits=x) for x in (reading.patched, reading.clean, reading.corrupted))
    torch.testing.assert_close(m.kl_from_corrupted(reading), kl_divergence(patched, corrupted))
    torch.testing.assert_close(m.kl_to_clean(reading), kl_divergence(clean, patched))


def test_logit_difference_is_a_difference_of_two_logits(reading):
    value = m.logit_difference(reading)
    assert value.shape == (2, 5)
    assert value[1, 3] == reading.patched[1, 3, 7] - reading.patched[1, 3, 0]


def test_logit_difference_does_not_see_a_shift_of_all_logits(reading):
    shifted = replace(reading, patched=reading.patched + 5)
    torch.testing.assert_close(m.logit_difference(shifted), m.logit_difference(reading))


def test_rms_logit_difference_is_the_norm_over_the_root_of_the_vocabulary(reading):
    norm = torch.linalg.vector_norm(reading.patched - reading.corrupted, dim=-1)
    torch.testing.assert_close(m.rms_logit_difference(reading), norm / 11**0.5)


def test_nothing_changes_when_the_patched_run_is_the_host(reading):
    same = replace(reading, patched=reading.host)
    assert (m.max_logit_change(same) == 0).all()
    assert (m.prediction_change(same) == 0).all()


def test_prediction_change_is_one_exactly_where_the_argmax_differs(reading):
    expected = [
        [float(p.argmax() != h.argmax()) for p, h in zip(ps, hs, strict=True)]
        for ps, hs in zip(reading.patched, reading.host, strict=True)
    ]
    assert m.prediction_change(reading).tolist() == expected


def test_references_are_the_metric_of_the_unpatched_runs(reading):
    read = m.read_all({"ld": m.logit_difference}, reading)["ld"]
    torch.testing.assert_close(read[1], m.logit_difference(replace(reading, patched=reading.clean)).expand(2, 5))
    torch.testing.assert_close(read[2], m.logit_difference(replace(reading, patched=reading.corrupted)).expand(2, 5))


@pytest.mark.parametrize(("decoded", "clean", "corrupted"), [(7, 1, 0), (8, 0, 1), (9, 0, 0), (float("nan"), 0, 0)])
def test_an_answer_is_clean_corrupted_or_other(decoded, clean, corrupted):
    keys = Keys(7, 8)
    assert (answer_is_clean(decoded, keys), answer_is_corrupted(decoded, keys)) == (clean, corrupted)


def test_the_jensen_shannon_divergence_agrees_with_scipys_squared_distance(reading):
    value = m.js_to_clean(reading)
    for pair in range(2):
        for cell in range(5):
            mine, clean = (
                Categorical(logits=x).probs.numpy() for x in (reading.patched[pair, cell], reading.clean[pair, 0])
            )
            assert float(value[pair, cell]) == pytest.approx(jensenshannon(mine, clean) ** 2, abs=1e-6)


def test_the_jensen_shannon_divergence_goes_from_zero_to_log_two(reading):
    certain = torch.full((2, 1, 11), -100.0)
    apart = replace(
        reading,
        patched=certain.index_fill(-1, torch.tensor([0]), 100.0),
        clean=certain.index_fill(-1, torch.tensor([1]), 100.0),
    )
    torch.testing.assert_close(m.js_to_clean(apart), torch.full((2, 1), math.log(2)))
    assert m.js_to_clean(replace(reading, patched=reading.clean)).abs().max() <= 1e-6


def test_entropy_agrees_with_torch_distributions(reading):
    torch.testing.assert_close(m.entropy(reading), Categorical(logits=reading.patched).entropy())
    flat = m.entropy(replace(reading, patched=torch.zeros(2, 1, 11)))
    torch.testing.assert_close(flat, torch.full((2, 1), math.log(11)))


def test_top_overlap_is_that_of_two_sets_of_ten(reading):
    generator = torch.Generator().manual_seed(1)
    patched, clean = torch.randn(2, 5, 40, generator=generator), torch.randn(2, 1, 40, generator=generator)
    value = m.top_overlap(replace(reading, patched=patched, clean=clean))
    for pair in range(2):
        for cell in range(5):
            mine, theirs = (set(x.topk(10).indices.tolist()) for x in (patched[pair, cell], clean[pair, 0]))
            assert float(value[pair, cell]) == pytest.approx(len(mine & theirs) / 10)
    assert (m.top_overlap(replace(reading, patched=reading.clean)) == 1).all()


def test_every_metric_of_a_run_is_in_the_vocabulary_under_the_position_where_it_is_read():
    at = {name: metric.read_at for name, metric in METRICS.items() if metric.read_at != "gradient"}
    assert at == {
        **dict.fromkeys(m.LOGIT_METRICS, "answer position"),
        **dict.fromkeys(WHOLE_ANSWER, "whole answer"),
        **dict.fromkeys(m.EOT_METRICS, "EoT"),
        **dict.fromkeys(ANSWER_METRICS, "decoded answer"),
        **dict.fromkeys(EDIT_METRICS, "edit"),
        **dict.fromkeys(m.STEP_METRICS, "latent step"),
    }
    assert set(CONFIG_METRICS) <= set(m.METRIC_NAMES)
    assert set(LENS_METRICS) <= set(m.LOGIT_METRICS)


SOME = [Site("resid", 1, 1, 3, 3), Site("kv", 1, 1, 2, 2), THOUGHT]


def alone_with(model, p, site, direction="noising", **options):
    """One run written at a site from the pair's other run."""
    host, donor = hosts(p, direction)
    theirs = run_alone(model, donor, p.forced)
    swapped = {site.kind: theirs} if site.kind in ("thought", "question", "bot") else {}
    return run_alone(model, host, options.pop("forced", p.forced), writes_of(model, site, theirs), knockouts=swapped)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_metrics_at_eot_are_those_of_the_logits_after_eot(both, pairs, direction):
    ready, _ = tokenize_pairs(both, pairs[1:3])
    table = sweep_cells(both, ready, make_cells(SOME, [other], [direction]), metrics=list(m.EOT_METRICS))
    for p in ready:
        clean, corrupted = (run_alone(both, side.question, p.forced) for side in (p.pair.clean, p.pair.corrupted))
        host = 1 if direction == "denoising" else 0
        for site in SOME:
            done = alone_with(both, p, site, direction)
            tokens = torch.tensor([[[p.clean_token]]]), torch.tensor([[[p.corrupted_token]]])
            logits, *unpatched = (run.all_logits[None, :1] for run in (done, clean, corrupted))
            at_eot = m.Reading(logits, torch.tensor([host]), *unpatched, *tokens)
            for name in m.EOT_METRICS:
                expected = float(m.LOGIT_METRICS[name.removesuffix("_at_eot")](at_eot)[0, 0])
                assert patched(table, p, name, kind=site.kind) == pytest.approx(expected, abs=EXACT), (site, name)


def logprob_alone(model, p, tail, **options):
    """The log-probability of a whole answer, EOS included, by forcing it alone token by token."""
    answer = [*p.forced[len(p.forced) - p.shared :], *tail]
    before = p.forced[: len(p.forced) - p.shared]
    done = alone_with(model, p, forced=[*before, *answer[:-1]], **options)
    scores = done.all_logits[len(before) :].log_softmax(-1)
    return float(scores[range(len(answer)), answer].sum())


def tailed(model, ready, tails, shared=0):
    """Prepared pairs with answers made by hand: tokens of numbers and EOS, the first `shared` of both forced."""
    eos, prefix = model.tokenizer.eos_token_id, tuple(answer_ids(model))
    number = {digit: model.tokenizer.convert_tokens_to_ids(digit) for digit in "0123456789"}
    made: list[TokenizedPair] = []
    for p, both_tails in zip(ready, tails, strict=True):
        clean, corrupted = ([*(number[digit] for digit in text), eos] for text in both_tails)
        assert clean[:shared] == corrupted[:shared]
        made.append(
            p._replace(
                forced=(*prefix, *clean[:shared]),
                tails=(tuple(clean[shared:]), tuple(corrupted[shared:])),
                shared=shared,
            )
        )
    return made


WHOLE = ["logprob_clean", "logprob_corrupted", "logit_difference", "kl_to_clean"]
ANSWERS = {
    "one token": ([("3", "7"), ("5", "2")], 0),
    "13 and 130": ([("13", "130"), ("42", "420")], 2),
    "tails of many lengths": ([("7", "45612"), ("1234", "8")], 0),
    "a shared first token": ([("13", "15"), ("2", "29")], 1),
    "long and shared": ([("1399", "13"), ("425", "42688")], 2),
}


@pytest.mark.parametrize("which", ANSWERS)
def test_whole_answers_are_scored_as_when_forced_one_at_a_time(both, pairs, which):
    ready = tailed(both, tokenize_pairs(both, pairs[1:3])[0], *ANSWERS[which])
    table = sweep_cells(both, ready, make_cells(SOME[1:], [other], ["noising"]), metrics=WHOLE, pairs_per_batch=2)
    plain = sweep_cells(both, ready, make_cells(SOME[1:], [other], ["noising"]), metrics=WHOLE[2:])
    kept = table[table["metric"].isin(WHOLE[2:])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, plain, atol=EXACT, rtol=0)
    for p in ready:
        for name, tail in zip(WHOLE, p.tails, strict=False):
            for site in SOME[1:]:
                expected = logprob_alone(both, p, tail, site=site)
                assert patched(table, p, name, kind=site.kind) == pytest.approx(expected, abs=2 * EXACT), (name, site)
            for column, side in (("clean", p.pair.clean), ("corrupted", p.pair.corrupted)):
                same = p._replace(pair=replace(p.pair, clean=side, corrupted=side))
                (found,) = table.loc[
                    (table["metric"] == name) & (table["pair_id"] == str(p.pair.pair_id)) & (table["kind"] == "kv"),
                    column,
                ]
                assert found == pytest.approx(logprob_alone(both, same, tail, site=THOUGHT), abs=2 * EXACT)


def test_whole_answers_are_scored_the_same_in_any_batch_and_beside_decoding(both, pairs):
    ready = tailed(both, tokenize_pairs(both, pairs[:4])[0], [("7", "45612"), ("1234", "8"), ("5", "6"), ("88", "9")])
    ready[2:] = tailed(both, ready[2:], [("13", "130"), ("132", "1")], 1)
    cells, options = make_cells(SOME, [other], ["noising"]), {"max_new_tokens": 3}
    large = sweep_cells(both, ready, cells, metrics=[*WHOLE, "answer"], **options)
    small = sweep_cells(
        both, ready, cells, metrics=[*WHOLE, "answer"], **options, cells_per_forward=1, pairs_per_batch=1
    )
    pd.testing.assert_frame_equal(large, small, atol=2 * EXACT, rtol=0)
    answers = sweep_cells(both, ready, cells, metrics=["answer"], **options)
    kept = large[large["metric"] == "answer"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, answers)


def test_a_long_question_and_a_long_answer_share_a_batch_where_each_alone_has_room(pairs, tmp_path_factory):
    """On GPT-2, whose positions are learned: there is no row of the table for one too many."""
    model = load_codi(write_random_checkpoint(tmp_path_factory.mktemp("tight"), family="gpt2"), device="cpu")
    ready = sorted(tokenize_pairs(model, pairs)[0], key=lambda p: p.tokens)
    short, long = tailed(model, [ready[0], ready[-1]], [("7", "1234567"), ("7", "8")])
    assert short.tokens < long.tokens
    room = max(positions_needed(model, p.tokens, len(p.forced) + max(map(len, p.tails)) - 1) for p in (short, long))
    model.lm.config.max_position_embeddings = room
    places = model.lm._module.transformer.wpe
    places.weight.data = places.weight.data[:room].clone()
    assert model.n_positions == room
    options = {"cells": make_cells([THOUGHT], [other], ["noising"]), "metrics": WHOLE[:2]}
    one, two = (sweep_cells(model, [short, long], **options, pairs_per_batch=size) for size in (1, 2))
    pd.testing.assert_frame_equal(one, two, atol=2 * EXACT, rtol=0)
    places.weight.data = places.weight.data[: room - 1].clone()
    model.lm.config.max_position_embeddings = room - 1
    with pytest.raises(ValueError, match=f"it needs {room} positions, the model has {room - 1}; take fewer steps"):
        sweep_cells(model, [short, long], **options)


PLACES = [
    Site("latent", None, None, 2, 2),
    Site("resid", 1, 1, 3, 3),
    Site("attn", 1, 1, 2, 2),
    Site("mlp", 0, 0, 4, 4),
    Site("head", 1, 1, 2, 2, 3),
    Site("kv", 1, 1, 2, 2),
    Site("kv", None, None, 1, 2),
    Site("kv", 2, 2, 0, 3),
    Site("latent", None, None, 1, 3),
    Site("resid", 0, 1, 1, 2),
    Site("attn"),
    THOUGHT,
]
EDITS = ["edit_norm", "edit_cosine"]


def stood(model, site, place, done):
    """What stands at one place of a run, as one vector."""
    layer, step = place
    if site.kind == "latent":
        return done.latents[step]
    if site.kind in ("kv", "thought"):
        return torch.cat([tensor[0, :, done.question + step].flatten() for tensor in done.cache[layer]])
    width = model.head_width
    part = slice(None) if site.head is None else slice(site.head * width, (site.head + 1) * width)
    return done.values[site.kind, layer, step][part]


def before_each_write(model, p, site, places, writes):
    """What stood at every place just before it was written: that of a run in which only earlier places are."""
    order = ("latent", "head", "attn", "mlp", "resid", "kv")
    found = []
    for layer, step in places:
        earlier = {
            key: value for key, value in writes.items()
            if (key[2], key[1] or 0) < (step, layer) and order.index(key[0]) <= order.index(site.kind)
        }  # fmt: skip
        found.append(stood(model, site, (layer, step), run_alone(model, p.pair.clean.question, p.forced, earlier)))
    return torch.cat(found)


def places_of(model, site):
    """Each place once, in the order in which it is written."""
    places = {(0, step) for _, step in site.places(model)} if site.kind == "latent" else site.places(model)
    return sorted(places, key=lambda place: place[::-1])


def test_the_size_of_an_edit_is_that_of_what_stood_and_what_is_written_over_all_places(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[1:2])
    table = sweep_cells(both, ready, make_cells(PLACES, [other], ["noising"]), metrics=EDITS)
    (p,) = ready
    theirs = run_alone(both, p.pair.corrupted.question, p.forced)
    for site in PLACES:
        places = places_of(both, site)
        written = torch.cat([stood(both, site, place, theirs) for place in places])
        by_sight = site.kind == "thought" or (site.kind == "kv" and site.layer is None)
        own = kv_seen(both, p, site, theirs) if by_sight else before_each_write(
            both, p, site, places, writes_of(both, site, theirs)
        )  # fmt: skip
        keys = {"kind": site.kind, "layer": site.layer, "step": site.step}
        assert patched(table, p, "edit_norm", **keys) == pytest.approx(float((written - own).norm()), abs=1e-4), site
        cosine = float(torch.nn.functional.cosine_similarity(written, own, dim=0))
        assert patched(table, p, "edit_cosine", **keys) == pytest.approx(cosine, abs=EXACT), site


def kv_seen(model, p, site, theirs):
    """The cell's own entries where whole ones are exchanged: later ones are computed from those exchanged before."""
    writes = {} if site.kind == "thought" else writes_of(model, site, theirs)
    found = []
    for layer, step in places_of(model, site):
        earlier = {key: value for key, value in writes.items() if key[2] < step}
        found.append(stood(model, site, (layer, step), run_alone(model, p.pair.clean.question, p.forced, earlier)))
    return torch.cat(found)


def test_the_references_of_an_edits_size_are_those_of_no_edit(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:1])
    table = sweep_cells(both, ready, make_cells(PLACES[:6], [other, itself]), metrics=EDITS)
    for name, none in zip(EDITS, (0.0, 1.0), strict=True):
        rows = table[table["metric"] == name]
        assert (rows[["clean", "corrupted"]] == none).all(axis=None)
        assert rows.loc[rows["source"] == "self", "patched"].tolist() == pytest.approx([none] * 12, abs=EXACT)


def test_writing_zero_is_as_long_as_what_stood_and_has_no_direction(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:2])
    table = sweep_cells(both, ready, make_cells(PLACES[:5], [zero], ["noising"]), metrics=EDITS)
    for p in ready:
        done = run_alone(both, p.pair.clean.question, p.forced)
        for site in PLACES[:5]:
            length = float(stood(both, site, (site.layer or 0, site.step), done).norm())
            assert patched(table, p, "edit_norm", kind=site.kind) == pytest.approx(length, abs=EXACT), site
            assert math.isnan(patched(table, p, "edit_cosine", kind=site.kind))


def test_a_steered_edit_is_as_long_as_the_vector_times_its_coefficient(both, pairs):
    push = torch.randn(both.d_model, generator=torch.Generator().manual_seed(1))
    sources = [steer(push, 2.0, "push"), steer(push, 0.0, "nothing")]
    table = sweep(both, pairs[:2], [PLACES[1]], sources, ["noising"], EDITS)
    norms = table[table["metric"] == "edit_norm"].set_index("source")["patched"]
    assert norms["push"].tolist() == pytest.approx([2 * float(push.norm())] * 2, abs=1e-4)
    assert norms["nothing"].tolist() == [0.0, 0.0]
    cosines = table[table["metric"] == "edit_cosine"].set_index("source")["patched"]
    assert cosines["nothing"].tolist() == pytest.approx([1.0, 1.0], abs=EXACT)


def test_an_exchanged_question_or_bot_has_no_size_of_edit(both, pairs):
    table = sweep(both, pairs[:2], [QUESTION, BOT], [other], metrics=EDITS)
    assert table["patched"].isna().all()
    assert len(table) == 2 * 2 * 2 * 2


def test_measuring_the_edits_changes_no_other_number(both, pairs):
    options = {"sites": [*PLACES, QUESTION], "sources": [other], "directions": ["noising"]}
    with_sizes = sweep(both, pairs[:2], **options, metrics=["logit_difference", *EDITS])
    without = sweep(both, pairs[:2], **options, metrics=["logit_difference"])
    kept = with_sizes[with_sizes["metric"] == "logit_difference"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, without, atol=EXACT, rtol=0)
    small = sweep(
        both, pairs[:2], **options, metrics=["logit_difference", *EDITS], cells_per_forward=1, pairs_per_batch=1
    )
    pd.testing.assert_frame_equal(with_sizes, small, atol=1e-4, rtol=1e-4)
