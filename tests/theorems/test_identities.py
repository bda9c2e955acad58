"""Identities that hold in any model, of both families: what changes nothing, and what reproduces a run exactly."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from codi_tracing.patching.engine.sweep import sweep_cells
from codi_tracing.patching.engine.visibility import with_sight
from codi_tracing.patching.engine.writes import edits_of
from codi_tracing.patching.interventions.cells import Cell, Write, knockout_cells, make_cells
from codi_tracing.patching.interventions.edges import Edge, edge
from codi_tracing.patching.interventions.sites import (
    BOT,
    FREEZABLE,
    INSIDE,
    QUESTION,
    ROUTES,
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
from codi_tracing.patching.metrics import max_logit_change
from codi_tracing.patching.pairs.donors import draw_unrelated
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.traces.loop.thought import run
from codi_tracing.traces.loop.tokens import encode, question_ids
from codi_tracing.traces.model.loading import reinitialise
from tests.conftest import write_random_checkpoint
from tests.theorems.test_planted import Contrasts, loud

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
    """A random model of each family, its LoRA made stronger so that what matters is well above rounding."""
    return loud(write_random_checkpoint(tmp_path_factory.mktemp("same"), family=request.param))


@pytest.fixture(scope="module")
def contrasts(both, pairs):
    everyone = tokenize_pairs(both, pairs)[0]
    drawn = draw_unrelated(everyone, 0)
    chosen = [(ready, donors) for ready, donors in zip(everyone, drawn, strict=True) if donors][:2]
    return Contrasts([ready for ready, _ in chosen], [donors for _, donors in chosen], everyone)


def measure(model, contrasts, cells, metric=max_logit_change, **options) -> np.ndarray:
    """One metric of every cell, `[pair, cell]`."""
    table = sweep_cells(
        model, contrasts.ready, cells, metrics=[metric], donors=contrasts.donors, everyone=contrasts.everyone,
        cells_per_forward=64, **options,
    )  # fmt: skip
    return table["patched"].to_numpy().reshape(len(contrasts.ready), len(cells))


def projected(reading):
    """The change of all logits, in a fixed random direction: two runs that agree in it agree in all."""
    change = reading.patched - reading.host
    direction = torch.randn(change.shape[-1], generator=torch.Generator().manual_seed(0))
    return change @ (direction / direction.norm())


def agree(model, contrasts, first, second, **options) -> bool:
    """Whether two lists of cells give the same logits, which are not the host's."""
    found = measure(model, contrasts, [*first, *second], projected, **options)
    one, two = np.split(found, 2, axis=1)
    assert np.abs(one).max() > EXACT
    return bool(np.abs(one - two).max() <= EXACT)


# What changes nothing.


@pytest.mark.parametrize("always", [(), ("answer-question", "4-1@2", "3-bot")], ids=["whole", "knockout"])
def test_a_run_written_with_its_own_values_is_unchanged_whatever_is_held(both, contrasts, always):
    held = [freeze for size in range(len(FREEZABLE) + 1) for freeze in itertools.combinations(FREEZABLE, size)]
    assert len(held) == 16
    cells = [cell for freeze in held[1:] for cell in make_cells(PLACES, [itself], ["noising"], freeze)]
    cells += make_cells([QUESTION, BOT], [itself], freeze=["K_T"]) + make_cells(
        [QUESTION, BOT], [itself], freeze=["K_A"]
    )
    cells += make_cells([*PLACES, *CACHED], [itself])
    assert measure(both, contrasts, cells, always=[edge(text) for text in always]).max() <= EXACT


def test_what_is_written_of_a_runs_own_has_no_size_and_what_is_anothers_has_one(both, contrasts):
    sites = [*PLACES, THOUGHT]
    assert measure(both, contrasts, make_cells(sites, [itself]), "edit_norm").max() <= 10 * EXACT
    assert measure(both, contrasts, make_cells(sites, [other, unrelated]), "edit_norm").min() > 100 * EXACT


