"""CODI's self-distillation in plain PyTorch: the student's latent loop, and the loss (arXiv 2502.21074).

One model is teacher and student. The teacher reads question, written chain and answer; the student reads the question,
thinks `n_latents` latent steps and answers. The loss is the student's cross-entropy on the answer, the teacher's on
chain and answer, and the smooth-L1 distance between their hidden states at the answer prefix's last token, at
every layer, divided by the teacher's standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from codi_tracing.traces.training.batches import IGNORED, TrainingBatch


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """Each LoRA layer's weight with its adapter added, differentiable: W + scaling * B A."""
    merged = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            adapter = next(iter(module.lora_A))
            delta = module.lora_B[adapter].weight @ module.lora_A[adapter].weight
            merged[f"{name}.base_layer.weight"] = module.base_layer.weight + module.scaling[adapter] * delta
    return merged


@dataclass
class Thinker:
    """A CODI model in training: decoder with merged weights, projection and the two special vectors."""

    decoder: Any
    weights: dict[str, Tensor]
    project: nn.Module
    bot: Tensor
    eot: Tensor
    n_latents: int

    def run(self, **inputs):
        return functional_call(self.decoder, self.weights, (), inputs)

    def think(self, question: Tensor, mask: Tensor):
        """The latent loop in plain PyTorch: cache, mask over it, last position, outputs `[pair, step, d_model]`."""
        embeds = self.decoder.embed_tokens(question)
        embeds = torch.cat([embeds[:, :-1], self.bot.expand(len(question), 1, -1)], 1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = self.run(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=True)
        latent, cache, last = self.project(out.last_hidden_state[:, -1:]), out.past_key_values, positions[:, -1:]
        outputs = []
        for _ in range(self.n_latents):
            mask, last = torch.cat([mask, torch.ones_like(mask[:, :1])], 1), last + 1
            out = self.run(
                inputs_embeds=latent, attention_mask=mask, position_ids=last, past_key_values=cache, use_cache=True
            )
            outputs.append(out.last_hidden_state[:, -1])
            latent = self.project(out.last_hidden_state)
        return cache, mask, last, torch.stack(outputs, 1)

    def answer(self, answer: Tensor, cache, mask: Tensor, last: Tensor, hidden: Tensor):
        """The teacher-forced answer phase; rows in `hidden` (bool `[pair]`) do not see question and BoT.

        Padding stands on the right, where no token of the answer sees it.
        """
        embeds = self.decoder.embed_tokens(answer)
        embeds = torch.cat([self.eot.expand(len(answer), 1, -1), embeds[:, 1:]], 1)
        width, past = answer.shape[1], mask.shape[1]
        seen = mask.bool().clone()
        seen[:, : past - self.n_latents] &= ~hidden[:, None]
        causal = torch.ones(width, width, dtype=torch.bool).tril().expand(len(answer), width, width)
        allowed = torch.cat([seen[:, None].expand(-1, width, -1), causal], -1)[:, None]
        bias = torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)
        positions = last + 1 + torch.arange(width)
        return self.run(
            inputs_embeds=embeds,
            attention_mask=bias,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )


def codi_loss(
    thinker: Thinker, head: nn.Module, batch: TrainingBatch, hidden: Tensor, distill_weight: float, decode_weight: float
) -> tuple[Tensor, dict]:
    """The loss (three terms of CODI, and the decoding term if it has weight), and the figures to report."""
    teacher = thinker.run(input_ids=batch.teacher, attention_mask=batch.teacher_mask, output_hidden_states=True)
    teacher_loss = next_token_loss(head(teacher.last_hidden_state), batch.teacher_labels)

    cache, mask, last, outputs = thinker.think(batch.question, batch.question_mask)
    student = thinker.answer(batch.answer, cache, mask, last, hidden)
    logits = head(student.last_hidden_state)
    student_loss = next_token_loss(logits, batch.answer_labels)

    pairs, distances = torch.arange(len(batch.answer)), []
    for student_state, teacher_state in zip(student.hidden_states[1:], teacher.hidden_states[1:], strict=True):
        target = teacher_state[pairs, batch.teacher_colon].detach()
        distances.append(F.smooth_l1_loss(student_state[pairs, batch.answer_colon], target) / target.std())
    distill_loss = torch.stack(distances).mean()

    loss = student_loss + teacher_loss + distill_weight * distill_loss
    figures = {
        "student": student_loss.item(),
        "teacher": teacher_loss.item(),
        "distill": distill_loss.item(),
        "accuracy": answer_accuracy(logits, batch.answer_labels, batch.answer_colon),
    }
    if decode_weight > 0:
        decoded = head(outputs)
        decode_loss = F.cross_entropy(decoded.flatten(0, 1), batch.steps.flatten())
        loss = loss + decode_weight * decode_loss
        figures["decode"] = decode_loss.item()
        figures["decoded"] = (decoded.argmax(-1) == batch.steps).float().mean().item()
    return loss, figures


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits `[pair, token, vocab]` at each position against the label of the next."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def answer_accuracy(logits: Tensor, labels: Tensor, colon: Tensor) -> float:
    """Share of rows whose every token after the answer prefix is predicted, EOS included."""
    later = torch.arange(labels.shape[1] - 1) >= colon[:, None]
    counted = later & (labels[:, 1:] != IGNORED)
    return ((logits[:, :-1].argmax(-1) == labels[:, 1:]) | ~counted).all(-1).float().mean().item()
