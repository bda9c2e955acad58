"""CODI's loss: a batch's is that of its examples one at a time, without padding, masks or merged weights."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, LlamaForCausalLM

from codi_tracing.configs.train_schema import Codi
from codi_tracing.traces.training.batches import IGNORED, BatchSampler
from codi_tracing.traces.training.distillation import Thinker, answer_accuracy, codi_loss, merged_weights
from codi_tracing.traces.training.train import initial_parts
from codi_tracing.traces.training.word_problems import chain_text, draw_problems, results
from tests.support.places import ROOT
from tests.support.tokenizers import write_base

STEPS = 6


def batched_loss(base, parts, batch, hidden):
    """The loss and its figures, with LoRA in the merged weights."""
    parts.adapted.base_model.disable_adapter_layers()
    thinker = Thinker(base.model, merged_weights(base.model), parts.project, parts.bot, parts.eot, STEPS)
    loss = codi_loss(thinker, base.lm_head, batch, hidden, 3.0, 1.0)
    parts.adapted.base_model.enable_adapter_layers()
    return loss


class Alone:
    """One example: the losses of its tokens, its states at the colon, and its decoded steps."""

    def __init__(self, base, parts, tokenizer, problem):
        def ids(text, special=False):
            return tokenizer(text, add_special_tokens=special)["input_ids"]

        question = ids(problem.question, special=True)
        answer = [*ids(f"The answer is: {problem.answer}"), tokenizer.eos_token_id]
        colon = max(i for i, token in enumerate(answer) if tokenizer.decode([token]).strip() == ":")
        written = torch.tensor([[*question, *ids(chain_text(problem)), *answer]])
        out = base(input_ids=written, output_hidden_states=True)
        self.teacher = F.cross_entropy(
            out.logits[0, len(question) - 1 : -1], written[0, len(question) :], reduction="none"
        )
        at = written.shape[1] - len(answer) + colon
        self.teacher_states = [state[0, at] for state in out.hidden_states[1:]]

        embed, outputs = base.model.embed_tokens, []
        embeds = torch.cat([embed(torch.tensor([question])), parts.bot.expand(1, 1, -1)], 1)
        out = base(inputs_embeds=embeds, use_cache=True, output_hidden_states=True)
        for _ in range(STEPS):
            latent, cache = parts.project(out.hidden_states[-1][:, -1:]), out.past_key_values
            out = base(inputs_embeds=latent, past_key_values=cache, use_cache=True, output_hidden_states=True)
            outputs.append(out.logits[0, -1])
        told = torch.tensor([answer])
        embeds = torch.cat([parts.eot.expand(1, 1, -1), embed(told)], 1)
        out = base(inputs_embeds=embeds, past_key_values=out.past_key_values, use_cache=True, output_hidden_states=True)
        self.student = F.cross_entropy(out.logits[0, :-1], told[0], reduction="none")
        self.student_states = [state[0, 1 + colon] for state in out.hidden_states[1:]]
        self.right = bool((out.logits[0, 1 + colon : -1].argmax(-1) == told[0, colon + 1 :]).all())

        targets = []
        for number in results(problem):
            texts = [(token, tokenizer.decode([token])) for token in ids(f": {number}")]
            targets.append(next(token for token, text in texts if any(map(str.isdigit, text))))
        targets += [tokenizer.eos_token_id] * (STEPS - len(targets))
        self.decode = F.cross_entropy(torch.stack(outputs), torch.tensor(targets), reduction="none")


@torch.no_grad()
def test_a_batchs_loss_is_that_of_its_examples_one_at_a_time(multi_token, tmp_path):
    torch.manual_seed(1)
    base = LlamaForCausalLM.from_pretrained(write_base(tmp_path, multi_token))
    parts = initial_parts(base, Codi(rank=4, prj_dim=16))
    for name, parameter in parts.adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    problems = draw_problems(4, 8)
    batch = BatchSampler(multi_token, STEPS, seed=0).encode(problems)
    loss, figures = batched_loss(base, parts, batch, torch.zeros(8, dtype=torch.bool))

    examples = [Alone(base, parts, multi_token, problem) for problem in problems]
    student, teacher, decode = (
        torch.cat([getattr(e, part) for e in examples]).mean() for part in ("student", "teacher", "decode")
    )
    distances = []
    for layer in range(2):
        states = torch.stack([e.student_states[layer] for e in examples])
        targets = torch.stack([e.teacher_states[layer] for e in examples])
        distances.append(F.smooth_l1_loss(states, targets) / targets.std())
    distill = sum(distances) / len(distances)
    losses = {"student": student, "teacher": teacher, "distill": distill, "decode": decode}
    expected = {name: value.item() for name, value in losses.items()}
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert figures["accuracy"] == sum(e.right for e in examples) / 8
    assert loss.item() == pytest.approx((student + teacher + 3 * distill + decode).item(), abs=1e-4)


@torch.no_grad()
def test_the_shipped_recipes_loss_is_what_it_was():
    embedded = ROOT / "traces" / "embedded"
    base = LlamaForCausalLM.from_pretrained(embedded / "base")
    parts = initial_parts(base, Codi(start=embedded / "thought"))
    sampler = BatchSampler(AutoTokenizer.from_pretrained(embedded / "base"), STEPS, seed=1, terse=0.5)
    loss, figures = batched_loss(base, parts, sampler.batch(16), torch.arange(16) % 2 == 0)
    assert loss.item() == pytest.approx(6.184663, abs=1e-4)
    measured = [figures[name] for name in ("student", "teacher", "distill", "decode", "accuracy", "decoded")]
    assert measured == pytest.approx([0.010034, 5.557687, 0.141642, 0.192015, 1, 23 / 24], abs=1e-4)


def test_an_answer_is_right_if_every_token_after_the_colon_is_and_its_end_too():
    labels = torch.tensor([[IGNORED, 5, 1, 8, 2, IGNORED]]).expand(4, -1)
    said = torch.tensor([[0, 1, 8, 2, 7, 7], [5, 1, 9, 2, 7, 7], [5, 1, 8, 3, 7, 7], [5, 2, 8, 2, 7, 7]])
    logits = F.one_hot(said, 10).float()
    for row, right in enumerate((1.0, 0.0, 0.0, 0.0)):
        assert answer_accuracy(logits[row : row + 1], labels[:1], torch.tensor([1])) == right
    assert answer_accuracy(logits, labels, torch.full((4,), 1)) == 0.25