@pytest.mark.parametrize("kind", INSIDE)
def test_the_last_layer_at_the_last_step_changes_nothing_however_much_is_written(both, contrasts, kind):
    layer, step = both.n_layers - 1, both.n_latents - 1
    heads = range(both.n_heads) if kind == "head" else [None]
    push = steer(torch.full((both.head_width if kind == "head" else both.d_model,), 10.0))
    cells = make_cells(
        [Site(kind, layer, layer, step, step, head) for head in heads], [other, unrelated, *COMPUTED, push]
    )
    assert measure(both, contrasts, cells).max() <= EXACT
    assert measure(both, contrasts, cells, "edit_norm").min() > 10 * EXACT


@pytest.mark.parametrize("freeze", [ROUTES, FREEZABLE], ids="+".join)
def test_with_every_route_held_nothing_changes_from_any_source(both, contrasts, freeze):
    cells = make_cells(PLACES, [other, unrelated], freeze=freeze)
    cells += make_cells([site for site in PLACES if site.kind != "kv"], COMPUTED, freeze=freeze)
    cells += make_cells([QUESTION, BOT], [other, unrelated], freeze=["K_T", "K_A"])
    assert measure(both, contrasts, cells).max() <= EXACT


@pytest.mark.parametrize("text", ["answer-question", "answer-2", "3-question", "4-1", "5-1@1", "2-bot@0"])
def test_a_run_of_which_an_edge_is_cut_is_that_of_the_model_that_never_had_it(both, contrasts, text):
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
def test_where_only_the_answer_lacks_an_edge_writing_a_runs_own_values_changes_nothing_else(both, contrasts, text):
    knockout = edge(text)
    written = measure(
        both, contrasts, make_cells([*PLACES, *CACHED], [itself], ["noising"], knockouts=[knockout]), projected
    )
    bare = measure(both, contrasts, knockout_cells([knockout], ["noising"]), projected)
    np.testing.assert_allclose(written, np.broadcast_to(bare, written.shape), rtol=0, atol=EXACT)
    assert np.abs(bare).max() > EXACT


# What equals what, cell by cell.


def test_a_prefix_to_the_last_step_and_a_suffix_from_the_first_are_all_steps_at_once(both, contrasts):
    for kind in ("latent", "resid", "attn", "mlp", "kv"):
        listed = Site(kind, step_set=tuple(range(both.n_latents)))
        for site in (prefixes(both, kind)[-1], suffixes(both, kind)[0], listed):
            assert agree(
                both, contrasts, make_cells([Site(kind)], [other, unrelated]), make_cells([site], [other, unrelated])
            )


def test_a_set_of_neighbouring_steps_is_their_window_in_every_way_of_holding(both, contrasts):
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
def test_all_entries_at_once_are_the_whole_thought_whatever_is_held_within_it(both, contrasts, freeze):
    sources = [other, unrelated]
    assert agree(both, contrasts, make_cells([Site("kv")], sources, freeze=freeze), make_cells([THOUGHT], sources))


def test_an_entry_of_all_layers_is_the_same_written_into_the_cache_and_exchanged_by_sight(both, contrasts):
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


def test_after_a_thought_that_stops_early_what_later_steps_hold_changes_nothing(both, contrasts):
    for stop in (0, 2, 5):
        bare = measure(both, contrasts, [Cell("noising", itself, THOUGHT, n_latents=stop)], projected)
        for site in (Site("latent", step=stop, step_last=5), Site("resid", step=stop, step_last=5), Site("kv", step=5)):
            for source in (other, unrelated):
                late = Cell("noising", source, site, n_latents=stop)
                np.testing.assert_allclose(measure(both, contrasts, [late], projected), bare, rtol=0, atol=EXACT)


@pytest.mark.parametrize("freeze", [ROUTES, FREEZABLE], ids="+".join)
def test_with_every_route_held_a_thought_that_goes_on_beyond_the_last_step_is_unchanged_too(both, contrasts, freeze):
    beyond = both.n_latents + 2
    bare = measure(both, contrasts, [Cell("noising", itself, THOUGHT, n_latents=beyond)], projected)
    sites = [*PLACES, Site("resid"), Site("resid", 2, 2, 5, 5)]
    cells = [Cell("noising", other, site, freeze, n_latents=beyond) for site in sites]
    held = measure(both, contrasts, cells, projected)
    np.testing.assert_allclose(held, np.broadcast_to(bare, held.shape), rtol=0, atol=EXACT)
    assert np.abs(bare).max() > EXACT


