"""Merging LoRA into the base changes numbers only by rounding; otherwise LoRA stays apart."""

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from codi_tracing.patching.engine.sweep import sweep
from codi_tracing.patching.interventions.sites import sitewise
from codi_tracing.traces import lora_merge as merge
from codi_tracing.traces.lora_merge import answer_logits, merge_lora
from codi_tracing.traces.model.loading import load_codi
from tests.support.checkpoints import write_random_checkpoint


@pytest.fixture(params=["llama", "gpt2"])
def folder(request, tmp_path):
    return write_random_checkpoint(tmp_path / "own", family=request.param)


def layers(model):
    return [module for module in model.lm._module.modules() if isinstance(module, BaseTunerLayer)]


def test_a_sweep_is_the_same_with_lora_merged(folder, pairs):
    apart = load_codi(folder, device="cpu")
    table = sweep(apart, pairs[:2], sites=sitewise(apart))
    merged, found = merge_lora(load_codi(folder, device="cpu"), [pair.clean.question for pair in pairs])
    assert found.merged
    assert found.largest_change <= 1e-5
    assert all(layer.merged for layer in layers(merged))
    again = sweep(merged, pairs[:2], sites=sitewise(merged))
    assert (table["patched"] - again["patched"]).abs().max() < 1e-4


def test_the_reported_change_is_the_largest_change_of_a_logit(folder, pairs):
    questions = [pair.clean.question for pair in pairs]
    model = load_codi(folder, device="cpu", dtype="bfloat16")
    before = answer_logits(model, questions)
    merged, found = merge_lora(model, questions)
    assert found.largest_change == float((answer_logits(merged, questions) - before).abs().max()) > 0


def test_lora_stays_apart_if_merging_changes_too_much(folder, pairs, monkeypatch):
    monkeypatch.setitem(merge.ALLOWED, torch.float32, 0)
    questions = [pair.clean.question for pair in pairs]
    before = answer_logits(load_codi(folder, device="cpu"), questions)
    model, found = merge_lora(load_codi(folder, device="cpu"), questions)
    assert not found.merged
    assert not any(layer.merged for layer in layers(model))
    assert (answer_logits(model, questions) == before).all()
