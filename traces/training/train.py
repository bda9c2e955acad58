"""Train a CODI model: a small base with explicit chain of thought, then self-distillation into latent steps.

The recipe is CODI's (arXiv 2502.21074): one model is teacher and student. The teacher reads question, written chain and
answer; the student reads the question, thinks `n_latents` latent steps and answers. The loss is the student's
cross-entropy on the answer, the teacher's on chain and answer, and a smooth-L1 distance between their hidden states at
the token before the answer, every layer, over the teacher's standard deviation. Base and token embeddings are frozen.

Two departures, both off in the plain recipe (`bypass`) and both declared in `codi.json`:
`hide_question` hides question and BoT from the answer phase in that share of the training examples, so that the answer
has to come through the thought; `decode_weight` adds a cross-entropy that reads each step's intermediate result off
the step's own output, and anneals to zero by `decode_until` of the training.

Training runs in plain PyTorch with LoRA merged into the weights once a step; tracing needs nnsight, training does not.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers import LlamaConfig, LlamaForCausalLM

from codi_tracing.configs.schema import Architecture, Codi, Optimiser, TrainConfig
from codi_tracing.traces.model.checkpoint import ADAPTER, Card, projection, read_card, read_projection, write_checkpoint
from codi_tracing.traces.model.families import FAMILIES
from codi_tracing.traces.training.word_problems import EOS, WordProblem, build_tokenizer, chain_text, draw, results

IGNORED = -100  # the label that cross-entropy skips
PREFIX = "The answer is:"
LONGEST = 4  # steps of a chain
Report = Callable[[int, dict], None]


@dataclass
class Batch:
    """One training batch; ids are long tensors, questions padded on the left and end in a placeholder for BoT."""

    question: Tensor  # [pair, token]
    question_mask: Tensor  # [pair, token]
    answer: Tensor  # [pair, 1 + answer token]: a placeholder for EoT, the prefix, the number, EOS
    teacher: Tensor  # [pair, token]: question, chain and answer in writing, padded on the right
    teacher_mask: Tensor
    teacher_labels: Tensor  # next-token labels on chain and answer
    teacher_colon: Tensor  # [pair]: where the token before the answer's number stands
    steps: Tensor  # [pair, latent step]: token of the intermediate that the step should have computed


class Sampler:
    """Fresh problems forever, tokenised."""

    def __init__(self, tokenizer: Any, n_latents: int, seed: int, terse: float = 0.0):
        self.tokenizer, self.n_latents, self.terse, self.rng = tokenizer, n_latents, terse, random.Random(seed)

    def ids(self, text: str, special: bool = False) -> list[int]:
        return self.tokenizer(text, add_special_tokens=special)["input_ids"]

    def batch(self, size: int, longest: int = LONGEST) -> Batch:
        """`size` fresh problems with chains of at most `longest` steps."""
        problems: list[WordProblem] = []
        while len(problems) < size:
            problem = draw(self.rng)
            if len(problem.values) <= longest:
                problems.append(problem)
        return self.encode(problems)

    def encode(self, problems: list[WordProblem]) -> Batch:
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        questions = [self.ids(p.question, special=True) for p in problems]
        answers = [[*self.ids(f"{PREFIX} {p.answer}"), eos] for p in problems]
        chains = [self.ids(self._chain(p)) for p in problems]
        written = [q + c + a for q, c, a in zip(questions, chains, answers, strict=True)]
        width, longest = max(map(len, questions)), max(map(len, written))
        teacher = torch.tensor([w + [pad] * (longest - len(w)) for w in written])
        labels = teacher.clone()
        for row, (question, whole) in enumerate(zip(questions, written, strict=True)):
            labels[row, : len(question)] = IGNORED
            labels[row, len(whole) :] = IGNORED
        return Batch(
            question=torch.tensor([[pad] * (width - len(q)) + q + [pad] for q in questions]),
            question_mask=torch.tensor([[0] * (width - len(q)) + [1] * (len(q) + 1) for q in questions]),
            answer=torch.tensor([[pad, *a] for a in answers]),
            teacher=teacher,
            teacher_mask=(torch.arange(longest) < torch.tensor([[len(w)] for w in written])).long(),
            teacher_labels=labels,
            teacher_colon=torch.tensor([len(w) - 3 for w in written]),
            steps=torch.tensor([self._step_targets(p) for p in problems]),
        )

    def _chain(self, problem: WordProblem) -> str:
        """The written chain; in the share `terse` of the problems its bare results."""
        return " ".join(map(str, results(problem))) if self.rng.random() < self.terse else chain_text(problem)

    def _step_targets(self, problem: WordProblem) -> list[int]:
        """What each step's output should say: the results in turn, then EOS."""
        said = [*map(str, results(problem)), *[EOS] * self.n_latents][: self.n_latents]
        return list(self.tokenizer.convert_tokens_to_ids(said))


