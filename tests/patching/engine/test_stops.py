"""Thoughts that stop early or go on: the engine against one run at a time whose loop takes so many steps."""

from dataclasses import replace

import pytest

from codi_tracing.patching.engine.sweep import sweep_cells
from codi_tracing.patching.interventions.cells import Cell, knockout_cells
from codi_tracing.patching.interventions.edges import edge
from codi_tracing.patching.interventions.sites import THOUGHT, Site
from codi_tracing.patching.interventions.sources import itself, other
from codi_tracing.patching.metrics import max_logit_change
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.traces.text import last_number
from tests.support.plain import difference, hosts, patched, run_alone, writes_of

EXACT = 1e-5


def stopped(steps, direction="noising", **options):
    return [Cell(direction, itself, THOUGHT, n_latents=k, **options) for k in steps]


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_every_number_of_steps_equals_a_loop_of_so_many(both, pairs, direction):
    ready, _ = tokenize_pairs(both, pairs[1:3])
    steps = range(both.n_latents + 3)
    metrics = ["logit_difference", "answer", "logit_difference_at_eot"]
    table = sweep_cells(both, ready, stopped(steps, direction), metrics=metrics, max_new_tokens=8)
    for p in ready:
        for k in steps:
            alone = run_alone(both, hosts(p, direction)[0], p.forced, n_latents=k, decode=8)
            assert patched(table, p, n_latents=k) == pytest.approx(difference(p, alone), abs=EXACT), k
            at_eot = float(alone.all_logits[0, p.clean_token] - alone.all_logits[0, p.corrupted_token])
            assert patched(table, p, "logit_difference_at_eot", n_latents=k) == pytest.approx(at_eot, abs=EXACT), k
            said = last_number(both.tokenizer.decode(alone.said, skip_special_tokens=True))
            assert patched(table, p, "answer", n_latents=k) == pytest.approx(said, nan_ok=True), k


def test_as_many_steps_as_trained_changes_nothing_and_any_other_number_does(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:3])
    n = both.n_latents
    table = sweep_cells(both, ready, stopped(range(n + 3)), metrics=[max_logit_change])
    assert table.loc[table["n_latents"] == n, "patched"].max() <= EXACT
    assert table.loc[table["n_latents"] != n, "patched"].min() > EXACT


def test_the_references_run_all_their_steps_beside_any_cells(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:2])
    table = sweep_cells(both, ready, stopped([0, both.n_latents + 2]), metrics=["logit_difference"])
    for p in ready:
        rows = table[table["pair_id"] == str(p.pair.pair_id)]
        for column, side in (("clean", p.pair.clean), ("corrupted", p.pair.corrupted)):
            wanted = difference(p, run_alone(both, side.question, p.forced))
            assert rows[column].tolist() == pytest.approx([wanted] * 2, abs=EXACT)


def test_a_thought_that_stops_early_does_not_depend_on_the_other_cells_of_its_block(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:3])
    n, options = both.n_latents, {"metrics": ["logit_difference", "answer"]}
    for k in (0, 2, n + 1):
        alone = sweep_cells(both, ready, stopped([k]), **options, pairs_per_batch=2)
        company = sweep_cells(both, ready, stopped([n + 2, k, 1, None]), **options)
        kept = company[company["n_latents"] == k]
        assert kept["patched"].tolist() == pytest.approx(alone["patched"].tolist(), abs=EXACT, nan_ok=True)


def test_a_cell_without_a_number_of_steps_is_unchanged_beside_longer_ones(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:2])
    table = sweep_cells(both, ready, stopped([None, both.n_latents + 2]), metrics=[max_logit_change])
    assert table.loc[table["n_latents"].isna(), "patched"].max() <= EXACT


