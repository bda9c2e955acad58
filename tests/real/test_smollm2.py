"""A CODI model over a real language model: 30 layers, grouped heads, tied weights, digits as tokens."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.patching.runs.checks import check_checkpoint
from codi_tracing.traces.convert.convert import convert
from codi_tracing.traces.loop.recording import record
from codi_tracing.traces.loop.tokens import answer_ids, question_ids
from codi_tracing.traces.model.loading import load_codi
from tests.real.bases import needs
from tests.support.upstream import write_over

QUESTIONS = [f"Ann had {n} pens. Ben gave her {k} more. How many pens does Ann have?" for n, k in ((12, 5), (7, 3))]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """Upstream's loop over SmolLM2 with a random LoRA and projection, and the same model converted and loaded."""
    folder, source = tmp_path_factory.mktemp("smollm2"), needs("smollm2")
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    reference = write_over(folder, base, AutoTokenizer.from_pretrained(source), "llama", safetensors=True)
    convert(folder / "codi", folder / "base", folder / "out", alpha=16)
    return reference, load_codi(folder / "out", device="cpu")


def test_the_base_is_a_language_model():
    base = AutoModelForCausalLM.from_pretrained(needs("smollm2"), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(needs("smollm2"))
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(base(ids).logits[0, -1].argmax()) == " Paris"


def test_logits_and_answers_over_it_equal_upstreams_loop(smollm2):
    reference, model = smollm2
    thought = record(model, QUESTIONS, max_new_tokens=6)
    for question, logits, text in zip(QUESTIONS, thought.logits, thought.answers, strict=True):
        ids = question_ids(model, question)
        expected = reference.answer_logits(ids, answer_ids(model))[-1]
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
        said = reference.answer(ids, model.tokenizer.eos_token_id, limit=6)
        assert text == model.tokenizer.decode(said, skip_special_tokens=True)


def test_it_passes_every_invariant(smollm2, pairs):
    model = smollm2[1]
    usable, _ = tokenize_pairs(model, pairs)
    checks = check_checkpoint(model, [p.pair for p in usable[:2]])
    assert [check.name for check in checks if check.grade == "invariant" and not check.passed] == []
