"""A config that disagrees with the tensors in its files is refused before the model is built."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from codi_tracing.traces.model.checkpoint import CheckpointError
from codi_tracing.traces.model.loading import load_codi


@pytest.fixture
def folder(random_checkpoint, tmp_path):
    return shutil.copytree(random_checkpoint, tmp_path / "copy")


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_base_that_lacks_a_tensor_is_refused_and_not_initialised_at_random(folder, name):
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
