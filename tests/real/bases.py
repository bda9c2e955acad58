"""Bases with the config fields and the whole vocabulary of published models, of two layers and random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.real.fetch import FOLDER
from tests.support.upstream import Codi, write_over

SMALL_LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
               "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": False, "hidden_act": "silu",
         "attention_dropout": 0.0, "mlp_bias": False, "pretraining_tp": 1, "tie_word_embeddings": True,
         "use_cache": True}  # fmt: skip
# The fields of the published configs, but for the sizes of the layers and the precision. Qwen3's own blocks are not
# supported: its vocabulary stands over Llama's.
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new",
        "attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1, "bos_token_id": 50256, "eos_token_id": 50256,
        "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_positions": 1024, "vocab_size": 50257, "n_embd": 32,
        "n_layer": 2, "n_head": 4, "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    },
    "llama3": LLAMA | SMALL_LLAMA | {
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "vocab_size": 128256,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    },
    "qwen3": LLAMA | SMALL_LLAMA | {
        "bos_token_id": 151643, "eos_token_id": 151645, "max_position_embeddings": 40960, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000, "rope_scaling": None, "sliding_window": None, "use_sliding_window": False,
        "max_window_layers": 28, "vocab_size": 151936,
    },
    "smollm2": LLAMA | SMALL_LLAMA | {
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05, "rope_theta": 100000, "rope_scaling": None, "vocab_size": 49152,
    },
}  # fmt: skip


def needs(name: str) -> Path:
    """The folder of a real tokenizer or model; the test is skipped where it was not fetched."""
    if not (FOLDER / name).is_dir():
        pytest.skip(f"{name} is not in {FOLDER}; fetch it with: make real")
    return FOLDER / name


def family_of(name: str) -> str:
    return "gpt2" if name == "gpt2" else "llama"


def write_real(folder: Path, name: str, answers: Sequence[str] = ()) -> Codi:
    """Write `folder/base` and a random CODI over it in upstream's layout, `folder/codi`; returns the reference model.

    The model's answers are mostly one of the tokens `answers`: these have long orthogonal embeddings, and EOS has
    their sum, which is likeliest after each of them.
    """
    tokenizer = AutoTokenizer.from_pretrained(needs(name))
    torch.manual_seed(0)
    config = AutoConfig.for_model(**CONFIGS[name], initializer_range=0.1)
    base = AutoModelForCausalLM.from_config(config).eval()
    if answers:
        rows = base.get_input_embeddings().weight.data
        said = torch.tensor([tokenizer(token, add_special_tokens=False)["input_ids"] for token in answers])[:, 0]
        rows[said] = 5 * torch.linalg.qr(torch.randn(rows.shape[1], len(said))).Q.T
        rows[tokenizer.eos_token_id] = 1.3 * rows[said].sum(0)
    return write_over(folder, base, tokenizer, family_of(name))
