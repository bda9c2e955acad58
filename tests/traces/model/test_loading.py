"""A checkpoint loads completely, or is refused in one sentence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from codi_tracing.traces.model.checkpoint import TENSORS, CheckpointError
from codi_tracing.traces.model.loading import load_codi, pick_device
from tests.support.checkpoints import write_random_checkpoint


@pytest.fixture
def folder(random_checkpoint, tmp_path):
    return shutil.copytree(random_checkpoint, tmp_path / "copy")


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


def test_an_adapter_with_an_extra_matrix_is_refused(folder):
    path = folder / "adapter" / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)}, path)
    with pytest.raises(CheckpointError, match=r"adapter' did not attach"):
        load_codi(folder, device="cpu")


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="device 'warp' cannot be used here"):
        pick_device("warp")


def test_an_unknown_dtype_is_refused(folder):
    with pytest.raises(ValueError, match="dtype 'int8' is unknown; use auto, float32"):
        load_codi(folder, dtype="int8")


def test_a_base_with_its_own_code_is_refused_without_asking_at_the_keyboard(folder, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the keyboard"))
    path = folder / "base" / "config.json"
    own_code = {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own_code))
    with pytest.raises(CheckpointError, match="custom code"):
        load_codi(folder, device="cpu")


def test_loaded_values_equal_the_stored_ones(folder):
    model, stored = load_codi(folder, device="cpu"), load_file(folder / TENSORS)
    torch.testing.assert_close(model.bot, stored["bot"])
    torch.testing.assert_close(model.project[4].bias, stored["prj.ln.bias"])
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    torch.testing.assert_close(model.lm._module.model.layers[1].self_attn.q_proj.lora_B["default"].weight, adapter[key])
