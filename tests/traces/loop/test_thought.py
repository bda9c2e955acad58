"""The latent loop against an independent one in plain PyTorch, and its identities."""

from dataclasses import replace

import pytest
import torch

from codi_tracing.traces.loop.recording import record
from codi_tracing.traces.loop.thought import run
from codi_tracing.traces.loop.tokens import answer_ids, encode, question_ids
from codi_tracing.traces.model.loading import load_codi

EXACT = 1e-5


@torch.no_grad()
def plain_loop(model, question: str, n_tokens: int = 12):
    """CODI's evaluation loop for one question alone, written from its description, with no mask, padding or nnsight."""
    causal_lm = model.lm._module
    embed = causal_lm.get_input_embeddings()
    ids = torch.tensor([question_ids(model, question)])
    embeds = torch.cat([embed(ids), model.bot[None, None]], 1)
    out = causal_lm.model(inputs_embeds=embeds, use_cache=True)
    hidden, latents, resid = out.last_hidden_state[:, -1:], [], []
    for _ in range(model.n_latents):
        latents.append(model.project(hidden))
        out = causal_lm.model(
            inputs_embeds=latents[-1], past_key_values=out.past_key_values, use_cache=True, output_hidden_states=True
        )
        hidden = out.last_hidden_state
        resid.append(torch.cat(out.hidden_states[1:-1])[:, 0])  # the last entry is after the final norm
    prefix = torch.cat([model.eot[None, None], embed(torch.tensor([answer_ids(model)]))], 1)
    import copy

    forced = causal_lm(inputs_embeds=prefix, past_key_values=copy.deepcopy(out.past_key_values)).logits[0, -1]
    said, step = [], model.eot[None, None]
    cache = out.past_key_values
    for _ in range(n_tokens):
        out = causal_lm(inputs_embeds=step, past_key_values=cache, use_cache=True)
        said.append(out.logits[0, -1].argmax().item())
        if said[-1] == model.tokenizer.eos_token_id:
            break
        step = embed(torch.tensor([[said[-1]]]))
    said = said[:-1] if said[-1] == model.tokenizer.eos_token_id else said
    text = model.tokenizer.decode(said, skip_special_tokens=True)
    return forced, torch.cat(latents, 1)[0], torch.stack(resid, 1), text


def test_the_nnsight_loop_equals_a_plain_pytorch_loop(model, problems):
    thought = record(model, [p.question for p in problems])
    for index, problem in enumerate(problems):
        logits, latents, resid, text = plain_loop(model, problem.question)
        torch.testing.assert_close(thought.logits[index], logits, atol=EXACT, rtol=0)
        torch.testing.assert_close(thought.latents[index], latents, atol=EXACT, rtol=0)
        torch.testing.assert_close(thought.resid[index, :-1], resid, atol=EXACT, rtol=EXACT)
        assert thought.answers[index] == text


def test_a_question_run_in_a_padded_batch_gives_what_it_gives_alone(model, problems):
    together = record(model, [p.question for p in problems])
    for index, problem in enumerate(problems):
        alone = record(model, [problem.question])
        torch.testing.assert_close(together.logits[index], alone.logits[0], atol=EXACT, rtol=0)
        assert together.answers[index] == alone.answers[0]


def test_cells_of_one_row_do_not_see_one_another(model, problems):
    questions = [p.question for p in problems[:3]]
    prefix = torch.tensor([answer_ids(model)])
    rows = encode(model, [questions], reads=[2, 0, 1, 0, 0])
    logits = run(model, rows, prefix).forced.at_read[0]
    alone = record(model, questions).logits
    torch.testing.assert_close(logits, alone[[2, 0, 1, 0, 0]], atol=EXACT, rtol=0)


def test_exchanging_thoughts_back_and_forth_changes_nothing_and_once_changes_something(model, problems):
    questions = [p.question for p in problems[:2]]
    prefix = torch.tensor([answer_ids(model)])
    rows = encode(model, [questions], reads=[0, 0, 1])

    def thinking(*cells):
        sight = rows.own(model.n_latents)
        steps = torch.tensor(cells)[:, None].expand(-1, model.n_latents)
        return run(model, replace(rows, after={None: sight._replace(steps=steps)}), prefix).forced.at_read[0]

    own, same, swapped = run(model, rows, prefix).forced.at_read[0], thinking(1, 0, 2), thinking(2, 1, 0)
    torch.testing.assert_close(own, same, atol=EXACT, rtol=0)
    assert (own[0] - swapped[0]).abs().max() > 100 * EXACT


def test_bfloat16_runs_and_stays_close(random_checkpoint, problems):
    low = load_codi(random_checkpoint, device="cpu", dtype="bfloat16")
    logits = record(low, [problems[0].question]).logits
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def test_the_room_that_is_checked_is_that_of_the_steps_taken(model, problems):
    need = len(question_ids(model, problems[0].question)) + 2 + len(answer_ids(model))  # BoT, EoT, no latent step
    before = model.lm.config.max_position_embeddings
    rows, prefix = encode(model, [[problems[0].question]]), torch.tensor([answer_ids(model)])
    try:
        model.lm.config.max_position_embeddings = need
        assert run(model, rows, prefix, n_latents=0).forced is not None
        with pytest.raises(ValueError, match="shorten them"):
            run(model, rows, prefix)
    finally:
        model.lm.config.max_position_embeddings = before
