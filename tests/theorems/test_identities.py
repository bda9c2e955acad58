"""Identities of any model of both families: patches that change nothing, and patches that reproduce a run exactly."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from codi_tracing.configs.vocabulary import BLOCK_KINDS, FREEZABLE, ROUTES
from codi_tracing.patching.engine.sweep import sweep_cells
from codi_tracing.patching.engine.visibility import with_sight
from codi_tracing.patching.engine.writes import edits_of
from codi_tracing.patching.interventions.cells import Cell, CellWrite, knockout_cells, make_cells
from codi_tracing.patching.interventions.edges import Edge, edge
from codi_tracing.patching.interventions.sites import (
    BOT,
    QUESTION,
    THOUGHT,
    Site,
    prefixes,
    suffixes,
)
from codi_tracing.patching.interventions.sources import (
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
from codi_tracing.traces.loop.thought import run
from codi_tracing.traces.loop.tokens import encode, question_ids
from codi_tracing.traces.model.loading import reinitialise
from tests.support.checkpoints import load_loud, write_random_checkpoint
from tests.support.contrasts import Contrasts, contrasts_of, measure, projected

EXACT = 1e-5
COMPUTED = [zero, mean, step_mean, noise, moments]
PLACES = [
    Site("latent", step=2, step_last=2),
    Site("latent", step=0, step_last=3),
    Site("latent"),
    Site("resid", 1, 1, 3, 3),
    Site("resid", 0, 1, 1, 2),
    Site("resid", None, None, 0, 4),
    Site("resid", step_set=(0, 3, 5)),
    Site("attn", 2, 2),
    Site("attn", 0, 0, 0, 0),
    Site("mlp", 0, 2, 4, 4),
    Site("mlp", step_set=(1, 2)),
    Site("head", 1, 1, 2, 2, 3),
    Site("head", 0, 2, None, None, 1),
    Site("kv", 1, 1, 2, 2),
    Site("kv", 2, 2),
    Site("kv", 0, 1, 5, 5),
    Site("kv", None, None, 2, 5),
    Site("kv", step_set=(0, 2, 5)),
    Site("kv", 1, 1, step_set=(0, 2)),
    Site("kv"),
]
CACHED = [THOUGHT, QUESTION, BOT]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def both(request, tmp_path_factory):
    """A random model of each family, its LoRA stronger so that effects are well above rounding."""
    return load_loud(write_random_checkpoint(tmp_path_factory.mktemp("same"), family=request.param))


@pytest.fixture(scope="module")
def contrasts(both, pairs):
    return contrasts_of(both, pairs)


def agree(model, contrasts, first, second, **options) -> bool:
    """Whether two lists of cells give the same logits, different from the host's."""
    results = measure(model, contrasts, [*first, *second], projected, **options)
    one, two = np.split(results, 2, axis=1)
    assert np.abs(one).max() > EXACT
    return bool(np.abs(one - two).max() <= EXACT)


# Patches that change nothing.


@pytest.mark.parametrize("always", [(), ("answer-question", "4-1@2", "3-bot")], ids=["whole", "knockout"])
def test_a_run_patched_with_its_own_values_is_unchanged_with_any_routes_frozen(both, contrasts, always):
    frozen = [freeze for size in range(len(FREEZABLE) + 1) for freeze in itertools.combinations(FREEZABLE, size)]
    assert len(frozen) == 16
    cells = [cell for freeze in frozen[1:] for cell in make_cells(PLACES, [itself], ["noising"], freeze)]
    cells += make_cells([QUESTION, BOT], [itself], freeze=["K_T"]) + make_cells(
        [QUESTION, BOT], [itself], freeze=["K_A"]
    )
    cells += make_cells([*PLACES, *CACHED], [itself])
    assert measure(both, contrasts, cells, always=[edge(text) for text in always]).max() <= EXACT