def schedule(step: int, steps: int, warmup: int = 100) -> float:
    """Linear warm-up, then cosine decay to 2 % of the learning rate."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def optimise(
    parameters: list[Any], settings: Optimiser, loss_of: Callable[[int], tuple[Tensor, dict]], report: Report
) -> None:
    """AdamW with `schedule` and gradients clipped at norm 1; `loss_of(step)` gives the loss and what to report."""
    optimiser = torch.optim.AdamW(parameters, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * schedule(step, settings.steps)
        loss, figures = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if step % 50 == 0 or step == settings.steps - 1:
            report(step, {"loss": loss.item(), **figures})


def longest_chain(progress: float, curriculum: float) -> int:
    """The longest chain to draw: two steps in the first half of the curriculum, three in the second, then four."""
    return 2 if progress < curriculum / 2 else 3 if progress < curriculum else LONGEST


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits `[pair, token, vocab]` at each position against the label of the next."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def train(config: TrainConfig, report: Report) -> None:
    """Train what the config describes: a base (`[architecture]`) or a CODI model over one (`[codi]`)."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    if config.architecture is not None:
        train_base(config, config.architecture, report)
    elif config.codi is not None and config.base is not None:
        train_codi(config, config.codi, config.base, report)


def train_base(config: TrainConfig, shape: Architecture, report: Report) -> None:
    """Train the base on question, written chain and answer, and save it with its tokenizer."""
    tokenizer = build_tokenizer()
    sampler = Sampler(tokenizer, LONGEST + 2, config.seed, terse=shape.terse)
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
        numbers = logits[torch.arange(len(logits)), batch.teacher_colon].argmax(-1)
        right = numbers == batch.answer[:, -2]
        return next_token_loss(logits, batch.teacher_labels), {"accuracy": right.float().mean().item()}

    optimise(list(base.parameters()), config.optimiser, loss_of, report)
    base.save_pretrained(config.out)
    tokenizer.save_pretrained(config.out)


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
    """A CODI model in training: decoder, its merged weights, projection and the two special vectors."""

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
        """Teacher-forced answer phase; rows in `hidden` (bool `[pair]`) do not see question and BoT."""
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


class Parts(NamedTuple):
    """A CODI model in the making: the adapted model, and what CODI adds to it."""

    adapted: Any  # PEFT model over the frozen base
    project: nn.Sequential
    bot: Tensor
    eot: Tensor


def begin(base: LlamaForCausalLM, settings: Codi) -> Parts:
    """New LoRA, projection and special vectors, or those of the checkpoint `start` to go on from."""
    from peft import LoraConfig, PeftModel, get_peft_model

    rows = cast(nn.Embedding, base.get_input_embeddings()).weight.detach()
    if settings.start is not None:
        adapted = PeftModel.from_pretrained(base, settings.start / ADAPTER, is_trainable=True)
        return Parts(adapted, *read_projection(settings.start, rows.shape[1]))
    targets = list(FAMILIES["llama"].adapted)
    lora = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, lora)
    loudness = rows.pow(2).mean().sqrt().item()
    bot, eot = (torch.randn(rows.shape[1]) * loudness for _ in range(2))
    project = projection(rows.shape[1], settings.prj_dim)
    nn.init.constant_(cast(nn.LayerNorm, project[-1]).weight, loudness)  # else latents run an order louder than tokens
    return Parts(adapted, project, bot, eot)


