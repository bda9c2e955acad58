"""Planted effects: models and knockouts for which the sites that can matter follow by hand; the engine has to agree."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from codi_tracing.configs.vocabulary import BLOCK_KINDS, DIRECTIONS, FREEZABLE, ROUTES
from codi_tracing.patching.engine.sweep import sweep_cells
from codi_tracing.patching.interventions.cells import Cell, make_cells
from codi_tracing.patching.interventions.edges import Edge
from codi_tracing.patching.interventions.sites import (
    THOUGHT,
    Site,
    expand,
    stepwise,
    subsets,
)
from codi_tracing.patching.interventions.sources import Value, mean, noise, other, source_name, unrelated, zero
from tests.support.checkpoints import load_loud, write_random_checkpoint
from tests.support.contrasts import contrasts_of, measure, projected

EXACT = 1e-5
SOURCES = [other, unrelated, zero, mean, noise]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    """A random checkpoint of each family."""
    return write_random_checkpoint(tmp_path_factory.mktemp("planted"), family=request.param)


@pytest.fixture(scope="module")
def both(folder):
    return load_loud(folder)


@pytest.fixture
def fresh(folder):
    """A new model for each test, to plant something in."""
    return load_loud(folder)


@pytest.fixture(scope="module")
def contrasts(both, pairs):
    return contrasts_of(both, pairs)


def every_site(model) -> list[Site]:
    """Each layer and step of every kind, and each whole step; of the heads the first and the last."""
    measured = [*stepwise(model, "latent"), *expand(model, ["sitewise", "stepwise"], (*BLOCK_KINDS, "kv"))]
    return [site for site in measured if site.head in (None, 0, model.n_heads - 1)]


def written(sites, sources=SOURCES, directions=tuple(DIRECTIONS), freeze=()) -> list[Cell]:
    """A cell for every site and every source that can be written there."""
    cells = make_cells(sites, sources, directions, freeze)
    return [cell for cell in cells if not (isinstance(cell.source, Value) and cell.site.kind == "kv")]


def named(cell) -> tuple[str, Site]:
    return ("other" if cell.source is other else source_name(cell.source, cell.host)), cell.site


def measured_and_planted(model, contrasts, cells, rule, always=()):
    """The (source, site) with an effect on some pair and direction, and those that should have one by a rule."""
    changes = measure(model, contrasts, cells, always=always).max(0)
    measured = {named(cell) for cell, change in zip(cells, changes, strict=True) if change > EXACT}
    planted = {
        named(cell) for cell in cells if any(rule(cell, layer, step) for layer, step in cell.site.places(model))
    }  # fmt: skip
    assert planted  # else the test could not fail
    assert len(planted) < len({named(cell) for cell in cells})
    return measured, planted


def answer_sees_only(model, step: int, layers: Sequence[int] | None = None) -> list[Edge]:
    """Knockouts that leave the answer one step of the thought, at all layers or at some."""
    others = [Edge(None, at) for at in range(model.n_latents) if at != step]
    unread = [] if layers is None else [Edge(None, step, at) for at in range(model.n_layers) if at not in layers]
    return [Edge(None, "question"), Edge(None, "bot"), *others, *unread]


def no_step_reads_another(model) -> list[Edge]:
    return [Edge(later, step) for later in range(model.n_latents) for step in range(later)]


def upstream(kind: str, layer: int, step: int, k: int, read: Sequence[int]) -> bool:
    """Whether an activation reaches the entries that the answer reads, those of step k at the layers `read`.

    An entry at a layer is made of what enters that layer, so within step k only what lies in layers below reaches it. A
    step before k reaches latent k through the projections between, and through it all layers; so does its cache entry
    at any layer, by way of a step before k that reads it. Only the entry that step k−1 leaves has no such step between:
    step k itself reads it, at that very layer, and hands it on to the layers above.
    """
    top = max(read)
    if step > k:
        return False
    if kind == "latent":
        return True
    if step == k:
        return layer in read if kind == "kv" else layer < top
    return layer < top if kind == "kv" and step == k - 1 else True


def upstream_without_K_T(kind: str, layer: int, step: int, k: int, read: Sequence[int]) -> bool:
    """The same where no step reads another's entries: all but the entries goes on through the projection."""
    return (step == k and layer in read) if kind == "kv" else upstream(kind, layer, step, k, read)


def upstream_without_R(kind: str, layer: int, step: int, k: int, read: Sequence[int]) -> bool:
    """The same where each latent is a constant: an earlier step acts only through reading, and each reading rises.

    What is written in a block enters the step's own entries in the layers above, those are read there by step k, and
    what is read enters entries above that once more. A latent is below all layers.
    """
    if step > k or (kind == "latent" and step == k):
        return step <= k
    if step == k:
        return layer in read if kind == "kv" else layer < max(read)
    enters = {"latent": 0, "kv": layer}.get(kind, layer + 1)  # the lowest of its step's entries that it is in
    return enters < max(read)


