"""Small CODI checkpoints with random weights, written as real ones are."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast

from codi_tracing.traces.model.checkpoint import Card, new_projection, write_checkpoint
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.model.families import FAMILIES
from codi_tracing.traces.model.loading import load_codi
from codi_tracing.traces.training.word_problems import EOS, build_tokenizer
from tests.support.upstream import random_base


def write_random_checkpoint(
    folder: Path, layers: int = 3, seed: int = 0, n_latents: int = 6, family: str = "llama"
) -> Path:
    """A CODI checkpoint with random base, LoRA (B not zero) and projection; Llama's with grouped-query attention.

    As in published ones, the LoRA was trained with dropout, and GPT-2's tokenizer has one token for BOS, EOS and
    unknown words, no padding, and puts nothing before a text. A token is a word of the word problems.
    """
    tokenizer = build_tokenizer() if family == "llama" else gpt2_tokenizer()
    base = random_base(family, len(tokenizer), layers=layers, tied=family == "gpt2", seed=seed)
    base.config.bos_token_id, base.config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    targets = list(FAMILIES[family].adapted)
    lora = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.1, target_modules=targets, task_type="CAUSAL_LM",
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    adapted = get_peft_model(base, lora)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    card = Card(base="base", n_latents=n_latents)
    write_checkpoint(folder, adapted, new_projection(32, 48), torch.randn(32), torch.randn(32), card)
    return folder


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the word problems with the special tokens of GPT-2's."""
    from tokenizers import processors

    backend = build_tokenizer().backend_tokenizer
    backend.post_processor = processors.Sequence([])
    backend.model.unk_token = EOS
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=EOS, eos_token=EOS, unk_token=EOS)


def load_loud(folder: Path) -> CodiModel:
    """Load a checkpoint with its LoRA four times as strong: attention is sharp, and effects are well above rounding."""
    model = load_codi(folder, device="cpu")
    for name, parameter in model.lm._module.named_parameters():
        if ".lora_B." in name:
            parameter.data *= 4
    return model
