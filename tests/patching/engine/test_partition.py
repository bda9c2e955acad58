"""Block and batch sizes are estimated before the model runs."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codi_tracing.patching.engine import partition as budget
from codi_tracing.patching.engine.partition import GIB, Shape, Work, block_bytes, choose, shape_of
from codi_tracing.traces.model.loading import load_codi

SHAPE = Shape(n_layers=16, d_model=2048, d_mlp=8192, kv_width=512, n_heads=32, vocab=128256, bytes_each=2)
WORK = Work(pairs=66, questions=3, tokens=70, cells=240, steps=6, answer=6, new_tokens=12)


def test_the_example_in_the_docstring_holds():
    assert doctest.testmod(budget).failed == 0


@given(memory=st.floats(0.01, 64), pairs=st.integers(1, 500), cells=st.integers(1, 5000), tokens=st.integers(5, 2000))
def test_chosen_sizes_fit_or_cannot_be_smaller(memory, pairs, cells, tokens):
    work = WORK._replace(pairs=pairs, cells=cells, tokens=tokens)
    sizes = choose(SHAPE, work, memory)
    assert 1 <= sizes.pairs_per_batch <= pairs
    assert 1 <= sizes.cells_per_forward <= cells
    fits = block_bytes(SHAPE, work, sizes.pairs_per_batch, sizes.cells_per_forward) <= memory * GIB
    assert fits or (sizes.pairs_per_batch, sizes.cells_per_forward) == (1, 1)


def test_less_memory_never_means_more_at_once():
    chosen = [choose(SHAPE, WORK, memory) for memory in (64, 8, 4, 2, 1, 0.5, 0.1)]
    at_once = [sizes.pairs_per_batch * sizes.cells_per_forward for sizes in chosen]
    assert at_once == sorted(at_once, reverse=True)
    assert at_once[0] > at_once[-1]


def test_given_sizes_are_kept_despite_the_estimate():
    assert choose(SHAPE, WORK, 0.01, cells_per_forward=100, pairs_per_batch=20)[:2] == (20, 100)
    assert choose(SHAPE, WORK, 8, cells_per_forward=7).cells_per_forward == 7


def test_cells_are_divided_evenly_among_the_fewest_blocks():
    sizes = choose(SHAPE, WORK._replace(cells=budget.CELLS + 2), 64)
    assert sizes.cells_per_forward == budget.CELLS // 2 + 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_shape_is_read_off_the_models_config(family, both):
    shape = shape_of(both.lm.config, 4)
    assert (shape.n_layers, shape.d_model) == (both.n_layers, both.d_model)
    cache = both.n_heads if both.lm.config.model_type == "gpt2" else both.lm.config.num_key_value_heads
    assert shape.kv_width == cache * both.head_width
    assert shape.vocab == both.lm.lm_head._module.weight.shape[0]


def test_the_products_of_a_gated_block_are_its_parameters():
    model = load_codi("traces/embedded/thought", device="cpu")
    block = model.blocks[0]._module
    base = sum(p.numel() for name, p in block.named_parameters() if "base_layer" in name)
    assert shape_of(model.lm.config, 4).block_products == base * model.n_layers
