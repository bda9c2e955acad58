"""The lens against plain PyTorch: tokens of states, ranks of numbers, attention."""

import pytest
import torch

from codi_tracing.traces.lens import answer_beginning, ask, attention_of, eager, logit_lens, number_of, number_tokens
from codi_tracing.traces.loop.recording import record
from codi_tracing.traces.loop.tokens import question_ids

EXACT = 1e-5


@torch.no_grad()
def plain(model, question: str):
    """One question alone through transformers: hidden states, attentions and latents of BoT and of every step."""
    causal_lm = model.lm._module
    embed, decoder = causal_lm.get_input_embeddings(), getattr(causal_lm, model.family.decoder)
    embeds = torch.cat([embed(torch.tensor([question_ids(model, question)])), model.bot[None, None]], 1)
    cache, runs = None, []
    options = {"use_cache": True, "output_hidden_states": True, "output_attentions": True}
    for _ in range(model.n_latents + 1):
        out = decoder(inputs_embeds=embeds, past_key_values=cache, **options)
        runs.append((embeds[0, -1], out))
        cache, embeds = out.past_key_values, model.project(out.last_hidden_state[:, -1:])
    forced = torch.cat([model.eot[None, None], embed(torch.tensor([answer_beginning(model)]))], 1)
    return runs, decoder(inputs_embeds=forced, past_key_values=cache, **options)


@torch.no_grad()
def test_every_state_is_read_through_the_final_norm_and_the_head(both, problems):
    questions, numbers = [p.question for p in problems[:3]], number_tokens(both)
    values = [[float(p.values[0]), float(p.answer)] for p in problems[:3]]
    found, thought = logit_lens(both, questions, values, top=4), record(both, questions)
    norm, head = both.norm._module, both.lm.lm_head._module
    for index in range(3):
        states = torch.cat([thought.latents[index][None], thought.resid[index]]).transpose(0, 1)  # [step, layer, d]
        logits = head(norm(states))
        said = torch.distributions.Categorical(logits=logits)
        assert (found.tokens[index, 1:, :, 0] == logits.argmax(-1)).all()
        expected = said.probs.sort(-1, descending=True).values[..., :4]
        torch.testing.assert_close(found.probabilities[index, 1:], expected, atol=EXACT, rtol=0)
        torch.testing.assert_close(found.entropy[index, 1:], said.entropy(), atol=EXACT, rtol=EXACT)
        for place, value in enumerate(values[index]):
            (token,) = numbers[value]
            order = logits.argsort(-1, descending=True)
            assert (found.ranks[index, place, 1:] == (order == token).int().argmax(-1) + 1).all()
            torch.testing.assert_close(
                found.value_probabilities[index, place, 1:], said.probs[..., token], atol=EXACT, rtol=0
            )
    assert found.answers == thought.answers


def test_the_first_position_is_bots_own_state(both, problems):
    question = problems[0].question
    found, (runs, _) = logit_lens(both, [question], top=3), plain(both, question)
    hidden = runs[0][1].hidden_states
    for layer in range(both.n_layers - 1):  # the last entry is after the final norm
        logits = both.lm.lm_head._module(both.norm._module(hidden[layer + 1][:, -1]))
        assert (found.tokens[0, 0, layer + 1] == logits[0].topk(3).indices).all()
    logits = both.lm.lm_head._module(hidden[-1][:, -1])
    torch.testing.assert_close(found.probabilities[0, 0, -1], logits[0].softmax(-1).topk(3).values, atol=EXACT, rtol=0)


def test_the_lens_is_the_same_alone_in_a_padded_batch_and_serialised(model, problems):
    questions = [p.question for p in problems]
    together, serialised = logit_lens(model, questions, top=3), logit_lens(model, questions[:2], top=3, remote="local")
    for index in range(2):
        alone = logit_lens(model, questions[index : index + 1], top=3)
        for one, all_, sent in zip(alone[:3], together[:3], serialised[:3], strict=True):
            torch.testing.assert_close(one[0], all_[index], atol=EXACT, rtol=EXACT)
            torch.testing.assert_close(one[0], sent[index], atol=EXACT, rtol=EXACT)


def test_a_number_that_is_no_single_token_has_no_rank(model, problems):
    found = logit_lens(model, [problems[0].question], [[12.0, 1200.0, float("nan")]])
    assert (found.ranks[0, 0] >= 1).all()
    assert (found.ranks[0, 1:] == 0).all()
    assert (found.value_probabilities[0, 1:] == 0).all()


@pytest.mark.parametrize(
    ("text", "number"),
    [(" 12", 12.0), ("12", 12.0), ("12.0", 12.0), ("-3", -3.0), ("twelve", None), ("1,200", None), ("12.", None)],
)
def test_a_token_is_a_number_if_all_of_it_is(text, number):
    assert number_of(text) == number


@torch.no_grad()
def test_attention_by_group_equals_what_transformers_computes_for_the_question_alone(both, problems):
    question = problems[1].question
    found = attention_of(both, [p.question for p in problems[:3]])
    with eager(both):
        runs, answer = plain(both, question)
    ids = question_ids(both, question)
    digits = {token for tokens in number_tokens(both).values() for token in tokens}
    special = set(both.tokenizer.all_special_ids)
    kind = ["special" if i in special else "numbers" if i in digits else "words" for i in ids] + ["BoT"]
    kind += [f"step {step}" for step in range(both.n_latents)] + ["EoT"] + ["answer"] * len(answer_beginning(both))
    queries = [out.attentions for _, out in runs[1:]] + [[layer[:, :, :1] for layer in answer.attentions]]
    for query, layers in enumerate([*queries, answer.attentions]):
        for layer, weights in enumerate(layers):
            alone = weights[0, :, -1].mean(0)
            for group, name in enumerate(found.groups):
                members = [place for place, one in enumerate(kind[: len(alone)]) if one == name]
                expected = alone[members].sum()
                torch.testing.assert_close(found.weights[1, query, layer, group], expected, atol=EXACT, rtol=0)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(found.weights.shape[:-1]))
    assert found.counts[1, -1].tolist() == [kind.count(name) for name in found.groups]
    assert found.counts[1, 0, found.groups.index("step 0") :].tolist() == [1] + [0] * (both.n_latents + 1)


def test_after_reading_attention_the_model_attends_as_before_even_where_it_failed(model, problems):
    before = model.lm.config._attn_implementation
    with pytest.raises(ZeroDivisionError), eager(model):
        1 / 0  # noqa: B018
    attention_of(model, [problems[0].question])
    assert model.lm.config._attn_implementation == before != "eager"


def test_asking_names_the_nearest_tokens_of_every_step(model, problems):
    asked = ask(model, problems[0].question)
    assert len(asked.steps) == model.n_latents
    assert asked.answer_text == record(model, [problems[0].question]).answers[0]


def test_a_question_with_unknown_words_is_refused(model):
    with pytest.raises(ValueError, match="does not know 'Xerxes', 'has', 'skateboards'; use words"):
        ask(model, "Xerxes has 3 skateboards. How many skateboards does Xerxes have?")
