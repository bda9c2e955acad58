"""The benchmark's variants give the same numbers. Nothing is timed here."""

import pytest

from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.traces.model.loading import load_codi
from tests.bench.floor import work_of
from tests.bench.growth import exponent, points_of, some
from tests.bench.job import job_of
from tests.bench.report import goals, rows_of, table
from tests.bench.sizes import made_up, words
from tests.bench.timing import measure
from tests.bench.variants import (
    Blocks,
    decoding_variants,
    differences,
    grid_variants,
    other_answers,
    some_cells,
    spread,
)


@pytest.fixture(scope="module")
def job(random_checkpoint, pairs):
    model = load_codi(random_checkpoint, device="cpu")  # its LoRA will be merged
    ready, _ = tokenize_pairs(model, pairs)
    ready = sorted(ready, key=lambda p: p.tokens)
    return job_of(model, [ready[0], ready[-1]])  # of different length, so that one is padded


@pytest.mark.parametrize("blocks", [Blocks(), Blocks(pairs=1, cells=5, ours=(("cells_per_forward", 7),))])
def test_every_variant_gives_the_same_numbers(job, blocks):
    variants = grid_variants(job, some_cells(job, 12), blocks)
    measure(variants, 0)
    assert spread(variants[-1].numbers) > 1e-2, "the patches do nothing, so that agreeing means nothing"
    assert max(differences(variants).values()) < 1e-5


def test_every_variant_decodes_the_same_answers(job):
    variants = decoding_variants(job, some_cells(job, 6), Blocks())
    measure(variants, 0)
    assert max(differences(variants).values()) < 1e-5
    assert other_answers(variants) == 0


def test_the_table_has_every_variant_and_the_floor_is_the_smallest(job):
    variants = grid_variants(job, some_cells(job, 2), Blocks())
    for seconds, variant in enumerate(variants, 2):
        variant.taken = [float(seconds)]
    rows = rows_of(variants, job.cells, {"floor": 1.0})
    assert [row["to_floor"] for row in rows] == [2.0, 3.0, 4.0, 5.0, 6.0, 1.0]
    assert all(row["what"] in table(rows, job.cells) for row in rows)
    assert [reached.endswith("not reached") for reached in goals(rows, gpu=True).values()] == [True, True, True]


def test_a_cell_that_is_written_late_takes_fewer_products(job):
    early, late = work_of(job), work_of(job, late=True)
    assert late.thought < early.thought
    assert late.attention < early.attention
    assert late._replace(thought=0, attention=0) == early._replace(thought=0, attention=0)


def test_made_up_pairs_have_equal_token_counts_near_the_given_number(model):
    for tokens in (30, 60, 120, 240):
        made = made_up(4, tokens)
        assert len(tokenize_pairs(model, made)[0]) == 4
        assert all(abs(words(side.question) - tokens) <= 10 for pair in made for side in (pair.clean, pair.corrupted))


def test_growth_is_measured_within_the_models_limits_and_fitted_by_a_power(model):
    assert len({*some(model, 50)}) == 50
    assert [point.cells for point in points_of(model, True)["cells"]] == [7, 14, 28, 56, 112, 224]
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
