"""Several draws of an unrelated donor, or of noise: which are drawn, what rows say of them, and what they write."""

import pandas as pd
import pytest
import torch

from codi_tracing.patching.engine.sweep import sweep, sweep_cells
from codi_tracing.patching.engine.writes import normal
from codi_tracing.patching.interventions.cells import Cell, make_cells
from codi_tracing.patching.interventions.sites import QUESTION, THOUGHT, Site
from codi_tracing.patching.interventions.sources import moments, noise, other, unrelated, zero
from codi_tracing.patching.pairs.pair import Pair
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from tests.support.plain import difference, run_alone, writes_of

EXACT = 1e-5
SITES = [Site("resid", 1, 1, 3, 3), Site("kv", 1, 1, 2, 2), THOUGHT]


@pytest.fixture(scope="module")
def many(pairs):
    """Pairs of two lengths, five of each: the same stories told of other numbers, which are other clusters here."""
    from dataclasses import replace

    made: list[Pair] = []
    for index, pair in enumerate((pairs[0], pairs[1])):
        for offset in range(5):
            sides = []
            for side in (pair.clean, pair.corrupted):
                words = [
                    str((int(word.strip(".,?")) + offset) % 100) + word[len(word.strip(".,?")) :]
                    if word.strip(".,?").isdigit()
                    else word
                    for word in side.question.split()
                ]
                sides.append(replace(side, question=" ".join(words), answer=(side.answer + offset) % 100))
            made.append(Pair(f"{index}-{offset}", f"cluster {index}-{offset}", *sides))
    return made


def test_three_draws_are_three_donors_of_equal_length_and_other_clusters(model, many):
    table = sweep(model, many, [THOUGHT], [unrelated], ["noising"], ["logit_difference"], draws=3)
    about = {str(p.pair.pair_id): p for p in tokenize_pairs(model, many)[0]}
    assert len(about) == 10
    for pair_id, rows in table.groupby("pair_id"):
        assert rows["draw"].tolist() == [0, 1, 2]
        assert rows["source_pair"].nunique() == 3
        for donor in rows["source_pair"]:
            mine, theirs = about[pair_id], about[donor]
            assert mine.tokens == theirs.tokens
            assert mine.pair.cluster_id != theirs.pair.cluster_id
            assert theirs.pair.clean.answer not in (mine.pair.clean.answer, mine.pair.corrupted.answer)


