"""The shapes of known bases: found by name, by base and by a checkpoint's name."""

import doctest

import pytest

from codi_tracing.configs import model_shapes
from codi_tracing.configs.model_shapes import guessed_shape, known_shapes, read_shape, shape_of_base


def test_the_example_in_the_docstring_holds():
    assert doctest.testmod(model_shapes).failed == 0


def test_every_shape_is_found_by_each_of_its_bases():
    for name in known_shapes():
        assert [shape_of_base(base) for base in read_shape(name).bases] == [name] * len(read_shape(name).bases)
    assert shape_of_base("somebody/else") is None


def test_an_unknown_shape_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="shape 'gpt3' is unknown; use gpt2, llama-3.1-8b, llama-3.2-1b-instruct, llama"
    ):
        read_shape("gpt3")


@pytest.mark.parametrize(
    ("checkpoint", "shape"),
    [("codi-llama1b", "llama-3.2-1b-instruct"), ("CODI-GPT2", "gpt2"), ("codi-11b", None), ("gpt2-or-8b", None)],
)
def test_a_shape_is_guessed_where_the_name_has_one_size(checkpoint, shape):
    assert guessed_shape(checkpoint) == shape