def test_means_are_those_of_the_model_whose_edges_are_cut(both, contrasts):
    """Where the thought sees no question, all runs of a length think alike, and their mean is what stands there."""
    alike = [p for p in contrasts.everyone if p.tokens == contrasts.ready[0].tokens]
    assert len(alike) > 1
    of_a_length = Contrasts(alike[:1], contrasts.donors[:1], alike)
    blind = [Edge(step, read) for step in range(both.n_latents) for read in ("question", "bot")]
    cells = make_cells([Site(kind, 1, 1, 3, 3) for kind in ("resid", "attn", "mlp")], [step_mean])
    kept = {name: value.clone() for name, value in both.project.state_dict().items()}
    try:
        with torch.no_grad():  # a constant, so that latent 0 does not bring the question in
            both.project[4].weight.zero_()
            both.project[4].bias.copy_(torch.randn(both.d_model, generator=torch.Generator().manual_seed(0)))
        assert measure(both, of_a_length, cells, always=blind).max() <= EXACT
        assert measure(both, of_a_length, cells).max() > EXACT
    finally:
        both.project.load_state_dict(kept)


# What reproduces a run: several segments of the donor in one cell.


class Alone(NamedTuple):
    """Logits after the forced tokens and at EoT, `[row, cell, vocab]`, and greedy tokens."""

    at_read: torch.Tensor
    at_start: torch.Tensor
    tokens: torch.Tensor