@pytest.mark.parametrize("k", range(6))
def test_where_the_answer_sees_one_step_exactly_the_sites_upstream_of_its_entries_matter(both, contrasts, k):
    layers = range(both.n_layers)
    measured, planted = measured_and_planted(
        both, contrasts, written(every_site(both), directions=[tuple(DIRECTIONS)[k % 2]]),
        lambda cell, layer, step: upstream(cell.site.kind, layer, step, k, layers),
        answer_sees_only(both, k),
    )  # fmt: skip
    assert measured == planted


@pytest.mark.parametrize("layer_read", range(3))
@pytest.mark.parametrize("k", [0, 3])
def test_where_the_answer_sees_one_step_in_one_layer_exactly_the_sites_upstream_of_that_entry_matter(
    both, contrasts, k, layer_read
):
    measured, planted = measured_and_planted(
        both, contrasts, written(every_site(both), [other, noise], ["denoising"]),
        lambda cell, layer, step: upstream(cell.site.kind, layer, step, k, [layer_read]),
        answer_sees_only(both, k, [layer_read]),
    )  # fmt: skip
    assert measured == planted


@pytest.mark.parametrize("k", [1, 4])
def test_where_no_step_reads_another_an_earlier_entry_is_no_longer_upstream(both, contrasts, k):
    layers = range(both.n_layers)
    measured, planted = measured_and_planted(
        both, contrasts, written(every_site(both), directions=["noising"]),
        lambda cell, layer, step: upstream_without_K_T(cell.site.kind, layer, step, k, layers),
        [*answer_sees_only(both, k), *no_step_reads_another(both)],
    )  # fmt: skip
    assert measured == planted


