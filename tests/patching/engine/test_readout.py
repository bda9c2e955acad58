"""What is read at a latent step, and edits that reach a step directly: against states of one run at a time."""

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from codi_tracing.patching.engine.sweep import sweep, sweep_cells
from codi_tracing.patching.interventions.cells import Cell, knockout_cells, make_cells
from codi_tracing.patching.interventions.edges import edge
from codi_tracing.patching.interventions.sites import BOT, QUESTION, THOUGHT, Site
from codi_tracing.patching.interventions.sources import itself, other
from codi_tracing.patching.metrics import METRIC_NAMES
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.traces.loop.tokens import question_ids
from codi_tracing.traces.model.loading import load_codi
from tests.support.checkpoints import write_random_checkpoint
from tests.support.plain import answer, copied, decoder_of, difference, entries, hosts, patched, run_alone, writes_of

EXACT = 1e-5
LENSES = 5e-5  # a divergence sums over the vocabulary
ALL = ["projection", "distance_to_clean", "kl_to_clean", "js_to_clean", "entropy", "top_overlap"]
SITES = [
    Site("latent", None, None, 2, 2),
    Site("resid", 1, 1, 3, 3),
    Site("resid", 2, 2, 0, 1),
    Site("attn", 1, 1, 2, 2),
    Site("mlp", 0, 0, 4, 4),
    Site("head", 1, 1, 1, 1, 3),
    Site("kv", 1, 1, 2, 2),
    Site("kv", None, None, 0, 1),
    Site("resid", 1, 1, step_set=(0, 2)),
]
SINGLE = [site for site in SITES if site.step is not None and site.step == site.step_last]
SINGLE.append(Site("kv", None, None, 2, 2))


@torch.no_grad()
def by_hand(model, state, clean, corrupted):
    """Every step metric of a final hidden state, from the two unpatched runs' states."""
    head = model.lm._module.lm_head
    mine, theirs = (Categorical(logits=head(hidden)) for hidden in (state, clean))
    middle = Categorical(probs=(mine.probs + theirs.probs) / 2)
    axis = clean - corrupted
    tops = [set(d.logits.topk(10).indices.tolist()) for d in (mine, theirs)]
    return {
        "projection": float((state - corrupted) @ axis / axis.norm()),
        "distance_to_clean": float((state - clean).norm()),
        "kl_to_clean": float(kl_divergence(theirs, mine)),
        "js_to_clean": float(kl_divergence(mine, middle) + kl_divergence(theirs, middle)) / 2,
        "entropy": float(mine.entropy()),
        "top_overlap": len(tops[0] & tops[1]) / 10,
    }


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_every_reading_at_a_step_equals_that_of_one_run_alone(both, pairs, direction):
    ready, _ = tokenize_pairs(both, pairs[2:3])
    table = sweep_cells(both, ready, make_cells(SITES, [other], [direction]), metrics=[], step_metrics=ALL)
    for p in ready:
        clean, corrupted = (run_alone(both, side.question, p.forced) for side in (p.pair.clean, p.pair.corrupted))
        host, donor = hosts(p, direction)
        theirs = clean if donor == p.pair.clean.question else corrupted
        for index, site in enumerate(SITES):
            done = run_alone(both, host, p.forced, writes_of(both, site, theirs))
            for step in range(site.steps(both)[-1] + 1, both.n_latents):
                rows = of_cell(table, p, index, site, step)
                for column, run in (("patched", done), ("clean", clean), ("corrupted", corrupted)):
                    wanted = by_hand(both, run.hidden[step], clean.hidden[step], corrupted.hidden[step])
                    found = {name: float(rows.loc[name, column]) for name in ALL}
                    assert found == pytest.approx(wanted, abs=LENSES), (site, step, column)


def of_cell(table, p, index, site, step):
    """The rows of one site at one step, by metric."""
    chosen = table[
        (table["pair_id"] == str(p.pair.pair_id)) & (table["read_step"] == step) & (table["kind"] == site.kind)
    ]
    steps = "+".join(map(str, site.step_set)) or None
    for column, value in (("layer", site.layer), ("step", site.step), ("step_set", steps)):
        chosen = chosen[chosen[column].isna() if value is None else chosen[column] == value]
    assert len(chosen) == len(ALL)
    return chosen.set_index("metric")


