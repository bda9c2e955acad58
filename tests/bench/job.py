"""The job that every variant does: a grid of denoising patches on pairs, read as logit differences."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from codi_tracing.patching.interventions.sites import Site, layerwise, sitewise
from codi_tracing.patching.pairs.tokenized import TokenizedPair
from codi_tracing.traces.lora_merge import merge_lora
from codi_tracing.traces.model.checkpoint import ADAPTER, base_location
from codi_tracing.traces.model.codi_model import CodiModel

MOST_TOKENS = 12  # of a greedy answer


class Plain(NamedTuple):
    """The same model without nnsight, its LoRA merged into the weights."""

    causal_lm: Any
    project: nn.Module
    bot: Tensor
    eot: Tensor
    n_latents: int

    @property
    def decoder(self) -> Any:
        return self.causal_lm.model

    @property
    def embed(self) -> nn.Module:
        return self.causal_lm.model.embed_tokens


class Found(NamedTuple):
    """What a cell gave: its logit difference, and its decoded number where it was asked for."""

    difference: float
    answer: float | None = None


@dataclass(frozen=True)
class Job:
    """Model, pairs and grid. Clean values are written into the corrupted run; a site names the layer and the step."""

    model: CodiModel
    plain: Plain
    ready: list[TokenizedPair]
    sites: list[Site]

    @property
    def cells(self) -> int:
        return len(self.ready) * len(self.sites)

    @property
    def device(self) -> torch.device:
        return self.model.device


def job_of(model: CodiModel, ready: list[TokenizedPair]) -> Job:
    """The grid of all layers × (all steps, each step). LoRA is merged, so that all variants do the same products."""
    model, merge = merge_lora(model, [p.pair.clean.question for p in ready[:4]])
    assert merge.merged, f"merging LoRA changes a logit by {merge.largest_change:.1e}, so that variants would differ"
    assert model.card.remove_eos, "the benchmark knows thoughts that EoT alone ends"
    return Job(model, plain_of(model), ready, [*layerwise(model), *sitewise(model)])


def plain_of(model: CodiModel) -> Plain:
    """Load the checkpoint once more, as plain PyTorch, and merge its LoRA."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(base_location(model.folder, model.card), dtype=model.dtype)
    adapted = PeftModel.from_pretrained(base.to(model.device), model.folder / ADAPTER)
    merged = adapted.merge_and_unload().eval().requires_grad_(False)
    return Plain(merged, model.project, model.bot, model.eot, model.n_latents)


def steps_of(job: Job, site: Site) -> Sequence[int]:
    """The steps that a site is written at."""
    return site.steps(job.model)


def sample(job: Job, pairs: int, cells: int, seed: int = 0) -> list[tuple[int, int]]:
    """Random cells of random pairs, `(pair, cell)`: what is run where all would take too long."""
    rng = random.Random(seed)
    chosen = sorted(rng.sample(range(len(job.ready)), min(pairs, len(job.ready))))
    each = min(-(-cells // len(chosen)), len(job.sites))
    return [(pair, cell) for pair in chosen for cell in sorted(rng.sample(range(len(job.sites)), each))]