@pytest.mark.parametrize("k", [0, 2, 4, 8])
@pytest.mark.parametrize("site", [Site("resid", 1, 1, 1, 1), Site("kv", None, None, 2, 4), THOUGHT], ids=str)
def test_a_patched_thought_stops_early_too(both, pairs, site, k):
    ready, _ = tokenize_pairs(both, pairs[:1])
    table = sweep_cells(both, ready, [Cell("noising", other, site, n_latents=k)], metrics=["logit_difference"])
    (p,) = ready
    host, donor = hosts(p, "noising")
    theirs = run_alone(both, donor, p.forced)
    swapped = {"thought": theirs} if site == THOUGHT else {}
    writes = {key: value for key, value in writes_of(both, site, theirs).items() if key[2] < k}
    alone = run_alone(both, host, p.forced, writes, knockouts=swapped, n_latents=k)
    assert patched(table, p) == pytest.approx(difference(p, alone), abs=EXACT)


def test_an_early_stop_with_a_knockout_equals_one_run_alone(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:2])
    knockouts = edge("answer-question"), edge("2-0@1")
    steps = (0, 1, 3, both.n_latents, both.n_latents + 2)
    table = sweep_cells(both, ready, stopped(steps, knockouts=knockouts), metrics=["logit_difference"])
    for p in ready:
        for k in steps:
            alone = run_alone(both, p.pair.clean.question, p.forced, edges=knockouts, n_latents=k)
            assert patched(table, p, n_latents=k) == pytest.approx(difference(p, alone), abs=EXACT), k


def test_a_checkpoint_whose_questions_end_in_eos_has_early_stops_and_knockouts_as_one_run_alone(both, pairs):
    ends = replace(both, card=replace(both.card, remove_eos=False))
    ready, _ = tokenize_pairs(ends, pairs[:2])
    cells = stopped((0, 3, both.n_latents + 2)) + knockout_cells([edge("answer-bot"), edge("4-1@1")], ["noising"])
    metrics = ["logit_difference", "logit_difference_at_eot", "answer"]
    table = sweep_cells(ends, ready, cells, metrics=metrics, max_new_tokens=5)
    for p in ready:
        for cell in cells:
            keys = {"n_latents": cell.n_latents, "knockout": " ".join(map(str, cell.knockouts)) or None}
            alone = run_alone(
                ends, p.pair.clean.question, p.forced, edges=cell.knockouts, n_latents=cell.n_latents, decode=5
            )
            assert patched(table, p, **keys) == pytest.approx(difference(p, alone), abs=EXACT), keys
            at_start = float(alone.all_logits[0, p.clean_token] - alone.all_logits[0, p.corrupted_token])
            assert patched(table, p, metrics[1], **keys) == pytest.approx(at_start, abs=EXACT), keys
            said = last_number(both.tokenizer.decode(alone.said, skip_special_tokens=True))
            assert patched(table, p, "answer", **keys) == pytest.approx(said, nan_ok=True), keys


def test_a_step_that_a_cell_does_not_take_is_not_read(model, pairs):
    ready, _ = tokenize_pairs(model, pairs[:1])
    cells = [Cell("noising", other, Site("resid", 1, 1, 0, 0), n_latents=k) for k in (3, None)]
    table = sweep_cells(model, ready, cells, metrics=["logit_difference"], step_metrics=["entropy"])
    steps = table.dropna(subset=["read_step"])
    assert sorted(steps.loc[steps["n_latents"] == 3, "read_step"]) == [1, 2]
    assert sorted(steps.loc[steps["n_latents"].isna(), "read_step"]) == [1, 2, 3, 4, 5]


def test_more_steps_than_there_are_positions_are_refused(model, pairs):
    ready, _ = tokenize_pairs(model, pairs[:1])
    with pytest.raises(ValueError, match=r"pair 0: with \d+ latent steps it needs \d+ positions, the model has \d+"):
        sweep_cells(model, ready, stopped([model.n_positions]), metrics=["logit_difference"])


def test_a_negative_number_of_steps_is_refused(model, pairs):
    ready, _ = tokenize_pairs(model, pairs[:1])
    with pytest.raises(ValueError, match="n_latents -1 is no number of steps; use 0 or more"):
        sweep_cells(model, ready, stopped([-1]), metrics=["logit_difference"])
