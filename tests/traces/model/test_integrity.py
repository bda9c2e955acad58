"""Files that disagree with their config, or lack or exceed what it names, are refused whatever their format."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from codi_tracing.traces.model.checkpoint import CheckpointError
from codi_tracing.traces.model.loading import load_codi
from tests.support.checkpoints import write_random_checkpoint

FORMATS = ("safetensors", "shards", "bin", "legacy bin", "bin shards")


@pytest.fixture
def folder(random_checkpoint, tmp_path):
    return shutil.copytree(random_checkpoint, tmp_path / "copy")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder, format, change=lambda tensors: tensors, name="model"):
    """Store a folder's weights in a format, after a change."""
    whole = folder / f"{name}.safetensors"
    tensors = change(load_file(whole))
    whole.unlink()
    stem = "pytorch_model" if name == "model" else name
    if format == "safetensors":
        save_file(tensors, whole, metadata={"format": "pt"})
    elif "shards" not in format:
        torch.save(tensors, folder / f"{stem}.bin", _use_new_zipfile_serialization=format == "bin")
    else:
        names, ending = sorted(tensors), "bin" if "bin" in format else "safetensors"
        stem = stem if "bin" in format else name
        halves = {f"{stem}-0000{i + 1}-of-00002.{ending}": names[i::2] for i in (0, 1)}
        for file, half in halves.items():
            part = {key: tensors[key] for key in half}
            torch.save(part, folder / file) if "bin" in format else save_file(part, folder / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {key: file for file, half in halves.items() for key in half}}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


def without(name):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def refusal(folder):
    with pytest.raises(CheckpointError) as error:
        load_codi(folder, device="cpu")
    return str(error.value)


# The base.


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_weights_load_from_every_format(folder, model, format):
    rewrite(folder / "base", format)
    ours = load_codi(folder, device="cpu").lm._module.state_dict()
    for name, tensor in model.lm._module.state_dict().items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_base_that_lacks_a_tensor_is_refused_and_not_initialised_at_random(folder, name, format):
    rewrite(folder / "base", format, without(name))
    assert f"its files lack {name}, which its config requires" in refusal(folder)


@pytest.mark.parametrize("format", FORMATS)
def test_a_base_with_a_tensor_that_fits_nowhere_is_refused_and_not_cut(folder, format):
    rewrite(
        folder / "base", format, lambda tensors: tensors | {"model.layers.3.mlp.up_proj.weight": torch.ones(64, 32)}
    )
    assert "its files hold model.layers.3.mlp.up_proj.weight, which fits nowhere in the model of its config" in refusal(
        folder
    )


def test_a_base_without_any_tensor_is_refused(folder):
    rewrite(folder / "base", "bin", lambda tensors: {})
    assert "its config has 3 layers, its files 0 tensors" in refusal(folder)
    (folder / "base" / "pytorch_model.bin").unlink()
    assert "has no weights here (model.safetensors or pytorch_model.bin)" in refusal(folder)


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_a_tied_base_needs_one_matrix_and_refuses_two(tmp_path, format):
    folder = write_random_checkpoint(tmp_path / "tied", family="gpt2")
    table = "transformer.wte.weight"
    rewrite(folder / "base", format, lambda tensors: tensors | {"lm_head.weight": tensors[table].clone()})
    load_codi(folder, device="cpu")
    folder = write_random_checkpoint(tmp_path / "two", family="gpt2")
    rewrite(folder / "base", format, lambda tensors: tensors | {"lm_head.weight": tensors[table] + 1})
    assert "its LM head differs from its embedding, and its config has one matrix for both" in refusal(folder)


