"""One cell at a time: by hooks, with the question's cache kept, and under nnsight."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import nnsight
import torch
from torch import Tensor

from codi_tracing.patching.interventions.sites import Site
from codi_tracing.patching.pairs.tokenized import TokenizedPair
from codi_tracing.traces.loop.tokens import question_ids
from codi_tracing.traces.text import last_number
from tests.bench.job import MOST_TOKENS, Found, Job, Plain, steps_of


class Alone(NamedTuple):
    """A variant: what is done once for each pair, and what for each cell (with or without greedy decoding)."""

    begin: Callable[[Job, TokenizedPair], Any]
    cell: Callable[[Job, TokenizedPair, Any, Site, bool], Found]


class Begun(NamedTuple):
    """Of a pair: what the clean run left after every block at every step, and the corrupted question, read or not."""

    clean: Tensor  # [layer, step, d_model]
    ids: Tensor
    forced: Tensor
    cache: Any = None
    latent: Tensor | None = None


def tokens_of(job: Job, ready: TokenizedPair) -> tuple[Tensor, Tensor, Tensor]:
    """Both questions and what is forced."""
    sides = ready.pair.clean.question, ready.pair.corrupted.question
    clean, corrupted = (torch.tensor(question_ids(job.model, side), device=job.device) for side in sides)
    return clean, corrupted, torch.tensor(ready.forced, device=job.device)


def read(plain: Plain, ids: Tensor) -> tuple[Any, Tensor]:
    """Read a question up to BoT: the cache and the first latent."""
    embeds = torch.cat([plain.embed(ids), plain.bot[None]])[None]
    out = plain.decoder(inputs_embeds=embeds, use_cache=True)
    return out.past_key_values, plain.project(out.last_hidden_state[:, -1:])


def think(plain: Plain, cache: Any, latent: Tensor, now: list[int]) -> None:
    """The latent steps; `now` tells the hooks which one it is."""
    for step in range(plain.n_latents):
        now[0] = step
        out = plain.decoder(inputs_embeds=latent, past_key_values=cache, use_cache=True)
        latent = plain.project(out.last_hidden_state)
    now[0] = -1


def answer(job: Job, cache: Any, ready: TokenizedPair, forced: Tensor, decode: bool) -> Found:
    """EoT and the forced tokens in one forward, the LM head where it is needed; then, if wanted, greedy decoding."""
    plain, lm_head = job.plain, job.plain.causal_lm.lm_head
    embeds = torch.cat([plain.eot[None], plain.embed(forced)])[None]
    out = plain.decoder(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
    logits = lm_head(out.last_hidden_state[0, -1]).float()
    difference = float(logits[ready.clean_token] - logits[ready.corrupted_token])
    if not decode:
        return Found(difference)
    if len(forced):
        cache.crop(-len(forced))
    token, eos, answer_tokens = lm_head(out.last_hidden_state[0, 0]).argmax(), job.model.tokenizer.eos_token_id, []
    while int(token) != eos:
        answer_tokens.append(int(token))
        if len(answer_tokens) == MOST_TOKENS:
            break
        out = plain.decoder(inputs_embeds=plain.embed(token)[None, None], past_key_values=cache, use_cache=True)
        token = lm_head(out.last_hidden_state[0, -1]).argmax()
    return Found(difference, last_number(job.model.tokenizer.decode(answer_tokens, skip_special_tokens=True)))


@torch.inference_mode()
def record_by_hooks(job: Job, ready: TokenizedPair) -> Begun:
    """Run the clean question with a hook on every block."""
    clean, corrupted, forced = tokens_of(job, ready)
    kept: list[Tensor] = []
    now = [-1]

    def keep(module: Any, args: Any, out: Tensor) -> None:
        if now[0] >= 0:
            kept.append(out[0, 0].clone())

    handles = [block.register_forward_hook(keep) for block in job.plain.decoder.layers]
    try:
        think(job.plain, *read(job.plain, clean), now)
    finally:
        for handle in handles:
            handle.remove()
    by_step = torch.stack(kept).unflatten(0, (job.plain.n_latents, -1))
    return Begun(by_step.transpose(0, 1), corrupted, forced)


@contextmanager
def hooked(job: Job, begun: Begun, site: Site, now: list[int]):
    """The site's block writes the clean run's values at its steps."""
    assert site.layer is not None
    values = {step: begun.clean[site.layer, step][None, None] for step in steps_of(job, site)}
    block = job.plain.decoder.layers[site.layer]
    handle = block.register_forward_hook(lambda module, args, out: values.get(now[0], out))
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def cell_by_hooks(job: Job, ready: TokenizedPair, begun: Begun, site: Site, decode: bool) -> Found:
    """Everything anew: question, thought, answer."""
    now = [-1]
    with hooked(job, begun, site, now):
        cache, latent = read(job.plain, begun.ids)
        think(job.plain, cache, latent, now)
        return answer(job, cache, ready, begun.forced, decode)


@torch.inference_mode()
def record_and_read(job: Job, ready: TokenizedPair) -> Begun:
    """The same, and the corrupted question read once."""
    begun = record_by_hooks(job, ready)
    cache, latent = read(job.plain, begun.ids)
    return begun._replace(cache=cache, latent=latent)


@torch.inference_mode()
def cell_from_cache(job: Job, ready: TokenizedPair, begun: Begun, site: Site, decode: bool) -> Found:
    """Thought and answer behind the question's cache, which is cut back afterwards."""
    now, question = [-1], begun.cache.get_seq_length()
    with hooked(job, begun, site, now):
        think(job.plain, begun.cache, begun.latent, now)
        measured = answer(job, begun.cache, ready, begun.forced, decode)
    begun.cache.crop(question - begun.cache.get_seq_length())
    return measured


