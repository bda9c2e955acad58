"""Fixtures: small random CODI checkpoints, written and loaded exactly as real ones are."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).parents[1]


def write_random_checkpoint(
    folder: Path, layers: int = 3, seed: int = 0, n_latents: int = 6, family: str = "llama"
) -> Path:
    """A CODI checkpoint with random base, LoRA (B not zero) and projection; Llama's with grouped-query attention."""
    import torch
    from peft import LoraConfig, get_peft_model

    from codi_tracing.traces.model.checkpoint import Card, new_projection, write_checkpoint
    from codi_tracing.traces.model.families import FAMILIES
    from codi_tracing.traces.training.word_problems import build_tokenizer
    from tests.support.upstream import random_base

    tokenizer = build_tokenizer()
    base = random_base(family, len(tokenizer), layers=layers, tied=family == "gpt2", seed=seed)
    base.config.bos_token_id, base.config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    targets = list(FAMILIES[family].adapted)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2")
    adapted = get_peft_model(base, lora)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    card = Card(base="base", n_latents=n_latents)
    write_checkpoint(folder, adapted, new_projection(32, 48), torch.randn(32), torch.randn(32), card)
    return folder


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("random_codi"))


@pytest.fixture(scope="session")
def model(random_checkpoint):
    """A random CODI model of three layers."""
    from codi_tracing.traces.model.loading import load_codi

    return load_codi(random_checkpoint, device="cpu")


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def both(request, tmp_path_factory):
    """A random model of each family."""
    from codi_tracing.traces.model.loading import load_codi

    folder = write_random_checkpoint(tmp_path_factory.mktemp("both"), family=request.param)
    return load_codi(folder, device="cpu")


@pytest.fixture(scope="session")
def problems():
    """Word problems of different lengths."""
    from codi_tracing.traces.training.word_problems import draw_problems

    return draw_problems(seed=5, count=6)


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory) -> Path:
    """Twelve clean/corrupted pairs, three of each of four templates, as `codi pairs arithmetic` writes them."""
    import random

    from codi_tracing.analysis.io.atomic import write_json
    from codi_tracing.patching.pair_making.arithmetic import as_records, draw_pair

    rng, records = random.Random(2), []
    for pair_id in range(12):
        records += as_records(pair_id, *draw_pair(rng))
    path = tmp_path_factory.mktemp("pairs") / "pairs.json"
    write_json(path, records)
    return path


@pytest.fixture(scope="session")
def pairs(pairs_file):
    from codi_tracing.patching.pairs.pair import load_pairs

    return load_pairs(pairs_file)