def composed(model, contrasts, donor, writes, always=()) -> Alone:
    """Host (cell 0), donor (cell 1) and one cell for each list of (site, freeze) written into it from the donor.

    Each of `writes` is which of the two is its host, and the sites with the routes that are held there.
    """
    questions = []
    for ready, drawn in zip(contrasts.ready, contrasts.donors, strict=True):
        donors = {"other": ready.pair.clean.question, "unrelated": drawn[0].question}
        questions.append([ready.pair.corrupted.question, donors[donor]])
    hosts = [0, 1, *(host for host, _ in writes)]
    rows = encode(model, questions, hosts)
    planned = [
        Write(cell, host, 1 - host, site, freeze)
        for cell, (host, sites) in enumerate(writes, 2)
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


def same(found: Alone, cell: int, wanted: int) -> bool:
    """Whether two cells have the same logits and say the same."""
    near = all(
        float((logits[:, cell] - logits[:, wanted]).abs().max()) <= EXACT for logits in (found.at_read, found.at_start)
    )
    return near and torch.equal(found.tokens[:, cell], found.tokens[:, wanted])


LATENT_0 = Site("latent", step=0, step_last=0)
DONORS = pytest.mark.parametrize("donor", ["other", "unrelated"])


@DONORS
@pytest.mark.parametrize("host", [0, 1])
def test_question_and_bot_with_the_thought_or_with_latent_0_reproduce_the_donors_run(both, contrasts, donor, host):
    lists = [
        open_(QUESTION, BOT, THOUGHT), open_(QUESTION, BOT, LATENT_0), open_(QUESTION, BOT, Site("kv")),
        open_(QUESTION, BOT), open_(QUESTION, THOUGHT), open_(BOT, THOUGHT), open_(QUESTION, LATENT_0),
    ]  # fmt: skip
    found = composed(both, contrasts, donor, [(host, sites) for sites in lists])
    assert [same(found, cell, 1 - host) for cell in range(2, 9)] == [True] * 3 + [False] * 4


@DONORS
def test_question_and_latent_0_reproduce_it_but_for_what_is_read_of_bot(both, contrasts, donor):
    unread = [Edge(reader, "bot") for reader in (None, *range(both.n_latents))]
    lists = [open_(QUESTION, LATENT_0), open_(QUESTION), open_(LATENT_0)]
    found = composed(both, contrasts, donor, [(0, sites) for sites in lists], unread)
    assert [same(found, cell, 1) for cell in (2, 3, 4)] == [True, False, False]


@DONORS
def test_a_thought_written_into_a_run_is_that_runs_question_read_by_the_answer_of_the_other(both, contrasts, donor):
    read_late = [(QUESTION, ("K_T",)), (BOT, ("K_T",))]
    for host in (0, 1):
        found = composed(both, contrasts, donor, [(host, open_(THOUGHT)), (1 - host, read_late)])
        assert same(found, 2, 3)
        assert not same(found, 2, 0)
        assert not same(found, 2, 1)


@DONORS
def test_the_residual_everywhere_is_the_whole_thought_but_for_what_latent_0_leaves_in_layer_0(both, contrasts, donor):
    resid, first = Site("resid"), Site("kv", 0, 0, 0, 0)
    lists = [open_(THOUGHT), open_(resid, LATENT_0), open_(resid, first), open_(resid)]
    found = composed(both, contrasts, donor, [(0, sites) for sites in lists])
    assert [same(found, cell, 2) for cell in (3, 4, 5)] == [True, True, False]


@DONORS
def test_what_blocks_add_everywhere_with_latent_0_is_the_whole_thought(both, contrasts, donor):
    every_head = [Site("head", head=head) for head in range(both.n_heads)]
    lists = [
        open_(THOUGHT), open_(Site("attn"), Site("mlp"), LATENT_0), open_(Site("attn"), LATENT_0),
        open_(*every_head, LATENT_0), open_(Site("attn"), Site("mlp")),
    ]  # fmt: skip
    found = composed(both, contrasts, donor, [(0, sites) for sites in lists])
    # Attention and latent 0 settle the thought: an MLP depends on nothing else.
    assert [same(found, cell, 2) for cell in (3, 4, 5, 6)] == [True, True, True, False]


@DONORS
def test_all_heads_of_a_layer_together_are_its_attention(both, contrasts, donor):
    for freeze in ((), ("R",), ("K_T",), ("K_A",), ("between",)):
        heads = [(Site("head", 1, 1, 2, 3, head), freeze) for head in range(both.n_heads)]
        lists = [heads, [(Site("attn", 1, 1, 2, 3), freeze)], heads[:-1]]
        found = composed(both, contrasts, donor, [(0, sites) for sites in lists])
        assert same(found, 2, 3)
        assert not same(found, 2, 4)
        assert not same(found, 2, 0)


@pytest.mark.parametrize(
    ("site", "sentence"),
    [
        (Site("resid", None, 1), "a window to layer 1 names no first layer; name both"),
        (Site("kv", step_last=3), "a window to step 3 names no first step; name both"),
    ],
)
def test_a_window_without_a_beginning_is_refused_and_not_taken_for_everything(both, site, sentence):
    with pytest.raises(ValueError, match=sentence):
        site.places(both)


# The re-initialised control.


@pytest.fixture(scope="module")
def blank(both):
    return reinitialise(both, seed=3)


def weights(model) -> dict[str, torch.Tensor]:
    parts = {"lm": model.lm._module, "project": model.project}
    found = {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}
    return found | {"bot": model.bot, "eot": model.eot}


def test_re_initialised_lora_adds_nothing_to_the_base(both, blank, contrasts):
    ids = torch.tensor([question_ids(both, contrasts.ready[0].pair.clean.question)])
    base = AutoModelForCausalLM.from_pretrained(both.folder / "base", dtype=torch.float32).eval()
    with torch.no_grad():
        wanted, bare, trained = (model(input_ids=ids).logits for model in (base, blank.lm._module, both.lm._module))
    torch.testing.assert_close(bare, wanted, rtol=0, atol=EXACT)
    assert (trained - wanted).abs().max() > EXACT


def test_re_initialising_draws_projection_and_lora_anew_keeps_the_rest_and_leaves_the_model_alone(both):
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
    cells = make_cells([*PLACES, *CACHED], [itself]) + make_cells(PLACES, [other], freeze=ROUTES)
    assert measure(blank, contrasts, cells).max() <= EXACT
    found = composed(blank, contrasts, "other", [(0, open_(QUESTION, BOT, THOUGHT)), (0, open_(THOUGHT))])
    assert same(found, 2, 1)
    assert not same(found, 3, 0)
