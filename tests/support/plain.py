"""One run at a time in plain PyTorch with forward hooks: what the many-cells engine is compared with.

No nnsight, no masks, no padding: a question alone, its cache growing by one forward after the other, every write a hook
or a tensor assignment, every cut edge a column taken out of a layer's cache while its reader runs. Works for both
families.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from codi_tracing.traces.loop.tokens import question_ids

MODULES = {
    "llama": {"decoder": "model", "blocks": "layers", "attn": "self_attn", "out": "o_proj"},
    "gpt2": {"decoder": "transformer", "blocks": "h", "attn": "attn", "out": "c_proj"},
}


@dataclass
class Recorded:
    """A run: logits after the forced tokens, the activation at every site, latents, and the cache by column."""

    logits: torch.Tensor = None
    all_logits: torch.Tensor = None  # after what opens the answer, and after each forced token
    said: list = field(default_factory=list)  # greedy tokens up to EOS, with nothing forced
    hidden: list = field(default_factory=list)  # [d] of each step, after the final norm
    values: dict = field(default_factory=dict)  # (kind, layer, step) -> [d]
    latents: list = field(default_factory=list)  # [d] of each step, and of the one that is never fed
    cache: list = field(default_factory=list)  # of each layer: keys and values, [1, head, column, d_head]
    question: int = 0  # how many columns the question with BoT has


@torch.no_grad()
def run_alone(
    model, question, forced, writes=None, *, freeze=(), host=None, knockouts=None, edges=(), n_latents=None, decode=0
) -> Recorded:
    """One question alone.

    `writes[kind, layer, step, head]` are values to write (a `latent` has no layer, a `kv` is a pair of tensors);
    `freeze` holds routes of the written steps at the run `host`; `cuts[kind]` is the run whose entries are read.
    `edges` are (reader, read, layer) that are knocked out; the loop takes `n_latents` steps; with `decode`, so many
    tokens are also decoded greedily.
    """
    n_latents = model.n_latents if n_latents is None else n_latents
    causal_lm = model.lm._module
    names = MODULES[causal_lm.config.model_type]
    decoder = getattr(causal_lm, names["decoder"])
    embed, writes, knockouts, done, now = (
        causal_lm.get_input_embeddings(),
        writes or {},
        knockouts or {},
        Recorded(),
        {"step": None},
    )
    width = model.head_width

    def keep(kind, layer, tensor, head=None):
        """Write what is asked for, record what then stands there."""
        if now["step"] is None:
            return tensor
        tensor = tensor.clone()
        if (value := writes.get((kind, layer, now["step"], head))) is not None:
            part = slice(None) if head is None else slice(head * width, (head + 1) * width)
            tensor[0, 0, part] = value[part] if head is not None else value
        done.values[kind, layer, now["step"]] = tensor[0, 0].clone()
        return tensor

    handles = []
    for layer, block in enumerate(getattr(decoder, names["blocks"])):
        attention = getattr(block, names["attn"])

        def heads(module, args, layer=layer):
            tensor = args[0]
            for head in range(model.n_heads):
                tensor = keep("head", layer, tensor, head)
            return (tensor, *args[1:])

        handles += [
            getattr(attention, names["out"]).register_forward_pre_hook(heads),
            attention.register_forward_hook(lambda m, a, out, i=layer: (keep("attn", i, out[0]), *out[1:])),
            block.mlp.register_forward_hook(lambda m, a, out, i=layer: keep("mlp", i, out)),
            block.register_forward_hook(lambda m, a, out, i=layer: keep("resid", i, out)),
        ]
    try:
        ids = torch.tensor([question_ids(model, question)])
        out = decoder(inputs_embeds=torch.cat([embed(ids), model.bot[None, None]], 1), use_cache=True)
        cache, done.question = out.past_key_values, ids.shape[1] + 1
        own = entries(cache)
        for kind, columns in (
            ("question", slice(0, done.question - 1)),
            ("bot", slice(done.question - 1, done.question)),
        ):
            if kind in knockouts:
                put(cache, columns, knockouts[kind].cache)
        written = {step for _, _, step, _ in writes}
        latent = model.project(out.last_hidden_state[0, -1])
        for step in range(n_latents):
            if "R" in freeze and step - 1 in written:
                latent = host.latents[step]
            latent = writes.get(("latent", None, step, None), latent)
            done.latents.append(latent)
            now["step"] = step
            column = done.question + step
            with unseen(cache, hidden_columns(model, edges, step, done.question)):
                out = decoder(
                    inputs_embeds=latent[None, None], past_key_values=cache, use_cache=True,
                    position_ids=torch.tensor([[column]]),
                )  # fmt: skip
            now["step"] = None
            done.hidden.append(out.last_hidden_state[0, -1])
            for layer in range(model.n_layers):
                if (value := writes.get(("kv", layer, step, None))) is not None:
                    put_one(cache, layer, column, value)
            for layer, (keys, values) in enumerate(entries(cache)):
                own[layer] = tuple(
                    torch.cat([a, b[:, :, column:]], 2) for a, b in zip(own[layer], (keys, values), strict=True)
                )
            if "K_T" in freeze and step in written:
                put(cache, slice(column, column + 1), host.cache)
            latent = model.project(out.last_hidden_state[0, -1])
        done.latents.append(latent)
        done.cache = own
        for step in range(n_latents):
            columns = slice(done.question + step, done.question + step + 1)
            put(cache, columns, host.cache if "K_A" in freeze and step in written else own)
            if "thought" in knockouts and step < model.n_latents:
                put(cache, columns, knockouts["thought"].cache)
        answer(model, done, cache, forced, hidden_columns(model, edges, None, done.question), decode)
    finally:
        for handle in handles:
            handle.remove()
    return done


def answer(model, done, cache, forced, hide, decode=0) -> None:
    """Feed what opens the answer and the forced tokens, one at a time; then, on a copy, decode greedily."""
    causal_lm = model.lm._module
    embed, eos = causal_lm.get_input_embeddings(), model.tokenizer.eos_token_id
    opening = [model.eot] if model.card.remove_eos else [model.eot, embed(torch.tensor(eos))]

    def feed(cache, vector):
        position = torch.tensor([[max(layer.keys.shape[2] for layer in cache.layers)]])
        with unseen(cache, hide):
            out = causal_lm(
                inputs_embeds=vector[None, None], past_key_values=cache, use_cache=True, position_ids=position
            )
        return out.logits[0, -1]

    for vector in opening:
        logits = feed(cache, vector)
    free = copied(entries(cache))
    done.all_logits = torch.stack([logits, *(feed(cache, embed(torch.tensor(token))) for token in forced)])
    done.logits = done.all_logits[-1]
    while len(done.said) < decode and (token := int(logits.argmax())) != eos:
        done.said.append(token)
        logits = feed(free, embed(torch.tensor(token)))


def hidden_columns(model, edges, reader, question) -> list:
    """Of each layer, the columns that a reader (a step, or `None` for the answer) no longer sees."""
    columns = {"question": range(question - 1), "bot": [question - 1]}
    return [
        {
            column
            for who, read, where in edges
            if who == reader and where in (None, layer)
            for column in (columns[read] if isinstance(read, str) else [question + read])
        }
        for layer in range(model.n_layers)
    ]


@contextmanager
def unseen(cache, hide) -> Iterator[None]:
    """For one forward of one token: take columns out of the layers, then put all back with the new one behind."""
    if not any(hide):
        yield
        return
    whole = entries(cache)
    for layer, gone in zip(cache.layers, hide, strict=True):
        keep = [column for column in range(layer.keys.shape[2]) if column not in gone]
        layer.keys, layer.values = layer.keys[:, :, keep], layer.values[:, :, keep]
    yield
    for layer, (keys, values) in zip(cache.layers, whole, strict=True):
        layer.keys = torch.cat([keys, layer.keys[:, :, -1:]], 2)
        layer.values = torch.cat([values, layer.values[:, :, -1:]], 2)


def copied(source: list) -> DynamicCache:
    """A cache that holds the given keys and values of every layer."""
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(source):
        cache.update(keys.clone(), values.clone(), layer)
    return cache


def entries(cache) -> list:
    """Copies of the keys and values of every layer."""
    return [(layer.keys.clone(), layer.values.clone()) for layer in copy.copy(cache.layers)]


def put(cache, columns: slice, source: list) -> None:
    """Overwrite columns of every layer by those of another cache."""
    for layer, (keys, values) in zip(cache.layers, source, strict=True):
        layer.keys[:, :, columns] = keys[:, :, columns]
        layer.values[:, :, columns] = values[:, :, columns]


def put_one(cache, layer: int, column: int, value) -> None:
    keys, values = value
    cache.layers[layer].keys[:, :, column] = keys
    cache.layers[layer].values[:, :, column] = values


def writes_of(model, site, donor: Recorded) -> dict:
    """What a site of the engine writes, taken from a donor's run."""
    values = {}
    for layer, step in site.places(model):
        if site.kind == "latent":
            values["latent", None, step, None] = donor.latents[step]
        elif site.kind == "kv":
            column = donor.question + step
            values["kv", layer, step, None] = tuple(tensor[:, :, column] for tensor in donor.cache[layer])
        elif site.kind in ("resid", "attn", "mlp", "head"):
            values[site.kind, layer, step, site.head] = donor.values[site.kind, layer, step]
    return values