def test_the_edit_norm_is_zero_for_a_self_patch_and_positive_for_another_run(both, contrasts):
    sites = [*PLACES, THOUGHT]
    assert measure(both, contrasts, make_cells(sites, [itself]), "edit_norm").max() <= 10 * EXACT
    assert measure(both, contrasts, make_cells(sites, [other, unrelated]), "edit_norm").min() > 100 * EXACT


@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_patching_the_last_layer_at_the_last_step_changes_nothing(both, contrasts, kind):
    layer, step = both.n_layers - 1, both.n_latents - 1
    heads = range(both.n_heads) if kind == "head" else [None]
    push = steer(torch.full((both.head_width if kind == "head" else both.d_model,), 10.0))
    cells = make_cells(
        [Site(kind, layer, layer, step, step, head) for head in heads], [other, unrelated, *COMPUTED, push]
    )
    assert measure(both, contrasts, cells).max() <= EXACT
    assert measure(both, contrasts, cells, "edit_norm").min() > 10 * EXACT


@pytest.mark.parametrize("freeze", [tuple(ROUTES), tuple(FREEZABLE)], ids="+".join)
def test_with_every_route_frozen_no_source_changes_anything(both, contrasts, freeze):
    cells = make_cells(PLACES, [other, unrelated], freeze=freeze)
    cells += make_cells([site for site in PLACES if site.kind != "kv"], COMPUTED, freeze=freeze)
    cells += make_cells([QUESTION, BOT], [other, unrelated], freeze=["K_T", "K_A"])
    assert measure(both, contrasts, cells).max() <= EXACT


@pytest.mark.parametrize("text", ["answer-question", "answer-2", "3-question", "4-1", "5-1@1", "2-bot@0"])
def test_a_run_with_a_knockout_equals_the_run_of_a_model_without_that_edge(both, contrasts, text):
    knockout = edge(text)
    bare = measure(both, contrasts, knockout_cells([knockout]), "logit_difference")
    tables = [
        sweep_cells(
            both, contrasts.ready, make_cells([THOUGHT], [itself], ["noising"]), metrics=["logit_difference"],
            donors=contrasts.donors, always=always,
        )
        for always in ([knockout], [])
    ]  # fmt: skip
    without, whole = (table[["corrupted", "clean"]].to_numpy() for table in tables)  # the hosts of the two directions
    np.testing.assert_allclose(bare, without, rtol=0, atol=EXACT)
    assert np.abs(bare - whole).max() > EXACT


@pytest.mark.parametrize("text", ["answer-question", "answer-bot@1", "answer-2"])
def test_with_a_knockout_into_the_answer_a_self_patch_changes_nothing_else(both, contrasts, text):
    knockout = edge(text)
    written = measure(
        both, contrasts, make_cells([*PLACES, *CACHED], [itself], ["noising"], knockouts=[knockout]), projected
    )
    bare = measure(both, contrasts, knockout_cells([knockout], ["noising"]), projected)
    np.testing.assert_allclose(written, np.broadcast_to(bare, written.shape), rtol=0, atol=EXACT)
    assert np.abs(bare).max() > EXACT


# Cells that are equal.


def test_the_longest_prefix_and_the_longest_suffix_equal_all_steps_at_once(both, contrasts):
    for kind in ("latent", "resid", "attn", "mlp", "kv"):
        listed = Site(kind, step_set=tuple(range(both.n_latents)))
        for site in (prefixes(both, kind)[-1], suffixes(both, kind)[0], listed):
            assert agree(
                both, contrasts, make_cells([Site(kind)], [other, unrelated]), make_cells([site], [other, unrelated])
            )


def test_a_set_of_neighbouring_steps_equals_their_window_with_any_route_frozen(both, contrasts):
    for freeze in ((), *((name,) for name in FREEZABLE), ("R", "K_T")):
        for kind in ("latent", "resid", "kv"):
            window, listed = Site(kind, step=1, step_last=3), Site(kind, step_set=(1, 2, 3))
            assert agree(
                both,
                contrasts,
                make_cells([window], [other], freeze=freeze),
                make_cells([listed], [other], freeze=freeze),
            )


