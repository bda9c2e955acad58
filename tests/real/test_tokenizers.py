"""On real tokenizers and real config fields, questions, pairs, lens and answers are what upstream's would be."""

import random
from typing import NamedTuple

import pytest
import torch

from codi_tracing.patching.engine.sweep import sweep_cells
from codi_tracing.patching.interventions.cells import make_cells
from codi_tracing.patching.interventions.sites import THOUGHT, resid
from codi_tracing.patching.interventions.sources import other
from codi_tracing.patching.pairs.pair import Pair, Side
from codi_tracing.patching.pairs.tokenized import tokenize_pairs
from codi_tracing.patching.pairs.verdicts import judge
from codi_tracing.traces.convert.convert import convert
from codi_tracing.traces.evaluate import answers
from codi_tracing.traces.lens import logit_lens, number_tokens
from codi_tracing.traces.loop.recording import record
from codi_tracing.traces.loop.tokens import answer_ids, encode, question_ids
from codi_tracing.traces.model.codi_model import CodiModel
from codi_tracing.traces.model.loading import load_codi
from codi_tracing.traces.model.tokenizer import unknown_words
from codi_tracing.traces.training.word_problems import draw_problems
from tests.real.bases import CONFIGS, write_real
from tests.support.plain import decoder_of, hosts, patched, run_alone, writes_of
from tests.support.upstream import Codi

QUESTIONS = [problem.question for problem in draw_problems(seed=3, count=3)]
NUMBERS = [0, 7, 18, 42, 100, 999, 1000, 1234, 65000, 1234567, -5, 2.5, 0.125, 120000000]
BOS = {"gpt2": None, "llama3": 128000, "qwen3": None, "smollm2": None}  # what the tokenizer puts before a text
EOS = {"gpt2": 50256, "llama3": 128009, "qwen3": 151645, "smollm2": 2}
SEVERAL_TOKENS = {"gpt2": 1234567, "llama3": 1234, "qwen3": 18, "smollm2": 18}  # the least of NUMBERS with a second one


class Real(NamedTuple):
    name: str
    reference: Codi
    model: CodiModel

    def ids(self, text):
        return self.model.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module", params=CONFIGS)
def real(request, tmp_path_factory):
    """A converted random model over a real vocabulary, and upstream's own over the same weights."""
    folder = tmp_path_factory.mktemp(request.param)
    reference = write_real(folder, request.param)
    convert(folder / "codi", folder / "base", folder / "out", alpha=16)
    return Real(request.param, reference, load_codi(folder / "out", device="cpu"))


def test_a_question_has_the_tokenizers_bos_and_no_eos(real):
    bos, eos = BOS[real.name], EOS[real.name]
    for question in QUESTIONS:
        assert question_ids(real.model, question) == [*([] if bos is None else [bos]), *real.ids(question)]
    assert real.model.tokenizer.eos_token_id == eos
    if bos is not None:
        assert question_ids(real.model, real.model.tokenizer.bos_token + QUESTIONS[0]).count(bos) == 1


def test_no_text_has_unknown_words(real):
    for text in (*QUESTIONS, "½ café 🦓 \u2212 <|endoftext|>", "Xerxes\thas\n3 skateboards."):
        assert unknown_words(real.model.tokenizer, text) == []


def test_the_answer_prefix_is_a_prefix_of_every_answer_and_the_answer_is_read_back(real):
    prefix = answer_ids(real.model)
    several = []
    for number in NUMBERS:
        ids = answer_ids(real.model, f" {number}")
        assert ids[: len(prefix)] == prefix
        assert real.model.tokenizer.decode(ids) == f"The answer is: {number}"
        own = [token for token in ids[len(prefix) :] if real.model.tokenizer.decode(token).strip()]
        several += [number] if len(own) > 1 else []
    assert SEVERAL_TOKENS[real.name] in several


def pair_of(pair_id, a, b):
    """A pair whose questions differ in a number, with equally many tokens, and whose answers are given."""
    return Pair(pair_id, str(pair_id), *(Side(f"Ann had {x} pens. How many?", float(y)) for x, y in ((3, a), (5, b))))