def hosts(ready, direction):
    """The question written into, and the one that is the source."""
    sides = (ready.pair.corrupted.question, ready.pair.clean.question)
    return sides if direction == "denoising" else sides[::-1]


def difference(ready, done):
    """The logit difference of a run."""
    return float(done.logits[ready.clean_token] - done.logits[ready.corrupted_token])


def patched(table, ready, metric="logit_difference", **keys):
    """The one number of the table with these keys."""
    chosen = table[(table["pair_id"] == str(ready.pair.pair_id)) & (table["metric"] == metric)]
    for column, value in keys.items():
        chosen = chosen[chosen[column].isna() if value is None else chosen[column] == value]
    (value,) = chosen["patched"]
    return float(value)


def decoder_of(model):
    """The transformer below the LM head."""
    causal_lm = model.lm._module
    return getattr(causal_lm, MODULES[causal_lm.config.model_type]["decoder"])


@torch.no_grad()
def single_pass_alone(model, question, forced, writes=None, *, pads_of=None, decode=0) -> Recorded:
    """Question, BoT, pads, EoT and forced tokens of one question in one forward, values written at the pads by hooks.

    With `pads_of`, another run of this function, the answer reads that run's pads from the cache instead.
    """
    causal_lm, writes, done = model.lm._module, writes or {}, Recorded()
    names = MODULES[causal_lm.config.model_type]
    embed, n = causal_lm.get_input_embeddings(), model.n_latents
    ids = torch.tensor(question_ids(model, question))
    pads, done.question = torch.full((n,), model.tokenizer.pad_token_id), len(ids) + 1
    embeds = torch.cat([embed(ids), model.bot[None], embed(pads), model.eot[None], embed(torch.tensor(list(forced)))])
    width = model.head_width

    def keep(kind, layer, tensor):
        tensor = tensor.clone()
        for (what, where, step, head), value in writes.items():
            if (what, where) == (kind, layer):
                part = slice(None) if head is None else slice(head * width, (head + 1) * width)
                tensor[0, done.question + step, part] = value[part] if head is not None else value
        for step in range(n if tensor.shape[1] >= done.question + n else 0):
            done.values[kind, layer, step] = tensor[0, done.question + step].clone()
        return tensor

    handles = []
    for layer, block in enumerate(getattr(decoder_of(model), names["blocks"])):
        attention = getattr(block, names["attn"])
        handles += [
            getattr(attention, names["out"]).register_forward_pre_hook(
                lambda m, args, i=layer: (keep("head", i, args[0]), *args[1:])
            ),
            attention.register_forward_hook(lambda m, a, out, i=layer: (keep("attn", i, out[0]), *out[1:])),
            block.mlp.register_forward_hook(lambda m, a, out, i=layer: keep("mlp", i, out)),
            block.register_forward_hook(lambda m, a, out, i=layer: keep("resid", i, out)),
        ]
    try:
        out = causal_lm(inputs_embeds=embeds[None], use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    before = done.question + n
    done.all_logits, done.cache = out.logits[0, before:], entries(out.past_key_values)
    done.logits = done.all_logits[-1]
    if pads_of is not None or decode:
        cache = copied([tuple(tensor[:, :, :before] for tensor in layer) for layer in done.cache])
        if pads_of is not None:
            put(cache, slice(done.question, before), pads_of.cache)
        answer(model, done, cache, forced, [()] * model.n_layers, decode)
    return done
