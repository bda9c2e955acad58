"""A plan's FLOPs are within 10 % of PyTorch's own count, its bytes within 10 % of what is sent and returned."""

import io
from contextlib import contextmanager

import pytest
import torch
from nnsight.schema.request import RequestModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import codi_tracing.patching.engine.batch
import codi_tracing.traces.loop.thought
from codi_tracing.patching.pairs.pair import load_pairs
from codi_tracing.patching.pairs.selection import select_pairs
from codi_tracing.patching.runs.recipes import RunExecutor, run_recipe
from codi_tracing.traces.lora_merge import merge_lora
from codi_tracing.traces.model.loading import load_codi
from tests.support.planning import EVERY_KIND, SHIPPED, config_of, plan_of


@contextmanager
def flops_by_forward(model):
    """PyTorch's count of each forward, the projection included, with an attention kernel that it can count."""
    module, flops = model.lm._module, []
    forward = module.forward

    def counting(*args, **kwargs):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            result = forward(*args, **kwargs)
        flops.append(counter.get_total_flops())
        return result

    module.forward = counting
    try:
        yield flops
    finally:
        module.forward = forward


class FlopCounter(TorchDispatchMode):
    """PyTorch's count without modules, whose hooks do not allow gradients of a leaf."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if (packet := func._overloadpacket) in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        return result


def model_and_pairs(config):
    """The model as a run has it, LoRA merged or apart, and the pairs that the run chooses."""
    model, pairs = load_codi(config.checkpoint, device="cpu"), load_pairs(config.pairs.file)
    if config.merge_lora:
        model, _ = merge_lora(model, [pair.clean.question for pair in pairs[:4]])
    return model, select_pairs(model, pairs, config)


@pytest.mark.parametrize(
    ("experiment", "others"),
    [
        ("sweep", {"merge_lora": False, "limit": 2, "directions": ("noising",), **EVERY_KIND}),
        ("sweep", {"cells_per_forward": 7, "max_new_tokens": 4, "limit": 2, "sources": ("other", "unrelated")}),
        ("early_stop", {"max_new_tokens": 1}),
        ("influence", {"max_new_tokens": 2, "limit": 2, "directions": ("denoising",)}),
        ("original", {"max_new_tokens": 2, "limit": 2}),
    ],
)
def test_flops_are_within_a_tenth_of_pytorchs_count_and_forwards_are_exact(experiment, others, folder, pairs_file):
    config = config_of(experiment, folder, file=pairs_file, **others)
    model, chosen = model_and_pairs(config)
    with flops_by_forward(model) as flops:
        table = run_recipe(RunExecutor(model, chosen, config))
    noise = "noise" in config.sources and experiment == "sweep"
    means = noise * -(-len(chosen.everyone) // 16) * (model.n_latents + 2)  # forwards that are not planned
    plan = plan_of(config)
    assert len(flops[means:]) == plan.cost.forwards + plan.cost.decoding_forwards
    assert plan.cost.flops == pytest.approx(sum(flops[means:]), rel=0.1)
    assert len(table) == sum(sweep.rows for sweep in plan.sweeps)


def test_flops_of_gradients_are_within_a_tenth_of_pytorchs_count(folder, pairs_file):
    config = config_of("attribution", folder, file=pairs_file, top=1)
    model, chosen = model_and_pairs(config)
    with FlopCounter() as counter, sdpa_kernel(SDPBackend.MATH):
        RunExecutor(model, chosen, config).estimates()
    assert plan_of(config).sweeps[0].cost.flops == pytest.approx(counter.total, rel=0.1)


def test_a_run_with_lora_apart_takes_more_flops_than_with_lora_merged():
    merged, apart, remote = (plan_of(config_of(**others)) for others in ({}, {"merge_lora": False}, {"remote": {}}))
    assert merged.cost.flops < apart.cost.flops == remote.cost.flops


@pytest.mark.parametrize(
    "others",
    [
        {"remote": "local", **EVERY_KIND},
        {"remote": {"host": "local", "cells_per_job": 25}, "cells_per_forward": 10, "grid": ("sitewise",), "limit": 9},
    ],
)
def test_bytes_of_requests_and_results_are_within_a_tenth_of_those_measured(others, monkeypatch):
    config, requests, sent, returned = config_of(directions=("noising",), **others), [], [], []
    serialize, start_blocks = RequestModel.serialize.__func__, codi_tracing.traces.loop.thought.start_blocks

    def measure_request(cls, tracer, compress=False):
        requests.append(len(request := serialize(cls, tracer, compress)))
        return request

    def measure_result(*args, **kwargs):
        started, buffer = start_blocks(*args, **kwargs), io.BytesIO()
        sent.append(requests[-1])
        torch.save(started.result(), buffer)
        returned.append(buffer.tell())
        return started

    monkeypatch.setattr(RequestModel, "serialize", classmethod(measure_request))
    monkeypatch.setattr(codi_tracing.patching.engine.batch, "start_blocks", measure_result)
    model = load_codi(SHIPPED, "cpu", "auto", config.remote)
    run_recipe(RunExecutor(model, select_pairs(model, load_pairs(config.pairs.file), config), config))
    cost = plan_of(config).cost
    assert cost.jobs == len(sent)
    assert (cost.largest_sent, cost.bytes_sent) == pytest.approx((max(sent), sum(sent)), rel=0.1)
    assert (cost.largest_returned, cost.bytes_returned) == pytest.approx((max(returned), sum(returned)), rel=0.1)