def test_every_answer_in_numbers_is_read_where_the_two_first_differ(real):
    drawn = random.Random(0).sample([(a, b) for a in NUMBERS for b in NUMBERS if a != b], 60)
    usable, excluded = tokenize_pairs(real.model, [pair_of(i, a, b) for i, (a, b) in enumerate(drawn)])
    assert excluded == []
    for p in usable:
        for side, tail in zip(p.pair.sides.values(), p.tails, strict=True):
            whole = real.model.tokenizer.decode([*p.forced, *tail])
            assert whole.removesuffix(real.model.tokenizer.eos_token) == f"The answer is: {side.answer:.15g}"
        assert p.clean_token != p.corrupted_token
        assert tuple(answer_ids(real.model))[:3] == p.forced[:3]


def test_pairs_of_equal_token_counts_are_all_usable(real, pairs):
    usable, excluded = tokenize_pairs(real.model, pairs)
    equal = [p for p in pairs if len({len(real.ids(side.question)) for side in p.sides.values()}) == 1]
    assert [p.pair.pair_id for p in usable] == [p.pair_id for p in equal]
    assert all("tokens, expected equal counts" in reason for _, reason in excluded)
    if real.name in ("gpt2", "llama3"):  # whose numbers below 1,000 are one token
        assert len(usable) == 12
    else:
        assert usable


def test_answers_have_a_verdict_for_every_pair(real, pairs):
    verdicts = judge(pairs[:3], real.model)
    assert all(v.answered is not None for v in verdicts)


def test_logits_equal_upstreams_loop_on_each_question_alone(real):
    answer = answer_ids(real.model, " 1234")
    got = record(real.model, QUESTIONS).logits
    for question, logits in zip(QUESTIONS, got, strict=True):
        ids = question_ids(real.model, question)
        expected = real.reference.answer_logits(ids, answer_ids(real.model))[-1]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert encode(real.model, [[question] for question in QUESTIONS]).ids.max() < CONFIGS[real.name]["vocab_size"]
    assert max(answer) < CONFIGS[real.name]["vocab_size"]


def test_greedy_answers_are_those_of_upstream(real):
    eos = real.model.tokenizer.eos_token_id
    for question, text in zip(QUESTIONS, answers(real.model, QUESTIONS, max_new_tokens=12), strict=True):
        said = real.reference.answer(question_ids(real.model, question), eos)
        assert text == real.model.tokenizer.decode(
            said[: said.index(eos)] if eos in said else said, skip_special_tokens=True
        )


def test_the_lens_knows_the_tokens_of_a_number(real):
    numbers = number_tokens(real.model)
    words = {real.model.tokenizer.decode(token).strip() for token in numbers[7.0]}
    assert "7" in words
    assert {float(word) for word in words} == {7.0}
    assert (18.0 in numbers) == (real.name in ("gpt2", "llama3"))
    found = logit_lens(real.model, QUESTIONS[:1], [[7.0]], top=3)
    decoder = decoder_of(real.model)
    state = record(real.model, QUESTIONS[:1]).resid[0, 1, -1]
    norm = decoder.ln_f if real.name == "gpt2" else decoder.norm
    with torch.no_grad():
        logits = real.model.lm._module.lm_head(norm(state))
    best = max(float(logits[token]) for token in numbers[7.0])
    assert found.ranks[0, 0, -1, -1] == 1 + int((logits > best).sum())
    assert found.tokens[0, -1, -1, 0] == logits.argmax()


def test_decoding_changes_no_blanks(real):
    assert real.model.tokenizer.decode(real.ids("7 , 5 . 3 's")) == "7 , 5 . 3 's"


def test_a_patched_number_equals_one_run_at_a_time(real, pairs):
    ready, _ = tokenize_pairs(real.model, pairs)
    table = sweep_cells(real.model, ready[:2], make_cells([resid(1), THOUGHT], [other]), metrics=["logit_difference"])
    for p in ready[:2]:
        host, source = hosts(p, "denoising")
        donor = run_alone(real.model, source, p.forced)
        site = resid(1)
        done = run_alone(real.model, host, p.forced, writes_of(real.model, site, donor))
        expected = float(done.logits[p.clean_token] - done.logits[p.corrupted_token])
        got = patched(table, p, kind="resid", direction="denoising")
        assert got == pytest.approx(expected, abs=2e-4)