def test_the_first_draw_is_that_of_a_sweep_with_one(both, many):
    options = {"sources": [unrelated], "directions": ["denoising"], "metrics": ["logit_difference", "answer"]}
    one = sweep(both, many, SITES, **options)
    three = sweep(both, many, SITES, **options, draws=3)
    first = three[three["draw"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, first, atol=EXACT, rtol=0)


def test_every_draw_equals_one_run_at_a_time_with_its_donor(both, many):
    ready, _ = tokenize_pairs(both, many)
    table = sweep(both, many, [*SITES, QUESTION], [unrelated], ["denoising"], ["logit_difference"], draws=3)
    questions = {str(p.pair.pair_id): p.pair.clean.question for p in ready}
    for p in ready:
        if p.pair not in many[3:7:3]:
            continue
        rows = table[table["pair_id"] == str(p.pair.pair_id)]
        assert len(rows) == 12
        for row in rows.itertuples():
            theirs = run_alone(both, questions[row.source_pair], p.forced)
            (site,) = [site for site in (*SITES, QUESTION) if site.kind == row.kind]
            swapped = {row.kind: theirs} if row.kind in ("thought", "question") else {}
            alone = run_alone(
                both, p.pair.corrupted.question, p.forced, writes_of(both, site, theirs), knockouts=swapped
            )
            assert row.patched == pytest.approx(difference(p, alone), abs=EXACT), (site, row.draw)


def test_a_pair_with_fewer_donors_has_fewer_rows_and_one_without_has_none(both, many):
    few = [*many[:3], many[5]]
    table = sweep(both, few, [THOUGHT], [other, unrelated], ["noising"], ["logit_difference"], draws=4)
    counts = table[table["source"] == "unrelated"].groupby("pair_id").size()
    assert counts.to_dict() == {"0-0": 2, "0-1": 2, "0-2": 2}
    assert (table["source"] == "corrupted").sum() == 4
    assert table.loc[table["source"] == "corrupted", "draw"].isna().all()
    alone = sweep(both, few[:3], [THOUGHT], [unrelated], ["noising"], ["logit_difference"], draws=2)
    together = table[table["source"] == "unrelated"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, together, atol=EXACT, rtol=0)


@pytest.mark.parametrize("value", [noise, moments], ids=lambda value: value.name)
def test_draws_of_a_random_value_differ_are_reproducible_and_begin_with_that_of_one(both, many, value):
    site, options = Site("resid", 1, 1, 2, 2), {"directions": ["noising"], "metrics": ["logit_difference"]}
    three, again = (sweep(both, many[4:6], [site], [value], **options, draws=3) for _ in range(2))
    pd.testing.assert_frame_equal(three, again, atol=EXACT, rtol=0)
    assert three["draw"].tolist() == [0, 1, 2, 0, 1, 2]
    assert three["source_pair"].tolist() == three["pair_id"].tolist()
    for _, rows in three.groupby("pair_id"):
        gaps = (rows["patched"].to_numpy()[:, None] - rows["patched"].to_numpy())[[0, 0, 1], [1, 2, 2]]
        assert abs(gaps).min() > 10 * EXACT
    one = sweep(both, many[4:6], [site], [value], **options)
    assert three.loc[three["draw"] == 0, "patched"].tolist() == pytest.approx(one["patched"].tolist(), abs=EXACT)
    seeded = sweep_cells(
        both,
        tokenize_pairs(both, many[4:6])[0],
        make_cells([site], [value], ["noising"]),
        metrics=options["metrics"],
        seed=1,
    )
    assert (seeded["patched"] - one["patched"]).abs().min() > 10 * EXACT


def test_every_draw_of_noise_equals_one_hooked_run(both, many):
    site = Site("resid", 1, 1, 2, 2)
    table = sweep(both, many[4:5], [site], [noise], ["noising"], ["logit_difference"], draws=3)
    (p,) = tokenize_pairs(both, many[4:5])[0]
    theirs = run_alone(both, p.pair.corrupted.question, p.forced).values["resid", 1, 2]
    for row in table.itertuples():
        drawn = normal([f"0:{p.pair.pair_id}"], ("resid", 1, 2, None), len(theirs), row.draw)[0]
        value = drawn / torch.linalg.vector_norm(drawn) * torch.linalg.vector_norm(theirs)
        alone = run_alone(both, p.pair.clean.question, p.forced, {("resid", 1, 2, None): value})
        assert row.patched == pytest.approx(difference(p, alone), abs=EXACT)


def test_a_source_that_is_not_random_has_one_row_for_any_number_of_draws(model, many):
    cells = make_cells([Site("resid", 1, 1)], [other, unrelated, zero, noise], ["noising"], draws=3)
    assert [(cell.draw, cell.drawn) for cell in cells] == [
        (0, False), (0, True), (1, True), (2, True), (0, False), (0, True), (1, True), (2, True),
    ]  # fmt: skip
    table = sweep_cells(model, tokenize_pairs(model, many[:4])[0], cells, metrics=["logit_difference"])
    assert table.groupby("source").size().to_dict() == {"corrupted": 4, "unrelated": 12, "zero": 4, "noise": 12}
    assert table.loc[table["source"].isin(["corrupted", "zero"]), "draw"].isna().all()


def test_draws_do_not_depend_on_blocks_and_batches(both, many):
    options = {"sources": [unrelated, noise], "directions": ["noising"], "metrics": ["logit_difference"], "draws": 3}
    large = sweep(both, many[3:8], SITES[:1], **options)
    small = sweep(both, many[3:8], SITES[:1], **options, cells_per_forward=1, pairs_per_batch=1)
    pd.testing.assert_frame_equal(large, small, atol=EXACT, rtol=0)


def test_draws_can_be_run_one_by_one(both, many):
    """A later draw alone is that of all together: its donor does not depend on which cells are run."""
    ready, _ = tokenize_pairs(both, many)
    cells = [Cell("noising", unrelated, SITES[0], draw=draw) for draw in range(3)]
    together = sweep_cells(both, ready, cells, metrics=["logit_difference"])
    last = sweep_cells(both, ready, cells[2:], metrics=["logit_difference"])
    kept = together[together["draw"] == 2].reset_index(drop=True)
    pd.testing.assert_frame_equal(last, kept, atol=EXACT, rtol=0)


def test_few_pairs_get_their_unrelated_donors_from_a_larger_pool(model, pairs):
    alone = sweep(model, pairs[:1], [THOUGHT], metrics=["logit_difference"])
    pooled = sweep(model, pairs[:1], [THOUGHT], metrics=["logit_difference"], pool=pairs)
    everyone = sweep(model, pairs, [THOUGHT], metrics=["logit_difference"])
    assert "unrelated" not in set(alone["source"])
    of_the_pair = everyone[everyone["pair_id"] == str(pairs[0].pair_id)].reset_index(drop=True)
    assert "unrelated" in set(pooled["source"])
    pd.testing.assert_frame_equal(pooled, of_the_pair, atol=1e-5)
