"""Cut attention edges: the engine against one run at a time whose cache lacks what the reader may not see."""

import re

import pandas as pd
import pytest
import torch

from codi_tracing.patching.engine.sweep import sweep, sweep_cells
from codi_tracing.patching.interventions.cells import Cell, knockout_cells, make_cells
from codi_tracing.patching.interventions.edges import Edge, edge
from codi_tracing.patching.interventions.sites import BOT, QUESTION, THOUGHT, Site
from codi_tracing.patching.interventions.sources import itself, other, step_mean
from codi_tracing.patching.metrics import max_logit_change
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.traces.text import last_number
from tests.support.plain import difference, hosts, patched, run_alone, writes_of

EXACT = 1e-5
EDGES = [
    edge(text)
    for text in (
        "answer-question", "answer-bot", "answer-3", "4-1", "4-question", "5-bot", "0-question", "4-1@1", "answer-2@0",
        "answer-question@1", "3-question@2",
    )
]  # fmt: skip
BOTH = (edge("4-1"), edge("answer-2@0"))


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_every_cut_edge_equals_one_run_without_those_columns(both, pairs, direction):
    ready, _ = tokenize_pairs(both, pairs[1:3])
    table = sweep_cells(both, ready, knockout_cells(EDGES, [direction]), metrics=["logit_difference"])
    for p in ready:
        for knockout in EDGES:
            alone = run_alone(both, hosts(p, direction)[0], p.forced, edges=[knockout])
            assert patched(table, p, knockout=str(knockout)) == pytest.approx(difference(p, alone), abs=EXACT), str(
                knockout
            )


def test_every_cut_edge_changes_something(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:2])
    table = sweep_cells(both, ready, knockout_cells(EDGES, ["noising"]), metrics=[max_logit_change])
    assert table["patched"].min() > 2 * EXACT
    assert set(table["knockout"]) == set(map(str, EDGES))


def test_two_edges_cut_at_once_equal_one_run_without_both(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:2])
    cells = [
        Cell("noising", itself, THOUGHT, knockouts=knockouts) for knockouts in (BOTH, BOTH[::-1], BOTH[:1], BOTH[1:])
    ]
    table = sweep_cells(both, ready, cells, metrics=["logit_difference"])
    for p in ready:
        wanted = difference(p, run_alone(both, p.pair.clean.question, p.forced, edges=BOTH))
        for name in ("4-1 answer-2@0", "answer-2@0 4-1"):
            assert patched(table, p, knockout=name) == pytest.approx(wanted, abs=EXACT)
        for knockout in BOTH:
            assert patched(table, p, knockout=str(knockout)) != pytest.approx(wanted, abs=EXACT)


@pytest.mark.parametrize("name", ["4-1", "answer-2", "answer-question"])
def test_an_edge_cut_in_one_layer_is_not_one_cut_in_all_and_all_layers_one_by_one_are(both, pairs, name):
    ready, _ = tokenize_pairs(both, pairs[:1])
    everywhere = edge(name)
    layers = tuple(everywhere._replace(layer=layer) for layer in range(both.n_layers))
    cells = [
        Cell("noising", itself, THOUGHT, knockouts=knockouts)
        for knockouts in ((everywhere,), layers, *((knockout,) for knockout in layers))
    ]
    values = sweep_cells(both, ready, cells, metrics=["logit_difference"])["patched"].tolist()
    assert values[0] == pytest.approx(values[1], abs=EXACT)
    assert all(abs(value - values[0]) > 2 * EXACT for value in values[2:])


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_a_patch_under_cut_edges_takes_its_values_from_the_uncut_donor(both, pairs, direction):
    sites = [
        Site("resid", 1, 1, 3, 3),
        Site("kv", 1, 1, 2, 2),
        Site("latent", None, None, 2, 2),
        Site("head", 0, 0, 4, 4, 1),
    ]
    table = sweep(both, pairs[:2], sites, [other], [direction], ["logit_difference"], knockouts=BOTH)
    for p in tokenize_pairs(both, pairs[:2])[0]:
        host, donor = hosts(p, direction)
        theirs = run_alone(both, donor, p.forced)
        for site in sites:
            alone = run_alone(both, host, p.forced, writes_of(both, site, theirs), edges=BOTH)
            assert patched(table, p, kind=site.kind) == pytest.approx(difference(p, alone), abs=EXACT), site


@pytest.mark.parametrize("route", ["R", "K_T", "K_A"])
def test_a_route_frozen_under_cut_edges_holds_the_uncut_host(both, pairs, route):
    site = Site("resid", 0, 0, 2, 2)
    table = sweep(both, pairs[:2], [site], [other], ["noising"], ["logit_difference"], freeze=[route], knockouts=BOTH)
    for p in tokenize_pairs(both, pairs[:2])[0]:
        mine, theirs = (run_alone(both, q, p.forced) for q in hosts(p, "noising"))
        alone = run_alone(
            both, p.pair.clean.question, p.forced, writes_of(both, site, theirs), freeze=(route,), host=mine, edges=BOTH
        )
        assert patched(table, p) == pytest.approx(difference(p, alone), abs=EXACT)


ALWAYS = [(edge("answer-question"),), (edge("4-1@1"), edge("answer-question"), edge("3-question@0"))]


