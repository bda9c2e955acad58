"""Train a CODI model: a small base with explicit chain of thought, then self-distillation into latent steps.

`distillation` has CODI's loss. Base and token embeddings are frozen. There are two departures from CODI, both off in
the plain recipe (`bypass`) and declared in `codi.json`: `hide_question` hides question and BoT from the answer phase in
that share of the training examples, so that the answer has to come through the thought; `decode_weight` adds a
cross-entropy on each step's intermediate result, decoded from the step's output, and falls to zero by `decode_until` of
the training.

Training needs no nnsight: it runs in plain PyTorch with LoRA merged into the weights once a step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from codi_tracing.configs.train_schema import Architecture, Codi, Optimiser, TrainConfig
from codi_tracing.traces.model.checkpoint import (
    ADAPTER,
    CARD,
    Card,
    new_projection,
    read_card,
    read_projection,
    write_checkpoint,
)
from codi_tracing.traces.model.families import FAMILIES
from codi_tracing.traces.model.integrity import check_lora
from codi_tracing.traces.model.loading import open_base
from codi_tracing.traces.model.refusals import refusing
from codi_tracing.traces.training.batches import ANSWER_PREFIX, LONGEST_CHAIN, BatchSampler, longest_chain
from codi_tracing.traces.training.distillation import (
    Thinker,
    answer_accuracy,
    codi_loss,
    merged_weights,
    next_token_loss,
)
from codi_tracing.traces.training.word_problems import build_tokenizer

Report = Callable[[int, dict], None]


class DivergedError(ArithmeticError):
    """The loss or its gradient is no longer a finite number."""


def train(config: TrainConfig, report: Report, fresh: bool = False) -> None:
    """Train a base (config table `[architecture]`) or a CODI model over one (`[codi]`).

    What was trained before in the folder is replaced only with `fresh`, and then not before there is something new.
    Raises `DivergedError`, and then leaves the files that were written before as they are.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    if not fresh and (before := [name for name in (CARD, "config.json") if (config.out / name).exists()]):
        raise ValueError(
            f"{config.out}: holds a trained model ({before[0]}); --fresh replaces it, or choose another --out"
        )
    with TemporaryFile(dir=config.out):
        pass  # a folder that cannot be written is refused now, not after the training
    with seeded(config):
        if config.architecture is not None:
            train_base(config, config.architecture, report)
        elif config.codi is not None and config.base is not None:
            train_codi(config, config.codi, config.base, report)