def train_codi(config: TrainConfig, settings: Codi, base_folder: Path, report: Report) -> None:
    """Self-distil a CODI model over the frozen base in `base_folder` and save its checkpoint folder."""
    from transformers import AutoTokenizer

    sampler = Sampler(AutoTokenizer.from_pretrained(base_folder), settings.n_latents, config.seed + 1)
    chance = torch.Generator().manual_seed(config.seed)
    base: Any = LlamaForCausalLM.from_pretrained(base_folder)
    parts = begin(base, settings)
    parts.adapted.base_model.disable_adapter_layers()  # it acts through `merged_weights`, computed once a step
    lora = [parameter for name, parameter in parts.adapted.named_parameters() if "lora_" in name]
    trained = [parameter.requires_grad_(True) for parameter in (*lora, *parts.project.parameters())]
    place = os.path.relpath(base_folder, config.out)
    card = Card(base=place, n_latents=settings.n_latents, answer_prefix=PREFIX, provenance=provenance(config))
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
        if step % 500 == 0 or step == steps - 1:
            write_checkpoint(config.out, *parts, card)

    optimise(trained, config.optimiser, loss_of, save)


def codi_loss(
    thinker: Thinker, head: nn.Module, batch: Batch, hidden: Tensor, distill_weight: float, decode_weight: float
) -> tuple[Tensor, dict]:
    """CODI's three terms, and the decoder's where it has weight; with what to report of them."""
    teacher = thinker.run(input_ids=batch.teacher, attention_mask=batch.teacher_mask, output_hidden_states=True)
    teacher_loss = next_token_loss(head(teacher.last_hidden_state), batch.teacher_labels)

    cache, mask, last, outputs = thinker.think(batch.question, batch.question_mask)
    student = thinker.answer(batch.answer, cache, mask, last, hidden)
    logits = head(student.last_hidden_state)
    student_loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.answer[:, 1:].flatten())

    colon = batch.answer.shape[1] - 3  # the token before the number: placeholder, prefix, number, EOS
    pairs, apart = torch.arange(len(batch.answer)), []
    for ours, theirs in zip(student.hidden_states[1:], teacher.hidden_states[1:], strict=True):
        target = theirs[pairs, batch.teacher_colon].detach()
        apart.append(F.smooth_l1_loss(ours[:, colon], target) / target.std())
    distill_loss = torch.stack(apart).mean()

    loss = student_loss + teacher_loss + distill_weight * distill_loss
    figures = {
        "student": student_loss.item(),
        "teacher": teacher_loss.item(),
        "distill": distill_loss.item(),
        "accuracy": (logits[:, colon].argmax(-1) == batch.answer[:, -2]).float().mean().item(),
    }
    if decode_weight > 0:
        said = head(outputs)
        decode_loss = F.cross_entropy(said.flatten(0, 1), batch.steps.flatten())
        loss = loss + decode_weight * decode_loss
        figures["decode"] = decode_loss.item()
        figures["decoded"] = (said.argmax(-1) == batch.steps).float().mean().item()
    return loss, figures


def provenance(config: TrainConfig) -> dict:
    """What `codi.json` keeps of a training: the whole recipe, and that of the checkpoint it went on from."""
    recipe = config.model_dump(
        mode="json", exclude={"out": True, "base": True, "threads": True, "codi": {"start"}}, exclude_none=True
    )
    made = {"made_by": "codi train", "task": "arithmetic word problems (traces/training/word_problems.py)", **recipe}
    if config.codi is not None and config.codi.start is not None:
        made["went_on_from"] = read_card(config.codi.start).provenance
    return made