def test_a_base_in_whole_numbers_or_quantised_is_refused(folder):
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(folder / "base", "safetensors", lambda tensors: tensors | {name: tensors[name].to(torch.int8)})
    assert f"{name} holds" in refusal(folder)
    edit_json(
        folder / "base" / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
    )
    assert "its weights are quantised, expected float32" in refusal(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_base_with_nan_or_infinity_is_refused(folder, value):
    name = "model.norm.weight"
    rewrite(folder / "base", "safetensors", lambda tensors: tensors | {name: tensors[name] * value})
    assert f"{name} holds NaN or infinity in float32" in refusal(folder)


def test_a_base_whose_weights_overflow_in_the_chosen_precision_is_refused(folder):
    name = "model.norm.weight"
    rewrite(folder / "base", "safetensors", lambda tensors: tensors | {name: tensors[name] * 1e6})
    load_codi(folder, device="cpu")
    with pytest.raises(CheckpointError, match="holds NaN or infinity in float16"):
        load_codi(folder, device="cpu", dtype="float16")


def test_an_adapter_in_place_of_a_base_is_refused_and_not_followed_to_its_own_base(folder):
    shutil.copy(folder / "adapter" / "adapter_config.json", folder / "base")
    assert "is an adapter over another base (adapter_config.json), expected a whole model" in refusal(folder)


def test_an_index_that_names_other_files_or_none_is_refused(folder):
    rewrite(folder / "base", "shards")
    index = folder / "base" / "model.safetensors.index.json"
    for text in ('{"weight_map": {"x": "../../etc/passwd"}}', '{"weight_map": {}}', "[]", "{"):
        index.write_text(text)
        assert "is no index of shards" in refusal(folder)
    index.write_text('{"weight_map": {"x": "model-00007.safetensors"}}')
    assert "its file model-00007.safetensors is missing" in refusal(folder)


@pytest.mark.parametrize("size", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"])
def test_a_base_whose_config_names_larger_tensors_than_its_files_hold_is_refused_before_it_is_built(folder, size):
    edit_json(folder / "base" / "config.json", **{size: 10**7})
    assert any(part in refusal(folder) for part in ("its config requires", "its config has"))


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_depend_on_the_longest_question_of_a_batch_are_refused(folder, kind):
    scaling = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
    scaling |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if kind == "longrope" else {}
    edit_json(folder / "base" / "config.json", rope_parameters=scaling)
    assert f"its rotary positions are of type '{kind}', which change with the longest question" in refusal(folder)


# The adapter.


@pytest.mark.parametrize("format", ["safetensors", "bin"])
@pytest.mark.parametrize("dropped", ["layers.1.self_attn.q_proj.lora_B", "layers.2"])
def test_an_adapter_that_lacks_a_matrix_is_refused_and_not_left_at_zero(folder, dropped, format):
    adapter = folder / "adapter"
    rewrite(adapter, format, lambda t: {n: x for n, x in t.items() if dropped not in n}, "adapter_model")
    assert "tensors that its config requires are missing; it is incomplete (the first is model.layers." in refusal(
        folder
    )


def test_an_adapter_in_a_pickle_is_the_same_adapter(folder, model):
    rewrite(folder / "adapter", "bin", name="adapter_model")
    ours = load_codi(folder, device="cpu").lm._module.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in model.lm._module.state_dict().items())


def test_an_adapter_of_another_base_is_refused(folder, tmp_path):
    for layers, sentence in ((2, "tensors that its config requires are missing"), (4, "of its tensors fit no layer")):
        other = write_random_checkpoint(tmp_path / str(layers), layers=layers)
        shutil.rmtree(folder / "adapter")
        shutil.copytree(other / "adapter", folder / "adapter")
        assert f"14 {sentence}" in refusal(folder)


@pytest.mark.parametrize(
    ("option", "cause"),
    [
        ({"use_dora": True}, "'use_dora' is True, expected a plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save' is ['lm_head'], expected a plain LoRA"),
        ({"bias": "lora_only"}, "'bias' is 'lora_only', expected a plain LoRA"),
        ({"lora_bias": True}, "'lora_bias' is True"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "'layer_replication' is [[0, 2], [1, 3]]"),
        ({"trainable_token_indices": [1, 2]}, "'trainable_token_indices' is [1, 2]"),
        ({"init_lora_weights": "pissa"}, "'init_lora_weights' is 'pissa'"),
        ({"an_option_of_a_later_version": 3}, "'an_option_of_a_later_version' is 3"),
        ({"r": 10**7}, "asks for the rank 10000000, its file has 4"),
        ({"peft_type": "LOHA"}, "is not the config of a LoRA"),
        ({"target_modules": ["nothing"]}, "fits no layer of its base"),
    ],
)
def test_an_adapter_that_is_no_plain_lora_is_refused_with_the_cause(folder, option, cause):
    edit_json(folder / "adapter" / "adapter_config.json", **option)
    assert cause in refusal(folder)


@pytest.mark.parametrize(
    ("tensors", "cause"),
    [
        ({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)}, "adapts lm_head, expected only q_proj"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 9)}, "adapts model.embed_tokens"),
        ({"base_model.model.lm_head.weight": torch.zeros(4, 32)}, "holds base_model.model.lm_head.weight, which is no"),
        (
            {"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.zeros(4, 32)},
            "1 of its tensors fit no layer",
        ),
    ],
)
def test_an_adapter_with_tensors_beyond_a_lora_of_the_blocks_is_refused_with_the_cause(folder, tensors, cause):
    rewrite(folder / "adapter", "safetensors", lambda stored: stored | tensors, "adapter_model")
    assert cause in refusal(folder)


def test_an_adapter_with_nan_is_refused_with_the_cause(folder):
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    rewrite(folder / "adapter", "safetensors", lambda t: t | {name: t[name] * torch.nan}, "adapter_model")
    assert f"{name} holds NaN or infinity: its training diverged" in refusal(folder)


def test_an_adapter_without_weights_is_refused(folder):
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    assert "adapter: holds neither adapter_model.safetensors nor adapter_model.bin" in refusal(folder)