@pytest.mark.parametrize("site", [QUESTION, BOT], ids=str)
def test_an_exchanged_question_is_read_at_every_step(both, pairs, site):
    ready, _ = tokenize_pairs(both, pairs[:1])
    table = sweep_cells(
        both, ready, make_cells([site], [other], ["noising"]), metrics=[], step_metrics=["distance_to_clean"]
    )
    assert table["read_step"].tolist() == list(range(both.n_latents))
    (p,) = ready
    clean, corrupted = (run_alone(both, side.question, p.forced) for side in (p.pair.clean, p.pair.corrupted))
    done = run_alone(both, p.pair.clean.question, p.forced, knockouts={site.kind: corrupted})
    wanted = [float((a - b).norm()) for a, b in zip(done.hidden, clean.hidden, strict=True)]
    assert table["patched"].tolist() == pytest.approx(wanted, abs=EXACT)


def test_rows_exist_for_exactly_the_steps_after_the_last_written_one(model, pairs):
    ready, _ = tokenize_pairs(model, pairs[:2])
    sites = [*SITES, Site("resid", 0, 0, 5, 5), Site("resid", 0, 0), THOUGHT]
    table = sweep_cells(
        model, ready, make_cells(sites, [other], ["noising"]), metrics=["logit_difference"], step_metrics=["entropy"]
    )
    n = model.n_latents
    expected = [list(range(site.steps(model)[-1] + 1, n)) if site != THOUGHT else [] for site in sites]
    assert (table["metric"] == "entropy").sum() == 2 * sum(map(len, expected))
    assert (table["metric"] == "logit_difference").sum() == 2 * len(sites)
    assert table.loc[table["metric"] == "logit_difference", "read_step"].isna().all()
    for site, steps in zip(sites, expected, strict=True):
        keys = {
            "kind": site.kind,
            "layer": site.layer,
            "step": site.step,
            "step_set": "+".join(map(str, site.step_set)),
        }
        chosen = table[(table["metric"] == "entropy") & (table["pair_id"] == "0")]
        for column, value in keys.items():
            chosen = chosen[chosen[column].isna() if value in (None, "") else chosen[column] == value]
        assert chosen["read_step"].tolist() == steps, site


def test_a_self_patch_changes_no_step(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:2])
    for held in ((), ("between",)):
        table = sweep_cells(
            both, ready, make_cells(SINGLE, [itself], ["noising"], held), metrics=[], step_metrics=["distance_to_clean"]
        )
        assert table["patched"].max() <= EXACT


@torch.no_grad()
def directly(model, p, host, site, edited, mine):
    """Final hidden states of all later steps, and the answer's logits, on the host's cache but for one entry."""
    question, written = mine.question, site.step
    cache = copied(mine.cache)
    for layer, (keys, values) in zip(cache.layers, edited.cache, strict=True):
        layer.keys[:, :, question + written] = keys[:, :, question + written]
        layer.values[:, :, question + written] = values[:, :, question + written]
    cache = entries(cache)
    hidden = {}
    for step in range(written + 1, model.n_latents):
        latent = (edited if step == written + 1 else mine).latents[step]
        before = copied([tuple(tensor[:, :, : question + step] for tensor in layer) for layer in cache])
        out = decoder_of(model)(inputs_embeds=latent[None, None], past_key_values=before, use_cache=True)
        hidden[step] = out.last_hidden_state[0, -1]
    answer(model, edited, copied(cache), p.forced, [()] * model.n_layers)
    return hidden, edited


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_with_between_frozen_every_later_reader_attends_to_the_edit_and_otherwise_to_the_host(both, pairs, direction):
    ready, _ = tokenize_pairs(both, pairs[2:3])
    cells = make_cells(SINGLE, [other], [direction], ["between"])
    table = sweep_cells(
        both, ready, cells, metrics=["logit_difference"], step_metrics=["distance_to_clean", "projection"]
    )
    for p in ready:
        host, donor = hosts(p, direction)
        assert len(question_ids(both, host)) == len(question_ids(both, donor))
        mine, theirs = run_alone(both, host, p.forced), run_alone(both, donor, p.forced)
        clean, corrupted = (theirs, mine) if direction == "denoising" else (mine, theirs)
        for site in SINGLE:
            edited = run_alone(both, host, p.forced, writes_of(both, site, theirs))
            hidden, done = directly(both, p, host, site, edited, mine)
            keys = {"kind": site.kind, "layer": site.layer, "step": site.step, "freeze": "between"}
            assert patched(table, p, **keys, read_step=None) == pytest.approx(difference(p, done), abs=EXACT), site
            for step, state in hidden.items():
                wanted = by_hand(both, state, clean.hidden[step], corrupted.hidden[step])
                for metric in ("distance_to_clean", "projection"):
                    value = patched(table, p, metric, **keys, read_step=step)
                    assert value == pytest.approx(wanted[metric], abs=EXACT), (site, step, metric)