@pytest.mark.parametrize("freeze", [(), ("K_T",), ("R",), ("R", "K_T")], ids="+".join)
def test_all_cache_entries_at_once_equal_the_whole_thought_with_its_inner_routes_open_or_frozen(
    both, contrasts, freeze
):
    sources = [other, unrelated]
    assert agree(both, contrasts, make_cells([Site("kv")], sources, freeze=freeze), make_cells([THOUGHT], sources))


def test_a_cache_entry_of_all_layers_is_the_same_written_or_exchanged_by_masks(both, contrasts):
    top = both.n_layers - 1
    for freeze in ((), ("K_T",), ("K_A",), ("R",), ("between",)):
        for step in range(both.n_latents - 1):
            written, seen = Site("kv", 0, top, step, step), Site("kv", None, None, step, step)
            assert agree(
                both,
                contrasts,
                make_cells([written], [other], freeze=freeze),
                make_cells([seen], [other], freeze=freeze),
            )


def test_after_an_early_stop_patching_later_steps_changes_nothing(both, contrasts):
    for stop in (0, 2, 5):
        bare = measure(both, contrasts, [Cell("noising", itself, THOUGHT, n_latents=stop)], projected)
        for site in (Site("latent", step=stop, step_last=5), Site("resid", step=stop, step_last=5), Site("kv", step=5)):
            for source in (other, unrelated):
                late = Cell("noising", source, site, n_latents=stop)
                np.testing.assert_allclose(measure(both, contrasts, [late], projected), bare, rtol=0, atol=EXACT)


@pytest.mark.parametrize("freeze", [tuple(ROUTES), tuple(FREEZABLE)], ids="+".join)
def test_with_every_route_frozen_a_thought_with_additional_steps_is_unchanged_too(both, contrasts, freeze):
    beyond = both.n_latents + 2
    bare = measure(both, contrasts, [Cell("noising", itself, THOUGHT, n_latents=beyond)], projected)
    sites = [*PLACES, Site("resid"), Site("resid", 2, 2, 5, 5)]
    cells = [Cell("noising", other, site, freeze, n_latents=beyond) for site in sites]
    frozen = measure(both, contrasts, cells, projected)
    np.testing.assert_allclose(frozen, np.broadcast_to(bare, frozen.shape), rtol=0, atol=EXACT)
    assert np.abs(bare).max() > EXACT


def test_means_are_taken_in_runs_with_the_same_knockouts(both, contrasts):
    """If no step reads the question, all runs of one length have the same thought, which is their mean."""
    alike = [p for p in contrasts.everyone if p.tokens == contrasts.ready[0].tokens]
    assert len(alike) > 1
    of_a_length = Contrasts(alike[:1], contrasts.donors[:1], alike)
    blind = [Edge(step, read) for step in range(both.n_latents) for read in ("question", "bot")]
    cells = make_cells([Site(kind, 1, 1, 3, 3) for kind in ("resid", "attn", "mlp")], [step_mean])
    kept = {name: value.clone() for name, value in both.project.state_dict().items()}
    try:
        with torch.no_grad():  # a constant projection: latent 0 carries nothing of the question
            both.project[4].weight.zero_()
            both.project[4].bias.copy_(torch.randn(both.d_model, generator=torch.Generator().manual_seed(0)))
        assert measure(both, of_a_length, cells, always=blind).max() <= EXACT
        assert measure(both, of_a_length, cells).max() > EXACT
    finally:
        both.project.load_state_dict(kept)


# Cells that reproduce a run: several segments of the donor in one cell.


class Alone(NamedTuple):
    """Logits after the forced tokens and at EoT, `[row, cell, vocab]`, and greedy tokens."""

    at_read: torch.Tensor
    at_start: torch.Tensor
    tokens: torch.Tensor