@contextmanager
def seeded(config: TrainConfig) -> Iterator[None]:
    """The config's seed and CPU threads; afterwards the process has its own again."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def train_base(config: TrainConfig, shape: Architecture, report: Report) -> None:
    """Train the base on question, written chain and answer, and save it with its tokenizer."""
    tokenizer = build_tokenizer()
    sampler = BatchSampler(tokenizer, LONGEST_CHAIN + 2, config.seed, terse=shape.terse)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.d_model,
            intermediate_size=shape.d_mlp,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )

    def loss_of(step: int) -> tuple[Tensor, dict]:
        batch = sampler.batch(config.optimiser.batch)
        logits = base(input_ids=batch.teacher, attention_mask=batch.teacher_mask).logits
        accuracy = answer_accuracy(logits, batch.teacher_labels, batch.teacher_colon)
        return next_token_loss(logits, batch.teacher_labels), {"accuracy": accuracy}

    optimise(list(base.parameters()), config.optimiser, loss_of, report)
    marker = config.out / "config.json"  # written last: without it, the folder holds no base
    marker.unlink(missing_ok=True)
    with TemporaryDirectory(dir=config.out, prefix=".") as temporary:
        base.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for path in sorted(Path(temporary).iterdir(), key=lambda path: path.name == marker.name):
            path.replace(config.out / path.name)


class CodiParts(NamedTuple):
    """The parts that CODI adds to a base: LoRA and projection, which are trained, and the special vectors."""

    adapted: Any  # PEFT model over the frozen base
    project: nn.Sequential
    bot: Tensor
    eot: Tensor


def initial_parts(base: LlamaForCausalLM, settings: Codi) -> CodiParts:
    """New LoRA, projection and special vectors, or those of the checkpoint `settings.start`."""
    from peft import LoraConfig, PeftModel, get_peft_model

    rows = cast(nn.Embedding, base.get_input_embeddings()).weight.detach()
    if settings.start is not None:
        with refusing("the checkpoint to start from,", str(settings.start)):
            adapted = PeftModel.from_pretrained(base, settings.start / ADAPTER, is_trainable=True)
        return CodiParts(adapted, *read_projection(settings.start, rows.shape[1]))
    targets = list(FAMILIES["llama"].adapted)
    lora = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, lora)
    scale = rows.pow(2).mean().sqrt().item()
    bot, eot = (torch.randn(rows.shape[1]) * scale for _ in range(2))
    project = new_projection(rows.shape[1], settings.prj_dim)
    # Without this, latents are ten times as large as token embeddings.
    nn.init.constant_(cast(nn.LayerNorm, project[-1]).weight, scale)
    return CodiParts(adapted, project, bot, eot)


def train_codi(config: TrainConfig, settings: Codi, base_folder: Path, report: Report) -> None:
    """Self-distil a CODI model over the frozen base in `base_folder` and save its checkpoint folder."""
    opened = open_base("the base", str(base_folder))
    if opened.config.model_type != "llama":
        kind = opened.config.model_type
        raise ValueError(f"{base_folder}: is a base of family {kind!r}; only 'llama' can be trained")
    sampler = BatchSampler(opened.tokenizer, settings.n_latents, config.seed + 1)
    chance = torch.Generator().manual_seed(config.seed)
    base: Any = LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.float32)  # in eval mode: nothing drops out
    if settings.start is not None:
        check_lora(settings.start / ADAPTER, opened.meta, opened.family)
    parts = initial_parts(base, settings)
    parts.adapted.base_model.disable_adapter_layers()  # LoRA acts through `merged_weights`
    lora = [parameter for name, parameter in parts.adapted.named_parameters() if "lora_" in name]
    trained = [parameter.requires_grad_(True) for parameter in (*lora, *parts.project.parameters())]
    card = Card(
        base=os.path.relpath(base_folder, config.out),
        n_latents=settings.n_latents,
        answer_prefix=ANSWER_PREFIX,
        provenance=provenance(config),
    )
    size, steps = config.optimiser.batch, config.optimiser.steps

    def loss_of(step: int) -> tuple[Tensor, dict]:
        batch = sampler.batch(size, longest_chain(step / steps, settings.curriculum))
        weights = merged_weights(base.model)
        thinker = Thinker(base.model, weights, parts.project, parts.bot, parts.eot, settings.n_latents)
        hidden = torch.rand(size, generator=chance) < settings.hide_question
        decode = settings.decode_weight * max(0.0, 1 - step / max(1, settings.decode_until * steps))
        return codi_loss(thinker, base.lm_head, batch, hidden, settings.distill_weight, decode)

    def save(step: int, figures: dict) -> None:
        report(step, figures)
        if (step > 0 and step % 500 == 0) or step == steps - 1:
            made = {**card.provenance, "steps_made": step + 1}
            write_checkpoint(config.out, *parts, replace(card, provenance=made))

    optimise(trained, config.optimiser, loss_of, save)


def schedule(step: int, steps: int, warmup: int = 100) -> float:
    """Linear warm-up, then cosine decay to 2 % of the learning rate."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def optimise(
    parameters: list[Any], settings: Optimiser, loss_of: Callable[[int], tuple[Tensor, dict]], report: Report
) -> None:
    """AdamW with `schedule` and gradients clipped at norm 1; `loss_of(step)` returns the loss and figures to report.

    Raises `DivergedError` before a step that would make the parameters NaN.
    """
    optimiser = torch.optim.AdamW(parameters, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * schedule(step, settings.steps)
        loss, figures = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        if not (loss.isfinite() and norm.isfinite()):
            what = f"the loss is {loss.item():g} and its gradient's norm {norm.item():g}, expected finite numbers"
            raise DivergedError(f"step {step}: {what}; lower optimiser.lr, which is {settings.lr:g}")
        optimiser.step()
        if step % 50 == 0 or step == settings.steps - 1:
            report(step, {"loss": loss.item(), **figures})


def provenance(config: TrainConfig) -> dict:
    """The recipe for `codi.json`, with that of the checkpoint from which training continued."""
    recipe = config.model_dump(
        mode="json", exclude={"out": True, "base": True, "threads": True, "codi": {"start"}}, exclude_none=True
    )
    record = {"made_by": "codi train", "task": "arithmetic word problems (traces/training/word_problems.py)", **recipe}
    if config.codi is not None and config.codi.start is not None:
        record["continued_from"] = read_card(config.codi.start).provenance
    return record
