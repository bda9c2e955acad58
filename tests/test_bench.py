"""The benchmark measures the same numbers by every variant, on a model so small that nothing is timed by it."""

import pytest

from patching.cells import prepare
from tests.bench.floor import work_of
from tests.bench.growth import slope
from tests.bench.job import job_of
from tests.bench.timing import measure
from tests.bench.variants import Blocks, decoding_variants, differences, grid_variants, other_answers, some_cells
from traces import load_codi
from traces.merge import merge_lora


@pytest.fixture(scope="module")
def job(random_checkpoint, pairs):
    model, _ = merge_lora(load_codi(random_checkpoint, device="cpu"), [pairs[0].clean.question])
    return job_of(model, prepare(model, pairs[:2])[0])


def test_every_variant_of_the_benchmark_gives_the_same_numbers(job):
    variants = grid_variants(job, some_cells(job, 12), Blocks(cells=8))
    measure(variants, repeats=1)
    assert [variant.name for variant in variants] == ["a", "a'", "b", "c", "d"]
    assert max(differences(variants).values()) <= 1e-5
    assert all(variant.seconds > 0 for variant in variants)


def test_decoding_one_by_one_and_ours_say_the_same(job):
    variants = decoding_variants(job, some_cells(job, 12), Blocks())
    measure(variants, repeats=1)
    assert other_answers(variants) == 0


def test_the_floor_counts_less_where_cells_begin_late(job):
    all_steps, late = work_of(job), work_of(job, late=True)
    assert late.total < all_steps.total
    assert (late.question, late.answer, late.lm_head) == (all_steps.question, all_steps.answer, all_steps.lm_head)


def test_the_slope_of_a_line_is_one_and_of_a_square_two():
    assert slope([1, 2, 4, 8], [3, 6, 12, 24]) == pytest.approx(1)
    assert slope([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)