def test_with_between_frozen_a_late_edit_reaches_another_step_only_through_its_cache(both, pairs):
    """With every route held too, nothing is left of an edit."""
    held = ("R", "K_T", "K_A", "between")
    sites = [site for site in SINGLE if site.kind != "kv"]
    table = sweep(
        both, pairs[:2], sites, [other], ["noising"], ["max_logit_change"], held, step_metrics=["distance_to_clean"]
    )
    assert table["patched"].max() <= EXACT


def test_step_readings_do_not_depend_on_blocks_and_batches(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:3])
    cells = make_cells([SITES[1], SITES[6]], [other], ["noising"]) + make_cells(
        [SITES[1]], [other], ["noising"], ["between"]
    )
    options = {"cells": cells, "metrics": ["logit_difference"], "step_metrics": ["projection", "kl_to_clean"]}
    large = sweep_cells(both, ready, **options)
    small = sweep_cells(both, ready, **options, cells_per_forward=1, pairs_per_batch=1)
    assert large.drop(columns=["patched", "clean", "corrupted"]).equals(
        small.drop(columns=["patched", "clean", "corrupted"])
    )
    for column in ("patched", "clean", "corrupted"):
        assert large[column].tolist() == pytest.approx(small[column].tolist(), abs=EXACT)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_in_bfloat16_every_kind_of_cell_and_metric_runs_and_a_self_patch_changes_nothing(
    family, pairs, tmp_path_factory
):
    low = load_codi(write_random_checkpoint(tmp_path_factory.mktemp("low"), family=family), "cpu", "bfloat16")
    ready, _ = tokenize_pairs(low, pairs[:3])
    cells = make_cells([SITES[1], SITES[6]], [other, itself], ["noising"], ["between"])
    cells += [Cell("noising", itself, THOUGHT, n_latents=k) for k in (0, 3, 8)]
    cells += knockout_cells([edge("4-1@1"), edge("answer-question")], ["noising"])
    table = sweep_cells(low, ready, cells, metrics=METRIC_NAMES, step_metrics=ALL, max_new_tokens=3)
    numbers = table[~table["metric"].str.match("answer$|gives")]  # a random model may decode no number
    assert numbers[["patched", "clean", "corrupted"]].notna().all(axis=None)
    own = table[(table["source"] == "self") & (table["kind"] != "thought") & (table["metric"] == "max_logit_change")]
    assert len(own) == 6
    assert own["patched"].max() <= 0.1  # logits of several units, in steps of 2**-7 of them


def test_a_metric_that_cannot_be_read_at_a_step_is_refused(model, pairs):
    sentence = (
        "metric 'logit_difference' cannot be read at a latent step; use projection, distance_to_clean, kl_to_clean"
    )
    with pytest.raises(ValueError, match=sentence):
        sweep(model, pairs[:1], [THOUGHT], step_metrics=["logit_difference"])


@pytest.mark.parametrize("site", [THOUGHT, QUESTION, BOT], ids=str)
def test_between_is_refused_for_a_whole_segment(model, pairs, site):
    ready, _ = tokenize_pairs(model, pairs[:1])
    with pytest.raises(ValueError, match=f"freeze 'between' means nothing for site '{site.kind}'"):
        sweep_cells(model, ready, [Cell("noising", other, site, ("between",))])