def run_under_nnsight(job: Job, ids: Tensor, forced: Tensor, writes: dict, keep: list | None = None) -> Tensor:
    """One session of one run: a trace for the question, one for each step, one for the answer; logits at its end.

    `writes[layer, step]` are written; with `keep`, what every block leaves is saved into it.
    """
    model = job.model
    bot, eot, project = model.bot, model.eot, model.project
    placeholder = ids.new_zeros(1)
    question, answered = torch.cat([ids, placeholder])[None], torch.cat([placeholder, forced])[None]
    with torch.no_grad(), model.lm.session():
        with model.lm.trace(input_ids=question, use_cache=True, logits_to_keep=1):
            model.embedding.output[:, -1] = bot
            latent = project(model.norm.output[:, -1:])
            cache = model.lm.output.past_key_values
        for step in range(model.n_latents):
            written = {layer: value for (layer, at), value in writes.items() if at == step}
            touched = range(model.n_layers) if keep is not None else sorted(written)
            with model.lm.trace(inputs_embeds=latent, past_key_values=cache, use_cache=True, logits_to_keep=1):
                for layer in touched:
                    if layer in written:
                        model.blocks[layer].output[:, 0] = written[layer]
                    else:
                        keep.append(model.blocks[layer].output[0, 0].clone().save())
                latent = project(model.norm.output)
        with model.lm.trace(input_ids=answered, past_key_values=cache, use_cache=True, logits_to_keep=1):
            model.embedding.output[:, 0] = eot
            logits = nnsight.save(model.lm.lm_head.output[0, -1].float())
    return logits


def record_under_nnsight(job: Job, ready: TokenizedPair) -> Begun:
    """The clean run's values, saved."""
    clean, corrupted, forced = tokens_of(job, ready)
    kept: list[Tensor] = []
    run_under_nnsight(job, clean, forced, {}, kept)
    by_step = torch.stack(kept).unflatten(0, (job.plain.n_latents, -1))
    return Begun(by_step.transpose(0, 1), corrupted, forced)


def cell_under_nnsight(job: Job, ready: TokenizedPair, begun: Begun, site: Site, decode: bool) -> Found:
    """One patched run, one session. The benchmark does not decode in it."""
    assert not decode
    assert site.layer is not None
    writes = {(site.layer, step): begun.clean[site.layer, step] for step in steps_of(job, site)}
    logits = run_under_nnsight(job, begun.ids, begun.forced, writes)
    return Found(float(logits[ready.clean_token] - logits[ready.corrupted_token]))


HOOKS = Alone(record_by_hooks, cell_by_hooks)
HOOKS_CACHED = Alone(record_and_read, cell_from_cache)
NNSIGHT = Alone(record_under_nnsight, cell_under_nnsight)
