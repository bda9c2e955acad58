"""A checkpoint folder is read as written, and every fault of a folder is one sentence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from codi_tracing.traces.model.checkpoint import (
    CARD,
    TENSORS,
    CheckpointError,
    new_projection,
    read_card,
    read_projection,
)
from codi_tracing.traces.model.loading import load_codi


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


def test_tensors_have_upstreams_names(folder):
    names = {"prj.1.weight", "prj.1.bias", "prj.3.weight", "prj.3.bias", "prj.ln.weight", "prj.ln.bias", "bot", "eot"}
    assert set(load_file(folder / TENSORS)) == names


def test_a_folder_of_version_1_loads_as_the_same_model(folder, model):
    edit_card(folder, version="delete")
    (folder / TENSORS).rename(folder / "thought.safetensors")
    loaded = load_codi(folder, device="cpu")
    torch.testing.assert_close((loaded.bot, loaded.eot), (model.bot, model.eot))
    torch.testing.assert_close(loaded.project.state_dict(), model.project.state_dict())
    assert "thought.safetensors" in loaded.describe()["files"]


def test_the_new_file_is_read_where_both_are_there(folder, model):
    shutil.copy(folder / TENSORS, folder / "thought.safetensors")
    tensors = load_file(folder / TENSORS)
    save_file({**tensors, "bot": tensors["bot"] + 1}, folder / TENSORS)
    torch.testing.assert_close(load_codi(folder, device="cpu").bot, model.bot + 1)


@pytest.mark.parametrize("version", [0, 3, "2", True, None])
def test_another_version_is_refused(folder, version):
    edit_card(folder, version=version)
    with pytest.raises(CheckpointError, match=f"'version' is {version!r}, expected 1 or 2; update codi-tracing"):
        read_card(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_latents": "delete"}, "'n_latents' is None, expected an integer"),
        ({"n_latents": 0}, "'n_latents' is 0, expected 1 to 1,024"),
        ({"n_latents": True}, "'n_latents' is True, expected an integer"),
        ({"remove_eos": "no"}, "'remove_eos' is 'no', expected true or false"),
        ({"answer_prefix": None}, "'answer_prefix' is None, expected text"),
        ({"revision": 3}, "'revision' is 3, expected text or null"),
        ({"base": "a\0b"}, "expected a folder or a Hub id"),
        ({"latents": 6}, "unknown key 'latents'; known: answer_prefix"),
        ({"base": "nowhere/at/all"}, "is not a folder next to it; restore"),
        ({"base": "someone/not-cached"}, "hf download someone/not-cached"),
    ],
)
def test_each_fault_of_a_card_is_one_sentence(folder, changes, message):
    edit_card(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_codi(folder, device="cpu")


def test_a_folder_without_a_card_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no codi\.json in it, so it is not a CODI checkpoint folder"):
        load_codi(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        read_card(tmp_path / "nothing")


def test_a_card_that_is_not_json_is_refused(folder):
    (folder / CARD).write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_codi(folder)


def test_a_card_nested_too_deeply_is_refused(folder):
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


def test_a_projection_of_huge_size_without_data_is_refused(folder):
    empty = torch.empty(2**40, 0)
    save_file({**load_file(folder / TENSORS), "prj.1.weight": empty}, folder / TENSORS)
    with pytest.raises(CheckpointError, match="has shape"):
        read_projection(folder, d_model=32)


def test_a_byte_order_mark_in_the_card_and_in_the_adapters_config_changes_nothing(folder, model):
    for path in (folder / CARD, folder / "adapter" / "adapter_config.json"):
        path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert read_card(folder) == model.card
    assert load_codi(folder, device="cpu").loaded == model.loaded


@pytest.mark.parametrize("name", [CARD, "adapter/adapter_config.json"])
def test_a_key_that_a_json_file_has_twice_is_refused(folder, name):
    text = (folder / name).read_text().rstrip().removesuffix("}")
    (folder / name).write_text(f'{text}, "x": {{"r": 1, "r": 2}}}}')
    with pytest.raises(CheckpointError, match=f"{name}: an object has the key 'r' twice; drop one; restore the file"):
        load_codi(folder, device="cpu")