@pytest.mark.parametrize("always", ALWAYS, ids=lambda knockouts: " ".join(map(str, knockouts)))
def test_edges_cut_always_are_cut_in_host_donor_references_and_patched_runs(both, pairs, always):
    sites = [Site("resid", 1, 1, 3, 3), Site("kv", 1, 1, 2, 2), THOUGHT, QUESTION, BOT]
    ready, _ = tokenize_pairs(both, pairs[:2])
    table = sweep_cells(
        both, ready, make_cells(sites, [other], ["noising"]), metrics=["logit_difference"], always=always
    )
    for p in ready:
        mine, theirs = (run_alone(both, q, p.forced, edges=always) for q in hosts(p, "noising"))
        rows = table[table["pair_id"] == str(p.pair.pair_id)]
        assert rows["clean"].tolist() == pytest.approx([difference(p, mine)] * len(sites), abs=EXACT)
        assert rows["corrupted"].tolist() == pytest.approx([difference(p, theirs)] * len(sites), abs=EXACT)
        for site in sites:
            swapped = {site.kind: theirs} if site.kind in ("thought", "question", "bot") else {}
            alone = run_alone(
                both, p.pair.clean.question, p.forced, writes_of(both, site, theirs), knockouts=swapped, edges=always
            )
            assert patched(table, p, kind=site.kind) == pytest.approx(difference(p, alone), abs=EXACT), site


def test_means_are_taken_over_runs_with_the_edges_cut_in_every_run(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:3])
    always, site = (edge("3-question"), edge("answer-question")), Site("resid", 1, 1, 3, 3)
    cells = make_cells([site], [step_mean], ["noising"])
    table = sweep_cells(both, ready, cells, metrics=["logit_difference"], always=always)
    questions = [side.question for p in ready for side in (p.pair.clean, p.pair.corrupted)]
    stood = [run_alone(both, q, ready[0].forced, edges=always).values["resid", 1, 3] for q in questions]
    writes = {("resid", 1, 3, None): torch.stack(stood).mean(0)}
    for p in ready:
        alone = run_alone(both, p.pair.clean.question, p.forced, writes, edges=always)
        assert patched(table, p) == pytest.approx(difference(p, alone), abs=EXACT)


def test_a_self_patch_changes_nothing_with_edges_cut_in_every_run(both, pairs):
    sites = [Site("resid", 1, 1), Site("kv", 1, 1, 2, 2), Site("kv", None, None, 2, 3), THOUGHT, QUESTION]
    ready, _ = tokenize_pairs(both, pairs[:3])
    always = (edge("4-1@1"), edge("answer-question"))
    table = sweep_cells(both, ready, make_cells(sites, [itself]), metrics=[max_logit_change], always=always)
    assert table["patched"].max() <= EXACT


def test_greedy_decoding_keeps_the_knockouts_at_every_token(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:3])
    knockouts = [edge(text) for text in ("answer-question", "answer-2@0", "answer-question@1", "4-question")]
    table = sweep_cells(both, ready, knockout_cells(knockouts, ["noising"]), metrics=["answer"], max_new_tokens=9)
    for p in ready:
        for knockout in knockouts:
            done = run_alone(both, p.pair.clean.question, p.forced, edges=[knockout], decode=9)
            text = both.tokenizer.decode(done.said, skip_special_tokens=True)
            assert patched(table, p, "answer", knockout=str(knockout)) == pytest.approx(
                last_number(text), nan_ok=True
            ), str(knockout)


def test_knockouts_do_not_depend_on_the_size_of_blocks_and_batches(both, pairs):
    ready, _ = tokenize_pairs(both, pairs[:3])
    options = {"cells": knockout_cells(EDGES[6:9], ["noising"]), "metrics": ["logit_difference", "answer"]}
    large = sweep_cells(both, ready, **options)
    small = sweep_cells(both, ready, **options, cells_per_forward=1, pairs_per_batch=1)
    pd.testing.assert_frame_equal(large, small, atol=EXACT, rtol=0)


@pytest.mark.parametrize(
    "text", ["answer-question", "answer-bot", "answer-3", "4-1", "4-question", "4-1@2", "0-bot@10"]
)
def test_an_edge_is_formatted_as_it_is_parsed(text):
    assert str(edge(text)) == text
    assert edge(str(edge(text))) == edge(text)


def test_an_edge_has_reader_read_step_and_layer():
    assert edge("4-1@2") == Edge(4, 1, 2)
    assert edge("answer-bot") == Edge(None, "bot", None)


@pytest.mark.parametrize(
    "text", ["", "answer", "question-answer", "answer-answer", "4-1@", "-1-2", "4--1", "4-1@all", "4 - 1", "answer-3\n"]
)
def test_an_unknown_edge_is_refused_with_the_known_forms(text):
    sentence = f"edge {text!r} is unknown; write answer-question, answer-bot, answer-3, 4-1, or 4-1@2 (layer)"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        edge(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("6-1", "edge 6-1: step 6 does not exist; this model has steps 0 to 5"),
        ("answer-6", "edge answer-6: step 6 does not exist; this model has steps 0 to 5"),
        ("4-1@3", "edge 4-1@3: layer 3 does not exist; this model has layers 0 to 2"),
        ("1-4", "edge 1-4: step 1 does not read step 4; a step reads earlier ones"),
        ("4-4", "edge 4-4: step 4 does not read step 4; a step reads earlier ones"),
    ],
)
def test_an_edge_that_does_not_exist_is_refused_before_anything_runs(model, pairs, text, sentence):
    ready, _ = tokenize_pairs(model, pairs[:1])
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        sweep_cells(model, ready, knockout_cells([edge(text)]))
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        sweep_cells(model, ready, make_cells([THOUGHT]), always=[edge(text)])
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        sweep(model, pairs[:1], [THOUGHT], knockouts=[edge(text)])