def composed(model, contrasts, donor, writes, always=()) -> Alone:
    """Host (cell 0), donor (cell 1) and one cell for each list of (site, freeze) written into it from the donor.

    Each of `writes` names its host (0 or 1) and its sites, each with the routes frozen there.
    """
    questions = []
    for ready, drawn in zip(contrasts.ready, contrasts.donors, strict=True):
        donors = {"other": ready.pair.clean.question, "unrelated": drawn[0].question}
        questions.append([ready.pair.corrupted.question, donors[donor]])
    hosts = [0, 1, *(host for host, _ in writes)]
    rows = encode(model, questions, hosts)
    planned = [
        CellWrite(run, host, 1 - host, Cell("denoising", other, site, freeze))
        for run, (host, sites) in enumerate(writes, 2)
        for site, freeze in sites
    ]
    forced = torch.tensor([ready.forced for ready in contrasts.ready])
    done = run(
        model, with_sight(model, rows, planned, always=always), forced, edits=edits_of(model, rows, planned),
        max_new_tokens=6,
    )  # fmt: skip
    assert done.tokens is not None
    return Alone(done.forced.at_read, done.forced.at_start, done.tokens)


def open_(*sites):
    return [(site, ()) for site in sites]


def same(results: Alone, cell: int, expected: int) -> bool:
    """Whether two cells have the same logits and the same greedy answer."""
    logits = (results.at_read, results.at_start)
    near = all(float((one[:, cell] - one[:, expected]).abs().max()) <= EXACT for one in logits)
    return near and torch.equal(results.tokens[:, cell], results.tokens[:, expected])


LATENT_0 = Site("latent", step=0, step_last=0)
DONORS = pytest.mark.parametrize("donor", ["other", "unrelated"])


@DONORS
@pytest.mark.parametrize("host", [0, 1])
def test_question_and_bot_with_the_thought_or_with_latent_0_reproduce_the_donors_run(both, contrasts, donor, host):
    lists = [
        open_(QUESTION, BOT, THOUGHT), open_(QUESTION, BOT, LATENT_0), open_(QUESTION, BOT, Site("kv")),
        open_(QUESTION, BOT), open_(QUESTION, THOUGHT), open_(BOT, THOUGHT), open_(QUESTION, LATENT_0),
    ]  # fmt: skip
    results = composed(both, contrasts, donor, [(host, sites) for sites in lists])
    assert [same(results, cell, 1 - host) for cell in range(2, 9)] == [True] * 3 + [False] * 4


@DONORS
def test_question_and_latent_0_reproduce_the_donors_run_where_nothing_reads_bot(both, contrasts, donor):
    unread = [Edge(reader, "bot") for reader in (None, *range(both.n_latents))]
    lists = [open_(QUESTION, LATENT_0), open_(QUESTION), open_(LATENT_0)]
    results = composed(both, contrasts, donor, [(0, sites) for sites in lists], unread)
    assert [same(results, cell, 1) for cell in (2, 3, 4)] == [True, False, False]


@DONORS
def test_patching_the_thought_equals_patching_the_question_for_the_answer_alone_in_the_other_run(
    both, contrasts, donor
):
    read_late = [(QUESTION, ("K_T",)), (BOT, ("K_T",))]
    for host in (0, 1):
        results = composed(both, contrasts, donor, [(host, open_(THOUGHT)), (1 - host, read_late)])
        assert same(results, 2, 3)
        assert not same(results, 2, 0)
        assert not same(results, 2, 1)


@DONORS
def test_the_residual_at_every_site_equals_the_whole_thought_except_for_the_entry_of_latent_0_in_layer_0(
    both, contrasts, donor
):
    resid, first = Site("resid"), Site("kv", 0, 0, 0, 0)
    lists = [open_(THOUGHT), open_(resid, LATENT_0), open_(resid, first), open_(resid)]
    results = composed(both, contrasts, donor, [(0, sites) for sites in lists])
    assert [same(results, cell, 2) for cell in (3, 4, 5)] == [True, True, False]


