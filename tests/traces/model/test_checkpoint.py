"""A checkpoint folder round-trips, and everything that is wrong with one is a sentence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from codi_tracing.traces.model.checkpoint import (
    CARD,
    TENSORS,
    CheckpointError,
    fingerprint,
    new_projection,
    read_card,
    read_projection,
)
from codi_tracing.traces.model.loading import load_codi, pick_device
from tests.conftest import write_random_checkpoint


@pytest.fixture
def folder(random_checkpoint, tmp_path):
    return shutil.copytree(random_checkpoint, tmp_path / "copy")


def edit_card(folder, **changes):
    card = json.loads((folder / CARD).read_text()) | changes
    (folder / CARD).write_text(json.dumps({k: v for k, v in card.items() if v != "delete"}))


def test_the_projection_is_linear_gelu_linear_layernorm():
    project, h = new_projection(8, 12), torch.randn(3, 8)
    a, b, norm = project[1], project[3], project[4]
    inner = torch.nn.functional.gelu(h @ a.weight.T + a.bias) @ b.weight.T + b.bias
    expected = (inner - inner.mean(-1, keepdim=True)) / (inner.var(-1, keepdim=True, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(project(h), expected * norm.weight + norm.bias)


def test_tensors_carry_upstreams_names(folder):
    names = {"prj.1.weight", "prj.1.bias", "prj.3.weight", "prj.3.bias", "prj.ln.weight", "prj.ln.bias", "bot", "eot"}
    assert set(load_file(folder / TENSORS)) == names


def test_what_is_loaded_is_what_was_written(folder):
    model, stored = load_codi(folder, device="cpu"), load_file(folder / TENSORS)
    torch.testing.assert_close(model.bot, stored["bot"])
    torch.testing.assert_close(model.project[4].bias, stored["prj.ln.bias"])
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    torch.testing.assert_close(model.lm._module.model.layers[1].self_attn.q_proj.lora_B["default"].weight, adapter[key])


def test_the_fingerprint_sees_every_byte(folder):
    before = fingerprint(folder)
    edit_card(folder, n_latents=5)
    assert fingerprint(folder) != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_latents": "delete"}, "'n_latents' is None, expected an integer"),
        ({"n_latents": 0}, "'n_latents' is 0, expected 1 or more"),
        ({"n_latents": True}, "'n_latents' is True, expected an integer"),
        ({"remove_eos": "no"}, "'remove_eos' is 'no', expected true or false"),
        ({"answer_prefix": None}, "'answer_prefix' is None, expected text"),
        ({"revision": 3}, "'revision' is 3, expected text or null"),
        ({"base": "a\0b"}, "expected a folder or a Hub id"),
        ({"latents": 6}, "unknown key 'latents'; known are answer_prefix"),
        ({"base": "nowhere/at/all"}, "is not a folder next to it; restore"),
        ({"base": "someone/not-cached"}, "hf download someone/not-cached"),
    ],
)
def test_a_wrong_card_is_one_sentence(folder, changes, message):
    edit_card(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_codi(folder, device="cpu")


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no codi\.json in it, so it is not a CODI checkpoint folder"):
        load_codi(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        read_card(tmp_path / "nothing")


def test_a_card_that_is_not_json_is_refused(folder):
    (folder / CARD).write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_codi(folder)


def test_a_bottomless_card_is_refused(folder):
    (folder / CARD).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_card(folder)


def test_a_missing_tensor_is_named(folder):
    tensors = load_file(folder / TENSORS)
    del tensors["prj.3.weight"]
    save_file(tensors, folder / TENSORS)
    with pytest.raises(CheckpointError, match=r"1 of 8 tensors are missing, the first is prj\.3\.weight"):
        load_codi(folder, device="cpu")


def test_an_unexpected_tensor_is_named(folder):
    save_file({**load_file(folder / TENSORS), "extra": torch.zeros(1)}, folder / TENSORS)
    with pytest.raises(CheckpointError, match="1 unexpected tensors, the first is extra"):
        load_codi(folder, device="cpu")


def test_a_projection_of_another_width_is_refused(folder):
    with pytest.raises(CheckpointError, match=r"has shape \[48, 32\], expected \[48, 64\]; it belongs to another base"):
        read_projection(folder, d_model=64)


@pytest.mark.parametrize("name", [TENSORS, "adapter/adapter_model.safetensors", "base/model.safetensors"])
def test_a_half_written_file_is_one_sentence(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError):
        load_codi(folder, device="cpu")


@pytest.mark.parametrize("name", ["adapter/adapter_config.json", TENSORS, "base/config.json"])
def test_a_missing_file_is_one_sentence(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError):
        load_codi(folder, device="cpu")


def test_an_adapter_of_another_base_is_refused(folder, tmp_path):
    other = write_random_checkpoint(tmp_path / "other", layers=2)
    shutil.rmtree(folder / "adapter")
    shutil.copytree(other / "adapter", folder / "adapter")
    with pytest.raises(CheckpointError):
        load_codi(folder, device="cpu")


@pytest.mark.parametrize("dropped", ["layers.1.self_attn.q_proj.lora_B", "layers.2"])
def test_an_adapter_that_lacks_a_matrix_is_refused_and_not_left_at_zero(folder, dropped):
    path = folder / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if dropped not in name}, path)
    with pytest.raises(CheckpointError, match=r"adapter' did not attach"):
        load_codi(folder, device="cpu")


def test_an_adapter_with_a_matrix_too_many_is_refused(folder):
    path = folder / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)}, path)
    with pytest.raises(CheckpointError, match=r"adapter' did not attach"):
        load_codi(folder, device="cpu")


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="device 'warp' cannot be used here"):
        pick_device("warp")


def test_an_unknown_dtype_is_refused(folder):
    with pytest.raises(ValueError, match="dtype 'int8' is unknown; use auto, float32"):
        load_codi(folder, dtype="int8")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_base_that_lacks_a_tensor_is_refused_and_not_drawn_at_random(folder, name):
    path = folder / "base" / "model.safetensors"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"its files lack {name}, which its config requires"):
        load_codi(folder, device="cpu")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("size", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"])
def test_a_base_whose_config_names_larger_tensors_than_its_files_hold_is_refused_before_it_is_built(folder, size):
    edit_json(folder / "base" / "config.json", **{size: 10**7})
    with pytest.raises(CheckpointError, match=r"its config (requires|has)"):
        load_codi(folder, device="cpu")


def test_an_adapter_whose_config_asks_for_another_rank_is_refused_before_it_is_built(folder):
    edit_json(folder / "adapter" / "adapter_config.json", r=10**7)
    with pytest.raises(CheckpointError, match="asks for the rank 10000000, its file has 4"):
        load_codi(folder, device="cpu")


def test_a_projection_that_claims_endless_sizes_without_a_byte_is_refused(folder):
    empty = torch.empty(2**40, 0)
    save_file({**load_file(folder / TENSORS), "prj.1.weight": empty}, folder / TENSORS)
    with pytest.raises(CheckpointError, match="has shape"):
        read_projection(folder, d_model=32)


def test_a_base_that_brings_its_own_code_is_refused_and_nobody_is_asked(folder, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the keyboard"))
    edit_json(folder / "base" / "config.json", model_type="own", auto_map={"AutoConfig": "code.Config"})
    with pytest.raises(CheckpointError, match="custom code"):
        load_codi(folder, device="cpu")
