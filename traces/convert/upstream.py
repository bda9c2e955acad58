"""Upstream CODI's whole state dict, accounted for tensor by tensor.

Upstream saves one state dict (`pytorch_model.bin` or `model.safetensors`):

    codi.base_model.model.<module>.base_layer.weight      the base under an adapted module
    codi.base_model.model.<module>.lora_A.default.weight  [rank, in], and lora_B [out, rank]
    codi.base_model.model.<embedding>.weight              with three rows after the vocabulary: pad, BoT, EoT
    codi.base_model.model.<the rest of the base>
    prj.1.*, prj.3.*, prj.ln.*                            the projection
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from codi_tracing.traces.convert.weights_file import OLD_BUFFERS, Part, State
from codi_tracing.traces.model.families import Family, family_of
from codi_tracing.traces.model.integrity import check_base
from codi_tracing.traces.model.loading import refusing

PREFIX, LORA_A, LORA_B = "codi.base_model.model.", ".lora_A.default.weight", ".lora_B.default.weight"
PROJECTION = tuple(f"prj.{layer}.{name}" for layer in ("1", "3", "ln") for name in ("weight", "bias"))
SPECIAL = 3  # rows after the vocabulary: pad, BoT, EoT


class Base(NamedTuple):
    """The base as `from_pretrained` gives it, in its own dtype."""

    name: str
    lm: Any
    tokenizer: Any
    family: Family
    revision: str | None  # the commit, where it came from the Hub

    @property
    def embedding(self) -> str:
        return f"{self.family.decoder}.{self.family.embedding}.weight"

    @property
    def vocabulary(self) -> int:
        return self.lm.get_input_embeddings().weight.shape[0]


def load_base(name: str) -> Base:
    """The base with its tokenizer, weights in the dtype that they are stored in."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with refusing("the base", name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        family = family_of(config, name)
        check_base(name, config)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        lm = AutoModelForCausalLM.from_pretrained(name, dtype="auto", trust_remote_code=False)
    return Base(name, lm, tokenizer, family, None if Path(name).is_dir() else commit(name))


def commit(repository: str) -> str | None:
    """The commit of a Hub repository that lies in the cache and was just loaded."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, "config.json")
    return Path(path).parent.name if isinstance(path, str) else None


class Layout(NamedTuple):
    """The names that a CODI state dict over one base must have. `base` goes from the base's own names to them."""

    modules: dict[str, nn.Module]  # the adapted modules, by the base's own names
    lora: set[str]
    base: dict[str, str]
    optional: set[str]  # what may be there or not: a tied LM head, old buffers

    @property
    def wanted(self) -> set[str]:
        return (self.lora | set(self.base.values()) | set(PROJECTION)) - self.optional


