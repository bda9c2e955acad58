"""Batch and block sizes are estimated before the model runs."""

import doctest

from hypothesis import given
from hypothesis import strategies as st

from codi_tracing.patching.engine import partition
from codi_tracing.patching.engine.model_size import size_of_shape
from codi_tracing.patching.engine.partition import CELLS, GIB, Workload, block_bytes, choose

SIZE = size_of_shape("llama-3.2-1b-instruct", "bfloat16")
WORK = Workload(pairs=66, questions=3, tokens=70, cells=240, steps=6, answer=6, new_tokens=12)


def test_the_example_in_the_docstring_holds():
    assert doctest.testmod(partition).failed == 0


@given(memory=st.floats(0.01, 64), pairs=st.integers(1, 500), cells=st.integers(1, 5000), tokens=st.integers(5, 2000))
def test_the_chosen_sizes_fit_or_are_the_smallest(memory, pairs, cells, tokens):
    work = WORK._replace(pairs=pairs, cells=cells, tokens=tokens)
    sizes = choose(SIZE, work, memory)
    assert 1 <= sizes.pairs_per_batch <= pairs
    assert 1 <= sizes.cells_per_forward <= cells
    fits = block_bytes(SIZE, work, sizes.pairs_per_batch, sizes.cells_per_forward) <= memory * GIB
    assert fits or (sizes.pairs_per_batch, sizes.cells_per_forward) == (1, 1)


def test_less_memory_never_means_more_at_once():
    chosen = [choose(SIZE, WORK, memory) for memory in (64, 8, 4, 2, 1, 0.5, 0.1)]
    at_once = [sizes.pairs_per_batch * sizes.cells_per_forward for sizes in chosen]
    assert at_once == sorted(at_once, reverse=True)
    assert at_once[0] > at_once[-1]


def test_the_sizes_of_one_workload_are_these():
    assert choose(SIZE, WORK, 8) == (16, 60, 5.28)
    assert choose(SIZE, WORK, 0.5) == (4, 8, 0.25)


def test_given_sizes_are_kept_whatever_the_estimate():
    assert choose(SIZE, WORK, 0.01, cells_per_forward=100, pairs_per_batch=20)[:2] == (20, 100)
    assert choose(SIZE, WORK, 8, cells_per_forward=7).cells_per_forward == 7


def test_cells_are_divided_evenly_among_the_fewest_blocks():
    sizes = choose(SIZE, WORK._replace(cells=CELLS + 2), 64)
    assert sizes.cells_per_forward == CELLS // 2 + 1