@DONORS
def test_all_block_outputs_with_latent_0_equal_the_whole_thought(both, contrasts, donor):
    every_head = [Site("head", head=head) for head in range(both.n_heads)]
    lists = [
        open_(THOUGHT), open_(Site("attn"), Site("mlp"), LATENT_0), open_(Site("attn"), LATENT_0),
        open_(*every_head, LATENT_0), open_(Site("attn"), Site("mlp")),
    ]  # fmt: skip
    results = composed(both, contrasts, donor, [(0, sites) for sites in lists])
    # Attention and latent 0 determine the thought: an MLP has no other input.
    assert [same(results, cell, 2) for cell in (3, 4, 5, 6)] == [True, True, True, False]


@DONORS
def test_all_heads_of_a_layer_together_are_its_attention(both, contrasts, donor):
    for freeze in ((), ("R",), ("K_T",), ("K_A",), ("between",)):
        heads = [(Site("head", 1, 1, 2, 3, head), freeze) for head in range(both.n_heads)]
        lists = [heads, [(Site("attn", 1, 1, 2, 3), freeze)], heads[:-1]]
        results = composed(both, contrasts, donor, [(0, sites) for sites in lists])
        assert same(results, 2, 3)
        assert not same(results, 2, 4)
        assert not same(results, 2, 0)


@pytest.mark.parametrize(
    ("site", "sentence"),
    [
        (Site("resid", None, 1), "a window to layer 1 names no first layer; name both"),
        (Site("kv", step_last=3), "a window to step 3 names no first step; name both"),
    ],
)
def test_a_window_without_a_first_layer_or_step_is_refused(both, site, sentence):
    with pytest.raises(ValueError, match=sentence):
        site.places(both)


# The re-initialised control.


@pytest.fixture(scope="module")
def blank(both):
    return reinitialise(both, seed=3)


def weights(model) -> dict[str, torch.Tensor]:
    parts = {"lm": model.lm._module, "project": model.project}
    results = {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}
    return results | {"bot": model.bot, "eot": model.eot}


def test_re_initialised_lora_adds_nothing_to_the_base(both, blank, contrasts):
    ids = torch.tensor([question_ids(both, contrasts.ready[0].pair.clean.question)])
    base = AutoModelForCausalLM.from_pretrained(both.folder / "base", dtype=torch.float32).eval()
    with torch.no_grad():
        expected, bare, trained = (model(input_ids=ids).logits for model in (base, blank.lm._module, both.lm._module))
    torch.testing.assert_close(bare, expected, rtol=0, atol=EXACT)
    assert (trained - expected).abs().max() > EXACT


def test_re_initialising_redraws_projection_and_lora_and_keeps_the_rest_and_the_model(both):
    before = {name: value.clone() for name, value in weights(both).items()}
    drawn = [weights(reinitialise(both, seed)) for seed in (3, 3, 4)]
    assert all(torch.equal(value, before[name]) for name, value in weights(both).items())
    for name, value in drawn[0].items():
        assert torch.equal(value, drawn[1][name]), name
        random = ".lora_A." in name or (name.startswith("project") and not name.startswith("project.4"))
        assert torch.equal(value, drawn[2][name]) != random, name
        if ".lora_B." in name:
            assert not value.any()
            assert before[name].any()
        elif random:
            assert not torch.equal(value, before[name]), name
        elif not name.startswith("project.4"):
            assert torch.equal(value, before[name]), name


def test_a_re_initialised_model_keeps_every_identity(both, blank, contrasts):
    cells = make_cells([*PLACES, *CACHED], [itself]) + make_cells(PLACES, [other], freeze=tuple(ROUTES))
    assert measure(blank, contrasts, cells).max() <= EXACT
    results = composed(blank, contrasts, "other", [(0, open_(QUESTION, BOT, THOUGHT)), (0, open_(THOUGHT))])
    assert same(results, 2, 1)
    assert not same(results, 3, 0)