def layout(state: State, lm: nn.Module, family: Family) -> Layout:
    """What `state` must hold, given the base; which of its modules are adapted is read off the names."""
    adapted = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in state if ".lora_" in name}
    targets = {name.rpartition(".")[2] for name in adapted} & set(family.adapted)
    linear = [(name, module) for name, module in lm.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    modules: dict[str, nn.Module] = {name: module for name, module in linear if name.rpartition(".")[2] in targets}
    lora = {f"{PREFIX}{name}{side}" for name in modules for side in (LORA_A, LORA_B)}
    base = {}
    for name in lm.state_dict():
        module, _, leaf = name.rpartition(".")
        base[name] = f"{PREFIX}{module}.base_layer.{leaf}" if module in modules else PREFIX + name
    # Old GPT-2 code named its attention `attn` and stored its masks there; Llama's is another.
    masks = {f"{PREFIX}{name}{end.removeprefix('.attn')}" for name, _ in lm.named_modules() for end in OLD_BUFFERS
             if name.endswith(".attn")}  # fmt: skip
    optional = (masks & set(state)) - set(base.values())
    return Layout(modules, lora, base, optional | ({base["lm_head.weight"]} if is_tied(lm) else set()))


def is_tied(lm: Any) -> bool:
    """Whether the base's LM head is its embedding."""
    return lm.get_output_embeddings().weight is lm.get_input_embeddings().weight


def account(names: set[str], wanted: Layout, rows: int) -> list[Part]:
    """Expected, landed, missing and unexpected, part by part; `rows` is how many rows follow the vocabulary."""
    known = {"base": set(wanted.base.values()), "LoRA": wanted.lora, "projection": set(PROJECTION), "other": set()}
    stray = Counter(part_of(name) for name in names - wanted.wanted - wanted.optional)
    parts = []
    for part, of_part in known.items():
        expected = of_part & wanted.wanted
        if expected or stray[part]:
            parts.append(Part(part, len(expected), len(expected & names), len(expected - names), stray[part]))
    landed = min(max(rows, 0), SPECIAL)
    return [*parts, Part("special rows", SPECIAL, landed, SPECIAL - landed, max(rows - SPECIAL, 0))]


def part_of(name: str) -> str:
    """Which part of a CODI model a tensor belongs to, by its name."""
    if name.startswith("prj."):
        return "projection"
    return ("LoRA" if ".lora_" in name else "base") if name.startswith(PREFIX) else "other"


def untied(state: State, ground: Base) -> tuple[dict[str, Tensor], Layout]:
    """The state dict with its embedding in place: files that store tied weights once may keep the LM head instead."""
    state = dict(state)
    wanted = layout(state, ground.lm, ground.family)
    embedding, head = wanted.base[ground.embedding], wanted.base["lm_head.weight"]
    if is_tied(ground.lm) and embedding not in state and head in state:
        state[embedding] = state[head]
    return state, wanted


def special_rows(state: State, wanted: Layout, ground: Base) -> int:
    """How many rows the state dict's embedding has beyond the base's vocabulary."""
    table = state.get(wanted.base[ground.embedding])
    return -ground.vocabulary if table is None else table.shape[0] - ground.vocabulary


def fault(state: State, wanted: Layout, ground: Base) -> str | None:
    """The first thing that is wrong with the state dict over this base, as the end of a sentence."""
    names = set(state)
    missing, unexpected = sorted(wanted.wanted - names), sorted(names - wanted.wanted - wanted.optional)
    if not names & set(PROJECTION):
        return "has no projection (prj.1, prj.3, prj.ln), so it cannot think; give a model trained with use_prj"
    if not wanted.modules:
        return f"adapts none of {', '.join(ground.family.adapted)}, so it is no CODI LoRA over {ground.name}"
    table, head = (state.get(wanted.base[name]) for name in (ground.embedding, "lm_head.weight"))
    if is_tied(ground.lm) and table is not None and head is not None and not torch.equal(table, head):
        return f"its LM head differs from its embedding, and {ground.name} has one matrix for both"
    if table is not None and table.shape[1:] == ground.lm.get_input_embeddings().weight.shape[1:]:
        rows, want = table.shape[0], ground.vocabulary + SPECIAL
        if rows == ground.vocabulary:
            return f"its embedding has {rows} rows, wanted {want}: the rows of pad, BoT and EoT are missing"
        if rows != want:
            return f"its embedding has {rows} rows, wanted {want}; it was trained over another base than {ground.name}"
    if missing or unexpected:
        said = [f"{len(some)} {what}, the first is {some[0]}"
                for what, some in (("missing", missing), ("unexpected", unexpected)) if some]  # fmt: skip
        why = f"it is incomplete or was trained over another base than {ground.name}"
        return f"its tensors do not fit: {'; '.join(said)}; {why}"
    return shape_fault(state, wanted, ground) or value_fault(state, wanted, ground)


def shape_fault(state: State, wanted: Layout, ground: Base) -> str | None:
    """The first tensor whose shape does not fit the base or the others."""
    d_model, rank, prj_dim = ground.lm.config.hidden_size, lora_rank(state, wanted), state["prj.1.weight"].shape[0]
    ln = "prj.ln."
    shapes = {
        "prj.1.weight": (prj_dim, d_model), "prj.1.bias": (prj_dim,), "prj.3.weight": (d_model, prj_dim),
        "prj.3.bias": (d_model,), f"{ln}weight": (d_model,), f"{ln}bias": (d_model,),
    }  # fmt: skip
    for name, module in wanted.modules.items():
        n_in, n_out = features(module)
        shapes |= {f"{PREFIX}{name}{LORA_A}": (rank, n_in), f"{PREFIX}{name}{LORA_B}": (n_out, rank)}
    tables = {ground.embedding, "lm_head.weight"}
    for own, tensor in ground.lm.state_dict().items():
        extra = SPECIAL if own in tables else 0
        shapes[wanted.base[own]] = (tensor.shape[0] + extra, *tensor.shape[1:])
    for name, shape in shapes.items():
        if name in state and tuple(state[name].shape) != shape:
            found = list(state[name].shape)
            return (
                f"{name} has shape {found}, wanted {list(shape)}; it was trained over another base than {ground.name}"
            )
    return None


def value_fault(state: State, wanted: Layout, ground: Base) -> str | None:
    """The first tensor of CODI's own that holds NaN or infinity."""
    own = {name: state[name] for name in (*sorted(wanted.lora), *PROJECTION)}
    own[wanted.base[ground.embedding]] = state[wanted.base[ground.embedding]][-SPECIAL:]
    for name, tensor in own.items():
        if not torch.isfinite(tensor).all():
            return f"{name} holds NaN or infinity, as a training that diverged leaves them; take an earlier checkpoint"
    return None


def features(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer; GPT-2 keeps its weights the other way round."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return tuple(module.weight.shape)


def lora_rank(state: State, wanted: Layout) -> int:
    """LoRA's rank, read off the first module; all others are compared with it."""
    return state[f"{PREFIX}{next(iter(wanted.modules))}{LORA_A}"].shape[0]


def differing(state: State, wanted: Layout, ground: Base) -> list[str]:
    """The base tensors whose values are not the base's, compared in the state dict's precision."""
    differ = []
    for own, tensor in ground.lm.state_dict().items():
        if (name := wanted.base[own]) in state:
            stored = state[name][: ground.vocabulary] if own in (ground.embedding, "lm_head.weight") else state[name]
            if not torch.equal(tensor.to(stored.dtype), stored):
                differ.append(own)
    return differ
