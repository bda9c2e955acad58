"""A model's size gives the parameters that Hugging Face counts, and the bytes that are loaded."""

import doctest

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

import codi_tracing.configs.model_shapes
import codi_tracing.patching.engine.model_size
from codi_tracing.configs.model_shapes import known_shapes, read_shape
from codi_tracing.patching.engine.model_size import SIZE_FIELDS, size_of_config, size_of_model, size_of_shape
from codi_tracing.traces.model.loading import load_codi
from tests.support.checkpoints import write_random_checkpoint

PARAMETERS = {  # as Hugging Face counts them
    "gpt2": 124_439_808,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b-instruct": 1_235_814_400,
    "llama-3.3-70b": 70_553_706_496,
}


def test_a_shape_has_as_many_parameters_as_its_base():
    assert {name: size_of_shape(name).base_parameters for name in known_shapes()} == PARAMETERS


@pytest.mark.parametrize("name", PARAMETERS)
def test_transformers_builds_as_many_parameters_from_a_shape(name):
    shape = read_shape(name)
    sizes = {key: getattr(shape, key) for key in SIZE_FIELDS.values() if key != "model_type"}
    if shape.model_type == "gpt2":
        sizes["n_inner"] = sizes.pop("intermediate_size")
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.model_type, **sizes))
    assert sum(p.numel() for p in built.parameters()) == PARAMETERS[name]


def test_the_examples_in_the_docstrings_hold():
    modules = codi_tracing.configs.model_shapes, codi_tracing.patching.engine.model_size
    assert [doctest.testmod(module).failed for module in modules] == [0, 0]


def test_the_shape_of_gpt2_is_the_default_of_transformers():
    assert size_of_config(GPT2Config(), "float32") == size_of_config(read_shape("gpt2"), "float32")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_size_of_a_model_without_weights_has_the_bytes_that_are_loaded_with_them(family, dtype, tmp_path):
    folder = write_random_checkpoint(tmp_path, family=family)
    model, size = load_codi(folder, "cpu", dtype), size_of_model(load_codi(folder, dtype=dtype, remote=True))
    assert size == size_of_model(model)
    tensors = [*model.lm._module.parameters(), *model.project.parameters(), model.bot, model.eot]
    assert size.weight_bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_a_size_is_that_of_the_loaded_model(both):
    size = size_of_model(both)
    assert (size.n_layers, size.d_model, size.n_heads) == (both.n_layers, both.d_model, both.n_heads)
    kv_heads = both.n_heads if both.lm.config.model_type == "gpt2" else both.lm.config.num_key_value_heads
    assert size.kv_width == kv_heads * both.head_width
    assert size.vocab == both.lm.lm_head._module.weight.shape[0]


def test_the_linear_parameters_are_those_of_the_blocks(both):
    layers = [module for block in both.blocks for module in block._module.modules()]
    weights = [module.base_layer.weight for module in layers if hasattr(module, "base_layer")]
    assert size_of_model(both).linear_parameters == sum(weight.numel() for weight in weights)