def make_latents_constant(model) -> None:
    """A projection whose output does not depend on its input: R carries nothing."""
    last, norm = model.project[3], model.project[4]
    with torch.no_grad():
        last.weight.zero_()
        norm.weight.zero_()
        norm.bias.copy_(torch.randn(model.d_model, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("k", [1, 3])
def test_where_every_latent_is_constant_an_edit_rises_one_layer_with_each_reading(fresh, contrasts, k):
    make_latents_constant(fresh)
    layers = range(fresh.n_layers)

    def rule(cell, layer, step):
        from_latent_alone = cell.site.kind == "latent" or (cell.site.kind == "kv" and layer == 0)
        if from_latent_alone and cell.source in (other, unrelated, mean):
            return False  # what is written is what stands there
        return upstream_without_R(cell.site.kind, layer, step, k, layers)

    cells = written(every_site(fresh), directions=["denoising"])
    measured, planted = measured_and_planted(fresh, contrasts, cells, rule, answer_sees_only(fresh, k))
    assert measured == planted


def test_where_the_answer_sees_no_thought_the_question_matters_and_the_thought_does_not(both, contrasts):
    hidden = [Edge(None, step) for step in range(both.n_latents)]
    cells = [*written(every_site(both), directions=["noising"]), *make_cells([THOUGHT], [other, unrelated])]
    assert measure(both, contrasts, cells, always=hidden).max() <= EXACT
    knockouts = make_cells([Site("question"), Site("bot")], [other])
    assert measure(both, contrasts, knockouts, always=hidden).min() > EXACT


# Routes: `freeze` removes its edge and nothing else.


def same_frozen_and_open(model, contrasts, sites, route, always=(), sources=(other, noise)):
    """The largest difference that freezing a route makes, and the largest effect with it open."""
    cells = [cell for freeze in ((), (route,)) for cell in written(sites, sources, ["noising"], freeze)]
    open_, frozen = np.split(measure(model, contrasts, cells, projected, always), 2, axis=1)
    return np.abs(open_ - frozen).max(), np.abs(open_).max()


def at_steps(model, *steps: int) -> list[Site]:
    return [site for site in every_site(model) if site.step in steps]


def test_freezing_K_T_changes_nothing_where_no_step_reads_another(both, contrasts):
    sites = [*at_steps(both, 0, 3, 5), Site("kv", 0, 1, 1, 3), Site("resid", step_set=(0, 2, 3))]
    differ, effect = same_frozen_and_open(both, contrasts, sites, "K_T", no_step_reads_another(both))
    assert differ <= EXACT < effect
    assert same_frozen_and_open(both, contrasts, sites, "K_T")[0] > EXACT


@pytest.mark.parametrize("k", [0, 2, 5])
def test_freezing_K_A_changes_nothing_where_the_answer_does_not_see_the_written_step(both, contrasts, k):
    sites = at_steps(both, k)
    differ, effect = same_frozen_and_open(both, contrasts, sites, "K_A", [Edge(None, k)])
    assert differ <= EXACT
    assert (effect > EXACT) == (k < both.n_latents - 1)
    assert same_frozen_and_open(both, contrasts, sites, "K_A")[0] > EXACT


def test_freezing_R_changes_nothing_where_every_latent_is_constant(fresh, contrasts):
    sites = [*at_steps(fresh, 0, 2, 5), Site("kv", 0, 1, 1, 3), Site("resid", step_set=(0, 2, 3))]
    assert same_frozen_and_open(fresh, contrasts, sites, "R")[0] > EXACT
    make_latents_constant(fresh)
    differ, effect = same_frozen_and_open(fresh, contrasts, sites, "R", sources=[other, unrelated, mean])
    assert differ <= EXACT < effect
    single = [site for site in sites if site.step is not None and site.step == site.step_last]
    differ, effect = same_frozen_and_open(fresh, contrasts, single, "R", sources=[zero, noise])
    assert differ <= EXACT < effect


@pytest.mark.parametrize("k", [0, 2, 5])
def test_an_edit_whose_only_open_route_is_knocked_out_changes_nothing(both, fresh, contrasts, k):
    sites = at_steps(both, k)
    alone = {route: [other_route for other_route in ROUTES if other_route != route] for route in ROUTES}
    knockout = {"K_A": [Edge(None, k)], "K_T": [Edge(later, k) for later in range(k + 1, both.n_latents)], "R": []}
    for route in ("K_A", "K_T"):
        cells = written(sites, [other, mean, noise], freeze=alone[route])
        assert measure(both, contrasts, cells, always=knockout[route]).max() <= EXACT
    make_latents_constant(fresh)
    assert measure(fresh, contrasts, written(sites, [other, noise], freeze=alone["R"])).max() <= EXACT
    last = k == both.n_latents - 1
    for route in ROUTES:  # uncut, it is open, though after the last step only to the answer
        opened = measure(both, contrasts, written(sites, [other], freeze=alone[route])).max()
        assert (opened > EXACT) == (route == "K_A" or not last)


def test_from_the_last_layer_the_only_route_is_R_and_a_cache_entry_has_no_R(both, contrasts):
    top = both.n_layers - 1
    highest = [site for site in every_site(both) if site.kind in BLOCK_KINDS and site.layer == top]
    assert measure(both, contrasts, written(highest, [other, noise], freeze=["R"])).max() <= EXACT
    for route in ("K_T", "K_A"):
        assert same_frozen_and_open(both, contrasts, highest, route)[0] <= EXACT
    entries = [site for site in every_site(both) if site.kind == "kv"]
    assert same_frozen_and_open(both, contrasts, entries, "R")[0] <= EXACT
    assert measure(both, contrasts, written(entries, freeze=["K_T", "K_A"])).max() <= EXACT


def test_freezing_between_equals_freezing_R_and_K_T_for_single_steps(both, contrasts):
    def with_frozen(sites, *freeze):
        return measure(both, contrasts, written(sites, [other, noise], ["noising"], freeze), projected)

    single = at_steps(both, 0, 2, 4, 5)
    directly = with_frozen(single, "between")
    np.testing.assert_allclose(directly, with_frozen(single, "R", "K_T"), rtol=0, atol=EXACT)
    assert np.abs(directly).max() > EXACT
    assert np.abs(with_frozen(single, "K_A", "between")).max() <= EXACT
    several = [Site("kv", None, None, 1, 3), Site("kv", 1, 1), Site("resid", step_set=(0, 2, 3)), Site("attn")]
    np.testing.assert_allclose(
        with_frozen(several, "R", "K_T"), with_frozen(several, "R", "K_T", "between"), rtol=0, atol=EXACT
    )  # fmt: skip


# Inert parts.


def silence(model, layer: int, columns: slice) -> None:
    """Zero the weights of some inputs of the attention's output projection, LoRA included."""
    names = model.family
    block = getattr(getattr(model.lm._module, names.decoder), names.blocks)[layer]
    projection = getattr(getattr(block, names.attention), names.heads)
    base, lora = projection.base_layer.weight, projection.lora_A["default"].weight
    with torch.no_grad():
        (base[columns] if names.heads == "c_proj" else base[:, columns]).zero_()
        lora[:, columns].zero_()


@pytest.mark.parametrize(("layer", "head"), [(0, 3), (1, 0)])
def test_a_head_that_writes_nothing_is_inert_and_the_others_are_not(fresh, contrasts, layer, head):
    width = fresh.head_width
    silence(fresh, layer, slice(head * width, (head + 1) * width))
    sites = expand(fresh, ["sitewise", "stepwise", "layerwise"], ["head"])
    cells = written(sites, directions=["denoising"])
    changes = measure(fresh, contrasts, cells).max(0)
    never_fed = (fresh.n_layers - 1, fresh.n_latents - 1)
    for cell, change in zip(cells, changes, strict=True):
        inert = (cell.site.layer, cell.site.head) == (layer, head) or cell.site.places(fresh) == {never_fed}
        if cell.site.layer is not None:
            assert (change <= EXACT) == inert, cell


def test_where_no_head_of_a_layer_writes_its_heads_and_entries_do_not_matter(fresh, contrasts):
    silence(fresh, 1, slice(None))
    inert = [site for site in every_site(fresh) if site.layer == 1 and site.kind in ("head", "kv")]
    assert measure(fresh, contrasts, written([*inert, Site("kv", 1, 1)])).max() <= EXACT
    same = [site for site in every_site(fresh) if site.layer == 1 and site.kind == "attn"]
    assert measure(fresh, contrasts, written(same, [other, unrelated, mean])).max() <= EXACT
    alive = [site for site in every_site(fresh) if site.layer == 0 and site.kind in ("head", "kv")]
    assert measure(fresh, contrasts, written(alive)).max(0).min() > EXACT


# Games: the coalitions of a Shapley value.


def game(model, contrasts, freeze=(), always=()) -> dict[frozenset[int], np.ndarray]:
    """The value of every coalition but none, all steps among them, `[pair]`."""
    sites = [*subsets(model), Site("kv")]
    values = measure(model, contrasts, make_cells(sites, [other], ["denoising"], freeze), "logit_difference", always)
    return {frozenset(site.steps(model)): values[:, at] for at, site in enumerate(sites)}


@pytest.mark.parametrize("freeze", [(), ("K_T",)], ids=["total", "K_A only"])
def test_in_both_games_all_steps_equal_the_whole_thought_and_one_step_equals_its_entry(both, contrasts, freeze):
    values = game(both, contrasts, freeze)
    whole = measure(both, contrasts, make_cells([THOUGHT], [other], ["denoising"]), "logit_difference")[:, 0]
    np.testing.assert_allclose(values[frozenset(range(both.n_latents))], whole, rtol=0, atol=EXACT)
    single = measure(
        both, contrasts, make_cells(stepwise(both, "kv"), [other], ["denoising"], freeze), "logit_difference"
    )  # fmt: skip
    for step in range(both.n_latents):
        np.testing.assert_allclose(values[frozenset([step])], single[:, step], rtol=0, atol=EXACT)


@pytest.mark.parametrize("k", [0, 3])
def test_a_step_that_the_answer_does_not_see_is_a_dummy_of_the_K_A_game(both, contrasts, k):
    values = game(both, contrasts, ["K_T"], [Edge(None, k)])
    for chosen, value in values.items():
        if k not in chosen:
            np.testing.assert_allclose(value, values[chosen | {k}], rtol=0, atol=EXACT)
    total = game(both, contrasts, [], [Edge(None, k)])
    if k < both.n_latents - 1:  # later steps still read it
        assert max(np.abs(total[s] - total[s | {k}]).max() for s in total if k not in s) > EXACT


@pytest.mark.parametrize("k", [0, 3])
def test_the_only_step_that_the_answer_sees_alone_decides_the_K_A_game(both, contrasts, k):
    always = answer_sees_only(both, k)
    values = game(both, contrasts, ["K_T"], always)
    host = sweep_cells(
        both, contrasts.ready, make_cells([THOUGHT], [other], ["denoising"]), metrics=["logit_difference"],
        donors=contrasts.donors, always=always,
    )["corrupted"].to_numpy()  # fmt: skip
    for chosen, value in values.items():
        np.testing.assert_allclose(value, values[frozenset([k])] if k in chosen else host, rtol=0, atol=EXACT)
    assert np.abs(values[frozenset([k])] - host).max() > EXACT


def test_entries_of_the_last_layer_do_not_affect_each_other_where_latents_are_constant(fresh, contrasts):
    make_latents_constant(fresh)
    top = fresh.n_layers - 1
    sites = [Site("kv", top, top, step_set=chosen) for chosen in ((0,), (1, 4), (0, 1, 2, 3, 5))]
    assert same_frozen_and_open(fresh, contrasts, sites, "K_T", sources=[other, unrelated])[0] <= EXACT


def test_freezing_any_route_changes_the_effect_of_an_early_edit(both, contrasts):
    early = [Site("latent", None, None, 0, 0)]
    for route in FREEZABLE:
        assert same_frozen_and_open(both, contrasts, early, route)[0] > EXACT
